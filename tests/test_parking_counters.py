"""The kernel's counters are what a relay has read and written, in every state of a connection."""

from __future__ import annotations

import contextlib
import socket
import struct
from collections.abc import Iterator

import pytest

from hitlessd.parking import counters
from tests.support.processes import poll_until
from tests.support.relay import listen

Ends = tuple[socket.socket, socket.socket]


@pytest.fixture(params=["127.0.0.1", "::1"])
def ends(request: pytest.FixtureRequest) -> Iterator[Ends]:
    """One that connected, and one that was accepted."""
    listener = listen((request.param, 0))
    one = socket.create_connection(listener.getsockname()[:2])
    listener.setblocking(True)
    other, _ = listener.accept()
    with listener, one, other:
        yield one, other


def _soon(sock: socket.socket, connected: bool, **expected: object) -> None:
    def found() -> bool:
        now = counters.read(sock, connected)
        return all(getattr(now, name) == value for name, value in expected.items())

    poll_until(found, 10, f"{expected}; it is {counters.read(sock, connected)}")


def _fill(sock: socket.socket) -> int:
    """Write until the kernel takes no more; how much it took."""
    sock.setblocking(False)
    sent = 0
    with contextlib.suppress(BlockingIOError):
        while True:
            sent += sock.send(b"x" * 65536)
    return sent


def test_a_fresh_one_has_counted_nothing(ends: Ends) -> None:
    one, other = ends
    for sock, connected in ((one, True), (other, False)):
        _soon(sock, connected, consumed=0, written=0, ended=False, shut=False)


def test_bytes_count_when_they_are_read_and_when_they_are_written(ends: Ends) -> None:
    one, other = ends
    one.sendall(b"x" * 1000)
    _soon(one, True, written=1000)
    _soon(other, False, consumed=0)
    other.recv(300, socket.MSG_WAITALL)
    other.recv(100, socket.MSG_PEEK)
    _soon(other, False, consumed=300)


def test_bytes_that_the_peer_does_not_take_are_written_all_the_same(ends: Ends) -> None:
    one, other = ends
    sent = _fill(one)
    _soon(one, True, written=sent)
    other.recv(1000, socket.MSG_WAITALL)
    _soon(other, False, consumed=1000)


@pytest.mark.parametrize("read_before", [0, 7, 10])
def test_a_fin_is_no_byte(ends: Ends, read_before: int) -> None:
    one, other = ends
    one.sendall(b"0123456789")
    if read_before:
        other.recv(read_before, socket.MSG_WAITALL)
    one.shutdown(socket.SHUT_WR)
    _soon(one, True, written=10, shut=True, ended=False)
    _soon(other, False, consumed=read_before, ended=True, shut=False)
    if read_before < 10:
        other.recv(100)
    assert other.recv(1) == b""
    _soon(other, False, consumed=10, ended=True)
    other.sendall(b"answer")
    other.shutdown(socket.SHUT_WR)
    _soon(one, True, closed=True)
    _soon(other, False, closed=True)
    # Ended in order, both ways, they have counted both FINs; and what was not yet read is still there.
    assert counters.read_last(one, True)[1:5] == (0, 10, True, True)
    assert counters.read_last(other, False)[1:5] == (10, 6, True, True)
    assert one.recv(100) == b"answer"
    assert counters.read_last(one, True)[1:5] == (6, 10, True, True)


@pytest.mark.parametrize("known", [False, True])
def test_a_reset_is_no_end_in_order(ends: Ends, known: bool) -> None:
    one, other = ends
    one.sendall(b"0123456789")
    assert other.recv(10, socket.MSG_WAITALL)
    other.sendall(b"answer")
    assert one.recv(6, socket.MSG_WAITALL)
    one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    one.close()
    _soon(other, False, closed=True)
    if known:
        with pytest.raises(ConnectionResetError):
            other.recv(1)
    # There was no FIN, and if nobody can tell any more, the bytes do.
    found = counters.read_last(other, False)
    assert found[1:5] == ((9, 5, True, True) if known else (10, 6, False, False))
    assert found.broken is not known


def test_a_fin_behind_a_full_window_counts_once(ends: Ends) -> None:
    one, other = ends
    sent = _fill(one)
    one.shutdown(socket.SHUT_WR)
    _soon(one, True, written=sent, shut=True)
    got = 0
    while data := other.recv(1 << 20):
        got += len(data)
    assert got == sent
    _soon(other, False, consumed=sent, ended=True)
    _soon(one, True, written=sent, shut=True)


def test_urgent_bytes_count_as_others_where_they_are_inline(ends: Ends) -> None:
    one, other = ends
    one.sendall(b"before")
    one.send(b"!", socket.MSG_OOB)
    one.sendall(b"after")
    _soon(one, True, written=12)
    other.recv(6, socket.MSG_WAITALL)
    _soon(other, False, consumed=6)
    assert other.recv(6, socket.MSG_WAITALL) == b"!after"
    _soon(other, False, consumed=12)


def test_idleness_is_since_either_direction(ends: Ends) -> None:
    one, _other = ends
    one.sendall(b"x")
    assert counters.read(one, True).idle < 5


def test_what_is_no_tcp_socket_is_refused() -> None:
    one, other = socket.socketpair()
    with one, other:
        assert not counters.is_tcp(one)
        with pytest.raises(OSError, match="not supported"):
            counters.read(one, True)


def test_this_kernel_passes_the_test_at_the_start() -> None:
    assert counters.self_test() == ""
