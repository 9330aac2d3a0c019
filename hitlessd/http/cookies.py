"""Cookies that keep a client at its server (HAProxy configuration manual, "cookie"), without I/O.

from_client() reads a request's Cookie fields, from_server() a response's Set-Cookie fields. Both say what is to be
changed in the head, byte for byte as HAProxy 2.6 does, and the letter for the log's termination state.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Generic, NamedTuple, Protocol, TypeVar

from hitlessd.model import Cookie

__all__ = ["Answered", "Edit", "Presented", "Replied", "cacheable", "from_client", "from_server"]

T = TypeVar("T")

#: Of methods and states that a cache may store the answer of without being told so.
_SAFE = frozenset({b"GET", b"HEAD", b"OPTIONS", b"TRACE"})
_STORABLE = frozenset({200, 203, 204, 206, 300, 301, 404, 405, 410, 414, 501})
_UNCACHEABLE = frozenset({b"private", b"no-cache", b"no-store", b"max-age=0", b"s-maxage=0"})
#: A date of HAProxy's `maxidle`: 30 bits, in units of 4 seconds, in base64.
_DATE = re.compile(rb"(?!AAAAA)[A-Za-z0-9+/]{5}")
_SPACES = b" \t"


class Edit(NamedTuple):
    """A change of a head: `op` is "replace" or "delete" of the field of that name that is number `nth` among those of
    its name, counted from 0 and before any change, or "add" of one at the end."""

    op: str
    name: bytes
    value: bytes = b""
    nth: int = 0


class Presented(NamedTuple, Generic[T]):
    """What a request's cookies say."""

    server: T | None  # the one that they name, if it is running
    letter: str  # of the log: N none, I invalid, D down, V valid
    dated: bool  # by a `maxidle` or `maxlife` that this configuration does not have
    edits: tuple[Edit, ...]


class Replied(Protocol):
    """A response, as far as cookies ask about it."""

    @property
    def status(self) -> int: ...

    def values(self, name: bytes) -> list[bytes]: ...


class Answered(NamedTuple):
    """What becomes of a response's cookies."""

    letter: str  # of the log: N none, I inserted, U updated, P provided, R rewritten, D deleted
    edits: tuple[Edit, ...]


class _Item(NamedTuple):
    """One of the parts of a field's value that `;` or `,` separate."""

    text: bytes  # the whole, spaces included, without the separator
    separator: bytes  # before it
    name: bytes
    value: tuple[int, int] | None  # where in `text`; None without an equal sign


#: Not in quotes; a backslash hides what follows it there. An unfinished quote goes on to the end.
_PART = re.compile(rb'=[ \t]*((?:"(?:[^"\\]|\\.)*(?:"|\\?\Z)|[^;,"])*)', re.DOTALL)
_NAME = re.compile(rb"[^=;,]*")


def _items(field: bytes) -> list[_Item]:
    items, at, separator = [], 0, b""
    while True:
        name = _NAME.match(field, at)
        assert name is not None
        end, value = name.end(), None
        part = _PART.match(field, end)
        if part is not None:
            end = part.end()
            value = (part.start(1) - at, part.start(1) - at + len(part[1].rstrip(_SPACES)))
        items.append(_Item(field[at:end], separator, name[0].strip(_SPACES), value))
        if end >= len(field):
            return items
        separator, at = field[end : end + 1], end + 1


def _without(items: Sequence[_Item], dropped: frozenset[int]) -> bytes:
    """The items but those, with the spaces around the gaps set right."""
    text, gap = b"", False
    for number, item in enumerate(items):
        if number in dropped:
            gap = True
        elif gap and not text:
            text, gap = item.text.lstrip(_SPACES), False
        elif gap:
            text, gap = text.rstrip(_SPACES) + item.separator + b" " + item.text.lstrip(_SPACES), False
        else:
            text += item.separator + item.text
    return text.rstrip(_SPACES) if gap else text


def from_client(
    cookie: Cookie,
    fields: Sequence[bytes],
    servers: Mapping[bytes, Sequence[T]],
    running: Callable[[T], bool],
) -> Presented[T]:
    """What the values of a request's Cookie fields say.

    `servers`: those with a cookie, by it, in the order of the configuration; several may share one.
    """
    name = cookie.name.encode()
    server: T | None = None
    letter, dated = "N", False
    edits: list[Edit] = []
    for nth, field in enumerate(fields):
        if name not in field:
            continue
        items = _items(field)
        dropped: set[int] = set()
        dropping, keep = False, False  # what follows in this field goes with our cookie; somebody else's is in it
        changed = False
        for number, item in enumerate(items):
            if item.text.lstrip(_SPACES).startswith(b"$"):
                # An attribute of the cookie before it (RFC 2109, section 4.3.4).
                if dropping:
                    dropped.add(number)
                continue
            if item.value is None or item.name != name:
                keep, dropping = True, False
                continue
            start, end = item.value
            value = item.text[start:end]
            ident, delimiter, rest = value.partition(b"~" if cookie.mode == "prefix" else b"|")
            if cookie.mode != "prefix" and _DATE.match(rest):
                dated = True
            found = servers.get(ident, ()) if ident and server is None else ()
            for candidate in found:
                if running(candidate):
                    server, letter = candidate, "V"
                    break
                letter = "D"
            else:
                if letter == "N":
                    letter = "I"
            if cookie.mode == "prefix" and delimiter:
                items[number] = item._replace(text=item.text[:start] + rest + item.text[end:])
                changed = keep = True
                dropping = False
            elif cookie.mode == "insert" and cookie.indirect:
                dropped.add(number)
                dropping = True
        if dropped or changed:
            text = _without(items, frozenset(dropped)) if keep else b""
            edits.append(Edit("replace", b"Cookie", text, nth) if text else Edit("delete", b"Cookie", nth=nth))
    return Presented(server, letter, dated, tuple(edits))


def from_server(
    cookie: Cookie,
    method: bytes,
    response: Replied,
    ident: str,
    *,
    stays: bool = False,
    dated: bool = False,
) -> Answered:
    """What becomes of the Set-Cookie fields of a final response, and of 101.

    `ident`: the `cookie` of the server that it is from, "" for none; `stays`: the request named that server; `dated`:
    as Presented has it.
    """
    name, own = cookie.name.encode(), ident.encode()
    letter = "N"
    edits: list[Edit] = []
    for nth, field in enumerate(response.values(b"set-cookie")):
        found, equals, _ = field.partition(b";")[0].partition(b"=")
        if not equals or found.strip(_SPACES) != name:
            continue
        letter = "P"
        if cookie.preserve:
            continue
        if cookie.mode == "insert" or (stays and cookie.indirect):
            edits.append(Edit("delete", b"Set-Cookie", nth=nth))
            letter = "D"
        elif own:
            part = _PART.match(field, len(found))
            assert part is not None
            value = part[1].rstrip(_SPACES)
            start = part.start(1)
            new = own + b"~" + value if cookie.mode == "prefix" else own
            # As with HAProxy, no spaces remain around the equal sign.
            changed = found.rstrip(_SPACES) + b"=" + new + field[start + len(value) :]
            edits.append(Edit("replace", b"Set-Cookie", changed, nth))
            letter = "R"
    if (
        cookie.mode == "insert"
        and not (cookie.preserve and letter == "P")
        and (not stays or dated)
        and (not cookie.postonly or method == b"POST")
    ):
        edits.append(Edit("add", b"Set-Cookie", _inserted(cookie, name, own)))
        letter = "U" if own and stays else "I"
        if cookie.nocache and cacheable(method, response):
            edits.append(Edit("add", b"Cache-Control", b"private"))
    return Answered(letter, tuple(edits))


def _inserted(cookie: Cookie, name: bytes, own: bytes) -> bytes:
    text = name + b"=" + own
    if not own:
        # A server without a cookie keeps nobody: have the client forget the one that it may have.
        text += b"; Expires=Thu, 01-Jan-1970 00:00:01 GMT"
    text += b"; path=/"
    for domain in cookie.domains:
        text += b"; domain=" + domain.encode()
    if cookie.httponly:
        text += b"; HttpOnly"
    if cookie.secure:
        text += b"; Secure"
    for attribute in cookie.attributes:
        text += b"; " + attribute.encode()
    return text


def cacheable(method: bytes, response: Replied) -> bool:
    """Whether a cache before us might store the response, and a cookie with it, as HAProxy 2.6 sees it."""
    if (
        method not in _SAFE
        or response.status not in _STORABLE
        or b"no-cache" in map(bytes.lower, response.values(b"pragma"))
    ):
        return False
    storable, fresh = True, bool(response.values(b"expires"))
    for field in response.values(b"cache-control"):
        for value in map(bytes.strip, field.lower().split(b",")):
            if value == b"public":
                storable = True
            elif value in _UNCACHEABLE:
                storable = False
            elif value.startswith((b"max-age", b"s-maxage")):
                fresh = True
    return storable and bool(fresh or response.values(b"etag") or response.values(b"last-modified"))
