"""The head that is passed on: the one that came, less what was meant for us alone, with the configured changes.

Order and case stay. A head in which nothing changes is passed on as the same bytes, and what only depends on the head
is worked out once for all who send it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from functools import lru_cache

from hitlessd.http.grammar import CHUNKED, Refused, safe
from hitlessd.http.heads import Request, Response

__all__ = ["ADD", "DELETE", "SET", "Edit", "edited", "forward_request", "forward_response", "renewed"]

#: What is done to the fields of a name: SET leaves one, at the end; ADD puts one more there.
SET, ADD, DELETE = range(3)
Edit = tuple[int, bytes, bytes]

#: Hop-by-hop fields (RFC 9110 section 7.6.1), each with the line end before it, which makes the search fast.
_HOP = re.compile(
    rb"\r\n(?=[ckptuhCKPTUH])(?:connection|keep-alive|proxy-connection|te|upgrade|http2-settings):[^\r]*+",
    re.IGNORECASE,
)
_HOP_BUT_UPGRADE = re.compile(
    rb"\r\n(?=[ckptCKPT])(?:connection|keep-alive|proxy-connection|te):[^\r]*+", re.IGNORECASE
)
_NAMED = frozenset((b"close", b"connection", b"http2-settings", b"keep-alive", b"proxy-connection", b"te", b"upgrade"))
#: Connection may name fields that end here (RFC 9110 section 7.6.1). Nobody may take away by it what is meant for the
#: server: what frames or routes a message, says who asks, or what a proxy before us has added. Such names are ignored,
#: not refused: a well-meaning client does name Cache-Control.
_KEPT = re.compile(
    rb"host|content-.*|transfer-encoding|authorization|proxy-auth.*|(?:set-)?cookie2?|cache-control|pragma|expect|range"
    rb"|if-.*|origin|referer|x-forwarded.*|forwarded|x-real-ip|via|max-forwards|sec-.*|date|location|etag|vary|status"
)


def forward_request(request: Request, keep: bool, edits: Sequence[Edit] = ()) -> bytes:
    """The head for a server; `keep`: its connection is to go on afterwards."""
    head = request.kept if keep else request.closed
    if head is None:
        head = _request(request, keep)
        if keep:
            request.kept = head
        else:
            request.closed = head
    return edited(head, edits) if edits else head


def forward_response(response: Response, client: int, keep: bool, edits: Sequence[Edit] = ()) -> bytes:
    """The head for a client that speaks version `client` (10 or 11); `keep`: its connection goes on afterwards.

    `keep` must be False where the body ends with the connection. Raises Refused (502) for what such a client cannot
    read: chunks.
    """
    index = (client == 11) * 2 + keep
    head = response.passed[index]
    if head is None:
        if client == 10 and response.framing == CHUNKED and response.status != 304:
            raise Refused(502, "a chunked response to a request of HTTP/1.0")
        head = response.passed[index] = _response(response, client, keep)
    return edited(head, edits) if edits else head


def renewed(head: bytes, changes: Iterable[tuple[str, bytes, bytes, int]]) -> bytes:
    """The head after changes of single fields: "replace" and "delete" are about the one that is number `nth` among
    those of its name, counted before any change; "add" puts one at the end."""
    first, *lines = head[:-4].split(b"\r\n")
    kept: list[bytes | None] = list(lines)
    for operation, name, value, nth in changes:
        if operation == "add":
            kept.append(name + b": " + value)
            continue
        lower = name.lower()
        places = [at for at, line in enumerate(lines) if line.partition(b":")[0].lower() == lower]
        if nth < len(places):
            at = places[nth]
            kept[at] = lines[at].partition(b":")[0] + b": " + value if operation == "replace" else None
    return b"\r\n".join([first, *(line for line in kept if line is not None)]) + b"\r\n\r\n"


def _request(request: Request, keep: bool) -> bytes:
    options: list[bytes] = []
    added = b""
    if request.upgrade:
        options.append(b"Upgrade")
    if any(b"trailers" in value.lower() for value in request.values(b"te")):
        options.append(b"TE")
        added = b"TE: trailers\r\n"
    if not keep and request.version == 11 and not request.upgrade:
        options.append(b"close")
    elif keep and request.version == 10:
        options.append(b"keep-alive")
    return _cleaned(request, request.upgrade, options, added)


def _response(response: Response, client: int, keep: bool) -> bytes:
    options: list[bytes] = []
    upgrade = response.upgrade or response.status == 426
    if upgrade:
        options.append(b"Upgrade")
    if response.status >= 200:
        if not keep and response.version == 11:
            options.append(b"close")
        elif keep and (client == 10 or response.version == 10):
            options.append(b"keep-alive")
    return _cleaned(response, upgrade, options, b"")


def _cleaned(message: Request | Response, upgrade: bool, options: list[bytes], added: bytes) -> bytes:
    """The message's head without hop-by-hop fields, with those that the next hop needs."""
    head, count = (_HOP_BUT_UPGRADE if upgrade else _HOP).subn(b"", message.raw)
    gone = {option for option in message.options if option not in _NAMED and not _KEPT.fullmatch(option)}
    if gone:
        head = b"\r\n".join(line for line in head.split(b"\r\n") if line.partition(b":")[0].lower() not in gone)
    if upgrade and count == 1 and message.options == (b"upgrade",) and options == [b"Upgrade"] and not added:
        return message.raw  # it says so itself, and in its own place
    if options:
        added += b"Connection: " + b", ".join(options) + b"\r\n"
    if added:
        return head[:-2] + added + b"\r\n"
    return head if count or gone else message.raw


def edited(head: bytes, edits: Sequence[Edit]) -> bytes:
    """The head after these changes, in their order."""
    parts = [head[:-2]]
    for action, name, value in edits:
        if action != ADD:
            parts = [_remover(name).sub(b"", b"".join(parts))]
        if action != DELETE:
            parts.append(b"%b: %b\r\n" % (name, safe(value)))
    parts.append(b"\r\n")
    return b"".join(parts)


@lru_cache(256)
def _remover(name: bytes) -> re.Pattern[bytes]:
    return re.compile(rb"\r\n" + re.escape(name) + rb":[^\r]*+(?=\r\n)", re.IGNORECASE)
