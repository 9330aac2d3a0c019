"""What a frontend and its backend together say about a connection: timeouts, as numbers ready for use."""

from __future__ import annotations

from hitlessd.dataclass import dataclass
from hitlessd.model import Backend, Frontend
from hitlessd.worker.timers import NEVER

__all__ = ["Route"]


def _seconds(value: float | None) -> float:
    return NEVER if value is None else value


@dataclass(frozen=True, slots=True)
class Route:
    """Seconds, NEVER for no limit. Where a `-fin` timeout is unset it is what would count without it, see HAProxy's
    configuration manual under "timeout client-fin" and "timeout tunnel"."""

    connect: float
    queue: float
    client: float  # before the connection to the server is there
    client_open: float
    server_open: float
    client_fin: float
    server_fin: float
    pause: float  # before the same server is tried again
    http_request: float  # for a request's whole head
    keep_alive: float  # for the next request to begin
    client_idle: float  # of an HTTP client that is to send or take a body
    server_idle: float  # of a server that is to answer, or to send or take a body
    least: float  # the shorter of these two
    idles: bool  # an idle client may wait for longer than that
    waits: bool  # ... or not as long; or nobody has looked at it while it had an exchange
    first: float  # the shortest of all: the first look at a connection
    fin_nearer: bool  # a FIN may bring the deadline nearer

    @classmethod
    def of(cls, frontend: Frontend, backend: Backend) -> Route:
        front, back = frontend.timeouts, backend.timeouts
        client_open = _seconds(front.client if back.tunnel is None else back.tunnel)
        server_open = _seconds(back.server if back.tunnel is None else back.tunnel)
        connect = _seconds(back.connect)
        queue = connect if back.queue is None else back.queue
        client_fin = client_open if front.client_fin is None else front.client_fin
        server_fin = server_open if back.server_fin is None else back.server_fin
        client = _seconds(front.client)
        server = _seconds(back.server)
        http_request = client if front.http_request is None else front.http_request
        keep_alive = http_request if front.http_keep_alive is None else front.http_keep_alive
        every = (connect, queue, client, client_open, server_open, client_fin, server_fin)
        least = min(client, server)
        of_http = (http_request, keep_alive, client, server)
        first = min(every if frontend.mode == "tcp" else every + of_http)
        fin_nearer = client_fin < client_open or server_fin < server_open
        idles, waits = max(http_request, keep_alive) > least, keep_alive < least or server == NEVER
        return cls(*every, min(connect, 1.0), *of_http, least, idles, waits, first, fin_nearer)
