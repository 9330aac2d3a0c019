"""Random traffic and random deaths, by hypothesis: whoever is connected never learns that a worker has died."""

from __future__ import annotations

import contextlib
import os
import random
import socket
import struct
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hitlessd.model import Config, Timeouts
from hitlessd.worker import connection, relay
from tests.support.relay import Lab, Peer, make_config, make_park, make_table, take_over
from tests.support.relay import farm as open_farm

BLOCK = random.Random(8).randbytes(1 << 20)
SIZES = {"small": 777, "middle": 30_000, "big": len(BLOCK)}


class Killed(BaseException):
    """As SIGKILL: nothing of the worker runs any more."""


class Executioner:
    """Stands beside the system calls of the relay, and kills before or behind one of them."""

    def __init__(self) -> None:
        self.left = 0  # half calls
        self._patches = pytest.MonkeyPatch()
        for module, name in ((relay, "_recv_into"), (relay, "_send"), (connection, "_shutdown"), (os, "splice")):
            self._patches.setattr(module, name, self._between(getattr(module, name)))

    def close(self) -> None:
        self._patches.undo()

    def _strike(self) -> None:
        if self.left:
            self.left -= 1
            if not self.left:
                raise Killed

    def _between(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def called(*args: Any, **options: Any) -> Any:
            self._strike()
            try:
                return call(*args, **options)
            finally:
                self._strike()

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
        self.lost: dict[str, int] = {}

    @property
    def lab(self) -> Lab:
        return self._labs[-1]

    def die(self) -> None:
        dead, number = self.lab, len(self._labs) + 1
        table = make_table(self._config, generation=number)
        self._stack.callback(table.close)
        heir = Lab(self._config, table=table, accept=False, park=make_park(f"{number}-0", generation=number))
        self._stack.enter_context(heir)
        heir.clock.now = dead.clock.now + 3000.0
        dead.die()
        self._labs.append(heir)
        report = take_over(dead, heir, cold=True)
        for why, count in report["lost"].items():
            self.lost[why] = self.lost.get(why, 0) + count


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


steps = st.lists(
    st.tuples(
        st.sampled_from(
            ["small", "middle", "big", "read", "turn", "turn", "fin", "fin", "close", "reset", "die", "kill", "kill"]
        ),
        st.integers(0, 11),
        st.sampled_from(["client", "server"]),
    ),
    min_size=5,
    max_size=40,
)


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(flows=st.integers(1, 3), script=steps)
def test_nobody_learns_of_deaths(flows: int, script: list[tuple[str, int, str]]) -> None:
    with scene(flows) as (line, made, executioner):
        for what, number, name in script:
            if what == "turn":
                line.lab.turn()
            elif what == "die":
                line.die()
            elif what == "kill":
                executioner.left = number + 1
                try:
                    line.lab.turn()
                except Killed:
                    line.die()
                executioner.left = 0
            else:
                made[number % flows].act(what, name)
        for _ in range(600):
            for flow in made:
                for name in ("client", "server"):
                    flow.act("fin", name)
                    flow.act("read", name)
            line.lab.turn()
            if not line.lab.worker.connections:
                break
        assert not line.lab.worker.connections
        assert line.lost == {}
        for flow in made:
            for name, other in (("client", "server"), ("server", "client")):
                peer = flow.side(name)
                peer.sock.fileno() < 0 or peer.read()
                if flow.left:
                    # Somebody has gone with bytes on their way: a reset may cut them off, but nothing is altered.
                    assert flow.sent[other].startswith(peer.got)
                    continue
                assert peer.error is None
                assert peer.got == flow.sent[other]
                assert peer.eof or peer.sock.fileno() < 0
