"""What systemd hears from us, datagram by datagram, and what we take from it."""

from __future__ import annotations

import json
import os
import socket
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from hitlessd.systemd import STORE_PREFIX, Manager, inherited_descriptors, leave_no_trace
from tests.support.descriptors import identity, memfd, no_leak
from tests.support.manager import FakeManager
from tests.support.processes import ROOT, Process


@pytest.fixture(params=["path", "abstract"])
def pid1(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeManager]:
    address = str(tmp_path / "notify") if request.param == "path" else f"@hitlessd-test-{os.getpid()}"
    with FakeManager(address) as manager:
        monkeypatch.setenv("NOTIFY_SOCKET", address)
        yield manager


def _manager(**environment: str) -> Manager:
    return Manager({"NOTIFY_SOCKET": os.environ["NOTIFY_SOCKET"], **environment})


def test_state_lines_arrive_in_order_one_datagram_a_call(pid1: FakeManager) -> None:
    manager = _manager()
    manager.reloading()
    manager.notify("MAINPID=17")
    manager.notify("READY=1", "STATUS=generation 3, größer")
    manager.notify("WATCHDOG=1")
    lines = [datagram.lines for datagram in pid1.waiting()]
    assert lines[0][0] == "RELOADING=1"
    assert lines[0][1].removeprefix("MONOTONIC_USEC=").isdecimal()
    assert lines[1:] == [["MAINPID=17"], ["READY=1", "STATUS=generation 3, größer"], ["WATCHDOG=1"]]


def test_a_line_stays_one_line(pid1: FakeManager) -> None:
    _manager().notify("STATUS=a\nMAINPID=1\r\0b", "X=\udcff")
    assert pid1.receive().lines == ["STATUS=a MAINPID=1  b", r"X=\udcff"]


def test_descriptors_are_stored_in_batches_and_dropped_by_name(pid1: FakeManager) -> None:
    with no_leak():
        manager, fd = _manager(), memfd()
        manager.store("hitlessd.x", [fd] * 507)
        manager.store("hitlessd.none", [])
        manager.unstore("hitlessd.x")
        datagrams = pid1.waiting()
        assert [len(datagram.fds) for datagram in datagrams] == [253, 253, 1, 0]
        assert {tuple(d.lines) for d in datagrams[:3]} == {("FDSTORE=1", "FDNAME=hitlessd.x", "FDPOLL=0")}
        assert datagrams[3].lines == ["FDSTOREREMOVE=1", "FDNAME=hitlessd.x"]
        assert {identity(fd) for datagram in datagrams for fd in datagram.fds} == {identity(fd)}
        for datagram in datagrams:
            pid1.let_go(datagram)
        os.close(fd)


def test_names_of_ours_are_such_as_systemd_accepts() -> None:
    assert ":" not in STORE_PREFIX
    assert STORE_PREFIX.isascii()
    assert STORE_PREFIX.isprintable()


def test_a_barrier_ends_when_the_manager_has_closed_it(pid1: FakeManager) -> None:
    with no_leak():
        received: list[list[str]] = []

        def process() -> None:
            for _ in range(2):
                datagram = pid1.receive()
                received.append(datagram.lines)
                pid1.let_go(datagram)

        thread = threading.Thread(target=process)
        thread.start()
        manager = _manager()
        manager.notify("STATUS=last")
        assert manager.barrier(10)
        thread.join()
        assert received == [["STATUS=last"], ["BARRIER=1"]]


def test_a_barrier_that_nobody_ends_does_not_block_for_ever(pid1: FakeManager) -> None:
    with no_leak():
        assert not _manager().barrier(0.05)
        datagram = pid1.receive()
        assert (datagram.lines, len(datagram.fds)) == (["BARRIER=1"], 1)
        pid1.let_go(datagram)


def test_a_manager_that_has_gone_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with no_leak():
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "nobody"))
        manager = _manager()
        manager.notify("READY=1")
        assert manager.barrier(10)


def test_without_a_manager_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    with no_leak():
        manager = Manager({"WATCHDOG_USEC": "1000000"})
        manager.notify("READY=1")
        manager.reloading()
        manager.store("x", [0])
        manager.unstore("x")
        assert manager.barrier()
        assert (manager.present, manager.has_store, manager.watchdog) == (False, False, None)


@pytest.mark.parametrize(
    ("environment", "store", "watchdog"),
    [
        ({}, True, None),
        ({"FDSTORE": "512"}, True, None),
        ({"FDSTORE": "0"}, False, None),
        ({"WATCHDOG_USEC": "30000000"}, True, 30.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": str(os.getpid())}, True, 30.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "1"}, True, None),
        ({"WATCHDOG_USEC": "0"}, True, None),
        ({"WATCHDOG_USEC": "soon"}, True, None),
    ],
)
def test_what_the_environment_says(environment: dict[str, str], store: bool, watchdog: float | None) -> None:
    manager = Manager({"NOTIFY_SOCKET": "/run/x", **environment})
    assert (manager.present, manager.has_store, manager.watchdog) == (True, store, watchdog)


def test_leave_no_trace_takes_what_was_for_one_process_only() -> None:
    mine = {"LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES", "LISTEN_PIDFDID", "WATCHDOG_PID"}
    kept = {"NOTIFY_SOCKET", "WATCHDOG_USEC", "PATH", "JOURNAL_STREAM", "RUNTIME_DIRECTORY", "FDSTORE"}
    environment = dict.fromkeys(mine | kept, "1")
    leave_no_trace(environment)
    assert set(environment) == kept
    leave_no_trace(environment)


_SHOW = """
import json, os
from hitlessd.errors import HitlessdError
from hitlessd.systemd import inherited_descriptors
try:
    found = [[fd, name, os.get_inheritable(fd)] for fd, name in inherited_descriptors()]
except HitlessdError as error:
    found = str(error)
print(json.dumps([found, os.environ.get("LISTEN_PID")]))
"""


_START = """
import fcntl, json, os, sys
environment, fds = json.loads(sys.argv[1]), json.loads(sys.argv[2])
for number, fd in enumerate([fcntl.fcntl(fd, fcntl.F_DUPFD, 100) for fd in fds], 3):
    os.dup2(fd, number)
os.closerange(3 + len(fds), 200)
environment = {name: value.replace("$$", str(os.getpid())) for name, value in environment.items()}
os.execve(sys.executable, [sys.executable, "-c", sys.argv[3]], {**os.environ, **environment})
"""


def _inherited(fds: list[int], **environment: str) -> object:
    """What a process sees that is started as systemd would, with these descriptors as 3, 4 and so on; $$ is its pid."""
    argv = [sys.executable, "-c", _START, json.dumps(environment), json.dumps(fds), _SHOW]
    with Process(argv, pass_fds=fds, cwd=ROOT) as process:
        output = "".join(process.stdout.join())
        assert process.wait() == 0, process.stderr.text
        process.stderr.join()
        return json.loads(output)[0]


def test_descriptors_come_with_their_names_and_close_on_exec() -> None:
    with socket.socket() as one, socket.socket() as two:
        fds = [one.fileno(), two.fileno()]
        names = "http:hitlessd.state-1"
        found = _inherited(fds, LISTEN_FDS="2", LISTEN_FDNAMES=names, LISTEN_PID="$$")
        assert found == [[3, "http", False], [4, "hitlessd.state-1", False]]
        assert _inherited(fds, LISTEN_FDS="2", LISTEN_PID="$$") == [[3, "unknown", False], [4, "unknown", False]]
        assert _inherited(fds, LISTEN_FDS="2", LISTEN_PID="1") == []
        assert _inherited(fds) == []


def test_descriptors_that_are_not_there_are_an_error() -> None:
    found = _inherited([], LISTEN_FDS="2", LISTEN_PID="$$")
    assert found == "cannot use the descriptors of $LISTEN_FDS: Bad file descriptor"


def test_nothing_is_inherited_without_socket_activation() -> None:
    assert inherited_descriptors() == []
