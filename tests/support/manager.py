"""A service manager for the tests: a NOTIFY_SOCKET that records datagrams and what came with them (sd_notify(3))."""

from __future__ import annotations

import array
import os
import socket
import threading
from types import TracebackType
from typing import NamedTuple

from tests.support.descriptors import identity
from tests.support.processes import Deadline, wait_readable


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
        self.held: list[int] = []
        """Every descriptor that came and is not closed."""
        self.store: list[tuple[str, int]] = []

    def receive(self) -> Datagram:
        """The next datagram; its descriptors stay ours."""
        wait_readable(self.sock, 10, "datagram")
        data, ancillary, flags, _ = self.sock.recvmsg(65536, socket.CMSG_SPACE(254 * 4), socket.MSG_CMSG_CLOEXEC)
        assert not flags & (socket.MSG_CTRUNC | socket.MSG_TRUNC)
        fds = array.array("i")
        for _level, _kind, payload in ancillary:
            fds.frombytes(payload)
        self.held += fds
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
        for datagram in datagrams:
            self.apply(datagram)
        return datagrams

    def apply(self, datagram: Datagram) -> None:
        """Do to the store what a datagram says."""
        lines, fds = datagram
        name = next((line.removeprefix("FDNAME=") for line in lines if line.startswith("FDNAME=")), "stored")
        if "FDSTORE=1" in lines:
            # What is there already stays; PID 1 compares open file descriptions.
            known = {identity(fd) for _, fd in self.store}
            self.store += [(name, fd) for fd in fds if identity(fd) not in known]
        elif "FDSTOREREMOVE=1" in lines:
            self.store = [(each, fd) for each, fd in self.store if each != name]

    def passed(self) -> list[tuple[int, str]]:
        """Copies of what is stored, for the next process, in an order that nobody may rely on."""
        return [(os.dup(fd), name) for name, fd in reversed(self.store)]

    def let_go(self, datagram: Datagram) -> None:
        """Close its descriptors, which ends a barrier."""
        for fd in datagram.fds:
            self.held.remove(fd)
            os.close(fd)

    def __enter__(self) -> FakeManager:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for fd in self.held:
            os.close(fd)
        self.held.clear()
        self.sock.close()


class Keeper:
    """A service manager that runs: applies each datagram as it comes, and keeps the store for the next process.

    `limit` is FileDescriptorStoreMax=: what does not fit is dropped, as PID 1 does. The lock guards all that is read.
    """

    def __init__(self, address: str, limit: int = 4096) -> None:
        self.address = address
        self.limit = limit
        self._manager = FakeManager(address)
        self._changed = threading.Condition()
        self._lines: list[str] = []
        self._moves: list[str] = []
        self._marks = 0
        self._thread = threading.Thread(target=self._run, daemon=True, name="keeper")

    @property
    def environment(self) -> dict[str, str]:
        """What a service has in its environment."""
        return {"NOTIFY_SOCKET": self.address, "FDSTORE": str(self.limit)}

    @property
    def names(self) -> list[str]:
        """The names of all that is stored."""
        with self._changed:
            return [name for name, _ in self._manager.store]

    @property
    def lines(self) -> list[str]:
        """All lines so far, but for those about descriptors."""
        with self._changed:
            return list(self._lines)

    @property
    def moves(self) -> list[str]:
        """What was put into the store and dropped from it so far, in order: '+ name', '- name'."""
        with self._changed:
            return list(self._moves)

    @property
    def status(self) -> str:
        """The newest STATUS=."""
        told = [line for line in self.lines if line.startswith("STATUS=")]
        return told[-1].removeprefix("STATUS=") if told else ""

    def passed(self) -> list[tuple[int, str]]:
        """Copies of what is stored, for the next process; the caller closes them."""
        with self._changed:
            return self._manager.passed()

    def drop(self) -> None:
        """Forget all that is stored, as PID 1 does with a unit that has stopped."""
        with self._changed:
            for _, fd in self._manager.store:
                self._let_go(fd)
            self._manager.store.clear()

    def settle(self, deadline: float = 10.0) -> None:
        """Return when all that has been sent so far is applied."""
        limit = Deadline(deadline)
        with self._changed:
            wanted = self._marks + 1
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.sendto(b"MARK", self.address)
        with self._changed:
            while self._marks < wanted:
                limit.check("the manager hears a mark")
                self._changed.wait(limit.left)

    def __enter__(self) -> Keeper:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.sendto(b"END", self.address)
        self._thread.join(10)
        self._manager.__exit__(kind, error, trace)

    def _run(self) -> None:
        while True:
            wait_readable(self._manager.sock, 3600, "datagram")
            datagram = self._manager.receive()
            if datagram.lines == ["END"]:
                return
            with self._changed:
                if datagram.lines == ["MARK"]:
                    self._marks += 1
                else:
                    self._apply(datagram)
                self._changed.notify_all()

    def _apply(self, datagram: Datagram) -> None:
        self._lines += [line for line in datagram.lines if not line.startswith("FD")]
        names = [line.removeprefix("FDNAME=") for line in datagram.lines if line.startswith("FDNAME=")]
        self._moves += [f"{'+' if 'FDSTORE=1' in datagram.lines else '-'} {name}" for name in names]
        room = self.limit - len(self._manager.store)
        if "FDSTORE=1" in datagram.lines and len(datagram.fds) > room:
            for fd in datagram.fds[room:]:
                self._let_go(fd)
            datagram = Datagram(datagram.lines, datagram.fds[:room])
        self._manager.apply(datagram)
        kept = {fd for _, fd in self._manager.store}
        for fd in [fd for fd in self._manager.held if fd not in kept]:
            self._let_go(fd)

    def _let_go(self, fd: int) -> None:
        self._manager.held.remove(fd)
        os.close(fd)
