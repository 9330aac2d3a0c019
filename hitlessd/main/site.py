"""What main's web server answers with. Modules are imported by the first request that needs them: a reload starts a
Python, and each import would delay it."""

from __future__ import annotations

import importlib

from hitlessd.model import Config, StatsPage
from hitlessd.runtime.control import Control
from hitlessd.web.message import Feed, Grant, Reply, Request, Responder, Service, Waiting

__all__ = ["page_of", "responders"]

#: Each has a function `responder(control)`.
_MODULES: dict[Service, str] = {"metrics": "hitlessd.web.metrics", "page": "hitlessd.web.page"}


def responders(control: Control) -> dict[Service, Responder]:
    """Who answers, by service."""
    return {service: _lazily(control, module) for service, module in _MODULES.items()}


def page_of(config: Config, proxy: str) -> StatsPage | None:
    """The page of the proxy of that name; None if it has none, or there is no such proxy."""
    found: list[StatsPage] = [each.stats for each in config.frontends if each.name == proxy and each.stats]
    found += [each.stats for each in config.backends if each.name == proxy and each.stats]
    return found[0] if found else None


def _lazily(control: Control, module: str) -> Responder:
    found: list[Responder] = []

    def respond(request: Request, grant: Grant) -> Reply | Feed | Waiting:
        if not found:
            found.append(importlib.import_module(module).responder(control))
        return found[0](request, grant)

    return respond
