"""`/metrics` for Prometheus: what is asked for, and how an answer is made without keeping main's loop busy for long."""

from __future__ import annotations

import importlib
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from hitlessd.runtime.control import Control
from hitlessd.runtime.stat import StatFilter, stat_rows
from hitlessd.runtime.statrow import Row
from hitlessd.table import Table
from hitlessd.web.families import written
from hitlessd.web.message import Feed, Grant, Reply, Request, Responder, Waiting

__all__ = ["responder"]

#: Seconds that a scrape works before others have their turn.
_SLICE = 0.01
#: How often rows are begun anew because a generation ends or the configuration changes meanwhile.
_TRIES = 3
_CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SCOPES = ("global", "frontend", "backend", "server")
#: HAProxy's exporter has these, too; there is nothing of them here.
_EMPTY_SCOPES = ("listener", "sticktable")
#: What prometheus_client imports, in pieces of which none takes long. All at once they would take 70 ms.
_HEAVY = (
    *("email.message", "ssl", "http.client", "urllib.request", "http.server", "wsgiref.simple_server", "decimal"),
    *("gzip", "prometheus_client", "hitlessd.web.collector"),
)
_UNKNOWN = b"cannot use this query: expected scope= with global, frontend, backend, server or *, or no-maint\n"
_INDEX = b"""<!DOCTYPE html>
<html lang="en"><head><title>hitlessd</title></head>
<body><h1>hitlessd</h1><p><a href="/metrics">Metrics</a></p></body></html>
"""


class _Query(NamedTuple):
    scopes: tuple[str, ...] = _SCOPES
    no_maint: bool = False


def responder(control: Control, later: Callable[[Callable[[], object]], object] = lambda call: call()) -> Responder:
    """`later(call)` calls when others had their turn."""
    scrapes: dict[_Query, _Scrape] = {}

    def respond(request: Request, grant: Grant) -> Reply | Feed | Waiting:
        path, _, query = request.target.partition("?")
        # A worker passes on what the frontend's rules have chosen, whatever its path.
        if path == "/" and not grant.proxy:
            return Reply(200, _INDEX, "text/html; charset=utf-8")
        if path != "/metrics" and not grant.proxy:
            return Reply(404, b"cannot find this: expected /metrics\n")
        if request.method != "GET":
            return Reply(405, b"cannot answer: expected GET\n", headers=(("allow", "GET, HEAD"),))
        wanted = _parsed(query)
        if wanted is None:
            return Reply(
                400, f"cannot use this query: expected scope={'|'.join((*_SCOPES, '*'))} or no-maint\n".encode()
            )
        return Waiting(lambda done: begin(wanted, done))

    def begin(query: _Query, done: Callable[[Reply], object]) -> None:
        # Who asks for what is being made for another gets the same.
        if scrape := scrapes.get(query):
            scrape.readers.append(done)
            return
        scrape = scrapes[query] = _Scrape(control, query, later, lambda: scrapes.pop(query))
        scrape.readers.append(done)
        scrape.run()

    return respond


def _parsed(query: str) -> _Query | None:
    """`?scope=global&scope=server&no-maint`, as HAProxy's exporter reads it; None for what it does not know."""
    scopes: list[str] | None = None
    no_maint = False
    for part in filter(None, query.split("&")):
        name, _, value = part.partition("=")
        if name == "no-maint":
            no_maint = True
        elif name == "scope":
            scopes = scopes or []
            if value in ("*", "%2A", "%2a"):
                scopes = list(_SCOPES)
            elif value in _SCOPES:
                scopes.append(value)
            elif value and value not in _EMPTY_SCOPES:
                return None
    if scopes is None:
        return _Query(no_maint=no_maint)
    return _Query(tuple(scope for scope in _SCOPES if scope in scopes), no_maint)


class _Scrape:
    """One answer in the making, for all who wait for it. `over()` is called at its end."""

    def __init__(
        self,
        control: Control,
        query: _Query,
        later: Callable[[Callable[[], object]], object],
        over: Callable[[], object],
    ) -> None:
        self.readers: list[Callable[[Reply], object]] = []
        self._later = later
        self._over = over
        self._pieces: list[str] = []
        self._steps = self._made(control, query)

    def run(self) -> None:
        """Work for a while, and again, until it is made."""
        until = time.monotonic() + _SLICE
        try:
            for _ in self._steps:
                if time.monotonic() >= until:
                    self._later(self.run)
                    return
            reply = Reply(200, "".join(self._pieces).encode(), _CONTENT_TYPE, (("cache-control", "no-cache"),))
        except Exception:
            self._finish(Reply(500, b"cannot make the metrics: internal error\n"))
            raise  # the loop reports it
        self._finish(reply)

    def _finish(self, reply: Reply) -> None:
        self._over()
        for done in self.readers:
            done(reply)

    def _made(self, control: Control, query: _Query) -> Iterator[None]:
        if "global" in query.scopes:
            for module in _HEAVY:
                if module not in sys.modules:
                    importlib.import_module(module)
                    yield
            self._pieces.append(sys.modules["hitlessd.web.collector"].process_text(control))
            yield
        if query.scopes not in ((), ("global",)):
            rows: list[Row] = []
            yield from _collected(control, rows)
            for piece in written(rows, query.scopes, query.no_maint):
                self._pieces.append(piece)
                yield


def _collected(control: Control, rows: list[Row]) -> Iterator[None]:
    """Fill `rows` with those of `show stat`, a step each."""
    for _ in range(_TRIES):
        tables, config = control.tables(), control.config
        rows.clear()
        for row in stat_rows(control, StatFilter(), time.time()):
            rows.append(row)
            yield
            # A generation that has ended takes its table with it.
            if control.config is not config or not _same(tables, control.tables()):
                break
        else:
            return
    rows[:] = stat_rows(control, StatFilter(), time.time())


def _same(before: Sequence[Table], now: Sequence[Table]) -> bool:
    return len(before) == len(now) and all(one is other for one, other in zip(before, now, strict=True))
