"""The statistics page of `stats enable`: responder() answers for it. The rest is imported when somebody asks."""

from __future__ import annotations

from hitlessd.runtime.control import Control
from hitlessd.web.message import Feed, Grant, Reply, Request, Responder, Waiting

__all__ = ["responder"]


def responder(control: Control) -> Responder:
    """Answers for the service "page"."""
    answer: Responder | None = None

    def respond(request: Request, grant: Grant) -> Reply | Feed | Waiting:
        nonlocal answer
        if answer is None:
            # What pages are made of costs a start 20 ms, and most starts nobody looks at.
            from hitlessd.web.page.site import Site

            answer = Site(control).respond
        return answer(request, grant)

    return respond
