"""What passes between the sockets of main's little HTTP server and those who answer: data only."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from hitlessd.dataclass import dataclass
from hitlessd.model import StatsPage

__all__ = ["Feed", "Grant", "Reply", "Request", "Responder", "Service", "Waiting"]

Service = Literal["metrics", "page"]


@dataclass(frozen=True, slots=True)
class Grant:
    """What a connection may ask for, by where it came in: at a `metrics bind`, or at a frontend of ours, whose worker
    has passed it on with its first request."""

    service: Service
    page: StatsPage | None = None  # of the service "page"
    proxy: str = ""  # whose page it is
    admin: bool = False  # `stats admin` holds for that request
    peer: str = ""  # the client's address, for logs


@dataclass(frozen=True, slots=True)
class Request:
    """A whole request. Names of headers are in small letters. HEAD comes as GET, its answer loses its body later."""

    method: str  # GET or POST
    target: str  # path, and what is behind `?`, as they were sent
    headers: tuple[tuple[str, str], ...] = ()
    body: bytes = b""

    def header(self, name: str) -> str:
        """The first of that name, given in small letters; "" if there is none."""
        return next((value for each, value in self.headers if each == name), "")


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer; length, date and connection headers are the server's business."""

    status: int
    body: bytes = b""
    content_type: str = "text/plain; charset=utf-8"
    headers: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Feed:
    """An answer without an end: server-sent events (WHATWG HTML, "Server-sent events").

    `next()` gives the text of the next events, "" for none, and is called every `interval` seconds while the client
    reads. A successor goes on with the connection by asking the same request's responder again; `request` is kept
    for that.
    """

    next: Callable[[], str]
    interval: float = 1.0  # seconds


Responder = Callable[[Request, Grant], "Reply | Feed | Waiting"]


@dataclass(frozen=True, slots=True)
class Waiting:
    """An answer that comes later: `begin(done)` is called once, done(reply) once, maybe at once.

    If a successor takes over meanwhile, its responder is asked the same again.
    """

    begin: Callable[[Callable[[Reply], object]], object]
