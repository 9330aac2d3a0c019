"""A worker's counters: counted in plain attributes, written to the shared table when the worker has nothing else to do,
and at least every few milliseconds (see Worker.settle()).

An attribute costs a third of a store in the table. And a connection counts only with its frontend and its server; the
rows of the backend and of the process follow from these when they are collected. What other workers decide by (a
server's SCUR, a backend's QCUR) is written at once by those who change it.

With thousands of servers each event is about another one, of which no cache knows anything. So what is touched for it
is little: sums grow in the table itself, and no second copy of them is kept, which would be one more object a column.
"""

from __future__ import annotations

import struct
from collections.abc import Collection

from hitlessd.table import Column, RowKey, Table

__all__ = ["CONNECTS", "NO_CODES", "OTHER", "REQUESTS", "REUSES", "Account", "Ledger", "Row", "Tally"]

_OF_HTTP = (Column.REQ_TOT, Column.HRSP_OTHER, Column.CONNECT, Column.REUSE)
_REQ_TOT = int(Column.REQ_TOT)
#: Places in Tally.codes. That of a response is its class, 1 to 5, or OTHER.
REQUESTS, OTHER, CONNECTS, REUSES = (int(c) - _REQ_TOT for c in _OF_HTTP)
#: What Tally.codes are when there is nothing to collect.
NO_CODES = [0] * 10
_NO_CLASSES = [0] * 6
# Native "Q" stores each word whole.
_unpack = struct.Struct("20Q").unpack_from
_SCUR, _QCUR = int(Column.SCUR), int(Column.QCUR)
_pack_queue, _pack_errors = struct.Struct("2Q").pack_into, struct.Struct("9Q").pack_into


class Row:
    """One row of the table as this worker counts it: lower-case names of Column for what seldom changes or is compared.
    The sums that always grow are in the table alone; those who collect add to them there."""

    __slots__ = (
        "changed",
        "cli_abrt",
        "dreq",
        "dresp",
        "econ",
        "ereq",
        "eresp",
        "ledger",
        "number",
        "qcur",
        "qmax",
        "qtimeout",
        "scur",
        "slot",
        "smax",
        "srv_abrt",
        "start",
        "wredis",
        "wretr",
    )

    def __init__(self, ledger: Ledger, slot: memoryview, number: int, start: int) -> None:
        self.slot = slot
        self.ledger = ledger
        self.number = number
        self.start = start
        self.changed = False
        # A worker that takes a dead one's place counts on; "now" begins at nothing. In one go: there may be thousands.
        (
            _, self.smax, _, self.qmax, _, _, _, self.dreq, self.dresp, self.ereq, self.econ, self.eresp, self.wretr,
            self.wredis, self.cli_abrt, self.srv_abrt, _, _, _, self.qtimeout,
        ) = _unpack(slot, start * 8)  # fmt: skip
        self.scur = self.qcur = 0
        slot[start + _SCUR] = slot[start + _QCUR] = 0

    def change(self) -> None:
        """Call before or after touching anything: it is written with the others."""
        if not self.changed:
            self.changed = True
            self.ledger.changed.append(self)

    def write(self) -> None:
        """Bring the table up to date."""
        self.changed = False
        slot, start = self.slot, self.start
        _pack_queue(slot, (start + Column.QCUR) * 8, self.qcur, self.qmax)
        _pack_errors(
            slot,
            (start + Column.DREQ) * 8,
            self.dreq,
            self.dresp,
            self.ereq,
            self.econ,
            self.eresp,
            self.wretr,
            self.wredis,
            self.cli_abrt,
            self.srv_abrt,
        )
        slot[start + Column.QTIMEOUT] = self.qtimeout

    def clear_maxima(self, columns: Collection[Column]) -> None:
        """Forget these of MAXIMA."""
        for column in columns:
            self.slot[self.start + column] = 0
        if Column.SMAX in columns:
            self.smax = 0
        if Column.QMAX in columns:
            self.qmax = 0


class Tally:
    """What the connections of one frontend, or one server, have changed since it was last collected.

    Whoever touches one sees to it that it is in the ledger's `dirty`, once.
    """

    __slots__ = (
        "bin",
        "bout",
        "codes",
        "counted",
        "dirty",
        "ledger",
        "opened",
        "parents",
        "peak",
        "row",
        "sessions",
        "spliced",
    )

    def __init__(self, ledger: Ledger, row: Row, parents: list[Tally]) -> None:
        self.ledger = ledger
        self.row = row
        self.parents = parents  # whose rows count the same sessions and bytes
        self.sessions = 0  # now
        self.counted = 0  # of these, how many are in the row, which others may share
        self.peak = 0  # most of them since the last collection
        self.opened = self.bin = self.bout = self.spliced = 0
        self.dirty = False
        #: Of HTTP: by how much the columns from REQ_TOT on have grown, see REQUESTS and the others.
        self.codes: list[int] | None = None

    def touch(self) -> None:
        """It will be collected."""
        if not self.dirty:
            self.dirty = True
            self.ledger.dirty.append(self)

    def collect(self, wall: int) -> None:
        """Bring the row up to date, and let the parents know."""
        # Column by column, and only what has changed: a lightly loaded worker does this for every event.
        row, sessions, opened, came, went = self.row, self.sessions, self.opened, self.bin, self.bout
        slot, start, peak, spliced = row.slot, row.start, self.peak, self.spliced
        self.dirty = False
        change = sessions - self.counted
        for parent in self.parents:
            parent.sessions += change
            if opened:
                parent.opened += opened
                if parent.sessions + peak - sessions > parent.peak:
                    parent.peak = parent.sessions + peak - sessions
            parent.bin += came
            parent.bout += went
            parent.spliced += spliced
            if not parent.dirty:
                parent.dirty = True
                self.ledger.dirty.append(parent)
        if change:
            self.counted = sessions
            row.scur = slot[start] = row.scur + change  # Column.SCUR
        if opened:
            self.opened = 0
            slot[start + 4] += opened  # STOT
            slot[start + 17] = wall  # LASTSESS
            if peak > row.smax:
                row.smax = slot[start + 1] = peak  # SMAX
        self.peak = sessions
        if came or went:
            self.bin = self.bout = 0
            slot[start + 5] += came  # BIN
            slot[start + 6] += went  # BOUT
            if spliced:
                self.spliced = 0
                slot[start + 18] += spliced  # SPLICED
        if self.codes is not None and self.codes != NO_CODES:
            self.collect_codes()

    def collect_codes(self) -> None:
        """Bring the columns of HTTP up to date."""
        row, codes = self.row, self.codes
        assert codes is not None
        slot, at = row.slot, row.start + _REQ_TOT
        for place, number in enumerate(codes):
            if number:
                slot[at + place] += number
                codes[place] = 0


class Account:
    """What HTTP exchanges of one frontend with one server have added to three tallies since it was last settled, once
    instead of with each. Whoever touches one sees to it that it is in the ledger's `accounts`, once."""

    __slots__ = ("backend", "bin", "bout", "classes", "dirty", "frontend", "ledger", "opened", "reused", "server")

    def __init__(self, frontend: Tally, backend: Tally, server: Tally) -> None:
        self.ledger = server.ledger
        self.frontend, self.backend, self.server = frontend, backend, server
        self.opened = 0  # exchanges begun
        self.bin = self.bout = 0
        self.classes = [0] * 6  # responses, by the first digit of their status
        self.reused = 0  # of those that were answered, how many came on a connection that was there
        self.dirty = False

    def settle(self) -> None:
        """Enter it in the tallies, which are touched anyway: their numbers of sessions may have changed."""
        self.dirty = False
        frontend, backend, server, dirty = self.frontend, self.backend, self.server, self.ledger.dirty
        opened, classes = self.opened, self.classes
        if opened:
            self.opened = 0
            backend.opened += opened
            server.opened += opened
        if not server.dirty:
            server.dirty = True
            dirty.append(server)
        if not backend.dirty:
            backend.dirty = True
            dirty.append(backend)
        if not frontend.dirty:
            frontend.dirty = True
            dirty.append(frontend)
        if classes == _NO_CLASSES:
            return
        came, went, answered = self.bin, self.bout, sum(classes)
        self.bin = self.bout = 0
        frontend.bin += came
        frontend.bout += went
        backend.bin += came
        backend.bout += went
        server.bin += came
        server.bout += went
        above, below = frontend.codes, backend.codes
        assert above is not None and below is not None
        above[REQUESTS] += answered
        below[REQUESTS] += answered
        # A server has few of them at a time: to the table without a detour.
        row = server.row
        slot, at = row.slot, row.start + _REQ_TOT
        slot[at] += answered
        if self.reused:
            slot[at + REUSES] += self.reused
            self.reused = 0
        for place, number in enumerate(classes):
            if number:
                classes[place] = 0
                above[place] += number
                below[place] += number
                slot[at + place] += number


class Ledger:
    """All rows of this worker's slot."""

    def __init__(self, table: Table, worker: int) -> None:
        self.slot = table.slot(worker)
        self._worker = worker
        self.changed: list[Row] = []
        self.dirty: list[Tally] = []
        self.accounts: list[Account] = []
        self._table = table
        self._rows: dict[RowKey, Row] = {}

    def row(self, key: RowKey) -> Row:
        """The row of that key. Where the table has none, which happens to proxies that are no longer configured, one
        that nobody else sees."""
        row = self._rows.get(key)
        if row is None or (row.number < 0 and key in self._table.index):  # it may have got one since
            number = self._table.index.get(key, -1)
            if number < 0:
                unseen = memoryview(bytearray(self._table.columns * 8)).cast("Q")
                row = Row(self, unseen, number, 0)
            else:
                row = Row(self, self.slot, number, number * self._table.columns)
            self._rows[key] = row
        return row

    def clear_maxima(self, columns: Collection[Column]) -> None:
        """Forget MAXIMA; to be called when all is written."""
        self._table.clear_maxima(self._worker, columns)
        for row in self._rows.values():
            row.clear_maxima(columns)

    def write(self, now: float) -> None:
        """Write what has changed since the last time; `now` is CLOCK_REALTIME in seconds."""
        if self.accounts:
            for account in self.accounts:
                account.settle()
            self.accounts.clear()
        dirty = self.dirty
        if dirty:
            wall = int(now)
            for tally in dirty:  # grows by the parents on the way
                tally.collect(wall)
            dirty.clear()
        changed = self.changed
        if changed:
            for row in changed:
                row.write()
            changed.clear()
