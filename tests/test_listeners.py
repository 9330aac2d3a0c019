"""Listening sockets: opening, recognising, matching, overlapping addresses, unix paths, interfaces."""

from __future__ import annotations

import errno
import os
import pwd
import socket
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hitlessd.errors import SystemRefused
from hitlessd.listeners import (
    Identity,
    Listener,
    Wanted,
    assign,
    close_unwanted,
    identify,
    own_path,
)
from hitlessd.model import Bind, InetAddress, SystemdAddress, UnixAddress, Where
from tests.support.descriptors import is_open, memfd, no_leak
from tests.support.listeners import opened
from tests.support.processes import ROOT, free_port, wait_readable

LOOPBACK = "127.0.0.1"


@pytest.fixture(autouse=True)
def _no_leak() -> Iterator[None]:
    with no_leak():
        yield


def inet(host: str = LOOPBACK, port: int = 0, interface: str = "", v6only: bool = True, backlog: int = 0) -> Bind:
    return Bind(InetAddress(host, port or free_port()), Where("x.conf", 3), backlog, interface, v6only)


def unix(path: Path | str, mode: int | None = None, user: str = "", group: str = "") -> Bind:
    return Bind(UnixAddress(str(path)), Where("x.conf", 3), mode=mode, user=user, group=group)


def connect(bind: Bind, host: str = "") -> socket.socket:
    """A connection to that address; refused if nobody listens."""
    assert not isinstance(bind.address, SystemdAddress)
    sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET if host else bind.address.family)
    sock.settimeout(10)
    target = bind.address.sockaddr
    try:
        sock.connect((host, target[1]) if host else target)
    except BaseException:
        sock.close()
        raise
    return sock


def serves(listener: Listener, bind: Bind, host: str = "") -> bool:
    """Whether a new connection to `bind` reaches this listener."""
    with connect(bind, host):
        wait_readable(listener.sock, 10)
        listener.sock.accept()[0].close()
    return True


def nothing_waits(*listeners: Listener) -> bool:
    for listener in listeners:
        with pytest.raises(BlockingIOError):
            listener.sock.accept()
    return True


def option(listener: Listener, level: int, name: int) -> int:
    return listener.sock.getsockopt(level, name)


def adopted(listener: Listener) -> Listener:
    """As another process would have it."""
    return Listener.adopt(os.dup(listener.sock.fileno()), listener.record())


def close(*listeners: Listener) -> None:
    for listener in listeners:
        listener.close()


BINDS: dict[str, Callable[[Path], Bind]] = {
    "v4": lambda _: inet(),
    "any v4": lambda _: inet("0.0.0.0"),
    "backlog": lambda _: inet(backlog=3),
    "interface": lambda _: inet(interface="lo"),
    "v6": lambda _: inet("::1"),
    "v6 spelt otherwise": lambda _: inet("0:0::0:1"),
    "v6only": lambda _: inet("::", v6only=True),
    "v4v6": lambda _: inet("::", v6only=False),
    "v6 on an interface": lambda _: inet("::1", interface="lo"),
    "unix": lambda path: unix(path / "sock"),
    "unix, odd names": lambda path: unix(path / "a.12x.tmp é"),
    "unix like a temporary name": lambda path: unix(path / "a.b.tmp"),
    "abstract": lambda _: unix(f"\0hitlessd-test-{os.getpid()}"),
}


@pytest.mark.parametrize("kind", BINDS)
def test_every_kind_of_bind_serves_and_is_recognised_by_another_process(kind: str, tmp_path: Path) -> None:
    bind = BINDS[kind](tmp_path)
    listener = opened(bind)
    assert listener.listening
    assert identify(listener.sock) == listener.identity
    assert not listener.sock.getblocking()
    assert not listener.sock.get_inheritable()
    assert serves(listener, bind)
    other = adopted(listener)
    assert (other.identity, other.origin, other.name, other.inode) == (
        listener.identity,
        "own",
        listener.name,
        listener.inode,
    )
    wanted = Wanted("f", bind)
    assert assign([wanted], [other]) == ([(wanted, other)], [], [])
    close(listener)
    assert serves(other, bind)
    close(other)


def test_what_accepted_connections_inherit() -> None:
    bind = inet()
    listener = opened(bind)
    with connect(bind):
        wait_readable(listener.sock)
        accepted, _ = listener.sock.accept()
        with accepted:
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
            assert accepted.getsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE)
    close(listener)


def test_v6only_and_v4v6() -> None:
    both, only = inet("::", v6only=False), inet("::", v6only=True)
    listeners = opened(both), opened(only)
    assert serves(listeners[0], both, LOOPBACK)
    assert serves(listeners[0], both, "::1")
    assert serves(listeners[1], only, "::1")
    with pytest.raises(ConnectionRefusedError):
        connect(only, LOOPBACK)
    close(*listeners)


def test_backlog() -> None:
    small, large = opened(inet(backlog=3)), opened(inet())
    # tcpi_sacked is the limit of a listener's queue (tcp(7), TCP_INFO).
    queues = [
        int.from_bytes(x.sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 32)[28:32], sys.byteorder)
        for x in (small, large)
    ]
    assert queues == [3, int(Path("/proc/sys/net/core/somaxconn").read_text())]
    close(small, large)


def test_mode_and_owner_of_a_unix_path(tmp_path: Path) -> None:
    nobody = pwd.getpwnam("nobody")
    for number, (user, group) in enumerate((("nobody", "root"), ("1234", "5678"), ("nobody", ""), ("", "5678"))):
        path = tmp_path / str(number)
        listener = opened(unix(path, 0o640, user, group))
        status = path.stat()
        uid = nobody.pw_uid if user == "nobody" else int(user or os.getuid())
        assert (stat.S_IMODE(status.st_mode), status.st_uid) == (0o640, uid)
        assert status.st_gid == (5678 if group == "5678" else os.getgid())
        own_path(str(path), unix(path, 0o606))
        assert stat.S_IMODE(path.stat().st_mode) == 0o606
        close(listener)


@pytest.mark.parametrize(("user", "group", "what"), [("no-such-user", "", "user"), ("", "no-such-group", "group")])
def test_unknown_owners(user: str, group: str, what: str, tmp_path: Path) -> None:
    with pytest.raises(SystemRefused, match=f"cannot find {what} no-such-{what}"):
        opened(unix(tmp_path / "sock", user=user, group=group))
    assert list(tmp_path.iterdir()) == []


# --- refusals


def refusal(bind: Bind, *held: Listener) -> str:
    with pytest.raises(SystemRefused) as caught:
        opened(bind, held)
    assert str(caught.value).startswith(f"cannot bind {bind.address} (x.conf:3): ")
    return str(caught.value)


def test_a_port_in_use() -> None:
    bind = inet()
    with socket.create_server(bind.address.sockaddr):  # type: ignore[union-attr]
        assert "another process listens there" in refusal(bind)


def test_a_port_in_use_by_a_stranger_although_we_hold_it_elsewhere() -> None:
    """The held listener overlaps, but the stranger is in the way: nothing of ours keeps SO_REUSEPORT."""
    bind = inet()
    assert isinstance(bind.address, InetAddress)
    held = opened(inet("127.0.0.2", bind.address.port))
    with socket.create_server(bind.address.sockaddr):
        assert "another process listens there" in refusal(bind, held)
    assert not option(held, socket.SOL_SOCKET, socket.SO_REUSEPORT)
    close(held)


@pytest.mark.parametrize(
    ("bind", "why"),
    [
        (inet("192.0.2.1"), "this machine has no such address"),
        (inet("2001:db8::1"), "this machine has no such address"),
        (inet(interface="nosuch0"), "there is no interface nosuch0"),
        (unix("/nonexistent/sock"), "there is no such directory"),
        (unix("/tmp/" + "x" * 110), "too long"),
    ],
)
def test_what_cannot_be_bound(bind: Bind, why: str) -> None:
    assert why in refusal(bind)


def test_an_abstract_name_in_use() -> None:
    bind = unix(f"\0hitlessd-test-{os.getpid()}")
    listener = opened(bind)
    assert "another process listens there" in refusal(bind)
    close(listener)


# --- unix paths


def test_a_path_that_is_a_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("mine")
    assert "not a socket; remove it" in refusal(unix(path))
    with pytest.raises(SystemRefused, match="not a socket"):
        opened(unix(path), replace=True)
    assert path.read_text() == "mine"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_SEQPACKET, socket.SOCK_DGRAM])
def test_a_path_where_somebody_lives(tmp_path: Path, kind: socket.SocketKind) -> None:
    path = tmp_path / "sock"
    with socket.socket(socket.AF_UNIX, kind) as other:
        other.bind(str(path))
        if kind != socket.SOCK_DGRAM:
            other.listen(0)
        inode = path.stat().st_ino
        assert "another process listens there" in refusal(unix(path))
        assert path.stat().st_ino == inode
    stale = opened(unix(path))  # now it is stale
    assert path.stat().st_ino != inode
    close(stale)


def test_a_path_whose_backlog_is_full(tmp_path: Path) -> None:
    path = tmp_path / "sock"
    with socket.socket(socket.AF_UNIX) as other, socket.socket(socket.AF_UNIX) as first:
        other.bind(str(path))
        other.listen(0)
        first.connect(str(path))
        assert "another process listens there" in refusal(unix(path))


def test_a_live_path_is_replaced_when_asked_without_a_moment_of_absence(tmp_path: Path) -> None:
    bind = unix(tmp_path / "sock")
    old = opened(bind)
    new = opened(bind, replace=True)
    assert serves(new, bind)
    close_unwanted(old)  # the path is not its own any more
    assert serves(new, bind)
    close_unwanted(new)
    assert list(tmp_path.iterdir()) == []


def test_a_leftover_temporary_name_is_no_obstacle(tmp_path: Path) -> None:
    (tmp_path / f"sock.{os.getpid()}.tmp").write_text("")
    listener = opened(unix(tmp_path / "sock"))
    assert [path.name for path in tmp_path.iterdir()] == ["sock"]
    close(listener)


@pytest.mark.parametrize("replaced", [False, True])
def test_a_path_that_was_removed_or_replaced_is_bound_anew(tmp_path: Path, replaced: bool) -> None:
    bind = unix(tmp_path / "sock")
    listener = opened(bind)
    os.unlink(tmp_path / "sock")
    if replaced:
        (tmp_path / "sock").write_text("by somebody else")
    wanted = Wanted("f", bind)
    assert assign([wanted], [listener]) == ([], [wanted], [listener])
    close_unwanted(listener)
    assert (tmp_path / "sock").exists() is replaced  # only what is ours is removed


def test_only_our_own_path_is_unlinked(tmp_path: Path) -> None:
    path = tmp_path / "sock"
    listener = opened(unix(path))
    os.rename(path, tmp_path / "elsewhere")
    path.write_text("not ours")
    listener.unlink()
    assert path.read_text() == "not ours"
    path.unlink()
    os.rename(tmp_path / "elsewhere", path)
    listener.unlink()
    assert not path.exists()
    listener.unlink()
    close(listener)


def test_a_listener_of_another_program_is_never_unlinked(tmp_path: Path) -> None:
    path = tmp_path / "sock"
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(f"{path}.4711.tmp")  # as haproxy does
        other.listen()
        os.rename(f"{path}.4711.tmp", path)
        taken = Listener.adopt(os.dup(other.fileno()), {})
    assert taken.identity == Identity(socket.AF_UNIX, f"unix@{path}")
    close_unwanted(taken)
    assert path.exists()


# --- adopting and matching


def test_what_is_no_listener_is_refused_and_closed(tmp_path: Path) -> None:
    ours, theirs = socket.socketpair()
    udp = socket.socket(type=socket.SOCK_DGRAM)
    bound = socket.socket()
    bound.bind((LOOPBACK, 0))
    packets = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    packets.bind(str(tmp_path / "packets"))
    packets.listen()
    for fd in (memfd(), *(sock.detach() for sock in (ours, theirs, udp, bound, packets))):
        with pytest.raises(SystemRefused, match=f"cannot use descriptor {fd}: "):
            Listener.adopt(fd, {})
        assert not is_open(fd)
    with pytest.raises(SystemRefused):
        Listener.adopt(fd, {})  # not even open


@pytest.mark.parametrize(
    "inode", [5, "ab", [1], {"a": 1}, [None, 2], [float("inf"), 1], ["x", "y"]], ids=lambda value: repr(value)
)
def test_a_record_that_makes_no_sense_is_refused_and_the_descriptor_closed(inode: object) -> None:
    listener = opened(inet())
    fd = os.dup(listener.sock.fileno())
    with pytest.raises(SystemRefused, match="its record makes no sense"):
        Listener.adopt(fd, {"inode": inode})
    assert not is_open(fd)
    close(listener)


def test_matching_by_address_and_by_name() -> None:
    binds = [inet(), inet(), inet("::1")]
    listeners = [opened(bind) for bind in binds]
    named = [
        Listener.adopt(opened(inet()).sock.detach(), {"origin": "systemd", "name": name})
        for name in ("http", "http", "other")
    ]
    wanted = [Wanted("f", bind) for bind in (binds[1], inet(), Bind(SystemdAddress("http")), binds[0])]
    matched, missing, unwanted = assign(wanted, [*listeners, *named])
    assert [(want, listener) for want, listener in matched] == [
        (wanted[0], listeners[1]),
        (wanted[2], named[0]),
        (wanted[2], named[1]),
        (wanted[3], listeners[0]),
    ]
    assert missing == [wanted[1]]
    assert unwanted == [listeners[2], named[2]]
    close(*listeners, *named)


def test_systemds_sockets_match_by_address_too() -> None:
    bind = inet()
    given = Listener.adopt(opened(bind).sock.detach(), {"origin": "systemd", "name": "http"})
    assert assign([Wanted("f", bind)], [given])[0][0][1] is given
    close(given)


def test_what_differs_does_not_match() -> None:
    port = free_port()
    listener = opened(inet("::", port, v6only=True))
    for bind in (
        inet("::", port, v6only=False),
        inet("::1", port),
        inet("0.0.0.0", port),
        inet("::", port, interface="lo"),
    ):
        wanted = Wanted("f", bind)
        assert assign([wanted], [listener]) == ([], [wanted], [listener])
    close(listener)


def test_one_listener_serves_one_bind() -> None:
    bind = inet()
    listener = opened(bind)
    wanted = [Wanted("f", bind), Wanted("g", bind)]
    assert assign(wanted, [listener]) == ([(wanted[0], listener)], [wanted[1]], [])
    close(listener)


def test_a_name_that_systemd_did_not_pass() -> None:
    wanted = [Wanted("f", Bind(SystemdAddress("http"), Where("x.conf", 3)))]
    with pytest.raises(SystemRefused, match=r"cannot bind sd@http \(x.conf:3\): .* it passed none"):
        assign(wanted, [])
    given = Listener.adopt(opened(inet()).sock.detach(), {"origin": "systemd", "name": "other"})
    with pytest.raises(SystemRefused, match="it passed other"):
        assign(wanted, [given])
    close(given)


# --- one port, overlapping addresses


def is_listening(listener: Listener) -> bool:
    assert option(listener, socket.SOL_SOCKET, socket.SO_ACCEPTCONN) == listener.listening
    return listener.listening


def reuseport(*listeners: Listener) -> list[int]:
    return [option(listener, socket.SOL_SOCKET, socket.SO_REUSEPORT) for listener in listeners]


@pytest.mark.parametrize(
    ("old_host", "new_host", "through", "winner"),
    [
        ("0.0.0.0", LOOPBACK, LOOPBACK, "new"),
        (LOOPBACK, "0.0.0.0", LOOPBACK, "old"),
        ("::", "::1", "::1", "new"),
        ("::1", "::", "::1", "old"),
        ("::", LOOPBACK, LOOPBACK, "new"),
        (LOOPBACK, "::", LOOPBACK, "old"),
    ],
)
def test_an_overlapping_listener_steals_nothing_until_it_listens(
    old_host: str, new_host: str, through: str, winner: str
) -> None:
    port = free_port()
    old_bind, new_bind = inet(old_host, port, v6only=False), inet(new_host, port, v6only=False)
    original = opened(old_bind)
    held = adopted(original)  # the successor's copy
    refusal(new_bind)  # nobody may do that who does not hold it
    new = opened(new_bind, [held])
    assert not is_listening(new)
    assert reuseport(original, held, new) == [0, 0, 0]
    for _ in range(8):
        assert serves(original, new_bind, through)
    new.start_listening(0)
    assert is_listening(new)
    new.start_listening(0)  # again changes nothing
    assert reuseport(original, held, new) == [0, 0, 0]
    expected = new if winner == "new" else original
    for _ in range(8):
        assert serves(expected, new_bind, through)
    assert nothing_waits(original, new)
    # A stranger cannot join.
    with socket.socket() as stranger:
        stranger.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        with pytest.raises(OSError, match="in use") as caught:
            stranger.bind((LOOPBACK, port))
        assert caught.value.errno == errno.EADDRINUSE
    close(original, held)
    for _ in range(8):
        assert serves(new, new_bind, through)
    close(new)


def test_what_two_processes_let_rest_serves_as_before() -> None:
    bind = inet()
    first = opened(bind)
    second = Listener.adopt(os.dup(first.sock.fileno()), first.record())
    try:
        for listener in (first, second, first):
            listener.stop_listening()
            assert not is_listening(first) and not is_listening(second)
        second.start_listening(0)
        assert is_listening(first)
        with connect(bind) as client:
            server, _ = second.sock.accept()
            with server:
                server.setblocking(False)
                with pytest.raises(BlockingIOError):
                    server.recv(5)  # and not the end of it
                client.sendall(b"hello")
                wait_readable(server)
                assert server.recv(5) == b"hello"
    finally:
        first.close()
        second.close()


def test_two_new_listeners_may_overlap_each_other() -> None:
    port = free_port()
    first = opened(inet("0.0.0.0", port))
    second = opened(inet(LOOPBACK, port), [first])
    second.start_listening(5)
    assert serves(second, inet(LOOPBACK, port))
    assert serves(first, inet("127.0.0.2", port))
    close(first, second)


def test_a_held_listener_that_was_closed_is_no_obstacle() -> None:
    port = free_port()
    held = opened(inet("0.0.0.0", port))
    new = opened(inet(LOOPBACK, port), [held])
    close(held)
    new.start_listening(0)
    assert serves(new, inet(LOOPBACK, port))
    close(new)


# --- interfaces

_IN_A_NAMESPACE = """
import os, subprocess
from hitlessd.listeners import Listener, Wanted, assign, open_listener
from hitlessd.model import Bind, InetAddress

def ip(*words):
    subprocess.run(["ip", *words], check=True)

def device():
    ip("link", "add", "test0", "type", "veth", "peer", "name", "test1")
    ip("address", "add", "10.9.8.7/24", "dev", "test0")
    ip("link", "set", "test0", "up")

device()
bind = Bind(InetAddress("10.9.8.7", 4000), interface="test0")
wanted = Wanted("f", bind)
listener = open_listener(bind)

def again():
    return Listener.adopt(os.dup(listener.sock.fileno()), listener.record())

other = again()
assert other.identity.interface == "test0"
assert assign([wanted], [other]) == ([(wanted, other)], [], [])
ip("link", "delete", "test0")
gone = again()
assert gone.identity.interface == "?", gone.identity
device()
stale = again()
assert stale.identity.interface == "?", stale.identity
assert assign([wanted], [stale]) == ([], [wanted], [stale])
new = open_listener(bind, [stale])
new.start_listening(0)
assert again().identity.interface == "?" and new.identity.interface == "test0"
assert assign([wanted], [stale, new])[0] == [(wanted, new)]
print("done")
"""


def test_a_device_that_was_created_anew_is_another_one() -> None:
    argv = ["unshare", "--net", sys.executable, "-c", _IN_A_NAMESPACE]
    done = subprocess.run(argv, cwd=ROOT, timeout=30, capture_output=True, text=True, check=False)
    assert (done.stdout, done.returncode) == ("done\n", 0), done.stderr
