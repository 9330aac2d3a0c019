"""Answers of our own, as HAProxy 2.6 sends them: errors, redirects, `return`, and what `errorfile` puts in their place.

All are heads and bodies without a Connection field, which depends on what becomes of the connection.
"""

from __future__ import annotations

from functools import lru_cache

from hitlessd.http.edit import with_connection
from hitlessd.http.grammar import Refused
from hitlessd.http.heads import head_end, parse_response

__all__ = ["answer", "error", "error_from_file", "finished", "reason_of", "redirect"]

_REASONS = {
    200: "OK", 201: "Created", 202: "Accepted", 204: "No Content", 301: "Moved Permanently", 302: "Found",
    303: "See Other", 307: "Temporary Redirect", 308: "Permanent Redirect",
    400: "Bad request", 401: "Unauthorized", 403: "Forbidden", 404: "Not Found", 405: "Method Not Allowed",
    407: "Unauthorized", 408: "Request Time-out", 410: "Gone", 413: "Payload Too Large", 425: "Too Early",
    429: "Too Many Requests", 431: "Request Header Fields Too Large", 500: "Internal Server Error",
    501: "Not Implemented", 502: "Bad Gateway", 503: "Service Unavailable", 504: "Gateway Time-out",
    505: "HTTP Version Not Supported",
}  # fmt: skip
_TEXTS = {
    200: "Service ready.",
    400: "Your browser sent an invalid request.",
    401: "You need a valid user and password to access this content.",
    403: "Request forbidden by administrative rules.",
    404: "The resource could not be found.",
    405: "A request was made of a resource using a request method not supported by that resource",
    407: "You need a valid user and password to access this content.",
    408: "Your browser didn't send a complete request in time.",
    410: "The resource is no longer available and will not be available again.",
    413: "The request entity exceeds the maximum allowed.",
    425: "Your browser sent early data.",
    429: "You have sent too many requests in a given amount of time.",
    431: "Your browser sent a request with too large a head.",
    500: "An internal server error occurred.",
    501: ".The server does not support the functionality required to fulfill the request.",
    502: "The server returned an invalid or incomplete response.",
    503: "No server is available to handle this request.",
    504: "The server didn't respond in time.",
    505: "This version of HTTP is not supported.",
}


def reason_of(status: int) -> str:
    """The reason phrase; "Unknown" where HAProxy has none."""
    return _REASONS.get(status, "Unknown")


@lru_cache(64)
def error(status: int) -> bytes:
    """The standard page of a status."""
    reason = reason_of(status)
    text = f"<html><body><h1>{status} {reason}</h1>\n{_TEXTS.get(status, reason + '.')}\n</body></html>\n".encode()
    head = (
        f"HTTP/1.1 {status} {reason}\r\ncontent-length: {len(text)}\r\n"
        "cache-control: no-cache\r\ncontent-type: text/html\r\n\r\n"
    )
    return head.encode() + text


def answer(
    status: int, body: bytes = b"", content_type: bytes = b"", headers: tuple[tuple[bytes, bytes], ...] = ()
) -> bytes:
    """What `http-request return`, and `deny` with a text, say."""
    lines = [b"HTTP/1.1 %d %s" % (status, reason_of(status).encode())]
    lines += [name.lower() + b": " + value for name, value in headers]
    if status >= 200 and status not in (204, 304):
        lines.append(b"content-length: %d" % len(body))
    if content_type:
        lines.append(b"content-type: " + content_type)
    return b"\r\n".join(lines) + b"\r\n\r\n" + body


def redirect(status: int, location: bytes) -> bytes:
    """What `redirect` says."""
    lines = [b"HTTP/1.1 %d %s" % (status, reason_of(status).encode()), b"content-length: 0", b"location: " + location]
    if status not in (301, 308):
        lines.append(b"cache-control: no-cache")
    return b"\r\n".join(lines) + b"\r\n\r\n"


def error_from_file(text: bytes) -> bytes:
    """A whole answer as an errorfile has it, with the length that its body really has. Raises Refused."""
    if b"\r\n\r\n" not in text:
        text = text.replace(b"\r\n", b"\n")
        head, _, body = text.partition(b"\n\n")
        text = head.replace(b"\n", b"\r\n") + b"\r\n\r\n" + body
    end = head_end(text)
    if not end:
        raise Refused(502, "it has no empty line")
    response, body = parse_response(text[:end]), text[end:]
    lines = response.forward[:-4].split(b"\r\n")
    kept = [line for line in lines if line.partition(b":")[0].lower() not in (b"content-length", b"transfer-encoding")]
    kept.insert(1, b"content-length: %d" % len(body))
    return b"\r\n".join(kept) + b"\r\n\r\n" + body


def finished(data: bytes, method: bytes, version: int, keep: bool) -> bytes:
    """One of the above as this client gets it."""
    end = data.index(b"\r\n\r\n") + 4
    head, body = data[:end], data[end:]
    if not keep:
        head = with_connection(head, b"close")
    elif version < 11:
        head = with_connection(head, b"keep-alive")
    return head if method == b"HEAD" else head + body
