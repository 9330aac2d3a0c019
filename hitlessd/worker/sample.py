"""A connection as rules, conditions and formats see it (hitlessd/samples.py)."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hitlessd.http.heads import Request, Response
    from hitlessd.worker.connection import Connection

__all__ = ["LiveSample"]


class LiveSample:
    """Made when something asks; nothing of it is kept."""

    __slots__ = ("_conn",)

    def __init__(self, conn: Connection) -> None:
        self._conn = conn

    @property
    def client(self) -> tuple[str, int] | None:
        address = self._conn.address
        return (str(address[0]).removeprefix("::ffff:"), int(address[1])) if isinstance(address, tuple) else None

    @property
    def local(self) -> tuple[str, int] | None:
        try:
            name = self._conn.client.sock.getsockname()
        except OSError:
            return None
        return (str(name[0]).removeprefix("::ffff:"), int(name[1])) if isinstance(name, tuple) else None

    @property
    def request(self) -> Request | None:
        exchange = getattr(self._conn, "exchange", None)
        return exchange.request if exchange is not None else None

    @property
    def response(self) -> Response | None:
        exchange = getattr(self._conn, "exchange", None)
        return exchange.response if exchange is not None else None

    @property
    def sni(self) -> str:
        return ""

    @property
    def frontend_name(self) -> str:
        return self._conn.frontend.name

    @property
    def backend_name(self) -> str:
        return self._conn.backend.name

    @property
    def server_name(self) -> str:
        target = self._conn.target
        return target.name if target is not None else ""
