"""Texts with variables, and headers, as the configuration has them: whether they can be used."""

from __future__ import annotations

from collections.abc import Collection

from hitlessd.samples import Mistake

__all__ = ["check_format", "check_header", "errorfile_problem", "log_format_problem"]

_TOKEN = frozenset("!#$%&'*+.^_`|~0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ-")
#: What says where a message ends and how long its connection lasts is decided by the relay, on both sides.
_OURS = (
    *("connection", "content-length", "keep-alive", "proxy-connection"),
    *("te", "trailer", "transfer-encoding", "upgrade"),
)


def check_format(text: str, stages: Collection[int] | None = None) -> str:
    """The text, which belongs in a header or a body; its variables are known at one of `stages`. Raises Mistake."""
    if "%" in text:
        from hitlessd.http.texts import compile_text  # only who uses variables pays for them

        compile_text(text, stages)
    return text


def check_header(name: str, value: str, stages: Collection[int] | None = None) -> tuple[str, str]:
    """A header's name and its value's text. Raises Mistake."""
    if not name or not _TOKEN.issuperset(name):
        raise Mistake("use this header", name, "the name of a header field")
    if name.lower() in _OURS:
        raise Mistake("change this header", name, "one that does not say how the message is passed on")
    if any((ord(sign) < 0x20 and sign != "\t") or sign == "\x7f" for sign in value):
        raise Mistake("use this value", value, "text without control characters")
    return name, check_format(value, stages)


def errorfile_problem(status: int, data: bytes) -> str:
    """What is wrong with an error page, "cannot ...", or ""; an empty one means to say nothing."""
    if not data:
        return ""
    from hitlessd.http.answers import parse_errorfile  # only who uses it pays for it

    try:
        parse_errorfile(status, data)
    except ValueError as error:
        return str(error)
    return ""


def log_format_problem(text: str, *, http: bool) -> str:
    """What is wrong with the format of a log line, "cannot ...", or ""; without `http`, what only HTTP mode has is."""
    from hitlessd.logformat import problem_of  # only who uses it pays for it

    return problem_of(text, http=http)
