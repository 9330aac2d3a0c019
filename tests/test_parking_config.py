"""What a configuration that has changed means for connections that come back; names, numbers and times go on."""

from __future__ import annotations

import contextlib
import csv
import re
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.pairs import WAYS, Pair, Servers, come_back, dead_meanwhile, ended, replace
from tests.support.processes import free_port, free_ports
from tests.support.restartable import Restartable
from tests.support.visitors import listen

AT_ONCE = "park-after = 0"
LOGGED = "option tcplog\n"
ways = pytest.mark.parametrize("way", WAYS)


@contextlib.contextmanager
def serving(directory: Path, body: str = "", *, workers: int = 1) -> Iterator[tuple[Restartable, Servers, int]]:
    port = free_port()
    with (
        Servers() as servers,
        Restartable(
            directory, listen(port, server=servers.port) + LOGGED + body, workers=workers, more=AT_ONCE
        ) as service,
    ):
        yield service, servers, port


def sessions(service: Restartable) -> list[dict[str, str]]:
    """The lines of `show sess`, by their fields; `id` is the number."""
    found = []
    for line in service.daemon.ask("show sess").splitlines():
        if line:
            number, _, rest = line.partition(": ")
            found.append({"id": number, **dict(re.findall(r"(\w+)=(\[[^]]*\]|\S*)", rest))})
    return found


def stat(service: Restartable, name: str, server: str) -> dict[str, int]:
    """Numbers of a row of `show stat`."""
    rows = csv.DictReader(service.daemon.ask("show stat").removeprefix("# ").splitlines())
    row = next(row for row in rows if (row["pxname"], row["svname"]) == (name, server))
    return {key: int(row[key]) for key in ("scur", "stot", "bin", "bout")}


def log_lines(service: Restartable) -> list[int]:
    """The bytes to the client that the line of each connection tells of."""
    return [int(number) for number in re.findall(r" t t/s -?\d+/-?\d+/\+?\d+ (\d+) ", service.log)]


def test_a_server_that_was_removed_keeps_its_connections(tmp_path: Path) -> None:
    with serving(tmp_path) as (service, servers, port):
        pair = servers.pair(port)
        service.wait_number("CurrParked", 1)
        text = service.daemon.file.read_text()
        with Servers() as others, dead_meanwhile(service):
            service.daemon.write(
                text.replace(f"server s = 127.0.0.1:{servers.port}", f"server o = 127.0.0.1:{others.port}")
            )
        pair.say()
        (session,) = sessions(service)
        assert (session["fe"], session["be"], session["srv"]) == ("t", "t", "s")
        come_back(service, "crash", 1)
        pair.say()


def test_a_frontend_that_was_removed_keeps_its_connections_under_the_old_names(tmp_path: Path) -> None:
    with serving(tmp_path) as (service, servers, port):
        pair = servers.pair(port)
        service.wait_number("CurrParked", 1)
        with dead_meanwhile(service):
            service.daemon.write(service.daemon.text(listen(free_port(), server=servers.port, name="other")))
        pair.say()
        (session,) = sessions(service)
        assert (session["fe"], session["be"], session["srv"]) == ("t", "t", "s")
        come_back(service, "crash", 1)
        pair.say()
        pair.close()
        service.wait_number("CurrConns", 0)


def test_shutdown_on_reload_closes_what_comes_back(tmp_path: Path) -> None:
    port, kept = free_ports(2)
    with Servers() as servers:
        body = listen(port, server=servers.port) + LOGGED + "{}" + listen(kept, server=servers.port, name="kept")
        with Restartable(tmp_path, body.format(""), workers=1, more=AT_ONCE) as service:
            closed, other = servers.pair(port), servers.pair(kept)
            service.wait_number("CurrParked", 2)
            with dead_meanwhile(service):
                service.daemon.write(service.daemon.text(body.format("shutdown-on-reload\n")))
            assert ended(closed.client) and ended(closed.server)
            other.say()
            service.wait_number("CurrConns", 1)
            service.wait(lambda: " KD " in service.log, 10, "its log line")


@pytest.mark.parametrize("way", ["restart", "crash"])
def test_more_and_fewer_workers(way: str, tmp_path: Path) -> None:
    with serving(tmp_path) as (service, servers, port):
        pairs = [servers.pair(port) for _ in range(30)]
        text = service.daemon.file.read_text()
        for workers in (3, 2, 1, 4):
            service.daemon.write(text.replace("workers = 1\n", f"workers = {workers}\n"))
            come_back(service, way, len(pairs))
            assert len(service.workers()) == workers
            for pair in pairs:
                pair.say()
        service.manager.settle()
        parts = [name for name in service.manager.names if name.startswith("hitlessd.park-")]
        assert len(parts) == 12, parts


@ways
def test_counters_and_sessions_go_on(way: str, tmp_path: Path) -> None:
    with serving(tmp_path) as (service, servers, port):
        gone = servers.pair(port)
        pairs = [servers.pair(port) for _ in range(3)]
        gone.close()
        service.wait_number("CurrConns", 3)
        for pair in pairs:
            pair.say(b"x" * 1000)
        before = sessions(service)
        for _ in range(3):
            come_back(service, way, 3)
            assert [each["id"] for each in sessions(service)] == [each["id"] for each in before]
            info = service.info()
            assert (info["CurrConns"], info["CumConns"]) == ("3", "4")
            for name in ("FRONTEND", "BACKEND", "s"):
                row = stat(service, "t", name)
                assert (row["scur"], row["stot"]) == (3, 4), name
            for pair in pairs:
                pair.say(b"x" * 1000)
        for pair in pairs:
            pair.close()
        service.wait_number("CurrConns", 0)
        assert stat(service, "t", "s")["scur"] == 0
        # A crash may cost what had not been written into the table by then, and never counts anything twice.
        total = 4 * len(b"hello") + 4 * 3 * 1000
        least = total if way == "restart" else 20
        service.wait(lambda: least <= stat(service, "t", "FRONTEND")["bin"] <= total, 5, f"{least} to {total} bytes")
        # One line a connection, and it tells of the whole.
        service.wait(lambda: len(log_lines(service)) >= 4, 10, "lines of all")
        assert sorted(log_lines(service)) == sorted([len(b"hello"), *[len(b"hello") + 4 * 1000] * 3])


@ways
def test_the_age_of_a_session_goes_on(way: str, tmp_path: Path) -> None:
    with serving(tmp_path) as (service, servers, port):
        pair = servers.pair(port)
        began = time.monotonic()
        service.wait(lambda: int(sessions(service)[0]["age"].rstrip("s")) >= 2, 10, "an age of 2 s")
        come_back(service, way, 1)
        age = int(sessions(service)[0]["age"].rstrip("s"))
        assert 2 <= age <= time.monotonic() - began + 1
        pair.say()


@ways
@pytest.mark.parametrize("who", ["client", "server"])
def test_timeouts_go_on(way: str, who: str, tmp_path: Path) -> None:
    """From the last byte on, whoever has died meanwhile."""
    with serving(tmp_path) as (service, servers, port):
        text = service.daemon.file.read_text()
        service.daemon.write(text.replace(f"timeout {who} = 1m", f"timeout {who} = 2s"))
        assert service.daemon.reload().returncode == 0
        began = time.monotonic()
        pair = servers.pair(port)
        service.wait_number("CurrParked", 1)
        threading.Event().wait(1.2)
        before = time.monotonic()
        replace(service, way)
        back = time.monotonic()
        assert ended(pair.client) and ended(pair.server)
        end = time.monotonic()
        assert end - began > 1.9
        # At the right time, or when somebody serves again; whose time began anew would end 2 s after the deaths.
        assert end < max(before + 2, back + 1), (before - began, back - began, end - began)


def test_a_timeout_that_was_over_while_nobody_served(tmp_path: Path) -> None:
    with serving(tmp_path) as (service, servers, port):
        text = service.daemon.file.read_text()
        service.daemon.write(text.replace("timeout client = 1m", "timeout client = 3s"))
        assert service.daemon.reload().returncode == 0
        pair = servers.pair(port)
        service.wait_number("CurrParked", 1)
        with dead_meanwhile(service):
            threading.Event().wait(3.5)
        began = time.monotonic()
        assert ended(pair.client) and ended(pair.server)
        assert time.monotonic() - began < 2.0


def test_a_file_that_became_invalid_keeps_everybody(tmp_path: Path) -> None:
    with serving(tmp_path) as (service, servers, port):
        pairs: list[Pair] = [servers.pair(port) for _ in range(5)]
        service.wait_number("CurrParked", 5)
        good = service.daemon.file.read_text()
        service.daemon.write("[global]\nworkers = many\n")
        for way in ("restart", "crash"):
            come_back(service, way, 5)
            for pair in pairs:
                pair.say()
            assert "SERVING THE LAST GOOD CONFIGURATION" in service.manager.status
        service.daemon.write(good)
        assert service.daemon.reload().returncode == 0
        for pair in pairs:
            pair.say()


def test_a_reload_between_two_crashes(tmp_path: Path) -> None:
    with serving(tmp_path, workers=2) as (service, servers, port):
        pairs = [servers.pair(port) for _ in range(20)]
        for way in WAYS:
            come_back(service, way, 20)
            assert service.daemon.reload().returncode == 0
            service.wait_number("CurrParked", 20)
            for pair in pairs:
                pair.say()
        assert service.number("CumLost") == 0
