"""Which backend a TCP connection goes to, by `use_backend`.

Rules about addresses are decided at once. Where one asks for the server name of TLS, the ClientHello is waited for, up
to `tcp-request inspect-delay`; it is only looked at (MSG_PEEK), and stays in the socket for the server.
"""

from __future__ import annotations

import select
import socket
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from hitlessd.conditions import Test, compile_condition
from hitlessd.model import UseBackend
from hitlessd.samples import Sample
from hitlessd.tls import HELLO_LIMIT, server_name
from hitlessd.worker.connection import Connection, State
from hitlessd.worker.preface import Preface, proceed
from hitlessd.worker.relay import READABLE, TROUBLE

if TYPE_CHECKING:
    from collections.abc import Mapping

    from hitlessd.worker.backend import LiveBackend

__all__ = ["AwaitsHello", "Router", "TcpSample", "Unknown", "plain", "route"]

_PEEK = int(socket.MSG_PEEK)
#: Of so many bytes it is always known whether a server name is in them.
_ENOUGH = HELLO_LIMIT + 64 * 5 + 1


class Unknown(Exception):
    """A rule has asked for the server name, which has not come yet."""


class TcpSample:
    """A TCP connection as conditions see it (hitlessd/samples.py). Asking for `sni` before it is set raises Unknown."""

    request = response = None
    server_name = ""

    def __init__(self, conn: Connection) -> None:
        self._conn = conn
        self._sni: str | None = None
        self.frontend_name = conn.frontend.name
        self.backend_name = conn.backend.name if conn.entered else ""

    @property
    def client(self) -> tuple[str, int] | None:
        return plain(self._conn.address)

    @property
    def local(self) -> tuple[str, int] | None:
        return plain(self._conn.local())

    @property
    def sni(self) -> str:
        if self._sni is None:
            raise Unknown
        return self._sni

    def tell(self, name: str) -> None:
        """The server name is known now; "": there is none."""
        self._sni = name


def plain(address: Any) -> tuple[str, int] | None:
    """What socket(7) gives, as conditions see it: a client of IPv4 that came to a socket of IPv6 is one of IPv4."""
    return (str(address[0]).removeprefix("::ffff:"), int(address[1])) if isinstance(address, tuple) else None


class Router:
    """The rules of one frontend, in order."""

    def __init__(
        self, rules: Sequence[UseBackend], backends: Mapping[str, LiveBackend], default: LiveBackend, delay: float
    ) -> None:
        """`delay`: seconds to wait for a ClientHello. Raises KeyError for unknown backends, ValueError for conditions
        that make no sense; the configuration's reader has refused both before."""
        self._rules: list[tuple[Test, LiveBackend]] = [
            (compile_condition(rule.condition), backends[rule.backend]) for rule in rules
        ]
        self._default = default
        self.delay = delay

    def choose(self, sample: Sample) -> LiveBackend:
        """The first backend whose rule holds, else the default one. Raises Unknown where that cannot be told yet."""
        for test, backend in self._rules:
            if test(sample):
                return backend
        return self._default


def route(conn: Connection) -> None:
    """The client is known: find its backend, or begin to wait for what tells it."""
    router, sample = conn.frontend.router, TcpSample(conn)
    assert router is not None
    try:
        backend = router.choose(sample)
    except Unknown:
        conn.state, conn.due = State.CONTENT, conn.worker.now + router.delay
        waiting = AwaitsHello(conn)
        if router.delay and not conn.client.ready:
            waiting.listen()
            conn.rearm()
        else:
            waiting.on_event(conn.client.ready)
        return
    conn.enter(backend)
    conn.assign()
    if conn.client.live:
        conn.rearm()  # its timeouts may be shorter than those that counted so far


class AwaitsHello(Preface):
    """Waits until the server name is known."""

    __slots__ = ()

    def listen(self) -> None:
        """What has come already is an event of the registration, or of the next turn."""
        conn = self.conn
        conn.waiting = self
        conn.worker.handlers[conn.client.fd] = self.on_event

    def on_event(self, events: int) -> None:
        conn = self.conn
        if conn.frontend.router is None:
            self._decide("", events | select.EPOLLIN)  # we have come to a configuration without rules
            return
        sock = conn.client.sock
        try:
            # Of a socket that was reset, what had come before can still be read.
            left = events & select.EPOLLERR and sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            data = sock.recv(_ENOUGH, _PEEK)
        except BlockingIOError:
            self._decide(None, events)
            return
        except OSError:
            left = True
        if left:
            self._abort("CR")
            return
        # Behind an end nothing more comes, and all before it is there to be seen.
        over = not data or events & TROUBLE or len(data) >= _ENOUGH
        name = server_name(data)
        self._decide("" if over and name is None else name, events | select.EPOLLIN)

    def _decide(self, name: str | None, events: int) -> None:
        conn = self.conn
        if name is None and conn.due > conn.worker.now:
            self.listen()
            conn.rearm()
            return
        router, sample = conn.frontend.router, TcpSample(conn)
        sample.tell(name or "")
        backend = router.choose(sample) if router is not None else conn.frontend.backend
        conn.state = State.CONNECTING

        def step(conn: Connection) -> None:
            conn.enter(backend)
            conn.assign()

        proceed(conn, events & READABLE, step)

    def expired(self) -> None:
        conn = self.conn
        if conn.due <= conn.worker.now:
            self.on_event(0)
            return
        self._abort("cR")

    def _abort(self, cause: str) -> None:
        self.conn.cause = cause
        self.conn.count_abort(True)
        self.conn.close()
