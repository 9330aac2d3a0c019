"""Starts that cannot succeed: one clear line, the right exit status, no traceback, and nothing left behind."""

from __future__ import annotations

import contextlib
import os
import socket
import stat
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.support.daemon import Daemon
from tests.support.echo import Echo, exchange
from tests.support.processes import ROOT, Process, alive, end, free_port, poll_until, python_module
from tests.support.visitors import listen

USAGE, CONFIG = 64, 78


def run(*arguments: str | Path, command: Sequence[str | Path] = ()) -> tuple[int, str]:
    """The exit status of hitlessd and what it says."""
    result = subprocess.run(
        [*command, *python_module("hitlessd", *arguments)], cwd=ROOT, capture_output=True, text=True, timeout=30
    )
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    assert "bug in hitlessd" not in result.stderr
    return result.returncode, result.stderr


def running(file: Path) -> list[int]:
    """Processes that were started with this configuration, spares included."""
    found = []
    for entry in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            if os.fsencode(file) in Path("/proc", entry, "cmdline").read_bytes() and alive(int(entry)):
                found.append(int(entry))
    return found


def refused(daemon: Daemon, *arguments: str, command: Sequence[str | Path] = ()) -> str:
    """The one line that a start says which is refused for what this machine is like; nothing of it may be left."""
    before = sorted(os.listdir(daemon.directory))
    status, said = run("-f", daemon.file, "-p", daemon.pidfile, *arguments, command=command)
    assert status == CONFIG, said
    assert len(said.splitlines()) == 1, said
    assert "alert: cannot " in said
    poll_until(lambda: not running(daemon.file), 10, "all of it has gone")
    assert sorted(os.listdir(daemon.directory)) == before
    return said


# The command line


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ([], "cannot start: no configuration; give one with -f"),
        (["-p", "x.pid"], "cannot start: no configuration; give one with -f"),
        (["-f"], "cannot use -f: found nothing after it, expected a file or directory"),
        (["-f", "x", "-x"], "cannot use -x: found nothing after it, expected a runtime socket"),
        (["-f", "x", "-sf", "twelve"], "cannot use -sf: found 'twelve', expected the number of a process"),
        (["-f", "x", "-st", "0"], "cannot use -st: found '0', expected the number of a process"),
        (["-f", "x", "--chekc"], "cannot use '--chekc': it is not an option"),
        (["-f", "x", "-ff"], "cannot use '-ff': it is not an option; did you mean -f?"),
        (["-f", "x", "stray"], "cannot use 'stray': it is not an option"),
        (["-f", "x", "-sf", "99999999999"], "cannot use -sf: found '99999999999', expected the number of a process"),
        (["-f", "x", "-V"], "cannot use '-V': it is not an option; did you mean -v?"),
        (["-f", "x", "-n", "2000"], "cannot use '-n': it is not an option; use `maxconn` in [global]"),
        (["-c", "/dev/null"], "cannot use '/dev/null': it is not an option; did you mean -f /dev/null?"),
        (["reload"], "cannot use 'reload': it is not an option; did you mean hitlessctl reload?"),
        (["-f", "x", "ü\udcff"], "it is not an option"),
    ],
)
def test_a_wrong_command_line(arguments: list[str], problem: str) -> None:
    status, said = run(*arguments)
    assert status == USAGE
    assert problem in said
    assert said.splitlines()[1:] == ["Try 'hitlessd --help'."]


@pytest.mark.parametrize("name", ["none.conf", "none/none.conf", "x" * 5000])
def test_a_configuration_that_cannot_be_read(name: str, tmp_path: Path) -> None:
    status, said = run("-f", tmp_path / name)
    assert status == CONFIG
    assert len(said.splitlines()) == 1
    assert "alert: " in said and "cannot " in said


# Addresses


def test_an_address_that_cannot_be_had(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as stranger:
        port = stranger.getsockname()[1]
        for bind, reason in (
            (f"127.0.0.1:{port}", "another process listens there (`ss -ltnp` or `ss -lxp` shows which)"),
            ("203.0.113.1:8000", "this machine has no such address (`ip address` shows those it has)"),
            ("127.0.0.1:1 interface none0", "there is no interface none0"),
        ):
            daemon = Daemon(tmp_path, listen(free_port(), bind, server=1), workers=1)
            said = refused(daemon)
            assert f"cannot bind {bind.partition(' ')[0]} ({daemon.file}:" in said
            assert reason in said


def test_every_address_that_cannot_be_had_is_named(tmp_path: Path) -> None:
    daemon = Daemon(tmp_path, listen("203.0.113.1:1", "203.0.113.2:1", server=1), workers=1)
    status, said = run("-f", daemon.file)
    assert status == CONFIG
    assert [f"203.0.113.{number}:1" in line for number, line in enumerate(said.splitlines(), 1)] == [True, True]


def test_a_port_that_needs_a_privilege(tmp_path: Path) -> None:
    daemon = Daemon(tmp_path, listen("127.0.0.1:1", server=1), workers=1)
    said = refused(
        daemon, command=("setpriv", "--bounding-set", "-net_bind_service", "--inh-caps", "-net_bind_service")
    )
    assert "ports below 1024 need CAP_NET_BIND_SERVICE, or a .socket unit and `bind = sd@NAME`" in said


@pytest.mark.parametrize("runtime", [False, True], ids=["frontend", "runtime"])
def test_a_path_that_is_something_else_or_somebody_elses(runtime: bool, tmp_path: Path) -> None:
    path = tmp_path / "it"
    daemon = Daemon(tmp_path, listen(free_port(), *([] if runtime else [f"unix@{path}"]), server=1), workers=1)
    if runtime:
        daemon.write(daemon.text(listen(free_port(), server=1)).replace(str(daemon.socket), str(path)))

    path.write_text("precious\n")
    assert f"cannot bind unix@{path}" in refused(daemon)
    assert path.read_text() == "precious\n"

    path.unlink()
    path.mkdir()
    assert "the path exists and is not a socket" in refused(daemon)

    path.rmdir()
    with socket.socket(socket.AF_UNIX) as stranger:
        stranger.bind(str(path))
        stranger.listen()
        inode = path.stat().st_ino
        assert "another process listens there" in refused(daemon)
        # Also when its backlog is full.
        stranger.listen(0)
        with socket.socket(socket.AF_UNIX) as first, socket.socket(socket.AF_UNIX) as second:
            for client in (first, second):
                client.setblocking(False)
                client.connect_ex(str(path))
            assert "another process listens there" in refused(daemon)
        assert path.stat().st_ino == inode

    path.unlink()
    path.symlink_to(tmp_path / "elsewhere")
    assert "the path exists and is not a socket" in refused(daemon)
    assert path.is_symlink()


def test_a_second_start_by_mistake_takes_nothing_away(tmp_path: Path) -> None:
    port, other = free_port(), free_port()
    with Echo() as echo, Daemon(tmp_path, listen(port, server=echo.port), workers=1) as daemon:
        main, inode = daemon.pid, daemon.socket.stat().st_ino
        for body in (listen(port, server=1), listen(other, server=1)):
            # The same port, and another one but the same runtime socket.
            file = tmp_path / "second.conf"
            file.write_text(daemon.text(body))
            status, said = run("-f", file, "-p", daemon.pidfile)
            assert status == CONFIG
            assert "another process listens there" in said
        assert daemon.pid == main
        assert daemon.socket.stat().st_ino == inode
        assert len(daemon.processes()) == 2
        assert exchange(port) == b"hello"
        assert daemon.reload().returncode == 0


def test_a_replacement_that_fails_leaves_the_paths_of_who_serves(tmp_path: Path) -> None:
    """-sf allows to replace unix paths, but only by a process that serves."""
    with Echo() as echo:
        body = f"[listen t]\nbind = 127.0.0.1:{free_port()}\nserver s = 127.0.0.1:{echo.port}\n"
        with Daemon(tmp_path, body, workers=1) as daemon:
            status, said = run("-f", daemon.file, "-sf", "999999")
            assert status == CONFIG
            assert "another process listens there" in said
            assert daemon.info()["Generation"] == "1"


def test_a_directory_that_is_not_there(tmp_path: Path) -> None:
    daemon = Daemon(tmp_path, listen(f"unix@{tmp_path}/none/it", server=1), workers=1)
    assert "there is no such directory" in refused(daemon)


# Limits and files


def test_too_few_descriptors_for_maxconn(tmp_path: Path) -> None:
    daemon = Daemon(tmp_path, listen(free_port(), server=1), workers=1)
    said = refused(daemon, command=("prlimit", "--nofile=1000:1000"))
    assert "cannot serve maxconn 2000: 1 workers with 1 listeners need " in said
    assert "the limit on open files is 1000; raise it (LimitNOFILE= in the unit) or set maxconn to " in said
    said = refused(daemon, command=("prlimit", "--nofile=100:100"))
    assert "cannot serve 1 listeners" in said


def test_a_pidfile_that_cannot_be_written(tmp_path: Path) -> None:
    daemon = Daemon(tmp_path, listen(free_port(), server=1), workers=1)
    assert "No such file or directory" in refused(daemon, "-p", f"{tmp_path}/none/it.pid")
    directory = tmp_path / "directory"
    directory.mkdir()
    assert f"cannot write the pidfile {directory}" in refused(daemon, "-p", str(directory))


def test_a_background_start_that_fails_says_so(tmp_path: Path) -> None:
    daemon = Daemon(tmp_path, listen("203.0.113.1:1", server=1), workers=1)
    status, said = run("-f", daemon.file, "-D")
    assert status == CONFIG
    assert "cannot bind 203.0.113.1:1" in said
    poll_until(lambda: not running(daemon.file), 10, "all of it has gone")


def test_an_output_that_nobody_reads(tmp_path: Path) -> None:
    daemon = Daemon(tmp_path, listen(free_port(), server=1), workers=1)
    for redirection, expected in {
        "| true": (0, ""),
        ">/dev/full": (1, "hitlessd: cannot write to the standard output: No space left on device\n"),
        "2>/dev/full": (0, ""),
        ">&- 2>&- <&-": (0, ""),
    }.items():
        command = ["bash", "-c", f'set -o pipefail; "$@" {redirection}', "bash"]
        result = subprocess.run(
            [*command, *python_module("hitlessd", "-c", "-f", daemon.file)],
            cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, timeout=30, check=False,
        )  # fmt: skip
        assert (result.returncode, result.stderr) == expected


def test_a_start_without_standard_streams(tmp_path: Path) -> None:
    daemon = Daemon(tmp_path, listen(free_port(), server=1), workers=1)
    command = ["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh"]
    start = python_module("hitlessd", "-D", "-f", daemon.file, "-p", daemon.pidfile)
    result = subprocess.run([*command, *start], cwd=ROOT, timeout=30, check=False)
    assert result.returncode == 0
    end(int(daemon.pidfile.read_text()), 5)
    assert not daemon.socket.exists()


def check(daemon: Daemon, *arguments: str) -> tuple[str, str]:
    """What -c says of a valid configuration, and its warnings."""
    result = subprocess.run(
        python_module("hitlessd", "-c", *arguments, "-f", daemon.file),
        cwd=ROOT, capture_output=True, text=True, timeout=30, check=True,
    )  # fmt: skip
    return result.stdout, result.stderr


def test_a_check_opens_nothing(tmp_path: Path) -> None:
    daemon = Daemon(tmp_path, listen(free_port(), f"unix@{tmp_path}/it", "sd@web", server=1), workers=2)
    # 3 x (2 x 2000 and 256 for the pipes of each worker); 2 x (2 listeners of our own, 2 runtime sockets, table, state,
    # and 3 a worker): the socket of a .socket unit takes no entry, the unit's runtime socket does.
    needs = "maxconn 2000 with 2 workers: LimitNOFILE=13536 or more, FileDescriptorStoreMax=26 or more\n"
    assert check(daemon) == ("Configuration file is valid\n" + needs, "")
    assert check(daemon, "-q") == ("", "")
    assert os.listdir(tmp_path) == [daemon.file.name]
    daemon.write("nonsense\n")
    status, said = run("-c", "-f", daemon.file)
    assert status == 1
    assert f"{daemon.file}:1: " in said


def test_a_check_warns_of_what_cannot_be_parked(tmp_path: Path) -> None:
    daemon = Daemon(tmp_path, listen(free_port(), server=1), workers=1)
    limited = ["sh", "-c", 'ulimit -n 6000; exec "$@"', "sh"]
    assert run("-c", "-q", "-f", daemon.file, command=limited) == (
        0,
        "warning: cannot be sure to park more than 872 of maxconn 2000 connections: they and the workers' pipes may"
        " take a third of the limit on open files, which is 6000; raise it to 12768 (LimitNOFILE= in the unit) or set"
        " maxconn to 872 or less\n",
    )


# systemd's sockets

_ACTIVATE = """\
import os, sys
names, fds, command = sys.argv[1], sys.argv[2].split(","), sys.argv[3:]
for number, fd in enumerate(fds, 100):
    os.dup2(int(fd), number)
for number in range(len(fds)):
    os.dup2(100 + number, 3 + number)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS=str(len(fds)), LISTEN_FDNAMES=names)
os.execv(command[0], command)
"""


def activated(daemon: Daemon, sockets: dict[str, socket.socket]) -> Process:
    """Starts as systemd does for a .socket unit with these FileDescriptorName=."""
    fds = [each.fileno() for each in sockets.values()]
    launcher = [sys.executable, "-c", _ACTIVATE, ":".join(sockets), ",".join(map(str, fds))]
    return Process([*launcher, *python_module("hitlessd", "-f", daemon.file)], cwd=ROOT, pass_fds=fds)


def test_a_socket_of_systemds_that_no_bind_wants(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as stray, socket.create_server(("127.0.0.1", 0)) as wanted:
        daemon = Daemon(tmp_path, listen("sd@web", server=1), workers=1)
        with activated(daemon, {"web": wanted, "left-over": stray}) as process:
            assert process.wait() == CONFIG
            (said,) = process.stderr.join()
        assert f"cannot leave 127.0.0.1:{stray.getsockname()[1]} alone" in said
        assert "FileDescriptorName=left-over" in said
        assert "bind = sd@left-over" in said


def test_a_socket_of_systemds_that_is_not_there(tmp_path: Path) -> None:
    daemon = Daemon(tmp_path, listen("sd@web", server=1), workers=1)
    assert "systemd passed no socket of that name; it passed none; is the .socket unit started?" in refused(daemon)
    with socket.create_server(("127.0.0.1", 0)) as other, activated(daemon, {"wbe": other}) as process:
        assert process.wait() == CONFIG
        (said,) = process.stderr.join()
    assert "systemd passed no socket of that name; it passed wbe" in said


def test_what_systemd_passes_that_is_no_listener(tmp_path: Path) -> None:
    daemon = Daemon(tmp_path, listen("sd@web", server=1), workers=1)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagrams:
        datagrams.bind(("127.0.0.1", 0))
        with activated(daemon, {"web": datagrams}) as process:
            assert process.wait() == CONFIG
            said = process.stderr.text
    assert "it is not a listening stream socket" in said
    assert "Traceback" not in said


# What is set up although nobody asked for it


def test_paths_are_private_unless_asked_for(tmp_path: Path) -> None:
    with Echo() as echo, Daemon(tmp_path, listen(free_port(), server=echo.port), workers=1) as daemon:
        daemon.write(daemon.file.read_text().replace(" mode 600", "").replace(str(daemon.socket), str(tmp_path / "it")))
        assert daemon.reload().returncode == 0
        assert stat.S_IMODE((tmp_path / "it").stat().st_mode) == 0o600
