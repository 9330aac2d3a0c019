"""The shared table: what it counts, and what it refuses to map."""

from __future__ import annotations

import fcntl
import itertools
import json
import os
import struct
import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hitlessd.errors import PeerError, SystemRefused
from hitlessd.model import Backend, Config, Frontend, InetAddress, Server
from hitlessd.rows import AREA
from hitlessd.table import (
    GAUGES,
    MAXIMA,
    PROCESS,
    Column,
    Health,
    HealthRecord,
    RowKey,
    ServerState,
    Table,
    row_keys,
    sum_over,
    totals,
)
from tests.support.descriptors import memfd, no_leak
from tests.support.processes import ROOT

KEYS = [PROCESS, RowKey("frontend", "f"), RowKey("backend", "b"), RowKey("server", "b", "s")]
_MOST = (1 << 64) - 1
GOOD = {"magic": int.from_bytes(b"hitlessT", "little"), "format": 1, "workers": 1, "columns": 24, "states": 4}


def put(table: Table, worker: int, key: RowKey, column: Column, value: int) -> None:
    slot = table.slot(worker)
    slot[table.index[key] * table.columns + column] = value
    slot.release()


def get(table: Table, worker: int, key: RowKey, column: Column) -> int:
    with table.slot(worker) as slot:
        return int(slot[table.index[key] * table.columns + column])


def test_rows_follow_the_configuration() -> None:
    server = Server("s", InetAddress("127.0.0.1", 1))
    config = Config(frontends=(Frontend("f", 2),), backends=(Backend("b", 3, (server,)), Backend("c", 4)))
    assert row_keys(config) == [*KEYS, RowKey("backend", "c")]


@given(st.lists(st.tuples(st.integers(0, 2), st.sampled_from(KEYS), st.sampled_from(Column), st.integers(0, 1 << 60))))
def test_every_word_has_a_place_of_its_own(writes: Sequence[tuple[int, RowKey, Column, int]]) -> None:
    table = Table.create(KEYS, 3, 7)
    expected: dict[tuple[int, RowKey, Column], int] = {}
    for worker, key, column, value in writes:
        put(table, worker, key, column, value)
        expected[worker, key, column] = value
    table.set_state(3, ServerState.DRAIN, 17, 99)
    for key in KEYS:
        for column in Column:
            values = [expected.get((worker, key, column), 0) for worker in range(3)]
            assert [get(table, worker, key, column) for worker in range(3)] == values
            assert table.value(table.index[key], column) == (max(values) if column in MAXIMA else sum(values))
    assert (table.state(3), table.weight(3), table.since(3), table.epoch) == (ServerState.DRAIN, 17, 99, 1)
    table.close()


def test_another_process_sees_what_we_write_and_we_what_it_writes() -> None:
    with no_leak():
        table = Table.create(KEYS, 2, 5)
        put(table, 0, PROCESS, Column.STOT, 3)
        other = Table.attach(os.dup(table.fd))
        assert (other.keys, other.workers, other.generation) == (KEYS, 2, 5)
        put(other, 1, PROCESS, Column.STOT, 4)
        assert table.value(0, Column.STOT) == other.value(0, Column.STOT) == 7
        other.close()
        table.close()


def test_nobody_can_shrink_it() -> None:
    table = Table.create(KEYS, 1, 1)
    for size in (0, os.fstat(table.fd).st_size + 1):
        with pytest.raises(PermissionError):
            os.ftruncate(table.fd, size)
    table.close()


def test_a_dead_workers_gauges_go_and_its_totals_stay() -> None:
    table = Table.create(KEYS, 2, 1)
    for column in Column:
        put(table, 0, KEYS[3], column, 5)
        put(table, 1, KEYS[3], column, 2)
    table.clear_gauges(0)
    for column in Column:
        assert table.value(3, column) == (2 if column in GAUGES else 5 if column in MAXIMA else 7)
    table.close()


def test_fold_adds_once_and_keeps_maxima() -> None:
    with no_leak():
        old, new = Table.create([*KEYS, RowKey("backend", "gone")], 2, 1), Table.create(KEYS[::-1], 1, 2)
        for column in Column:
            put(old, 0, KEYS[1], column, 10)
            put(old, 1, KEYS[1], column, 4)
            put(new, 0, KEYS[1], column, 6)
        totals = [sum_over([new, old], KEYS[1], column) for column in Column if column not in GAUGES]
        for _ in range(2):
            new.fold(old)
            assert old.folded
            assert [new.value(new.index[KEYS[1]], column) for column in Column if column not in GAUGES] == totals
            # Also as long as the old one is still listed beside the new one.
            assert [sum_over([new, old], KEYS[1], column) for column in Column if column not in GAUGES] == totals
        assert new.value(new.index[KEYS[1]], Column.SCUR) == 6
        old.close()
        new.close()


def test_what_was_folded_is_folded_on() -> None:
    tables = [Table.create(KEYS, 1, generation) for generation in (1, 2, 3)]
    for table in tables:
        put(table, 0, PROCESS, Column.STOT, 10**table.generation)
    for old, new in itertools.pairwise(tables):
        new.fold(old)
        assert sum_over(tables, PROCESS, Column.STOT) == 1110
    for table in tables:
        table.close()


def test_two_processes_that_fold_the_same_table_count_it_once() -> None:
    """A predecessor that drains and its successor both hear of the death."""
    old, mine, theirs = (Table.create(KEYS, 1, generation) for generation in (1, 2, 3))
    put(old, 0, PROCESS, Column.STOT, 5)
    script = (
        "import sys; from hitlessd.table import Table; old, new = (Table.attach(int(a)) for a in sys.argv[1:]);"
        "print('ready', flush=True); new.fold(old); print('done', flush=True)"
    )
    fcntl.lockf(old.fd, fcntl.LOCK_EX)
    fds = [os.dup(old.fd), os.dup(theirs.fd)]
    with subprocess.Popen(
        [sys.executable, "-c", script, *map(str, fds)], stdout=subprocess.PIPE, pass_fds=fds, cwd=ROOT
    ) as other:
        assert other.stdout
        assert other.stdout.readline() == b"ready\n"
        mine.fold(old)  # ends with the lock released
        assert other.stdout.readline() == b"done\n"
    assert other.returncode == 0
    for fd in fds:
        os.close(fd)
    assert mine.value(0, Column.STOT) + theirs.value(0, Column.STOT) == 5
    for table in (old, mine, theirs):
        table.close()


@pytest.mark.parametrize("columns", [(Column.SMAX,), (Column.SMAX, Column.QMAX, Column.LASTSESS)])
def test_maxima_are_cleared_where_they_are_and_nothing_else(columns: tuple[Column, ...]) -> None:
    old, table = Table.create(KEYS, 1, 1), Table.create(KEYS, 2, 2)
    key = RowKey("server", "b", "late")
    table.add_row(key)
    put(old, 0, KEYS[1], Column.SMAX, 9)
    table.fold(old)
    for worker in (0, 1):
        for column in Column:
            put(table, worker, key, column, 5 + worker)
    table.clear_maxima(None, columns)
    assert sum_over([table], KEYS[1], Column.SMAX) == 0
    assert get(table, 0, key, Column.SMAX) == 5
    table.clear_maxima(0, columns)
    for column in Column:
        assert get(table, 0, key, column) == (0 if column in columns else 5)
        assert get(table, 1, key, column) == 6
    for each in (old, table):
        each.close()


# --- totals: whatever is counted, cleared and folded in whichever order, the sums are those of a simple model

_STEPS = st.one_of(
    st.tuples(st.just("count"), st.integers(0, 3), st.integers(0, 1), st.sampled_from(KEYS[1:]), st.integers(0, _MOST)),
    st.tuples(st.just("add"), st.sampled_from(KEYS[1:]), st.integers(0, _MOST)),
    st.tuples(st.just("clear"), st.sampled_from(KEYS[1:])),
    st.tuples(st.just("begin")),
    st.tuples(st.just("fold"), st.integers(0, 3)),
)


@given(st.lists(_STEPS, max_size=40))
def test_sums_are_those_of_a_model(steps: Sequence[tuple[Any, ...]]) -> None:
    """Of tables, the youngest is main's own; older ones still count until they are folded into it."""
    tables = [Table.create(KEYS, 2, 1)]
    model = dict.fromkeys(KEYS[1:], 0)
    for step in steps:
        match step:
            case ("count", which, worker, key, number):
                table = tables[which % len(tables)]
                if table.folded:
                    continue
                before = get(table, worker, key, Column.BIN)
                put(table, worker, key, Column.BIN, (before + number) & _MOST)
                model[key] += number
            case ("add", key, number):
                tables[0].add(key, Column.BIN, number)
                model[key] += number
            case ("clear", key):
                tables[0].add(key, Column.BIN, -sum_over(tables, key, Column.BIN))
                model[key] = 0
            case ("begin",):
                # The rows lie elsewhere there, and some that were taken late are laid out.
                tables.insert(0, Table.create([PROCESS, *reversed(tables[0].keys[1:])], 2, len(tables) + 1))
            case ("fold", which):
                if which and which < len(tables):
                    tables[0].fold(tables[which])
        for key in KEYS[1:]:
            assert sum_over(tables, key, Column.BIN) == model[key] & _MOST
    for table in tables:
        table.close()


# --- spare rows


def test_a_spare_row_is_taken_once_and_seen_by_all() -> None:
    with no_leak():
        table = Table.create(KEYS, 2, 5, spare=2)
        early = Table.attach(os.dup(table.fd))
        assert (table.rows, len(table.keys), early.keys) == (6, 4, KEYS)
        late = RowKey("server", "b", "late")
        keys, index = early.keys, early.index
        assert [table.add_row(late), table.add_row(late), table.add_row(KEYS[3])] == [4, 4, 3]
        for other in (early, Table.attach(os.dup(table.fd))):
            assert (other.index[late], other.keys) == (4, [*KEYS, late])
            put(other, 1, late, Column.STOT, 3)
            assert table.value(4, Column.STOT) == 3
            if other is not early:
                other.close()
        assert (keys, late in index) == (KEYS, False)  # as they were for whoever was going through them
        table.set_state(4, ServerState.READY, 7, 9)
        assert (early.usable(4), early.weight(4)) == (True, 7)
        assert early.add_row(RowKey("server", "b", "last")) == 5
        with pytest.raises(SystemRefused, match=r"^cannot count for one more server: all 2 spare rows"):
            table.add_row(RowKey("server", "b", "one too many"))
        assert table.add_row(late) == 4
        # What was counted there goes on as everything does, whether the next table lays the row out or not.
        new = Table.create([*KEYS, late], 1, 6)
        new.fold(table)
        assert new.value(new.index[late], Column.STOT) == 3
        for each in (table, early, new):
            each.close()


@given(st.lists(st.tuples(st.text("abc.:_-é", max_size=30), st.text("abc", max_size=30)), max_size=12))
def test_spare_rows_have_the_names_that_they_were_given(names: Sequence[tuple[str, str]]) -> None:
    table = Table.create(KEYS, 1, 1, spare=12)
    expected = list(KEYS)
    for proxy, server in names:
        key = RowKey("server", proxy, server)
        expected += [key] * (key not in expected)
        assert table.add_row(key) == expected.index(key)
    other = Table.attach(os.dup(table.fd))
    assert other.keys == table.keys == expected
    assert other.index == table.index == {key: row for row, key in enumerate(expected)}
    for each in (table, other):
        each.close()


def test_a_name_that_is_too_long_for_a_spare_row_is_refused() -> None:
    table = Table.create(KEYS, 1, 1, spare=1)
    room = (AREA - 1) * 8 - len('["server","b",""]')
    with pytest.raises(SystemRefused, match=r"^cannot count for one more server: its name has 505 bytes"):
        table.add_row(RowKey("server", "b", "x" * (room + 1)))
    assert table.add_row(RowKey("server", "b", "x" * room)) == 4
    table.close()


def test_who_dies_while_it_takes_a_row_leaves_it_unused() -> None:
    """The length is written last; a name alone is nobody's."""
    table = Table.create(KEYS, 1, 1, spare=3)
    table.add_row(RowKey("server", "b", "first"))
    size = os.fstat(table.fd).st_size
    names_at = size - len(json.dumps(KEYS)) - 3 * AREA * 8
    os.pwrite(table.fd, b'["server","b","half', names_at + (AREA + 1) * 8)
    heir = Table.attach(os.dup(table.fd))
    assert heir.keys == table.keys == [*KEYS, RowKey("server", "b", "first")]
    assert heir.add_row(RowKey("server", "b", "other")) == table.index[RowKey("server", "b", "other")] == 5
    for each in (table, heir):
        each.close()


@pytest.mark.parametrize(
    "name",
    [b"x", b"{}", b'["server","b"]', b'["process","",""]', b"[" * 500, b"\xff", b'["server",1,""]'],
)
@pytest.mark.parametrize("length", [None, 505, _MOST])
def test_nonsense_in_the_place_of_a_name_is_the_end_of_the_names(name: bytes, length: int | None) -> None:
    table = Table.create(KEYS, 1, 1, spare=3)
    names_at = os.fstat(table.fd).st_size - len(json.dumps(KEYS)) - 3 * AREA * 8
    os.pwrite(table.fd, name, names_at + 8)
    os.pwrite(table.fd, struct.pack("=Q", length or len(name)), names_at)
    other = Table.attach(os.dup(table.fd))
    for each in (table, other):
        assert (each.keys, len(each.index)) == (KEYS, 4)
        each.close()


def test_sum_over_tables_without_the_row() -> None:
    table = Table.create(KEYS, 1, 1)
    put(table, 0, KEYS[1], Column.SMAX, 4)
    assert sum_over([table], RowKey("backend", "none"), Column.STOT) == 0
    assert sum_over([], PROCESS, Column.STOT) == 0
    assert sum_over([table, table], KEYS[1], Column.SMAX) == 4
    table.close()


# --- what checks found


@given(st.lists(st.tuples(st.integers(0, 2), st.sampled_from(KEYS), st.sampled_from(Column), st.integers(0, 1 << 60))))
def test_whole_rows_are_as_their_words(writes: Sequence[tuple[int, RowKey, Column, int]]) -> None:
    tables = [Table.create(KEYS, 3, 7), Table.create(KEYS[1:], 1, 6)]
    for worker, key, column, value in writes:
        put(tables[0], worker, key, column, value)
        if worker == 0 and key in tables[1].index:
            put(tables[1], worker, key, column, value // 2)
    for key in [*KEYS, RowKey("server", "b", "unknown")]:
        assert totals(tables, key) == [sum_over(tables, key, column) for column in Column]
    for table in tables:
        table.close()


def test_a_base_of_less_than_nothing_brings_counters_back_to_zero() -> None:
    table, key = Table.create(KEYS, 1, 7), KEYS[1]
    put(table, 0, key, Column.STOT, 10)
    base = Column.STOT + table.index[key] * table.columns + table._base_at
    table._words[base] = (1 << 64) - 10
    assert totals([table], key)[Column.STOT] == 0
    put(table, 0, key, Column.STOT, 13)
    assert totals([table], key)[Column.STOT] == 3
    table.close()


def test_health_is_kept_word_by_word_and_told_to_workers_when_it_changes() -> None:
    table = Table.create(KEYS, 1, 1)
    assert table.health(3) == HealthRecord()
    table.set_state(3, ServerState.READY, 1, 5)
    epoch = table.epoch
    up = HealthRecord(Health.UP, 1, 2, 3, 4, 5, 6, 7, (1 << 64) - 1, 10)
    for record, epochs in ((up, 1), (up._replace(checked_at=8), 1), (up._replace(health=Health.DOWN), 2)):
        table.set_health(3, record)
        assert (table.health(3), table.epoch - epoch) == (record, epochs)
        assert table.health(2) == HealthRecord()
        assert (table.state(3), table.weight(3), table.since(3)) == (ServerState.READY, 1, 5)
    table.close()


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("", ""),
        ("Connection refused", "Connection refused"),
        ("x" * 99, "x" * 80),
        ("ä" * 99, "ä" * 40),
        ("\ud800", "?"),
    ],
)
def test_a_checks_text_is_kept_as_far_as_there_is_room(text: str, kept: str) -> None:
    table = Table.create(KEYS, 1, 1)
    for each in (text, "other", text):
        table.set_check_text(3, each)
    assert (table.check_text(3), table.check_text(2), table.health(3)) == (kept, "", HealthRecord())
    table.close()


@pytest.mark.parametrize("health", Health)
@pytest.mark.parametrize("state", ServerState)
@pytest.mark.parametrize("weight", [0, 1, 256])
def test_who_may_get_connections(health: Health, state: ServerState, weight: int) -> None:
    table = Table.create(KEYS, 1, 1)
    table.set_state(3, state, weight, 1)
    table.set_health(3, HealthRecord(health))
    assert table.running(3) is (health is not Health.DOWN and state is not ServerState.MAINT)
    healthy = health not in (Health.DOWN, Health.STOPPING)
    assert table.usable(3) is (healthy and state is ServerState.READY and weight > 0)
    table.close()


def test_who_comes_back_from_maintenance_is_up_since_then() -> None:
    table = Table.create(KEYS, 1, 1)
    for state, at, since in (
        (ServerState.READY, 10, 0),
        (ServerState.MAINT, 20, 0),
        (ServerState.MAINT, 25, 0),
        (ServerState.READY, 30, 30),
        (ServerState.DRAIN, 40, 30),
        (ServerState.READY, 50, 30),
    ):
        table.set_state(3, state, 1, at)
        assert table.up_since(3) == since
    table.close()


def test_an_older_versions_table_has_nothing_of_what_came_later() -> None:
    with no_leak():
        old = Table.attach(crafted(b'[["process","",""]]'))
        assert (old.columns, old.health(0), old.up_since(0)) == (24, HealthRecord(), 0)
        assert old.usable(0) is False  # it has no weight
        assert old.running(0)
        old.set_state(0, ServerState.READY, 3, 9)
        assert (old.state(0), old.weight(0), old.since(0), old.usable(0)) == (ServerState.READY, 3, 9, True)
        with old.slot(0) as slot:
            slot[Column.STOT] = 8
        old.clear_gauges(0)
        new = Table.create([PROCESS], 1, 2)
        new.fold(old)
        assert new.value(0, Column.STOT) == 8
        assert all(old.value(0, column) == 0 for column in Column if column >= 24)
        new.close()
        old.close()


# --- hostile ones


def crafted(
    keys: bytes = json.dumps([["process", "", ""]]).encode(),
    *,
    rows: int = 1,
    seals: int = fcntl.F_SEAL_SHRINK,
    extra: int = 0,
    **header: int,
) -> int:
    """A descriptor of a table with the given header words and text; sound unless told otherwise."""
    words = {**GOOD, "spare": 0, "area": 0, "names": len(keys), "generation": 1, **header}
    head = [words[name] for name in ("magic", "format")] + [rows]
    head += [words[name] for name in ("workers", "columns", "states", "names", "generation")]
    head += [0, 0, words["spare"], words["area"]]
    size = 8 * (16 + 1 * (4 + 24 * 2)) + len(keys) + extra
    fd = memfd(struct.pack("=16Q", *head, *[0] * 4))
    os.ftruncate(fd, size)
    os.pwrite(fd, keys, size - extra - len(keys))
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
    return fd


def test_a_crafted_table_is_as_good_as_a_real_one() -> None:
    with no_leak():
        table = Table.attach(crafted())
        assert table.keys == [PROCESS]
        assert table.value(0, Column.STOT) == 0
        table.close()


def _read_only() -> int:
    fd = crafted()
    other = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_CLOEXEC)
    os.close(fd)
    return other


def _huge() -> int:
    fd = memfd()
    os.ftruncate(fd, 1 << 40)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)
    return fd


def _many_keys() -> int:
    """512 MiB of spaces, said to be keys."""
    fd = memfd(struct.pack("=16Q", GOOD["magic"], 1, 1, 1, 24, 4, 1 << 29, 1, *[0] * 8))
    os.ftruncate(fd, 8 * (16 + 4 + 48) + (1 << 29))
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)
    return fd


def _sealed(data: bytes) -> int:
    fd = memfd(data)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)
    return fd


HOSTILE: dict[str, Callable[[], int]] = {
    "empty": lambda: _sealed(b""),
    "short": lambda: _sealed(b"hitlessT"),
    "unsealed": lambda: crafted(seals=0),
    "sealed against writing": lambda: crafted(seals=fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_WRITE),
    "read-only": _read_only,
    "not a memfd": lambda: os.open("/etc/passwd", os.O_RDONLY | os.O_CLOEXEC),
    "a directory": lambda: os.open("/", os.O_RDONLY | os.O_CLOEXEC),
    "a terabyte": _huge,
    "half a gigabyte of keys": _many_keys,
    "wrong magic": lambda: crafted(magic=1),
    "later format": lambda: crafted(format=3),
    "more rows": lambda: crafted(rows=2),
    "no rows": lambda: crafted(rows=0),
    "endless rows": lambda: crafted(rows=(1 << 64) - 1),
    "more spare rows than rows": lambda: crafted(format=2, spare=2, area=64),
    "spare rows without room for names": lambda: crafted(b"[]", format=2, spare=1, area=1, extra=6),
    "endless spare rows": lambda: crafted(format=2, spare=(1 << 64) - 1, area=64),
    "endless names of spare rows": lambda: crafted(format=2, spare=1, area=(1 << 64) - 1),
    "endless workers": lambda: crafted(workers=(1 << 64) - 1),
    "other sizes that add up": lambda: crafted(workers=3, columns=12),
    "few columns": lambda: crafted(columns=1),
    "no states": lambda: crafted(states=0, columns=26),
    "longer text": lambda: crafted(names=1 << 20),
    "endless text": lambda: crafted(names=(1 << 64) - 1),
    "trailing bytes": lambda: crafted(extra=8),
    "duplicate keys": lambda: crafted(b'[["a","",""],["a","",""]]', rows=2, columns=10),
    "more keys than rows": lambda: crafted(b'[["a","",""],["b","",""]]'),
    "no JSON": lambda: crafted(b"[["),
    "no text": lambda: crafted(b"\xff\xfe"),
    "nested": lambda: crafted(b"[" * 200_000),
    "endless number": lambda: crafted(b"[" + b"1" * 5000 + b"]"),
    "an object": lambda: crafted(b'{"abc":1}'),
    "a number": lambda: crafted(b"7"),
    "keys that are words": lambda: crafted(b'["abc"]'),
    "keys of numbers": lambda: crafted(b"[[1,2,3]]"),
    "keys without words": lambda: crafted(b"[[]]"),
    "keys of too many words": lambda: crafted(b'[["a","b","c","d"]]'),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_an_unsound_table_is_refused_and_its_descriptor_closed(kind: str) -> None:
    with no_leak():
        fd = HOSTILE[kind]()
        with pytest.raises(PeerError, match=r"^cannot use the shared table"):
            Table.attach(fd)


def test_duplicate_keys_of_a_sound_size_are_refused() -> None:
    with no_leak():
        table = Table.create([PROCESS, PROCESS], 1, 1)
        with pytest.raises(PeerError, match="keys do not match"):
            Table.attach(os.dup(table.fd))
        table.close()


@given(st.lists(st.integers(0, (1 << 64) - 1) | st.integers(0, 40), min_size=16, max_size=16), st.binary(max_size=600))
def test_no_header_crashes_us(words: list[int], rest: bytes) -> None:
    words[0], words[1] = GOOD["magic"], 1 + words[1] % 2
    fd = _sealed(struct.pack("=16Q", *words) + rest)
    with pytest.raises(PeerError):
        Table.attach(fd)


def test_columns_and_records_are_what_rows_say_one_by_one() -> None:
    keys = [PROCESS, RowKey("backend", "b"), RowKey("server", "b", "s")]
    table = Table.create(keys, 2, 1)
    try:
        for at, worker in enumerate((table.slot(0), table.slot(1)), 1):
            for word in range(len(worker)):
                worker[word] = at * word
            worker.release()
        table.set_state(2, ServerState.DRAIN, 5, 1000)
        table.set_health(2, HealthRecord(Health.DOWN, 900, 1, 4))
        for column in Column:
            assert table.column_values(column) == [table.value(row, column) for row in range(3)]
        assert table.state_records()[2] == (ServerState.DRAIN, 5, 1000, *table.health(2))
        assert set(table.state_records()[1]) == {0}
    finally:
        table.close()
