"""What goes wrong with an HTTP connection: clients that leave, servers that do, neither that go on in time, and bytes
that are no message. Who can still be told is told."""

from __future__ import annotations

import select
import socket

from hitlessd.events import Event
from hitlessd.http import answers
from hitlessd.http.grammar import CLOSE, Refused
from hitlessd.parking.park import reset
from hitlessd.worker.connection import State
from hitlessd.worker.http.policy import NO_POLICY, Policy
from hitlessd.worker.http.side import HttpSide
from hitlessd.worker.http.state import HttpState
from hitlessd.worker.relay import READABLE, SCRATCH, Side

__all__ = ["Trouble"]

#: Seconds that a client may take to read our last words before the connection is closed.
_LINGER = 5.0
#: Buffers full of a lingering client that are read and thrown away in one turn.
_DISCARD = 16
#: Methods without effects (RFC 9110, 9.2.1): sent again on another connection if a kept one has ended meanwhile.
_SAFE = frozenset({b"GET", b"HEAD", b"OPTIONS", b"TRACE"})
#: After these nobody knows where the next request would begin.
_LAST_WORDS = frozenset({400, 408, 413, 431, 505})
_WAITING, _EXCHANGING, _CLOSED = State.WAITING, State.EXCHANGING, State.CLOSED
_SOL_SOCKET, _SO_ERROR = int(socket.SOL_SOCKET), int(socket.SO_ERROR)


class Trouble(HttpState):
    """An HTTP connection as far as trouble goes."""

    __slots__ = ()

    # -- what the way of an exchange does, see connection.py -----------------------------------------------------------

    def end_exchange(self) -> None:
        """The client has its answer."""
        raise NotImplementedError

    def message_done(self, side: HttpSide, rest: memoryview | None = None) -> None:
        """All of a message has come from this side."""
        raise NotImplementedError

    def end_if_over(self) -> None:
        """End the exchange if there is nothing left to do for it."""
        raise NotImplementedError

    # -- answers of our own --------------------------------------------------------------------------------------------

    def policies(self) -> tuple[Policy, Policy]:
        """The frontend's and the backend's; a [listen] has only one."""
        front, backend = self.frontend.policy, self.backend
        alone = not self.entered or backend.config.iid == self.frontend.config.iid
        return front, NO_POLICY if alone else backend.policy

    def answer(self, status: int) -> None:
        """The error of that status: the backend's errorfile, the frontend's, or the usual page."""
        front, back = self.policies()
        for policy in (back, front):
            if status in policy.errors:
                self.say(status, policy.errors[status])
                return
        self.say(status, answers.error(status))

    def say(self, status: int, text: answers.Answer | None) -> None:
        """Answer it ourselves, or (None) say nothing and end. The connection goes on if the request has been read to
        its end."""
        exchange, client = self.exchange, self.client
        assert exchange is not None
        if self.state is State.QUEUED:
            self.backend.dequeue(self)
        self.drop_server()
        exchange.status = status
        exchange.answered_at = self.worker.now
        request = exchange.request
        read = request is not None and client.body.done
        exchange.keep = text is not None and text.framed and exchange.keep and read and status not in _LAST_WORDS
        self.state = _EXCHANGING
        client.held = True
        if not read:
            client.ready |= select.EPOLLIN  # there may be more of it
        if text is not None:
            if request is not None:
                data = text.render(request.method, request.version, exchange.keep)
            elif text is answers.error(status):
                data = answers.refusal(status)
            else:
                data = text.render(b"", 11, False)
            self.given += len(data)
            self.write(client, data)
        if not client.blocked and self.state is _EXCHANGING:
            self.end_exchange()

    def give_up(self, status: int) -> None:
        self.answer(status)

    def depart(self) -> None:
        """Close, but not before the client has read what it was told: an unread byte of its own would reset it."""
        client = self.client
        if client.eof or not client.ready:
            self.close()
            return
        try:
            client.sock.shutdown(socket.SHUT_WR)
        except OSError:
            self.close()
            return
        client.shut = client.held = True
        self.state = State.TARRYING
        self.due = self.worker.now + _LINGER
        self.worker.handlers[client.fd] = self.on_lingering
        self.rearm()
        self.on_lingering(READABLE)

    def on_lingering(self, events: int) -> None:
        """Read and discard until the client closes; one who sends without end is cut off by the time."""
        sock, scratch = self.client.sock, self.worker.scratch
        for _ in range(_DISCARD):
            try:
                if not sock.recv_into(scratch, SCRATCH, socket.MSG_TRUNC):
                    break
            except BlockingIOError:
                return
            except OSError:
                break
        else:
            self.worker.ready.append(self.client)
            return
        self.close()

    # -- no messages ---------------------------------------------------------------------------------------------------

    def refuse(self, refused: Refused) -> None:
        """It is no request that anybody would understand the same way: say so, and hear no more."""
        self.client.held = True
        self.unsound()
        self.cause = "PR"
        text = f"refused a request to {self.frontend.name}: {refused.reason}"
        self.worker.complain(text, event=Event.REQUEST_REFUSED, frontend=self.frontend.name)
        self.answer(refused.status)

    def garbled(self, side: HttpSide, refused: Refused) -> None:
        """What comes from this side, during an exchange, is no message."""
        exchange = self.exchange
        assert exchange is not None
        by_client = side is self.client
        what = "request to" if by_client else "response of"
        text = f"refused a {what} {self.backend.name}: {refused.reason}"
        self.worker.complain(
            text, event=Event.REQUEST_REFUSED if by_client else Event.RESPONSE_REFUSED, backend=self.backend.name
        )
        if by_client:
            self.frontend.row.ereq += 1
            self.frontend.row.change()
        else:
            self._count_eresp()
        if exchange.response is None:
            self.cause = "PR" if by_client else "PH"
            self.answer(400 if by_client else 502)
        else:
            self.cause = "PD"
            self.cut_off()

    def _count_eresp(self) -> None:
        for tally in (self.backend, self.target):
            if tally is not None:
                tally.row.eresp += 1
                tally.row.change()

    def cut_off(self) -> None:
        """The server's response has broken off: the client must not take it for a whole one."""
        if self.server is not None and self.server.body.kind == CLOSE:
            reset(self.client.sock)
        self.close()

    # -- who has left --------------------------------------------------------------------------------------------------

    def at_eof(self, side: Side) -> None:
        if self.tunnel:
            super().at_eof(side)
            return
        side.eof = side.held = True
        if side is not self.client:
            self.server_left()
        elif self.exchange is not None:
            self._client_left()
        else:
            if self.buffer or not self.exchanges:
                self.unsound().status = 400
                self.cause = "CR"
            self.close()

    def _client_left(self) -> None:
        self.cause = "C" + self.phase()
        self.count_abort(True)
        self.close()

    def server_left(self, broken: bool = False) -> None:
        """The server says no more; `broken`: that is no end."""
        exchange, server = self.exchange, self.server
        assert exchange is not None and server is not None
        server.eof = server.held = True
        if exchange.response is not None:
            if server.body.done or (server.body.kind == CLOSE and not broken):
                server.body.done = True
                self.message_done(server)
                return
            self.cause = "SD"
            self.count_abort(False)
            if not self.client.blocked:
                self.cut_off()
            return
        request = exchange.request
        assert request is not None
        if exchange.reused and self.outgoing and not self.reply and request.method in _SAFE:
            self.once_more()
            return
        self.cause = "SH"
        self._count_eresp()
        self.answer(502)

    def once_more(self) -> None:
        """The connection that was kept has ended before it could serve this request: another one may."""
        target = self.target
        assert target is not None
        self.drop_server()
        self.retries += 1
        for tally in (self.backend, target):
            tally.row.wretr += 1
            tally.row.change()
        self.connect(target)
        if self.state is not _CLOSED:
            self.rearm()

    def broken(self, side: Side, error: OSError) -> None:
        if self.tunnel:
            super().broken(side, error)
        elif side is self.client:
            self._client_left()
        else:
            self.server_left(True)

    def unasked(self, server: HttpSide) -> None:
        """A connection from the pool has said something, or has ended, before it could know of the request: that is
        no answer. One that had ended has not heard the request; what another one makes of it, nobody knows."""
        exchange = self.exchange
        assert exchange is not None and exchange.request is not None
        try:
            heard = bool(server.sock.recv(1, socket.MSG_PEEK))
        except BlockingIOError:
            return  # only urgent data, or it was read already
        except OSError:
            heard = False
        if self.outgoing and (not heard or exchange.request.method in _SAFE):
            self.once_more()
            return
        self.cause = "SH"
        self.count_abort(False)
        self._count_eresp()
        self.answer(502)

    def unwritable(self, side: Side, error: OSError) -> None:
        if self.tunnel:
            super().unwritable(side, error)
            return
        exchange = self.exchange
        if side is self.client or exchange is None:
            self._client_left()
            return
        if exchange.reused and not exchange.sent:
            self.once_more()
            return
        # It may have answered before it closed: that is still to be read.
        exchange.keep = False
        side.shut = True
        side.drop_out()
        side.blocked = False
        self.client.stop_splicing()
        self.client.held = True
        side.resume()

    def trouble(self, side: Side, events: int) -> None:
        if self.tunnel:
            super().trouble(side, events)
            return
        if side is not self.client:
            self.end_if_over()
            return
        if self.state is State.TARRYING:
            return
        if events & (select.EPOLLERR | select.EPOLLHUP):
            error = side.sock.getsockopt(_SOL_SOCKET, _SO_ERROR)
            if error:
                self.broken(side, OSError(error, ""))
                return
        exchange = self.exchange
        if self.backend.config.abortonclose and exchange is not None and exchange.response is None:
            self._client_left()

    # -- who is too slow -----------------------------------------------------------------------------------------------

    def _expired(self) -> None:
        if self.tunnel or self.state not in (_WAITING, _EXCHANGING):
            super()._expired()
            return
        if self.state is _WAITING:
            if self.exchanges and not self.buffer:
                self.close()
                return
            self.client.held = True
            self.unsound()
            self.cause = "cR"
            self.answer(408)
            return
        exchange = self.exchange
        assert exchange is not None
        by_client = self.client_due() <= self.worker.now
        self.cause = ("c" if by_client else "s") + self.phase()
        unanswered = exchange.response is None and exchange.status < 0
        if by_client or not unanswered:
            self.count_abort(by_client)
        if unanswered:
            if not by_client:
                self._count_eresp()
            self.answer(408 if by_client else 504)
        else:
            self.cut_off()
