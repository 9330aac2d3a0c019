"""What a new generation makes of what it is given."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hitlessd.errors import PeerError
from hitlessd.handover.successor import Offered, TakeoverRefused
from hitlessd.loop import Loop
from hitlessd.main.inheritance import Inheritance, connect, from_offer, from_store
from hitlessd.main.store import State, Stored
from hitlessd.model import Bind, InetAddress
from hitlessd.table import PROCESS, Table
from tests.support.descriptors import memfd, no_leak
from tests.support.listeners import opened
from tests.support.processes import free_port

_WARNINGS: list[str] = []


@pytest.fixture(autouse=True)
def _no_leak() -> Iterator[None]:
    _WARNINGS.clear()
    with no_leak():
        yield


def _log(severity: str, message: str, /, **_fields: object) -> None:
    assert severity == "warning"
    _WARNINGS.append(message)


def _close(inheritance: Inheritance) -> None:
    for listener in (*inheritance.listeners, *inheritance.runtime):
        listener.close()
    for ancestor in inheritance.ancestors:
        ancestor.table.close()
        if ancestor.process:
            ancestor.process.close()


def _table(generation: int) -> int:
    table = Table.create([PROCESS], 1, generation)
    fd = os.dup(table.fd)
    table.close()
    return fd


def test_an_offer_is_sorted_and_what_is_unsound_is_left_out() -> None:
    listener = opened(Bind(InetAddress("127.0.0.1", free_port())))
    good = {"kind": "table", "generation": 3, "pid": os.getpid(), "started": 1.5, "version": "1", "workers": [4, 5]}
    wrong: list[dict[str, Any]] = [
        {"pid": "x"},
        {"pid": 1 << 70},
        {"pid": float("inf")},
        {"workers": 7},
        {"workers": ["x"]},
        {"started": []},
    ]
    items: list[tuple[dict[str, Any], int]] = [
        ({"kind": "listener", **listener.record()}, os.dup(listener.sock.fileno())),
        ({"kind": "listener"}, memfd()),
        ({"kind": "runtime", **listener.record()}, os.dup(listener.sock.fileno())),
        ({"kind": "later"}, memfd()),
        ({}, memfd()),
        ({"kind": "table"}, memfd()),
        (good, _table(3)),
        *(({**good, **each}, _table(4)) for each in wrong),
    ]
    result = from_offer(Offered({"generation": 3, "reloads": {"number": 1}}, items), _log)
    assert (result.generation, result.reloads) == (3, {"number": 1})
    assert [x.identity for x in result.listeners + result.runtime] == [listener.identity] * 2
    assert sorted(result.offered.values()) == [0, 2]
    assert [(x.generation, x.pid, x.started, x.workers) for x in result.ancestors] == [(3, os.getpid(), 1.5, [4, 5])]
    assert result.ancestors[0].process
    assert len(_WARNINGS) == 2 + len(wrong)
    _close(result)
    listener.close()


@pytest.mark.parametrize(
    "facts", [{"generation": "x"}, {"generation": []}, {"generation": float("inf")}, {"reloads": 5}, {"reloads": "ab"}]
)
def test_an_offer_of_the_wrong_types_is_an_error(facts: dict[str, Any]) -> None:
    with pytest.raises(PeerError, match="offer makes no sense"):
        from_offer(Offered(facts, []), _log)


def test_the_generation_goes_on_from_the_youngest_thing_stored() -> None:
    stored = Stored(tables=[Table.attach(_table(4)), Table.attach(_table(6))], state=State(5, reloads={"number": 2}))
    result = from_store(stored)
    assert (result.generation, result.reloads) == (6, {"number": 2})
    assert [(x.generation, x.pid, x.process) for x in result.ancestors] == [(4, 0, None), (6, 0, None)]
    _close(result)
    assert from_store(Stored()).generation == 0


def _answered(path: Path, answer: bytes) -> object:
    """What connect() makes of a runtime socket that says this and closes."""
    loop = Loop(lambda what, error: pytest.fail(f"{what}: {error!r}"))
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        server.listen()

        def serve() -> None:
            client, _ = server.accept()
            with client:
                client.recv(4096)
                client.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            return connect(loop, str(path), 10)
        finally:
            thread.join()
            loop.close()


@pytest.mark.parametrize("answer", [b"Unknown command: '_takeover'.\n", b"", b"hl"])
def test_who_does_not_speak_our_protocol_is_asked_otherwise(tmp_path: Path, answer: bytes) -> None:
    assert _answered(tmp_path / "sock", answer) is None


def test_who_refuses_is_heard(tmp_path: Path) -> None:
    with pytest.raises(TakeoverRefused, match=r"^cannot take over: no$"):
        _answered(tmp_path / "sock", b"cannot take over: no\n")


def test_nobody_to_take_over_from(tmp_path: Path) -> None:
    loop = Loop(lambda what, error: pytest.fail(f"{what}: {error!r}"))
    stale = tmp_path / "stale"
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(stale))
    silent = socket.socket(socket.AF_UNIX)
    silent.bind(str(tmp_path / "silent"))
    silent.listen(0)
    full = socket.socket(socket.AF_UNIX)
    full.bind(str(tmp_path / "full"))
    full.listen(0)
    first = socket.socket(socket.AF_UNIX)
    first.connect(str(tmp_path / "full"))
    for path, why in (
        (tmp_path / "none", "there is no such socket"),
        (stale, "nobody listens there"),
        (tmp_path / ("x" * 120), "AF_UNIX path too long"),
        (tmp_path / "silent", r"no answer within 0\.05 s"),
        (tmp_path / "full", "nobody accepts there"),
        (f"abns@hitlessd-none-{os.getpid()}", "nobody listens there"),
    ):
        with pytest.raises(PeerError, match=f"^cannot take over from {path}: {why}$"):
            connect(loop, str(path), 0.05)
    for sock in (silent, full, first):
        sock.close()
    loop.close()
