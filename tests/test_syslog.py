"""Lines for a syslog server: HAProxy's default header, and that nobody ever waits."""

from __future__ import annotations

import os
import re
import socket
import time
from pathlib import Path

import pytest

from hitlessd.log import Log
from hitlessd.model import InetAddress, LogTarget, UnixAddress
from hitlessd.syslog import FACILITIES, Syslog

#: As haproxy 2.6 writes it, with the process's number.
_LINE = r"<{}>[A-Z][a-z][a-z] [ \d]\d \d\d:\d\d:\d\d hitlessd\[{}\]: {}\n"


def _server(family: int = socket.AF_INET, address: object = ("127.0.0.1", 0)) -> socket.socket:
    server = socket.socket(family, socket.SOCK_DGRAM)
    server.bind(address)  # type: ignore[arg-type]
    server.settimeout(10)
    return server


def test_udp() -> None:
    with _server() as server:
        log = Log(LogTarget("syslog", "info", InetAddress(*server.getsockname()), "local0"))
        log("err", "words\nmore", pid=4)
        assert re.fullmatch(_LINE.format(131, os.getpid(), r"words more \| pid=4"), server.recv(65536).decode())
        log.access("a line")
        assert re.fullmatch(_LINE.format(134, os.getpid(), "a line"), server.recv(65536).decode())
        log.configure(LogTarget("stderr"))


@pytest.mark.parametrize(("facility", "number"), [("kern", 0), ("daemon", 3), ("cron2", 15), ("local7", 23)])
def test_facilities(facility: str, number: int, tmp_path: Path) -> None:
    with _server(socket.AF_UNIX, str(tmp_path / "log")) as server:
        log = Log(LogTarget("syslog", "debug", UnixAddress(str(tmp_path / "log")), facility))
        log("debug", "x")
        assert server.recv(65536).startswith(b"<%d>" % (number * 8 + 7))
        log.configure(LogTarget("stderr"))
    assert FACILITIES.index(facility) == number


def test_long_lines_are_cut_as_haproxys_but_json_is_not() -> None:
    with _server() as server:
        log = Log(LogTarget("syslog", "info", InetAddress(*server.getsockname())))
        log.access("x" * 3000)
        cut = server.recv(65536)
        assert len(cut) == 1024 and cut.endswith(b"x\n")
        log.access("x" * 3000, True)
        assert len(server.recv(65536)) > 3000
        log.configure(LogTarget("stderr"))


def test_a_server_that_reads_nothing_costs_lines_and_not_time(tmp_path: Path) -> None:
    with _server(socket.AF_UNIX, str(tmp_path / "log")) as server:
        log = Log(LogTarget("syslog", "info", UnixAddress(str(tmp_path / "log"))))
        before = time.monotonic()
        for number in range(3000):
            log("info", f"line {number}")
        assert time.monotonic() - before < 5
        server.setblocking(False)
        came = 0
        try:
            while server.recv(65536):
                came += 1
        except BlockingIOError:
            pass
        log("info", "after")
        assert f"{3000 - came} lines are lost: nobody reads" in server.recv(65536).decode()
        assert server.recv(65536).endswith(b": after\n")
        log.configure(LogTarget("stderr"))


def test_nobody_there_does_not_raise(tmp_path: Path) -> None:
    log = Log(LogTarget("syslog", "info", UnixAddress(str(tmp_path / "log"))))
    log("info", "lost")
    log.configure(LogTarget("stderr"))


def test_a_new_server_is_found_while_the_old_socket_is_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As of a server that left it to a child when it was started again."""
    path = str(tmp_path / "log")
    now = 1_700_000_000.0
    monkeypatch.setattr("hitlessd.syslog._time", lambda: now)
    with _server(socket.AF_UNIX, path) as old:
        syslog = Syslog(UnixAddress(path), "local0", "hitlessd")
        assert syslog.access("one") and syslog.send(6, "two")
        assert old.recv(100).endswith(b" one\n") and old.recv(100).endswith(b" two\n")
        os.unlink(path)
        assert syslog.send(6, "three")
        assert old.recv(100).endswith(b" three\n")  # nobody else is there
        with _server(socket.AF_UNIX, path) as new:
            assert syslog.send(6, "four")
            assert new.recv(100).endswith(b" four\n")
        os.unlink(path)
        with _server(socket.AF_UNIX, path) as new:
            now += 1.0
            assert syslog.access("five")
            assert new.recv(100).endswith(b" five\n")
        syslog.close()
