"""The shared table: counters that workers write and main adds up, server state that main writes and workers read.

One table a generation, in a sealed memfd that main creates, the workers inherit, the successor gets in the handover and
systemd keeps in its descriptor store. Everything is an unsigned 64-bit word in host byte order, so that a worker counts
with one store and no lock: a word has one writer, ever.

    header | state (main writes) | base (main writes) | slot of worker 0 | slot of worker 1 | ... | keys (JSON)

`base` holds what earlier generations counted, folded in when their last process has ended; thus totals never go back.
"""

from __future__ import annotations

import fcntl
import json
import mmap
import os
import struct
from collections.abc import Iterable, Sequence
from enum import IntEnum
from typing import NamedTuple

from hitlessd.errors import PeerError
from hitlessd.model import Config

__all__ = [
    "GAUGES",
    "MAXIMA",
    "PROCESS",
    "Column",
    "Health",
    "HealthRecord",
    "RowKey",
    "ServerState",
    "Table",
    "row_keys",
    "sum_over",
]

_MAGIC = int.from_bytes(b"hitlessT", "little")
_FORMAT = 1
_HEADER_WORDS = 16
_MAX_BYTES = 1 << 30  # a peer's table may not make us map more than this
_MAX_KEYS_BYTES = 64 << 20  # nor parse more than this
_MOST = (1 << 64) - 1


class _Header(IntEnum):
    MAGIC, FORMAT, ROWS, WORKERS, COLUMNS, STATES, KEYS_BYTES, GENERATION, EPOCH, FOLDED_INTO = range(10)


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


_COLUMNS = 48  # some to spare, so that the next version can add counters without a new format
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


class RowKey(NamedTuple):
    """What a row is about; kind is process, frontend, backend or server."""

    kind: str
    proxy: str = ""
    server: str = ""


PROCESS = RowKey("process")


def row_keys(config: Config) -> list[RowKey]:
    """The rows that a configuration needs, in its own order; the process row is the first."""
    keys = [PROCESS]
    keys += [RowKey("frontend", frontend.name) for frontend in config.frontends]
    for backend in config.backends:
        keys.append(RowKey("backend", backend.name))
        keys += [RowKey("server", backend.name, server.name) for server in backend.servers]
    return keys


class Table:
    """A mapped table. `keys[i]` names row i; `index[key]` finds it. Descriptor and mapping live until close()."""

    def __init__(self, fd: int, mapping: mmap.mmap, keys: Sequence[RowKey]) -> None:
        self.fd = fd
        self.keys = list(keys)
        self.index = {key: row for row, key in enumerate(self.keys)}
        self._mapping = mapping
        self._view = memoryview(mapping)
        words = self._words = self._view[: len(mapping) & ~7].cast("Q")
        self.workers = words[_Header.WORKERS]
        self.generation = words[_Header.GENERATION]
        self.columns = words[_Header.COLUMNS]
        self._states = words[_Header.STATES]
        self._state_at = _HEADER_WORDS
        self._base_at = self._state_at + len(keys) * self._states
        self._slots_at = self._base_at + len(keys) * self.columns

    @classmethod
    def create(cls, keys: Sequence[RowKey], workers: int, generation: int) -> Table:
        """A new, zeroed, sealed table."""
        names = json.dumps(keys).encode()
        words = _HEADER_WORDS + len(keys) * (_STATES + _COLUMNS * (1 + workers))
        size = words * 8 + len(names)
        fd = os.memfd_create("hitlessd-table", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.truncate(fd, size)
            mapping = mmap.mmap(fd, size)
            head = memoryview(mapping).cast("B")[: _HEADER_WORDS * 8].cast("Q")
            head[_Header.FORMAT] = _FORMAT
            head[_Header.ROWS] = len(keys)
            head[_Header.WORKERS] = workers
            head[_Header.COLUMNS] = _COLUMNS
            head[_Header.STATES] = _STATES
            head[_Header.KEYS_BYTES] = len(names)
            head[_Header.GENERATION] = generation
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
            rows, workers, columns, states, names = (
                head[i] for i in (_Header.ROWS, _Header.WORKERS, _Header.COLUMNS, _Header.STATES, _Header.KEYS_BYTES)
            )
            if head[_Header.MAGIC] != _MAGIC or head[_Header.FORMAT] != _FORMAT:
                raise PeerError("cannot use the shared table: unknown format")
            words = _HEADER_WORDS + rows * (states + columns * (1 + workers))
            if words * 8 + names != size or columns < _FEWEST_COLUMNS or not states or names > _MAX_KEYS_BYTES:
                raise PeerError("cannot use the shared table: its sizes contradict each other")
            keys = _read_keys(mapping[words * 8 :])
            if len(keys) != rows or len(set(keys)) != rows:
                raise PeerError("cannot use the shared table: its keys do not match its rows")
        except (OSError, ValueError, RecursionError) as error:
            os.close(fd)
            raise PeerError(f"cannot use the shared table: {error}") from None
        except PeerError:
            os.close(fd)
            raise
        return cls(fd, mapping, keys)

    def slot(self, worker: int) -> memoryview:
        """The words of one worker: row i's column c is `slot[i * table.columns + c]`. Only that worker writes there."""
        size = len(self.keys) * self.columns
        start = self._slots_at + worker * size
        return self._words[start : start + size]

    def value(self, row: int, column: Column) -> int:
        """The sum (or the greatest, for MAXIMA) over all workers and what was folded in."""
        if column >= self.columns:
            return 0  # an older version's table
        words, stride = self._words, len(self.keys) * self.columns
        at = row * self.columns + column
        values = [words[self._base_at + at]]
        values += [words[self._slots_at + worker * stride + at] for worker in range(self.workers)]
        return max(values) if column in MAXIMA else sum(values)

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
        """Count something that main itself has seen. Only main may call this."""
        self._words[self._base_at + self.index[key] * self.columns + column] += number

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
        words = self._words
        totals: list[tuple[int, int]] = []
        for row, key in enumerate(ended.keys):
            mine = self.index.get(key)
            if mine is None:
                continue
            for column in Column:
                value = ended.value(row, column)
                if value and column not in GAUGES:
                    at = self._base_at + mine * self.columns + column
                    total = max(words[at], value) if column in MAXIMA else words[at] + value
                    totals.append((at, min(total, _MOST)))
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
        return self.running(row) and not self._state_word(row, 0) and self._state_word(row, 1) > 0

    def running(self, row: int) -> bool:
        """Whether the server may get anything at all: neither down nor in maintenance. One that drains, or has no
        weight, still gets those who belong to it."""
        return self._state_word(row, _HEALTH) != Health.DOWN and self._state_word(row, 0) != ServerState.MAINT

    def up_since(self, row: int) -> int:
        """CLOCK_REALTIME seconds of its latest return from being down or in maintenance, 0 if it was never away."""
        return self._state_word(row, _HEALTH + HealthRecord._fields.index("up_since"))

    def health(self, row: int) -> HealthRecord:
        return HealthRecord(*(self._state_word(row, _HEALTH + at) for at in range(len(HealthRecord._fields))))

    def check_text(self, row: int) -> str:
        """What the latest check has to say beside its result, 80 bytes at most."""
        words = [self._state_word(row, _TEXT + at) for at in range(_TEXT_WORDS)]
        return struct.pack(f"{_TEXT_WORDS}Q", *words).rstrip(b"\0").decode(errors="ignore")

    def set_check_text(self, row: int, text: str) -> None:
        """Only main may call this, on a table of its own."""
        data = text.encode(errors="replace")[: _TEXT_WORDS * 8].ljust(_TEXT_WORDS * 8, b"\0")
        at = self._state_at + row * self._states + _TEXT
        for offset, word in enumerate(struct.unpack(f"{_TEXT_WORDS}Q", data)):
            self._words[at + offset] = word

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
        for offset, word in enumerate(record):
            self._words[at + offset] = word
        if before != record.health:
            self._words[_Header.EPOCH] += 1

    def _state_word(self, row: int, word: int) -> int:
        return self._words[self._state_at + row * self._states + word] if word < self._states else 0

    def close(self) -> None:
        """Unmap and close. The slots given out must have been released."""
        self._words.release()
        self._view.release()
        self._mapping.close()
        os.close(self.fd)


def _read_keys(text: bytes) -> list[RowKey]:
    """Raises ValueError, RecursionError for what create() has not written."""
    keys = json.loads(text)
    if not isinstance(keys, list) or not all(
        isinstance(key, list) and len(key) == 3 and all(isinstance(word, str) for word in key) for key in keys
    ):
        raise ValueError("its keys make no sense")
    return [RowKey(*key) for key in keys]


def sum_over(tables: Iterable[Table], key: RowKey, column: Column) -> int:
    """A value over several generations, each of which may lack the row; those folded into others count there."""
    values = [table.value(table.index[key], column) for table in tables if key in table.index and not table.folded]
    if not values:
        return 0
    return max(values) if column in MAXIMA else sum(values)
