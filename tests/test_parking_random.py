"""Random traffic and random deaths, by hypothesis: nobody who is connected ever learns that a worker has died, be it
alone or amid a reload."""

from __future__ import annotations

import contextlib
import gc
import itertools
import os
import random
import socket
import struct
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hitlessd import channel
from hitlessd.descriptors import close_all
from hitlessd.model import Config, Timeouts
from hitlessd.parking.park import Park
from hitlessd.worker import connection, emigration, relay
from tests.support.processes import Deadline
from tests.support.relay import Lab, Peer, make_config, make_park, make_table, migrate, take_over
from tests.support.relay import farm as open_farm

BLOCK = random.Random(8).randbytes(1 << 20)
SIZES = {"small": 777, "middle": 30_000, "big": len(BLOCK)}


class Killed(BaseException):
    """As SIGKILL: nothing of the worker runs any more."""


class Executioner:
    """Stands beside the system calls of the relay, and kills before or behind one of them."""

    def __init__(self) -> None:
        self.left = 0  # half calls
        self._armed = False
        self._patches = pytest.MonkeyPatch()
        for place, name in (
            (relay, "_recv_into"),
            (relay, "_send"),
            (connection, "_shutdown"),
            (os, "splice"),
            (channel, "send"),
            (channel, "receive_with"),
            (Park, "send"),
        ):
            self._patches.setattr(place, name, self._between(getattr(place, name)))
        # Few connections are to make several batches.
        self._patches.setattr(emigration, "ROOM", 8)

    def close(self) -> None:
        self._patches.undo()

    def turn(self, lab: Lab) -> bool:
        """Whether the worker outlives it."""
        self._armed = True
        try:
            lab.turn()
            return True
        except Killed:
            pass
        finally:
            self._armed = False
        self.left = 0
        return False

    def _strike(self) -> None:
        if self.left and self._armed:
            self.left -= 1
            if not self.left:
                raise Killed

    def _between(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def called(*args: Any, **options: Any) -> Any:
            self._strike()
            result: Any = None
            try:
                result = call(*args, **options)
                return result
            finally:
                try:
                    self._strike()
                except Killed:
                    if isinstance(result, tuple):
                        close_all(result[1])  # descriptors that have just come
                    raise

        return called


@dataclass(eq=False)
class Flow:
    """Two peers, and what each has sent."""

    client: Peer
    server: Peer
    sent: dict[str, bytearray] = field(default_factory=lambda: {"client": bytearray(), "server": bytearray()})
    ended: set[str] = field(default_factory=set)
    left: bool = False  # one has gone without waiting for the other

    def side(self, name: str) -> Peer:
        return self.client if name == "client" else self.server

    def act(self, what: str, name: str) -> None:
        peer = self.side(name)
        if peer.sock.fileno() < 0:
            return
        if what in SIZES and name not in self.ended:
            start = len(self.sent[name]) % 251
            with contextlib.suppress(ConnectionError):
                self.sent[name] += BLOCK[start : start + peer.send(BLOCK[start : start + SIZES[what]])]
        elif what == "read":
            peer.read()
        elif what == "fin" and name not in self.ended:
            self.ended.add(name)
            with contextlib.suppress(OSError):
                peer.sock.shutdown(socket.SHUT_WR)
        elif what == "close":
            peer.read()
            # With everything said and heard on both sides, a close is an end in order.
            self.left |= not (peer.eof and peer.error is None)
            self.ended.add(name)
            peer.close()
        elif what == "reset":
            self.left = True
            self.ended.add(name)
            peer.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            peer.close()


class Line:
    """One worker after the other; each is the heir of the one before."""

    def __init__(self, stack: ExitStack, config: Config) -> None:
        self._stack = stack
        self._config = config
        self._labs = [stack.enter_context(Lab(config, park=make_park("1-0")))]
        self._count = 1
        self.lost: dict[str, int] = {}

    @property
    def lab(self) -> Lab:
        return self._labs[-1]

    def die(self) -> None:
        """The worker, between two turns or in the middle of one."""
        dead, heir = self.lab, self._make(3000.0)
        self._bury(dead)
        self._take_over(dead, heir, cold=True)
        self._labs.append(heir)

    def move(self, executioner: Executioner, between: Callable[[], None]) -> bool:
        """All connections go to a successor, unless one of both is killed, who has an heir then, and they go on from
        there. Whether some may be lost: those that were on their way when the sender died."""
        old, new = self.lab, self._make(0.0)
        near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with near, far:
            channel.send(new.main, {"do": "adopt"}, [far.fileno()])
            channel.send(old.main, {"do": "migrate", "ways": 1}, [near.fileno()])
        dead: Lab | None = None
        report: dict[str, Any] | None = None
        limit = Deadline(20)
        while (report is None and dead is not old) or (new.worker.arrivals and dead is not new):
            limit.check("the move")
            for lab in (old, new):
                if lab is not dead and not executioner.turn(lab):
                    dead = lab
                    self._bury(dead)
            between()
            with contextlib.suppress(BlockingIOError):
                answer = channel.receive(old.main)
                if answer and answer["did"] == "migrate":
                    report = answer
        executioner.left = 0
        if dead is None:
            assert report and (report["kept"], report["lost"]) == ({}, 0)
            self._labs.append(new)
            return False
        heir = self._make(0.0)
        self._take_over(dead, heir, cold=False)
        source, target = (old, heir) if dead is new else (heir, new)
        mine, theirs = ({conn.number for conn in lab.worker.connections} for lab in (source, target))
        assert not mine & theirs, "two serve the same connection"
        migrate(source, target)
        self._labs.append(target)
        return dead is old

    @staticmethod
    def _bury(dead: Lab) -> None:
        dead.die()
        gc.collect()  # the kernel would close what was in its hands

    def _make(self, later: float) -> Lab:
        self._count += 1
        table = make_table(self._config, generation=self._count)
        self._stack.callback(table.close)
        made = Lab(self._config, table=table, accept=False, park=make_park(f"{self._count}-0", generation=self._count))
        self._stack.enter_context(made)
        made.clock.now = self.lab.clock.now + later
        made.turn()
        return made

    def _take_over(self, dead: Lab, heir: Lab, cold: bool) -> None:
        report = take_over(dead, heir, cold)
        for why, count in report["lost"].items():
            self.lost[why] = self.lost.get(why, 0) + count
        # As main drops it; the book is still the Lab's.
        assert dead.park
        dead.park.writer.close()
        dead.park.reader.close()


@pytest.fixture(autouse=True)
def who_is_killed_closes_nothing() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.freeze()  # the collector is to look for nothing older
        yield
        gc.collect()
        gc.unfreeze()


@contextlib.contextmanager
def scene(flows: int) -> Iterator[tuple[Line, list[Flow], Executioner]]:
    with open_farm(1) as farm, ExitStack() as stack:
        line = Line(stack, make_config(farm.servers(), timeouts=Timeouts(connect=5, client=86400, server=86400)))
        made = [Flow(*line.lab.pair(farm)) for _ in range(flows)]
        for _ in range(2):
            line.lab.pass_time(2.0)
        executioner = Executioner()
        stack.callback(executioner.close)
        yield line, made, executioner


def traffic(*more: str) -> st.SearchStrategy[list[tuple[str, int, str]]]:
    kinds = ["small", "middle", "big", "read", "turn", "turn", "fin", "fin", "close", "reset", *more]
    step = st.tuples(st.sampled_from(kinds), st.integers(0, 11), st.sampled_from(["client", "server"]))
    return st.lists(step, min_size=5, max_size=40)


def finish(line: Line, flows: list[Flow], may_lose: bool) -> None:
    """Have everybody say FIN and hear the rest; nobody has missed anything."""
    for _ in range(600):
        for flow in flows:
            for name in ("client", "server"):
                flow.act("fin", name)
                flow.act("read", name)
        line.lab.turn()
        if not line.lab.worker.connections:
            break
    assert not line.lab.worker.connections
    assert line.lost == {}
    for flow in flows:
        for name, other in (("client", "server"), ("server", "client")):
            peer = flow.side(name)
            if peer.sock.fileno() >= 0:
                peer.read()
            if flow.left or may_lose:
                # Somebody has gone with bytes on their way: a reset may cut them off, but nothing is altered.
                assert flow.sent[other].startswith(peer.got)
                continue
            assert peer.error is None
            assert peer.got == flow.sent[other]
            assert peer.eof or peer.sock.fileno() < 0


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(flows=st.integers(1, 3), script=traffic("die", "kill", "kill"))
def test_nobody_learns_of_deaths(flows: int, script: list[tuple[str, int, str]]) -> None:
    with scene(flows) as (line, made, executioner):
        for what, number, name in script:
            if what == "turn":
                line.lab.turn()
            elif what == "die":
                line.die()
            elif what == "kill":
                executioner.left = number + 1
                if not executioner.turn(line.lab):
                    line.die()
                executioner.left = 0
            else:
                made[number % flows].act(what, name)
        finish(line, made, may_lose=False)


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(flows=st.integers(1, 9), killed=st.integers(0, 60), script=traffic("move"))
def test_nobody_learns_of_deaths_amid_a_reload(flows: int, killed: int, script: list[tuple[str, int, str]]) -> None:
    with scene(flows) as (line, made, executioner):
        steps = iter(script)
        may_lose = False

        def between() -> None:
            for what, number, name in itertools.islice(steps, 2):
                if what not in ("turn", "move"):
                    made[number % flows].act(what, name)

        for what, number, name in steps:
            if what == "turn":
                line.lab.turn()
            elif what == "move":
                executioner.left = killed
                may_lose |= line.move(executioner, between)
            else:
                made[number % flows].act(what, name)
        finish(line, made, may_lose)
