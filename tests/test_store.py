"""systemd's descriptor store: what is kept comes back as it was, and rubbish stops nothing."""

from __future__ import annotations

import fcntl
import json
import os
import socket
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hitlessd.listeners import Listener
from hitlessd.main.store import State, Store, Stored
from hitlessd.model import Bind, InetAddress, SourceFile, UnixAddress
from hitlessd.systemd import Manager
from hitlessd.table import PROCESS, Column, Table
from tests.support.descriptors import memfd, no_leak
from tests.support.listeners import opened
from tests.support.manager import FakeManager
from tests.support.processes import free_port

FILES = (SourceFile("/etc/hitlessd.conf", "[global]\nmaxconn = 7\n# größe\n"), SourceFile("b", ""))
STATE = State(3, FILES, {"db": ("10.0.0.1", "::1")}, {}, {"number": 9, "completed": 7, "refused": 2})


class _Bench:
    """A fake manager and a store on it."""

    def __init__(self, pid1: FakeManager) -> None:
        self.pid1 = pid1
        self.store = Store(Manager({"NOTIFY_SOCKET": pid1.address}))
        self.warnings: list[str] = []

    def log(self, severity: str, message: str, /, **_fields: object) -> None:
        assert severity == "warning"
        self.warnings.append(message)

    def recover(self, extra: Sequence[tuple[int, str]] = ()) -> Stored:
        """What the next process makes of it. Like PID 1, which shares open file descriptions, passes copies."""
        self.pid1.settle()
        return self.store.recover([*extra, *self.pid1.passed()], self.log)


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[_Bench]:
    with no_leak(), FakeManager(str(tmp_path / "notify")) as pid1:
        monkeypatch.setenv("NOTIFY_SOCKET", pid1.address)
        yield _Bench(pid1)


def _close(*things: Listener | Table | Stored) -> None:
    for thing in things:
        if isinstance(thing, Stored):
            _close(*thing.listeners, *thing.runtime, *thing.tables)
        else:
            thing.close()


def _table(generation: int, sessions: int = 0) -> Table:
    table = Table.create([PROCESS], 1, generation)
    with table.slot(0) as slot:
        slot[Column.STOT] = sessions
    return table


def _listeners(path: Path) -> list[Listener]:
    return [
        opened(Bind(InetAddress("127.0.0.1", free_port()))),
        opened(Bind(InetAddress("::", free_port()), v6only=False)),
        opened(Bind(InetAddress("::1", free_port()), interface="lo")),
        opened(Bind(UnixAddress(str(path / "sock")))),
        opened(Bind(UnixAddress(f"\0hitlessd-test-{os.getpid()}"))),
    ]


def _facts(listeners: Sequence[Listener]) -> dict[str, tuple[object, ...]]:
    return {x.name: (x.identity, x.origin, x.inode, x.stored, x.listening) for x in listeners}


def test_what_is_kept_comes_back(bench: _Bench, tmp_path: Path) -> None:
    listeners = _listeners(tmp_path)
    runtime = [opened(Bind(UnixAddress(str(tmp_path / "runtime"))))]
    table = _table(3, 11)
    bench.store.keep(STATE, table, listeners, runtime)
    stored = bench.recover()
    assert stored.state
    assert (stored.state.generation, stored.state.files) == (3, FILES)
    assert (stored.state.resolved, stored.state.reloads) == (STATE.resolved, STATE.reloads)
    assert _facts(stored.listeners) == _facts(listeners)
    assert _facts(stored.runtime) == _facts(runtime)
    assert stored.runtime[0].name.startswith("runtime-")
    assert all(listener.stored for listener in (*stored.listeners, *stored.runtime))
    assert [x.inode is not None for x in stored.listeners] == [
        ":" not in x.identity.address and x.identity.address.startswith("unix@") for x in stored.listeners
    ]
    assert [(each.generation, each.value(0, Column.STOT)) for each in stored.tables] == [(3, 11)]
    assert (stored.useless, bench.warnings) == ([], [])
    # The next generation sends none of these again, only what is new, and drops what is old.
    following = _table(4)
    bench.store.keep(State(4, FILES), following, stored.listeners, stored.runtime)
    bench.store.forget_state(3)
    bench.store.forget_table(3)
    assert [[line for line in d.lines if "NAME" in line] for d in bench.pid1.settle()] == [
        ["FDNAME=hitlessd.table-4"],
        ["FDNAME=hitlessd.state-4"],
        ["FDNAME=hitlessd.state-3"],
        ["FDNAME=hitlessd.table-3"],
    ]
    again = bench.recover()
    assert _facts(again.listeners) == _facts(listeners)
    assert [each.generation for each in again.tables] == [4]
    assert again.state
    assert again.state.generation == 4
    _close(stored, again, *listeners, *runtime, table, following)


def test_a_forgotten_listener_does_not_come_back(bench: _Bench, tmp_path: Path) -> None:
    listeners, table = _listeners(tmp_path), _table(1)
    bench.store.keep(STATE, table, listeners, [])
    bench.store.forget([listeners[0].name, listeners[3].name])
    stored = bench.recover()
    assert _facts(stored.listeners) == _facts([listeners[1], listeners[2], listeners[4]])
    _close(stored, *listeners, table)


def test_sockets_of_units_are_systemds_and_are_not_stored(bench: _Bench) -> None:
    # A unit hitlessd.socket without FileDescriptorName= passes its own name.
    names = ["http", "hitlessd.socket", "hitlessd@80.socket", "hitlessd.web"]
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in names]
    given = [(sock.detach(), name) for sock, name in zip(sockets, names, strict=True)]
    stored = bench.recover(given)
    assert [(x.origin, x.name, x.stored) for x in stored.listeners] == [("systemd", name, False) for name in names]
    table = _table(1)
    bench.store.keep(STATE, table, stored.listeners, [])
    assert [name for name, _ in _settled(bench)] == ["hitlessd.table-1", "hitlessd.state-3"]
    again = bench.recover()
    assert again.state
    assert again.state.listeners == {}
    assert (again.listeners, bench.warnings) == ([], [])
    _close(stored, again, table)


def _settled(bench: _Bench) -> list[tuple[str, int]]:
    bench.pid1.settle()
    return bench.pid1.store


def test_of_two_states_the_younger_counts_and_the_other_is_useless(bench: _Bench) -> None:
    tables = {generation: _table(generation) for generation in (9, 10, 11)}
    for generation in (10, 11, 9):
        bench.store.keep(State(generation, FILES), tables[generation], [], [])
    stored = bench.recover()
    assert stored.state
    assert stored.state.generation == 11
    assert set(stored.useless) == {"state-9", "state-10"}
    assert [table.generation for table in stored.tables] == [9, 10, 11]
    bench.store.forget(stored.useless)
    assert {name for name, _ in _settled(bench) if "state" in name} == {"hitlessd.state-11"}
    _close(stored, *tables.values())


def test_of_two_states_of_one_generation_the_later_counts_and_its_name_stays(bench: _Bench) -> None:
    """A successor that died in the commit may have left one of the number that the next one gets."""
    table = _table(9)
    for number in (5, 7, 6):
        bench.store.keep(State(9, FILES, reloads={"number": number}), table, [], [])
    stored = bench.recover()
    assert stored.state
    assert stored.state.reloads == {"number": 7}
    assert stored.useless == []
    _close(stored, table)


def _state(data: bytes) -> int:
    return memfd(data)


def _pipe() -> int:
    reader, writer = os.pipe2(os.O_CLOEXEC)
    os.close(writer)
    return reader


def _large() -> int:
    fd = memfd()
    os.ftruncate(fd, (64 << 20) + 1)
    return fd


def _dgram() -> int:
    return socket.socket(type=socket.SOCK_DGRAM).detach()


def _foreign_table() -> int:
    fd = memfd(b"x" * 4096)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)
    return fd


RUBBISH = {
    "a file as a listener": ("hitlessd.listener-1", memfd),
    "a datagram socket as a listener": ("hitlessd.runtime-1", _dgram),
    "a datagram socket of a unit": ("http", _dgram),
    "a pipe of a unit": ("fifo", _pipe),
    "something of a later version": ("hitlessd.flock-3", memfd),
    "no table": ("hitlessd.table-3", _foreign_table),
    "a directory": ("hitlessd.state-3", lambda: os.open("/", os.O_RDONLY | os.O_CLOEXEC)),
    "a pipe": ("hitlessd.state-3", _pipe),
    "a socket": ("hitlessd.state-3", _dgram),
    "too large": ("hitlessd.state-3", _large),
    "empty": ("hitlessd.state-3", lambda: _state(b"")),
    "no text": ("hitlessd.state-3", lambda: _state(b"\xff\xff\xff")),
    "no object": ("hitlessd.state-3", lambda: _state(b"[]")),
    "nested": ("hitlessd.state-3", lambda: _state(b"[" * 200_000)),
    "endless number": ("hitlessd.state-3", lambda: _state(b'{"generation": Infinity}')),
    "wrong generation": ("hitlessd.state-3", lambda: _state(b'{"generation": [1]}')),
    "wrong files": ("hitlessd.state-3", lambda: _state(b'{"files": [["a"]]}')),
    "wrong listeners": ("hitlessd.state-3", lambda: _state(b'{"listeners": {"listener-1": 5}}')),
    "wrong names": ("hitlessd.state-3", lambda: _state(b'{"resolved": 3}')),
    "wrong numbers": ("hitlessd.state-3", lambda: _state(b'{"reloads": {"number": "x"}}')),
}


@pytest.mark.parametrize("kind", RUBBISH)
def test_rubbish_is_reported_closed_and_left_out(bench: _Bench, tmp_path: Path, kind: str) -> None:
    listeners, table = _listeners(tmp_path), _table(1)
    bench.store.keep(State(1, FILES), table, listeners, [])
    name, make = RUBBISH[kind]
    stored = bench.recover([(make(), name)])
    assert [
        f"'{name}': " in warning or "'" + name.removeprefix("hitlessd.") in warning for warning in bench.warnings
    ] == [True]
    assert stored.useless == [name.removeprefix("hitlessd.")]
    assert stored.state
    assert (stored.state.generation, len(stored.listeners), len(stored.tables)) == (1, len(listeners), 1)
    # Under that name it can be dropped.
    bench.store.forget(stored.useless)
    _close(stored, *listeners, table)


def test_a_record_that_makes_no_sense_costs_its_listener_only(bench: _Bench, tmp_path: Path) -> None:
    good, bad = _listeners(tmp_path), opened(Bind(InetAddress("127.0.0.1", free_port())))
    table = _table(1)
    bench.store.keep(State(1), table, [*good, bad], [])
    _settled(bench)
    fd = next(fd for name, fd in bench.pid1.store if "state" in name)
    text = json.loads(os.pread(fd, 1 << 20, 0))
    text["listeners"][bad.name]["inode"] = "?"
    os.ftruncate(fd, 0)
    os.pwrite(fd, json.dumps(text).encode(), 0)
    stored = bench.recover()
    assert _facts(stored.listeners) == _facts(good)
    assert stored.useless == [bad.name]
    assert len(bench.warnings) == 1
    _close(stored, *good, bad, table)


def test_listeners_come_back_even_without_a_state(bench: _Bench, tmp_path: Path) -> None:
    listeners, table = _listeners(tmp_path), _table(1)
    bench.store.keep(State(1), table, listeners, [])
    bench.store.forget_state(1)
    stored = bench.recover()
    assert stored.state is None
    assert {x.identity for x in stored.listeners} == {x.identity for x in listeners}
    assert {(x.origin, x.stored) for x in stored.listeners} == {("own", True)}
    assert {x.name for x in stored.listeners} == {x.name for x in listeners}
    _close(stored, *listeners, table)


def test_without_a_store_nothing_is_sent(bench: _Bench, tmp_path: Path) -> None:
    listeners, table = _listeners(tmp_path), _table(1)
    store = Store(Manager({"NOTIFY_SOCKET": bench.pid1.address, "FDSTORE": "0"}))
    store.keep(STATE, table, listeners, [])
    store.forget_state(1)
    store.forget(["x"])
    assert bench.pid1.waiting() == []
    assert not any(listener.stored for listener in listeners)
    _close(*listeners, table)


@given(
    st.builds(
        State,
        st.integers(0, 1 << 40),
        st.lists(st.builds(SourceFile, st.text(max_size=9), st.text())).map(tuple),
        st.dictionaries(st.text(max_size=9), st.lists(st.text(max_size=9)).map(tuple)),
        st.dictionaries(st.text(max_size=9), st.dictionaries(st.text(max_size=9), st.booleans() | st.text(max_size=9))),
        st.dictionaries(st.text(max_size=9), st.integers()),
    )
)
def test_a_state_is_read_as_it_was_written(state: State) -> None:
    assert State.load(state.dump()) == state


def test_a_state_of_another_version() -> None:
    assert State.load(b'{"something": "new"}') == State()


def test_what_became_of_a_reload_is_kept_in_place_of_what_was_known_before(bench: _Bench) -> None:
    table = _table(3)
    past = {"history": [{"number": 9, "ok": True}], "histogram": {"bounds": [1.0]}}
    bench.store.keep(STATE, table, [], [])
    bench.store.keep_reloads({"number": 9, "completed": 8, "refused": 2, **past})
    bench.store.keep_reloads({"number": 10, "completed": 8, "refused": 3, **past})
    names = [name for name, _ in _settled(bench)]
    assert names == ["hitlessd.table-3", "hitlessd.state-3-2"]
    stored = bench.recover()
    assert stored.state and stored.state_name == "state-3-2" and stored.useless == []
    assert stored.state.reloads == {"number": 10, "completed": 8, "refused": 3, **past}
    assert (stored.state.files, stored.state.resolved) == (STATE.files, STATE.resolved)
    # The generation that follows knows the name; what is not that generation's is left alone.
    bench.store.forget_state(3, "listener-1")
    assert [name for name, _ in _settled(bench)] == names
    bench.store.forget_state(3, stored.state_name)
    assert [name for name, _ in _settled(bench)] == ["hitlessd.table-3"]
    _close(stored, table)


def test_a_version_that_knows_no_history_finds_numbers_only() -> None:
    record = json.loads(State(3, reloads={"number": 9, "history": [{"number": 9}], "histogram": {}}).dump())
    assert record["reloads"] == {"number": 9}
    # And what it leaves is understood.
    assert State.load(json.dumps({"reloads": {"number": 9}}).encode()).reloads == {"number": 9}


def test_the_youngest_changes_count(bench: _Bench) -> None:
    first = bench.store.keep_changes(3, 9, [["server-weight", "b", "s", 1, 2]])
    second = bench.store.keep_changes(3, 10, [["server-weight", "b", "s", 5, 2]])
    stored = bench.recover()
    assert (stored.changes_name, stored.changes) == (second, [["server-weight", "b", "s", 5, 2]])
    assert stored.useless == [first]
    bench.store.forget(stored.useless)
    bench.store.forget([second])
    assert (bench.recover().changes, bench.recover().changes_name) == ([], "")
    assert not bench.warnings


@pytest.mark.parametrize("data", [b"", b"{", b"7", b"[" * 100_000])
def test_changes_that_make_no_sense_are_left_out(bench: _Bench, data: bytes) -> None:
    stored = bench.recover([(memfd(data), "hitlessd.changes-1-1"), (memfd(b"[]"), "hitlessd.changes-x")])
    assert stored.changes == [] and len(stored.useless) == 2 and len(bench.warnings) == 2


def test_a_listener_that_rests_comes_back_and_rests(bench: _Bench) -> None:
    listener = opened(Bind(InetAddress("127.0.0.1", free_port())))
    table = _table(1)
    bench.store.keep(STATE, table, [listener], [])
    listener.stop_listening()
    stored = bench.recover()
    (found,) = stored.listeners
    assert found.identity == listener.identity
    before = found.listening
    found.start_listening(0)
    assert (before, found.listening) == (False, True)
    with socket.create_connection(found.sock.getsockname(), 10):
        pass
    _close(listener, table, stored)
