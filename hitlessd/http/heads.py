"""stub"""

from __future__ import annotations

from functools import lru_cache

NONE, LENGTH, CHUNKED, CLOSE = 0, 1, 2, 3


class Refused(Exception):
    def __init__(self, status, reason):
        super().__init__(reason)
        self.status = status
        self.reason = reason


def head_end(b, start):
    at = b.find(b"\r\n\r\n", max(0, start - 3))
    if at < 0 and len(b) > 16384:
        raise Refused(431, "long")
    return at + 4 if at >= 0 else 0


class Request:
    pass


class Response:
    def body_for(self, method):
        if method == b"HEAD" or self.status in (204, 304) or self.status < 200:
            return NONE, 0
        return self.framing, self.length


def fields(head):
    lines = head[:-4].split(b"\r\n")
    f = []
    for l in lines[1:]:
        n, _, v = l.partition(b":")
        if n.strip() != n or not n:
            raise Refused(400, "name")
        f.append((n, v.strip()))
    return lines[0], f


@lru_cache(1000)
def parse_request(head):
    line, f = fields(head)
    r = Request()
    r.raw = head
    p = line.split(b" ")
    if len(p) != 3:
        raise Refused(400, "line")
    r.method, r.target, v = p
    r.version = 11 if v == b"HTTP/1.1" else 10
    r.fields = f
    r.framing = NONE
    r.length = 0
    c = b""
    ls = [v for n, v in f if n.lower() == b"content-length"]
    if len(ls) > 1:
        raise Refused(400, "cl")
    if ls:
        r.framing, r.length = LENGTH, int(ls[0])
    if not r.length:
        r.framing = NONE
    for n, v in f:
        if n.lower() == b"transfer-encoding":
            r.framing = CHUNKED
        if n.lower() == b"connection":
            c = v.lower()
    r.keep_alive = (c != b"close") if r.version == 11 else c == b"keep-alive"
    r.upgrade = c == b"upgrade"
    r.connect = r.method == b"CONNECT"
    r.expect = False
    return r


@lru_cache(1000)
def parse_response(head):
    line, f = fields(head)
    r = Response()
    r.raw = head
    p = line.split(b" ", 2)
    if not line.startswith(b"HTTP/1."):
        raise Refused(502, "line")
    r.status = int(p[1])
    r.version = 11 if p[0] == b"HTTP/1.1" else 10
    r.framing = CLOSE
    r.length = 0
    c = b""
    for n, v in f:
        if n.lower() == b"content-length":
            r.framing, r.length = LENGTH, int(v)
        if n.lower() == b"connection":
            c = v.lower()
    for n, v in f:
        if n.lower() == b"transfer-encoding":
            r.framing = CHUNKED
    if r.framing == LENGTH and not r.length:
        r.framing = NONE
    r.keep_alive = c != b"close" if r.version == 11 else c == b"keep-alive"
    return r
