"""HAProxy's `_getsocks`: our two sides against each other, byte by byte, against liars, and against a real haproxy."""

from __future__ import annotations

import array
import contextlib
import os
import signal
import socket
import struct
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from hitlessd.errors import PeerError
from hitlessd.handover.getsocks import BATCH, Giver, take
from hitlessd.loop import Loop
from tests.support.descriptors import identity, memfd, no_leak
from tests.support.processes import Deadline, Process, free_port, free_ports, poll_until, raise_descriptor_limit

HAPROXY = "/usr/sbin/haproxy"
INT = struct.Struct("=i")
RECORD = bytes(6)


@pytest.fixture(autouse=True)
def _many_descriptors() -> None:
    raise_descriptor_limit()


@contextlib.contextmanager
def giving(
    fds: Sequence[int], timeout: float = 10.0, greeted: bool = False
) -> Iterator[tuple[socket.socket, list[bool]]]:
    """A Giver on a loop in a thread: the client's end, and what done() was told once the block has ended.

    `greeted`: the client says `_getsocks`, which is read first, as the runtime API does.
    """
    loop = Loop(lambda what, error: pytest.fail(f"{what}: {error!r}"))
    ours, theirs = socket.socketpair()
    theirs.settimeout(10)
    told: list[bool] = []

    def serve() -> None:
        if greeted:
            assert ours.recv(10, socket.MSG_WAITALL) == b"_getsocks\n"
        Giver(loop, ours, fds, told.append, timeout)
        limit = Deadline(20)
        while not told and not limit.expired:
            loop.turn(limit.left)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield theirs, told
    finally:
        theirs.close()
        thread.join()
        loop.close()
        assert len(told) == 1


def receive(sock: socket.socket, size: int = 65536) -> tuple[bytes, list[int]]:
    data, ancillary, flags, _ = sock.recvmsg(size, socket.CMSG_SPACE(253 * 4), socket.MSG_CMSG_CLOEXEC)
    assert not flags & socket.MSG_CTRUNC
    fds = array.array("i")
    for _level, _kind, payload in ancillary:
        fds.frombytes(payload)
    return data, list(fds)


def close_all(fds: Sequence[int]) -> None:
    for fd in fds:
        os.close(fd)


@pytest.mark.parametrize("count", [0, 1, 252, 253, 504, 3000])
def test_our_two_sides_pass_any_number_of_descriptors_in_order(count: int) -> None:
    with no_leak():
        files = [memfd() for _ in range(min(count, 3))]
        fds = [files[n % 3] for n in range(count)]
        with giving(fds, greeted=True) as (client, told):
            taken = take(client, 10)
            assert [identity(fd) for fd in taken] == [identity(fd) for fd in fds]
            assert not any(map(os.get_inheritable, taken))
        assert told == [True]
        close_all(taken + files)


@pytest.mark.parametrize("count", [0, 1, 252, 253, 504, 505])
def test_the_giver_sends_exactly_what_haproxy_expects(count: int) -> None:
    with no_leak():
        file = memfd()
        with giving([file] * count) as (client, told):
            assert receive(client, 4) == (INT.pack(count), [])  # as haproxy reads it
            got = 0
            while got < count:
                data, fds = receive(client)
                assert len(fds) == min(BATCH, count - got)
                assert data == RECORD * len(fds)
                close_all(fds)
                # The next batch comes only when this one has been acknowledged, the end too.
                client.setblocking(False)
                with pytest.raises(BlockingIOError):
                    client.recv(1)
                assert told == []
                client.settimeout(10)
                client.sendall(INT.pack(got))
                got += len(fds)
            assert client.recv(1) == b""
        assert told == [True]
        os.close(file)


def test_the_number_travels_without_descriptors() -> None:
    with no_leak():
        file = memfd()
        with giving([file]) as (client, _told):
            # Who has no room for descriptors here would lose them; they must come with the bytes after the first four.
            assert client.recvmsg(4, 0)[2] == 0
            data, fds = receive(client)
            assert (data, len(fds)) == (RECORD, 1)
            close_all(fds)
        os.close(file)


def test_one_byte_is_acknowledgement_enough() -> None:
    with no_leak():
        file = memfd()
        with giving([file] * 253) as (client, told):
            assert receive(client, 4)[0] == INT.pack(253)
            for _ in range(2):
                close_all(receive(client)[1])
                client.sendall(b"\0")
            assert client.recv(1) == b""
        assert told == [True]
        os.close(file)


def test_a_client_that_never_acknowledges_is_given_up() -> None:
    with no_leak():
        file = memfd()
        with giving([file] * 253, timeout=0.1) as (client, told):
            assert receive(client, 4)[0] == INT.pack(253)
            close_all(receive(client)[1])
            assert client.recv(1) == b""
        assert told == [False]
        os.close(file)


@pytest.mark.parametrize("batches", [0, 1])
def test_a_client_that_closes_early_has_taken_nothing(batches: int) -> None:
    with no_leak():
        file = memfd()
        with giving([file] * 600) as (client, told):
            receive(client, 4)
            for _ in range(batches):
                close_all(receive(client)[1])
        assert told == [False]
        os.close(file)


def test_a_client_that_closes_after_the_last_batch_has_taken_everything() -> None:
    with no_leak():
        file = memfd()
        with giving([file] * 2) as (client, told):
            receive(client, 4)
            close_all(receive(client)[1])
        assert told == [True]
        os.close(file)


Peer = Callable[[socket.socket], None]


def taking(peer: Peer, timeout: float = 10.0) -> list[int]:
    """take() from a peer that behaves as the function says; the peer closes when it returns."""
    ours, theirs = socket.socketpair()
    theirs.settimeout(10)

    def behave() -> None:
        with theirs, contextlib.suppress(OSError):
            assert theirs.recv(10, socket.MSG_WAITALL) == b"_getsocks\n"
            peer(theirs)

    thread = threading.Thread(target=behave)
    thread.start()
    try:
        with ours:
            return take(ours, timeout)
    finally:
        thread.join()


def send(sock: socket.socket, data: bytes, fds: Sequence[int]) -> None:
    sock.sendmsg([data], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else [])


def announce(sock: socket.socket, count: int) -> None:
    sock.sendall(INT.pack(count))


def _closes(sock: socket.socket) -> None:
    return


def _stalls(sock: socket.socket) -> None:
    sock.recv(1)


def _stalls_in_the_number(sock: socket.socket) -> None:
    sock.sendall(b"\0\0")
    sock.recv(1)


def _garbage(sock: socket.socket) -> None:
    sock.sendall(b"Unknown command: '_getsocks', but maybe one of the following ones is a better match:\n")


def _negative(sock: socket.socket) -> None:
    announce(sock, -5)


def _two_billion(sock: socket.socket) -> None:
    announce(sock, 2_000_000_000)


def _fewer(sock: socket.socket) -> None:
    announce(sock, 3)
    send(sock, RECORD * 2, [0, 0])
    sock.recv(4)


def _more(sock: socket.socket) -> None:
    announce(sock, 1)
    send(sock, RECORD * 2, [0, 0])
    sock.recv(4)


def _middle_of_a_batch(sock: socket.socket) -> None:
    announce(sock, 2)
    send(sock, RECORD, [0, 0])


def _without_descriptors(sock: socket.socket) -> None:
    announce(sock, 2)
    send(sock, RECORD * 2, [])
    sock.recv(4)


def _records_without_end(sock: socket.socket) -> None:
    announce(sock, 1)
    send(sock, b"\xff" * 300, [0])
    sock.recv(4)


def _stalls_in_a_batch(sock: socket.socket) -> None:
    announce(sock, 2)
    send(sock, RECORD, [0, 0])
    sock.recv(4)


@pytest.mark.parametrize(
    ("peer", "why"),
    [
        (_closes, "closed without an answer.*expose-fd listeners"),
        (_stalls, r"no answer within 0\.1 s"),
        (_stalls_in_the_number, r"no answer within 0\.1 s"),
        (_garbage, "announced 1852534357 of them"),
        (_negative, "announced -5 of them"),
        (_two_billion, "announced 2000000000 of them"),
        (_fewer, "closed after 2 of 3 descriptors"),
        (_more, "announced 1 descriptors and sent more"),
        (_middle_of_a_batch, "closed after 2 of 2 descriptors"),
        (_without_descriptors, "sent data without descriptors"),
        (_records_without_end, "sent data without descriptors"),
        (_stalls_in_a_batch, r"no answer within 0\.1 s"),
    ],
)
def test_what_the_other_side_does_wrong_is_said_and_nothing_is_leaked(peer: Peer, why: str) -> None:
    with no_leak(), pytest.raises(PeerError, match=f"^cannot take listeners over: .*{why}"):
        taking(peer, 0.1 if "no answer" in why else 10)


def test_a_record_cut_in_pieces_is_put_together() -> None:
    record = b"\x03net\x04eth0" + bytes(4)

    def peer(sock: socket.socket) -> None:
        announce(sock, 3)
        send(sock, record[:1], [0, 0])
        for byte in (record * 2)[1:]:
            send(sock, bytes([byte]), [])
        assert INT.unpack(sock.recv(4, socket.MSG_WAITALL)) == (0,)
        send(sock, RECORD, [0])
        assert INT.unpack(sock.recv(4, socket.MSG_WAITALL)) == (2,)

    with no_leak():
        taken = taking(peer)
        assert len(taken) == 3
        close_all(taken)


def test_batches_of_253_as_old_releases_send_them() -> None:
    def peer(sock: socket.socket) -> None:
        announce(sock, 254)
        send(sock, RECORD * 253, [0] * 253)
        sock.recv(4)
        send(sock, RECORD, [0])

    with no_leak():
        taken = taking(peer)  # this peer does not even wait for the last acknowledgement
        assert len(taken) == 254
        close_all(taken)


# --- a real haproxy


@contextlib.contextmanager
def haproxy(directory: Path, ports: Sequence[int], *arguments: str) -> Iterator[Process]:
    """A running haproxy that answers 'ok' to HTTP on these ports, and its runtime socket at `directory`/stats."""
    config = directory / "haproxy.cfg"
    binds = "".join(f"  bind 127.0.0.1:{port}\n" for port in ports)
    config.write_text(
        f"global\n  stats socket {directory}/stats mode 600 expose-fd listeners level admin\n  nbthread 1\n"
        "defaults\n  mode http\n  timeout client 10s\n  timeout server 10s\n  timeout connect 10s\n"
        f"frontend f\n{binds}  http-request return status 200 content-type text/plain string ok\n"
    )
    with Process([HAPROXY, "-db", "-f", str(config), *arguments]) as process:
        try:
            poll_until(lambda: connected(directory / "stats") or not process.running, 10, "haproxy")
            assert process.running, process.stderr.text
            yield process
        finally:
            process.stop(first=signal.SIGTERM)
            process.stdout.join()
            process.stderr.join()


def connected(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as sock:
        return sock.connect_ex(str(path)) == 0


def ask(sock: socket.socket) -> bool:
    """Whether an HTTP request on a connection is answered."""
    sock.sendall(b"GET / HTTP/1.0\r\n\r\n")
    answer = b""
    while piece := sock.recv(4096):
        answer += piece
    return answer.endswith(b"ok")


@pytest.mark.parametrize("count", [1, 252, 253, 504])
def test_take_from_a_running_haproxy(tmp_path: Path, count: int) -> None:
    ports = free_ports(count)
    with no_leak(), haproxy(tmp_path, ports):
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(str(tmp_path / "stats"))
            taken = [socket.socket(fileno=fd) for fd in take(sock, 10)]
        names = [sock.getsockname() for sock in taken]
        for each in taken:
            each.close()
        # The runtime socket itself comes along, by its temporary name.
        assert {name for name in names if isinstance(name, tuple)} == {("127.0.0.1", port) for port in ports}
        assert len([name for name in names if isinstance(name, str)]) == 1


def test_a_haproxy_without_expose_fd_gives_nothing(tmp_path: Path) -> None:
    config, path, port = tmp_path / "haproxy.cfg", tmp_path / "plain", free_port()
    config.write_text(f"global\n  stats socket {path}\nlisten l\n  timeout client 1s\n  bind 127.0.0.1:{port}\n")
    with no_leak(), Process([HAPROXY, "-db", "-f", str(config)]) as process:
        poll_until(lambda: connected(path), 10, "haproxy")
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(str(path))
            with pytest.raises(PeerError, match="expose-fd listeners"):
                take(sock, 10)
        process.stop()
        process.stdout.join()
        process.stderr.join()


@pytest.mark.parametrize("count", [1, 252, 253, 504])
def test_a_real_haproxy_takes_from_us_and_serves_what_has_queued(tmp_path: Path, count: int) -> None:
    ports = free_ports(count)
    with no_leak(), contextlib.ExitStack() as stack:
        listeners = [stack.enter_context(socket.create_server(("127.0.0.1", port), backlog=16)) for port in ports]
        for listener in listeners:
            # Without our descriptors haproxy could not bind.
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)
        runtime = stack.enter_context(socket.socket(socket.AF_UNIX))
        runtime.bind(str(tmp_path / "ours"))
        runtime.listen()
        waiting = [stack.enter_context(socket.create_connection(("127.0.0.1", port), 10)) for port in ports[:3]]
        loop = Loop(lambda what, error: pytest.fail(f"{what}: {error!r}"))
        stack.callback(loop.close)
        told: list[bool] = []

        def serve() -> None:
            client, _ = runtime.accept()
            assert client.recv(10, socket.MSG_WAITALL) == b"_getsocks\n"
            Giver(loop, client, [listener.fileno() for listener in listeners], told.append)
            limit = Deadline(10)
            while not told and not limit.expired:
                loop.turn(limit.left)
            for listener in listeners:
                listener.close()

        thread = threading.Thread(target=serve)
        thread.start()
        with haproxy(tmp_path, ports, "-x", str(tmp_path / "ours")):
            thread.join()
            assert told == [True]
            assert all(map(ask, waiting))
            for port in {ports[0], ports[count // 2], ports[-1]}:
                with socket.create_connection(("127.0.0.1", port), 10) as sock:
                    assert ask(sock)
