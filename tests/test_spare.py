"""The process that waits to be the successor: what it is spared, when it is of no use, and how it ends."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.daemon import Daemon
from tests.support.echo import Echo, exchange
from tests.support.processes import ROOT, end, free_port, poll_until, stat_fields, wait_gone
from tests.support.visitors import Conversation, listen


def spare_of(daemon: Daemon) -> int:
    """The only one."""
    poll_until(lambda: len(daemon.spares()) == 1, 10, "one spare")
    return daemon.spares()[0]


def started(daemon: Daemon, count: int) -> list[str]:
    """How the first `count` successors came to be, as the log says."""

    def told() -> list[str]:
        found = [line.partition(": started process ")[2] for line in daemon.log.splitlines()]
        return [each.partition(" | ")[0] for each in found if each]

    poll_until(lambda: len(told()) >= count, 10, f"{count} successors in the log")
    return told()


def struck(pid: int) -> bool:
    """Whether it is dead, or stopped."""
    try:
        return stat_fields(pid)[0] in "TZX"
    except (FileNotFoundError, ProcessLookupError):
        return True


def test_each_spare_is_the_next_main_process(tmp_path: Path) -> None:
    port = free_port()
    with Echo() as echo, Daemon(tmp_path, listen(port, server=echo.port)) as daemon, Conversation(port) as talk:
        for _ in range(4):
            spare, main = spare_of(daemon), daemon.pid
            assert Path(f"/proc/{main}/comm").read_text() != Path(f"/proc/{spare}/comm").read_text()
            assert stat_fields(spare)[1] != str(main)  # it is PID 1's, or systemd would complain of it as main process
            assert daemon.reload().returncode == 0
            assert daemon.pid == spare
            wait_gone(main)
            assert len(daemon.processes()) == 3
            talk.say()
        ways = started(daemon, 4)
        assert len(ways) == 4 and all(how.isdecimal() for how in ways)
        assert int(daemon.info()["Generation"]) == 5
        last, main = spare_of(daemon), daemon.pid
        end(main)
        wait_gone(last)


def test_it_holds_nothing_but_its_line(tmp_path: Path) -> None:
    port = free_port()
    with Echo() as echo, Daemon(tmp_path, listen(port, server=echo.port)) as daemon:
        for _ in range(3):
            spare = spare_of(daemon)

            def held(pid: int = spare) -> bool:
                return len(os.listdir(f"/proc/{pid}/fd")) == 4

            poll_until(held, 10, "three standard streams and the line")
            assert daemon.reload().returncode == 0


def test_it_ends_with_a_main_process_that_is_killed(tmp_path: Path) -> None:
    with Echo() as echo, Daemon(tmp_path, listen(free_port(), server=echo.port)) as daemon:
        assert daemon.reload().returncode == 0
        spare = spare_of(daemon)
        os.kill(daemon.pid, signal.SIGKILL)
        wait_gone(spare)


def test_a_refused_reload_leaves_a_spare(tmp_path: Path) -> None:
    port = free_port()
    with Echo() as echo, Daemon(tmp_path, listen(port, server=echo.port)) as daemon:
        main, spares = daemon.pid, set()
        good = daemon.file.read_text()
        for _ in range(3):
            spares.add(spare_of(daemon))
            daemon.write(good + "nonsense = 1\n")
            assert daemon.reload().returncode == 1
            assert daemon.pid == main
        assert len(spares) == 3
        daemon.write(good)
        last = spare_of(daemon)
        assert daemon.reload().returncode == 0
        assert daemon.pid == last
        assert exchange(port) == b"hello"


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_without_it_the_program_is_executed(tmp_path: Path, number: signal.Signals) -> None:
    port = free_port()
    with Echo() as echo, Daemon(tmp_path, listen(port, server=echo.port)) as daemon, Conversation(port) as talk:
        spare = spare_of(daemon)
        os.kill(spare, number)
        poll_until(lambda: struck(spare), 10, "it is struck")
        assert daemon.reload().returncode == 0
        wait_gone(spare)
        assert daemon.pid != spare
        talk.say()
        (how,) = started(daemon, 1)
        assert "anew: the spare " in how
        assert daemon.reload().returncode == 0  # it has one of its own
        assert started(daemon, 2)[1].isdecimal()


def test_it_does_what_successors_would_do_again(tmp_path: Path) -> None:
    port = free_port()
    code = (
        "import sys\n"
        "from hitlessd import model\n"
        "from hitlessd.main.spare import prepare\n"
        "before = set(sys.modules)\n"
        "prepare(['hitlessd.runtime'])\n"
        "print(len(set(sys.modules) - before), hasattr(model.SourceFile.__init__, 'compiled'))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=30, check=True
    )
    added, waits = done.stdout.split()
    assert int(added) > 3
    assert waits == "False"
    # Nor does it end by that, which a reload would make up for.
    with Echo() as echo, Daemon(tmp_path, listen(port, server=echo.port), more="log = stderr debug") as daemon:
        daemon.wait_log("all modules are loaded")
        assert daemon.reload().returncode == 0
        assert started(daemon, 1)[-1].isdecimal()


def test_signals_that_are_for_main_do_not_end_it(tmp_path: Path) -> None:
    with Echo() as echo, Daemon(tmp_path, listen(free_port(), server=echo.port)) as daemon:
        spare = spare_of(daemon)

        def ignores() -> bool:
            status = Path(f"/proc/{spare}/status").read_text()
            ignored = int(status.partition("SigIgn:\t")[2].split()[0], 16)
            return all(ignored >> (number - 1) & 1 for number in (signal.SIGHUP, signal.SIGINT, signal.SIGUSR1))

        poll_until(ignores, 10, "it ignores them")
        assert daemon.reload().returncode == 0
        assert daemon.pid == spare
        os.kill(spare, signal.SIGHUP)  # it is main now
        poll_until(lambda: daemon.pid != spare, 10, "it reloads")


def test_an_upgrade_is_executed(tmp_path: Path) -> None:
    lib = tmp_path / "lib"
    shutil.copytree(ROOT / "hitlessd", lib / "hitlessd", ignore=shutil.ignore_patterns("__pycache__"))
    port = free_port()
    environment = {"PYTHONPATH": str(lib), "PYTHONSAFEPATH": "1"}
    with Echo() as echo, Daemon(tmp_path, listen(port, server=echo.port), env=environment) as daemon:
        assert daemon.reload().returncode == 0
        module = lib / "hitlessd" / "balance.py"
        module.write_text(module.read_text() + "# another version\n")
        for number, how in enumerate((f"anew: {module} has changed", "", ""), 2):
            spare = spare_of(daemon)
            assert daemon.reload().returncode == 0
            assert (daemon.pid != spare) == bool(how)
            assert started(daemon, number)[-1] == f"{daemon.pid} {how}".strip()
        assert exchange(port) == b"hello"


def test_what_an_operator_does_to_the_main_process_is_passed_on(tmp_path: Path) -> None:
    with Echo() as echo, Daemon(tmp_path, listen(free_port(), server=echo.port)) as daemon:
        spare = spare_of(daemon)
        resource.prlimit(daemon.pid, resource.RLIMIT_CORE, (0, 4096))
        assert daemon.reload().returncode == 0
        assert daemon.pid != spare
        assert resource.prlimit(daemon.pid, resource.RLIMIT_CORE) == (0, 4096)
        wait_gone(spare)


def test_a_command_line_for_once_is_not_repeated(tmp_path: Path) -> None:
    """Or ps(1) would show it of all generations to come."""
    with Echo() as echo:
        text = listen(free_port(), server=echo.port)
        with Daemon(tmp_path, text, arguments=("-sf", "4194303")) as daemon:
            assert daemon.spares() == []
            for _ in range(2):
                assert daemon.reload().returncode == 0
                assert b"-sf" not in Path(f"/proc/{spare_of(daemon)}/cmdline").read_bytes()
            assert started(daemon, 2)[-1].isdecimal()
            assert "HITLESSD_TAKEOVER" not in daemon.ask("show env")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_who_leaves_takes_it_along_at_once(tmp_path: Path, number: signal.Signals) -> None:
    """Even if it cannot hear: systemd would have to kill what is left of the unit, and say so in the journal."""
    port = free_port()
    with Echo() as echo, Daemon(tmp_path, listen(port, server=echo.port)) as daemon, Conversation(port) as talk:
        main, spare = daemon.pid, spare_of(daemon)
        os.kill(spare, signal.SIGSTOP)
        os.kill(main, number)
        wait_gone(spare)
        if number == signal.SIGUSR1:
            talk.say()  # it drains
        else:
            wait_gone(main)


def test_without_descriptors_a_reload_is_refused_in_words(tmp_path: Path) -> None:
    port = free_port()
    with (
        Echo() as echo,
        Daemon(tmp_path, listen(port, server=echo.port), more="log = stderr debug") as daemon,
        Conversation(port) as talk,
    ):
        # Until then main opens files now and then, which would be among those that are counted.
        daemon.wait_log("all modules are loaded")
        spare = spare_of(daemon)
        limit = resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE)
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(daemon.socket))
            client.sendall(b"prompt\n")
            client.recv(4096)
            held = len(os.listdir(f"/proc/{daemon.pid}/fd"))
            resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE, (held, limit[1]))
            client.sendall(b"reload\n")
            answer = b""
            while b"cannot start the successor: Too many open files" not in answer:
                piece = client.recv(4096)
                assert piece, answer
                answer += piece
        wait_gone(spare)
        resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE, limit)
        assert daemon.reload().returncode == 0
        assert daemon.reload().returncode == 0
        assert started(daemon, 2)[-1].isdecimal()
        talk.say()
