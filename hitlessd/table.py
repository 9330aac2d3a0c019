"""The shared table: counters that workers write and main adds up, server state that main writes and workers read.

One table a generation, in a sealed memfd that main creates, the workers inherit, the successor gets in the handover and
systemd keeps in its descriptor store. Everything is an unsigned 64-bit word in host byte order, so that a worker counts
with one store and no lock: a word has one writer, ever.

    header | state (main writes) | base (main writes) | slot of worker 0 | ... | names of spare rows | keys (JSON)

`base` holds what earlier generations counted, folded in when their last process has ended; thus totals never go back.
Totals are sums modulo 2^64: main clears one by taking from the base what all together have counted, so that a single
table's value may look huge while the sum over all generations is right. Spare rows are for servers that are added at
run time; a key, once it has a row, keeps it.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import struct
from collections.abc import Iterable, Sequence
from enum import IntEnum
from typing import NamedTuple

from hitlessd.errors import PeerError, SystemRefused
from hitlessd.rows import AREA, PROCESS, RowKey, SpareNames, dump_keys, load_keys, row_keys

__all__ = [
    "GAUGES",
    "MAXIMA",
    "MOST",
    "PROCESS",
    "SPARE_ROWS",
    "Column",
    "Health",
    "HealthRecord",
    "RowKey",
    "ServerState",
    "Table",
    "row_keys",
    "sum_over",
    "totals",
]

_MAGIC = int.from_bytes(b"hitlessT", "little")
#: The first format had no spare rows, and 0 in the words of the header that tell of them.
_FORMATS = (1, 2)
_HEADER_WORDS = 16
#: Rows that a new table has for what is added while it is in use.
SPARE_ROWS = 256
_ALWAYS_0 = _HEADER_WORDS - 1  # a word that no format uses
_MOST_SPARE = 1 << 16  # nor make us look through more than this
_MAX_BYTES = 1 << 30  # a peer's table may not make us map more than this
_MAX_KEYS_BYTES = 64 << 20  # nor parse more than this
#: The greatest word.
MOST = (1 << 64) - 1


class _Header(IntEnum):
    MAGIC, FORMAT, ROWS, WORKERS, COLUMNS, STATES, KEYS_BYTES, GENERATION, EPOCH, FOLDED_INTO = range(10)
    SPARE, AREA = 10, 11  # of ROWS, how many are spare, taken or not; words of the area with the name of one


class Column(IntEnum):
    """What a row counts, by the names of HAProxy's CSV (management guide, 9.1). New ones are added at the end."""

    SCUR = 0  # sessions now
    SMAX = 1  # most sessions at once that one worker has seen
    QCUR = 2  # waiting in the queue now
    QMAX = 3
    STOT = 4  # sessions ever
    BIN = 5  # bytes from clients
    BOUT = 6  # bytes to clients
    DREQ = 7
    DRESP = 8
    EREQ = 9
    ECON = 10  # connections to servers that failed for good
    ERESP = 11  # the server aborted or answered wrongly
    WRETR = 12  # connection attempts repeated
    WREDIS = 13  # sent to another server after a failure
    CLI_ABRT = 14
    SRV_ABRT = 15
    LBTOT = 16  # times chosen by balancing
    LASTSESS = 17  # CLOCK_REALTIME seconds of the latest session
    SPLICED = 18  # bytes that never entered this process
    QTIMEOUT = 19  # given up waiting in the queue
    PARKED = 20  # connections that outlive their worker now; of the process only, as the next two
    RESUMED = 21  # connections that went on after their worker had ended; main counts these
    LOST = 22  # connections that did not
    REQ_TOT = 23  # HTTP requests
    HRSP_1XX = 24  # HTTP responses by class
    HRSP_2XX = 25
    HRSP_3XX = 26
    HRSP_4XX = 27
    HRSP_5XX = 28
    HRSP_OTHER = 29
    CONNECT = 30  # connections made to a server
    REUSE = 31  # requests sent on a connection that was there
    IDLE = 32  # connections to a server that wait for a request, now
    CHKFAIL = 33  # checks that failed while the server was up; main counts these, as the next two
    CHKDOWN = 34  # times it went down
    DOWNTIME = 35  # whole seconds for which it was down, up to its latest return
    HANAFAIL = 36  # times that `observe` has found enough errors; main counts these
    EINT = 37  # internal errors
    DSES = 38  # sessions that `tcp-request session` refused
    DCON = 39  # connections that `tcp-request connection` refused
    OBSERVED_OK = 40  # successes that `observe` has seen; see worker/observation.py, as for the next two
    OBSERVED_RUN = 41  # errors that this worker has seen since anybody's latest success
    OBSERVED_AT = 42  # everybody's successes when that began
    RATE = 43  # new sessions of this second and the one before; see worker/gate.py
    FRESH = 44  # of IDLE, those that have served one request only
    INTERCEPTED = 45  # HTTP requests that a frontend's rules have answered, other than by denying them
    DEATHS = 46  # workers that died; of the process only, main counts these, as the next two
    MOVED = 47  # connections that went over to a successor
    KEPT = 48  # connections that stayed behind when others did


_COLUMNS = 52  # some to spare, so that the next version can add counters without a new format
_STATES = 24
#: As many as the first version had; where a table has fewer than ours, the others are 0.
_FEWEST_COLUMNS = 23

#: Where a row's HealthRecord begins among its state words, and the text of its latest check; the text's words.
_HEALTH, _TEXT, _TEXT_WORDS = 3, 14, 10
#: Columns that say "now": they belong to a living worker and are zeroed when it dies.
GAUGES = frozenset(
    {
        Column.SCUR,
        Column.QCUR,
        Column.PARKED,
        Column.IDLE,
        Column.FRESH,
        Column.OBSERVED_RUN,
        Column.OBSERVED_AT,
        Column.RATE,
    }
)
#: Columns of which the greatest, not the sum, is meaningful across workers and generations.
MAXIMA = frozenset({Column.SMAX, Column.QMAX, Column.LASTSESS})


class ServerState(IntEnum):
    """Administrative state of a server, written by main, read by the workers."""

    READY = 0
    DRAIN = 1
    MAINT = 2


class Health(IntEnum):
    """What checks say of a server, or of a backend by its servers; written by main, read by the workers."""

    UNCHECKED = 0
    UP = 1
    DOWN = 2
    STOPPING = 3  # an operator's word: nobody new but those who belong to it, until a check passes


class HealthRecord(NamedTuple):
    """All that checks know of a server. A word each, in this order, behind the first three. Since when something is so
    is CLOCK_REALTIME, to be shown; when checks were and will be is health.moment().

    `counter` and `result` are explained in health.py.
    """

    health: int = Health.UNCHECKED
    since: int = 0  # seconds; the latest change of `health`
    counter: int = 0  # as HAProxy's: up from `rise` on
    result: int = 0  # of the latest check
    code: int = 0  # HTTP status of the latest check
    duration: int = 0  # milliseconds that it took
    checked_at: int = 0  # milliseconds; when it ended, 0 for never
    next_at: int = 0  # milliseconds; when the next is due
    identity: int = 0  # of what is checked and how, so that others know whether this is about the same
    up_since: int = 0  # seconds; when it came back, 0 if it was never away


class Table:
    """A mapped table. `keys[i]` names row i; `index[key]` finds it. Descriptor and mapping live until close()."""

    def __init__(self, fd: int, mapping: mmap.mmap, keys: Sequence[RowKey]) -> None:
        """`keys`: of the rows that are not spare."""
        self.fd = fd
        self._mapping = mapping
        self._view = memoryview(mapping)
        words = self._words = self._view[: len(mapping) & ~7].cast("Q")
        self.rows = words[_Header.ROWS]  # named or not
        self.workers = words[_Header.WORKERS]
        self.generation = words[_Header.GENERATION]
        self.columns = words[_Header.COLUMNS]
        self._states = words[_Header.STATES]
        self._state_at = _HEADER_WORDS
        self._base_at = self._state_at + self.rows * self._states
        self._slots_at = self._base_at + self.rows * self.columns
        spare, area = words[_Header.SPARE], words[_Header.AREA]
        at = self._names_at = self._slots_at + self.rows * self.columns * self.workers
        self._spare = SpareNames(words[at : at + spare * area], spare, area)
        self._keys = list(keys)
        self._index = {key: row for row, key in enumerate(self._keys)}
        self._first_spare = len(self._keys)
        self._next_at = at if spare else _ALWAYS_0  # the first word of the next name

    @classmethod
    def create(cls, keys: Sequence[RowKey], workers: int, generation: int, spare: int = SPARE_ROWS) -> Table:
        """A new, zeroed, sealed table."""
        names = dump_keys(keys)
        rows = len(keys) + spare
        words = _words(rows, _STATES, _COLUMNS, workers, spare, AREA)
        size = words * 8 + len(names)
        fd = os.memfd_create("hitlessd-table", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.truncate(fd, size)
            mapping = mmap.mmap(fd, size)
            head = memoryview(mapping).cast("B")[: _HEADER_WORDS * 8].cast("Q")
            head[_Header.FORMAT] = _FORMATS[-1]
            head[_Header.ROWS] = rows
            head[_Header.WORKERS] = workers
            head[_Header.COLUMNS] = _COLUMNS
            head[_Header.STATES] = _STATES
            head[_Header.KEYS_BYTES] = len(names)
            head[_Header.GENERATION] = generation
            head[_Header.SPARE] = spare
            head[_Header.AREA] = AREA
            mapping[words * 8 :] = names
            head[_Header.MAGIC] = _MAGIC
            # Nobody who holds the descriptor can make our mapping fault by shrinking the file.
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
        except BaseException:
            os.close(fd)
            raise
        return cls(fd, mapping, keys)

    @classmethod
    def attach(cls, fd: int) -> Table:
        """Map a table that another process made; takes the descriptor over. Raises PeerError if it is not sound."""
        try:
            size = os.fstat(fd).st_size
            seals = fcntl.fcntl(fd, fcntl.F_GET_SEALS)
            if not seals & fcntl.F_SEAL_SHRINK or not _HEADER_WORDS * 8 <= size <= _MAX_BYTES:
                raise PeerError("cannot use the shared table: it is not a sealed one of a sound size")
            mapping = mmap.mmap(fd, size)
            head = memoryview(mapping)[: _HEADER_WORDS * 8].cast("Q")
            if head[_Header.MAGIC] != _MAGIC or head[_Header.FORMAT] not in _FORMATS:
                raise PeerError("cannot use the shared table: unknown format")
            rows, workers, columns, states, names, spare, area = (head[word] for word in _SIZES)
            words = _words(rows, states, columns, workers, spare, area)
            if (
                words * 8 + names != size
                or columns < _FEWEST_COLUMNS
                or not states
                or names > _MAX_KEYS_BYTES
                or spare > min(rows, _MOST_SPARE)
                or (spare and area < 2)
            ):
                raise PeerError("cannot use the shared table: its sizes contradict each other")
            keys = load_keys(mapping[words * 8 :])
            if len(keys) != rows - spare or len(set(keys)) != len(keys):
                raise PeerError("cannot use the shared table: its keys do not match its rows")
        except (OSError, ValueError, RecursionError) as error:
            os.close(fd)
            raise PeerError(f"cannot use the shared table: {error}") from None
        except PeerError:
            os.close(fd)
            raise
        return cls(fd, mapping, keys)

    @property
    def keys(self) -> list[RowKey]:
        """The names of all rows that have one, those included that another process has taken meanwhile; not to be
        changed. It does not grow while somebody goes through it."""
        if self._words[self._next_at]:
            self._look()
        return self._keys

    @property
    def index(self) -> dict[RowKey, int]:
        """Likewise, the rows by name."""
        if self._words[self._next_at]:
            self._look()
        return self._index

    def _look(self) -> None:
        """Learn of spare rows that were taken since."""
        while self._words[self._next_at]:
            try:
                key = self._spare.read(len(self._keys) - self._first_spare)
            except (ValueError, RecursionError):
                key = None
            if key is None or key in self._index:
                # None of ours has written that, so that whatever is behind it is nobody's.
                self._next_at = _ALWAYS_0
                return
            self._learn(key)

    def _learn(self, key: RowKey) -> None:
        self._index = {**self._index, key: len(self._keys)}
        self._keys = [*self._keys, key]
        taken = len(self._keys) - self._first_spare
        self._next_at = self._names_at + taken * self._spare.area if taken < self._spare.count else _ALWAYS_0

    def add_row(self, key: RowKey) -> int:
        """The row of that name; a spare one is taken where there is none. Only main may call this, on a table of its
        own. Raises SystemRefused when no spare one is left, or none has room for the name.
        """
        row = self.index.get(key)
        if row is not None:
            return row
        taken = len(self._keys) - self._first_spare
        if taken >= self._spare.count:
            raise SystemRefused(
                f"cannot count for one more {key.kind}: all {self._spare.count} spare rows of the shared table are"
                " taken; a reload makes room"
            )
        try:
            self._spare.write(taken, key)
        except ValueError as error:
            raise SystemRefused(f"cannot count for one more {key.kind}: {error}") from None
        self._learn(key)
        return self._index[key]

    def slot(self, worker: int) -> memoryview:
        """The words of one worker: row i's column c is `slot[i * table.columns + c]`. Only that worker writes there."""
        size = self.rows * self.columns
        start = self._slots_at + worker * size
        return self._words[start : start + size]

    def value(self, row: int, column: Column) -> int:
        """The sum modulo 2^64 (or the greatest, for MAXIMA) over all workers and what was folded in."""
        if column >= self.columns:
            return 0  # an older version's table
        words, stride = self._words, self.rows * self.columns
        at = row * self.columns + column
        values = [words[self._base_at + at]]
        values += [words[self._slots_at + worker * stride + at] for worker in range(self.workers)]
        return max(values) if column in MAXIMA else sum(values) & MOST

    def row_values(self, row: int) -> list[int]:
        """As value(), of all columns at once: the result is indexed by Column."""
        words, stride, at = self._words, self.rows * self.columns, row * self.columns
        width = min(self.columns, len(Column))
        starts = [self._base_at + at, *(self._slots_at + worker * stride + at for worker in range(self.workers))]
        parts = [words[start : start + width].tolist() for start in starts]
        return _combined(parts) + [0] * (len(Column) - width)

    def column_values(self, column: Column) -> list[int]:
        """As value(), of all rows at once: the result is indexed by row. Ten times as fast as one by one."""
        if column >= self.columns:
            return [0] * len(self.keys)
        size, stride = len(self.keys) * self.columns, self.rows * self.columns
        starts = [self._base_at, *(self._slots_at + worker * stride for worker in range(self.workers))]
        parts = [self._words[start + column : start + size : self.columns].tolist() for start in starts]
        if column in MAXIMA:
            return list(map(max, *parts))
        return [value & MOST for value in map(sum, zip(*parts, strict=True))]

    def state_records(self) -> list[tuple[int, ...]]:
        """Of all rows state(), weight(), since() and what health() says, as it comes; indexed by row."""
        width, end = _HEALTH + len(HealthRecord._fields), self._state_at + len(self.keys) * self._states
        columns = [
            self._words[self._state_at + word : end : self._states].tolist()
            if word < self._states
            else [0] * len(self.keys)
            for word in range(width)
        ]
        return list(zip(*columns, strict=True))

    def decisions(self) -> list[tuple[int, ...]]:
        """Of all rows, spare ones too, the words that usable(), running(), weight() and up_since() are made of: so a
        worker finds those that have changed among thousands."""
        words, first, end, step = self._words, self._state_at, self._base_at, self._states
        return list(zip(*(words[first + word : end : step].tolist() for word in _DECISIVE if word < step), strict=True))

    def usable_rows(self) -> list[bool]:
        """As usable(), of all rows, at the cost of a few."""
        away = (int(Health.DOWN), int(Health.STOPPING))
        return [not state and weight > 0 and health not in away for state, weight, health, _ in self.decisions()]

    def unparked(self, worker: int) -> int:
        """Connections of a worker that are not parked now, or were not when it died."""
        slot, at = self.slot(worker), self.index[PROCESS] * self.columns
        return max(0, slot[at + Column.SCUR] - slot[at + Column.PARKED])

    def clear_gauges(self, worker: int) -> None:
        """Forget what a dead worker said about "now"."""
        slot = self.slot(worker)
        for row in range(len(self.keys)):
            for column in GAUGES:
                if column < self.columns:
                    slot[row * self.columns + column] = 0

    def add(self, key: RowKey, column: Column, number: int) -> None:
        """Count something that main itself has seen, or, with a negative number, take back what anybody has counted.
        Only main may call this."""
        at = self._base_at + self.index[key] * self.columns + column
        self._words[at] = (self._words[at] + number) & MOST

    def clear_maxima(self, worker: int | None = None, columns: Iterable[Column] = (Column.SMAX, Column.QMAX)) -> None:
        """Forget how much there has been at once: in the base (None; only main may do that), or in a worker's slot,
        which is its own as long as it lives."""
        start = self._base_at if worker is None else self._slots_at + worker * self.rows * self.columns
        for row in range(len(self.keys)):
            for column in columns:
                self._words[start + row * self.columns + column] = 0

    def fold(self, ended: Table) -> None:
        """Add the totals of a generation that has ended to our base; once, whoever calls it and however often.

        A predecessor that drains hears of the same death as its successor does, hence the lock.
        """
        fcntl.lockf(ended.fd, fcntl.LOCK_EX)
        try:
            if not ended.folded:
                self._fold(ended)
        finally:
            fcntl.lockf(ended.fd, fcntl.LOCK_UN)

    @property
    def folded(self) -> bool:
        """Whether its totals have gone into another table, so that they must not be counted here again."""
        return bool(self._words[_Header.FOLDED_INTO])

    def _fold(self, ended: Table) -> None:
        words, index = self._words, self.index
        totals: list[tuple[int, int]] = []
        for row, key in enumerate(ended.keys):
            mine = index.get(key)
            if mine is None:
                continue
            for column in Column:
                value = ended.value(row, column)
                if value and column not in GAUGES:
                    at = self._base_at + mine * self.columns + column
                    total = max(words[at], value) if column in MAXIMA else (words[at] + value) & MOST
                    totals.append((at, total))
        # Who is killed in between counts some of it twice: so there is as little in between as can be.
        for at, total in totals:
            words[at] = total
        ended._words[_Header.FOLDED_INTO] = self.generation

    @property
    def epoch(self) -> int:
        """Changes whenever a server's state or weight does; workers compare it before they balance."""
        return self._words[_Header.EPOCH]

    def state(self, row: int) -> ServerState:
        return ServerState(self._state_word(row, 0))

    def weight(self, row: int) -> int:
        return self._state_word(row, 1)

    def since(self, row: int) -> int:
        """CLOCK_REALTIME seconds of the latest change of state."""
        return self._state_word(row, 2)

    def usable(self, row: int) -> bool:
        """Whether balancing may choose the server."""
        return self.standing(row)[3]

    def running(self, row: int) -> bool:
        """Whether the server may get anything at all: neither down nor in maintenance. One that drains, or has no
        weight, still gets those who belong to it."""
        return self.standing(row)[2]

    def up_since(self, row: int) -> int:
        """CLOCK_REALTIME seconds of its latest return from being down or in maintenance, 0 if it was never away."""
        return self._state_word(row, _HEALTH + HealthRecord._fields.index("up_since"))

    def standing(self, row: int) -> tuple[int, int, bool, bool, int]:
        """All that workers decide by, at the cost of one: state, weight, running(), usable(), up_since()."""
        at, words = self._state_at + row * self._states, self._words
        if self._states > _DECISIVE[-1]:
            state, weight, health, up_since = [words[at + word] for word in _DECISIVE]
        else:
            state, weight, health, up_since = [self._state_word(row, word) for word in _DECISIVE]
        running = health != Health.DOWN and state != ServerState.MAINT
        return state, weight, running, running and not state and weight > 0 and health != Health.STOPPING, up_since

    def any_health(self) -> bool:
        """Whether anything is known of any server: by checks, or by an operator's word."""
        identity = _HEALTH + HealthRecord._fields.index("identity")
        first, step = self._state_at + identity, self._states
        return identity < step and any(self._words[first : self._base_at : step].tolist())

    def health(self, row: int) -> HealthRecord:
        # Main asks often, with thousands of checked servers: a table of ours has all the words.
        at = self._state_at + row * self._states + _HEALTH
        if self._states >= _HEALTH + _HEALTH_WORDS:
            return HealthRecord._make(self._words[at : at + _HEALTH_WORDS].tolist())
        return HealthRecord(*(self._state_word(row, _HEALTH + at) for at in range(_HEALTH_WORDS)))

    def check_text(self, row: int) -> str:
        """What the latest check has to say beside its result, 80 bytes at most."""
        words = [self._state_word(row, _TEXT + at) for at in range(_TEXT_WORDS)]
        return struct.pack(f"{_TEXT_WORDS}Q", *words).rstrip(b"\0").decode(errors="ignore")

    def set_check_text(self, row: int, text: str) -> None:
        """Only main may call this, on a table of its own."""
        data = text.encode(errors="replace")[: _TEXT_WORDS * 8].ljust(_TEXT_WORDS * 8, b"\0")
        at = (self._state_at + row * self._states + _TEXT) * 8
        self._view[at : at + len(data)] = data

    def set_state(self, row: int, state: ServerState, weight: int, since: int) -> None:
        """Only main may call this."""
        at = self._state_at + row * self._states
        returns = self._words[at] == ServerState.MAINT and state != ServerState.MAINT
        self._words[at], self._words[at + 1], self._words[at + 2] = state, weight, since
        if returns and self._states > _HEALTH + len(HealthRecord._fields):
            self._words[at + _HEALTH + HealthRecord._fields.index("up_since")] = since
        self._words[_Header.EPOCH] += 1

    def set_health(self, row: int, record: HealthRecord) -> None:
        """Only main may call this, on a table of its own. Workers are made to look only where that matters to them."""
        at = self._state_at + row * self._states + _HEALTH
        before = self._words[at]
        _pack_health(self._view, at * 8, *record)  # native "Q" stores each word whole
        if before != record.health:
            self._words[_Header.EPOCH] += 1

    def _state_word(self, row: int, word: int) -> int:
        return self._words[self._state_at + row * self._states + word] if word < self._states else 0

    def close(self) -> None:
        """Unmap and close. The slots given out must have been released."""
        self._spare.close()
        self._words.release()
        self._view.release()
        self._mapping.close()
        os.close(self.fd)


_HEALTH_WORDS = len(HealthRecord._fields)
_pack_health = struct.Struct(f"{_HEALTH_WORDS}Q").pack_into
#: State, weight, health, and since when a server is up again.
_DECISIVE = (0, 1, _HEALTH, _HEALTH + HealthRecord._fields.index("up_since"))
_SIZES = (
    _Header.ROWS, _Header.WORKERS, _Header.COLUMNS, _Header.STATES, _Header.KEYS_BYTES, _Header.SPARE, _Header.AREA,
)  # fmt: skip


def _words(rows: int, states: int, columns: int, workers: int, spare: int, area: int) -> int:
    """How many a table has before its keys."""
    return _HEADER_WORDS + rows * (states + columns * (1 + workers)) + spare * area


def sum_over(tables: Iterable[Table], key: RowKey, column: Column) -> int:
    """A value over several generations, each of which may lack the row; those folded into others count there."""
    values = []
    for table in tables:
        row = table.index.get(key)
        if row is not None and not table.folded:
            values.append(table.value(row, column))
    if not values:
        return 0
    return max(values) if column in MAXIMA else sum(values) & MOST


def totals(tables: Iterable[Table], key: RowKey) -> list[int]:
    """As sum_over(), of all columns at once: the result is indexed by Column."""
    rows = [table.row_values(table.index[key]) for table in tables if key in table.index and not table.folded]
    return _combined(rows) if rows else [0] * len(Column)


def _combined(rows: Sequence[list[int]]) -> list[int]:
    """Sums, modulo 2^64: whoever clears counters has their base say less than nothing. Of MAXIMA the greatest."""
    if len(rows) == 1:
        return rows[0]
    found = [value & MOST for value in map(sum, zip(*rows, strict=True))]
    for column in MAXIMA:
        found[column] = max(row[column] for row in rows)
    return found
