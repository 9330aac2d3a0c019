"""What a real hitlessd says when something happens that an operator looks for."""

from __future__ import annotations

import os
import signal
import socket
import time
from pathlib import Path

from tests.support.daemon import Daemon
from tests.support.echo import Echo
from tests.support.notify import NotifySocket
from tests.support.processes import free_port, poll_until
from tests.support.restartable import Restartable
from tests.support.visitors import Conversation


def _listen(port: int, server: int, more: str = "") -> str:
    return f"[listen t]\nbind = 127.0.0.1:{port}\nserver s = 127.0.0.1:{server}\n{more}"


def test_a_reload_names_the_listeners_that_it_opens_and_closes(tmp_path: Path) -> None:
    before, after = free_port(), free_port()
    with Echo() as echo, Daemon(tmp_path, _listen(before, echo.port)) as daemon:
        assert "listening on" not in daemon.log
        daemon.write(daemon.text(_listen(after, echo.port)))
        assert daemon.reload().returncode == 0
        line = daemon.wait_log(f"listening on 127.0.0.1:{after} for t")
        assert line.endswith(f" | address=127.0.0.1:{after} frontend=t")
        daemon.wait_log(f"no longer listening on 127.0.0.1:{before} | address=127.0.0.1:{before}")


def test_a_limit_that_is_reached_is_said_once(tmp_path: Path) -> None:
    port = free_port()
    with Echo() as echo, Daemon(tmp_path, _listen(port, echo.port, "maxconn = 2\n"), workers=1) as daemon:
        clients = [socket.create_connection(("127.0.0.1", port), 10) for _ in range(6)]
        text = "worker 0 serves no more than 2 connections of frontend t: new clients wait"
        assert "warning: " in daemon.wait_log(text)
        for client in clients:
            client.sendall(b"x")
            assert client.recv(1) == b"x"
            client.close()
        assert daemon.log.count(text) == 1


def test_a_successor_that_dies_is_named(tmp_path: Path) -> None:
    with Echo() as echo, Daemon(tmp_path, _listen(free_port(), echo.port)) as daemon:
        daemon.fault("successor.accept", signal.SIGKILL)
        assert daemon.reload().returncode != 0
        assert "the successor, process " in daemon.wait_log(" is lost | pid=")
        daemon.wait_log("reload 1 refused: the successor went away")
        poll_until(lambda: "Pid:" in daemon.ask("show info"), 10, "the old generation serves")


def test_a_main_process_that_was_nearly_ended_by_the_watchdog_says_so(tmp_path: Path) -> None:
    with (
        Echo() as echo,
        NotifySocket(tmp_path) as notify,
        Daemon(
            tmp_path, _listen(free_port(), echo.port), env={**notify.environment, "WATCHDOG_USEC": "300000"}
        ) as daemon,
    ):
        notify.wait("WATCHDOG=1", daemon.pid)
        os.kill(daemon.pid, signal.SIGSTOP)
        until = time.monotonic() + 0.5
        poll_until(lambda: time.monotonic() > until, 10, "it has slept for longer than the watchdog wants")
        os.kill(daemon.pid, signal.SIGCONT)
        daemon.wait_log("the main process was held up for ")


def test_what_a_restart_leaves_to_systemd_is_counted(tmp_path: Path) -> None:
    port = free_port()
    with Echo() as echo, Restartable(tmp_path, _listen(port, echo.port)) as service, Conversation(port) as client:
        client.say()
        service.restart()
        client.say()
        assert "1 connections are parked and left to systemd | parked=1" in service.log
        assert "resumed 1 connections in " in service.log
