"""A crowd of long connections of three kinds, every byte of each checked, for what must not break them.

    python -m tests.support.crowd --target 127.0.0.1:8001 --idle 700 --pingpong 300 --bulk 40

idle ones exchange something at the beginning, on SIGUSR1 and at the end; pingpong ones send pieces at an interval and
get each back; bulk ones send as fast as they can and read now fast, now slowly and now not at all, so that whatever is
between them and the server is full in both directions. The backend is tests.support.backend.

Events are lines of JSON on stderr: "ready" (all have had an answer, or are lost), "verified" (after SIGUSR1: all idle
ones have had another, or are lost), "lost" (at once, with the reason). SIGTERM has all verify and end; then the result
is printed, with the longest wait of each connection between "ready" and SIGTERM.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from array import array
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Final

from tests.support import exchange as wire
from tests.support.clients import Requester, Streamer
from tests.support.engine import GONE, Client, Engine, Settings, Target
from tests.support.processes import ROOT, Process, pin, python_module, raise_descriptor_limit
from tests.support.tally import percentiles

KINDS: Final = ("idle", "pingpong", "bulk")

_NEVER: Final = float("inf")
_PIECE: Final = 1 << 16
_TICK: Final = 0.02
_MOODS: Final = (0, 1 << 11, 1 << 13, 1 << 15, 1 << 19)
"""What a bulk connection reads in a tick, for a while."""
_WINDOWS: Final = (1 << 40, 1 << 22, 1 << 18)
"""The most that one has under way: the first is stopped by full buffers only, the last runs dry all the time."""
_ASKED: Final = memoryview(wire.ASKED)


class Crowd(Engine):
    """Runs a crowd: so many connections of each kind, in the order of KINDS."""

    def __init__(self, settings: Settings, counts: dict[str, int]) -> None:
        self.counts = counts
        self.gaps = {kind: array("d") for kind in KINDS}
        self.ended = dict.fromkeys(KINDS, 0)
        self.lost: list[dict[str, Any]] = []
        self.unverified = -1  # idle ones that owe an answer to SIGUSR1; -1: none was asked
        self._verify = False
        self._kinds = [kind for kind in KINDS for _ in range(counts[kind])]
        # Mixed, or one worker may get all of a kind.
        random.Random(settings.seed or 1).shuffle(self._kinds)
        super().__init__(settings, self._make)

    def _make(self, engine: Engine, target: Target) -> Client:
        return _CLASSES[self._kinds.pop()](engine, target)

    def verify(self) -> None:
        """Have all idle connections exchange something. For signal handlers."""
        self._verify = True
        self.wake()

    def _interrupted(self, fd: int) -> None:
        if fd == self._wake and self._verify and not self._stops:
            os.eventfd_read(fd)
            self._verify = False
            idle = [client for client in self.clients.values() if isinstance(client, Idler) and client.resting]
            self.unverified = len(idle)
            for client in idle:
                client.owing = True
                client.ask_again()
            self.verified(0)
        else:
            self._take_gaps()
            super()._interrupted(fd)

    def say(self, event: str, **more: Any) -> None:
        if event == "started":
            return  # of no use here
        if event == "ready":
            # While all begin, they wait for each other.
            self._take_gaps()
            for gaps in self.gaps.values():
                del gaps[:]
        super().say(event, **more)

    def _take_gaps(self) -> None:
        for client in self.clients.values():
            if isinstance(client, _Member) and not self.finishing:
                self.gaps[client.kind].append(client.take_gap())

    def verified(self, more: int = 1) -> None:
        """So many more have answered, or are lost."""
        self.unverified -= more
        if not self.unverified:
            self.unverified = -1
            self.say("verified", open=len(self.clients), lost=len(self.lost))

    def one_lost(self, client: Client, kind: str, reason: str, detail: str) -> None:
        try:
            port = client.sock.getsockname()[1]
        except OSError:
            port = 0
        loss = {
            "kind": kind,
            "reason": reason,
            "detail": detail,
            "port": port,
            "age": round(time.monotonic() - client.began, 3),
            "at": round(time.time(), 3),
        }
        self.lost.append(loss)
        self.say("lost", **loss)

    def report(self, until_eof: bool = False) -> dict[str, Any]:
        """Run to the end; what became of everybody."""
        result = self.run(until_eof)
        return {
            "corrupt": sum(1 for each in self.lost if each["reason"] in ("corrupt", "wrong")),
            "broken": len(self.lost),
            "lost": self.lost,
            "kinds": {
                kind: {
                    "count": self.counts[kind],
                    "done": self.ended[kind],
                    "broken": sum(1 for each in self.lost if each["kind"] == kind),
                    "gap_ms": percentiles(self.gaps[kind]),
                }
                for kind in KINDS
            },
            "gap_ms": max((max(gaps, default=0.0) for gaps in self.gaps.values()), default=0.0) * 1000,
            **{name: result[name] for name in ("unfinished", "elapsed", "requests", "bytes_in", "bytes_out", "cpu")},
        }


class _Member(Client):
    """What all kinds have in common: a report of how it ended, and the longest wait."""

    __slots__ = ()
    kind = ""
    engine: Crowd

    @property
    def begun(self) -> bool:
        """Whether it has been counted as ready."""
        raise NotImplementedError

    def take_gap(self) -> float:
        """The longest time for which it had to wait since the last call, in seconds."""
        raise NotImplementedError

    def fail(self, kind: str, detail: str) -> None:
        if not self.over:
            if not self.engine.finishing:
                self.engine.gaps[self.kind].append(self.take_gap())
            if not self.begun:
                self.engine.one_ready()
            self.engine.one_lost(self, self.kind, kind, detail)
            super().fail(kind, detail)

    def done(self) -> None:
        self.engine.ended[self.kind] += 1
        super().done()


class Idler(_Member, Requester):
    """Silent between exchanges."""

    __slots__ = ("longest", "owing")
    kind = "idle"

    def __init__(self, engine: Engine, target: Target) -> None:
        super().__init__(engine, target)
        self.longest = 0.0
        self.owing = False

    @property
    def begun(self) -> bool:
        return self.count > 0

    def take_gap(self) -> float:
        longest, self.longest = self.longest, 0.0
        return longest

    def answered(self) -> None:
        self.engine.tally.requests += 1
        self.count += 1
        self.longest = max(self.longest, time.monotonic() - self.asked)
        if self.count == 1:
            self.engine.one_ready()
        if self.engine.finishing:
            self.close_down()
        else:
            self.rest()
        self._settle()

    def fail(self, kind: str, detail: str) -> None:
        super().fail(kind, detail)
        self._settle()

    def _settle(self) -> None:
        if self.owing:
            self.owing = False
            self.engine.verified()


class PingPong(_Member, Streamer):
    """Pieces there and back."""

    __slots__ = ()
    kind = "pingpong"

    @property
    def begun(self) -> bool:
        return self.received > 0

    def take_gap(self) -> float:
        longest, self.gap = self.gap, 0.0
        return longest


class Bulk(_Member):
    """Writes as fast as it can, and reads by its mood."""

    __slots__ = (
        "_closed",
        "_dice",
        "_dry_since",
        "_gap",
        "_head",
        "_in_place",
        "_mood",
        "_out_place",
        "_patience",
        "_received",
        "_sent",
        "_window",
    )
    kind = "bulk"

    def __init__(self, engine: Engine, target: Target) -> None:
        super().__init__(engine, target)
        self._head = b""  # of the answer; as long as it is short, the header is not complete
        self._sent = self._received = 0  # without headers
        self._gap = 0.0
        self._dry_since = self.began  # wanted to read, and there was nothing; 0: it was not dry
        self._closed = False  # our side

    @property
    def begun(self) -> bool:
        return len(self._head) >= wire.ANSWER_SIZE

    def take_gap(self) -> float:
        longest, self._gap = self._gap, 0.0
        return longest

    def _attempt(self) -> None:
        # Small ones, or the kernel would hold so much that the crowd never notices what happens between.
        for name in (socket.SO_RCVBUF, socket.SO_SNDBUF):
            self.sock.setsockopt(socket.SOL_SOCKET, name, 1 << 16)
        super()._attempt()

    def opening(self) -> None:
        self.ident = self.engine.new_ident()
        self._dice = random.Random(self.ident)
        self._window = _WINDOWS[self.ident % len(_WINDOWS)]
        self._mood, self._patience = _MOODS[-2], 5
        self._in_place = self._out_place = wire.position(self.ident)
        self.send(wire.pack_request(wire.STREAM, wire.CLOSE_CLIENT, 0, 0, self.ident))
        self.engine.later(_TICK * self._dice.random(), self._tick)
        if self.unsent is None:
            self.unsent = memoryview(b"")  # so that room to send is watched from the beginning

    def _tick(self) -> None:
        if self.over:
            return
        self._patience -= 1
        if self._patience <= 0:
            self._mood = self._dice.choice(_MOODS)
            self._patience = self._dice.randint(5, 25) if self._mood != _MOODS[-1] else 4
        try:
            self._read(self._mood if self._received else _PIECE)
        except OSError as error:
            self.broken(error)
            return
        if not self.over and not self.engine.finishing:
            self.engine.later(_TICK, self._tick)

    def ready(self, mask: int) -> None:
        if self.unsent is None or self.send(self.unsent):
            self._pour()
        if mask & GONE or self.engine.finishing:
            self._read(_NEVER)
        elif self._dry_since:
            # Also one that pauses: what is late is not its doing.
            self._read(self._mood or _MOODS[1])

    def _pour(self) -> None:
        """Write until nothing more goes out."""
        if self.engine.finishing:
            if not self._closed:
                self._closed = True
                self.sock.shutdown(socket.SHUT_WR)
            return
        room = True
        while room and self._sent - self._received < self._window:
            place = self._out_place
            self._out_place = (place + _PIECE) & (wire.CYCLE - 1)
            self._sent += _PIECE
            room = self.send(_ASKED[place : place + _PIECE])

    def _read(self, most: float) -> None:
        """Read at most so much, and no more than there is."""
        while most > 0 and not self.over:
            try:
                data = self.sock.recv(int(min(most, 1 << 18)))
            except BlockingIOError:
                if not self._dry_since:
                    self._dry_since = time.monotonic()
                    self.deadline = self._dry_since + self.engine.settings.timeout
                return
            if self._dry_since:
                self._gap = max(self._gap, time.monotonic() - self._dry_since)
                self._dry_since = 0.0
                self.deadline = _NEVER
            if not data:
                if self._closed and self._received == self._sent:
                    self.done()
                else:
                    self.fail("short", f"closed {self.state()}")
                return
            most -= len(data)
            self.engine.tally.bytes_in += len(data)
            self._check(data)
            if self.unsent is None and not self.over:
                self._pour()

    def _check(self, data: bytes) -> None:
        if len(self._head) < wire.ANSWER_SIZE:
            self._head += data
            if len(self._head) < wire.ANSWER_SIZE:
                return
            data = self._head[wire.ANSWER_SIZE :]
            answer = wire.unpack_answer(self._head)
            if answer is None or answer.status != wire.OK or answer.ident != self.ident:
                self.engine.one_ready()
                self.fail("corrupt", f"no header of its answer: {answer}")
                return
            self.engine.one_ready()
        place = self._in_place
        if not wire.ANSWERED.startswith(data, place):
            self.fail("corrupt", f"bytes {self._received} to {self._received + len(data)}: {self._where(data)}")
            return
        self._in_place = (place + len(data)) & (wire.CYCLE - 1)
        self._received += len(data)
        if self._received > self._sent:
            self.fail("corrupt", f"{self._received - self._sent} bytes too many")

    def _where(self, data: bytes) -> str:
        """What came instead, for the person who reads the error."""
        at = self._in_place
        good = next(
            (number for number, byte in enumerate(data) if byte != wire.ANSWERED[at + number]),
            len(data),
        )
        found = wire.ANSWERED.find(data[good : good + 32])
        if found < 0 or len(data) - good < 32:
            return f"foreign after {good} right ones"
        moved = (found - at - good + wire.CYCLE // 2) % wire.CYCLE - wire.CYCLE // 2
        return f"after {good} right ones {abs(moved)} bytes are {'missing' if moved > 0 else 'repeated'}"

    def finish(self) -> None:
        self.deadline = time.monotonic() + self.engine.settings.timeout
        if self.unsent is None or not len(self.unsent):
            self._pour()
        self._read(_NEVER)

    def state(self) -> str:
        return f"({self._received} of {self._sent} bytes came back)"


class Population:
    """A crowd in a process of its own, from the beginning of a `with` block on: ready when that is entered."""

    def __init__(self, target: str, *, idle: int = 0, pingpong: int = 0, bulk: int = 0, **more: float) -> None:
        """`more`: the other options of the program."""
        options = {"idle": idle, "pingpong": pingpong, "bulk": bulk, **more}
        self._command = python_module("tests.support.crowd", "--until-eof", "--target", target)
        self._command += [f"--{name}={value}" for name, value in options.items()]
        self._process: Process
        self._rounds = 0

    def verify(self, deadline: float = 30.0) -> None:
        """Have all idle ones exchange something; returns when all have, or are lost."""
        self._rounds += 1
        self._process.signal(signal.SIGUSR1)
        rounds = itertools.count(1)
        self._process.stderr.wait(
            lambda line: line.startswith('{"event": "verified"') and next(rounds) == self._rounds, deadline, "verified"
        )

    @property
    def lost(self) -> list[dict[str, Any]]:
        """Who is lost so far, and why."""
        return [json.loads(line) for line in self._process.stderr if line.startswith('{"event": "lost"')]

    def stop(self, deadline: float = 60.0) -> dict[str, Any]:
        """Have all verify and end; what became of them."""
        if self._process.running:
            self._process.signal(signal.SIGTERM)
        self._process.wait(deadline)
        lines = self._process.stdout.join()
        assert lines, self._process.stderr.text
        report: dict[str, Any] = json.loads(lines[-1])
        return report

    def flawless(self) -> dict[str, Any]:
        """Stop, and demand that nobody was lost."""
        report = self.stop()
        assert (report["broken"], report["corrupt"], report["unfinished"]) == (0, 0, 0), report["lost"][:10]
        return report

    def __enter__(self) -> Population:
        self._process = Process(self._command, cwd=ROOT, stdin=subprocess.PIPE)
        try:
            self._process.stderr.wait(lambda line: line.startswith('{"event": "ready"'), 30, "all are answered")
        except BaseException:
            self._process.stop(0.0, signal.SIGKILL)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.stop(0.0, signal.SIGKILL)
        self._process.stderr.join()


_CLASSES: Final[dict[str, type[Client]]] = {"idle": Idler, "pingpong": PingPong, "bulk": Bulk}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tests.support.crowd", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--target", action="append", required=True, metavar="ADDRESS", help="may be repeated")
    for kind in KINDS:
        parser.add_argument(f"--{kind}", type=int, default=0, metavar="N", help="connections of this kind")
    parser.add_argument("--interval", type=float, default=0.1, help="seconds between the pieces of a pingpong one")
    parser.add_argument("--body", type=int, default=2048, metavar="MOST", help="bytes in a piece")
    parser.add_argument("--timeout", type=float, default=20.0, help="seconds after which who has no answer is lost")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cpu", type=int, help="run on this CPU")
    parser.add_argument("--until-eof", action="store_true", help="also stop when standard input ends")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run a crowd; returns 0 if nobody was lost."""
    options = _parser().parse_args(argv)
    raise_descriptor_limit()
    pin(options.cpu)
    counts = {kind: getattr(options, kind) for kind in KINDS}
    settings = Settings(
        targets=options.target,
        mode="stream",
        clients=sum(counts.values()),
        interval=options.interval,
        body=(1, options.body),
        timeout=options.timeout,
        seed=options.seed,
    )
    crowd = Crowd(settings, counts)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: crowd.stop())
    signal.signal(signal.SIGUSR1, lambda *_: crowd.verify())
    report = crowd.report(options.until_eof)
    print(json.dumps(report), flush=True)
    return 1 if report["broken"] or report["unfinished"] else 0


if __name__ == "__main__":
    sys.exit(main())
