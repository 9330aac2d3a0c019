"""Random traffic, by hypothesis: whatever clients and servers do, bytes arrive in order and nothing is left over."""

from __future__ import annotations

import gc
import os
import socket
import struct
import tracemalloc
from dataclasses import dataclass, field

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hitlessd.model import InetAddress, Server, Timeouts
from hitlessd.table import Column
from hitlessd.worker.connection import Connection
from hitlessd.worker.relay import Side
from hitlessd.worker.serial import freeze, resume, to_serial
from tests.support.relay import Farm, Lab, Peer, gauges, make_config, make_table, migrate
from tests.support.relay import farm as open_farm

BLOCK = os.urandom(1 << 20)


@dataclass(eq=False)
class Flow:
    """A client, its server once there is one, and what each has sent."""

    client: Peer
    server: Peer | None = None
    sent: dict[str, bytearray] = field(default_factory=lambda: {"client": bytearray(), "server": bytearray()})
    broken: bool = False

    def side(self, name: str) -> Peer | None:
        return self.client if name == "client" else self.server


steps = st.lists(
    st.tuples(
        st.sampled_from(
            [
                "open",
                "small",
                "small",
                "big",
                "urgent",
                "read",
                "turn",
                "turn",
                "fin",
                "close",
                "reset",
                "wait",
                "move",
                "reload",
            ]
        ),
        st.integers(0, 7),
        st.sampled_from(["client", "server"]),
    ),
    min_size=5,
    max_size=60,
)


def act(flow: Flow, what: str, name: str) -> None:
    peer = flow.side(name)
    if peer is None or peer.sock.fileno() < 0:
        return
    try:
        if what in ("small", "big"):
            data = BLOCK[: 777 if what == "small" else len(BLOCK)]
            flow.sent[name] += data[: peer.send(data)]
        elif what == "urgent":
            if peer.sock.send(b"!", socket.MSG_OOB):
                flow.sent[name] += b"!"
        elif what == "read":
            peer.read()
        elif what == "fin":
            peer.sock.shutdown(socket.SHUT_WR)
        elif what == "close":
            peer.read()
            flow.broken = True  # what is still on its way to it is lost, and may turn the close into a reset
            peer.close()
        elif what == "reset":
            flow.broken = True
            peer.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            peer.close()
    except BlockingIOError:
        pass
    except OSError:
        flow.broken = True


def find_server(flows: list[Flow], server: Peer) -> None:
    """Which client a connection to the server belongs to, by the address that the worker connects from."""
    try:
        name = server.sock.getpeername()
    except OSError:  # reset already
        server.close()
        return
    for lab, flow in ((lab, flow) for lab in labs_of(flows) for flow in flows):
        for conn in lab.worker.connections:
            if conn.server is None or flow.client.sock.fileno() < 0:
                continue
            if conn.server.sock.getsockname() == name and conn.address == flow.client.sock.getsockname():
                flow.server = server
                return
    server.close()


_LABS: dict[int, list[Lab]] = {}


def labs_of(flows: list[Flow]) -> list[Lab]:
    return _LABS[id(flows)]


@pytest.mark.parametrize("limited", [False, True])
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(script=steps)
def test_whatever_happens_nothing_is_left_over(limited: bool, script: list[tuple[str, int, str]]) -> None:
    before = sorted(os.listdir("/proc/self/fd"))
    with open_farm(2) as farm, socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        refusing = Server("bad", InetAddress("127.0.0.1", bound.getsockname()[1]), 3)
        servers = farm.servers(maxconn=2 if limited else 0) + [refusing]
        times = Timeouts(connect=2, client=20, server=30, client_fin=10, server_fin=10, queue=5)
        config = make_config(servers, timeouts=times, retries=1, redispatch=True, balance="leastconn")
        table = make_table(config, workers=2)
        with Lab(config, table=table) as one, Lab(config, table=table, index=1, wake=one.wake, accept=False) as two:
            flows: list[Flow] = []
            _LABS[id(flows)] = [one, two]
            for what, number, name in script:
                if what == "open":
                    flows.append(Flow(one.connect()))
                elif what == "turn":
                    for lab in (one, two):
                        lab.turn()
                elif what == "wait":
                    for lab in (one, two):
                        lab.pass_time(0.7)
                elif what == "move" and one.worker.connections:
                    conn = list(one.worker.connections)[number % len(one.worker.connections)]
                    if conn.state in ("established", "connecting", "tarrying"):
                        to_serial(conn)
                        resume(two.worker, freeze(conn))
                elif what == "reload":
                    # Everybody, in whatever state, to the other worker.
                    source, target = (one, two) if number % 2 else (two, one)
                    report = migrate(source, target)
                    assert not report["kept"] and not report["lost"]
                elif flows:
                    act(flows[number % len(flows)], what, name)
                for index in range(2):
                    while server := farm.accept(index):
                        find_server(flows, server)
            # Everybody who is left finishes in order: what was sent arrives, then the end.
            for _ in range(400):
                for flow in flows:
                    for name in ("client", "server"):
                        act(flow, "fin", name)
                        act(flow, "read", name)
                for lab in (one, two):
                    lab.turn()
                for index in range(2):
                    while server := farm.accept(index):
                        find_server(flows, server)
                if not one.worker.connections and not two.worker.connections:
                    break
            for flow in flows:
                if flow.server is None or flow.broken:
                    continue
                flow.client.read()
                flow.server.read()
                if flow.client.error is None and flow.server.error is None and flow.client.eof and flow.server.eof:
                    assert flow.server.got == flow.sent["client"]
                    assert flow.client.got == flow.sent["server"]
            # And for the others there are timeouts.
            for _ in range(60):
                for lab in (one, two):
                    lab.pass_time(2)
            for lab in (one, two):
                assert not lab.worker.connections
                lab.settle()
                assert not len(lab.worker.wheel) and lab.worker.pipes.lent == 0 and not lab.worker.closing
                assert not lab.worker.ready and not lab.worker.dispatch
                assert not [text for severity, text in lab.logged if severity != "info"]
            assert gauges(one.table) == {}
            assert one.value("frontend", Column.STOT) == len(flows)
            for flow in flows:
                flow.client.close()
            del _LABS[id(flows)]
        table.close()
    assert sorted(os.listdir("/proc/self/fd")) == before


def test_memory_is_flat_without_the_collector() -> None:
    """A closed connection is freed at once: nothing in it points back to itself."""
    farm = Farm(1)
    with Lab(make_config(farm.servers(), timeouts=Timeouts(5, 60, 60), tcplog=False)) as lab:

        def once(number: int) -> None:
            client = lab.connect()
            client.send(b"x" * 1000)
            server = lab.until(farm.accept)
            lab.until(server.read)
            if number % 3:
                server.send(b"y" * 300_000)
            if number % 3 == 2:
                client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                client.close()
            else:
                lab.settle()
                client.read()
                client.close()
            server.close()
            lab.until(lambda: not lab.worker.connections)
            lab.turn()
            lab.clients.clear()
            farm.peers.clear()

        for number in range(30):
            once(number)
        gc.collect()
        gc.disable()
        tracemalloc.start()
        try:
            for number in range(30):
                once(number)
            start, _ = tracemalloc.get_traced_memory()
            for number in range(150):
                once(number)
            end, _ = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
            left = [obj for obj in gc.get_objects() if isinstance(obj, (Connection, Side))]
            gc.enable()
        assert left == []
        assert end - start < 20_000
    farm.close()
