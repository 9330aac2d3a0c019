"""The common exchange is spelt out (worker/http/direct.py): it must be what the long way is, byte by byte and in all
that is counted and logged."""

from __future__ import annotations

import random
import re

import pytest

from hitlessd.table import Column
from tests.support.processes import Deadline
from tests.support.relay import Farm, Peer, gauges
from tests.support.web import Web, forget

_REQUESTS = (
    b"GET /%d HTTP/1.1\r\nHost: a\r\n\r\n",
    b"GET /%d HTTP/1.1\r\nhOST:a\r\nX-Y: 1\r\nTE: gzip\r\n\r\n",
    b"GET /%d HTTP/1.1\r\nHost: a\r\nConnection: keep-alive, x-z\r\nX-Z: 1\r\n\r\n",
    b"HEAD /%d HTTP/1.1\r\nHost: a\r\n\r\n",
    b"POST /%d HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc",
)
_RESPONSES = (
    b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
    b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nKeep-Alive: timeout=5\r\nConnection: keep-alive\r\n\r\n",
    b"HTTP/1.1 500 Oh\r\nContent-Length: 70000\r\n\r\n" + b"0123456789" * 7000,
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
    b"HTTP/1.1 103 Early Hints\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
    b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok",
    b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok",
    b"HTTP/1.1 304 Not Modified\r\nContent-Length: 100\r\n\r\n",
)
_COUNTED = (
    *(Column.STOT, Column.BIN, Column.BOUT, Column.ERESP, Column.CLI_ABRT, Column.SRV_ABRT, Column.WRETR),
    *(Column.HRSP_2XX, Column.HRSP_4XX, Column.HRSP_3XX, Column.HRSP_5XX, Column.REQ_TOT),
    *(Column.CONNECT, Column.REUSE, Column.LBTOT),
)


class _Run:
    """A client's random exchanges, one of the ways."""

    def __init__(self, web: Web, seed: int, direct: bool) -> None:
        for frontend in web.worker.frontends.values():
            frontend.direct = frontend.direct and direct
        self.web, self.dice = web, random.Random(seed)
        self.servers: list[Peer] = []
        self.said: list[bytes] = []
        for number in range(self.dice.randrange(1, 4)):
            self.client(number)
        web.settle()
        for peer in web.clients:
            peer.close()
        web.settle()

    def client(self, number: int) -> None:
        client = self.web.connect()
        for exchange in range(self.dice.randrange(1, 7)):
            request = self.dice.choice(_REQUESTS) % (10 * number + exchange)
            response = self.dice.choice(_RESPONSES)
            if request.startswith(b"HEAD"):
                response = response[: response.rindex(b"\r\n\r\n") + 4] if b"chunked" not in response else _RESPONSES[1]
            self.send(client, request)
            server = self.web.until(self.asked, "a request at a server")
            self.said.append(forget(server))
            self.send(server, response)
            end = b"0123456789" if len(response) > 70000 else response[-2:]
            deadline = Deadline(20)
            while not client.read().endswith(end):
                deadline.check(f"an answer; got {client.got[-200:]!r}")
                self.web.worker.turn(0.005)
            self.web.settle()
            client.read()
            self.said.append(forget(client))

    def send(self, peer: Peer, data: bytes) -> None:
        """In as many pieces as it happens."""
        cut = sorted(self.dice.randrange(len(data)) for _ in range(self.dice.choice((0, 0, 1, 3))))
        for start, end in zip([0, *cut], [*cut, len(data)], strict=True):
            view = memoryview(data)[start:end]
            while view:
                view = view[peer.send(view) :]
                self.web.turn()
            self.web.settle()

    def asked(self) -> Peer | None:
        while (peer := self.web.farm.accept()) is not None:
            self.servers.append(peer)
        self.web.settle()
        return next((peer for peer in self.servers if peer.read()), None)

    def result(self) -> dict[str, object]:
        web = self.web
        return {
            "said": self.said,
            "counted": {(kind, c.name): web.value(kind, c) for kind in ("frontend", "backend", "s1") for c in _COUNTED},
            "gauges": gauges(web.table),
            "idle": web.worker.idle,
            "log": [re.sub(r":\d+ \[[^]]*\]", "", line) for line in web.lines],
            "errors": [line for line in web.logged if line[0] != "info"],
        }


@pytest.mark.parametrize("seed", range(12))
def test_both_ways_are_one(seed: int) -> None:
    results = []
    for direct in (True, False):
        farm = Farm()
        with Web(farm, general={"tcplog": True}) as web:
            results.append(_Run(web, seed, direct).result())
        farm.close()
    assert results[0] == results[1]
    assert results[0]["gauges"] == {} and results[0]["errors"] == []
