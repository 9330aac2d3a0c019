"""What an HTTP check sends and what it makes of the answer, byte for byte as it comes. No I/O.

Whatever an answer is, its judgement is HAProxy's (configuration manual, "option httpchk" and "http-check expect").
"""

from __future__ import annotations

import re

from hitlessd.health import Outcome, Result
from hitlessd.model import Expectation, HttpCheck

__all__ = ["MOST", "HttpProbe", "proxy_header", "request"]

#: Bytes of an answer that are looked at, head and body; HAProxy's default buffer.
MOST = 16384
_STATUS_LINE = rb"HTTP/[0-9]\.[0-9] ([1-5][0-9][0-9])(?: ([^\r\n\0]*))?"
_FIELD = rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*([^\r\n\0]*?)[ \t]*"
_LOCAL_V2 = b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0"  # the PROXY protocol's LOCAL command: no connection is relayed


def proxy_header(version: int, ours: object, theirs: object) -> bytes:
    """The PROXY header of a check, by its socket's own addresses (proxy-protocol.txt, 2.1 and 2.2); 0: none."""
    if version != 1:
        return _LOCAL_V2 if version else b""
    if not (isinstance(ours, tuple) and isinstance(theirs, tuple)):
        return b"PROXY UNKNOWN\r\n"
    family = "TCP6" if ":" in ours[0] else "TCP4"
    return f"PROXY {family} {ours[0].partition('%')[0]} {theirs[0]} {ours[1]} {theirs[1]}\r\n".encode()


def request(check: HttpCheck) -> bytes:
    """The request of a check. It always ends its connection, and says how long its body is."""
    lines = [f"{check.method} {check.uri} {check.version}"]
    lines += [f"{name}: {value}" for name, value in check.headers]
    names = {name.lower() for name, _ in check.headers}
    body = check.body.encode(errors="surrogateescape")
    if body and "content-length" not in names:
        lines.append(f"Content-Length: {len(body)}")
    if "connection" not in names:
        lines.append("Connection: close")
    return "\r\n".join([*lines, "", ""]).encode(errors="surrogateescape") + body


class _Unsound(Exception):
    """The answer is not HTTP."""


class HttpProbe:
    """The answer to one check. feed() and end() return the outcome as soon as there is one."""

    def __init__(self, check: HttpCheck) -> None:
        self._expect = check.expect or (Expectation("status", "200-399"),)
        self._no_body = check.method == "HEAD"
        self._buffer = bytearray()
        self._head_checked = 0  # bytes of which it is known that they hold no end of the head
        self._status = 0
        self._reason = ""
        self._fields: list[tuple[str, str]] = []
        self._body_at = 0

    def feed(self, data: bytes) -> Outcome | None:
        """More of the answer has come."""
        self._buffer += data[: MOST - len(self._buffer)]
        return self._judge(len(self._buffer) >= MOST)

    def end(self) -> Outcome:
        """No more will come."""
        return self._judge(True) or Outcome(Result.L7RSP)

    def _judge(self, last: bool) -> Outcome | None:
        try:
            if not self._body_at and not self._read_head():
                return Outcome(Result.L7RSP) if last else None
            return self._meet(last)
        except _Unsound:
            return Outcome(Result.L7RSP)

    def _read_head(self) -> bool:
        """Whether the head is complete; interim ones are passed over."""
        while True:
            buffer = self._buffer
            if not b"HTTP/".startswith(buffer[:5]) and not buffer.startswith(b"HTTP/"):
                raise _Unsound
            found = re.compile(rb"\r?\n\r?\n").search(buffer, max(0, self._head_checked - 3))
            if not found:
                self._head_checked = len(buffer)
                return False
            self._head_checked = 0
            first, *rest = bytes(buffer[: found.start()]).replace(b"\r\n", b"\n").split(b"\n")
            status = re.fullmatch(_STATUS_LINE, first)
            fields = [re.fullmatch(_FIELD, line) for line in rest]
            if not status or not all(fields):
                raise _Unsound
            self._status = int(status[1])
            if self._status >= 200 or self._status == 101:
                break
            del buffer[: found.end()]
        self._reason = (status[2] or b"").decode("latin-1")
        self._fields = [(field[1].decode().lower(), field[2].decode("latin-1")) for field in fields if field]
        self._body_at = found.end()
        return True

    def _meet(self, last: bool) -> Outcome | None:
        for expectation in self._expect:
            if expectation.kind in ("string", "rstring"):
                outcome = self._meet_content(expectation, last)
                if outcome is None or not outcome.result.passed:
                    return outcome
            elif self._head_meets(expectation) is expectation.negated:
                return Outcome(Result.L7STS, self._status, self._reason)
        return Outcome(Result.L7OK, self._status)

    def _head_meets(self, expectation: Expectation) -> bool:
        value = expectation.value
        if expectation.kind == "status":
            return any(_within(self._status, part) for part in value.split(","))
        if expectation.kind == "rstatus":
            return bool(re.search(value, str(self._status)))
        values = [text for name, text in self._fields if name == expectation.name.lower()]
        return bool(values) and (not value or any(value == part.strip() for v in values for part in v.split(",")))

    def _meet_content(self, expectation: Expectation, last: bool) -> Outcome | None:
        body, complete = self._body(last)
        value = expectation.value.encode(errors="surrogateescape")
        found = value in body if expectation.kind == "string" else bool(re.search(value, body))
        if not found and not complete:
            return None  # it may still come
        if not body:
            return Outcome(Result.L7RSP, 0, "HTTP content check could not find a response body")
        if found and expectation.negated:
            return Outcome(Result.L7RSP, 0, "HTTP check matched unwanted content")
        if not found and not expectation.negated:
            return Outcome(Result.L7RSP, 0, "HTTP content check did not match")
        return Outcome(Result.L7OK, self._status)

    def _body(self, last: bool) -> tuple[bytes, bool]:
        """What there is of the body, and whether that is all."""
        raw = bytes(self._buffer[self._body_at :])
        if self._no_body or self._status in (204, 304):
            return b"", True
        fields = dict(self._fields)
        if "chunked" in fields.get("transfer-encoding", "").lower():
            body, complete = _dechunked(raw)
            return body, complete or last
        length = fields.get("content-length", "")
        if length:
            if not re.fullmatch(r"[0-9]{1,15}", length):
                raise _Unsound
            return raw[: int(length)], last or len(raw) >= int(length)
        return raw, last


def _within(status: int, part: str) -> bool:
    low, _, high = part.strip().partition("-")
    return int(low) <= status <= int(high or low)


def _dechunked(raw: bytes) -> tuple[bytes, bool]:
    """The content of what there is of a chunked body (RFC 9112, 7.1), and whether that is all."""
    body, at = b"", 0
    while (line := raw.find(b"\n", at)) >= 0:
        size = re.fullmatch(rb"([0-9a-fA-F]{1,8})[ \t]*(;[^\r]*)?\r?", raw[at:line])
        if not size:
            raise _Unsound
        length = int(size[1], 16)
        if not length:
            return body, True
        body += raw[line + 1 : line + 1 + length]
        at = line + 1 + length
        if at >= len(raw):
            break
        if raw[at : at + 2] != b"\r\n"[: len(raw) - at]:
            raise _Unsound
        at += 2
    return body, False
