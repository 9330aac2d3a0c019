"""Under load, operators change whatever can be changed, one reload follows another, and workers die: no request fails
that need not fail, nobody hangs, and what all workers and generations have counted adds up."""

from __future__ import annotations

import csv
import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.support.backend import Backend
from tests.support.daemon import Daemon
from tests.support.http_backend import HttpBackend
from tests.support.load import Load
from tests.support.processes import free_ports, poll_until
from tests.support.restartable import Restartable

CHANGES = 60
CLIENTS = 24
STREAMS = 16

#: The first line belongs to the defaults.
_BODY = """\
timeout queue = 20s
[listen web]
mode = http
bind = 127.0.0.1:{web}
server s1 = {first}
server s2 = {second}
[listen tcp]
bind = 127.0.0.1:{tcp}
server s1 = {streams}
"""


class Operator:
    """Changes things at random, and never so that nobody could be served: of each backend, s1 stays ready."""

    def __init__(self, daemon: Daemon, seed: int, addresses: Mapping[str, Sequence[str]]) -> None:
        """`addresses` of servers, by backend."""
        self._daemon = daemon
        self._dice = random.Random(seed)
        self._addresses = addresses
        self._others: dict[str, list[str]] = {"web": ["s2"], "tcp": []}
        #: What there must be: address and weight of each server.
        self.servers = {
            ("web", "s1"): (addresses["web"][0], 1),
            ("web", "s2"): (addresses["web"][1], 1),
            ("tcp", "s1"): (addresses["tcp"][0], 1),
        }
        self._numbers = iter(range(1000))
        self.commands: list[str] = []
        self.reloads = self.deleted = 0

    def tell(self, command: str, expected: str = "") -> str:
        self.commands.append(command)
        answer = self._daemon.ask(command).strip()
        assert expected in answer if expected else not answer, f"{command}: {answer}"
        return answer

    def act(self) -> None:
        steps = [
            self.move, self.move, self.turn, self.turn, self.weigh, self.limit, self.add, self.add, self.delete,
            self.limit_frontend, self.forget, self.reload,
        ]  # fmt: skip
        self._dice.choice(steps)()

    def _backend(self) -> str:
        return self._dice.choice(list(self._others))

    def _any(self) -> tuple[str, str]:
        backend = self._backend()
        return backend, self._dice.choice(["s1", *self._others[backend]])

    def move(self) -> None:
        backend, server = self._any()
        address = self._dice.choice(self._addresses[backend])
        host, _, port = address.rpartition(":")
        self.tell(f"set server {backend}/{server} addr {host} port {port}", "by 'stats socket command'")
        self.servers[backend, server] = (address, self.servers[backend, server][1])

    def turn(self) -> None:
        backend = self._backend()
        if self._others[backend]:
            server = self._dice.choice(self._others[backend])
            self.tell(f"set server {backend}/{server} state {self._dice.choice(['ready', 'ready', 'drain', 'maint'])}")

    def weigh(self) -> None:
        backend, server = self._any()
        weight = self._dice.randrange(1, 257)
        self.tell(f"set server {backend}/{server} weight {weight}")
        self.servers[backend, server] = (self.servers[backend, server][0], weight)

    def limit(self) -> None:
        # Streams stay: who would wait for the end of one would wait too long.
        self.tell(f"set maxconn server web/{self._dice.choice(['s1', *self._others['web']])} "
                  f"{self._dice.choice([0, 3, 8])}")  # fmt: skip

    def limit_frontend(self) -> None:
        self.tell(f"set maxconn frontend web {self._dice.choice([CLIENTS + 10, 500])}")

    def forget(self) -> None:
        self.tell("clear counters")

    def add(self) -> None:
        backend = self._backend()
        server = f"n{next(self._numbers)}"
        address = self._dice.choice(self._addresses[backend])
        self.tell(f"add server {backend}/{server} {address}", "New server registered.")
        self.tell(f"set server {backend}/{server} state ready")
        self._others[backend].append(server)
        self.servers[backend, server] = (address, 1)

    def delete(self) -> None:
        backend = self._backend()
        if not self._others[backend]:
            return
        server = self._dice.choice(self._others[backend])
        self.tell(f"set server {backend}/{server} state maint")
        self.commands.append(f"del server {backend}/{server}")
        answer = self._daemon.ask(self.commands[-1]).strip()
        if answer == "Server deleted.":
            self._others[backend].remove(server)
            del self.servers[backend, server]
            self.deleted += 1
        else:
            assert answer in (
                "Server still has connections attached to it, cannot remove it.",
                f"cannot delete server {backend}/{server}: a reload is running; try again when it is over",
            )

    def reload(self) -> None:
        assert self._daemon.ask("reload", 60).startswith("Success=1")
        self.reloads += 1


class Site:
    """A service, its servers and what operators do."""

    def __init__(self, directory: Path, seed: int, web: HttpBackend, tcp: Backend, more: str = "") -> None:
        ports = free_ports(2)
        self.addresses = {"web": web.addresses, "tcp": tcp.addresses}
        body = _BODY.format(
            web=ports[0], tcp=ports[1], first=web.addresses[0], second=web.addresses[1], streams=tcp.addresses[0]
        )
        self.service = Restartable(directory, body, more=more)
        self.daemon = self.service.daemon
        self.web, self.tcp = (f"127.0.0.1:{port}" for port in ports)
        self.operator = Operator(self.daemon, seed, self.addresses)

    def stat(self) -> dict[tuple[str, str], dict[str, str]]:
        lines = self.daemon.ask("show stat").strip().removeprefix("# ").splitlines()
        return {(row["pxname"], row["svname"]): row for row in csv.DictReader(lines)}

    def rows(self, column: str, backend: str) -> list[int]:
        """A column of the frontend, and of the backend of that name."""
        stat = self.stat()
        return [int(stat[backend, kind][column]) for kind in ("FRONTEND", "BACKEND")]

    def act(self, count: int, between: Callable[[int], object] = lambda _: None) -> None:
        for number in range(count):
            self.operator.act()
            between(number)

    def empty(self) -> bool:
        return all(int(row["scur"] or 0) == int(row["qcur"] or 0) == 0 for row in self.stat().values())

    def servers(self) -> dict[tuple[str, str], tuple[str, int]]:
        return {
            key: (row["addr"], int(row["weight"]))
            for key, row in self.stat().items()
            if key[1] not in ("FRONTEND", "BACKEND")
        }


def loads(site: Site) -> tuple[Load, Load]:
    return (
        Load(site.web, mode="http", mix="all", clients=CLIENTS, timeout=30),
        Load(site.tcp, mode="stream", clients=STREAMS, timeout=30),
    )


@pytest.mark.parametrize("seed", [1, 2])
def test_no_request_fails_whatever_operators_change(seed: int, tmp_path: Path) -> None:
    with HttpBackend(3) as web, Backend(["127.0.0.1:0"] * 3) as tcp:
        site = Site(tmp_path, seed, web, tcp)
        with site.service:
            requests, streams = loads(site)
            with requests, streams:
                streams.wait_ready()
                site.act(CHANGES)
                requests.wait_requests(2000, 30)
                results: list[dict[str, Any]] = [requests.stop(), streams.stop()]
            for result in results:
                assert result["failed"] == 0, (result["errors"], site.operator.commands)
                assert result["unfinished"] == 0
            assert site.operator.reloads > 2 and site.operator.deleted > 2
            poll_until(site.empty, 10, "nobody is there any more")
            assert site.servers() == site.operator.servers
            # Servers that went have taken their counts along; their backends have them still.
            assert site.rows("req_tot", "web") == [results[0]["requests"]] * 2
            assert site.rows("stot", "tcp") == [STREAMS] * 2
            assert site.daemon.info()["CumLost"] == "0"
        books = web.spotless()
        assert books["unique"] == results[0]["requests"]
        assert len(books["tags"]) == 3


def test_changes_are_in_force_whoever_dies(tmp_path: Path) -> None:
    with HttpBackend(3) as web, Backend(["127.0.0.1:0"] * 3) as tcp:
        site = Site(tmp_path, 3, web, tcp, more="park-after = 0")
        service, daemon = site.service, site.daemon

        def end(number: int) -> None:
            if number % 8:
                return
            poll_until(lambda: service.number("CurrParked") and len(service.workers()) == 2, 10, "parked ones")
            deaths: list[Callable[[], object]] = [
                service.kill_worker,
                lambda: service.kill_worker(1),
                service.crash,
                service.restart,
            ]
            deaths[number // 8 % 4]()
            died.append(number)

        died: list[int] = []
        with site.service:
            requests, streams = loads(site)
            with requests, streams:
                streams.wait_ready()
                site.act(CHANGES, end)
                results: list[dict[str, Any]] = [requests.stop(), streams.stop()]
            # Nobody hangs; and who failed was on the way through a process that died, or accepted in the turn in which
            # it died, which has told nobody.
            assert all(result["unfinished"] == 0 for result in results)
            lost = int(daemon.info()["CumLost"]) + len(died)
            assert sum(result["failed"] for result in results) <= lost, [result["errors"] for result in results]
            poll_until(site.empty, 10, "nobody is there any more")
            assert site.servers() == site.operator.servers
            # The next ones are served by what there is now, all counted from here.
            assert daemon.ask("clear counters all").strip() == ""
            assert {*site.rows("req_tot", "web"), *site.rows("stot", "tcp")} == {0}
            with Load(site.web, mode="http", clients=8, total=300) as more:
                assert more.result()["failed"] == 0
            poll_until(site.empty, 10, "nobody is there any more")
            assert site.rows("req_tot", "web") == [300, 300]
        assert web.counters()["duplicates"] == 0
