"""What main's web server answers with. Modules are imported by the first request that needs them: a reload starts a
Python, and each import would delay it."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

from hitlessd.loop import Loop
from hitlessd.model import Config, StatsPage
from hitlessd.runtime.control import Control
from hitlessd.web.message import Feed, Grant, Reply, Request, Responder, Service, Waiting

__all__ = ["page_of", "responders"]


def responders(control: Control, loop: Loop) -> dict[Service, Responder]:
    """Who answers, by service."""
    return {
        "metrics": _lazily(lambda: _import("hitlessd.web.metrics").responder(control, loop.call_soon)),
        "page": _lazily(lambda: _import("hitlessd.web.page").responder(control)),
    }


def page_of(config: Config, proxy: str) -> StatsPage | None:
    """The page of the proxy of that name; None if it has none, or there is no such proxy."""
    found: list[StatsPage] = [each.stats for each in config.frontends if each.name == proxy and each.stats]
    found += [each.stats for each in config.backends if each.name == proxy and each.stats]
    return found[0] if found else None


def _import(name: str) -> Any:
    return importlib.import_module(name)


def _lazily(make: Callable[[], Responder]) -> Responder:
    found: list[Responder] = []

    def respond(request: Request, grant: Grant) -> Reply | Feed | Waiting:
        if not found:
            found.append(make())
        return found[0](request, grant)

    return respond
