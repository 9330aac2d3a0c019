"""What signals do to the main process and to its workers."""

from __future__ import annotations

import contextlib
import os
import re
import signal
from datetime import datetime
from itertools import pairwise
from pathlib import Path

import pytest

from tests.support.accepting import accepting, listening
from tests.support.daemon import Daemon
from tests.support.echo import Echo, exchange
from tests.support.processes import alive, free_port, poll_until, stat_fields, wait_gone
from tests.support.visitors import Conversation, conversations, listen


def workers(daemon: Daemon) -> list[int]:
    """The workers of the current generation, as `show proc` lists them."""
    lines = daemon.ask("show proc").partition("# old workers")[0].splitlines()
    return [int(line.split()[0]) for line in lines if " worker " in line and int(line.split()[0])]


def mains(daemon: Daemon) -> int:
    """How many main processes there are."""
    parents = {}
    for pid in daemon.processes():
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            parents[pid] = int(stat_fields(pid)[1])
    return sum(parent not in parents for parent in parents.values())


def wait_replaced(daemon: Daemon, pid: int, count: int) -> None:
    """Wait until there are `count` workers, and that one is not among them."""
    poll_until(lambda: pid not in workers(daemon) and len(workers(daemon)) == count, 15, f"worker {pid} is replaced")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
def test_a_stop_ends_everything_that_drains_too(number: signal.Signals, tmp_path: Path) -> None:
    port, path = free_port(), tmp_path / "front.sock"
    with (
        Echo() as echo,
        Daemon(tmp_path, listen(port, f"unix@{path}", server=echo.port, migrate=False)) as daemon,
        conversations(*[port] * 5, str(path)) as early,
    ):
        assert daemon.reload().returncode == 0
        with conversations(*[port] * 5, str(path)) as late:
            assert daemon.reload().returncode == 0
            # Two that drain and the one that serves; a worker to which nobody came leaves.
            assert mains(daemon) == 3
            main = daemon.pid
            os.kill(main, number)
            wait_gone(main)
            assert daemon.processes() == []
            for each in (*early, *late):
                assert each.closed()
        assert not path.exists()
        assert not daemon.socket.exists()
        assert not daemon.pidfile.exists()
        with pytest.raises(ConnectionRefusedError):
            Conversation(port)


def test_the_exit_status_of_a_stop_is_0(tmp_path: Path) -> None:
    port = free_port()
    with Echo() as echo, Daemon(tmp_path, listen(port, server=echo.port)) as daemon:
        # Also with a worker that does not hear: it is killed after 2 s.
        os.kill(workers(daemon)[0], signal.SIGSTOP)
        daemon.process.signal(signal.SIGTERM)
        assert daemon.process.wait() == 0
        assert daemon.processes() == []


def test_a_stop_during_a_reload_ends_both_sides(tmp_path: Path) -> None:
    port = free_port()
    with Echo() as echo, Daemon(tmp_path, listen(port, server=echo.port), workers=1) as daemon:
        daemon.fault("successor.offer", signal.SIGSTOP)
        daemon.process.signal(signal.SIGHUP)
        poll_until(lambda: not daemon.faults.exists(), 15, "the fault strikes")
        daemon.process.signal(signal.SIGTERM)
        assert daemon.process.wait() == 0
        assert daemon.processes() == []
        assert not daemon.pidfile.exists()


def test_sigusr1_serves_to_the_end_and_refuses_the_new(tmp_path: Path) -> None:
    port, path = free_port(), tmp_path / "front.sock"
    with (
        Echo() as echo,
        Daemon(tmp_path, listen(port, f"unix@{path}", server=echo.port)) as daemon,
        conversations(*[port] * 5, str(path)) as held,
    ):
        daemon.process.signal(signal.SIGUSR1)
        poll_until(lambda: not daemon.pidfile.exists(), 10, "the pidfile goes")
        poll_until(lambda: not listening(port), 10, "nobody listens")
        for address in (port, str(path)):
            with pytest.raises((ConnectionRefusedError, FileNotFoundError)):
                Conversation(address)
        # Another one may start meanwhile.
        with Daemon(tmp_path, listen(port, server=echo.port), workers=1, name="next") as successor:
            assert exchange(port) == b"hello"
            for each in held:
                each.say()
                each.finish()
            assert daemon.process.wait() == 0
            assert exchange(port) == b"hello"
            assert successor.pidfile.exists()
        assert not path.exists()
        assert daemon.processes() == []


def test_sigterm_ends_a_finishing_process(tmp_path: Path) -> None:
    port = free_port()
    with (
        Echo() as echo,
        Daemon(tmp_path, listen(port, server=echo.port)) as daemon,
        conversations(port, port) as held,
    ):
        daemon.process.signal(signal.SIGUSR1)
        daemon.wait_log("finishing")
        for each in held:
            each.say()
        daemon.process.signal(signal.SIGTERM)
        assert daemon.process.wait() == 0
        for each in held:
            assert each.closed()


def test_sigttou_leaves_connections_in_the_backlog_until_sigttin(tmp_path: Path) -> None:
    port = free_port()
    with Echo() as echo, Daemon(tmp_path, listen(port, server=echo.port)) as daemon, Conversation(port) as held:
        held.say()
        before = echo.accepted
        daemon.process.signal(signal.SIGTTOU)
        poll_until(lambda: not accepting(daemon.processes(), port), 10, "nobody accepts")
        with contextlib.ExitStack() as stack:
            waiting = [stack.enter_context(Conversation(port)) for _ in range(50)]
            for each in waiting:
                each.sock.sendall(b"patience")
            held.say()
            # A worker that dies while paused is replaced by one that is.
            victim = workers(daemon)[0]
            os.kill(victim, signal.SIGKILL)
            wait_replaced(daemon, victim, 2)
            assert echo.accepted == before
            daemon.process.signal(signal.SIGTTIN)
            for each in waiting:
                each.hear(b"patience")
                each.finish()


def test_hard_stop_after_closes_what_drains(tmp_path: Path) -> None:
    port = free_port()
    with (
        Echo() as echo,
        Daemon(
            tmp_path, listen(port, server=echo.port, migrate=False), workers=1, more="hard-stop-after = 3s"
        ) as daemon,
        Conversation(port) as held,
    ):
        held.say()
        old = daemon.pid
        assert daemon.reload().returncode == 0
        held.say()
        assert held.closed()
        daemon.wait_log("hard-stop-after has run out: closing 1 connections")
        wait_gone(old)
        with Conversation(port) as another:
            another.say()
            daemon.process.wait()  # the first generation was our child
            os.kill(daemon.pid, signal.SIGUSR1)
            assert another.closed()
        poll_until(lambda: not daemon.processes(), 10, "all have gone")


def test_a_worker_that_dies_loses_no_connection_that_waits(tmp_path: Path) -> None:
    port = free_port()
    with Echo() as echo, Daemon(tmp_path, listen(port, server=echo.port)) as daemon:
        for _ in range(3):
            victim = workers(daemon)[0]
            # Asleep it takes wake-ups that it does nothing with.
            os.kill(victim, signal.SIGSTOP)
            with contextlib.ExitStack() as stack:
                clients = [stack.enter_context(Conversation(port)) for _ in range(100)]
                os.kill(victim, signal.SIGKILL)
                for each in clients:
                    each.finish()
            wait_replaced(daemon, victim, 2)
        assert exchange(port) == b"hello"


def test_the_only_worker_dies_and_who_waits_is_served_by_the_next(tmp_path: Path) -> None:
    port = free_port()
    with Echo() as echo, Daemon(tmp_path, listen(port, server=echo.port), workers=1) as daemon:
        (victim,) = workers(daemon)
        os.kill(victim, signal.SIGSTOP)
        with contextlib.ExitStack() as stack:
            clients = [stack.enter_context(Conversation(port)) for _ in range(100)]
            os.kill(victim, signal.SIGKILL)
            for each in clients:
                each.finish()
        daemon.wait_log(f"worker 0 (pid {victim}) was killed by SIGKILL")
        poll_until(lambda: daemon.info()["CurrConns"] == "0", 10, "all have ended")


def test_a_worker_that_sleeps_is_replaced(tmp_path: Path) -> None:
    port = free_port()
    with Echo() as echo, Daemon(tmp_path, listen(port, server=echo.port), workers=1) as daemon:
        (victim,) = workers(daemon)
        os.kill(victim, signal.SIGSTOP)
        with Conversation(port) as client:
            client.say()  # waits in the backlog until then
        daemon.wait_log(f"worker 0 (pid {victim}) does not answer: killing it")
        assert not alive(victim)


def test_a_worker_that_dies_again_and_again_is_replaced_ever_more_slowly(tmp_path: Path) -> None:
    port = free_port()
    with Echo() as echo, Daemon(tmp_path, listen(port, server=echo.port), workers=1) as daemon:
        victims: list[int] = []
        for _ in range(5):
            if victims:
                wait_replaced(daemon, victims[-1], 1)
            victims += workers(daemon)
            os.kill(victims[-1], signal.SIGKILL)
            daemon.wait_log(f"(pid {victims[-1]}) was killed")
        assert exchange(port) == b"hello"
        stamps = [
            datetime.fromisoformat(match[0])
            for line in daemon.log.splitlines()
            if "was killed by SIGKILL" in line and (match := re.match(r"\S+", line))
        ]
        gaps = [(later - earlier).total_seconds() for earlier, later in pairwise(stamps)]
        # The first one at once, then after 0.05, 0.1, 0.2 s at least (a stamp is cut to milliseconds).
        assert [gap >= least for gap, least in zip(gaps, (0.0, 0.049, 0.099, 0.199), strict=True)] == [True] * 4


def test_workers_end_with_their_main_process(tmp_path: Path) -> None:
    port = free_port()
    with Echo() as echo, Daemon(tmp_path, listen(port, server=echo.port)) as daemon, Conversation(port) as held:
        held.say()
        pids = daemon.processes()
        # Even one that is asleep.
        os.kill(workers(daemon)[0], signal.SIGSTOP)
        daemon.process.signal(signal.SIGKILL)
        for pid in pids:
            poll_until(lambda pid=pid: not alive(pid), 10, f"process {pid} has gone")  # type: ignore[misc]
        assert held.closed()
        # What is left lying about does not hinder the next start.
        assert daemon.socket.exists()
        with Daemon(tmp_path, listen(port, server=echo.port)) as successor:
            assert exchange(port) == b"hello"
            assert successor.pid not in pids


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM], ids=lambda number: number.name)
def test_a_signal_amid_the_commit_does_not_call_the_successor_off(number: signal.Signals, tmp_path: Path) -> None:
    """As `-sf` and `-st` send it: whoever is replaced ends, and whoever replaces it serves."""
    port = free_port()
    with (
        Echo() as echo,
        Daemon(tmp_path, listen(port, server=echo.port), workers=1) as daemon,
        Conversation(port) as held,
    ):
        held.say()
        daemon.fault("successor.commit", signal.SIGSTOP)
        daemon.process.signal(signal.SIGHUP)
        poll_until(lambda: not daemon.faults.exists(), 15, "the fault strikes")
        successor = poll_until(
            lambda: next((pid for pid in daemon.processes() if stat_fields(pid)[0] == "T"), 0), 15, "a stopped process"
        )
        daemon.process.signal(number)
        os.kill(successor, signal.SIGCONT)
        poll_until(lambda: daemon.pid == successor, 15, "the successor serves")
        # It had moved before the old one obeyed.
        held.say()
        held.finish()
        assert daemon.process.wait() == 0
        assert exchange(port) == b"hello"
        assert daemon.socket.exists()
        assert daemon.reload().returncode == 0
