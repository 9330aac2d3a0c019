"""Answers of our own, byte for byte HAProxy 2.6's: errors, redirects, `http-request return`.

HAProxy has two forms of an error. What refuses bytes that never became a request is a fixed text, and the connection
ends: refusal(). What answers a request is written anew for each: error(), and whether the connection goes on is the
caller's to say.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from functools import lru_cache

from hitlessd.http.fields import tokens
from hitlessd.http.grammar import TOKEN, VALUE, safe

__all__ = ["Answer", "error", "parse_errorfile", "redirect", "refusal", "returned", "target"]

_UNAUTHORIZED = "You need a valid user and password to access this content."
#: Reason and text of every status that has a page of its own. The dot before that of 501 is HAProxy's.
_PAGES = {
    200: ("OK", "Service ready."),
    400: ("Bad request", "Your browser sent an invalid request."),
    401: ("Unauthorized", _UNAUTHORIZED),
    403: ("Forbidden", "Request forbidden by administrative rules."),
    404: ("Not Found", "The resource could not be found."),
    405: (
        "Method Not Allowed",
        "A request was made of a resource using a request method not supported by that resource",
    ),
    407: ("Unauthorized", _UNAUTHORIZED),
    408: ("Request Time-out", "Your browser didn't send a complete request in time."),
    410: ("Gone", "The resource is no longer available and will not be available again."),
    413: ("Payload Too Large", "The request entity exceeds the maximum allowed."),
    421: ("Misdirected Request", "Request sent to a non-authoritative server."),
    422: ("Unprocessable Content", "The server cannot process the contained instructions."),
    425: ("Too Early", "Your browser sent early data."),
    429: ("Too Many Requests", "You have sent too many requests in a given amount of time."),
    500: ("Internal Server Error", "An internal server error occurred."),
    501: (
        "Not Implemented",
        ".The server does not support the functionality required to fulfill the request.",
    ),
    502: ("Bad Gateway", "The server returned an invalid or incomplete response."),
    503: ("Service Unavailable", "No server is available to handle this request."),
    504: ("Gateway Time-out", "The server didn't respond in time."),
    # HAProxy has none of these; in its style.
    417: ("Expectation Failed", "The server cannot meet what the request expects."),
    431: ("Request Header Fields Too Large", "Your browser sent too large a request header."),
    505: ("HTTP Version Not Supported", "Your browser speaks a version of HTTP that is not supported."),
}
#: Those alone that have no Connection field in the fixed form, though the connection ends.
_BARE_REFUSALS = (413, 422)
_REASONS = {
    201: "Created",
    202: "Accepted",
    203: "Non-Authoritative Information",
    204: "No Content",
    205: "Reset Content",
    206: "Partial Content",
    300: "Multiple Choices",
    301: "Moved Permanently",
    302: "Found",
    303: "See Other",
    304: "Not Modified",
    305: "Use Proxy",
    307: "Temporary Redirect",
    308: "Permanent Redirect",
    402: "Payment Required",
    406: "Not Acceptable",
    409: "Conflict",
    411: "Length Required",
    412: "Precondition Failed",
    414: "URI Too Long",
    415: "Unsupported Media Type",
    416: "Range Not Satisfiable",
    418: "I'm a teapot",
    423: "Locked",
    424: "Failed Dependency",
    426: "Upgrade Required",
    428: "Precondition Required",
    451: "Unavailable For Legal Reasons",
    506: "Variant Also Negotiates",
    507: "Insufficient Storage",
    508: "Loop Detected",
    510: "Not Extended",
    511: "Network Authentication Required",
}
#: Redirects that may be kept by a cache; the others say that they must not.
_PERMANENT = (301, 308)


class Answer:
    """A whole response. `head` lacks what depends on the request, and the empty line at its end."""

    __slots__ = ("body", "framed", "head", "status", "version")

    def __init__(self, status: int, head: bytes, body: bytes, framed: bool = True, version: int = 11) -> None:
        self.status = status
        self.head = head
        self.body = body
        self.framed = framed  # False: the connection ends with it, to mark its end or because a file says so
        self.version = version

    def render(self, method: bytes, client: int, keep: bool) -> bytes:
        """The bytes for a request of that method and version (10 or 11); `keep`: the connection goes on afterwards.

        `keep` must be False where `framed` is.
        """
        if not keep:
            option = b"connection: close\r\n" if self.version == 11 else b""
        else:
            option = b"connection: keep-alive\r\n" if client == 10 or self.version == 10 else b""
        return self.head + option + b"\r\n" + (b"" if method == b"HEAD" else self.body)


def error(status: int, files: Mapping[int, Answer] | None = None) -> Answer:
    """The answer to a request that has come to grief; `files`: what `errorfile` says, parsed."""
    if files and status in files:
        return files[status]
    return _error(status)


@lru_cache(64)
def _error(status: int) -> Answer:
    body = _page(status)
    fields = b"content-length: %d\r\ncache-control: no-cache\r\ncontent-type: text/html\r\n" % len(body)
    return Answer(status, _status_line(status) + fields, body)


def refusal(status: int, files: Mapping[int, Answer] | None = None) -> bytes:
    """What is sent before the connection is closed, where there was no whole request, or none that could be read."""
    if files and status in files:
        return files[status].render(b"", 11, False)
    body = _page(status)
    close = b"" if status in _BARE_REFUSALS else b"Connection: close\r\n"
    fields = b"Content-length: %d\r\nCache-Control: no-cache\r\n%bContent-Type: text/html\r\n\r\n" % (len(body), close)
    return _status_line(status) + fields + body


def redirect(status: int, location: bytes) -> Answer:
    """`http-request redirect`, for 301, 302, 303, 307 and 308."""
    head = b"%bcontent-length: 0\r\nlocation: %b\r\n" % (_status_line(status), safe(location))
    if status not in _PERMANENT:
        head += b"cache-control: no-cache\r\n"
    return Answer(status, head, b"")


def target(kind: str, text: bytes, path_and_query: bytes, host: bytes) -> bytes:
    """The Location of `redirect location|prefix|scheme TEXT` for a request (manual, "http-request redirect")."""
    if kind == "location":
        return text
    if kind == "scheme":
        return b"%b://%b%b" % (text, host, path_and_query)
    return path_and_query if text == b"/" else text + path_and_query


def returned(
    status: int, body: bytes = b"", content_type: bytes = b"", headers: Iterable[tuple[bytes, bytes]] = ()
) -> Answer:
    """`http-request return`; names of headers are written in lower case, as HAProxy writes them."""
    parts = [_status_line(status)]
    parts += [b"%b: %b\r\n" % (name.lower(), safe(value)) for name, value in headers]
    parts.append(b"content-length: %d\r\n" % len(body))
    if body and content_type:
        parts.append(b"content-type: %b\r\n" % safe(content_type))
    return Answer(status, b"".join(parts), body)


def parse_errorfile(status: int, text: bytes) -> Answer:
    """The Answer that a file of `errorfile` holds: a status line, fields, an empty line, a body.

    Lines may end with LF alone. Raises ValueError ("cannot ...: why").
    """
    problem = f"cannot use this as the answer {status}: "
    head, found, body = text.partition(b"\r\n\r\n")
    plain, plainly, rest = text.partition(b"\n\n")
    if plainly and (not found or len(plain) < len(head)):
        head, found, body = plain, plainly, rest
    if not found:
        raise ValueError(problem + "there is no empty line behind its head")
    first, *lines = head.replace(b"\r\n", b"\n").split(b"\n")
    line = re.fullmatch(rb"HTTP/1\.([01]) ([1-5][0-9][0-9])(?: " + VALUE + rb"*)?", first)
    if line is None:
        raise ValueError(problem + "it does not begin with a line such as HTTP/1.1 503 Service Unavailable")
    out = [first]
    framed = closing = False
    for field in lines:
        match = re.fullmatch(rb"(" + TOKEN + rb"+):[\t ]*(" + VALUE + rb"*?)[\t ]*", field)
        if match is None:
            raise ValueError(problem + f"the line {field.decode('latin-1')!r} is no header")
        name = match[1].lower()
        if name == b"content-length":
            if framed or match[2] != b"%d" % len(body):
                raise ValueError(problem + f"its Content-Length does not tell the {len(body)} bytes of its body")
            framed = True
        elif name == b"transfer-encoding":
            raise ValueError(problem + "its body must not be chunked")
        elif name == b"connection":
            closing |= b"close" in tokens(match[2])
            continue
        out.append(name + b": " + match[2])
    return Answer(
        int(line[2]), b"\r\n".join(out) + b"\r\n", body, framed and not closing, 11 if line[1] == b"1" else 10
    )


def _status_line(status: int) -> bytes:
    return f"HTTP/1.1 {status} {_page_of(status)[0]}\r\n".encode()


def _page(status: int) -> bytes:
    reason, text = _page_of(status)
    return f"<html><body><h1>{status} {reason}</h1>\n{text}\n</body></html>\n".encode()


def _page_of(status: int) -> tuple[str, str]:
    """Reason and text."""
    page = _PAGES.get(status)
    if page is None:
        reason = _REASONS.get(status, "Unknown")
        return reason, reason + "."
    return page
