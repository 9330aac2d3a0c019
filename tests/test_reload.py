"""What a reload keeps: connections, counters, callers, prompts, and the process that was asked by a signal."""

from __future__ import annotations

import csv
import os
import signal
import socket
import subprocess
from pathlib import Path

import pytest

from tests.support.accepting import generations_accepting
from tests.support.daemon import Daemon
from tests.support.echo import Echo, exchange
from tests.support.processes import ROOT, alive, end, free_port, poll_until, python_module, stat_fields, wait_gone
from tests.support.visitors import Conversation, Visitors, conversations, listen


def generation(daemon: Daemon) -> int:
    return int(daemon.info()["Generation"])


def draining(daemon: Daemon) -> list[int]:
    """The main processes that `show proc` lists as old."""
    old = daemon.ask("show proc").partition("# old workers\n")[2].partition("# programs")[0]
    return [int(line.split()[0]) for line in old.splitlines() if line.split()[1] == "master"]


def totals(daemon: Daemon) -> dict[str, int]:
    """Connections ever, of the process and of each row of `show stat`."""
    text = daemon.ask("show stat").removeprefix("# ").strip()
    rows = csv.DictReader(text.splitlines())
    result = {f"{row['pxname']}/{row['svname']}": int(row["stot"]) for row in rows}
    result["process"] = int(daemon.info()["CumConns"])
    return result


def stopped(daemon: Daemon) -> int:
    """The pid of the successor that a fault has put to sleep."""

    def find() -> int:
        for pid in daemon.processes():
            if stat_fields(pid)[0] == "T":
                return pid
        return 0

    poll_until(lambda: not daemon.faults.exists(), 15, "the fault strikes")
    return poll_until(find, 15, "a stopped process")


def test_established_connections_move_and_the_old_generation_leaves(tmp_path: Path) -> None:
    port = free_port()
    with Echo() as echo, Daemon(tmp_path, listen(port, server=echo.port)) as daemon, Visitors(port) as visitors:
        first = daemon.pid
        with conversations(*[port] * 10) as early:
            assert daemon.reload().returncode == 0
            wait_gone(first)
            second = daemon.pid
            with conversations(*[port] * 10) as late:
                assert daemon.reload().returncode == 0
                visitors.more()
                wait_gone(second)
                assert draining(daemon) == []
                poll_until(lambda: len(daemon.processes()) == 3, 10, "one main process and two workers")
                assert int(daemon.info()["CurrConns"]) >= 20
                for each in (*early, *late):
                    each.say()
                    each.finish()


def test_connections_that_may_not_move_are_served_to_the_end_where_they_are(tmp_path: Path) -> None:
    port = free_port()
    with (
        Echo() as echo,
        Daemon(tmp_path, listen(port, server=echo.port) + "no option migrate\n") as daemon,
        Visitors(port) as visitors,
    ):
        first = daemon.pid
        with conversations(*[port] * 10) as early:
            assert daemon.reload().returncode == 0
            second = daemon.pid
            with conversations(*[port] * 10) as late:
                assert daemon.reload().returncode == 0
                visitors.more()
                assert draining(daemon) == [second, first]
                assert "10: option migrate is off" in daemon.ask("show proc")
                assert generations_accepting(daemon.processes(), port) == {daemon.pid}
                for each in (*early, *late):
                    each.say()
                # The older one leaves when it is done, the other stays.
                for each in early:
                    each.finish()
                wait_gone(first)
                poll_until(lambda: draining(daemon) == [second], 10, "only the second drains")
                for each in late:
                    each.say()
                    each.finish()
        wait_gone(second)
        poll_until(lambda: not draining(daemon), 10, "nobody drains")
        assert len(daemon.processes()) == 3  # main and two workers


def test_counters_never_go_back(tmp_path: Path) -> None:
    port = free_port()
    with Echo() as echo, Daemon(tmp_path, listen(port, server=echo.port)) as daemon:
        before = totals(daemon)
        expected = 0
        held: list[Conversation] = []
        for _ in range(4):
            for _ in range(5):
                assert exchange(port) == b"hello"
            held.append(Conversation(port))
            held[-1].say()
            expected += 6
            assert daemon.reload().returncode == 0
            now = totals(daemon)
            assert all(now[name] >= before[name] for name in before), (before, now)
            before = now
            if len(held) == 3:
                # The middle generation ends first, the totals of all go on.
                held.pop(1).finish()
        for conversation in held:
            conversation.finish()
        poll_until(lambda: not draining(daemon), 10, "nobody drains")
        assert totals(daemon) == dict.fromkeys(("process", "t/FRONTEND", "t/s", "t/BACKEND"), expected)
        poll_until(lambda: daemon.info()["CurrConns"] == "0", 10, "all have ended")


def test_a_proxy_that_comes_back_counts_on(tmp_path: Path) -> None:
    one, other = free_port(), free_port()
    with Echo() as echo:
        both = listen(one, server=echo.port) + listen(other, server=echo.port, name="u")
        with Daemon(tmp_path, both, workers=1) as daemon:
            assert exchange(other) == b"hello"
            for text in (listen(one, server=echo.port), both):
                daemon.write(daemon.text(text))
                old = daemon.pid
                assert daemon.reload().returncode == 0
                wait_gone(old)
            assert exchange(other) == b"hello"
            poll_until(lambda: totals(daemon)["u/FRONTEND"] == 2, 10, "the count goes on")


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGUSR2], ids=lambda number: number.name)
def test_a_signal_reloads_without_an_answer(number: signal.Signals, tmp_path: Path) -> None:
    port, added = free_port(), free_port()
    with Echo() as echo, Daemon(tmp_path, listen(port, server=echo.port), workers=1) as daemon:
        daemon.write(daemon.text(listen(port, added, server=echo.port)))
        os.kill(daemon.pid, number)
        daemon.wait_log("reload 1 done")
        assert generation(daemon) == 2
        assert exchange(added) == b"hello"


def test_signals_during_a_reload_lead_to_exactly_one_more(tmp_path: Path) -> None:
    port, added = free_port(), free_port()
    with Echo() as echo, Daemon(tmp_path, listen(port, server=echo.port), workers=1) as daemon:
        main = daemon.pid
        daemon.fault("successor.offer", signal.SIGSTOP)
        os.kill(main, signal.SIGHUP)
        successor = stopped(daemon)
        # The running reload has read the file already.
        daemon.write(daemon.text(listen(port, added, server=echo.port)))
        for number in (signal.SIGHUP, signal.SIGUSR2, signal.SIGHUP):
            os.kill(main, number)
            # Seen by main before the next one; it answers what comes after.
            daemon.ask("show version")
        os.kill(successor, signal.SIGCONT)
        daemon.wait_log("reload 2 done")
        assert exchange(added) == b"hello"
        assert daemon.reload().returncode == 0
        assert (generation(daemon), daemon.info()["LastReload"]) == (4, "3 success")


def test_an_older_generation_ends_while_it_is_passed_on(tmp_path: Path) -> None:
    port = free_port()
    with Echo() as echo:
        text = listen(port, server=echo.port) + "no option migrate\n"
        with Daemon(tmp_path, text, workers=1) as daemon, Conversation(port) as conversation:
            conversation.say()
            first = daemon.pid
            assert daemon.reload().returncode == 0
            assert draining(daemon) == [first]
            daemon.fault("successor.offer", signal.SIGSTOP)
            os.kill(daemon.pid, signal.SIGHUP)
            successor = stopped(daemon)
            conversation.finish()
            wait_gone(first)
            poll_until(lambda: draining(daemon) == [], 10, "main knows")
            os.kill(successor, signal.SIGCONT)
            daemon.wait_log("reload 2 done")
            poll_until(lambda: draining(daemon) == [], 10, "all older generations are gone")
            assert exchange(port) == b"hello"
            assert totals(daemon)["t/FRONTEND"] == 2


def test_callers_and_prompts_move_to_the_successor(tmp_path: Path) -> None:
    port = free_port()
    with Echo() as echo, Daemon(tmp_path, listen(port, server=echo.port), workers=1) as daemon:
        old = daemon.pid
        with socket.socket(socket.AF_UNIX) as prompt, socket.socket(socket.AF_UNIX) as caller:
            for client in (prompt, caller):
                client.settimeout(15)
                client.connect(str(daemon.socket))
            prompt.sendall(b"prompt\n")
            assert prompt.recv(100) == b"\n> "
            caller.sendall(b"reload\n")
            answer = b""
            while piece := caller.recv(4096):
                answer += piece
            assert answer.startswith(b"Success=1\n--\ngeneration 2 (pid "), answer
            wait_gone(old)
            prompt.sendall(b"show version\n")
            assert prompt.recv(100).endswith(b"\n> ")
            prompt.sendall(b"quit\n")
            assert prompt.recv(100) == b""


def test_callers_come_back_when_the_reload_fails_at_the_last_moment(tmp_path: Path) -> None:
    port = free_port()
    with Echo() as echo, Daemon(tmp_path, listen(port, server=echo.port), workers=1) as daemon:
        with socket.socket(socket.AF_UNIX) as prompt:
            prompt.settimeout(15)
            prompt.connect(str(daemon.socket))
            prompt.sendall(b"prompt\n")
            assert prompt.recv(100) == b"\n> "
            # The successor dies with the clients in its hands.
            daemon.fault("successor.commit", signal.SIGKILL)
            result = daemon.reload()
            assert result.returncode == 1
            assert "the successor went away" in result.stderr
            prompt.sendall(b"show version\n")
            assert prompt.recv(100).endswith(b"\n> ")
        assert exchange(port) == b"hello"
        assert generation(daemon) == 1


def test_a_path_changes_its_use(tmp_path: Path) -> None:
    """What was a frontend's becomes the runtime API's and the other way round, and a refused reload changes neither."""
    one, other = tmp_path / "one.sock", tmp_path / "other.sock"
    port = free_port()
    with Echo() as echo, Daemon(tmp_path, listen(port, server=echo.port), workers=1) as daemon:

        def text(runtime: Path, frontend: Path, more: str = "") -> str:
            now, daemon.socket = daemon.socket, runtime
            text = daemon.text(listen(f"unix@{frontend}", server=echo.port) + more)
            daemon.socket = now
            return text

        daemon.write(text(one, other))
        assert daemon.reload().returncode == 0
        daemon.socket = one
        with Conversation(str(other)) as conversation:
            conversation.say()
            daemon.write(text(other, one, listen("203.0.113.1:80", server=echo.port, name="u")))
            refused = daemon.reload()
            assert (refused.returncode, "203.0.113.1:80" in refused.stderr) == (1, True), refused.stderr
            with Conversation(str(other)) as another:
                another.finish()
            daemon.write(text(other, one))
            assert daemon.reload().returncode == 0
            daemon.socket = other
            assert generation(daemon) == 3
            with Conversation(str(one)) as another:
                another.finish()
            conversation.finish()


def test_in_the_background(tmp_path: Path) -> None:
    """`-D` returns when the daemon serves, and its successors know that this is done."""
    port = free_port()
    with Echo() as echo:
        daemon = Daemon(tmp_path, listen(port, server=echo.port), workers=1)
        try:
            daemon.start("-D")
            assert daemon.process.wait() == 0
            assert exchange(port) == b"hello"
            assert os.getsid(daemon.pid) == daemon.pid
            assert daemon.reload().returncode == 0
            assert generation(daemon) == 2
            assert exchange(port) == b"hello"
        finally:
            daemon.end_all()


def test_callers_that_were_stopped_or_left_do_no_harm(tmp_path: Path) -> None:
    port = free_port()
    with Echo() as echo, Daemon(tmp_path, listen(port, server=echo.port), workers=1) as daemon:
        daemon.fault("successor.offer", signal.SIGSTOP)
        caller = subprocess.Popen(
            python_module("hitlessd.ctl", "-s", daemon.socket, "reload"), cwd=ROOT, stderr=subprocess.DEVNULL
        )
        successor = stopped(daemon)
        end(caller.pid, first=signal.SIGKILL)
        caller.wait()
        os.kill(successor, signal.SIGCONT)
        daemon.wait_log("reload 1 done")
        assert exchange(port) == b"hello"
        assert alive(successor)
