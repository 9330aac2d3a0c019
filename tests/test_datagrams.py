"""Datagrams reach whoever is there, whatever became of who was there before, and nobody waits for them."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
from pathlib import Path

import pytest

from hitlessd.datagrams import Datagrams
from tests.support.processes import free_port


def _receiver(family: int, address: object) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_DGRAM)
    sock.bind(address)  # type: ignore[arg-type]
    sock.settimeout(10)
    return sock


def _fill(datagrams: Datagrams) -> None:
    while not (error := datagrams.send(b"x" * 1000)):
        pass
    assert error == errno.EAGAIN


def test_a_udp_server_that_goes_and_comes_back() -> None:
    # Not one that anybody else is given while nobody has it.
    address = ("127.0.0.1", free_port(kind=socket.SOCK_DGRAM))
    first = _receiver(socket.AF_INET, address)
    with contextlib.closing(Datagrams(socket.AF_INET, address)) as datagrams:
        assert not datagrams.send(b"one")
        assert first.recv(100) == b"one"
        first.close()
        # Each is answered by an ICMP message, which the next one hears of: nothing that is worth a failure.
        assert [datagrams.send(b"lost") for _ in range(4)] == [0] * 4
        with _receiver(socket.AF_INET, address) as second:
            assert not datagrams.send(b"two")
            assert second.recv(100) == b"two"


def test_no_way_to_a_server() -> None:
    with contextlib.closing(Datagrams(socket.AF_INET, ("255.255.255.255", 514))) as datagrams:
        assert datagrams.send(b"x") == errno.EDESTADDRREQ  # it may not be connected to a broadcast address
        with _receiver(socket.AF_INET, ("127.0.0.1", 0)) as receiver:
            datagrams._address = receiver.getsockname()  # the way is there
            assert not datagrams.send(b"y")
            assert receiver.recv(100) == b"y"


def test_an_address_of_ours_that_is_no_more_costs_nothing() -> None:
    """As when the socket says EINVAL because its end was an address of an interface that has got another one."""
    receiver = _receiver(socket.AF_INET, ("127.0.0.1", 0))
    datagrams = Datagrams(socket.AF_INET, receiver.getsockname())
    with receiver, contextlib.closing(datagrams):
        datagrams.open()
        assert datagrams.socket is not None
        datagrams.socket.shutdown(socket.SHUT_WR)  # it can send no more
        assert not datagrams.send(b"x")
        assert receiver.recv(100) == b"x"


@pytest.mark.parametrize("ends", [True, False])
def test_another_receiver_at_the_path(tmp_path: Path, ends: bool) -> None:
    """The old one has closed its socket, or has it still but reads nothing."""
    path = str(tmp_path / "log")
    with _receiver(socket.AF_UNIX, path) as first, contextlib.closing(Datagrams(socket.AF_UNIX, path)) as datagrams:
        _fill(datagrams)
        os.unlink(path)
        if ends:
            first.close()
        with _receiver(socket.AF_UNIX, path) as second:
            assert not datagrams.send(b"one") and not datagrams.send(b"two")
            assert [second.recv(100), second.recv(100)] == [b"one", b"two"]


def test_too_large() -> None:
    with contextlib.closing(Datagrams(socket.AF_INET, ("127.0.0.1", 514))) as datagrams:
        assert datagrams.send(b"x" * 70000) == errno.EMSGSIZE
