"""Rows 5 and 6: what a service manager hears in a reload, from whom, and in which order (sd_notify(3))."""

from __future__ import annotations

import os
import re
import signal
import time
from itertools import pairwise
from pathlib import Path

from tests.support.daemon import Daemon
from tests.support.echo import Echo
from tests.support.notify import Datagram, NotifySocket
from tests.support.processes import free_port, poll_until, wait_gone
from tests.support.visitors import Conversation, conversations, listen


def heard(notify: NotifySocket, start: int = 0) -> list[tuple[int, tuple[str, ...]]]:
    """Who said what: the names of the lines of each datagram."""
    return [(each.pid, each.names) for each in notify.datagrams[start:]]


def main_lines(datagrams: list[Datagram], pid: int) -> list[str]:
    return [line for each in datagrams if each.pid == pid for line in each.lines]


def test_row_5_the_start_is_announced_once_and_the_stop_too(tmp_path: Path) -> None:
    port = free_port()
    with (
        Echo() as echo,
        NotifySocket(tmp_path) as notify,
        Daemon(tmp_path, listen(port, server=echo.port), workers=1, env=notify.environment) as daemon,
    ):
        main = daemon.pid
        assert heard(notify) == [(main, ("READY", "STATUS")), (main, ("BARRIER",))]
        assert notify.statuses[0].startswith("generation 1, 1 listeners, 0 sessions, servers 1/1 up")
        daemon.process.signal(signal.SIGTERM)
        assert daemon.process.wait() == 0
        notify.settle()
        assert heard(notify, 2) == [(main, ("STOPPING", "STATUS"))]


def test_row_5_and_6_a_reload_is_told_in_order_and_by_the_right_process(tmp_path: Path) -> None:
    port = free_port()
    with (
        Echo() as echo,
        NotifySocket(tmp_path) as notify,
        Daemon(tmp_path, listen(port, server=echo.port, migrate=False), workers=1, env=notify.environment) as daemon,
        Conversation(port) as conversation,
    ):
        conversation.say()
        old = daemon.pid
        start = len(notify.datagrams)
        began = time.monotonic_ns() // 1000
        assert daemon.reload().returncode == 0
        new = daemon.pid
        reload = notify.datagrams[start:]
        # Behind these comes a STATUS that tells how it went.
        assert [(each.pid, each.names, each.fds) for each in reload[:4]] == [
            (old, ("RELOADING", "MONOTONIC_USEC"), 0),
            (old, ("READY", "MAINPID"), 0),
            (new, ("READY", "STATUS"), 0),
            (new, ("BARRIER",), 1),
        ]
        assert reload[0].lines[0] == "RELOADING=1"
        assert began <= int(reload[0].value("MONOTONIC_USEC")) <= time.monotonic_ns() // 1000
        assert reload[1].lines == ("READY=1", f"MAINPID={new}")
        assert reload[2].lines[0] == "READY=1"
        assert "generation 2" in reload[2].value("STATUS")
        # The old one drains in silence, and leaves after a barrier.
        conversation.say()
        said = len(notify.datagrams)
        conversation.finish()
        wait_gone(old)
        barrier = notify.wait("BARRIER=1", old, start)
        assert barrier >= said
        after_mainpid = [each for each in notify.datagrams[start + 2 :] if each.pid == old]
        assert [(each.lines, each.fds) for each in after_mainpid] == [(("BARRIER=1",), 1)]


def test_the_status_tells_what_moved_what_is_old_and_what_stays_and_why(tmp_path: Path) -> None:
    moving, renamed, staying = free_port(), free_port(), free_port()
    with Echo() as echo, NotifySocket(tmp_path) as notify:

        def body(name: str) -> str:
            return (
                listen(moving, server=echo.port, name="t")
                + listen(renamed, server=echo.port, name=name)
                + listen(staying, server=echo.port, name="s", migrate=False)
            )

        with (
            Daemon(tmp_path, body("u"), env=notify.environment) as daemon,
            conversations(*[moving] * 4, *[renamed] * 3, *[staying] * 2) as held,
        ):
            old = daemon.pid
            daemon.write(daemon.text(body("other")))
            assert daemon.reload().returncode == 0
            told = poll_until(
                lambda: next((text for text in notify.statuses if "moved here" in text), None), 10, "a status"
            )
            assert told and told.startswith("generation 2, 3 listeners, 9 sessions, servers 3/3 up, ")
            assert "7 moved here by the last reload, 3 of proxies that are no longer configured, " in told
            assert "1 older generation draining 2 (2: option migrate is off)" in told
            rows = [re.split(r" {2,}", line) for line in daemon.ask("show proc").splitlines()]
            master = {row[0]: row for row in rows if row[1:2] == ["master"]}
            assert master[str(daemon.pid)][5:] == ["2", "7", "7"]
            assert master[str(old)][5:] == ["1", "2", "7", "2: option migrate is off"]
            for each in held:
                each.finish()
            wait_gone(old)
            poll_until(lambda: "draining" not in notify.statuses[-1], 10, "nobody drains")
            poll_until(lambda: "no longer configured" not in notify.statuses[-1], 10, "nobody is of an old proxy")


def test_row_6_a_refused_reload_ends_with_ready_from_the_old_one(tmp_path: Path) -> None:
    port = free_port()
    with (
        Echo() as echo,
        NotifySocket(tmp_path) as notify,
        Daemon(tmp_path, listen(port, server=echo.port), workers=1, env=notify.environment) as daemon,
    ):
        main = daemon.pid
        good = daemon.file.read_text()
        refused = [(main, ("RELOADING", "MONOTONIC_USEC")), (main, ("READY",))]
        # Before anything was passed, while it prepares, and when it was about to take over.
        for place in ("", "successor.offer", "successor.accept"):
            start = len(notify.datagrams)
            if place:
                daemon.fault(place, signal.SIGKILL)
            else:
                daemon.write(good + "bogus = 1\n")
            told = len(notify.statuses)
            assert daemon.reload().returncode == 1
            daemon.write(good)
            # Whoever is answered may look at once.
            notify.settle()
            assert heard(notify, start) == refused
            assert "LAST RELOAD REFUSED" in notify.statuses[-1] and len(notify.statuses) > told
        assert daemon.reload().returncode == 0
        notify.settle()
        assert "LAST RELOAD REFUSED" not in notify.statuses[-1]


def test_row_5_only_the_newest_generation_speaks_of_those_before_it(tmp_path: Path) -> None:
    """Three generations, a descriptor store, a watchdog: once replaced, a process says nothing but its barrier."""
    port = free_port()
    environment = {"WATCHDOG_USEC": "300000", "FDSTORE": "1000"}
    with (
        Echo() as echo,
        NotifySocket(tmp_path) as notify,
        Daemon(
            tmp_path,
            listen(port, server=echo.port, migrate=False),
            workers=1,
            env={**notify.environment, **environment},
        ) as daemon,
        Conversation(port) as first,
    ):
        first.say()
        pids = [daemon.pid]
        assert daemon.reload().returncode == 0
        pids.append(daemon.pid)
        with Conversation(port) as second:
            second.say()
            assert daemon.reload().returncode == 0
            newest = daemon.pid
            pids.append(newest)
            notify.wait("WATCHDOG=1", newest)
            first.finish()
            wait_gone(pids[0])
            # The totals of the first are in another's table now, which need not be kept any more.
            notify.wait("FDNAME=hitlessd.table-1", newest)
            second.finish()
            wait_gone(pids[1])
            notify.wait("FDNAME=hitlessd.table-2", newest)
        datagrams = notify.datagrams
        for old, new in pairwise(pids):
            announced = datagrams.index(Datagram(old, ("READY=1", f"MAINPID={new}"), 0))
            later = [each.lines for each in datagrams[announced + 1 :] if each.pid == old]
            assert later == [("BARRIER=1",)]


def test_the_watchdog_is_fed_while_finishing(tmp_path: Path) -> None:
    port = free_port()
    with (
        Echo() as echo,
        NotifySocket(tmp_path) as notify,
        Daemon(
            tmp_path,
            listen(port, server=echo.port),
            workers=1,
            env={**notify.environment, "WATCHDOG_USEC": "300000"},
        ) as daemon,
        Conversation(port) as conversation,
    ):
        conversation.say()
        main = daemon.pid
        daemon.process.signal(signal.SIGUSR1)
        daemon.wait_log("finishing")
        start = len(notify.datagrams)
        notify.wait("WATCHDOG=1", main, start)
        conversation.finish()
        # Replaced or finished: nothing that systemd should start again.
        assert daemon.process.wait() == 79
        assert main_lines(notify.datagrams, main)[-1] == "BARRIER=1"


def test_the_main_process_that_finishes_waits_for_generations_that_drain(tmp_path: Path) -> None:
    """For a service manager the end of the main process is the end of all."""
    port = free_port()
    with (
        Echo() as echo,
        NotifySocket(tmp_path) as notify,
        Daemon(tmp_path, listen(port, server=echo.port, migrate=False), workers=1, env=notify.environment) as daemon,
        Conversation(port) as held,
    ):
        held.say()
        old = daemon.pid
        assert daemon.reload().returncode == 0
        new = daemon.pid
        start = len(notify.datagrams)
        os.kill(new, signal.SIGUSR1)
        daemon.wait_log("generation 2 has drained")
        held.finish()
        for pid in (old, new):
            wait_gone(pid)
        assert heard(notify, start) == [(old, ("BARRIER",)), (new, ("BARRIER",))]
