"""Sockets and clients of the runtime API on the main process's loop: accept, read lines, write answers, time out.

Nothing that a client does may block the loop or grow memory: a line has a limit, no further command is executed while
answers are unread, unread answers have a limit, silence has a limit, and so has the number of clients.
"""

from __future__ import annotations

import re
import select
import socket
from collections.abc import Sequence
from typing import Any

from hitlessd.acceptor import Acceptor
from hitlessd.deadlines import Deadlines
from hitlessd.errors import PeerError
from hitlessd.events import Event
from hitlessd.log import Logger
from hitlessd.model import StatsSocket, UnixAddress
from hitlessd.quota import Quota
from hitlessd.runtime.client import (
    EXPORT_CLIENTS,
    EXPORT_LIMIT,
    EXPORT_TOTAL,
    LINE_LIMIT,
    Client,
    is_privileged,
    restored,
    takeover_refusal,
)
from hitlessd.runtime.command import Call, Pieces, Session
from hitlessd.runtime.control import Control, LoopLike, ReloadOutcome
from hitlessd.runtime.reloading import reload_answer
from hitlessd.runtime.words import split_line

__all__ = ["RuntimeServer"]

PRIVILEGED_CLIENTS = 512  # peers that are root or of our uid; for others `stats maxconn` counts
UNREAD_PAUSE = 65536  # bytes of unread answers from which on a client's next command waits
UNREAD_LIMIT = 32 << 20  # bytes of unread answers, all clients together

_TURN = 0.01  # seconds that one client may work before others get their turn
#: How a request of HTTP/1 ends its first line.
_HTTP = re.compile(rb" HTTP/[0-9.]+\r?$")
_GONE = select.EPOLLHUP | select.EPOLLERR
_READ, _WRITE = select.EPOLLIN, select.EPOLLOUT


class RuntimeServer:
    """Serves the runtime API on any number of listening sockets."""

    def __init__(self, loop: LoopLike, control: Control, log: Logger) -> None:
        self._loop = loop
        self._control = control
        self._log = log
        self._acceptor: Acceptor[StatsSocket] = Acceptor(loop, self._accepted, self._short)
        self._clients: list[Client] = []
        self._deadlines = Deadlines(loop, lambda: tuple(self._clients), self._late)
        self._quota = Quota.on(loop, log)

    # Listeners

    def add_listener(self, stats: StatsSocket, sock: socket.socket) -> None:
        """Accept on `sock`, a non-blocking listening socket that stays the caller's to close. Raises OSError."""
        self._acceptor.add(sock, stats)

    def remove_listener(self, sock: socket.socket) -> None:
        """Stop accepting on `sock`, before it is closed or handed over. Its clients stay; an unknown one is ignored."""
        self._acceptor.remove(sock)

    def _accepted(self, sock: socket.socket, stats: StatsSocket) -> None:
        client = Client(sock, stats, Session(stats.level), self._loop.time())
        client.session.privileged = is_privileged(client.credentials)
        if not self._make_room(client):
            sock.close()
            return
        try:
            self._serve(client)
        except OSError as error:
            sock.close()
            self._limited_log("warning", f"cannot serve a {client}: {error.strerror}")

    def _short(self, reason: str) -> None:
        """Of descriptors: free one."""
        self._limited_log("warning", f"cannot accept on the runtime API: {reason}")
        if idle := self._longest_idle(self._clients):
            self._drop(idle)

    def _make_room(self, newcomer: Client) -> bool:
        """See to it that idle clients cannot lock others out, and ordinary ones never the operator."""
        privileged = newcomer.session.privileged
        peers = [client for client in self._clients if client.session.privileged == privileged]
        most = PRIVILEGED_CLIENTS if privileged else self._control.config.global_.stats_maxconn
        if len(peers) < most:
            return True
        if victim := self._longest_idle(peers):
            self._limited_log("notice", f"dropping the {victim}: too many clients, and it is idle longest")
            self._drop(victim)
            return True
        self._limited_log("warning", f"refusing a {newcomer}: too many clients")
        return False

    @staticmethod
    def _longest_idle(clients: Sequence[Client]) -> Client | None:
        """Nobody who waits for a reload; one with an answer under way, read or not, only if there is no other."""
        found = [client for client in clients if client.waiting is None]
        return min(found, key=lambda client: (client.busy or bool(client.output), client.active), default=None)

    # Clients

    def _serve(self, client: Client) -> None:
        client.events = _READ
        self._loop.add(client.sock.fileno(), _READ, lambda events: self._ready(client, events))
        self._clients.append(client)
        self._deadlines.arm(client)

    def _drop(self, client: Client) -> None:
        """Forget a client and close its connection."""
        if self._release(client):
            client.sock.close()

    def _release(self, client: Client) -> bool:
        if not client.alive:
            return False
        client.alive = False
        self._clients.remove(client)
        self._loop.remove(client.sock.fileno())
        return True

    def _late(self, client: Client) -> None:
        if client.output:
            self._limited_log("notice", f"dropping the {client}: it does not read its answer")
        self._drop(client)

    def _ready(self, client: Client, events: int) -> None:
        if events & _READ and client.events & _READ:
            self._read(client)
        elif events & _GONE:
            # Nothing is left to read, and nobody is left to answer.
            self._drop(client)
            return
        self._advance(client)

    def _read(self, client: Client) -> None:
        try:
            data = client.sock.recv(LINE_LIMIT - len(client.input))
        except BlockingIOError:
            return
        except OSError:
            self._drop(client)
            return
        client.active = self._loop.time()
        client.input += data
        client.ended = not data

    def _advance(self, client: Client) -> None:
        """Execute what can be executed, send what can be sent, and wait for what is needed next."""
        until = self._loop.time() + _TURN
        more = True
        while client.alive:
            self._flush(client)
            self._pull(client)
            if not more or not client.alive:
                break
            more = self._step(client) and self._loop.time() < until
        if not client.alive:
            return
        if not client.busy and not self._has_work(client):
            # As with HAProxy, an unfinished line is not executed, and without a prompt the connection ends as soon as
            # nothing more has arrived.
            client.closing |= client.ended or (client.asked and not client.session.prompt and not client.input)
        if client.closing and not client.output:
            self._drop(client)
            return
        events = 0
        # Who waits for a reload is read from too, so that its end is noticed.
        if not client.closing and not client.ended and len(client.input) < LINE_LIMIT:
            events |= _READ if len(client.output) < UNREAD_PAUSE else 0
        if client.output or self._has_work(client):
            events |= _WRITE
        if events != client.events:
            client.events = events
            self._loop.modify(client.sock.fileno(), events)

    @staticmethod
    def _has_work(client: Client) -> bool:
        return not client.busy and not client.closing and bool(client.commands or b"\n" in client.input)

    def _step(self, client: Client) -> bool:
        """Execute one command; False when that must wait or there is none."""
        if client.busy or client.closing or len(client.output) >= UNREAD_PAUSE:
            return False
        if not client.commands and not self._next_line(client):
            return False
        if client.alive and client.commands:
            self._execute(client, client.commands.popleft())
        return client.alive

    def _next_line(self, client: Client) -> bool:
        end = client.input.find(b"\n")
        if end >= LINE_LIMIT or (end < 0 and len(client.input) >= LINE_LIMIT):
            client.output += f"cannot read the command: longer than {LINE_LIMIT} bytes\n\n".encode()
            client.input.clear()
            client.closing = True
            self._limited_log("notice", f"dropping the {client}: its command is longer than {LINE_LIMIT} bytes")
            return False
        if end < 0:
            return False
        line = bytes(client.input[:end])
        del client.input[: end + 1]
        if not client.asked:
            client.asked = True
            if _HTTP.search(line):
                self._refuse_http(client)
                return False
            if line.split(None, 1)[:1] in ([b"_getsocks"], [b"_takeover"]):
                self._give_away(client, line)
                return True
        client.commands.extend(split_line(line))
        return True

    def _refuse_http(self, client: Client) -> None:
        """Any page on the web can have a browser send us lines behind its own; the browser asks nobody."""
        client.output += b"cannot answer: this is the runtime API, and no HTTP\n\n"
        client.input.clear()
        client.closing = True
        self._limited_log("warning", f"dropping the {client}: it speaks HTTP")

    def _execute(self, client: Client, command: bytes) -> None:
        from hitlessd.runtime.commands import execute  # at the first command, not when we start

        def call(words: Sequence[str]) -> Call:
            sockets = tuple(dict.fromkeys(self._acceptor.accepting))
            promise = lambda number: setattr(client, "waiting", number)  # noqa: E731
            return Call(words, client.session, self._control, sockets, self._loop.time(), done, promise)

        def done(outcome: ReloadOutcome) -> None:
            self._reloaded(client, outcome)

        try:
            answer = execute(command, call)
        except Exception as error:
            answer = self._failed(error)
            client.waiting = None
        if isinstance(answer, Pieces):
            client.pieces = answer
            self._pull(client)
        self._deadlines.arm(client)
        if client.session.closing:
            client.closing = True
            client.commands.clear()
        elif isinstance(answer, str):
            self._answer(client, answer)

    def _failed(self, error: Exception) -> str:
        """Main must outlive any mistake in a command."""
        text = f"cannot execute a runtime API command: {type(error).__name__}: {error}"
        self._log("err", text, event=Event.BUG)
        return "cannot execute the command: internal error\n"

    def _pull(self, client: Client) -> None:
        """Ask for the next piece of an answer, if the client has read the last one."""
        pieces = client.pieces
        waits = client.asking or client.pausing
        if pieces is not None and client.alive and not waits and len(client.output) < UNREAD_PAUSE:
            client.asking = True
            try:
                pieces.next(lambda text: self._piece(client, pieces, text))
            except Exception as error:
                client.asking, client.pieces = False, None
                self._answer(client, self._failed(error))

    def _piece(self, client: Client, pieces: Pieces, text: str | None) -> None:
        if not client.alive or client.pieces is not pieces:
            return
        client.active = self._loop.time()
        client.asking = False
        if text is None:
            client.pieces = None
            self._deadlines.arm(client)
            self._answer(client, "")
        else:
            client.output += text.encode("utf-8", "replace")
            self._flush(client)

        def go_on() -> None:
            client.pausing = False
            if client.alive:
                self._advance(client)

        # From the loop: a piece may be there at once, and the next one, too.
        client.pausing = True
        self._loop.call_later(0.0, go_on)

    def _answer(self, client: Client, text: str) -> None:
        client.output += text.encode("utf-8", "replace")
        age = self._loop.time() - self._control.started
        client.output += client.session.ending(age).encode()
        self._flush(client)
        unread = sum(len(each.output) for each in self._clients)
        if unread > UNREAD_LIMIT:
            worst = max(self._clients, key=lambda each: len(each.output))
            text = f"dropping the {worst}: it does not read, and {len(worst.output)} bytes are waiting"
            self._limited_log("warning", text)
            self._drop(worst)

    def _reloaded(self, client: Client, outcome: ReloadOutcome) -> None:
        if not client.alive or client.waiting is None:
            return
        client.waiting = None
        client.active = self._loop.time()
        self._deadlines.arm(client)
        self._answer(client, reload_answer(outcome))
        if client.alive:
            self._advance(client)

    def _flush(self, client: Client) -> None:
        if not client.alive or not client.output:
            return
        try:
            sent = client.sock.send(client.output)
        except BlockingIOError:
            return
        except OSError:
            self._drop(client)
            return
        client.active = self._loop.time()
        del client.output[:sent]

    def _give_away(self, client: Client, line: bytes) -> None:
        """The first line is not for us: whoever answers it gets the connection."""
        verb, _, rest = line.strip().partition(b" ")
        stats, credentials = client.stats, client.credentials
        unix = isinstance(stats.address, UnixAddress)
        if verb == b"_getsocks":
            if not stats.expose_fd_listeners or not unix:
                self._drop(client)
                return
        elif refusal := takeover_refusal(stats, credentials):
            self._quota("warning", f"refusing a {client}: {refusal}", event=Event.TAKEOVER_REFUSED)
            client.output += refusal.encode("utf-8", "replace") + b"\n"
            client.closing = True
            return
        self._release(client)
        already = bytes(client.input)
        try:
            if verb == b"_getsocks":
                self._control.getsocks(client.sock, stats, credentials, already)
            else:
                assert credentials is not None
                self._control.takeover(client.sock, rest.strip(), stats, credentials, already)
        except BaseException:
            client.sock.close()
            raise

    # Handover

    def export_clients(self) -> list[tuple[socket.socket, dict[str, Any]]]:
        """Give every client away, for a successor: the socket, and what import_client() needs (JSON).

        There are at most EXPORT_CLIENTS, and all together is less than 4 MiB as JSON text; whoever does not fit, for
        not reading or because there are too many, is dropped.
        """
        exported: list[tuple[socket.socket, dict[str, Any]]] = []
        total = 0
        # Callers that wait for the outcome of a reload first: they matter most; then whoever has lately been heard of.
        for client in sorted(self._clients, key=lambda each: (each.waiting is None, -each.active)):
            while client.pieces is not None and not client.asking and len(client.output) < UNREAD_PAUSE:
                client.pausing = False
                self._pull(client)  # nothing may be left of it but its end
            self._flush(client)
            # A listing that has begun cannot go on elsewhere.
            if not client.alive or client.pieces is not None or (client.closing and not client.output):
                self._drop(client)
                continue
            total += client.size
            if len(client.output) > EXPORT_LIMIT or total > EXPORT_TOTAL or len(exported) >= EXPORT_CLIENTS:
                total -= client.size
                why = "there are too many" if len(exported) >= EXPORT_CLIENTS else "it does not read"
                self._limited_log("notice", f"dropping the {client}: {why}, and a successor takes over")
                self._drop(client)
            else:
                self._release(client)
                exported.append((client.sock, client.state(self._loop.time())))
        return exported

    def import_client(self, sock: socket.socket, state: dict[str, Any]) -> None:
        """Serve a client that another server exported. Owns `sock` from here on. Raises PeerError, `sock` closed."""
        try:
            sock.setblocking(False)
            client, waiting = restored(sock, state, self._loop.time())
            self._serve(client)
        except (KeyError, TypeError, ValueError, OverflowError, OSError) as error:
            sock.close()
            raise PeerError(f"cannot take over a runtime API client: {type(error).__name__}: {error}") from None
        if waiting is not None:
            client.waiting = waiting
            client.waiting = self._control.resume_reload(waiting, lambda outcome: self._reloaded(client, outcome))
        self._advance(client)

    def close(self) -> None:
        """Forget the listeners and close every client, sending what the kernel takes at once."""
        self._acceptor.close()
        for client in list(self._clients):
            self._flush(client)
            self._drop(client)
        self._quota.close()
        self._deadlines.stop()

    def _limited_log(self, severity: str, message: str) -> None:
        """For what a hostile client can make happen as often as it likes."""
        self._quota(severity, message, event=Event.RUNTIME_CLIENT_DROPPED)
