"""HTTP mode as a service: `systemctl reload` and `systemctl restart` under checked load, and a server that is down."""

from __future__ import annotations

import contextlib
import csv
import json
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from crowd import Program
from machine import Machine
from service import PORT, UNIT, Service

Record = Callable[[str, object], None]

RELOADS, RESTARTS, CLIENTS = 50, 3, 40
PATIENCE = 60.0
SERVERS = (9011, 9012, 9013)
LINES = "\n".join(f"server s{tag} = 127.0.0.1:{port}" for tag, port in enumerate(SERVERS, 1))
CONFIGURATION = f"""\
[global]
stats socket = /run/hitlessd/hitlessd.sock mode 600 expose-fd listeners level admin
workers = 2
maxconn = 3000
[defaults]
mode = http
timeout connect = 5s
timeout client = 1m
timeout server = 1m
timeout check = 10s
[listen web]
bind = 127.0.0.1:{PORT}
option httpchk = GET /
default-server = check inter 200ms fall 1 rise 2
{LINES}
"""


@pytest.fixture(scope="module")
def text() -> str:
    return CONFIGURATION


def statuses(service: Service) -> dict[str, str]:
    """The status of every server, by its name."""
    rows = csv.DictReader(service.ask("show stat").removeprefix("# ").splitlines())
    return {row["svname"]: row["status"] for row in rows}


@contextlib.contextmanager
def servers(machine: Machine, *options: str) -> Iterator[Program]:
    """The HTTP servers, whose last line is their books."""
    listen = " ".join(f"--listen 127.0.0.1:{port}" for port in SERVERS)
    with contextlib.closing(Program(machine, f"http_backend {listen} {' '.join(options)}")) as program:
        machine.wait_until(lambda: program.output, PATIENCE, "the servers listen")
        yield program


@contextlib.contextmanager
def load(machine: Machine, options: str) -> Iterator[Program]:
    """Requests, every answer checked; the last line is what was counted."""
    command = f"load --target 127.0.0.1:{PORT} --mode http --clients {CLIENTS} --timeout 30 --progress 0.2 --json"
    with contextlib.closing(Program(machine, f"{command} {options}")) as program:
        wait_answers(program, CLIENTS)
        yield program


def wait_answers(clients: Program, count: int) -> None:
    """Wait until so many requests, from the beginning on, are answered."""
    clients.hear(lambda line: line.startswith('{"event": "progress"') and json.loads(line)["requests"] >= count)


def results(clients: Program, backend: Program, deaths: int = 0) -> tuple[dict[str, Any], dict[str, Any]]:
    """What the clients counted, and the books of the servers, without anything wrong; but that each death of main may
    have ended what was under way."""
    outcome: dict[str, Any] = json.loads(clients.stop())
    books: dict[str, Any] = json.loads(backend.stop())
    failures = outcome["failures"]
    ended = failures["reset"] + failures["short"]
    assert ended <= deaths * CLIENTS, outcome["errors"]
    assert (outcome["failed"], outcome["unfinished"], outcome["hung_up"]) == (ended, 0, 0), outcome["errors"]
    wrong = {name: books[name] for name in ("duplicates", "corrupt", "malformed", *([] if deaths else ["short"]))}
    assert not any(wrong.values()), (wrong, books["problems"])
    assert outcome["requests"] <= books["unique"] == books["requests"] <= outcome["requests"] + ended
    return outcome, books


def reload(service: Service) -> float:
    """`systemctl reload`; seconds."""
    began = time.monotonic()
    done = service.reload()
    assert done.returncode == 0, done.stderr
    return time.monotonic() - began


def test_no_request_fails_through_fifty_reloads(service: Service, record_property: Record) -> None:
    machine = service.machine
    with servers(machine) as backend:
        service.start()
        cursor = machine.journal_cursor()
        # With a pause, or the clients would leave nothing of the machine to the reloads.
        with load(machine, "--mix all --interval 0.02") as clients:
            took = sorted(reload(service) for _ in range(RELOADS))
            complaints = service.complaints(cursor)
            outcome, books = results(clients, backend)
    record_property("reload, median", f"{took[RELOADS // 2] * 1000:.0f} ms, systemctl and all")
    record_property("requests", f"{outcome['requests']}, none failed; latency {outcome['latency_ms']}")
    assert set(books["tags"]) == {"1", "2", "3"}
    assert complaints == []


def test_no_request_fails_through_restarts(service: Service, record_property: Record) -> None:
    machine = service.machine
    with servers(machine) as backend:
        service.start()
        cursor = machine.journal_cursor()
        with load(machine, "--mix all --interval 0.02") as clients:
            for restart in range(1, RESTARTS + 1):
                machine.run("systemctl", "restart", UNIT)
                wait_answers(clients, (restart + 1) * 20 * CLIENTS)
            lost, complaints = service.info()["CumLost"], service.complaints(cursor)
            outcome, _ = results(clients, backend)
    record_property("requests", f"{outcome['requests']}, none failed; latency {outcome['latency_ms']}")
    assert lost == "0"
    assert complaints == []


def test_a_server_that_is_down_gets_no_request(service: Service, record_property: Record) -> None:
    """Neither while one reload follows another, nor after a restart, nor after the death of main."""
    machine = service.machine
    with servers(machine, "--sick 2") as backend:
        service.start()
        machine.wait_until(lambda: statuses(service)["s2"].startswith("DOWN"), PATIENCE, "server 2 is down")
        with load(machine, "--interval 0.02") as clients:
            for _ in range(RELOADS):
                reload(service)
            machine.run("systemctl", "restart", UNIT)
            # Those that are not are lost with main.
            machine.wait_until(lambda: service.info()["CurrParked"] == str(CLIENTS), PATIENCE, "all are parked anew")
            old = service.main_pid
            machine.run("kill", "-KILL", str(old))
            machine.wait_until(lambda: service.main_pid not in (0, old), PATIENCE, "it is back")
            machine.wait_until(lambda: service.connections() > 0, PATIENCE, "it answers")
            outcome, books = results(clients, backend, deaths=1)
        assert statuses(service)["s2"].startswith("DOWN")
    failed = f"{outcome['failed']} failed when main was killed"
    record_property("requests", f"{outcome['requests']}, by server {books['tags']}; {failed}")
    assert set(books["tags"]) == {"1", "3"}
