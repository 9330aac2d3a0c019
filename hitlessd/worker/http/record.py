"""What the access log says of an HTTP exchange: a record, and how its attributes are had without making one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hitlessd.worker.logline import ATTRIBUTES, ConnectionRecord, live_shapes, live_source

if TYPE_CHECKING:
    from hitlessd.http.heads import Request, Response
    from hitlessd.logcode import Source
    from hitlessd.worker.frontend import LiveFrontend
    from hitlessd.worker.http.state import HttpState
    from hitlessd.worker.loop import Worker

__all__ = ["HttpRecord", "exchange_source"]


class HttpRecord(ConnectionRecord):
    """A LogRecord (hitlessd.logrecord) of an exchange that has just ended."""

    __slots__ = ("cookie_state", "request", "response", "response_began", "status")

    request: Request | None
    response: Response | None
    http = True

    def __init__(self, conn: HttpState) -> None:
        super().__init__(conn)
        exchange = conn.exchange
        assert exchange is not None
        self.request = exchange.request
        self.response = exchange.response
        self.status = max(exchange.status, 0)
        self.accepted = exchange.since
        self.request_began = exchange.began_at
        self.request_done = exchange.requested_at if exchange.request is not None else -1.0
        self.response_began = exchange.answered_at if exchange.response is not None else -1.0
        self.bytes_read = conn.passed_down - exchange.down_at
        self.bytes_uploaded = conn.client.received - len(conn.buffer) - exchange.up_at
        self.cookie_state = exchange.cookie_state


#: As in HttpRecord.
_ATTRIBUTES = {
    **ATTRIBUTES,
    "_exchange": "conn.exchange",
    "request": "r._exchange.request",
    "response": "r._exchange.response",
    "status": "r._exchange.status if r._exchange.status > 0 else 0",
    "accepted": "r._exchange.since",
    "request_began": "r._exchange.began_at",
    "request_done": "r._exchange.requested_at if r.request is not None else -1.0",
    "response_began": "r._exchange.answered_at if r.response is not None else -1.0",
    "bytes_read": (
        "conn.given - r._exchange.down_at + (r._server.received if conn.client.tunnel and r._server is not None else 0)"
    ),
    "bytes_uploaded": "conn.client.received - len(conn.buffer) - r._exchange.up_at",
    "cookie_state": "r._exchange.cookie_state",
}
_CONSTANT = "handshake", "http", "listener", "request_captures", "response_captures", "server_queue", "sni"


# In HTTP mode a connection enters its backend with each request.
_SHAPES = live_shapes(HttpRecord, _ATTRIBUTES, _CONSTANT, _bound=False)


def exchange_source(worker: Worker, frontend: LiveFrontend) -> Source:
    """How logs of that frontend read a connection whose exchange has just ended."""
    return live_source(worker, frontend, HttpRecord, _SHAPES)
