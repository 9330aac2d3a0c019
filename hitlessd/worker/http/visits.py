"""Requests that main answers: for the page of a proxy, or for metrics.

Main knows all workers, a worker only itself. So main gets the client's socket, with the request as far as it has come,
and this worker is done with both. What is asked of main cannot be asked of a server, too: a client has one answer.
"""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING, Literal

from hitlessd.events import Event
from hitlessd.table import Column
from hitlessd.worker.http.direct import ClientSide
from hitlessd.worker.http.record import HttpRecord
from hitlessd.worker.http.trouble import Trouble

if TYPE_CHECKING:
    from hitlessd.http.heads import Request
    from hitlessd.samples import Sample
    from hitlessd.worker.http.page import Page

__all__ = ["HostSide", "Visits"]

#: Bytes of a request that are passed on, at most: in base 64 they must fit into one message of the channel.
_MOST = 44 << 10
#: HAProxy's names of those who answer in a server's place.
_NAMES = {"page": "<STATS>", "metrics": "<PROMEX>"}
_INTERCEPTED = int(Column.INTERCEPTED)


class Visits(Trouble):
    """An HTTP connection that may turn out to be main's."""

    __slots__ = ()

    def visit(
        self, service: Literal["page", "metrics"], came: bytes, page: Page | None = None, sample: Sample | None = None
    ) -> None:
        """Pass the client on to main; `came` is what lies behind the head. If main cannot take it, say so."""
        exchange, worker = self.exchange, self.worker
        assert exchange is not None and exchange.request is not None
        request = exchange.request
        config = self.backend.config if self.entered else self.frontend.config
        source = self.source()
        if self.slot >= 0:
            worker.parking.unpark(self)  # or whoever goes on after our death would have it, too
        self.cause = "LR"
        if len(request.raw) + len(came) > _MOST:
            self.answer(413)
            return
        message = {
            "did": "web",
            "service": service,
            "proxy": config.name,
            "admin": page is not None and sample is not None and page.admin(sample),
            "peer": _text(source),
            "already": base64.b64encode(request.raw + came).decode("ascii"),
        }
        self.client.copied = True
        if not worker.orders.pass_on(message, self.client.fd):
            text = f"cannot pass a client of {config.name} on to the main process: it is too busy"
            worker.complain(text, event=Event.WEB_CLIENT_DROPPED)
            self.cause = "RR"
            self.answer(503)
            return
        if not self.entered:
            row = self.frontend.row
            row.slot[row.start + _INTERCEPTED] += 1
        exchange.status = page.status(request) if page is not None else 200
        self.account()
        self.count()
        self._log_visit(_NAMES[service])
        self.exchange = None
        # close(2) without a farewell: the socket lives on in main.
        self.leave()

    def _log_visit(self, name: str) -> None:
        """As HAProxy logs what it answers itself, but when main begins with it: without its size."""
        frontend = self.frontend
        if frontend.access_log is not None:
            access_log = frontend.record_log(self.worker.setup)
            record = HttpRecord(self)
            record.server_name = name
            record.assigned = record.connected = record.response_began = self.worker.now
            access_log(record)


class HostSide(ClientSide):
    """A client of a frontend with a page, where other requests go the direct way."""

    __slots__ = ()

    def _begin(self, request: Request) -> None:
        conn = self.conn
        target = request.target
        if target.startswith(conn.frontend.pages) or target[:1] != b"/":
            conn.began_at = self.worker.now
            conn.begin_exchange(request, b"")
        else:
            super()._begin(request)


def _text(source: tuple[str, int] | None) -> str:
    """A client's address, for people."""
    if source is None:
        return ""
    host, port = source
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
