"""stub"""

from __future__ import annotations
from hitlessd.runtime.control import Control
from hitlessd.web.message import Feed, Grant, Reply, Request, Responder, Waiting


def responder(control: Control) -> Responder:
    def respond(request: Request, grant: Grant) -> Reply | Feed | Waiting:
        return Reply(200, b"# nothing\n")

    return respond
