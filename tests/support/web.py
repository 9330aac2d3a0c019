"""An HTTP frontend under test: a worker in this process, clients and servers played by the test."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import Any

from hitlessd.model import Config, Server, Timeouts
from tests.support.relay import Clock, Farm, Lab, Peer, make_config

__all__ = ["TIMES", "Web", "web_config"]

TIMES = Timeouts(connect=5, client=60, server=50, queue=7, http_request=10, http_keep_alive=20)


def web_config(
    servers: list[Server], frontend: dict[str, Any] | None = None, backend: dict[str, Any] | None = None, **more: Any
) -> Config:
    """One frontend "www" and one backend "app", both in mode http."""
    config = make_config(servers, **({"timeouts": TIMES} | more))
    return replace(
        config,
        frontends=(replace(config.frontends[0], mode="http", **(frontend or {})),),
        backends=(replace(config.backends[0], mode="http", **(backend or {})),),
    )


class Web(Lab):
    """`farm` is the servers'."""

    def __init__(
        self,
        farm: Farm,
        *,
        frontend: dict[str, Any] | None = None,
        backend: dict[str, Any] | None = None,
        server: dict[str, Any] | None = None,
        clock: Clock | None = None,
        general: dict[str, Any] | None = None,
        **lab: Any,
    ) -> None:
        super().__init__(
            web_config(farm.servers(**(server or {})), frontend, backend, **(general or {})), clock=clock, **lab
        )
        self.farm = farm

    def __enter__(self) -> Web:
        return self

    def serve(self, number: int = 0) -> Peer:
        """The next connection to a server."""
        return self.until(lambda: self.farm.accept(number), "a connection to the server")  # type: ignore[no-any-return]

    def hears(self, peer: Peer, text: bytes) -> bytes:
        """Wait until all that the peer has got so far ends with the text; forget it."""
        self.until(lambda: peer.read().endswith(text), f"{text[-60:]!r}")
        return forget(peer)

    def gets(self, peer: Peer, text: bytes) -> None:
        """Wait until the peer has got exactly the text, and forget it."""
        self.until(lambda: len(peer.read()) >= len(text), f"{text[:60]!r}; got {peer.got[:200]!r}")
        assert peer.got == text
        forget(peer)

    def ends(self, peer: Peer) -> bytes:
        """Wait for the end of what the peer gets; all of it."""
        self.until(lambda: peer.read() is not None and peer.eof, "the end of the stream")
        return forget(peer)

    def is_told(self, peer: Peer, status: int) -> bytes:
        """Wait for an answer of our own, and forget it."""
        self.until(lambda: peer.read().endswith(b"</body></html>\n"), f"an answer {status}; got {peer.got[:200]!r}")
        assert peer.got.startswith(b"HTTP/1.1 %d " % status)
        return forget(peer)

    def exchange(self, client: Peer, server: Peer, request: bytes = b"", response: bytes = b"") -> None:
        """One request and its response, from end to end."""
        request = request or b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
        client.sock.sendall(request)
        self.exchange_on(client, server, request, response)

    def exchange_on(self, client: Peer, server: Peer, request: bytes, response: bytes = b"") -> None:
        """As exchange(), from when the client has asked."""
        response = response or b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
        self.gets(server, request)
        server.sock.sendall(response)
        self.gets(client, response)

    def served(self) -> tuple[Peer, Peer]:
        """A client that has had one answer and is idle, and a server's connection that is in the pool."""
        client = self.connect()
        request = b"GET /x HTTP/1.1\r\nHost: a\r\n\r\n"
        client.sock.sendall(request)
        server = self.serve()
        self.exchange_on(client, server, request)
        return client, server

    def fills(self, source: Peer, data: bytes, sink: Peer, size: int | None = None) -> bytes:
        """Send bytes from one end and read at the other until `size` have come; their digest."""
        view, got = memoryview(data), 0
        size = len(data) if size is None else size
        digest = hashlib.sha256()

        def moved() -> bool:
            nonlocal view, got
            if view:
                view = view[source.send(view) :]
            sink.read()
            digest.update(sink.got)
            got += len(sink.got)
            forget(sink)
            return got >= size and not view

        self.until(moved, f"{size} bytes")
        assert got == size
        return digest.digest()


def forget(peer: Peer) -> bytes:
    got, peer.got = peer.got, b""
    return got
