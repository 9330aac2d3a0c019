"""Values as the page writes them: escaped, with units, and the same as its script writes them later. No I/O."""

from __future__ import annotations

import html
import re
import time
from collections.abc import Sequence

__all__ = [
    "ago",
    "anchor",
    "byte_text",
    "clock",
    "escape",
    "kind",
    "number_text",
    "phrase",
    "shown",
    "spark",
    "visible",
]

escape = html.escape

_UNITS = ("", "k", "M", "G", "T", "P", "E")
#: Surrogates stand for bytes that are no UTF-8; others say nothing that a person can see, or turn text around.
_UNSEEN = re.compile("[\0-\x08\x0b-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2060-\u2069\ud800-\udfff\ufeff]")


def visible(text: str) -> str:
    """Text of others, with what cannot be seen replaced."""
    return _UNSEEN.sub("\ufffd", text)


def number_text(number: int) -> str:
    """`1,234`; from ten thousand on `12.3k`."""
    return f"{number:,}" if number < 10_000 else _scaled(number, 1000)


def byte_text(number: int) -> str:
    """`1.2 MiB`"""
    if number < 1024:
        return f"{number} B"
    scaled = _scaled(number, 1024)
    return f"{scaled[:-1]} {scaled[-1].upper()}iB"


def _scaled(number: int, step: int) -> str:
    value, unit = float(number), 0
    while value >= step and unit < len(_UNITS) - 1:
        value, unit = value / step, unit + 1
    digits = 2 if value < 10 else 1 if value < 100 else 0
    return f"{value:.{digits}f}{_UNITS[unit]}"


def ago(seconds: float) -> str:
    """A duration in its two greatest units: `3m 12s`."""
    whole = max(0, int(seconds))
    for size, below, big, small in ((86400, 3600, "d", "h"), (3600, 60, "h", "m"), (60, 1, "m", "s")):
        if whole >= size:
            return f"{whole // size}{big} {whole % size // below}{small}"
    return f"{whole}s"


def clock(at: float) -> str:
    """`<time>` of a moment, local time; the script adds how long ago that was."""
    local = time.localtime(at)
    machine, human = time.strftime("%Y-%m-%dT%H:%M:%S%z", local), time.strftime("%d %b %H:%M:%S", local)
    return f'<time datetime="{machine}" data-at="{int(at)}">{human}</time>'


def kind(status: str) -> str:
    """The class of a state, which decides about its colour and shape."""
    word, _, rest = status.partition(" ")
    match word:
        case "UP" if "/" in rest:
            return "failing"
        case "UP" | "OPEN":
            return "up"
        case "DOWN":
            return "down"
        case "MAINT" | "STOP" | "PAUSED":
            return "maint"
        case "DRAIN" | "NOLB":
            return "drain"
    return "none"


def spark(points: Sequence[int], size: int) -> str:
    """A line of the latest `size` points in a box of 100 by 20; the newest is at the right edge."""
    shown = points[-size:]
    top = max(shown, default=0) or 1
    left = size - len(shown)
    return " ".join(
        f"{(left + at) * 100 / (size - 1):.1f},{19 - 18 * point / top:.1f}" for at, point in enumerate(shown)
    )


def shown(text: str) -> str:
    """Anybody's text as HTML."""
    return escape(visible(text))


def phrase(number: int, one: str, many: str) -> str:
    """`1 server`, `12 servers`."""
    return f"{number_text(number)} {one if number == 1 else many}"


def anchor(proxy: str, server: str) -> str:
    """The id of a row."""
    return shown(f"{proxy}/{server}" if server else proxy)
