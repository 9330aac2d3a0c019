"""Whatever operators change, in whatever order, while workers die and generations follow: nobody is lost who need not
be, all who wait are served in the end, and every worker's counters and configuration are what a simple model says."""

from __future__ import annotations

import contextlib
import os
import random
import socket
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from hitlessd.model import Config, Server, Timeouts
from hitlessd.records import dump_server
from hitlessd.table import PROCESS, Column, RowKey, ServerState, Table, sum_over
from hitlessd.worker.connection import Connection, State
from tests.support.descriptors import no_leak
from tests.support.processes import Deadline
from tests.support.relay import (
    Farm,
    Lab,
    Peer,
    address_of,
    gauges,
    listen,
    make_config,
    make_park,
    make_table,
    migrate,
    take_over,
)
from tests.support.web import web_config

WORKERS = 2
STATES = tuple(ServerState)
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


class Visit:
    """A client with a number, which it tells its server."""

    def __init__(self, number: int, peer: Peer) -> None:
        self.number = number
        self.client = peer
        self.server: Peer | None = None  # None: it waits


class Site:
    """Two workers in this process, who share a table and a listener as main's do, and the model of them."""

    def __init__(self, seed: int, http: bool) -> None:
        self.dice = random.Random(seed)
        self.http = http
        self.farm = Farm(4)
        self.listener = listen()
        self.wake = [os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC) for _ in range(WORKERS)]
        self.servers: dict[str, Server] = {}  # the model, in order
        self.states: dict[str, ServerState] = {}
        for server in self.farm.servers()[:2]:
            self.servers[server.name], self.states[server.name] = server, ServerState.READY
        self.open = True
        self.maxconn = 0
        self.generation = 1
        self.parks = 0
        self.visits: list[Visit] = []
        self.came = 0
        self.ended: list[Table] = []
        self.table = make_table(self.config(), WORKERS)
        self.labs = [self.worker(index) for index in range(WORKERS)]
        self.names = iter(f"n{number}" for number in range(1000))

    # -- the model

    def config(self) -> Config:
        config = web_config([], timeouts=Timeouts()) if self.http else make_config([], timeouts=Timeouts())
        frontend = replace(config.frontends[0], disabled=not self.open, maxconn=self.maxconn)
        backend = replace(config.backends[0], servers=tuple(self.servers.values()))
        return replace(config, frontends=(frontend,), backends=(backend,))

    def usable(self) -> bool:
        return any(state is ServerState.READY for state in self.states.values())

    def check(self) -> None:
        """All workers are what the model says."""
        wanted = self.config()
        for lab in self.labs:
            lab.turn()
            backend = lab.worker.backends["app"]
            assert backend.config.servers == tuple(server.config for server in backend.servers)
            assert backend.config.servers == wanted.backends[0].servers
            frontend = lab.worker.frontends["www"].config
            assert (frontend.disabled, frontend.maxconn) == (not self.open, self.maxconn)
            assert not [line for line in lab.logged if "bug" in line[1]]
        for name in self.servers:
            row = self.table.index[RowKey("server", "app", name)]
            now = sum(conn.target is not None and conn.target.name == name for conn in self.connections())
            assert self.table.value(row, Column.SCUR) == now
        assert self.table.value(self.table.index[PROCESS], Column.SCUR) == len(self.connections())
        tables = [self.table, *self.ended]
        # What the workers of a generation have counted, and those that moved count once.
        assert sum_over(tables, RowKey("frontend", "www"), Column.STOT) == self.came - self.pending()
        for visit in self.visits:
            self.alive(visit)

    def pending(self) -> int:
        """Clients whom no worker has accepted."""
        return len(self.visits) - len(self.connections())

    def connections(self) -> list[Connection]:
        return [conn for lab in self.labs for conn in lab.worker.connections]

    def alive(self, visit: Visit) -> None:
        visit.client.read()
        assert not visit.client.eof, f"{visit.number} was dropped: {visit.client.error}; {visit.client.got!r}"

    # -- workers

    def worker(self, index: int) -> Lab:
        self.parks += 1
        return Lab(
            self.config(),
            listener=self.listener,
            table=self.table,
            index=index,
            wake=self.wake,
            accept=False,
            park=make_park(f"{self.generation}-{self.parks}", generation=self.generation),
        )

    def turn(self) -> int:
        for lab in self.labs:
            lab.clock.now += 0.005
        return sum(lab.worker.turn(0) for lab in self.labs)

    def until(self, condition: Callable[[], object], what: str) -> None:
        deadline = Deadline(20)
        while not condition():
            deadline.check(what)
            self.turn()

    def settle(self) -> None:
        quiet = 0
        while quiet < 3:
            quiet = 0 if self.turn() or any(lab.worker.ready or lab.worker.dispatch for lab in self.labs) else quiet + 1
        self.meet()
        for visit in [visit for visit in self.visits if visit.server is None]:
            visit.client.read()
            if visit.client.eof or visit.client.got.startswith(b"HTTP/1.1 503 "):
                assert not self.usable(), "somebody was turned away although there was a server"
                self.forget(visit)

    def order(self, do: str, **more: Any) -> None:
        for lab in self.labs:
            assert "why" not in lab.order(do, **more)

    def close(self) -> None:
        for visit in self.visits:
            visit.client.close()
        for lab in self.labs:
            lab.__exit__()
        for table in [*self.ended, self.table]:
            table.close()
        self.farm.close()
        self.listener.close()
        for fd in self.wake:
            os.close(fd)

    # -- clients

    def words(self, visit: Visit) -> bytes:
        text = b"%06d" % visit.number
        return b"GET /%s HTTP/1.1\r\nHost: a\r\n\r\n" % text if self.http else text

    def meet(self) -> None:
        """Find out which server has whom."""
        for number in range(self.farm.count):
            while self.farm.accept(number):
                pass
        waiting = {self.words(visit): visit for visit in self.visits if visit.server is None}
        for peer in self.farm.peers:
            visit = waiting.get(peer.read())
            if visit is not None:
                visit.server = peer
                peer.got = b""
                # Nobody new goes where no server is any more, not even on a connection that was kept.
                assert address_of(peer.sock) in [
                    server.address for name, server in self.servers.items() if self.states[name] is ServerState.READY
                ]

    def arrive(self) -> None:
        visit = Visit(self.came, Peer(socket.create_connection(self.listener.getsockname())))
        self.came += 1
        visit.client.send(self.words(visit))
        self.visits.append(visit)
        self.settle()

    def forget(self, visit: Visit) -> None:
        visit.client.close()
        self.visits.remove(visit)

    def talk(self) -> None:
        visit = self.anybody()
        if visit is None:
            return
        if self.http:
            self.answer(visit)
            visit.client.got, visit.server = b"", None
            visit.client.send(self.words(visit))
            self.settle()
            return
        server = visit.server
        assert server
        visit.client.send(b"to")
        server.send(b"fro")
        self.until(lambda: server.read() == b"to" and visit.client.read() == b"fro", "bytes both ways")
        server.got = visit.client.got = b""

    def answer(self, visit: Visit) -> None:
        assert visit.server
        visit.server.sock.sendall(OK)
        self.until(lambda: visit.client.read() == OK, "an answer")

    def leave(self) -> None:
        visit = self.anybody()
        if visit is None:
            return
        if self.http:
            self.answer(visit)
        elif visit.server:
            visit.server.close()
        self.forget(visit)
        self.settle()

    def anybody(self) -> Visit | None:
        met = [visit for visit in self.visits if visit.server is not None]
        return self.dice.choice(met) if met else None

    # -- operators

    def some(self) -> str:
        return self.dice.choice(list(self.servers)) if self.servers else ""

    def change(self, kind: str, server: str = "", value: object = True) -> None:
        self.order("change", kind=kind, proxy="app" if kind.startswith("server") else "www", server=server, value=value)
        self.settle()

    def move_server(self) -> None:
        if name := self.some():
            address = self.farm.server(self.dice.randrange(4)).address
            self.servers[name] = replace(self.servers[name], address=address)
            self.change("server-address", name, str(address))

    def limit_server(self) -> None:
        if name := self.some():
            limit = self.dice.randrange(4)
            self.servers[name] = replace(self.servers[name], maxconn=limit)
            self.change("server-maxconn", name, limit)

    def add_server(self) -> None:
        name = self.dice.choice([next(self.names), "back"])
        if name in self.servers:
            return
        sid = next(n for n in range(1, 100) if n not in {server.sid for server in self.servers.values()})
        server = replace(self.farm.server(self.dice.randrange(4)), name=name, sid=sid, added=True)
        row = self.table.add_row(RowKey("server", "app", name))
        self.table.set_state(row, ServerState.MAINT, 1, 0)
        there = [s for s in self.servers.values() if not s.added]
        added = sorted([s for s in self.servers.values() if s.added] + [server], key=lambda s: s.sid)
        self.servers = {s.name: s for s in (*there, *added)}
        self.states[name] = ServerState.MAINT
        self.change("server-added", name, {"row": row, "record": dump_server(server)})

    def delete_server(self) -> None:
        """As main has it: one that is in maintenance, and has no connection in any worker."""
        idle = [
            name
            for name in self.servers
            if self.states[name] is ServerState.MAINT
            and not self.table.value(self.table.index[RowKey("server", "app", name)], Column.SCUR)
        ]
        if idle:
            name = self.dice.choice(idle)
            del self.servers[name], self.states[name]
            self.change("server-deleted", name)

    def set_state(self) -> None:
        if name := self.some():
            self.states[name] = self.dice.choice((ServerState.READY, *STATES))
            self.table.set_state(self.table.index[RowKey("server", "app", name)], self.states[name], 1, 0)
            self.settle()

    def switch(self) -> None:
        self.open = not self.open
        self.change("frontend-state", value="on" if self.open else "off")

    def limit_frontend(self) -> None:
        self.maxconn = self.dice.choice((0, 4, 12))
        self.change("frontend-maxconn", value=self.maxconn)

    # -- ends

    def age(self) -> None:
        for lab in self.labs:
            for _ in range(3):
                lab.pass_time(1.1)

    def fall(self, lab: Lab, orderly: bool) -> int:
        """A worker ends. Who waits for a server in it waits on, or dies with it where there is no time to park them.
        Returns how many of these are known to those who come after it."""
        known = 0
        if orderly:
            lab.worker.parking.freeze()
        else:
            queued = {conn.address: conn.slot for conn in lab.worker.connections if conn.state is State.QUEUED}
            for visit in [visit for visit in self.visits if visit.client.sock.getsockname() in queued]:
                assert visit.server is None
                known += queued[visit.client.sock.getsockname()] >= 0
                self.forget(visit)
        for side in lab.worker.idle_sides(lambda _: True):
            side.sock.close()
        for backend in lab.worker.backends.values():
            for server in backend.servers:
                if server.pool is not None:
                    server.pool.idle.clear()
        lab.die()
        return known

    def kill(self) -> None:
        """Another one takes its place, or its fellow what was parked."""
        self.age()
        index = self.dice.randrange(WORKERS)
        dead, orderly = self.labs[index], self.dice.random() < 0.5
        known = self.fall(dead, orderly)
        self.table.clear_gauges(index)
        self.labs[index] = self.worker(index)
        self.labs[index].clock.now = dead.clock.now
        self.take_over(dead, self.dice.choice(self.labs), known)
        self.labs[index].order("accept")
        self.settle()

    def take_over(self, dead: Lab, heir: Lab, lost: int = 0) -> None:
        report = take_over(dead, heir, cold=True)
        assert sum(report["lost"].values()) == lost, report
        dead.__exit__()

    def reload(self) -> None:
        """The next generation, or a restart."""
        moves = self.dice.random() < 0.6
        self.age()
        old, before = self.labs, self.table
        self.order("stop")
        self.settle()
        self.generation += 1
        self.table = make_table(self.config(), WORKERS, self.generation)
        for name, state in self.states.items():
            self.table.set_state(self.table.index[RowKey("server", "app", name)], state, 1, 0)
        if not moves:
            for lab in old:
                self.fall(lab, True)
        new = [self.worker(index) for index in range(WORKERS)]
        for lab, heir in zip(old, self.dice.sample(new, WORKERS), strict=True):
            for each in new:
                each.clock.now = max(each.clock.now, lab.clock.now)
            if moves:
                count = len(lab.worker.connections)
                assert migrate(lab, heir) == {"moved": count, "kept": {}, "lost": 0}
                lab.__exit__()
            else:
                self.take_over(lab, heir)
        self.labs = new
        for index in range(WORKERS):
            before.clear_gauges(index)
        self.table.fold(before)
        self.ended.append(before)
        self.order("accept")
        self.settle()

    def finish(self) -> None:
        """Make room for all, serve all, and let all go."""
        if not self.open:
            self.switch()
        self.maxconn = 0
        self.change("frontend-maxconn", value=0)
        self.add_server()
        for name in self.servers:
            self.servers[name] = replace(self.servers[name], maxconn=0)
            self.states[name] = ServerState.READY
            self.table.set_state(self.table.index[RowKey("server", "app", name)], ServerState.READY, 1, 0)
            self.change("server-maxconn", name, 0)

        def served() -> bool:
            self.meet()
            return all(visit.server for visit in self.visits)

        self.until(served, "everybody to be served")
        self.check()
        while self.visits:
            self.talk()
            self.leave()
        self.until(lambda: not self.connections(), "the last connection's end")
        self.check()
        assert gauges(self.table) == {}


STEPS: dict[str, int] = {
    "arrive": 12, "talk": 10, "leave": 6, "move_server": 3, "limit_server": 4, "add_server": 3, "delete_server": 3,
    "set_state": 5, "switch": 2, "limit_frontend": 2, "kill": 2, "reload": 2,
}  # fmt: skip


@pytest.mark.parametrize("http", [False, True], ids=["tcp", "http"])
@pytest.mark.parametrize("seed", range(4))
def test_nobody_is_lost_and_everything_adds_up(seed: int, http: bool) -> None:
    with no_leak(), contextlib.closing(Site(seed, http)) as site:
        site.order("accept")
        steps = site.dice.choices(list(STEPS), list(STEPS.values()), k=120)
        for step in steps:
            getattr(site, step)()
            site.check()
        site.finish()
