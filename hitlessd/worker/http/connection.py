"""An HTTP connection: requests from one client, each of which finds a server of its own.

Between two exchanges it is a client alone; during one it is a pair of sockets as with TCP, whose bytes are messages:
heads are read, checked and edited, bodies are counted and passed on as they are. Behind Upgrade and CONNECT it is TCP.
"""

from __future__ import annotations

import select
import socket
from collections.abc import Sequence
from typing import TYPE_CHECKING

from hitlessd.http import answers
from hitlessd.http.body import Body
from hitlessd.http.cookies import from_client, from_server
from hitlessd.http.edit import Edit, edited, forward_request, forward_response, renewed
from hitlessd.http.grammar import CLOSE, Refused
from hitlessd.http.heads import Request, Response, head_end, parse_request, parse_response
from hitlessd.http.rules import Answer, seen_through
from hitlessd.proxyprotocol import build
from hitlessd.table import Column
from hitlessd.worker.connection import State
from hitlessd.worker.counters import CONNECTS, OTHER, REQUESTS
from hitlessd.worker.http.exchange import Exchange
from hitlessd.worker.http.sample import LiveSample
from hitlessd.worker.http.side import NOTHING, HttpSide
from hitlessd.worker.http.visits import HostSide, Visits
from hitlessd.worker.relay import READABLE, TROUBLE, WRITABLE

if TYPE_CHECKING:
    from hitlessd.worker.backend import LiveServer

__all__ = ["HostConnection", "HttpConnection"]

_EPOLLIN = int(select.EPOLLIN)
_WAITING, _EXCHANGING = State.WAITING, State.EXCHANGING
_INTERCEPTED = int(Column.INTERCEPTED)
_SOL_SOCKET, _SO_ERROR = int(socket.SOL_SOCKET), int(socket.SO_ERROR)
_RDHUP = select.EPOLLRDHUP


class HttpConnection(Visits):
    """The way of an exchange."""

    __slots__ = ()

    # -- requests ----------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Its client is known."""
        self.state = _WAITING
        self.due = self.started + self.route.http_request
        self.client.held = False

    def take(self, side: HttpSide, size: int) -> None:
        """So many bytes have come from a side; they lie in the scratch."""
        exchange = self.exchange
        if side is self.client:
            if exchange is None:
                self.request_bytes(bytes(self.worker.view[:size]))
                return
        elif exchange is not None and exchange.response is None:
            self.response_bytes(bytes(self.worker.view[:size]))
            return
        body, view = side.body, self.worker.view[:size]
        try:
            used = body.take(view)
        except Refused as refused:
            self.garbled(side, refused)
            return
        if used:
            self.relayed(side, used)
            self.write(side.partner, view[:used])
            if self.state is not _EXCHANGING:
                return
        if body.done:
            self.message_done(side, view[used:] if used != size else None)

    def request_bytes(self, data: bytes) -> None:
        """The client has said something; whole heads are served."""
        if self.buffer:
            buffer = self.buffer + data
        else:
            buffer = data
            self.began_at = self.worker.now
        try:
            end = head_end(buffer, 0)
            if not end:
                self.buffer = buffer
                if self.exchanges and self.due > self.began_at + self.route.http_request:
                    self.due = self.began_at + self.route.http_request
                    self.sooner(self.due)
                return
            request = parse_request(buffer if end == len(buffer) else buffer[:end])
        except Refused as refused:
            self.buffer = b""
            self.refuse(refused)
            return
        self.begin_exchange(request, buffer[end:])

    def go_on(self) -> None:
        """A turn of its own, which was asked for."""
        if self.state is State.TARRYING:
            self.on_lingering(READABLE)
        elif self.state is _WAITING:
            self.next_request()

    def next_request(self) -> None:
        """What was sent behind the last request is the next one's."""
        data, self.buffer = self.buffer, b""
        self.client.held = False
        if data:
            self.request_bytes(data)
        if self.exchange is None and self.state is _WAITING:
            self.client.release()

    def begin_exchange(self, request: Request, rest: bytes) -> None:
        """A request: find out what is to be done with it."""
        client, came = self.client, rest
        client.held = True
        if self.slot >= 0:
            self.worker.parking.busy[self] = None
        exchange = self.exchange = Exchange(
            request,
            self.idle_since,
            self.began_at,
            self.worker.now,
            not self.exchanges,
            self.accounted_in,
            self.given,
        )
        if self.frontend.retired:
            exchange.keep = False
        self.exchanges += 1
        self.assigned_at = self.connected_at = -1.0
        self.retries = self.queue_position = 0
        self.redispatched = self.direct = False
        if request.framing:
            body = client.body = Body(request.framing, request.length)
            try:
                used = body.take(rest)
            except Refused as refused:
                self.garbled(client, refused)
                return
            self.buffer = rest[used:]
            rest = rest[:used]
        else:
            client.body = NOTHING
            self.buffer = rest
            rest = b""
        head = self.decide(request, came)
        if not head:
            return
        if client.ready & _RDHUP and client.body.done and self.backend.config.abortonclose:
            # It was gone when it was heard: no event will say so again.
            self._client_left()
            return
        self.outgoing = head + rest
        self.assign()

    def decide(self, request: Request, came: bytes) -> bytes:
        """Apply the rules and find the backend: the head that its server shall get; b"" when we have answered, or main
        does. `came` is what lies behind the head."""
        frontend, exchange = self.frontend, self.exchange
        assert exchange is not None
        front = frontend.policy
        sample = LiveSample(self)
        edits: tuple[Edit, ...] = ()
        if front.request is not None:
            verdict = front.request.apply(sample)
            edits = verdict.edits
            if verdict.answer is not None:
                self.rule_answers(verdict.answer, came)
                return b""
        if front.page is not None and front.page.wanted(request):
            self.visit("page", came, front.page, seen_through(sample, edits) if edits else sample)
            return b""
        backend = frontend.backend
        if frontend.router is not None:
            backend = frontend.router.choose(seen_through(sample, edits) if edits else sample)
        self.enter(backend)
        _, back = self.policies()
        if back.request is not None:
            verdict = back.request.apply(sample, edits)
            edits += verdict.edits
            if verdict.answer is not None:
                self.rule_answers(verdict.answer, came)
                return b""
        if back.page is not None and back.page.wanted(request):
            self.visit("page", came, back.page, seen_through(sample, edits) if edits else sample)
            return b""
        cookies: Sequence[tuple[str, bytes, bytes, int]] = ()
        cookie = backend.config.cookie
        if cookie is not None:
            said = from_client(cookie, request.values(b"cookie"), backend.by_cookie, lambda server: server.running)
            exchange.pinned, exchange.dated = said.server, said.dated
            exchange.cookie_state = said.letter + "N"
            cookies = said.edits
        client = sample.client
        if client is not None:
            field = back.forwarded_for(request, client[0].encode(), front)
            if field is not None:
                edits += (field,)
        keep = not (front.httpclose or back.httpclose)
        exchange.keep = exchange.keep and keep
        if not cookies:
            return forward_request(request, keep, edits)
        head = renewed(forward_request(request, keep), cookies)
        return edited(head, edits) if edits else head

    def rule_answers(self, answer: Answer, came: bytes) -> None:
        """A rule wants us, or main, to answer."""
        if answer.kind == "service":
            self.visit("metrics", came)
            return
        if answer.kind != "deny" and not self.entered:
            row = self.frontend.row
            row.slot[row.start + _INTERCEPTED] += 1
        if answer.kind == "deny":
            denied = self.backend if self.entered else self.frontend
            denied.row.dreq += 1
            denied.row.change()
        self.cause = "PR" if answer.kind == "deny" else "LR"
        self.say_for(answer)

    def say_for(self, answer: Answer) -> None:
        """What the rule has us say."""
        if answer.kind == "redirect":
            self.say(answer.status, answers.redirect(answer.status, answer.location))
        elif answer.kind == "deny" and answer.body is None:
            self.answer(answer.status)
        else:
            text = answers.returned(answer.status, answer.body or b"", answer.content_type, answer.headers)
            self.say(answer.status, text)

    # -- the server --------------------------------------------------------------------------------------------------

    def connect(self, target: LiveServer) -> None:
        """On a connection that is kept, if http-reuse allows it; else on a new one."""
        worker, exchange = self.worker, self.exchange
        assert exchange is not None
        reuse = self.backend.config.http_reuse
        side = None
        if target.pool and not self.retries and (not exchange.first or reuse in ("aggressive", "always")):
            side = target.pool.take(exchange.first and reuse == "aggressive")
        if side is None:
            if worker.idle and not worker.room_for_idle:
                worker.spare_idle()
            exchange.reused = False
            if target.codes is not None:
                target.codes[CONNECTS] += 1
            super().connect(target)
            if self.state is State.CONNECTING:
                self.sooner(self.due)
            return
        if self.target is not target:
            self.chosen(target)
        exchange.reused = True
        self.connected_at = worker.now
        self.server = side
        side.asked = worker.turns
        side.conn = self
        side.peer = self.client
        self.client.peer = side
        self.send_request()

    def on_connecting(self, events: int) -> None:
        server, target = self.server, self.target
        assert server is not None and target is not None
        if events & TROUBLE:
            error = server.sock.getsockopt(_SOL_SOCKET, _SO_ERROR)
            if error:
                self.connect_failed(error)
                return
        if events & WRITABLE:
            self.connected_at = self.worker.now
            self.worker.handlers[server.fd] = server.on_event
            server.ready = events & READABLE
            if target.observer4 is not None:
                target.observer4.passed()
            if target.send_proxy:
                self.outgoing = build(target.send_proxy, self.source(), self.local()) + self.outgoing
            self.send_request()

    def send_request(self) -> None:
        """There is a connection: its server hears the request, as much of it as there is."""
        client, server, now = self.client, self.server, self.worker.now
        exchange = self.exchange
        assert server is not None and exchange is not None
        self.state = _EXCHANGING
        server.body = NOTHING
        server.uses += 1
        server.held = False
        server.last = client.last = now
        outgoing = self.outgoing
        try:
            sent = server.sock.send(outgoing)
        except BlockingIOError:
            sent = 0
        except OSError as error:
            self.unwritable(server, error)
            return
        exchange.sent = True
        self.sooner(now + self.route.least)
        if sent != len(outgoing):
            server.block(memoryview(outgoing)[sent:])
        elif not client.body.done:
            client.release()
            if self.server is not server:
                return
        if server.ready:
            server.release()

    # -- responses ---------------------------------------------------------------------------------------------------

    def response_bytes(self, data: bytes) -> None:
        """The server answers."""
        self.direct = False  # what comes next is not the whole of a response
        exchange, server = self.exchange, self.server
        assert exchange is not None and exchange.request is not None and server is not None
        if self.reply:
            data = self.reply + data
        while True:
            try:
                end = head_end(data, 0, response=True)
                if not end:
                    self.reply = data
                    return
                response = parse_response(data if end == len(data) else data[:end])
                self.reply = b""
                if response.status >= 200 or response.status == 101:
                    self.begin_response(response, data[end:] if end != len(data) else b"")
                    return
            except Refused as refused:
                self.garbled(server, refused)
                return
            data = data[end:]
            if exchange.request.version > 10:
                self.given += end
                self.write(self.client, response.raw)
            if self.state is not _EXCHANGING or not data:
                return

    def begin_response(self, response: Response, rest: bytes) -> None:
        """The final answer's head is here. Raises Refused."""
        exchange, client, server = self.exchange, self.client, self.server
        assert exchange is not None and exchange.request is not None and server is not None
        request = exchange.request
        kind, length = response.body_for(request.method)
        tunnel = response.status == 101 or (request.connect and response.status < 300)
        if response.status == 101 and not request.upgrade:
            raise Refused(502, "the server switches protocols although nobody has asked it to")
        body = NOTHING
        if kind:
            body = Body(kind, length)
            used = body.take(rest)
            if used != len(rest):
                exchange.surplus = True
                rest = rest[:used]
        elif rest and not tunnel:
            exchange.surplus = True
            rest = b""
        self.outgoing = b""
        exchange.response, exchange.status = response, response.status
        exchange.answered_at = self.worker.now
        if server.mark:
            self.worker.parking.unpark(self)  # it is another state that has to be parked now
        if body.kind == CLOSE:
            exchange.keep = False
        try:
            head = self.decide_response(request, response)
        except Refused:
            exchange.response = None  # there is still time to say so
            raise
        if not head:
            return
        if tunnel:
            self.open_tunnel(head, rest)
            return
        if client.mark and not body.done:
            # Its record tells of no body; it is parked anew with this one.
            self.worker.parking.unpark(self)
        server.body = body
        self.given += len(head) + len(rest)
        self.write(client, head + rest if rest else head)
        if body.done and self.state is _EXCHANGING:
            self.message_done(server)

    def decide_response(self, request: Request, response: Response) -> bytes:
        """Apply the rules for responses: the head that the client shall get; b"" when we have answered instead."""
        exchange, target = self.exchange, self.target
        assert exchange is not None and target is not None
        edits: tuple[Edit, ...] = ()
        front, back = self.policies()
        for policy in (back, front):
            if policy.response is None:
                continue
            verdict = policy.response.apply(LiveSample(self), edits)
            edits += verdict.edits
            if verdict.answer is not None:
                exchange.response = None
                if verdict.answer.kind == "deny":
                    for row in {self.frontend.row, self.backend.row, target.row}:
                        row.dresp += 1
                        row.change()
                if target.codes is not None:  # it has answered, even if nobody hears it
                    target.codes[REQUESTS] += 1
                    target.codes[response.status // 100 if response.status < 600 else OTHER] += 1
                self.cause = "PH" if verdict.answer.kind == "deny" else "LH"
                self.say_for(verdict.answer)
                return b""
        cookie = self.backend.config.cookie
        if cookie is not None:
            stays = target is exchange.pinned and not self.redispatched
            said = from_server(
                cookie, request.method, response, target.config.cookie, stays=stays, dated=exchange.dated
            )
            asked = exchange.cookie_state[:1]
            exchange.cookie_state = ("D" if asked == "V" and self.redispatched else asked) + said.letter
            if said.edits:
                head = renewed(forward_response(response, request.version, exchange.keep), said.edits)
                return edited(head, edits) if edits else head
        return forward_response(response, request.version, exchange.keep, edits)

    def message_done(self, side: HttpSide, rest: memoryview | None = None) -> None:
        """All of a message has come from this side, and may still wait to be written; `rest` came behind it."""
        side.held = True
        if side is self.client:
            if rest is not None:
                self.buffer = bytes(rest)
        elif rest is not None:
            assert self.exchange is not None
            self.exchange.surplus = True
        self.end_if_over()

    def end_if_over(self) -> None:
        """A server may answer early and still take the rest of the request, as long as it is there."""
        client, server, exchange = self.client, self.server, self.exchange
        if client.blocked or server is None or exchange is None or exchange.response is None or not server.body.done:
            return
        if (client.body.done and not server.blocked) or server.eof or server.shut or server.ready & TROUBLE:
            self.end_exchange()

    def flushed(self, side: HttpSide) -> None:
        """Nothing waits to be written to this side any more."""
        peer, exchange, server = side.peer, self.exchange, self.server
        if peer is not None and side.partner.body.done:
            peer.stop_splicing()
        if side is self.client:
            if server is None:
                if exchange is not None:
                    self.end_exchange()
            elif exchange is not None and exchange.response is not None and server.body.done:
                self.end_if_over()
            elif server.eof:
                self.cut_off()
            else:
                server.release()
        elif not self.client.body.done and not side.shut:
            self.client.last = self.worker.now
            self.client.release()
        else:
            self.end_if_over()

    def end_exchange(self) -> None:
        """The client has its answer: what is left serves the next ones, or nobody."""
        worker, client, server, exchange, target = self.worker, self.client, self.server, self.exchange, self.target
        assert exchange is not None
        self.account()
        self.count()
        self.log_exchange()
        read = client.body.done
        kept = None
        if client.mark:
            worker.parking.unpark(self)
        if client.pipe is not None:
            client.stop_splicing()
        if server is not None:
            if server.pipe is not None:
                server.stop_splicing()
            if target is not None and target.pool is not None and read and self._reusable(server, exchange):
                self.server = None
                client.peer = server.peer = server.conn = None  # type: ignore[assignment]
                server.held = True
                server.bulky = server.ready = 0
                kept = target.pool
            else:
                self.drop_server()
        self.give_slot_back()
        if kept is not None and server is not None:
            kept.give_back(server)
        self.exit()
        self.exchange = None
        self.cause = ""
        self.outgoing = self.reply = b""
        client.body = NOTHING
        client.bulky = 0
        if not (exchange.keep and read):
            if not read:
                client.ready |= _EPOLLIN  # there may be more of it
            self.depart()
            return
        self.state = _WAITING
        if self.slot >= 0:
            self.parked_on()
        self.backend, self.route = self.frontend.backend, self.frontend.route
        now = client.last = self.began_at = self.idle_since = worker.now
        self.due = now + self.route.keep_alive
        self.sooner(self.due)
        if self.buffer or client.ready:
            # In the next turn: a client with a thousand requests in its pipeline is not the only one.
            client.held = True
            worker.ready.append(client)
        else:
            client.held = False

    def _reusable(self, server: HttpSide, exchange: Exchange) -> bool:
        """Whether the server's connection may serve another exchange."""
        response, config = exchange.response, self.backend.config
        front, back = self.policies()
        return (
            response is not None
            and response.keep_alive
            and server.body.kind != CLOSE
            and not exchange.surplus
            and not server.blocked
            and not server.eof
            and not (server.ready and self._said_more(server))
            and config.http_reuse != "never"
            and not (front.httpclose or back.httpclose)
            and self.target is not None
            and not self.target.send_proxy  # it has been told whose connection it is
            and self.target.usable
        )

    def _said_more(self, server: HttpSide) -> bool:
        """Whether something lies behind the response, be it an end."""
        if server.ready & TROUBLE:
            return True
        try:
            server.sock.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return False
        except OSError:
            pass
        return True

    def open_tunnel(self, head: bytes, rest: bytes) -> None:
        """From here on it is TCP."""
        client, server = self.client, self.server
        assert server is not None
        self.given += len(head) + len(rest) - server.received
        early, self.buffer = self.buffer, b""
        client.body = server.body = NOTHING
        self.write(client, head + rest)
        if self.state is _EXCHANGING and early:
            self.write(server, early)
        if self.state is not _EXCHANGING:
            return
        self.state = State.ESTABLISHED
        client.tunnel = server.tunnel = True
        client.held, server.held = server.blocked, client.blocked
        self.rearm()
        if not client.held:
            client.resume()
        if self.server is server and not server.held:
            server.resume()


class HostConnection(HttpConnection):
    """Of a frontend with a page, where requests may go the direct way nevertheless."""

    __slots__ = ()

    client_side = HostSide
