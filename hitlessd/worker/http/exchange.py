"""One request and its response, as far as they have come: what rules, balancing and the log ask about.

Times are on the worker's clock; negative means "not yet".
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hitlessd.http.heads import Request, Response
    from hitlessd.worker.backend import LiveServer

__all__ = ["Exchange"]


class Exchange:
    """What a connection knows of the message pair that it is relaying."""

    __slots__ = (
        "answered_at",
        "began_at",
        "cookie_state",
        "dated",
        "down_at",
        "first",
        "keep",
        "pinned",
        "request",
        "requested_at",
        "response",
        "reused",
        "sent",
        "since",
        "status",
        "surplus",
        "up_at",
    )

    def __init__(
        self, request: Request | None, since: float, began_at: float, now: float, first: bool, up_at: int, down_at: int
    ) -> None:
        self.request = request  # None: none that could be understood
        self.response: Response | None = None
        self.since = since  # the connection was accepted, or the answer before this was over
        self.began_at = began_at  # its first byte
        self.requested_at = now  # its whole head
        self.answered_at = -1.0  # the response's whole head
        self.status = -1  # of the response, or of our own
        self.first = first  # of its connection
        self.keep = request is not None and request.keep_alive  # the client's connection goes on afterwards
        self.sent = False  # some of it has gone to a server, which may have acted on it
        self.reused = False  # on a connection that had served another exchange before
        self.surplus = False  # the server said more than its response
        self.pinned: LiveServer | None = None  # the server that the client's cookie names
        self.dated = False  # that cookie has a date
        self.cookie_state = ""  # HAProxy's third and fourth letter of the termination state
        self.up_at = up_at  # bytes of the client before this exchange
        self.down_at = down_at  # bytes given to the client before it
