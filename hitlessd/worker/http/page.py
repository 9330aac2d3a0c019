"""The `stats` page of a proxy as far as a worker has to do with it: which requests are for it."""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING

from hitlessd.conditions import compile_condition
from hitlessd.model import StatsPage

if TYPE_CHECKING:
    from hitlessd.http.heads import Request
    from hitlessd.samples import Sample

__all__ = ["Page"]

_METHODS = frozenset({b"GET", b"HEAD", b"POST"})


class Page:
    """Made ready once in each worker."""

    def __init__(self, config: StatsPage) -> None:
        self.prefix = config.uri.encode("ascii")
        self._admin = compile_condition(config.admin) if config.admin is not None else None
        self._accounts = {
            base64.b64encode(f"{user}:{password}".encode("utf-8", "surrogateescape")) for user, password in config.auth
        }

    def wanted(self, request: Request) -> bool:
        """As with HAProxy: its path and query, without the scheme and host of an absolute target, begin like this."""
        target = request.target
        if target[:1] != b"/":
            target = request.path + (b"?" + request.query if request.query else b"")
        return target.startswith(self.prefix) and request.method in _METHODS

    def admin(self, sample: Sample) -> bool:
        """Whether this request may change something."""
        return self._admin is not None and self._admin(sample)

    def status(self, request: Request) -> int:
        """That of main's answer, for the log: who has no account is refused, and a change leads back to the page."""
        if self._accounts:
            scheme, _, account = (request.values(b"authorization") or [b""])[0].partition(b" ")
            if scheme.lower() != b"basic" or account.strip() not in self._accounts:
                return 401
        return 303 if request.method == b"POST" else 200
