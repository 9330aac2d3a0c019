"""What the access log says of an HTTP exchange."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hitlessd.worker.logline import ConnectionRecord

if TYPE_CHECKING:
    from hitlessd.http.heads import Request, Response
    from hitlessd.worker.http.state import HttpState

__all__ = ["HttpRecord"]


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
