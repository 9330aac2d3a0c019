"""A service manager for the tests: a NOTIFY_SOCKET that records datagrams and what came with them (sd_notify(3))."""

from __future__ import annotations

import array
import os
import socket
from types import TracebackType
from typing import NamedTuple

from tests.support.descriptors import identity
from tests.support.processes import wait_readable


class Datagram(NamedTuple):
    """One datagram, its lines in order, and its descriptors."""

    lines: list[str]
    fds: list[int]


class FakeManager:
    """Binds `address` ('@name' for the abstract namespace) and keeps what has been stored, as PID 1 would."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.sock.bind("\0" + address[1:] if address.startswith("@") else address)
        self._received: list[int] = []
        self.store: list[tuple[str, int]] = []

    def receive(self) -> Datagram:
        """The next datagram; its descriptors stay ours."""
        wait_readable(self.sock, 10, "datagram")
        data, ancillary, flags, _ = self.sock.recvmsg(65536, socket.CMSG_SPACE(254 * 4), socket.MSG_CMSG_CLOEXEC)
        assert not flags & (socket.MSG_CTRUNC | socket.MSG_TRUNC)
        fds = array.array("i")
        for _level, _kind, payload in ancillary:
            fds.frombytes(payload)
        self._received += fds
        return Datagram(data.decode().split("\n"), list(fds))

    def waiting(self) -> list[Datagram]:
        """All datagrams that are there already."""
        found: list[Datagram] = []
        self.sock.setblocking(False)
        while True:
            try:
                self.sock.recv(1, socket.MSG_PEEK)
            except BlockingIOError:
                return found
            found.append(self.receive())

    def settle(self) -> list[Datagram]:
        """Apply the store's datagrams as PID 1 does; returns all that came."""
        datagrams = self.waiting()
        for lines, fds in datagrams:
            name = next((line.removeprefix("FDNAME=") for line in lines if line.startswith("FDNAME=")), "stored")
            if "FDSTORE=1" in lines:
                # What is there already stays; PID 1 compares open file descriptions.
                known = {identity(fd) for _, fd in self.store}
                self.store += [(name, fd) for fd in fds if identity(fd) not in known]
            elif "FDSTOREREMOVE=1" in lines:
                self.store = [(each, fd) for each, fd in self.store if each != name]
        return datagrams

    def passed(self) -> list[tuple[int, str]]:
        """Copies of what is stored, for the next process, in an order that nobody may rely on."""
        return [(os.dup(fd), name) for name, fd in reversed(self.store)]

    def let_go(self, datagram: Datagram) -> None:
        """Close its descriptors, which ends a barrier."""
        for fd in datagram.fds:
            self._received.remove(fd)
            os.close(fd)

    def __enter__(self) -> FakeManager:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for fd in self._received:
            os.close(fd)
        self._received.clear()
        self.sock.close()
