"""Texts in the language of log-format, as the configuration has them: whether they can be compiled."""

from __future__ import annotations

from hitlessd.samples import Mistake

__all__ = ["check_format", "check_header"]

_TOKEN = frozenset("!#$%&'*+.^_`|~0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ-")
#: What says where a message ends and how long its connection lasts is decided by the relay, on both sides.
_OURS = ("connection", "content-length", "keep-alive", "proxy-connection", "te", "transfer-encoding", "upgrade")


def check_format(text: str) -> str:
    """The text, which belongs in a header or a body. Raises Mistake."""
    if "%" in text and (problem := _problem_of(text)):
        raise Mistake("use this format", text, f"one that can be read ({problem.removeprefix('cannot ')})")
    return text


def check_header(name: str, value: str) -> tuple[str, str]:
    """A header's name and the format of its value. Raises Mistake."""
    if not name or not _TOKEN.issuperset(name):
        raise Mistake("use this header", name, "the name of a header field")
    if name.lower() in _OURS:
        raise Mistake("change this header", name, "one that does not say how the message is passed on")
    if any((ord(sign) < 0x20 and sign != "\t") or sign == "\x7f" for sign in value):
        raise Mistake("use this value", value, "text without control characters")
    return name, check_format(value)


def _problem_of(text: str) -> str:
    import importlib  # only who uses variables pays for them

    try:
        return str(importlib.import_module("hitlessd.logformat").problem_of(text))
    except ModuleNotFoundError:
        return ""
