"""HTTP connections that move to a generation with another configuration: what they were promised, and no more."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from hitlessd.model import Config, HttpRule
from tests.support.descriptors import no_leak
from tests.support.relay import Farm, Lab, Peer, address_of, make_table, migrate
from tests.support.web import Web

GET = b"GET /x HTTP/1.1\r\nHost: a\r\n\r\n"
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
BEGUN = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nok"


class New(Web):
    """A worker of the next generation, of whatever configuration."""

    def __init__(self, farm: Farm, config: Config) -> None:
        Lab.__init__(self, config, table=make_table(config, generation=2), accept=False)
        self.own_table = True
        self.farm = farm


@pytest.fixture
def farm() -> Iterator[Farm]:
    with no_leak():
        made = Farm(2)
        yield made
        made.close()


@pytest.fixture
def labs() -> Iterator[list[Web]]:
    made: list[Web] = []
    yield made
    for lab in made:
        for peer in lab.clients:
            peer.close()
    for lab in made:
        bugs = [line for line in lab.logged if "bug" in line[1] or "lost" in line[1]]
        lab.__exit__()
        assert not bugs


@pytest.fixture
def old(farm: Farm, labs: list[Web]) -> Web:
    made = Web(farm)
    labs.append(made)
    return made


def go(labs: list[Web], old: Web, config: Config, clients: int = 1) -> Web:
    new = New(old.farm, config)
    labs.append(new)
    new.clock.now = 5000.0
    new.turn()
    assert migrate(old, new) == {"moved": clients, "kept": {}, "lost": 0}
    return new


def served(web: Web) -> tuple[Peer, Peer]:
    client = web.connect()
    client.sock.sendall(GET)
    server = web.serve()
    web.gets(server, GET)
    server.sock.sendall(OK)
    web.gets(client, OK)
    return client, server


def begun(web: Web) -> tuple[Peer, Peer]:
    """An exchange in the middle of its response."""
    client, server = served(web)
    server.close()
    web.until(lambda: not web.worker.idle)
    client.sock.sendall(GET)
    server = web.serve(1)
    web.gets(server, GET)
    server.sock.sendall(BEGUN)
    web.gets(client, BEGUN)
    return client, server


def finish(web: Web, client: Peer, server: Peer) -> None:
    server.sock.sendall(b"!!")
    web.gets(client, b"!!")


def other(config: Config, frontend: dict[str, Any] | None = None, **backend: Any) -> Config:
    """The configuration with changes."""
    return replace(
        config,
        frontends=(replace(config.frontends[0], **(frontend or {})),),
        backends=(replace(config.backends[0], **backend),),
    )


def test_server_of_another_address(farm: Farm, old: Web, labs: list[Web]) -> None:
    """The exchange ends where it began; the next one goes to the new address."""
    client, server = begun(old)
    moved = replace(old.config.backends[0].servers[1], address=address_of(farm.listeners[0]))
    new = go(labs, old, other(old.config, servers=(moved,)))
    finish(new, client, server)
    client.sock.sendall(GET)
    fresh = new.serve(0)
    new.gets(fresh, GET)
    fresh.sock.sendall(OK)
    new.gets(client, OK)


def test_server_that_is_gone(old: Web, labs: list[Web]) -> None:
    client, server = begun(old)
    new = go(labs, old, other(old.config, servers=old.config.backends[0].servers[:1]))
    finish(new, client, server)
    assert new.ends(server) == b""  # not even kept for a while
    client.sock.sendall(GET)
    new.gets(new.serve(0), GET)


def test_backend_that_is_gone(old: Web, labs: list[Web]) -> None:
    """Clients of its last exchanges go on with the new one."""
    client, server = begun(old)
    config = old.config
    backend = replace(config.backends[0], name="new", servers=config.backends[0].servers[:1])
    new = go(
        labs,
        old,
        replace(config, frontends=(replace(config.frontends[0], default_backend="new"),), backends=(backend,)),
    )
    finish(new, client, server)
    client.sock.sendall(GET)
    fresh = new.serve(0)
    new.gets(fresh, GET)
    assert [conn.backend.name for conn in new.worker.connections] == ["new"]


def test_backend_that_is_no_longer_the_default(old: Web, labs: list[Web]) -> None:
    client, server = begun(old)
    config = old.config
    backend = replace(config.backends[0], name="new", iid=9, servers=config.backends[0].servers[:1])
    new = go(
        labs,
        old,
        replace(
            config,
            frontends=(replace(config.frontends[0], default_backend="new"),),
            backends=(config.backends[0], backend),
        ),
    )
    finish(new, client, server)
    client.sock.sendall(GET)
    new.gets(new.serve(0), GET)
    assert [conn.backend.name for conn in new.worker.connections] == ["new"]


@pytest.mark.parametrize("busy", [False, True])
def test_frontend_that_is_gone(old: Web, labs: list[Web], busy: bool) -> None:
    """Nothing new begins under rules that nobody knows any more."""
    client, server = begun(old) if busy else served(old)
    config = old.config
    new = go(labs, old, replace(config, frontends=(replace(config.frontends[0], name="new"),)))
    if busy:
        finish(new, client, server)
    assert new.ends(client) == b""
    new.settle()
    assert not new.worker.connections


@pytest.mark.parametrize("busy", [False, True])
def test_mode_that_has_changed(old: Web, labs: list[Web], busy: bool) -> None:
    client, server = begun(old) if busy else served(old)
    new = go(labs, old, other(old.config, {"mode": "tcp"}, mode="tcp"))
    if busy:
        finish(new, client, server)
    assert new.ends(client) == b""
    new.settle()
    assert not new.worker.connections


def test_request_that_waits_when_its_frontend_goes(old: Web, labs: list[Web]) -> None:
    """It is answered, and told that this was the last."""
    client, server = served(old)
    client.sock.sendall(GET)
    waiting = old.until(lambda: old.farm.accept(1) or (server if server.read() else None))
    waiting.got = b""
    config = old.config
    new = go(labs, old, replace(config, frontends=(replace(config.frontends[0], name="new"),)))
    waiting.sock.sendall(OK)
    answer = new.ends(client)
    assert answer.endswith(b"\r\n\r\nok") and b"Connection: close" in answer


@pytest.mark.parametrize("change", [{"pool_max_conn": 0}, {"pool_purge_delay": 0.0}])
def test_pool_that_is_no_more(farm: Farm, labs: list[Web], change: dict[str, Any]) -> None:
    old = Web(farm)
    labs.append(old)
    client, server = served(old)
    servers = tuple(replace(server, **change) for server in old.config.backends[0].servers)
    new = go(labs, old, other(old.config, servers=servers))
    new.settle()
    assert new.ends(server) == b"" and server.error is None
    assert not [line for line in new.logged if line[0] == "err"]
    client.sock.sendall(GET)
    new.until(lambda: new.farm.accept(0) or new.farm.accept(1))


def test_rules_are_those_of_the_new_configuration(old: Web, labs: list[Web]) -> None:
    client, _ = served(old)
    new = go(labs, old, other(old.config, {"http_request": (HttpRule("deny", status=403),)}))
    client.sock.sendall(GET)
    new.is_told(client, 403)


def test_errorfile_of_an_answer_that_waits(old: Web, labs: list[Web]) -> None:
    """Each answer is one of the two, whole."""
    client = old.connect()
    client.sock.sendall(GET[:10])
    old.settle()
    text = b"HTTP/1.1 400 No\r\nContent-Length: 2\r\n\r\nno"
    new = go(labs, old, other(old.config, {"errorfiles": ((400, text),)}))
    client.sock.sendall(b"\x00\r\n\r\n")
    assert new.ends(client).endswith(b"\r\n\r\nno")
