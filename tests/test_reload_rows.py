"""What made the reloads of other programs hurt: one test for each, named by the number and what must hold instead.

 3  readiness that anybody could claim            12  unix paths unlinked by who leaves
 7  a bad configuration that reported success     13  wildcard and specific addresses on one port
 8  one failure that blocked all that followed    14  a device that was created anew under its name
 9  a fixed time-out for slow reloads             15  connections lost in the backlog
10  batches of descriptors that did not add up    18  reloads refused, or answered for another's file
11  descriptors that leaked or ran out            20  a dependence on SO_REUSEPORT
                                                  21  mangled command lines and environments
5 and 6 are in test_notify.py, the leaks of 11 in test_leaks.py.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from hitlessd.handover.getsocks import take
from tests.support.accepting import accepting, listening, listening_sockets
from tests.support.daemon import Daemon
from tests.support.echo import Echo, exchange
from tests.support.notify import NotifySocket
from tests.support.processes import (
    ROOT,
    Process,
    free_port,
    free_ports,
    poll_until,
    python_module,
    wait_gone,
)
from tests.support.visitors import Conversation, Visitors, listen


class Started(Daemon):
    """A daemon with a command line of its own: `command` stands before the arguments, `cwd` is where it starts."""

    command: Sequence[str | Path] = ()
    cwd: Path = ROOT
    pass_fds: Sequence[int] = ()

    def start(self, *more: str, passed: Sequence[tuple[int, str]] = ()) -> Daemon:
        self.process = Process(
            [*self.command, "-f", self.file, "-p", self.pidfile, *self._arguments, *more],
            env=self._env,
            cwd=self.cwd,
            pass_fds=self.pass_fds,
        )
        return self


def generation(daemon: Daemon) -> int:
    return int(daemon.info()["Generation"])


def sockets_of(pid: int) -> int:
    """How many it has open: each client of the runtime API is one. Files come and go while it imports."""
    count = 0
    for fd in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(FileNotFoundError):
            count += os.readlink(f"/proc/{pid}/fd/{fd}").startswith("socket:")
    return count


def wait_processes(daemon: Daemon, count: int) -> None:
    """Who has refused, or could not be executed, says so before it ends."""
    poll_until(lambda: len(daemon.processes()) == count, 10, f"{count} processes")


def start_ctl(daemon: Daemon) -> Process:
    return Process(python_module("hitlessd.ctl", "-s", daemon.socket, "reload"), cwd=ROOT)


@contextlib.contextmanager
def listeners(daemon: Daemon) -> Iterator[list[socket.socket]]:
    """Duplicates of the listening sockets, as `_getsocks` gives them."""
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(daemon.socket))
        found = [socket.socket(fileno=fd) for fd in take(client, 10)]
    try:
        yield found
    finally:
        for each in found:
            each.close()


def assert_ports_not_shared(daemon: Daemon) -> None:
    """Nobody else could join one of the ports."""
    with listeners(daemon) as found:
        assert found
        assert [each.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT) for each in found] == [0] * len(found)


# 3


def test_row_3_a_successor_without_the_nonce_is_refused_and_changes_nothing(tmp_path: Path) -> None:
    port = free_port()
    interpreter = tmp_path / "python"
    interpreter.symlink_to(sys.executable)
    with Echo() as echo:
        daemon = Started(tmp_path, listen(port, server=echo.port), workers=1)
        daemon.command = (interpreter, "-m", "hitlessd")
        with daemon, Conversation(port) as conversation:
            conversation.say()
            before = daemon.pid
            # The next generation is started by this, which is told the nonce and tells another one.
            interpreter.unlink()
            interpreter.write_text(
                "#!/bin/sh\n"
                'HITLESSD_TAKEOVER="${HITLESSD_TAKEOVER%%:*}:0123456789abcdef:${HITLESSD_TAKEOVER##*:}"\n'
                f'exec {sys.executable} "$@"\n'
            )
            interpreter.chmod(0o755)
            result = daemon.reload()
            assert result.returncode == 1
            assert "cannot hand over: the successor does not know the nonce of this reload" in result.stderr
            # Nor can one take over that cannot be executed.
            interpreter.unlink()
            result = daemon.reload()
            assert result.returncode == 1
            assert f"cannot execute {interpreter}: No such file or directory" in result.stderr
            assert daemon.pid == before
            conversation.say()
            assert exchange(port) == b"hello"
            wait_processes(daemon, 2)
            interpreter.symlink_to(sys.executable)
            assert daemon.reload().returncode == 0


# 7, 8, 9


def test_row_7_a_bad_configuration_fails_the_reload_with_file_line_and_reason(tmp_path: Path) -> None:
    port = free_port()
    with (
        Echo() as echo,
        NotifySocket(tmp_path) as notify,
        Daemon(tmp_path, listen(port, server=echo.port), workers=1, env=notify.environment) as daemon,
        Visitors(port) as visitors,
        Conversation(port) as conversation,
    ):
        conversation.say()
        before = daemon.pid
        text = daemon.text(listen(port, server=echo.port) + "tiemout client = 1m\n")
        daemon.write(text)
        line = text.splitlines().index("tiemout client = 1m") + 1
        result = daemon.reload()
        assert result.returncode == 1
        reason = f"{daemon.file}:{line}: [listen t]"
        assert reason in result.stderr
        assert "timeout client" in result.stderr  # what was probably meant
        daemon.wait_log(f"reload 1 refused: {reason}")
        assert reason in daemon.ask("show errors")
        poll_until(lambda: any("LAST RELOAD REFUSED" in s and reason in s for s in notify.statuses), 10, "the status")
        assert daemon.info()["LastReload"].startswith("1 fail")
        assert (daemon.pid, generation(daemon)) == (before, 1)
        conversation.say()
        visitors.more()
        wait_processes(daemon, 2)


def test_row_8_failed_reloads_do_not_block_the_next(tmp_path: Path) -> None:
    port, added = free_port(), free_port()
    with (
        Echo() as echo,
        socket.create_server(("127.0.0.1", 0)) as stranger,
        Daemon(tmp_path, listen(port, server=echo.port), workers=1) as daemon,
        Visitors(port),
    ):
        taken = f"127.0.0.1:{stranger.getsockname()[1]}"
        for wrong, reason in (
            (listen(port, server=echo.port) + "bogus = 1\n", "bogus"),
            (listen(port, taken, server=echo.port), f"cannot bind {taken}"),
            (listen(port, "203.0.113.1:1", server=echo.port), "cannot bind 203.0.113.1:1"),
        ):
            daemon.write(daemon.text(wrong))
            result = daemon.reload()
            assert result.returncode == 1
            assert reason in result.stderr
        daemon.write(daemon.text(listen(port, added, server=echo.port)))
        daemon.fault("successor.offer", signal.SIGKILL)
        assert daemon.reload().returncode == 1
        result = daemon.reload()
        assert result.returncode == 0, result.stderr
        assert exchange(added) == b"hello"
        info = daemon.info()
        assert (info["Generation"], info["Reloads"], info["ReloadsRefused"]) == ("2", "1", "4")


def test_row_9_a_slow_reload_is_waited_for(tmp_path: Path) -> None:
    port = free_port()
    with (
        Echo() as echo,
        Daemon(tmp_path, listen(port, server=echo.port), workers=1, more="reload-timeout = 5m") as daemon,
        Visitors(port) as visitors,
    ):
        daemon.fault("successor.offer", signal.SIGSTOP)
        with start_ctl(daemon) as caller:
            successor = daemon.asleep()
            visitors.more(200)
            assert caller.running
            assert generation(daemon) == 1
            os.kill(successor, signal.SIGCONT)
            assert caller.wait(30) == 0
        assert generation(daemon) == 2


# 10, 11


@pytest.mark.parametrize("count", [1, 252, 253, 504, 3000])
def test_row_10_any_number_of_listeners_passes(count: int, tmp_path: Path) -> None:
    ports = free_ports(count)
    with Echo() as echo, Daemon(tmp_path, listen(*ports, server=echo.port), workers=1) as daemon:
        before = {port: inode for port, inode in listening_sockets().items() if port in set(ports)}
        assert len(before) == count
        with Conversation(ports[-1]) as conversation:
            conversation.say()
            for _ in range(2):
                result = daemon.ctl("reload", "-v")
                assert result.returncode == 0, result.stderr
                assert f"listeners: {count} taken, 0 bound, 0 closed" in result.stdout
            conversation.finish()
        after = listening_sockets()
        assert {port: after.get(port) for port in ports} == before
        for port in {ports[0], ports[-1], *random.Random(count).choices(ports, k=10)}:
            assert exchange(port) == b"hello"
        assert len(daemon.ask("show cli sockets").splitlines()) >= 2


def test_row_11_a_limit_that_is_too_low_is_refused_before_anything_moves(tmp_path: Path) -> None:
    port, added = free_port(), free_port()
    with Echo() as echo:
        daemon = Started(tmp_path, workers=1)
        daemon.command = ("prlimit", "--nofile=2000:2000", *python_module("hitlessd"))
        small = daemon.text(listen(port, server=echo.port)).replace("maxconn = 2000", "maxconn = 500")
        daemon.write(small)
        with daemon, Visitors(port), Conversation(port) as conversation:
            conversation.say()
            inodes = listening_sockets()[port]
            daemon.write(daemon.text(listen(port, added, server=echo.port)))
            result = daemon.reload()
            assert result.returncode == 1
            assert "cannot serve maxconn 2000" in result.stderr
            assert "the limit on open files is 2000; raise it (LimitNOFILE= in the unit)" in result.stderr
            assert listening_sockets()[port] == inodes
            assert added not in listening_sockets()
            conversation.say()
            assert generation(daemon) == 1
            daemon.write(small)
            assert daemon.reload().returncode == 0


def test_row_10_listeners_are_known_again_however_they_are_written(tmp_path: Path) -> None:
    one, other, third, fourth = free_ports(4)
    binds = [f"[0:0::1]:{one}", f"[::1]:{other} v4v6", f"[::]:{third} v4v6", f"[::]:{fourth}", f"abns@t{one}"]
    with Echo() as echo, Daemon(tmp_path, listen(*binds, server=echo.port), workers=1) as daemon:
        assert "5 taken, 0 bound, 0 closed" in daemon.ctl("reload", "-v").stdout


# 12


def test_row_12_the_path_outlives_the_process_that_bound_it(tmp_path: Path) -> None:
    path, port = tmp_path / "front.sock", free_port()
    with Echo() as echo, Daemon(tmp_path, listen(port, f"unix@{path}", server=echo.port), workers=1) as daemon:
        first, inode = daemon.pid, path.stat().st_ino
        with Conversation(str(path)) as early:
            early.say()
            assert daemon.reload().returncode == 0
            early.finish()
        wait_gone(first)
        assert path.stat().st_ino == inode
        with Conversation(str(path)) as later:
            later.finish()
        # Two generations later it is still known to be ours, and goes with its bind.
        assert daemon.reload().returncode == 0
        daemon.write(daemon.text(listen(port, server=echo.port)))
        assert daemon.reload().returncode == 0
        assert not path.exists()
        assert daemon.socket.exists()


def test_row_12_what_a_stranger_put_there_is_not_unlinked(tmp_path: Path) -> None:
    path, port = tmp_path / "front.sock", free_port()
    with Echo() as echo, Daemon(tmp_path, listen(port, f"unix@{path}", server=echo.port), workers=1) as daemon:
        old = daemon.pid
        path.unlink()
        path.write_text("a stranger's\n")
        # Wanted, but somebody else's: refused. Not wanted any more: left alone.
        result = daemon.reload()
        assert result.returncode == 1
        assert f"cannot bind unix@{path}" in result.stderr
        daemon.write(daemon.text(listen(port, server=echo.port)))
        assert daemon.reload().returncode == 0
        wait_gone(old)
        assert path.read_text() == "a stranger's\n"


def test_row_12_a_path_that_was_removed_is_bound_anew(tmp_path: Path) -> None:
    path, port = tmp_path / "front.sock", free_port()
    with Echo() as echo, Daemon(tmp_path, listen(port, f"unix@{path}", server=echo.port), workers=1) as daemon:
        with Conversation(str(path)) as early:
            early.say()
            path.unlink()
            daemon.socket.unlink()
            os.kill(daemon.pid, signal.SIGHUP)
            daemon.wait_log("reload 1 done")
            with Conversation(str(path)) as later:
                later.finish()
            early.finish()
        assert generation(daemon) == 2


# 13

_OVERLAPS = [
    pytest.param("0.0.0.0:{}", "127.0.0.1:{}", "127.0.0.1", id="v4"),
    pytest.param("[::]:{}", "[::1]:{}", "::1", id="v6"),
    pytest.param("[::]:{} v4v6", "127.0.0.1:{}", "127.0.0.1", id="v4v6"),
    pytest.param("[::]:{} v4v6", "0.0.0.0:{}", "127.0.0.1", id="v4v6-v4"),
]


@pytest.mark.parametrize(("wide", "narrow", "host"), _OVERLAPS)
def test_row_13_overlapping_addresses_replace_each_other(wide: str, narrow: str, host: str, tmp_path: Path) -> None:
    port = free_port()
    wide, narrow = wide.format(port), narrow.format(port)
    with Echo() as echo, Daemon(tmp_path, listen(wide, server=echo.port), workers=1) as daemon:
        held = []
        with contextlib.ExitStack() as stack:
            for bind in (narrow, wide, narrow):
                held.append(stack.enter_context(Conversation((host, port))))
                held[-1].say()
                daemon.write(daemon.text(listen(bind, server=echo.port)))
                result = daemon.ctl("reload", "-v")
                assert result.returncode == 0, result.stderr
                assert "listeners: 0 taken, 1 bound, 1 closed" in result.stdout
                assert_ports_not_shared(daemon)
                for each in held:
                    each.say()
            with Conversation((host, port)) as last:
                last.finish()
            for each in held:
                each.finish()


@pytest.mark.parametrize(("wide", "narrow", "host"), _OVERLAPS[:2])
@pytest.mark.parametrize("narrows", [True, False], ids=["narrows", "widens"])
def test_row_13_a_reload_that_fails_then_leaves_the_old_one_whole(
    wide: str, narrow: str, host: str, narrows: bool, tmp_path: Path
) -> None:
    port = free_port()
    wide, narrow = wide.format(port), narrow.format(port)
    old, new = (wide, narrow) if narrows else (narrow, wide)
    with Echo() as echo, Daemon(tmp_path, listen(old, server=echo.port), workers=1) as daemon:
        held = Conversation((host, port))
        with held:
            held.say()
            # Another bind of it cannot be had; and then, at the worst moment: both listen, and the new one dies.
            daemon.write(daemon.text(listen(new, "203.0.113.1:1", server=echo.port)))
            assert "cannot bind 203.0.113.1:1" in daemon.reload().stderr
            for place in ("successor.offer", "successor.accept", "successor.commit"):
                daemon.write(daemon.text(listen(new, server=echo.port)))
                daemon.fault(place, signal.SIGKILL)
                assert daemon.reload().returncode == 1
                assert not daemon.faults.exists()
                with Conversation((host, port)) as visitor:
                    visitor.finish()
                held.say()
                assert_ports_not_shared(daemon)
            assert generation(daemon) == 1
            assert daemon.reload().returncode == 0
            with Conversation((host, port)) as visitor:
                visitor.finish()
            held.finish()


# 14

_CLIENT = """\
import socket, sys
with socket.create_connection((sys.argv[1], int(sys.argv[2])), 10) as sock:
    sock.sendall(b"hello")
    sock.shutdown(socket.SHUT_WR)
    assert sock.recv(100) == b"hello"
"""


class _UnixEcho(Echo):
    """Reached from every network namespace."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._listener.close()
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen()


def test_row_14_a_device_that_was_created_anew_is_bound_anew(tmp_path: Path) -> None:
    """Two network namespaces and a cable between them, which is cut and laid again."""

    def within(process: Process, *command: str) -> None:
        subprocess.run(["nsenter", "-t", str(process.pid), "-n", *command], check=True, timeout=20)

    def lay_cable() -> None:
        within(there, "ip", "link", "add", "v0", "type", "veth", "peer", "name", "v1", "netns", str(here.pid))
        for process, device, address in ((there, "v0", "198.51.100.1/24"), (here, "v1", "198.51.100.2/24")):
            within(process, "ip", "address", "add", address, "dev", device)
            within(process, "ip", "link", "set", device, "up")

    def visit() -> None:
        within(here, sys.executable, "-c", _CLIENT, "198.51.100.1", "8000")

    waiting = ["unshare", "-n", "sh", "-c", "echo ready; exec sleep infinity"]
    with (
        Process(waiting) as there,
        Process(waiting) as here,
        _UnixEcho(tmp_path / "echo.sock"),
    ):
        for process in (there, here):
            process.stdout.wait(lambda line: line == "ready")
        lay_cable()
        body = f"[listen t]\nbind = 198.51.100.1:8000 interface v0\nserver s = unix@{tmp_path}/echo.sock\n"
        daemon = Started(tmp_path, body, workers=1)
        daemon.command = ("nsenter", "-t", str(there.pid), "-n", *python_module("hitlessd"))
        with daemon:
            visit()
            assert "1 taken, 0 bound" in daemon.ctl("reload", "-v").stdout
            visit()
            within(there, "ip", "link", "delete", "v0")
            lay_cable()
            result = daemon.ctl("reload", "-v")
            assert "0 taken, 1 bound, 1 closed" in result.stdout, result.stderr
            visit()


# 15


def test_row_15_connections_in_the_backlog_are_served(tmp_path: Path) -> None:
    port = free_port()
    with Echo() as echo, Daemon(tmp_path, listen(port, server=echo.port)) as daemon:
        os.kill(daemon.pid, signal.SIGTTOU)
        poll_until(lambda: not accepting(daemon.processes(), port), 10, "nobody accepts")
        with contextlib.ExitStack() as stack:
            clients = [stack.enter_context(Conversation(port)) for _ in range(200)]
            for number, client in enumerate(clients):
                client.sock.sendall(b"%3d" % number)
            assert echo.accepted == 0
            assert daemon.reload().returncode == 0
            for number, client in enumerate(clients):
                client.hear(b"%3d" % number)
                client.finish()


def test_row_15_connections_in_the_backlog_of_a_listener_that_goes_are_served(tmp_path: Path) -> None:
    port, leaving = free_port(), free_port()
    with Echo() as echo, Daemon(tmp_path, listen(port, leaving, server=echo.port)) as daemon:
        os.kill(daemon.pid, signal.SIGTTOU)
        poll_until(lambda: not accepting(daemon.processes(), leaving), 10, "nobody accepts")
        with contextlib.ExitStack() as stack:
            clients = [stack.enter_context(Conversation(leaving)) for _ in range(50)]
            daemon.write(daemon.text(listen(port, server=echo.port)))
            assert daemon.reload().returncode == 0
            for client in clients:
                client.finish()
        # Each of the old workers accepts until nobody waits, then closes it.
        poll_until(lambda: not listening(leaving), 10, "nobody has the listener any more")
        with pytest.raises(ConnectionRefusedError):
            Conversation(leaving)


# 18


def test_row_18_reloads_coalesce(tmp_path: Path) -> None:
    first, *added = free_ports(5)
    with Echo() as echo, Daemon(tmp_path, listen(first, server=echo.port), workers=1) as daemon:
        main = daemon.pid
        daemon.fault("successor.offer", signal.SIGSTOP)
        with contextlib.ExitStack() as stack:
            early = stack.enter_context(start_ctl(daemon))
            successor = daemon.asleep()
            # These come when the running reload has read its configuration.
            idle = sockets_of(main)
            late = []
            for number in range(4):
                daemon.write(daemon.text(listen(first, *added[: number + 1], server=echo.port)))
                late.append(stack.enter_context(start_ctl(daemon)))
                poll_until(lambda n=idle + number + 1: sockets_of(main) == n, 10, "another client")  # type: ignore[misc]
            os.kill(successor, signal.SIGCONT)
            assert [each.wait(30) for each in (early, *late)] == [0] * 5
        assert all(exchange(port) == b"hello" for port in (first, *added))
        info = daemon.info()
        assert (info["Generation"], info["LastReload"]) == ("3", "2 success")


def test_row_18_every_answer_is_about_a_configuration_read_after_the_call(tmp_path: Path) -> None:
    first, *added = free_ports(9)
    problems: list[str] = []
    with Echo() as echo, Daemon(tmp_path, listen(first, server=echo.port), workers=1) as daemon:

        def call(port: int) -> None:
            answer = daemon.ask("reload", 60)
            try:
                if not answer.startswith("Success=1") or exchange(port) != b"hello":
                    problems.append(answer)
            except OSError as error:
                problems.append(f"{port}: {error}; {answer}")

        threads = []
        for number, port in enumerate(added, 1):
            daemon.write(daemon.text(listen(first, *added[:number], server=echo.port)))
            threads.append(threading.Thread(target=call, args=(port,)))
            threads[-1].start()
            # Some come while a reload runs, some after it.
            for _ in range(4):
                exchange(first)
        for thread in threads:
            thread.join(60)
        assert not problems
        assert generation(daemon) <= 9


# 20


def test_row_20_no_port_is_shared(tmp_path: Path) -> None:
    port, other = free_ports(2)
    with Echo() as echo, Daemon(tmp_path, listen(port, f"[::1]:{other}", server=echo.port), workers=1) as daemon:
        assert_ports_not_shared(daemon)
        assert daemon.reload().returncode == 0
        assert_ports_not_shared(daemon)
        with socket.socket() as thief:
            thief.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            with pytest.raises(OSError, match="Address already in use"):
                thief.bind(("127.0.0.1", port))


# 21

_ACTIVATE = """\
import os, sys
os.dup2(int(sys.argv[1]), 3)
os.environ["LISTEN_PID"] = os.environ["WATCHDOG_PID"] = str(os.getpid())
os.execv(sys.argv[2], sys.argv[2:])
"""


def test_row_21_the_command_line_and_the_environment_survive(tmp_path: Path) -> None:
    odd = tmp_path / "größe 'n' \"more\" $HOME"
    odd.mkdir()
    port = free_port()
    with (
        Echo() as echo,
        NotifySocket(tmp_path) as notify,
        socket.create_server(("127.0.0.1", 0)) as activated,
    ):
        daemon = Started(
            tmp_path,
            workers=1,
            env={
                **notify.environment,
                "LISTEN_FDS": "1",
                "LISTEN_FDNAMES": "web",
                "WATCHDOG_USEC": "600000",
                "ODD": "a b\nc",
            },
        )
        daemon.write(daemon.text(""))
        (odd / "two ü.conf").write_text(listen(port, "sd@web", server=echo.port))
        words = ["-X", "utf8=1", "-m", "hitlessd", "-f", f"{odd.name}/two ü.conf", "-W", "-sf", "4194303", "-q"]
        daemon.command = (sys.executable, "-c", _ACTIVATE, str(activated.fileno()), sys.executable, *words)
        daemon.cwd, daemon.pass_fds = tmp_path, [activated.fileno()]
        with daemon:
            first = daemon.pid
            for _ in range(2):
                result = daemon.ctl("reload", "-v")
                assert "listeners: 2 taken, 0 bound, 0 closed" in result.stdout, result.stderr
            third = daemon.pid
            assert len({first, third}) == 2

            def read(name: str) -> list[bytes]:
                return Path(f"/proc/{third}/{name}").read_bytes().split(b"\0")[:-1]

            expected = [sys.executable, *words, "-f", str(daemon.file), "-p", str(daemon.pidfile)]
            del expected[expected.index("-sf") : expected.index("-q")]
            assert read("cmdline") == [os.fsencode(word) for word in expected]
            assert os.readlink(f"/proc/{third}/cwd") == str(tmp_path)
            environment = dict(entry.split(b"=", 1) for entry in read("environ"))
            for gone in ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES", "LISTEN_PIDFDID", "WATCHDOG_PID"):
                assert gone.encode() not in environment
            assert environment[b"WATCHDOG_USEC"] == b"600000"
            assert environment[b"ODD"] == b"a b\nc"
            # The third generation is watched, and does listen where systemd does.
            start = notify.wait("READY=1", third)
            notify.wait("WATCHDOG=1", third, start)
            assert exchange(activated.getsockname()[1]) == b"hello"
            assert exchange(port) == b"hello"
            # Closing it would leave clients waiting on systemd.
            (odd / "two ü.conf").write_text(listen(port, server=echo.port))
            result = daemon.reload()
            assert result.returncode == 1
            assert "FileDescriptorName=web" in result.stderr
