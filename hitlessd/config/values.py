"""Scalars of the configuration: numbers, times, switches, names, modes, owners. Each function returns the value, or
None after it told `place` what is wrong."""

from __future__ import annotations

import grp
import pwd
import re
from typing import TypeVar

from .problems import Place

__all__ = ["INT_MAX", "duration", "file_mode", "group_name", "integer", "name", "one_of", "switch", "user_name"]

_Word = TypeVar("_Word", bound=str)

INT_MAX = 2**31 - 1
_NAME = re.compile(r"[A-Za-z0-9._:-]+")
_TIME = re.compile(r"([0-9]{1,20})(us|ms|s|m|h|d)?")
_SECONDS = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_TIME_LIMIT = INT_MAX / 1000
_UID_MAX = 2**32 - 2


def integer(place: Place, text: str, low: int, high: int, what: str = "use this number") -> int | None:
    """A decimal number of low..high."""
    if text.isascii() and text.isdigit() and len(text) <= 20 and low <= int(text) <= high:
        return int(text)
    place.refuse(what, text, f"a number from {low} to {high}")
    return None


def duration(place: Place, text: str, *, zero: bool = True, unit: str = "ms") -> float | None:
    """Seconds, from HAProxy's notation (configuration manual, "Time format"): us, ms, s, m, h, d; `unit` is that of a
    bare number."""
    match = _TIME.fullmatch(text)
    if not match:
        place.refuse("use this time", text, "a whole number with us, ms, s, m, h or d, as in 500ms or 2s")
        return None
    seconds = int(match[1]) * _SECONDS[match[2] or unit]
    if seconds > _TIME_LIMIT:
        place.refuse("use this time", text, f"at most {INT_MAX}ms, which is 24 days")
        return None
    if not seconds and not zero:
        place.refuse("use this time", text, "more than 0")
        return None
    return seconds


def switch(place: Place, text: str, *, bare: bool = False) -> bool | None:
    """on or off; `bare`: no value at all means on."""
    if text == "on" or (bare and not text):
        return True
    if text == "off":
        return False
    place.refuse("set this switch", text, "on or off")
    return None


def name(place: Place, text: str, what: str) -> str | None:
    """The name of a proxy or a server, in HAProxy's alphabet (configuration manual, section 4 "Proxies")."""
    if _NAME.fullmatch(text):
        return text
    place.refuse(f"name a {what} like this", text, "letters, digits and . _ : - only")
    return None


def file_mode(place: Place, text: str) -> int | None:
    """Permissions of a unix socket, octal."""
    if re.fullmatch("0?[0-7]{3}", text):
        return int(text, 8)
    place.refuse("use this mode", text, "three octal digits, as in 660")
    return None


def user_name(place: Place, text: str) -> str | None:
    """A user that exists, or a number."""
    if text.isascii() and text.isdigit():
        return text if integer(place, text, 0, _UID_MAX, "use this user number") is not None else None
    try:
        pwd.getpwnam(text)
    except (KeyError, ValueError, OSError):
        place.refuse("use this user", text, "a user that exists on this system (getent passwd)")
        return None
    return text


def group_name(place: Place, text: str) -> str | None:
    """A group that exists, or a number."""
    if text.isascii() and text.isdigit():
        return text if integer(place, text, 0, _UID_MAX, "use this group number") is not None else None
    try:
        grp.getgrnam(text)
    except (KeyError, ValueError, OSError):
        place.refuse("use this group", text, "a group that exists on this system (getent group)")
        return None
    return text


def one_of(place: Place, text: str, words: tuple[_Word, ...], what: str) -> _Word | None:
    """One of a few words."""
    for word in words:
        if word == text:
            return word
    expected = ", ".join(words[:-1]) + " or " + words[-1] if len(words) > 1 else words[0]
    place.refuse(what, text, expected, near=words)
    return None
