"""A state machine, by hypothesis: whatever traffic, half-closes and stalls there are between and amid reloads, each
side hears what the other said, in order, and the end when it said so."""

from __future__ import annotations

import random
import socket
import struct
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, replace
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, multiple, precondition, rule

from hitlessd import channel
from hitlessd.model import Config, Timeouts
from hitlessd.table import PROCESS, Column
from tests.support.descriptors import no_leak
from tests.support.relay import Farm, Lab, Peer, gauges, listen, make_config, make_table, migrate

#: What everybody says, each from a place of its own on: bytes that are lost, repeated or swapped do not go unseen.
TEXT = random.Random(3).randbytes(1 << 20)
_PRIME = 65_537
_RESET = struct.pack("ii", 1, 0)
#: No clock moves, so nobody is ever late.
TIMES = Timeouts(connect=5, client=60, server=60, queue=60)
ENDS = ("client", "server")
_END = st.sampled_from(ENDS)
_SIZE = st.sampled_from([1, 700, 20_000, 70_000, 300_000, 1 << 20])


@dataclass
class Stream:
    """The model of one direction: what was said and not heard yet."""

    start: int
    said: int = 0
    heard: int = 0
    finished: bool = False  # nothing more will be said
    ended: bool = False  # the other side knows

    def words(self, size: int) -> bytes:
        """The next so many bytes of it, or fewer."""
        at = (self.start + self.said) % len(TEXT)
        return TEXT[at : at + size]

    def hear(self, data: bytes) -> None:
        at = (self.start + self.heard) % len(TEXT)
        expected = (TEXT[at:] + TEXT * (len(data) // len(TEXT) + 1))[: len(data)]
        assert data == expected, f"altered behind byte {self.heard}"
        self.heard += len(data)
        assert self.heard <= self.said, "more was heard than was said"


@dataclass(eq=False)
class Flow:
    """A client, the server that it was given, and what the one says to the other."""

    number: int
    peers: dict[str, Peer | None]
    streams: dict[str, Stream] = field(init=False)  # by who speaks
    stalled: set[str] = field(default_factory=set)  # who does not read
    broken: bool = False  # somebody has reset it: what is on its way may be lost

    def __post_init__(self) -> None:
        self.streams = {name: Stream((2 * self.number + index) * _PRIME) for index, name in enumerate(ENDS)}

    def other(self, name: str) -> Stream:
        """What this one hears."""
        return self.streams["server" if name == "client" else "client"]

    def say(self, name: str, size: int) -> None:
        """As much of that as goes without waiting."""
        peer, stream = self.peers[name], self.streams[name]
        if peer is None or stream.finished:
            return
        try:
            stream.said += peer.send(stream.words(size))
        except OSError:
            assert self.broken, f"the {name}'s connection broke"
            stream.finished = True

    def finish(self, name: str) -> None:
        """Half-close."""
        peer, stream = self.peers[name], self.streams[name]
        if peer is None or stream.finished:
            return
        stream.finished = True
        try:
            peer.sock.shutdown(socket.SHUT_WR)
        except OSError:
            assert self.broken, f"the {name}'s connection broke"

    def read(self, name: str) -> None:
        peer, stream = self.peers[name], self.other(name)
        if peer is None or name in self.stalled or stream.ended:
            return
        stream.hear(peer.read())
        peer.got = b""
        if peer.eof:
            stream.ended = True
            if not self.broken:
                assert peer.error is None, f"the {name}'s connection broke: {peer.error}"
                assert stream.finished and stream.heard == stream.said, f"the {name} heard of an end that was none"

    def reset(self, name: str) -> None:
        peer = self.peers[name]
        if peer is None or self.broken:
            return
        self.broken = True
        peer.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        peer.close()
        self.peers[name] = None
        self.streams[name].finished = True

    @property
    def over(self) -> bool:
        return all(self.peers[name] is None or self.other(name).ended for name in ENDS)


class _Generations(RuleBasedStateMachine):
    """One generation follows the other; each is a worker with a table of its own."""

    flows = Bundle("flows")

    def __init__(self) -> None:
        super().__init__()
        self.descriptors = ExitStack()
        self.descriptors.enter_context(no_leak())
        self.farm = Farm(2)
        self.listener = listen()
        self.every: list[Flow] = []
        self.strangers: list[tuple[Peer, bytearray]] = []
        self.generation = 0
        self.sessions = 0  # of generations that have ended

    @initialize(target=flows, maxconn=st.sampled_from([0, 0, 2]), pipes=st.booleans(), narrow=st.booleans())
    def begin(self, maxconn: int, pipes: bool, narrow: bool) -> Any:
        """Without pipes, what a slow reader has not taken is kept in buffers."""
        self.pipes = pipes
        self.config = make_config(self.farm.servers(maxconn=maxconn), timeouts=TIMES, balance="leastconn")
        self.lab = self.make(self.config)
        self.lab.order("accept")
        return multiple(*(self.connect(narrow) for _ in range(3)))

    def make(self, config: Config) -> Lab:
        self.generation += 1
        table = make_table(config, generation=self.generation)
        lab = Lab(config, listener=self.listener, table=table, accept=False)
        if not self.pipes:
            lab.worker.pipes._budget = 0
        return lab

    def retire(self, lab: Lab) -> None:
        """It has nobody, and nothing, any more."""
        lab.settle()
        worker = lab.worker
        assert not worker.connections and gauges(lab.table) == {} and not len(worker.wheel)
        assert not worker.pipes.lent and not worker.ready and not worker.dispatch and not worker.arrivals
        assert not [text for severity, text in lab.logged if severity != "info"]
        self.sessions += lab.table.value(lab.table.index[PROCESS], Column.STOT)
        lab.__exit__()
        lab.table.close()

    # -- traffic -----------------------------------------------------------------------------------------------------

    @precondition(lambda self: len(self.every) < 10)
    @rule(target=flows, count=st.integers(1, 3), narrow=st.booleans())
    def arrive(self, count: int, narrow: bool) -> Any:
        """Clients come; narrow ones take little before they are full."""
        return multiple(*(self.connect(narrow) for _ in range(count)))

    def connect(self, narrow: bool) -> Flow:
        sock = socket.socket()
        if narrow:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)
        sock.connect(self.listener.getsockname())
        flow = Flow(len(self.every), {"client": Peer(sock), "server": None})
        # Its first words tell the server who it is.
        sock.send(bytes([flow.number]))
        self.every.append(flow)
        return flow

    @rule(flow=flows, name=_END, size=_SIZE)
    def say(self, flow: Flow, name: str, size: int) -> None:
        flow.say(name, size)

    @rule(flow=flows, name=_END)
    def say_until_it_is_full(self, flow: Flow, name: str) -> None:
        """And the other does not listen, so that bytes stay in sockets, buffers and pipes."""
        flow.stalled.add("server" if name == "client" else "client")
        for _ in range(12):
            self.turn(2)
            self.meet()
            flow.say(name, 1 << 20)
        self.turn(2)

    @rule(flow=flows, name=_END)
    def stall_or_go_on(self, flow: Flow, name: str) -> None:
        flow.stalled ^= {name}

    @rule(flow=flows, name=_END)
    def half_close(self, flow: Flow, name: str) -> None:
        flow.finish(name)

    @rule(flow=flows, name=_END, sure=st.integers(0, 3))
    def reset(self, flow: Flow, name: str, sure: int) -> None:
        if not sure:
            flow.reset(name)

    @rule(turns=st.integers(1, 5))
    def turn(self, turns: int) -> None:
        for _ in range(turns):
            self.lab.turn()

    @rule()
    def read(self) -> None:
        for flow in self.every:
            for name in ENDS:
                flow.read(name)

    def meet(self) -> None:
        """Servers learn who they are talking to."""
        for index in range(2):
            while peer := self.farm.accept(index):
                self.strangers.append((peer, bytearray()))
        for stranger in list(self.strangers):
            peer = stranger[0]
            try:
                first = peer.sock.recv(1)
            except BlockingIOError:
                continue
            except OSError:
                first = b""
            self.strangers.remove(stranger)
            if first:
                self.every[first[0]].peers["server"] = peer
            else:
                # It was reset before it could say who it is.
                assert any(flow.broken for flow in self.every)
                peer.close()

    # -- reloads -----------------------------------------------------------------------------------------------------

    def amid(self, seed: int) -> Iterator[None]:
        """Traffic that goes on while they move, a bit a step."""
        rng = random.Random(seed)
        while True:
            for flow in self.every:
                if rng.random() < 0.3:
                    flow.say(rng.choice(ENDS), rng.choice((1, 700, 70_000)))
                if rng.random() < 0.5:
                    flow.read(rng.choice(ENDS))
                if rng.random() < 0.02:
                    flow.finish(rng.choice(ENDS))
            yield

    @rule(
        ways=st.integers(1, 3),
        seed=st.integers(0, 1 << 30),
        change=st.sampled_from(["", "", "server", "backend", "frontend"]),
    )
    def reload(self, ways: int, seed: int, change: str) -> None:
        """All move to a new generation, whose configuration may not know what they belong to."""
        frontend, backend = self.config.frontends[0], self.config.backends[0]
        suffix = str(self.generation)
        if change == "server":
            backend = replace(
                backend, servers=tuple(replace(s, name=f"{s.name[:2]}-{suffix}") for s in backend.servers)
            )
        if change == "backend":
            backend = replace(backend, name=f"app-{suffix}")
            frontend = replace(frontend, default_backend=backend.name)
        if change == "frontend":
            frontend = replace(frontend, name=f"www-{suffix}")
        self.config = replace(self.config, frontends=(frontend,), backends=(backend,))
        new = self.make(self.config)
        # As at a reload: one accepts, and the other no more, before anything moves.
        new.order("accept")
        old, self.lab = self.lab, new
        old.order("stop")
        traffic = self.amid(seed)
        report = migrate(old, new, ways, between=lambda: next(traffic))
        assert report["kept"] == {} and report["lost"] == 0
        self.retire(old)

    @rule(frozen=st.booleans())
    def reload_that_nobody_takes(self, frozen: bool) -> None:
        """The new worker dies before it claims anything: all go on where they were."""
        near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        channel.send(self.lab.main, {"do": "migrate"}, [near.fileno()])
        near.close()
        if frozen:
            self.turn(3)
        far.close()
        report = None
        while report is None or report["did"] != "migrate":
            self.lab.turn()
            with suppress(BlockingIOError):
                report = channel.receive(self.lab.main)
                assert report is not None
        assert report["moved"] == report["lost"] == 0

    # -- what holds --------------------------------------------------------------------------------------------------

    @invariant()
    def nobody_is_forgotten(self) -> None:
        self.meet()
        if self.generation:
            assert len(self.lab.worker.connections) <= len(self.every)
            assert not [text for severity, text in self.lab.logged if severity != "info"]

    def teardown(self) -> None:
        """All listen again, say their last words and are heard."""
        if self.generation:
            self.finish()
        for peer, _ in self.strangers:
            peer.close()
        for flow in self.every:
            for each in flow.peers.values():
                if each is not None:
                    each.close()
        self.farm.close()
        self.listener.close()
        self.descriptors.close()

    def finish(self) -> None:
        for flow in self.every:
            flow.stalled.clear()
        self.lab.settle()  # those who were reset in the backlog come in now, too

        def step() -> bool:
            self.meet()
            self.read()
            for flow in self.every:
                for name in ENDS:
                    # A server has a slot for the next one as soon as both have finished.
                    flow.finish(name)
            return all(flow.over or flow.broken for flow in self.every) and not self.lab.worker.connections

        self.lab.until(step, "all have heard everything")
        for flow in self.every:
            if not flow.broken:
                assert flow.peers["server"] is not None, "a client was never served"
                for stream in flow.streams.values():
                    assert stream.ended and stream.heard == stream.said
        self.retire(self.lab)
        assert self.sessions == len(self.every)


_Generations.TestCase.settings = settings(
    max_examples=60, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
)
TestGenerations = _Generations.TestCase
