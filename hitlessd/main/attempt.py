"""One check on its way: a non-blocking socket on main's loop, from connect(2) to an outcome."""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Callable

from hitlessd.health import Outcome, Result
from hitlessd.loop import READ, WRITE, Loop
from hitlessd.model import Backend, Check, InetAddress, Server
from hitlessd.probes import MOST, HttpProbe, proxy_header, request

__all__ = ["Attempt", "OutOfMeans"]

#: What this machine lacks says nothing about the server.
_MEANS = frozenset({errno.EADDRNOTAVAIL, errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.ENOSPC})
_RESET = struct.pack("ii", 1, 0)  # SO_LINGER: close(2) sends RST (socket(7))


class OutOfMeans(OSError):
    """No check can be made now."""


class Attempt:
    """`done(outcome)` is called once, and later than __init__ returns, unless it is cancelled before."""

    def __init__(
        self, loop: Loop, backend: Backend, server: Server, check: Check, done: Callable[[Outcome], object]
    ) -> None:
        """Raises OutOfMeans."""
        self._loop = loop
        self._done = done
        self._probe = HttpProbe(backend.http_check) if backend.http_check else None
        self._proxy_version = check.send_proxy
        self._unsent = request(backend.http_check) if backend.http_check else b""
        self._bothers = bool(check.send_proxy or backend.http_check)  # the server will hear more than a handshake
        self._connected = False
        self._fd = -1
        # The limit of a connection is only shorter than the interval where there is one for what follows
        # (configuration manual, "timeout check").
        timeouts = backend.timeouts
        self._answer_within = timeouts.check
        patience = check.inter
        if timeouts.check is not None and timeouts.connect is not None:
            patience = min(patience, timeouts.connect)
        address = check.address or server.address
        self._sock = self._open(address.family)
        self._inet = isinstance(address, InetAddress)
        self._timer = loop.call_later(patience, self._expired)
        try:
            self._connect(address.sockaddr)
        except BaseException:
            self.cancel()
            raise

    def cancel(self) -> None:
        """Forget it; the server sees the connection go."""
        self._timer.cancel()
        if self._fd >= 0:
            self._loop.remove(self._fd)
            self._fd = -1
        self._sock.close()

    @staticmethod
    def _open(family: socket.AddressFamily) -> socket.socket:
        try:
            sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        except OSError as error:
            raise OutOfMeans(error.errno, error.strerror) from None
        return sock

    def _connect(self, address: tuple[str, int] | str) -> None:
        if self._inet:
            self._sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if not self._bothers:
                # The handshake's last ACK waits for data that never comes: what the server gets instead is our RST, so
                # that whoever accepts there is not woken for a check.
                self._sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 0)
        error = self._sock.connect_ex(address)
        if error in _MEANS:
            raise OutOfMeans(error, os.strerror(error))
        if error and error != errno.EINPROGRESS:
            self._timer.cancel()
            self._timer = self._loop.call_soon(lambda: self._end(Outcome(Result.L4CON, 0, os.strerror(error))))
            return
        try:
            self._loop.add(self._sock.fileno(), WRITE, self._writable)
        except OSError as failure:
            raise OutOfMeans(failure.errno, failure.strerror) from None
        self._fd = self._sock.fileno()

    def _writable(self, _events: int) -> None:
        if not self._connected:
            error = self._sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) or self._met_itself()
            if error:
                return self._end(Outcome(Result.L4CON, 0, os.strerror(error)))
            self._connected = True
            self._unsent = self._proxy_header() + self._unsent
            if self._answer_within is not None:
                self._timer.cancel()
                self._timer = self._loop.call_later(self._answer_within, self._expired)
        try:
            while self._unsent:
                self._unsent = self._unsent[self._sock.send(self._unsent, socket.MSG_NOSIGNAL) :]
        except BlockingIOError:
            return
        except OSError as error:
            return self._end(_broken(error))
        if self._probe is None:
            if not self._bothers and self._inet:
                self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            return self._end(Outcome(Result.L4OK))
        self._loop.remove(self._fd)
        self._loop.add(self._fd, READ, self._readable)

    def _proxy_header(self) -> bytes:
        try:
            return proxy_header(self._proxy_version, self._sock.getsockname(), self._sock.getpeername())
        except OSError:
            return b""  # reset already, which sending will show

    def _met_itself(self) -> int:
        """Where nobody listens on an ephemeral port, a connection from that very port connects to itself."""
        try:
            met = self._inet and self._sock.getsockname() == self._sock.getpeername()
        except OSError as error:
            return error.errno or errno.ECONNREFUSED
        return errno.ECONNREFUSED if met else 0

    def _readable(self, _events: int) -> None:
        assert self._probe
        try:
            data = self._sock.recv(MOST)
        except BlockingIOError:
            return
        except OSError as error:
            return self._end(_broken(error))
        outcome = self._probe.feed(data) if data else self._probe.end()
        if outcome:
            self._end(outcome)

    def _expired(self) -> None:
        self._end(Outcome(Result.L7TOUT if self._connected else Result.L4TOUT))

    def _end(self, outcome: Outcome) -> None:
        self.cancel()
        self._done(outcome)


def _broken(error: OSError) -> Outcome:
    return Outcome(Result.SOCKERR, 0, os.strerror(error.errno or errno.EIO))
