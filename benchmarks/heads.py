"""`python -m benchmarks.heads`: microseconds for reading one head, here, by h11 and by httptools (llhttp).

Each reader is asked for the same: method or status, fields, framing, and where the head ends.
"""

from __future__ import annotations

import timeit
from collections.abc import Callable
from functools import partial
from typing import Final

import h11
import httptools

from hitlessd.http.edit import ADD, forward_request
from hitlessd.http.fields import list_fields
from hitlessd.http.heads import fresh_request, fresh_response, head_end, parse_request, parse_response

ROUNDS: Final = 5

_SMALL = b"GET /index.html HTTP/1.1\r\nHost: www.example.org\r\nUser-Agent: wrk/4.1\r\nAccept: */*\r\n\r\n"
_BROWSER = (
    b"GET /a/b/c?q=1 HTTP/1.1\r\nHost: www.example.org\r\nConnection: keep-alive\r\n"
    b'sec-ch-ua: "Chromium";v="118", "Not=A?Brand";v="99"\r\nsec-ch-ua-mobile: ?0\r\n'
    b"User-Agent: Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/118.0.0.0\r\n"
    b"Accept: text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,*/*;q=0.8\r\n"
    b"Sec-Fetch-Site: same-origin\r\nSec-Fetch-Mode: no-cors\r\nReferer: https://www.example.org/\r\n"
    b"Accept-Encoding: gzip, deflate, br\r\nAccept-Language: en-US,en;q=0.9\r\n"
    b"Cookie: session=0123456789abcdef0123456789abcdef; theme=dark\r\n\r\n"
)
_RESPONSE = (
    b"HTTP/1.1 200 OK\r\nServer: nginx\r\nDate: Wed, 25 Nov 2026 15:00:00 GMT\r\nContent-Type: text/plain\r\n"
    b"Content-Length: 13\r\nConnection: keep-alive\r\n\r\n"
)


class _Calls:
    def __init__(self) -> None:
        self.fields: list[tuple[bytes, bytes]] = []

    def on_url(self, url: bytes) -> None:
        self.url = url

    def on_header(self, name: bytes, value: bytes) -> None:
        self.fields.append((name, value))

    def on_headers_complete(self) -> None:
        self.complete = True


def _ours(head: bytes, response: bool) -> None:
    (fresh_response if response else fresh_request)(head[: head_end(head, 0, response)])
    list_fields(head)


def _ours_lazily(head: bytes, response: bool) -> None:
    (fresh_response if response else fresh_request)(head[: head_end(head, 0, response)])


def _ours_again(head: bytes, response: bool) -> None:
    (parse_response if response else parse_request)(head[: head_end(head, 0, response)])


def _h11(head: bytes, response: bool) -> None:
    if response:
        conn = h11.Connection(h11.CLIENT)
        conn.send(h11.Request(method="GET", target="/", headers=[("Host", "a")]))
    else:
        conn = h11.Connection(h11.SERVER)
    conn.receive_data(head)
    conn.next_event()


def _httptools(head: bytes, response: bool) -> None:
    calls = _Calls()
    (httptools.HttpResponseParser if response else httptools.HttpRequestParser)(calls).feed_data(head)


def _microseconds(call: Callable[[], object], number: int) -> float:
    return min(timeit.repeat(call, number=number, repeat=ROUNDS)) / number * 1e6


def main() -> None:
    """Print the table."""
    print(f"{'us a head':28}{'small':>9}{'browser':>9}{'response':>9}")
    cases = [(_SMALL, False), (_BROWSER, False), (_RESPONSE, True)]
    readers = [
        ("hitlessd, all fields", _ours, 10_000),
        ("hitlessd, what it needs", _ours_lazily, 10_000),
        ("hitlessd, seen before", _ours_again, 50_000),
        ("httptools", _httptools, 10_000),
        ("h11", _h11, 1000),
    ]
    for name, reader, number in readers:
        times = [_microseconds(partial(reader, *case), number) for case in cases]
        print(f"{name:28}" + "".join(f"{time:9.2f}" for time in times))
    request = parse_request(_SMALL)
    edits = ((ADD, b"X-Forwarded-For", b"192.0.2.1"),)
    added = _microseconds(partial(forward_request, request, True, edits), 50_000)
    print(f"{'X-Forwarded-For added':28}{added:9.2f}")


if __name__ == "__main__":
    main()
