"""The statistics page of `stats enable`: responder() answers for it."""

from __future__ import annotations

from collections.abc import Callable

from hitlessd.runtime.control import Control
from hitlessd.web.message import Responder
from hitlessd.web.page.site import Site

__all__ = ["responder"]


def responder(control: Control, later: Callable[[Callable[[], object]], object] = lambda call: call()) -> Responder:
    """Answers for the service "page". `later(call)` calls when others had their turn."""
    return Site(control, later).respond
