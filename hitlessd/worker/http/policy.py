"""What one section wants done with messages, made ready once in each worker."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hitlessd.http.answers import Answer, parse_errorfile
from hitlessd.http.edit import ADD, Edit
from hitlessd.http.rules import compile_rules
from hitlessd.matching import matcher
from hitlessd.model import Backend, Frontend
from hitlessd.worker.http.page import Page

if TYPE_CHECKING:
    from hitlessd.http.heads import Request

__all__ = ["NO_POLICY", "Policy"]


class Policy:
    """Of a frontend or a backend."""

    def __init__(self, config: Frontend | Backend) -> None:
        self.request = compile_rules(config.http_request)
        self.response = compile_rules(config.http_response, response=True)
        self.httpclose = config.httpclose
        self.forwardfor = config.forwardfor
        self.page = Page(config.stats) if config.stats is not None else None
        self._except = None
        if config.forwardfor is not None and config.forwardfor.unless_from:
            self._except = matcher("ip", [config.forwardfor.unless_from], False)
        #: By status; None: nothing is said, and the connection just ends.
        self.errors: dict[int, Answer | None] = {}
        for status, text in config.errorfiles:
            self.errors[status] = parse_errorfile(status, text) if text else None
        #: There is nothing that it wants, as long as nothing goes wrong.
        self.idle = not (self.request or self.response or self.httpclose or self.forwardfor)

    def spares(self, address: bytes) -> bool:
        """Whether `option forwardfor except` is about this client."""
        return self._except is not None and self._except(address)

    def forwarded_for(self, request: Request, address: bytes, front: Policy) -> Edit | None:
        """The field that says who the client is; `front` is what the frontend wants, whose word counts where we have
        none."""
        wanted = self.forwardfor or front.forwardfor
        if wanted is None or self.spares(address) or front.spares(address):
            return None
        name = wanted.header.encode()
        if wanted.if_none and request.values(name.lower()):
            return None
        return ADD, name, address


NO_POLICY = Policy(Backend("", 0))
