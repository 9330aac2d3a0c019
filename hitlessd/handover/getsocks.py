"""HAProxy's `_getsocks` exchange, both sides (as HAProxy 1.8 to 3.x speak it; integers are 4 bytes in host order).

client: "_getsocks\\n"
server: N, alone; then batches of descriptors, each with a small record per descriptor
client: 4 bytes of acknowledgement after each batch
server: closes
"""

from __future__ import annotations

import array
import os
import socket
import struct
import time
from collections.abc import Callable, Sequence

from hitlessd.descriptors import receive_with_descriptors
from hitlessd.errors import PeerError, reason_of
from hitlessd.loop import READ, WRITE, Loop

__all__ = ["BATCH", "Giver", "take"]

#: HAProxy's batch since 2.6; up to 2.5 it was 253, which a receiver must have room for.
BATCH = 252
_ROOM = 253
_INT = struct.Struct("=i")
#: Namespace and interface names, two lengths of at most 127 and 4 bytes of options, per descriptor.
_LONGEST_RECORD = 2 * 128 + 4
#: More listeners than any HAProxy has; an error text read as a number is far above.
_MOST = 100_000


class Giver:
    """Serves one `_getsocks` client on the loop. Owns the socket; the descriptors must stay open until `done(ok)`."""

    def __init__(
        self,
        loop: Loop,
        sock: socket.socket,
        fds: Sequence[int],
        done: Callable[[bool], object],
        timeout: float = 10.0,
    ) -> None:
        sock.setblocking(False)
        self._loop = loop
        self._sock = sock
        self._fds = list(fds)
        self._done = done
        self._sent = -1  # the count has not been sent
        self._awaiting = False
        self._timer = loop.call_later(timeout, lambda: self._end(False))
        loop.add(sock.fileno(), READ | WRITE, self._ready)

    def _ready(self, events: int) -> None:
        try:
            if events & ~WRITE and not self._acknowledged():
                return
            if not self._awaiting:
                self._send()
        except BlockingIOError:
            return
        except OSError:
            # HAProxy 2.6 closes without reading the end; by then it has everything.
            self._end(self._sent >= len(self._fds))

    def _acknowledged(self) -> bool:
        """Read what the client sent; False when the exchange is over."""
        if not self._sock.recv(4096):
            self._end(self._sent >= len(self._fds))
            return False
        if self._awaiting:
            self._awaiting = False
            if self._sent >= len(self._fds):
                self._end(True)
                return False
            self._loop.modify(self._sock.fileno(), READ | WRITE)
        return True

    def _send(self) -> None:
        if self._sent < 0:
            # On its own: the client has no room for descriptors at this point.
            self._sock.send(_INT.pack(len(self._fds)), socket.MSG_NOSIGNAL)
            self._sent = 0
            if not self._fds:
                self._end(True)
            return
        batch = self._fds[self._sent : self._sent + BATCH]
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", batch))]
        # Per descriptor: no namespace, no interface, options 0; what matters is told by the socket itself.
        self._sock.sendmsg([bytes(6 * len(batch))], rights, socket.MSG_NOSIGNAL)
        self._sent += len(batch)
        self._awaiting = True
        self._loop.modify(self._sock.fileno(), READ)

    def _end(self, ok: bool) -> None:
        if self._sock.fileno() < 0:
            return
        self._timer.cancel()
        self._loop.remove(self._sock.fileno())
        self._sock.close()
        self._done(ok)


def take(sock: socket.socket, timeout: float) -> list[int]:
    """Ask a haproxy, or a hitlessd, for its listening sockets. Blocks at most `timeout` seconds between two messages.

    The caller owns the descriptors. Raises PeerError saying what the other side did wrong; nothing is leaked then.
    """
    fds: list[int] = []
    try:
        sock.settimeout(timeout)
        sock.sendall(b"_getsocks\n")
        count = _INT.unpack(_exactly(sock, _INT.size))[0]
        if not 0 <= count <= _MOST:
            raise PeerError(f"cannot take listeners over: the other side announced {count} of them")
        while len(fds) < count:
            _one_batch(sock, fds, count, time.monotonic() + timeout)
        return fds
    except TimeoutError:
        _close_all(fds)
        raise PeerError(f"cannot take listeners over: no answer within {timeout:g} s") from None
    except OSError as error:
        _close_all(fds)
        raise PeerError(f"cannot take listeners over: {reason_of(error)}") from None
    except PeerError:
        _close_all(fds)
        raise


def _close_all(fds: list[int]) -> None:
    while fds:
        os.close(fds.pop())


def _exactly(sock: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        piece = sock.recv(size - len(data))
        if not piece:
            raise PeerError(
                "cannot take listeners over: the other side closed without an answer;"
                " has its `stats socket` the word `expose-fd listeners`?"
            )
        data += piece
    return data


def _one_batch(sock: socket.socket, fds: list[int], count: int, deadline: float) -> None:
    """Receive one batch and acknowledge it. A stream may cut a batch's records in pieces, so they are counted."""
    before, records, new = len(fds), bytearray(), 0
    while True:
        data, received = receive_with_descriptors(sock, _ROOM * _LONGEST_RECORD, _ROOM)
        fds += received
        new += len(received)
        if not data:
            raise PeerError(
                f"cannot take listeners over: the other side closed after {len(fds)} of {count} descriptors"
            )
        records += data
        if len(fds) > count:
            raise PeerError(f"cannot take listeners over: it announced {count} descriptors and sent more")
        if new and _records_complete(records, new):
            break
        if not new or len(records) > new * _LONGEST_RECORD:
            raise PeerError("cannot take listeners over: the other side sent data without descriptors")
        if time.monotonic() > deadline:
            raise TimeoutError
    try:
        sock.sendall(_INT.pack(before))
    except OSError:
        # Releases 2.6.0 to 3.2-dev5 do not wait for the last acknowledgement and may be gone.
        if len(fds) < count:
            raise


def _records_complete(records: bytearray, count: int) -> bool:
    at = 0
    for _ in range(count):
        for _name in range(2):
            if at >= len(records):
                return False
            at += 1 + records[at]
        at += 4
    return at <= len(records)
