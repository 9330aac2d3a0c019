"""Who may see the page and who may change something by it: passwords, tokens, and where a browser came from. No I/O.

A browser sends its user's password with whatever any other site makes it send, so a change needs more: a token that
only our own page has, and no sign that another site is behind it (Origin, RFC 6454; Fetch Metadata, W3C).
"""

from __future__ import annotations

import base64
import binascii
import hmac

from hitlessd.model import StatsPage
from hitlessd.web.message import Request

__all__ = ["forged", "token", "user"]


def user(request: Request, page: StatsPage) -> str | None:
    """The name of whoever asks, "" where nobody has to say one; None: no such name and password."""
    if not page.auth:
        return ""
    scheme, _, encoded = request.header("authorization").partition(" ")
    try:
        given = base64.b64decode(encoded.strip(), validate=True) if scheme.lower() == "basic" else b""
    except (binascii.Error, ValueError):
        given = b""
    found = None
    # All of them, whichever fits: time tells nothing.
    for name, password in page.auth:
        if hmac.compare_digest(given, f"{name}:{password}".encode(errors="surrogateescape")):
            found = name
    return found


def token(secret: bytes, name: str, page: StatsPage) -> str:
    """What forms of this user's page bring back."""
    return hmac.digest(secret, "\0".join(("stats page", page.uri, name)).encode(errors="replace"), "sha256").hex()[:32]


def forged(request: Request, given: str, expected: str) -> str:
    """Why a change is not believed to be its user's wish, "" if it is.

    Tools send neither Origin nor Referer nor Sec-Fetch-Site and need no token; a browser cannot leave them all out.
    """
    site = request.header("sec-fetch-site")
    origin = request.header("origin")
    referer = request.header("referer")
    if site and site != "same-origin":
        return "another site has sent it"
    source = origin or referer
    if source and _authority(source) != request.header("host").lower():
        return f"it comes from {source[:100]}, and this is {request.header('host')[:100]}"
    if given:
        expired = not hmac.compare_digest(given.encode(errors="replace"), expected.encode())
        return "the page is too old: load it again" if expired else ""
    return "it lacks the page's token" if site or source else ""


def _authority(url: str) -> str:
    return url.partition("://")[2].partition("/")[0].lower()
