"""Texts with variables, for headers, redirects and bodies: HAProxy's log-format language (configuration manual, 8.2.4),
of which a message has the variables that are known before it is over. They become bytes as they came, where a log line
would have them escaped.
"""

from __future__ import annotations

import re
import socket
from collections.abc import Callable, Collection

from hitlessd.samples import CONNECTION, REQUEST, Mistake, Sample, Value, expression

__all__ = ["Text", "compile_text"]

Text = Callable[[Sample], bytes]

_PIECE = re.compile(r"([^%]+)|(%%)|%(?:\{([^{}]*)\})?(?:\[([^\[\]]*)\]|([A-Za-z]+))|(%)")
#: Variables that are fetches by another name.
_FETCHES = {
    "ci": "src",
    "cp": "src_port",
    "fi": "dst",
    "fp": "dst_port",
    "f": "fe_name",
    "ft": "fe_name",
    "b": "be_name",
    "s": "srv_name",
    "HM": "method",
    "HP": "path",
    "HU": "url",
    "ST": "status",
}
_OTHERS = ("HQ", "HV", "H")


def compile_text(text: str, stages: Collection[int] | None = None) -> Text:
    """From a text to its bytes for a sample; what there is nothing of leaves nothing.

    Raises Mistake for what is no variable, or none that is known at one of `stages` (those of hitlessd.samples).
    """
    parts: list[bytes | Callable[[Sample], Value | None]] = []
    plain = ""
    for literal, percent, flags, fetch, name, wrong in _PIECE.findall(text):
        if literal or percent:
            plain += literal or "%"
            continue
        if wrong:
            raise Mistake("use this variable", text[text.rfind("%") :], "%[FETCH], %NAME, or %% for the sign itself")
        stage, get = _variable(fetch, name)
        if stages is not None and stage not in stages:
            raise Mistake("ask for this here", fetch or f"%{name}", "what is known when the rule is applied")
        if flags not in ("", "+Q", "-Q"):
            raise Mistake("use these flags", flags, "+Q or none")
        if flags == "+Q":
            plain += '"'
        if plain:
            parts.append(_encode(plain))
        parts.append(get)
        plain = '"' if flags == "+Q" else ""
    if plain:
        parts.append(_encode(plain))
    if not parts or (len(parts) == 1 and isinstance(parts[0], bytes)):
        whole = b"".join(part for part in parts if isinstance(part, bytes))
        return lambda sample: whole
    return lambda sample: b"".join([part if isinstance(part, bytes) else _value(part(sample)) for part in parts])


def _variable(fetch: str, name: str) -> tuple[int, Callable[[Sample], Value | None]]:
    """From which stage on there is a value, and how to get it."""
    if not name or name in _FETCHES:
        found, get = expression(fetch if not name else _FETCHES[name])
        return found.stage, get
    if name == "HQ":
        return REQUEST, _query
    if name == "HV":
        return REQUEST, _version
    if name == "H":
        host = socket.gethostname().encode("utf-8", "surrogateescape")
        return CONNECTION, lambda sample: host
    known = (*_FETCHES, *_OTHERS)
    raise Mistake("use this variable", f"%{name}", "one of " + ", ".join(f"%{each}" for each in known), known)


def _query(sample: Sample) -> bytes | None:
    """With its question mark, as HAProxy's %HQ."""
    request = sample.request
    if request is None:
        return None
    _, mark, query = request.target.partition(b"?")
    return mark + query


def _version(sample: Sample) -> bytes | None:
    return None if sample.request is None else b"HTTP/%d.%d" % divmod(sample.request.version, 10)


def _encode(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def _value(value: Value | None) -> bytes:
    if value is None:
        return b""
    return value if isinstance(value, bytes) else b"%d" % value
