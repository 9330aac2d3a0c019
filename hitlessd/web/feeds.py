"""Server-sent events: clients that are told what is new until they leave (WHATWG HTML, "Server-sent events")."""

from __future__ import annotations

from collections.abc import Callable

from hitlessd.runtime.control import LoopLike
from hitlessd.web.client import Client
from hitlessd.web.exchange import Asked, chunk, feed_head
from hitlessd.web.message import Feed

__all__ = ["FEEDS", "Feeds"]

FEEDS = 64  # at once; the other clients of the server are those who ask and go
COMMENT_EVERY = 15.0  # seconds of silence until a comment shows that the feed lives


class Feeds:
    """Fills the output of clients that are fed, and has the server `advance` them. A client that has not read the last
    events gets no new ones, so that no more than those of one call ever wait."""

    def __init__(
        self,
        loop: LoopLike,
        advance: Callable[[Client], object],
        failed: Callable[[Client, Asked, Exception], object],
    ) -> None:
        self._loop = loop
        self._advance = advance
        self._failed = failed
        self._fed: set[Client] = set()

    def begin(self, client: Client, asked: Asked, feed: Feed) -> bool:
        """Feed a client; False if there are too many already."""
        if len(self._fed) >= FEEDS and not asked.bodiless:
            return False
        client.output += feed_head(asked)
        if asked.bodiless:
            client.asked, client.closing = None, True
        else:
            self.resume(client, asked, feed)
        return True

    def resume(self, client: Client, asked: Asked, feed: Feed) -> None:
        """Go on with one that has had its head."""
        self._fed.add(client)
        client.feed = feed
        client.heard = self._loop.time()
        self._later(client, asked, feed, 0.0)

    def forget(self, client: Client) -> None:
        """It has gone."""
        client.feed = None
        self._fed.discard(client)

    def _later(self, client: Client, asked: Asked, feed: Feed, seconds: float) -> None:
        self._loop.call_later(seconds, lambda: self._next(client, asked, feed))

    def _next(self, client: Client, asked: Asked, feed: Feed) -> None:
        if client.feed is not feed:
            return
        self._later(client, asked, feed, feed.interval)
        if client.output:
            return
        try:
            text = feed.next()
        except Exception as error:
            self._failed(client, asked, error)
            return
        now = self._loop.time()
        if not text and now - client.heard >= COMMENT_EVERY:
            text = ":\n\n"
        if text:
            client.heard = client.since = now
            client.output += chunk(text, asked)
            self._advance(client)
