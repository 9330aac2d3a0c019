"""Taking over from a real haproxy and being taken over by one, in both directions under connections."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tests.support.daemon import Daemon
from tests.support.echo import Echo, exchange
from tests.support.processes import Process, free_ports, poll_until
from tests.support.visitors import Conversation, Visitors, conversations, listen

_CONFIG = """\
global
    stats socket {socket} mode 600 level admin expose-fd listeners
    maxconn 1000
    nbthread 1
defaults
    mode tcp
    timeout connect 5s
    timeout client 1m
    timeout server 1m
listen t
    server s 127.0.0.1:{server}
"""


class HAProxy:
    """A haproxy in the foreground, without a master process."""

    def __init__(self, directory: Path, binds: Sequence[object], server: int, *arguments: str) -> None:
        self.socket = directory / "haproxy.sock"
        file = directory / "haproxy.cfg"
        lines = [f"    bind {f'127.0.0.1:{bind}' if isinstance(bind, int) else bind}\n" for bind in binds]
        file.write_text(_CONFIG.format(socket=self.socket, server=server) + "".join(lines))
        self.process = Process(["/usr/sbin/haproxy", "-db", "-f", file, *arguments])

    def __enter__(self) -> HAProxy:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.stop(first=signal.SIGKILL)

    @property
    def pid(self) -> int:
        return self.process.pid

    def wait_serving(self, port: int) -> None:
        def serves() -> bool:
            assert self.process.running, self.process.stderr.text
            with contextlib.suppress(OSError):
                return exchange(port) == b"hello"
            return False

        poll_until(serves, 20, "haproxy serves")

    def wait_main(self) -> None:
        """Wait until it serves by itself: its own runtime API is there only then."""

        def serves() -> bool:
            assert self.process.running, self.process.stderr.text
            with contextlib.suppress(OSError), Conversation(str(self.socket)) as client:
                client.sock.sendall(b"show info\n")
                return f"Pid: {self.pid}\n".encode() in client.sock.recv(65536)
            return False

        poll_until(serves, 20, "haproxy serves")


@contextlib.contextmanager
def taken_over(directory: Path, body: str, *arguments: str) -> Iterator[Daemon]:
    with Daemon(directory, body, workers=1, name="new", arguments=arguments) as daemon:
        yield daemon


COUNTS = pytest.mark.parametrize("count", [1, 252, 253, 504, 3000])


@COUNTS
def test_hitlessd_takes_over_from_haproxy(count: int, tmp_path: Path) -> None:
    ports = free_ports(count)
    with Echo() as echo, HAProxy(tmp_path, ports, echo.port) as old:
        old.wait_serving(ports[-1])
        with Visitors(ports[-1]) as visitors, conversations(*[ports[0]] * 5) as held:
            arguments = ("-x", str(old.socket), "-sf", str(old.pid))
            with taken_over(tmp_path, listen(*ports, server=echo.port), *arguments) as new:
                visitors.more()
                new.wait_log(f"{count} listeners ({count} taken, 0 bound)")
                for each in held:
                    each.say()
                    assert old.process.running
                    each.finish()
                # What the old one has left are its visitors of that moment, who go by themselves.
                assert old.process.wait(20) == 0
                visitors.more()
                assert {exchange(port) for port in ports[:: max(1, count // 20)]} == {b"hello"}
                # From here on it is one's own.
                assert f"{count} taken, 0 bound, 0 closed" in new.ctl("reload", "-v").stdout
                visitors.more()
                visitors.stop()


@COUNTS
def test_haproxy_takes_over_from_hitlessd(count: int, tmp_path: Path) -> None:
    ports = free_ports(count)
    with (
        Echo() as echo,
        Daemon(tmp_path, listen(*ports, server=echo.port), workers=1) as old,
        Visitors(ports[-1]) as visitors,
        conversations(*[ports[0]] * 5) as held,
        HAProxy(tmp_path, ports, echo.port, "-x", str(old.socket), "-sf", str(old.pid)) as new,
    ):
        new.wait_main()
        old.wait_log(f"{count} listeners were taken by process {new.pid}")
        old.wait_log("finishing")
        visitors.more()
        assert old.process.running
        for each in held:
            each.say()
            each.finish()
        assert old.process.wait(20) == 0
        assert not old.processes()
        visitors.more()
        assert {exchange(port) for port in ports[:: max(1, count // 20)]} == {b"hello"}
        assert "[ALERT]" not in new.process.stderr.text, new.process.stderr.text
        visitors.stop()


def test_every_kind_of_address_goes_there_and_back(tmp_path: Path) -> None:
    """IPv4, IPv6, a wildcard, a path: to haproxy, and from it."""
    path = tmp_path / "front.sock"
    v4, v6, wide = free_ports(3)
    ours = [v4, f"[::1]:{v6}", f"0.0.0.0:{wide}", f"unix@{path}"]
    # The kernel sets IPV6_V6ONLY for such an address, and haproxy does not know its socket again without the word.
    theirs = [v4, f"ipv6@[::1]:{v6} v6only", f"ipv4@0.0.0.0:{wide}", f"unix@{path}"]
    addresses: list[int | str | tuple[str, int]] = [v4, ("::1", v6), wide, str(path)]
    with Echo() as echo, Daemon(tmp_path, listen(*ours, server=echo.port), workers=1) as old:
        inode = path.stat().st_ino
        with (
            conversations(*addresses) as held,
            HAProxy(tmp_path, theirs, echo.port, "-x", str(old.socket), "-sf", str(old.pid)) as haproxy,
        ):
            haproxy.wait_main()
            for each in held:
                each.finish()
            assert old.process.wait(20) == 0
            # The path is haproxy's now.
            assert path.stat().st_ino == inode
            with conversations(*addresses) as held:
                arguments = ("-x", str(haproxy.socket), "-sf", str(haproxy.pid))
                with taken_over(tmp_path, listen(*ours, server=echo.port), *arguments) as new:
                    new.wait_log("4 listeners (4 taken, 0 bound)")
                    for each in held:
                        each.finish()
                    assert haproxy.process.wait(20) == 0
                    assert path.stat().st_ino == inode
                    with conversations(*addresses):
                        assert new.reload().returncode == 0


def test_what_haproxy_has_and_nobody_wants_is_let_go(tmp_path: Path) -> None:
    kept, dropped, added = free_ports(3)
    with Echo() as echo, HAProxy(tmp_path, [kept, dropped], echo.port) as old:
        old.wait_serving(dropped)
        arguments = ("-x", str(old.socket), "-sf", str(old.pid))
        with taken_over(tmp_path, listen(kept, added, server=echo.port), *arguments) as new:
            new.wait_log("2 listeners (1 taken, 1 bound)")
            assert exchange(kept) == exchange(added) == b"hello"
            assert old.process.wait(20) == 0
            with pytest.raises(ConnectionRefusedError):
                Conversation(dropped)


def test_a_takeover_that_fails_leaves_haproxy_as_it_was(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    with Echo() as echo, HAProxy(tmp_path, [port], echo.port) as old:
        old.wait_serving(port)
        with Visitors(port) as visitors:
            new = Daemon(tmp_path, listen(port, "203.0.113.1:1", server=echo.port), workers=1, name="new")
            new.start("-x", str(old.socket), "-sf", str(old.pid))
            assert new.process.wait(20) == 78
            visitors.more(50)
            assert old.process.running
