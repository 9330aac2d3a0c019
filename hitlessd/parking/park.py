"""A park: a queue of descriptors in flight, and the book that says what they are.

Descriptors that were sent into a unix socket and not yet received stay open for as long as that socket does. A park has
a SOCK_SEQPACKET pair whose two ends lie in systemd's store beside the book, so that whatever is in its queue outlives
every process of ours. A message has the descriptors of up to 126 connections, and a record for each:

    number (8 bytes) | slot << 8 | kind (4 bytes)

of a connection with its client's socket, or with its client's and its server's; or of a pipe (its number and slot
are its place among the book's pipes). A record counts only if the book's slot still has that number.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import socket
import struct
import termios
from collections.abc import Callable, Sequence
from enum import IntEnum
from typing import NamedTuple

from hitlessd.descriptors import close_all, receive_with_descriptors, send_with_descriptors
from hitlessd.errors import PeerError
from hitlessd.parking.book import Book

__all__ = ["PARTS", "ROOM", "Kind", "Park", "Record", "farewell", "records_of", "reset"]

#: The three descriptors of a park, by what they are called in the store.
PARTS = ("in", "out", "book")
#: Descriptors of one message.
ROOM = 252
_RECORD = struct.Struct("=QI")
_LONGEST = ROOM * _RECORD.size
#: Bytes that the queue may take, at most: far above what the system's limit (net.core.wmem_max) mostly allows.
_QUEUE = 8 << 20
_SO_PEEK_OFF = 42  # socket(7); the socket module does not know it
_AF_UNSPEC = struct.pack("=H14x", socket.AF_UNSPEC)


class Kind(IntEnum):
    """What a record is of, and thus how many descriptors it has."""

    CLIENT = 1
    BOTH = 2
    PIPE = 3

    @property
    def descriptors(self) -> int:
        return 1 if self is Kind.CLIENT else 2


class Record(NamedTuple):
    """One record of a message."""

    kind: Kind
    number: int
    slot: int


class Park:
    """Its name, unlike any other's in the store, and its three parts. Owns them."""

    def __init__(self, name: str, writer: socket.socket, reader: socket.socket, book: Book) -> None:
        self.name = name
        self.writer = writer
        self.reader = reader
        self.book = book
        self.stored = False
        for sock in (writer, reader):
            sock.setblocking(False)

    @classmethod
    def create(cls, name: str, slots: int, generation: int) -> Park:
        """An empty one. Raises OSError."""
        book = Book.create(slots, generation)
        try:
            writer, reader = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        except OSError:
            book.close()
            raise
        writer.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _QUEUE)
        return cls(name, writer, reader, book)

    @classmethod
    def adopt(cls, name: str, parts: dict[str, int]) -> Park:
        """What was made by another process, by PARTS; takes the descriptors over. Raises PeerError."""
        rest = dict(parts)
        try:
            if set(rest) != set(PARTS):
                raise PeerError(f"cannot use the parked connections of {name}: a part is missing")
            book = Book.attach(rest.pop("book"))
        except PeerError:
            close_all(rest.values())
            raise
        try:
            socks = {}
            for part in ("in", "out"):
                socks[part] = socket.socket(fileno=rest[part])
                del rest[part]
                if socks[part].type != socket.SOCK_SEQPACKET:
                    raise PeerError(f"cannot use the parked connections of {name}: not a queue")
        except (OSError, PeerError) as error:
            for sock in socks.values():
                sock.close()
            book.close()
            for fd in rest.values():
                with contextlib.suppress(OSError):
                    os.close(fd)
            raise PeerError(str(error)) from None
        return cls(name, socks["in"], socks["out"], book)

    def parts(self) -> dict[str, int]:
        """The descriptors, by PARTS."""
        return {"in": self.writer.fileno(), "out": self.reader.fileno(), "book": self.book.fd}

    def send(self, records: Sequence[Record], fds: Sequence[int]) -> bytes:
        """Put a message at the end of the queue, which is returned. Raises OSError: EAGAIN when the queue is full,
        ETOOMANYREFS when this user has too many descriptors in flight."""
        data = b"".join([_RECORD.pack(number, slot << 8 | kind) for kind, number, slot in records])
        send_with_descriptors(self.writer, data, fds)
        return data

    def drop(self) -> None:
        """Take the first message out of the queue and let go of its descriptors. Raises OSError."""
        self.reader.recv(1)  # without room for descriptors, which the kernel then closes

    def messages(self, complain: Callable[[str], object]) -> list[tuple[int, list[Record]]]:
        """All that is in the queue, without the descriptors, which peek() gets by the message's place. What makes no
        sense is left out, and complained of. Raises PeerError when it cannot be read."""
        found, at = [], 0
        senseless: list[str] = []
        try:
            while True:
                self.reader.setsockopt(socket.SOL_SOCKET, _SO_PEEK_OFF, at)
                try:
                    data = self.reader.recv(_LONGEST + 1, socket.MSG_PEEK)
                except BlockingIOError:
                    break
                if not data:
                    break
                try:
                    found.append((at, records_of(data)))
                except ValueError as error:
                    senseless.append(str(error))
                at += len(data)
            self.reader.setsockopt(socket.SOL_SOCKET, _SO_PEEK_OFF, -1)
        except OSError as error:
            raise PeerError(f"cannot read the queue of parked connections {self.name}: {error}") from None
        if senseless:
            number = len(senseless)
            complain(f"cannot understand {number} of the messages that park connections in {self.name}: {senseless[0]}")
        return found

    def peek(self, at: int) -> list[int]:
        """The descriptors of a message, which stays in the queue. Raises PeerError when we lack descriptors."""
        self.reader.setsockopt(socket.SOL_SOCKET, _SO_PEEK_OFF, at)
        try:
            _, fds = receive_with_descriptors(self.reader, _LONGEST, flags=socket.MSG_PEEK)
        finally:
            self.reader.setsockopt(socket.SOL_SOCKET, _SO_PEEK_OFF, -1)
        return fds

    def close(self) -> None:
        self.writer.close()
        self.reader.close()
        self.book.close()


def records_of(data: bytes) -> list[Record]:
    """Those of a message. Raises ValueError when it cannot be one."""
    if len(data) % _RECORD.size or len(data) > _LONGEST:
        raise ValueError(f"a message of {len(data)} bytes")
    return [Record(Kind(word & 0xFF), number, word >> 8) for number, word in _RECORD.iter_unpack(data)]


def farewell(sock: socket.SocketType) -> None:
    """Do to the peer what close(2) would, although somebody else still holds the socket; close(2) alone would then do
    nothing."""
    try:
        onoff, linger = struct.unpack("ii", sock.getsockopt(socket.SOL_SOCKET, socket.SO_LINGER, 8))
        (unread,) = struct.unpack("i", fcntl.ioctl(sock.fileno(), termios.FIONREAD, b"\0\0\0\0"))
        if sock.family != socket.AF_UNIX and (unread or (onoff and not linger)):
            reset(sock)
        else:
            sock.shutdown(socket.SHUT_RDWR)
    except OSError:
        return  # it has ended already


def reset(sock: socket.SocketType) -> None:
    """End a TCP connection by RST, whoever else holds the socket (connect(2), AF_UNSPEC); a unix socket by its end."""
    if sock.family == socket.AF_UNIX:
        with contextlib.suppress(OSError):
            sock.shutdown(socket.SHUT_RDWR)
        return
    ctypes.CDLL(None, use_errno=True).connect(sock.fileno(), _AF_UNSPEC, len(_AF_UNSPEC))
