"""One request for the page: who it is from, what it names, what stands behind its URI."""

from __future__ import annotations

from hitlessd.dataclass import dataclass
from hitlessd.model import StatsPage
from hitlessd.runtime.control import Control
from hitlessd.web.message import Grant, Request
from hitlessd.web.page import access

__all__ = ["Visit", "path_of"]

#: Options that stay when a form is answered by a redirection.
_LASTING = ("up", "no-maint", "norefresh")


def path_of(target: str) -> str:
    """A request's target without scheme and authority, which may stand before the path (RFC 9112 section 3.2.2)."""
    if target[:1] == "/" or "://" not in target:
        return target
    return "/" + target.partition("://")[2].partition("/")[2]


@dataclass(frozen=True, slots=True)
class Visit:
    """A request whose user is known."""

    request: Request
    page: StatsPage
    user: str
    admin: bool
    names: frozenset[str] | None  # of the proxies that the page shows; None: all
    token: str  # that its forms bring back

    @classmethod
    def of(cls, control: Control, request: Request, grant: Grant, page: StatsPage, user: str) -> Visit:
        names = None
        if page.scope:
            names = frozenset(grant.proxy if name == "." else name for name in page.scope)
        return cls(request, page, user, grant.admin, names, access.token(control.secret, user, page))

    @property
    def suffix(self) -> str:
        """What stands behind the page's URI: HAProxy's options, `;up;norefresh`."""
        return path_of(self.request.target)[len(self.page.uri) :]

    @property
    def options(self) -> list[str]:
        return self.suffix.split(";")[1:]

    @property
    def lasting(self) -> str:
        """Those options that are a way of looking at it."""
        return "".join(f";{option}" for option in self.options if option in _LASTING)

    @property
    def wants_json(self) -> bool:
        """It is the page's script that asks."""
        return self.request.header("accept") == "application/json"
