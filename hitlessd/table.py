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
from collections.abc import Iterable, Sequence
from enum import IntEnum
from typing import NamedTuple

from hitlessd.errors import PeerError
from hitlessd.model import Config

__all__ = ["GAUGES", "MAXIMA", "PROCESS", "Column", "RowKey", "ServerState", "Table", "row_keys", "sum_over"]

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


_COLUMNS = 24  # some to spare, so that the next version can add counters without a new format
_STATES = 4

#: Columns that say "now": they belong to a living worker and are zeroed when it dies.
GAUGES = frozenset({Column.SCUR, Column.QCUR, Column.PARKED})
#: Columns of which the greatest, not the sum, is meaningful across workers and generations.
MAXIMA = frozenset({Column.SMAX, Column.QMAX, Column.LASTSESS})


class ServerState(IntEnum):
    """Administrative state of a server, written by main, read by the workers."""

    READY = 0
    DRAIN = 1
    MAINT = 2


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
        self._state_at = _HEADER_WORDS
        self._base_at = self._state_at + len(keys) * words[_Header.STATES]
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
            if words * 8 + names != size or columns < len(Column) or not states or names > _MAX_KEYS_BYTES:
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
        for row, key in enumerate(ended.keys):
            mine = self.index.get(key)
            if mine is None:
                continue
            for column in Column:
                if column in GAUGES:
                    continue
                at = self._base_at + mine * self.columns + column
                value = ended.value(row, column)
                total = max(self._words[at], value) if column in MAXIMA else self._words[at] + value
                self._words[at] = min(total, _MOST)
        ended._words[_Header.FOLDED_INTO] = self.generation

    @property
    def epoch(self) -> int:
        """Changes whenever a server's state or weight does; workers compare it before they balance."""
        return self._words[_Header.EPOCH]

    def state(self, row: int) -> ServerState:
        return ServerState(self._words[self._state_at + row * _STATES])

    def weight(self, row: int) -> int:
        return self._words[self._state_at + row * _STATES + 1]

    def since(self, row: int) -> int:
        """CLOCK_REALTIME seconds of the latest change of state."""
        return self._words[self._state_at + row * _STATES + 2]

    def set_state(self, row: int, state: ServerState, weight: int, since: int) -> None:
        """Only main may call this."""
        at = self._state_at + row * _STATES
        self._words[at], self._words[at + 1], self._words[at + 2] = state, weight, since
        self._words[_Header.EPOCH] += 1

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
