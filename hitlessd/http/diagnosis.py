"""The slow half of reading a head: one that is not whole yet, or not sound. Says what is wrong, and as early as it can.

What is refused for the sum of its bytes is refused for the same reason however they arrive: the first line is judged
before the lines after it, and bytes that belong nowhere before what a line means.
"""

from __future__ import annotations

import re
from typing import NoReturn

from hitlessd.http.grammar import MAX_HEAD, TOKEN, VALUE, Refused

__all__ = ["diagnose", "partial_end"]

#: Empty lines that are skipped before a request (RFC 9112 section 2.2); more are not a client but a flood.
_EMPTY_LINES = 2

_STRAY = re.compile(rb"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]|(?<!\r)\n|\r(?!\n|\Z)|\n[\t ]")
_NAMES = {
    b"\n": "LF without CR",
    b"\r": "CR without LF",
    b"\0": "NUL in the head",
    b"\n ": "a folded line",
    b"\n\t": "a folded line",
}
_VERSION = re.compile(rb"HTTP/[0-9]\.[0-9]")


def partial_end(buffer: bytes | bytearray, start: int, response: bool) -> int:
    """As head_end(), for what it has not decided at a glance."""
    begin = start
    if not response:
        for _ in range(_EMPTY_LINES):
            if buffer.startswith(b"\r\n", begin):
                begin += 2
    limit = start + MAX_HEAD
    found = buffer.find(b"\r\n\r\n", begin, limit)
    if found >= 0 and buffer[begin] != 13:
        return found + 4
    _check(bytes(buffer[begin:limit]), response)
    if len(buffer) >= limit:
        raise Refused(431, f"a head of more than {MAX_HEAD} bytes")
    return 0


def diagnose(head: bytes, response: bool) -> NoReturn:
    """Raises Refused with the reason why a whole head is not sound."""
    _check(head, response)
    for line in head.split(b"\r\n")[1:-2]:
        name, colon, _ = line.partition(b":")
        if not colon:
            raise Refused(400, "a header field without a colon")
        if not name:
            raise Refused(400, "a header field without a name")
        if name.endswith((b" ", b"\t")):
            raise Refused(400, "space before a colon")
        if not re.fullmatch(TOKEN + rb"++", name):
            raise Refused(400, "a header field's name is malformed")
    raise Refused(400, "the head is malformed")


def _check(head: bytes, response: bool) -> None:
    """Raises Refused if no bytes after these could make a sound head of them."""
    end = head.find(b"\r\n")
    if end >= 0:
        line = head[:end]
        _check_stray(line + b"\r\n")
        if response:
            _check_status_line(line)
        else:
            _check_request_line(line)
    elif response:
        if not (head.startswith(b"HTTP/") or b"HTTP/".startswith(head)):
            raise Refused(400, "this is not HTTP")
    elif head and head[:1] != b"\r" and not re.match(TOKEN, head):
        raise Refused(400, "this is not HTTP")
    _check_stray(head)


def _check_stray(head: bytes) -> None:
    stray = _STRAY.search(head)
    if stray is not None:
        raise Refused(400, _NAMES.get(stray[0], "a control character in the head"))


def _check_request_line(line: bytes) -> None:
    if not line:
        raise Refused(400, "too many empty lines before a request")
    parts = line.split(b" ")
    if not re.fullmatch(TOKEN + rb"++", parts[0]):
        raise Refused(400, "the method is malformed")
    if len(parts) == 2:
        raise Refused(400, "a request line without a version, as in HTTP/0.9")
    if len(parts) != 3:
        raise Refused(400, "the request line is malformed")
    if not re.fullmatch(rb"[!\"$-~]++", parts[1]):
        raise Refused(400, "the request target is malformed")
    if not _VERSION.fullmatch(parts[2]):
        raise Refused(400, "the version is malformed")
    if parts[2] not in (b"HTTP/1.0", b"HTTP/1.1"):
        raise Refused(505, f"version {parts[2][5:].decode()}")


def _check_status_line(line: bytes) -> None:
    version, _, rest = line.partition(b" ")
    if not _VERSION.fullmatch(version):
        raise Refused(400, "this is not HTTP")
    if version not in (b"HTTP/1.0", b"HTTP/1.1"):
        raise Refused(505, f"version {version[5:].decode()}")
    if not re.fullmatch(rb"[1-9][0-9][0-9](?: " + VALUE + rb"*+)?", rest):
        raise Refused(400, "the status line is malformed")
