"""What the kernel knows of a TCP connection: how many bytes were ever read from a socket, and written to it.

They tell the next process exactly which bytes a dead one had taken from one socket and not passed on to the other, see
struct tcp_info in linux/tcp.h, and SIOCINQ and SIOCOUTQ in tcp(7).
"""

from __future__ import annotations

import fcntl
import socket
import struct
import termios
import time
from contextlib import ExitStack
from typing import NamedTuple

from hitlessd.errors import reason_of

__all__ = ["CLOSED", "Counters", "is_tcp", "read", "read_last", "self_test"]

_SIZE = 136  # of struct tcp_info as far as it is read here
_STATE = 0  # tcpi_state
_LAST = struct.Struct("=I4xI")  # tcpi_last_data_sent, (tcpi_last_ack_sent,) tcpi_last_data_recv: milliseconds ago
_LAST_AT = 44
_BYTES = struct.Struct("=QQ")  # tcpi_bytes_acked, tcpi_bytes_received
_BYTES_AT = 120
_IPPROTO_TCP, _TCP_INFO = int(socket.IPPROTO_TCP), int(socket.TCP_INFO)
_INT = struct.Struct("i")

# enum of net/tcp_states.h
_FIN_WAIT1, _FIN_WAIT2, CLOSED, _CLOSE_WAIT, _LAST_ACK, _CLOSING = 4, 5, 7, 8, 9, 11
_FIN_RECEIVED = frozenset({_CLOSE_WAIT, _LAST_ACK, _CLOSING})
_FIN_SENT = frozenset({_FIN_WAIT1, _FIN_WAIT2, _CLOSING, _LAST_ACK})
#: A segment that comes while we look changes what we look at; more often than this in a row it hardly does.
_TRIES = 50


class Counters(NamedTuple):
    """A moment of one socket. One that is CLOSED counts as reset; read_last() looks closer."""

    state: int
    consumed: int  # bytes that were read from it, ever
    written: int  # bytes that were written to it, ever
    ended: bool  # a FIN has come (and stands behind what was not yet read)
    shut: bool  # a FIN was sent, or is to be sent behind what was written
    idle: float  # seconds since data last came or went

    @property
    def closed(self) -> bool:
        """Reset, or ended both ways and forgotten by the kernel."""
        return self.state == CLOSED

    @property
    def broken(self) -> bool:
        """Reset, as far as it is known."""
        return self.closed and not self.ended


def is_tcp(sock: socket.SocketType) -> bool:
    """Whether the kernel counts for it."""
    return sock.family in (socket.AF_INET, socket.AF_INET6)


def read(sock: socket.SocketType, connected: bool) -> Counters:
    """The counters of a socket that `connected` to its peer, or was accepted. Raises OSError where it is none of TCP's.

    OSError is raised, too, when it does not hold still.
    """
    fd = sock.fileno()
    getsockopt = sock.getsockopt
    info = getsockopt(_IPPROTO_TCP, _TCP_INFO, _SIZE)
    for _ in range(_TRIES):
        (unread,) = _INT.unpack(fcntl.ioctl(fd, termios.FIONREAD, b"\0\0\0\0"))
        (unsent,) = _INT.unpack(fcntl.ioctl(fd, termios.TIOCOUTQ, b"\0\0\0\0"))
        again = getsockopt(_IPPROTO_TCP, _TCP_INFO, _SIZE)
        if info[_STATE] == again[_STATE] and info[_BYTES_AT:] == again[_BYTES_AT:]:
            break
        info = again
    else:
        raise OSError("its counters do not hold still")
    if len(info) < _SIZE:
        raise OSError("its counters are not known to this kernel")
    state = info[_STATE]
    acked, received = _BYTES.unpack_from(info, _BYTES_AT)
    ended, shut = state in _FIN_RECEIVED, state in _FIN_SENT
    # FIN counts as a byte both ways, and so does the SYN of the one who connected.
    consumed = received - unread - ended
    written = acked + unsent - shut - connected
    return Counters(state, consumed, written, ended, shut, min(_LAST.unpack_from(info, _LAST_AT)) / 1000)


def read_last(sock: socket.SocketType, connected: bool) -> Counters:
    """As read(), of a socket that a dead process has left: whether one that is CLOSED was reset, or has ended in order.

    If the process knew of the reset, it looks as if in order, but then neither counter is what it should be: there was
    no FIN to be counted. An error that it did not know of is taken from the socket.
    """
    known = read(sock, connected)
    if not known.closed or sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
        return known
    return known._replace(consumed=known.consumed - 1, written=known.written - 1, ended=True, shut=True)


def self_test(patience: float = 2.0) -> str:
    """Whether this kernel counts as read() expects, tried on the loopback interface: "" or what is wrong."""
    with ExitStack() as stack:
        try:
            listener = stack.enter_context(socket.socket())
            listener.bind(("127.0.0.1", 0))
            listener.listen(1)
            client = stack.enter_context(socket.socket())
            client.settimeout(patience)
            client.connect(listener.getsockname())
            listener.settimeout(patience)
            server = stack.enter_context(listener.accept()[0])
            server.settimeout(patience)
            client.sendall(b"x" * 1000)
            client.shutdown(socket.SHUT_WR)
            server.recv(400, socket.MSG_WAITALL)
            server.sendall(b"y" * 10)
            client.recv(10, socket.MSG_WAITALL)
            deadline = time.monotonic() + patience
            while True:
                one, other = read_last(client, True), read_last(server, False)
                found = (one.consumed, one.written, one.ended, one.shut, other.consumed, other.written, other.ended)
                if found == (10, 1000, False, True, 400, 10, True):
                    server.shutdown(socket.SHUT_WR)
                if found == (10, 1000, True, True, 400, 10, True):
                    return ""
                if time.monotonic() > deadline:
                    return f"this kernel's TCP counters do not add up {found}"
        except OSError as error:
            return f"this kernel's TCP counters cannot be tried on the loopback interface: {reason_of(error)}"
