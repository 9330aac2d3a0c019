"""Answers of our own are haproxy's, byte for byte: a running one is asked for each."""

from __future__ import annotations

import contextlib
import signal
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from hitlessd.http.answers import error, parse_errorfile, redirect, refusal, returned, target
from hitlessd.http.heads import parse_response
from tests.support.processes import Process, free_ports, poll_until

DENIED = (200, 400, 401, 403, 404, 405, 407, 408, 410, 413, 421, 422, 425, 429, 500, 501, 502, 503, 504)
REDIRECTED = (301, 302, 303, 307, 308)
BUSY = b"HTTP/1.0 503 Busy\r\nCache-Control: no-cache\r\nX-Foo:  Bar\r\n\r\nbusy\n"
NOPE = b"HTTP/1.1 403 Nope\nConnection: close\nX-Foo: Bar\nContent-Length: 5\n\nnope\n"
GONE = b"HTTP/1.1 404 Gone\r\nX-Foo: Bar\r\n\r\nuntil close"

_CONFIG = """\
defaults
    mode http
    timeout client 5s
    timeout http-request 2s
    timeout connect 5s
    timeout server 2s
    retries 0
frontend f
    bind 127.0.0.1:{port}
    http-request redirect prefix http://x/y code 302 if {{ path_beg /prefix }}
    http-request redirect prefix / code 302 if {{ path_beg /slash }}
    http-request redirect scheme https code 302 if {{ path_beg /scheme }}
    http-request return status 200 content-type text/plain string "hello" hdr X-A b if {{ path /return }}
    http-request return status 404 if {{ path /empty }}
    use_backend dead if {{ path /dead }}
    use_backend none if {{ path /none }}
    default_backend b
    {lines}
frontend files
    bind 127.0.0.1:{other}
    errorfile 503 {busy}
    errorfile 403 {nope}
    errorfile 404 {gone}
    http-request deny deny_status 403 if {{ path /403 }}
    http-request deny deny_status 404 if {{ path /404 }}
    default_backend none
backend b
    server s 127.0.0.1:{server}
backend dead
    server s 127.0.0.1:{closed}
backend none
"""


class Haproxy:
    """A haproxy in mode http before a server that says what it is told to, and hangs up or keeps silent."""

    def __init__(self, directory: Path) -> None:
        self.port, self.other, server, closed = free_ports(4)
        self.listener = socket.create_server(("127.0.0.1", server))
        self.says = b""
        lines = [f"http-request deny deny_status {code} if {{ path /deny/{code} }}" for code in DENIED]
        lines += [f"http-request redirect location /to code {code} if {{ path /go/{code} }}" for code in REDIRECTED]
        files = {}
        for name, text in (("busy", BUSY), ("nope", NOPE), ("gone", GONE)):
            files[name] = directory / name
            files[name].write_bytes(text)
        config = directory / "haproxy.cfg"
        config.write_text(
            _CONFIG.format(
                port=self.port, other=self.other, server=server, closed=closed, lines="\n    ".join(lines), **files
            )
        )
        self.process = Process(["/usr/sbin/haproxy", "-db", "-f", config])
        self.thread = threading.Thread(target=self._serve)
        self.thread.start()
        poll_until(self._serves, 20, "haproxy serves")

    def _serves(self) -> bool:
        assert self.process.running, self.process.stderr.text
        with contextlib.suppress(OSError):
            return self.ask(b"GET /empty HTTP/1.0\r\n\r\n") != b""
        return False

    def _serve(self) -> None:
        while True:
            try:
                sock = self.listener.accept()[0]
            except OSError:
                return
            with sock, contextlib.suppress(ConnectionError):
                sock.recv(65536)
                if self.says:
                    sock.sendall(self.says)
                else:
                    sock.recv(1)  # until haproxy has lost its patience

    def ask(self, request: bytes, port: int = 0) -> bytes:
        """Everything until the connection is closed, or until the answer is whole."""
        with socket.create_connection(("127.0.0.1", port or self.port), timeout=10) as sock:
            sock.sendall(request)
            answer = b""
            while data := sock.recv(65536):
                answer += data
                head, found, body = answer.partition(b"\r\n\r\n")
                if found and b"connection: close" not in head.lower():
                    sizes = parse_response(head + found).values(b"content-length")
                    if sizes and (request.startswith(b"HEAD") or len(body) >= int(sizes[0])):
                        break
            return answer

    def stop(self) -> None:
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        self.process.stop(first=signal.SIGKILL)
        self.thread.join(10)


@pytest.fixture(scope="module")
def haproxy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Haproxy]:
    proxy = Haproxy(tmp_path_factory.mktemp("haproxy"))
    try:
        yield proxy
    finally:
        proxy.stop()


def _get(path: str, method: str = "GET", version: str = "1.1", fields: str = "") -> bytes:
    return f"{method} {path} HTTP/{version}\r\nHost: a.example:80\r\n{fields}\r\n".encode()


@pytest.mark.parametrize("status", DENIED)
def test_errors(haproxy: Haproxy, status: int) -> None:
    keep = status not in (400, 408)
    assert haproxy.ask(_get(f"/deny/{status}")) == error(status).render(b"GET", 11, keep)
    assert haproxy.ask(_get(f"/deny/{status}", version="1.0")) == error(status).render(b"GET", 10, False)
    if keep:
        assert haproxy.ask(_get(f"/deny/{status}", "HEAD")) == error(status).render(b"HEAD", 11, True)
        again = _get(f"/deny/{status}", version="1.0", fields="Connection: keep-alive\r\n")
        assert haproxy.ask(again) == error(status).render(b"GET", 10, True)


def test_errors_of_servers(haproxy: Haproxy) -> None:
    assert haproxy.ask(_get("/none")) == error(503).render(b"GET", 11, True)
    assert haproxy.ask(_get("/dead")) == error(503).render(b"GET", 11, True)
    haproxy.says = b"nonsense\r\n\r\n"
    assert haproxy.ask(_get("/")) == error(502).render(b"GET", 11, True)
    haproxy.says = b""
    assert haproxy.ask(_get("/")) == error(504).render(b"GET", 11, True)


def test_refusals(haproxy: Haproxy) -> None:
    assert haproxy.ask(b"nonsense\r\n\r\n") == refusal(400)
    assert haproxy.ask(b"GET / HT") == refusal(408)
    assert haproxy.ask(b"GET / HTTP/1.0\r\nContent-Length: 1\r\n\r\nx") == refusal(413)
    assert haproxy.ask(_get("/", "POST", fields="Transfer-Encoding: gzip, chunked\r\n")) == refusal(422)


@pytest.mark.parametrize("status", REDIRECTED)
def test_redirects(haproxy: Haproxy, status: int) -> None:
    assert haproxy.ask(_get(f"/go/{status}")) == redirect(status, b"/to").render(b"GET", 11, True)
    assert haproxy.ask(_get(f"/go/{status}", version="1.0")) == redirect(status, b"/to").render(b"GET", 10, False)


@pytest.mark.parametrize(
    ("path", "kind", "text"),
    [("prefix", "prefix", b"http://x/y"), ("slash", "prefix", b"/"), ("scheme", "scheme", b"https")],
)
def test_where_a_redirect_goes(haproxy: Haproxy, path: str, kind: str, text: bytes) -> None:
    location = target(kind, text, f"/{path}/a?b=c".encode(), b"a.example:80")
    assert haproxy.ask(_get(f"/{path}/a?b=c")) == redirect(302, location).render(b"GET", 11, True)


def test_returns(haproxy: Haproxy) -> None:
    answer = returned(200, b"hello", b"text/plain", [(b"X-A", b"b")])
    assert haproxy.ask(_get("/return")) == answer.render(b"GET", 11, True)
    assert haproxy.ask(_get("/return", "HEAD")) == answer.render(b"HEAD", 11, True)
    assert haproxy.ask(_get("/empty")) == returned(404).render(b"GET", 11, True)


def test_errorfiles(haproxy: Haproxy) -> None:
    files = {status: parse_errorfile(status, text) for status, text in ((503, BUSY), (403, NOPE), (404, GONE))}
    for status, path in ((503, "/"), (403, "/403"), (404, "/404")):
        answer = error(status, files)
        assert haproxy.ask(_get(path), haproxy.other) == answer.render(b"GET", 11, answer.framed)
    assert error(504, files) is error(504)


def test_an_errorfile_serves_as_a_refusal_too() -> None:
    files = {400: parse_errorfile(400, NOPE)}
    assert (
        refusal(400, files)
        == b"HTTP/1.1 403 Nope\r\nx-foo: Bar\r\ncontent-length: 5\r\nconnection: close\r\n\r\nnope\n"
    )


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (b"", "no empty line"),
        (b"HTTP/1.1 503 X\r\nA: b\r\n", "no empty line"),
        (b"<html>\n\n</html>", "does not begin with a line such as"),
        (b"HTTP/1.1 503 X\r\nnonsense\r\n\r\n", "the line 'nonsense' is no header"),
        (b"HTTP/1.1 503 X\r\nContent-Length: 4\r\n\r\nhello", "its Content-Length does not tell the 5 bytes"),
        (b"HTTP/1.1 503 X\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", "must not be chunked"),
    ],
)
def test_an_errorfile_is_checked(text: bytes, why: str) -> None:
    with pytest.raises(ValueError, match="cannot use this as the answer 503: .*" + why):
        parse_errorfile(503, text)


@pytest.mark.parametrize("status", [417, 431, 505, 418, 599])
def test_others_are_in_the_same_style(status: int) -> None:
    for text in (error(status).render(b"GET", 11, False), refusal(status)):
        head, _, body = text.partition(b"\r\n\r\n")
        response = parse_response(head + b"\r\n\r\n")
        assert (response.status, response.length, response.keep_alive) == (status, len(body), False)
        assert body.startswith(b"<html><body><h1>%d " % status)


def test_what_is_quoted_cannot_end_its_line() -> None:
    assert redirect(302, b"/a\r\nX: y").head.endswith(b"\r\nlocation: /a  X: y\r\ncache-control: no-cache\r\n")
    assert b"x: a  b\r\n" in returned(200, headers=[(b"X", b"a\r\nb")]).head
