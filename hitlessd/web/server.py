"""HTTP on main's loop, for metrics and the statistics page: who asks, who answers, and who is late.

Nothing that a client does may block the loop or grow memory: requests, answers, silence and clients have limits. What
answers are made of is the responders' business; one that fails costs its client a 500 and nobody else anything.
"""

from __future__ import annotations

import contextlib
import select
import socket
from collections.abc import Callable, Mapping
from typing import Any

from hitlessd.acceptor import Acceptor
from hitlessd.deadlines import Deadlines
from hitlessd.errors import PeerError
from hitlessd.events import Event
from hitlessd.http.grammar import Refused
from hitlessd.model import StatsPage
from hitlessd.quota import Quota
from hitlessd.runtime.control import LoopLike
from hitlessd.web.client import Client
from hitlessd.web.exchange import CONTINUE, INPUT_LIMIT, Asked, refusal, rendered
from hitlessd.web.feeds import Feeds
from hitlessd.web.message import Feed, Grant, Reply, Responder, Service, Waiting
from hitlessd.web.passage import Arrivals, exported

__all__ = ["WebServer"]

CLIENTS = 100
UNREAD_LIMIT = 64 << 20  # bytes of unsent answers, all clients together
EXPORT_TOTAL = 3 << 20  # bytes of everything that goes to a successor, as JSON text, but for unsent answers

_HASTE = 0.1  # seconds within which whoever connects to ask something does
_METHODS = ("GET", "HEAD", "POST")
_BURST = 16  # requests that one client may have answered before others get their turn
_PIECE = 1 << 18  # bytes offered to the kernel in one go
_GONE = select.EPOLLHUP | select.EPOLLERR
_READ, _WRITE = select.EPOLLIN, select.EPOLLOUT


class WebServer:
    """Serves any number of listening sockets, and connections that workers pass on. `log(severity, message)`."""

    def __init__(
        self,
        loop: LoopLike,
        log: Callable[..., None],
        responders: Mapping[Service, Responder],
        page_of: Callable[[str], StatsPage | None] = lambda _proxy: None,
    ) -> None:
        """`page_of` finds the page of a proxy, for connections that a predecessor had; None: it has none any more."""
        self._loop = loop
        self._quota = Quota.on(loop, log)
        self._responders = responders
        self._acceptor: Acceptor[Grant] = Acceptor(loop, self._accepted, self._short)
        self._feeds = Feeds(loop, self._advance, self._feed_failed)
        self._clients: list[Client] = []
        self._deadlines = Deadlines(loop, lambda: tuple(self._clients), self._late)
        self._arrivals = Arrivals(page_of)

    def add_listener(self, sock: socket.socket, grant: Grant) -> None:
        """Accept on `sock`, a non-blocking listening socket that stays the caller's to close. Raises OSError."""
        self._acceptor.add(sock, grant)

    def remove_listener(self, sock: socket.socket) -> None:
        """Stop accepting on `sock`, before it is closed or handed over. Its clients stay; an unknown one is ignored."""
        self._acceptor.remove(sock)

    def adopt(self, sock: socket.socket, already: bytes, grant: Grant) -> None:
        """Answer one request of a client that a worker has passed on. Owns `sock`; `already` is what came on it: a
        head, and maybe its body or the beginning of that."""
        sock.setblocking(False)
        self._begin(Client(sock, grant, self._loop.time(), already, once=True))

    @property
    def busy(self) -> bool:
        """Somebody is being answered, or is about to ask."""
        now = self._loop.time()
        return any(client.engaged or (not client.used and now < client.since + _HASTE) for client in self._clients)

    def leave(self) -> None:
        """Forget the listeners, idle clients and feeds; whoever is to hear something hears it as the last."""
        self._acceptor.close()
        for client in list(self._clients):
            client.once = True
            if not client.asked and not client.closing:
                self._read(client)
                self._advance(client)  # what has come just now is answered
            if client.alive and (client.feed or (client.used and client.idle)):
                self._drop(client)
            elif client.output and not client.inbox.data:
                client.closing = True

    def close(self) -> None:
        """Forget the listeners and close every client, sending what the kernel takes at once."""
        self._acceptor.close()
        for client in list(self._clients):
            self._flush(client)
            self._drop(client)
        self._deadlines.stop()
        self._quota.close()

    # Clients come and go

    def _accepted(self, sock: socket.socket, grant: Grant) -> None:
        peer = ""
        if sock.family != socket.AF_UNIX:
            with contextlib.suppress(OSError):
                host, port = sock.getpeername()[:2]
                peer = f"{host}:{port}"
        self._begin(Client(sock, Grant(grant.service, grant.page, grant.proxy, grant.admin, peer), self._loop.time()))

    def _begin(self, client: Client) -> None:
        if len(self._clients) >= CLIENTS and not self._make_room():
            self._complain("warning", f"refusing a {client}: too many clients")
            _end(client.sock)
            return
        try:
            self._serve(client)
        except OSError as error:
            client.sock.close()
            self._complain("warning", f"cannot serve a {client}: {error.strerror}")
            return
        self._advance(client)

    def _make_room(self) -> bool:
        """Neither idle clients can lock others out, nor those who take their time to ask: who has asked a whole
        request, as workers and programs do at once, is never sent away."""
        found = [client for client in self._clients if client.idle or client.slow]
        victim = min(found, key=lambda each: (not each.idle, each.since), default=None)
        if victim:
            if not victim.idle:
                self._complain("notice", f"dropping a {victim}: too many clients, and its request is not whole")
            self._drop(victim)
        return victim is not None

    def _short(self, reason: str) -> None:
        self._complain("warning", f"cannot accept a web client: {reason}")
        self._make_room()

    def _serve(self, client: Client) -> None:
        client.events = _READ
        self._loop.add(client.sock.fileno(), _READ, lambda events: self._ready(client, events))
        self._clients.append(client)

    def _drop(self, client: Client) -> None:
        if client.alive:
            self._loop.remove(client.sock.fileno())
            self._forget(client)
            _end(client.sock)

    def _forget(self, client: Client) -> None:
        client.alive = False
        self._clients.remove(client)
        self._feeds.forget(client)

    # Time

    def _late(self, client: Client) -> None:
        if client.output:
            self._complain("notice", f"dropping a {client}: it does not read its answer")
        elif client.asked:
            self._complain("warning", f"cannot answer a {client}: {client.asked.request.target} takes too long")
            self._reply(client, refusal(503, "cannot answer: it takes too long"), close=True)
            return self._advance(client)
        elif client.inbox.data:
            self._reply(client, refusal(408, "cannot read the request: it did not come in time"), close=True)
            return self._advance(client)
        self._drop(client)

    # What a client says, and what it hears

    def _ready(self, client: Client, events: int) -> None:
        if events & _READ and client.events & _READ:
            self._read(client)
        elif events & _GONE:
            return self._drop(client)
        self._advance(client)

    def _read(self, client: Client) -> None:
        try:
            data = client.sock.recv(max(1, INPUT_LIMIT - len(client.inbox.data)))
        except BlockingIOError:
            return
        except OSError:
            return self._drop(client)
        if client.lingering or client.feed:
            # What it says does not matter any more, only that it is there.
            return None if data else self._drop(client)
        if not client.inbox.data:
            client.since = self._loop.time()
        client.inbox.data += data
        client.ended = not data

    def _advance(self, client: Client) -> None:
        """Send what can be sent, answer what can be answered, and wait for what is needed next."""
        for turn in range(_BURST + 1):
            self._flush(client)
            if not client.alive or client.output or client.asked or client.closing:
                break
            if turn == _BURST:
                self._loop.call_later(0.0, lambda: self._advance(client))
            elif not self._step(client):
                break
        if client.alive and client.closing and not client.output and not client.lingering:
            self._linger(client)
        if not client.alive:
            return
        events = 0
        if client.output:
            events = _WRITE
        elif client.feed or client.lingering or not (client.asked or client.closing or client.ended):
            events = _READ
        if events != client.events:
            client.events = events
            self._loop.modify(client.sock.fileno(), events)
        self._deadlines.arm(client)

    def _step(self, client: Client) -> bool:
        """Answer the next request; False if there is none."""
        try:
            asked = client.inbox.next()
        except Refused as error:
            client.inbox.data.clear()
            self._reply(client, refusal(error.status, f"cannot answer the request: {error.reason}"), close=True)
            return True
        if asked:
            self._answer(client, asked)
            return True
        if client.ended:
            self._drop(client)
        elif client.inbox.expects:
            client.inbox.expects = False
            client.output += CONTINUE
            self._flush(client)
        return False

    def _answer(self, client: Client, asked: Asked) -> None:
        client.asked = asked
        client.since = self._loop.time()
        if asked.request.method not in _METHODS:
            allowed = Reply(405, b"cannot answer: unknown method\n", headers=(("allow", ", ".join(_METHODS)),))
            return self._reply(client, allowed)
        answer = self._ask(client, asked)
        if isinstance(answer, Feed):
            if not self._feeds.begin(client, asked, answer):
                self._reply(client, refusal(503, "cannot feed another client: there are too many"))
        elif isinstance(answer, Reply):
            self._reply(client, answer)
        else:
            self._await(client, asked, answer)

    def _ask(self, client: Client, asked: Asked) -> Reply | Feed | Waiting:
        try:
            return self._responders[client.grant.service](asked.request, client.grant)
        except Exception as error:
            return self._failed(asked, error)

    def _complain(self, severity: str, text: str) -> None:
        self._quota(severity, text, event=Event.WEB_CLIENT_DROPPED)

    def _failed(self, asked: Asked, error: Exception) -> Reply:
        """Main must outlive any mistake of a responder's."""
        text = f"cannot answer {asked.request.target}: {type(error).__name__}: {error}"
        self._quota("err", text, event=Event.BUG)
        return refusal(500, "cannot answer: internal error")

    def _feed_failed(self, client: Client, asked: Asked, error: Exception) -> None:
        self._failed(asked, error)
        self._drop(client)

    def _await(self, client: Client, asked: Asked, waiting: Waiting) -> None:
        def done(reply: Reply) -> None:
            if client.alive and client.asked is asked:
                self._reply(client, reply)
                # From the loop: it may have been there at once.
                self._loop.call_later(0.0, lambda: self._advance(client) if client.alive else None)

        try:
            waiting.begin(done)
        except Exception as error:
            done(self._failed(asked, error))

    def _reply(self, client: Client, reply: Reply, close: bool = False) -> None:
        asked, client.asked = client.asked, None
        keep = asked is not None and asked.keep_alive and not (close or client.once or client.ended)
        for part in rendered(reply, asked, keep):
            client.output += part
        client.closing = not keep
        client.used = True
        client.since = self._loop.time()
        self._limit_unread()

    def _limit_unread(self) -> None:
        if sum(each.unsent for each in self._clients) > UNREAD_LIMIT:
            worst = max(self._clients, key=lambda each: each.unsent)
            self._complain("warning", f"dropping a {worst}: it does not read, and {worst.unsent} bytes are waiting")
            self._drop(worst)

    def _flush(self, client: Client) -> None:
        while client.alive and client.output:
            with memoryview(client.output) as view:
                try:
                    sent = client.sock.send(view[client.sent : client.sent + _PIECE])
                except BlockingIOError:
                    return
                except OSError:
                    break
            client.since = self._loop.time()
            client.sent += sent
            if client.sent == len(client.output):
                client.output.clear()
                client.sent = 0
        else:
            return
        self._drop(client)

    def _linger(self, client: Client) -> None:
        """Say that there is no more and wait for the client to leave: whatever it still sends would otherwise make the
        kernel destroy, by a reset, what it has not read yet."""
        client.lingering = True
        client.since = self._loop.time()
        if client.ended:
            return self._drop(client)
        try:
            client.sock.shutdown(socket.SHUT_WR)
        except OSError:
            self._drop(client)

    # Handover

    def export_clients(self, most: int) -> list[tuple[int, dict[str, Any]]]:
        """Give every client away, for a successor: descriptors, and what import_client() needs of each (JSON).

        What is unsent travels as a descriptor of its own, before its client. There are at most `most`, and all together
        is no more than EXPORT_TOTAL; whoever does not fit is dropped.
        """
        found: list[tuple[int, dict[str, Any]]] = []
        room = EXPORT_TOTAL
        for client in sorted(self._clients, key=lambda each: each.idle):
            self._flush(client)
            if not client.alive or client.lingering or (client.closing and not client.output):
                self._drop(client)
                continue
            why = "there are too many"
            fd, size = client.sock.fileno(), 0
            parts: list[tuple[int, dict[str, Any]]] = []
            if len(found) + 2 <= most:
                try:
                    parts, size = exported(client, self._loop.time(), room)
                except OSError as error:
                    why = f"its answer cannot be kept: {error.strerror}"
            if not parts:
                self._complain("notice", f"dropping a {client}: a successor takes over, and {why}")
                self._drop(client)
                continue
            self._loop.remove(fd)
            self._forget(client)
            found += parts
            room -= size
        return found

    def import_client(self, fd: int, state: dict[str, Any]) -> None:
        """Serve a client that another server exported. Owns `fd`. Raises PeerError, the descriptor closed."""
        arrived = self._arrivals.take(fd, state, self._loop.time())
        if arrived is None:
            return
        client, feeding = arrived
        try:
            self._serve(client)
        except OSError as error:
            client.sock.close()
            raise PeerError(f"cannot take over a web client: {error.strerror}") from None
        self._go_on(client, feeding)
        if client.alive:
            self._advance(client)

    def _go_on(self, client: Client, feeding: bool) -> None:
        asked = client.asked
        if asked is None:
            return
        if not feeding:
            return self._answer(client, asked)
        answer = self._ask(client, asked)
        if isinstance(answer, Feed):
            self._feeds.resume(client, asked, answer)
        else:
            self._drop(client)  # there is no such feed any more


def _end(sock: socket.socket) -> None:
    """Close it for everybody: duplicates of a client's socket may live elsewhere, in a park for instance."""
    with contextlib.suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)
    sock.close()
