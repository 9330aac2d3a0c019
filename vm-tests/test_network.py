"""Clients, hitlessd and servers on a network that fails: a link that is down for a while, a server that loses power."""

from __future__ import annotations

import contextlib
import csv
import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from crowd import CROWDED, Crowd, Program, bad_wires
from machine import Machine
from service import LOADED, PORT, UNIT, Service
from wires import BALANCER, SERVERS, switch

Record = Callable[[str, object], None]

PATIENCE = 30.0
YOUNG = 8002
RATE = 50
CONFIGURATION = f"""\
[global]
stats socket = /run/hitlessd/hitlessd.sock mode 600 expose-fd listeners level admin
workers = 2
maxconn = 1000
[defaults]
mode = tcp
option tcplog
timeout connect = 1s
timeout client = 1m
timeout server = 1m
timeout check = 500ms
retries = 3
option redispatch
default-server = check inter 300ms fall 2 rise 2 {{down}}
[listen crowd]
bind = {BALANCER}:{PORT}
server one = {SERVERS[0]}:{CROWDED}
server two = {SERVERS[1]}:{CROWDED}
[listen young]
bind = {BALANCER}:{YOUNG}
server one = {SERVERS[0]}:{LOADED}
server two = {SERVERS[1]}:{LOADED}
"""


@pytest.fixture(scope="module")
def text() -> str:
    return CONFIGURATION


@pytest.fixture
def service(service: Service) -> Iterator[Service]:
    """On a network."""
    with switch(lambda script: service.machine.run("sh", "-c", script)):
        yield service
        service.stop()


def rows(service: Service) -> dict[tuple[str, str], dict[str, str]]:
    """`show stat`, by proxy and server."""
    table = csv.DictReader(service.ask("show stat").removeprefix("# ").splitlines())
    return {(row["pxname"], row["svname"]): row for row in table}


def server_is(service: Service, name: str, status: str) -> None:
    """Wait until checks have found it so, in both backends."""

    def found() -> bool:
        shown = rows(service)
        return all(shown[proxy, name]["status"] == status for proxy in ("crowd", "young"))

    service.machine.wait_until(found, PATIENCE, f"{name} is {status}")


def plug(machine: Machine, name: str, state: str) -> None:
    """At the switch: nobody is told, on either side."""
    machine.run("ip", "link", "set", name, state)


@contextlib.contextmanager
def served(service: Service, down: str) -> Iterator[tuple[Crowd, Program]]:
    """Both servers, hitlessd that finds them up, a crowd of clients, and short connections at a rate."""
    machine = service.machine
    with contextlib.ExitStack() as stack:
        for address, netns in zip(SERVERS, ("one", "two"), strict=True):
            server = Program(machine, f"backend --listen {address}:{CROWDED} --listen {address}:{LOADED}", netns)
            stack.callback(server.close)
            machine.wait_until(lambda server=server: server.output, PATIENCE, "a server listens")  # type: ignore[misc]
        service.configure(CONFIGURATION.format(down=down))
        service.start()
        # Its own server serves nobody here.
        crowd = Crowd(
            machine,
            idle=40,
            pingpong=40,
            bulk=4,
            target=f"{BALANCER}:{PORT}",
            netns="clients",
            server_netns="clients",
            options="--timeout 40",
        )
        stack.enter_context(crowd)
        command = f"load --target {BALANCER}:{YOUNG} --rate {RATE} --timeout 40 --json --progress 60"
        load = stack.enter_context(contextlib.closing(Program(machine, command, "clients")))
        more(service, RATE)
        yield crowd, load


def divided(service: Service, crowd: Crowd) -> dict[str, int]:
    """How many of the crowd each server has; all, and about a half."""
    shown = rows(service)
    had = {name: int(shown["crowd", name]["scur"]) for name in ("one", "two")}
    assert sum(had.values()) == crowd.size and min(had.values()) > crowd.size / 3
    return had


def ended(service: Service, cursor: str) -> int:
    """Short connections that were ended because their server is down, as the journal has it: one's only."""
    lines = [str(entry["MESSAGE"]).split() for entry in service.machine.journal(UNIT, cursor)]
    servers = [line[3] for line in lines if len(line) > 6 and line[2] == "young" and line[6].startswith("K")]
    assert set(servers) <= {"young/one"}, servers
    return len(servers)


def outcome(load: Program) -> dict[str, Any]:
    report: dict[str, Any] = json.loads(load.stop())
    return report


def more(service: Service, count: int) -> None:
    """Wait for so many short connections more."""

    def total() -> int:
        return int(rows(service)["young", "FRONTEND"]["stot"])

    wanted = total() + count
    service.machine.wait_until(lambda: total() >= wanted, PATIENCE, "the load runs")


def test_a_link_that_is_down_for_a_while_costs_nobody_the_connection(service: Service, record_property: Record) -> None:
    """Down long enough to be noticed; reloads while it is, and TCP sends again what was lost."""
    machine = service.machine
    with served(service, "") as (crowd, load):
        had = divided(service, crowd)
        plug(machine, "one", "down")
        server_is(service, "one", "DOWN")
        assert rows(service)["crowd", "two"]["status"] == "UP"
        assert service.reload().returncode == 0
        assert rows(service)["crowd", "one"]["status"] == "DOWN"
        more(service, RATE)
        plug(machine, "one", "up")
        server_is(service, "one", "UP")
        more(service, RATE)
        crowd.verify()
        assert crowd.lost == []
        assert divided(service, crowd) == had
        report = outcome(load)
        record_property("young", f"{report['done']} served, longest {report['latency_ms']['max']:.0f} ms")
        assert (report["failed"], report["unfinished"]) == (0, 0), report["errors"]
        assert int(rows(service)["young", "FRONTEND"]["stot"]) == report["done"]
        talk = crowd.stop()
    assert (talk["broken"], talk["corrupt"]) == (0, 0), talk["lost"][:5]


def test_a_server_that_loses_power_costs_its_own_connections_only(service: Service, record_property: Record) -> None:
    machine = service.machine
    with served(service, "on-marked-down shutdown-sessions") as (crowd, load):
        had, cursor = divided(service, crowd), machine.journal_cursor()
        plug(machine, "one", "down")
        server_is(service, "one", "DOWN")
        machine.wait_until(lambda: len(crowd.lost) == had["one"], PATIENCE, f"all of one are told: {had}")
        # Nobody asks it again, whatever becomes of us.
        for _ in range(3):
            assert service.reload().returncode == 0
            assert rows(service)["crowd", "one"]["status"] == "DOWN"
        machine.run("systemctl", "restart", UNIT)
        assert rows(service)["crowd", "one"]["status"] == "DOWN"
        crowd.verify()
        more(service, RATE)
        machine.wait_until(lambda: int(rows(service)["crowd", "two"]["scur"]) == had["two"], PATIENCE, "all are back")
        report = outcome(load)
        record_property("crowd", f"{had}, lost {len(crowd.lost)}")
        record_property("young", f"{report['done']} served, failed {report['failed']}: {report['failures']}")
        assert len(crowd.lost) == had["one"], crowd.lost[:3]
        # Those that were talking to it, or on their way to it, and of the others nobody.
        assert report["failed"] == ended(service, cursor), report["errors"]
        assert report["failures"]["refused"] == report["failures"]["timeout"] == report["unfinished"] == 0
        talk = crowd.stop()
    assert (talk["broken"], talk["corrupt"], talk["unfinished"]) == (had["one"], 0, 0), talk["lost"][:5]


def test_ten_reloads_while_packets_are_lost_and_late(machine: Machine, record_property: Record) -> None:
    service = Service(machine)
    text = CONFIGURATION.format(down="").replace(f"{BALANCER}:", "10.9.1.2:")
    for address in SERVERS:
        text = text.replace(f"{address}:", "10.9.2.2:")
    with bad_wires(machine, "--delay 0.02 --loss 0.02 --late 0.02") as wires, contextlib.ExitStack() as stack:
        server = Program(machine, f"backend --listen 10.9.2.2:{LOADED}", "servers")
        stack.callback(server.close)
        machine.wait_until(lambda: server.output, PATIENCE, "the server listens")
        service.configure(text.replace("check inter", "inter"))
        service.start()
        stack.callback(service.stop)
        crowd = stack.enter_context(
            Crowd(
                machine,
                idle=40,
                pingpong=40,
                bulk=2,
                target=f"10.9.1.2:{PORT}",
                listen=f"10.9.2.2:{CROWDED}",
                netns="clients",
                server_netns="servers",
                options="--timeout 40",
            )
        )
        command = f"load --target 10.9.1.2:{YOUNG} --rate {RATE} --timeout 40 --json --progress 60"
        load = stack.enter_context(contextlib.closing(Program(machine, command, "clients")))
        more(service, RATE)
        for _ in range(10):
            assert service.reload().returncode == 0
            crowd.rest(0.2)
        crowd.verify()
        report, total = outcome(load), int(rows(service)["young", "FRONTEND"]["stot"])
        assert int(service.info()["CurrConns"]) == crowd.size
        talk = crowd.stop()
        carried = [json.loads(wire.stop()) for wire in wires]
    record_property("packets", carried)
    record_property("young", f"{report['done']} served, longest {report['latency_ms']['max']:.0f} ms")
    assert all(wire["lost"] for wire in carried)
    assert (report["failed"], report["unfinished"], total) == (0, 0, report["done"]), report["errors"]
    assert (talk["broken"], talk["corrupt"], talk["unfinished"], talk["server"]["corrupt"]) == (0, 0, 0, 0)
