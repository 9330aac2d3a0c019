"""What HTTP mode is proved with must see every kind of failure, and only real ones; haproxy shows it can be met."""

from __future__ import annotations

import shutil
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.http_backend import HttpBackend
from tests.support.http_messages import Malformed, Message, Reader, chunked, digest, head, pattern
from tests.support.load import Load
from tests.support.processes import Process, free_port, parse_address, poll_until
from tests.support.tally import FAILURES

HAPROXY = shutil.which("haproxy", path="/usr/sbin:/usr/bin") or "/usr/sbin/haproxy"
WISH = b"GET /?id=1&size=9"


def ask(address: str, *requests: bytes) -> bytes:
    """Everything that comes back on one connection."""
    _, where = parse_address(address)
    assert isinstance(where, tuple)
    with socket.create_connection(where, 10) as sock:
        sock.settimeout(10)
        sock.sendall(b"".join(requests))
        sock.shutdown(socket.SHUT_WR)
        received = b""
        while data := sock.recv(65536):
            received += data
    return received


def only(**failures: int) -> dict[str, int]:
    return dict.fromkeys(FAILURES, 0) | failures


class Liar:
    """A server that answers each request with what `answer` makes of its number and size."""

    def __init__(self, template: bytes) -> None:
        self._template = template
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._thread = threading.Thread(target=self._run, name="liar")
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"

    def _run(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            with sock:
                reader = Reader(responses=False)
                while data := sock.recv(65536):
                    for message in reader.feed(data):
                        number = int(message.start[1].partition(b"id=")[2].partition(b"&")[0])
                        body = pattern(number, 5)
                        sock.sendall(self._template % {b"number": number, b"body": body, b"hash": digest(body)})
                    if b"close" in self._template:
                        break

    def __enter__(self) -> Liar:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join()


def fields(*more: bytes) -> bytes:
    return head(b"HTTP/1.1 200 OK", b"Number: %(number)d", b"Server-Tag: 1", b"Body-Hash: %(hash)b", *more)


@pytest.fixture
def backend() -> Iterator[HttpBackend]:
    with HttpBackend(2) as backend:
        yield backend


class TestTheReader:
    def messages(self) -> bytes:
        body = pattern(3, 2500)
        return (
            head(b"HTTP/1.1 200 OK", b"Content-Length: 2500")
            + body
            + head(b"HTTP/1.1 103 Early Hints", b"Link: </>")
            + head(b"HTTP/1.1 200 OK", b"Transfer-Encoding: chunked")
            + chunked(body, 999, (b"Body-Hash: " + digest(body),))
            + head(b"HTTP/1.1 200 OK", b"Content-Length: 99")  # to HEAD
            + head(b"HTTP/1.0 200 OK")
            + body
        )

    @pytest.mark.parametrize("step", [1, 2, 7, 1000, 100_000])
    def test_it_reads_the_same_however_the_bytes_come(self, step: int) -> None:
        reader = Reader(responses=True)
        for method in (b"GET", b"GET", b"HEAD", b"GET"):
            reader.expect(method)
        wire = self.messages()
        found: list[Message] = []
        for place in range(0, len(wire), step):
            found += reader.feed(wire[place : place + step])
        last = reader.eof()
        assert last is not None
        body = pattern(3, 2500)
        assert [len(each.body) for each in (*found, last)] == [2500, 0, 2500, 0, 2500]
        assert found[2].trailers == {b"body-hash": digest(body)}
        assert [each.persistent for each in (*found, last)] == [True, True, True, True, False]
        assert found[0].body == found[2].body == last.body == body

    @pytest.mark.parametrize(
        "wire",
        [
            b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nContent-Length: +1\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nName : value\r\n\r\n",
            b"HTTP/1.1 200 OK\nName: value\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nx\r\n",
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nabc\r\n",
            b"GET / HTTP/1.1\r\n\r\n",
        ],
    )
    def test_it_refuses(self, wire: bytes) -> None:
        reader = Reader(responses=True)
        reader.expect(b"GET")
        with pytest.raises(Malformed):
            reader.feed(wire)

    def test_an_answer_that_nobody_asked_for_and_one_that_is_cut_off(self) -> None:
        reader = Reader(responses=True)
        with pytest.raises(Malformed, match="nobody asked"):
            reader.feed(b"HTTP/1.1 204 No Content\r\n\r\n")
        reader = Reader(responses=True)
        reader.expect(b"GET")
        reader.feed(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n1234")
        with pytest.raises(Malformed, match="4 bytes"):
            reader.eof()


class TestTheServersBooks:
    def test_duplicates_and_altered_bodies(self, backend: HttpBackend) -> None:
        request = WISH + b" HTTP/1.1\r\nHost: a\r\n\r\n"
        ask(backend.addresses[0], request)
        ask(backend.addresses[1], request)
        altered = b"POST /?id=2 HTTP/1.1\r\nBody-Hash: " + digest(b"abc") + b"\r\nContent-Length: 3\r\n\r\nabd"
        ask(backend.address, altered)
        ask(backend.address, b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        books = backend.counters()
        found = {name: books[name] for name in ("requests", "unique", "duplicates", "corrupt", "others")}
        assert found == {"requests": 3, "unique": 2, "duplicates": 1, "corrupt": 1, "others": 1}
        assert books["tags"] == {"1": 2, "2": 1}
        with pytest.raises(AssertionError, match="number 1"):
            backend.spotless()

    @pytest.mark.parametrize(
        ("wire", "kind"),
        [
            (b"GET / HTTP/1.1\r\nHost: a\r\n", "short"),
            (b"POST / HTTP/1.1\r\nContent-Length: 5\r\n\r\n1234", "short"),
            (b"GET / HTTP/1.1\r\nA : b\r\n\r\n", "malformed"),
        ],
    )
    def test_what_is_cut_off_or_no_http(self, wire: bytes, kind: str, backend: HttpBackend) -> None:
        ask(backend.address, wire)
        assert backend.wait_closed()[kind] == 1


class TestEveryFailureIsSeen:
    @pytest.mark.parametrize(
        ("template", "kind"),
        [
            (fields(b"Content-Length: 5") + b"%(body)b", ""),
            (fields(b"Content-Length: 5") + b"HTTP/", "corrupt"),
            (fields(b"Content-Length: 5", b"Connection: close") + b"%(body).4b", "short"),
            (fields(b"Content-Length: 5") + b"%(body)b" + b"HTTP/1.1 200 OK\r\n\r\n", "corrupt"),
            (fields(b"Content-Length: 5") + b"%(body)b" + b"HTTP/1.1 102 Processing\r\n\r\n", "wrong"),
            (fields(b"Content-Length: 5").replace(b"200", b"503") + b"%(body)b", "status"),
            (fields(b"Content-Length: 5").replace(b"r: %", b"r: 1%") + b"%(body)b", "wrong"),
            (b"closed at once", "short"),
        ],
    )
    def test_of_an_answer(self, template: bytes, kind: str) -> None:
        with (
            Liar(template) as liar,
            Load(liar.address, mode="http", total=3, requests=0, clients=1, body=(5, 5)) as load,
        ):
            result = load.result(20)
        failures = {kind: result["failed"]} if kind else {}
        assert result["failures"] == only(**failures), result["errors"]
        assert bool(result["failed"]) is bool(kind)

    def test_a_connection_that_ends_between_two_requests(self) -> None:
        with HttpBackend(keep_alive=0.05) as backend:
            with Load(backend.address, mode="http", total=4, clients=1, interval=1.0) as load:
                result = load.result(20)
            assert result["failed"] == 0, result["errors"]
            assert (result["requests"], result["done"], result["hung_up"]) == (4, 4, 4)
            assert result["told_to_close"] == 0

    def test_idle_connections_are_kept(self, backend: HttpBackend) -> None:
        with Load(backend.address, mode="http", clients=20, interval=0.05) as load:
            load.wait_requests(200)
            result = load.stop()
        assert result["failed"] == 0, result["errors"]
        assert (result["started"], result["done"], result["hung_up"]) == (20, 20, 0)
        assert backend.spotless()["connections"] == 20


CONFIGURATION = """\
global
    nbthread 1
    stats socket {directory}/haproxy.sock
defaults
    mode http
    timeout connect 5s
    timeout client 10s
    timeout server 10s
    http-reuse {reuse}
listen t
    bind 127.0.0.1:{port}
    server a {servers[0]}
    server b {servers[1]}
"""


@pytest.mark.parametrize("reuse", ["safe", "always"])
def test_haproxy_meets_what_is_asked_of_hitlessd(reuse: str, backend: HttpBackend, tmp_path: Path) -> None:
    port, file = free_port(), tmp_path / "haproxy.cfg"
    file.write_text(CONFIGURATION.format(directory=tmp_path, reuse=reuse, port=port, servers=backend.addresses))
    with Process([HAPROXY, "-db", "-f", str(file)]) as haproxy:
        poll_until((tmp_path / "haproxy.sock").exists, 10, f"haproxy serves: {haproxy.stderr.text}")
        results: list[dict[str, Any]] = []
        for settings in (
            {"mix": "all"},
            {"mix": "all", "requests": 4},
            {"mix": "plain", "requests": 1},
            {"mix": "plain", "pipeline": 8},
        ):
            with Load(f"127.0.0.1:{port}", mode="http", total=1500, clients=16, **settings) as load:
                results.append(load.result(60))
    for result in results:
        assert result["failed"] == 0, result["errors"]
        assert (result["requests"], result["hung_up"]) == (1500, 0)
    assert backend.spotless()["unique"] == 6000
