"""An HTTP exchange as rules and conditions see it (hitlessd/samples.py)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hitlessd.worker.routing import plain

if TYPE_CHECKING:
    from hitlessd.http.heads import Request, Response
    from hitlessd.worker.http.state import HttpState

__all__ = ["LiveSample"]


class LiveSample:
    """Made when something asks; nothing of it is kept."""

    __slots__ = ("_conn", "request", "response")

    sni = ""

    def __init__(self, conn: HttpState) -> None:
        self._conn = conn
        exchange = conn.exchange
        self.request: Request | None = exchange.request if exchange is not None else None
        self.response: Response | None = exchange.response if exchange is not None else None

    @property
    def client(self) -> tuple[str, int] | None:
        return plain(self._conn.source())

    @property
    def local(self) -> tuple[str, int] | None:
        return plain(self._conn.local())

    @property
    def frontend_name(self) -> str:
        return self._conn.frontend.name

    @property
    def backend_name(self) -> str:
        return self._conn.backend.name if self._conn.entered else ""

    @property
    def server_name(self) -> str:
        target = self._conn.target
        return target.name if target is not None else ""
