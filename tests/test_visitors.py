"""Clients that workers pass on to main: whose they are, and what is granted to them."""

from __future__ import annotations

import base64
import contextlib
import socket
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from hitlessd.main.visitors import Visitors
from hitlessd.model import Backend, Condition, Config, Frontend, StatsPage
from hitlessd.web.message import Grant
from tests.support.descriptors import no_leak

OPEN, CLOSED = StatsPage(uri="/open", admin=Condition(())), StatsPage(uri="/closed", auth=(("u", "p"),))
CONFIG = Config(
    frontends=(Frontend("www", 2, stats=OPEN), Frontend("plain", 3)),
    backends=(Backend("app", 4, stats=CLOSED), Backend("plain", 5)),
)


@dataclass
class Stub:
    """A web server, and a line to a successor."""

    adopted: list[tuple[bytes, Grant]] = field(default_factory=list)
    passed: list[dict[str, Any]] = field(default_factory=list)
    full: bool = False

    def adopt(self, sock: socket.socket, already: bytes, grant: Grant) -> None:
        self.adopted.append((already, grant))
        sock.close()

    def pass_on(self, message: dict[str, Any], fd: int) -> bool:
        if self.full:
            return False
        self.passed.append(message)
        return True


@pytest.fixture
def stub() -> Iterator[Stub]:
    with no_leak():
        yield Stub()


@pytest.fixture
def visitors(stub: Stub) -> Visitors:
    return Visitors(lambda: CONFIG, stub)


def send(visitors: Visitors, **message: object) -> socket.socket:
    """Have somebody come; the client's end."""
    ours, theirs = socket.socketpair()
    ours.settimeout(10)
    told = {"did": "web", "service": "page", "proxy": "www", "admin": True, "peer": "192.0.2.1:1", "already": "R0VU"}
    visitors.came(theirs, told | message)
    return ours


def heard(client: socket.socket) -> bytes:
    """All until the end."""
    with client, client.makefile("rb") as file:
        return file.read()


@pytest.mark.parametrize(
    ("message", "grant"),
    [
        ({}, Grant("page", OPEN, "www", True, "192.0.2.1:1")),
        ({"admin": False}, Grant("page", OPEN, "www", False, "192.0.2.1:1")),
        # Who could change something under the configuration before this one.
        ({"proxy": "app"}, Grant("page", CLOSED, "app", False, "192.0.2.1:1")),
        ({"service": "metrics", "proxy": "plain"}, Grant("metrics", None, "plain", False, "192.0.2.1:1")),
    ],
)
def test_grant(stub: Stub, visitors: Visitors, message: dict[str, object], grant: Grant) -> None:
    send(visitors, **message).close()
    assert stub.adopted == [(b"GET", grant)]


@pytest.mark.parametrize("proxy", ["plain", "none"])
def test_a_page_that_is_no_more(stub: Stub, visitors: Visitors, proxy: str) -> None:
    answer = heard(send(visitors, proxy=proxy))
    assert answer.startswith(b"HTTP/1.1 404 ")
    assert answer.endswith(b"cannot show this page: it is configured no more\n")
    assert stub.adopted == []


def test_a_handover_that_fails(stub: Stub, visitors: Visitors) -> None:
    visitors.hold()
    with send(visitors), send(visitors, proxy="app"):
        assert stub.adopted == []
        visitors.stay()
    assert [grant.proxy for _, grant in stub.adopted] == ["www", "app"]
    send(visitors).close()
    assert len(stub.adopted) == 3


def test_a_handover_that_succeeds(stub: Stub, visitors: Visitors) -> None:
    """All go to the successor, as they came."""
    visitors.hold()
    with send(visitors), send(visitors, proxy="gone"):
        visitors.leave_to(stub)
        assert [message["proxy"] for message in stub.passed] == ["www", "gone"]
        with send(visitors, proxy="app"):
            assert stub.passed[2]["already"] == base64.b64encode(b"GET").decode()
        stub.full = True
        assert heard(send(visitors)).startswith(b"HTTP/1.1 503 ")
    assert stub.adopted == []


def test_a_successor_that_cannot_be_told(stub: Stub, visitors: Visitors) -> None:
    visitors.hold()
    with send(visitors):
        visitors.leave_to(None)
    assert len(stub.adopted) == 1


def test_no_more_are_held_than_can_be(stub: Stub, visitors: Visitors) -> None:
    visitors.hold()
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(send(visitors)) for _ in range(256)]
        assert heard(send(visitors)).startswith(b"HTTP/1.1 503 ")
        visitors.stay()
        assert len(stub.adopted) == len(clients)


def test_a_client_that_has_left(stub: Stub, visitors: Visitors) -> None:
    ours, theirs = socket.socketpair()
    ours.close()
    visitors.came(theirs, {"proxy": "none"})
    assert theirs.fileno() == -1
