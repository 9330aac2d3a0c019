"""The text of an ordinary connection says what its form says, and nothing is taken for ordinary that is not."""

from __future__ import annotations

import json
import select
from collections.abc import Callable, Iterator

import pytest

from hitlessd.model import Timeouts
from hitlessd.proxyprotocol import Header
from hitlessd.worker.connection import Connection, State
from hitlessd.worker.form import SerialConnection
from hitlessd.worker.pipes import Pipe
from hitlessd.worker.plain import for_park, for_way, is_plain
from hitlessd.worker.relay import Side
from hitlessd.worker.serial import names_of, to_serial
from hitlessd.worker.timers import NEVER
from tests.support.relay import Farm, Lab, listen, make_config

#: What is for people only, or lies elsewhere.
_UNTOLD = ("generation", "worker", "accepted_at", "expires_in")
_IN_THE_BOOK = ("frontend", "backend", "server", "number", "accounted_in", "accounted_out")


@pytest.fixture
def farm() -> Iterator[Farm]:
    made = Farm(1)
    yield made
    made.close()


def form_of(conn: Connection, data: bool, *without: str) -> dict[str, object]:
    form = to_serial(conn, data).as_dict()
    return {name: value for name, value in form.items() if name not in (*_UNTOLD, *without)}


def read(text: str, **more: object) -> dict[str, object]:
    """What becomes of the text where it arrives."""
    return SerialConnection.from_dict(json.loads(text) | more).as_dict()


@pytest.mark.parametrize("address", [("127.0.0.1", 0), ("::1", 0), "unix"])
@pytest.mark.parametrize("connect", [5, None])
def test_the_text_says_what_the_form_says(
    farm: Farm, address: tuple[str, int] | str, connect: int | None, tmp_path_factory: pytest.TempPathFactory
) -> None:
    place = str(tmp_path_factory.mktemp("s") / "s") if address == "unix" else address
    times = Timeouts(connect=connect, client=60, server=50)
    listener = listen(place)
    with listener, Lab(make_config(farm.servers(), timeouts=times), listener=listener) as lab:
        client, server = lab.pair(farm)
        (conn,) = lab.worker.connections
        for said in (b"", b"hello"):
            lab.clock.now += 3.25
            lab.turn()
            client.send(said)
            lab.until(lambda said=said: server.read() == said)  # type: ignore[misc]
            for conn.entered, conn.shared, conn.counted in (
                (False, False, False),
                (True, False, True),
                (True, True, True),
            ):
                assert is_plain(conn)
                assert read(for_way(conn, names_of(conn))) == form_of(conn, True)
                assert read(for_park(conn, 7)) == form_of(conn, False, *_IN_THE_BOOK)
                assert json.loads(for_park(conn, 7))["lane"] == 7
            conn.account()
            assert conn.server is not None
            conn.client.shift, conn.server.shift = 28, -3
        conn.entered = conn.shared = False


def test_names_and_addresses_are_quoted(farm: Farm) -> None:
    with Lab(make_config(farm.servers())) as lab:
        lab.pair(farm)
        (conn,) = lab.worker.connections
        known, conn.address = conn.address, ('fe80::1%"\\', 80)
        form = SerialConnection.from_dict(json.loads(for_way(conn, names_of(conn))))
        assert form.client_address == ('fe80::1%"\\', 80)
        assert (form.frontend, form.backend, form.server) == ("www", "app", "s1")
        conn.address = known


def _on(name: str, value: object) -> Callable[[Connection], tuple[object, str, object]]:
    return lambda conn: (conn, name, value)


def _at(which: str, name: str, value: object) -> Callable[[Connection], tuple[object, str, object]]:
    return lambda conn: (getattr(conn, which), name, value)


@pytest.mark.parametrize(
    "change",
    [
        _on("state", State.TARRYING),
        _on("state", State.CONNECTING),
        _on("server", None),
        _on("target", None),
        _on("dead", object()),
        _on("header", Header(16, 1, None, None)),
        _on("cause", "CD"),
        _on("retries", 1),
        _on("redispatched", True),
        _on("queue_position", 2),
        *(
            _at(which, name, value)
            for which in ("client", "server")
            for name, value in (
                ("pipe", Pipe(-1, -1, 0)),
                ("out", b"x"),
                ("eof", True),
                ("shut", True),
                ("bulky", 2),
                ("ready", select.EPOLLPRI),
            )
        ),
    ],
)
def test_what_is_not_ordinary_has_a_whole_form(
    farm: Farm, change: Callable[[Connection], tuple[object, str, object]]
) -> None:
    with Lab(make_config(farm.servers())) as lab:
        lab.pair(farm)
        (conn,) = lab.worker.connections
        assert is_plain(conn)
        what, name, value = change(conn)
        assert isinstance(what, Connection | Side)
        known = getattr(what, name)
        setattr(what, name, value)
        assert not is_plain(conn)
        setattr(what, name, known)
        assert is_plain(conn)


def test_no_time_to_connect_is_none(farm: Farm) -> None:
    with Lab(make_config(farm.servers(), timeouts=Timeouts(client=60))) as lab:
        lab.pair(farm)
        (conn,) = lab.worker.connections
        conn.due = NEVER
        assert SerialConnection.from_dict(json.loads(for_way(conn, names_of(conn)))).due_in is None
