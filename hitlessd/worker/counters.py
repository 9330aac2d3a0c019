"""A worker's counters: counted in plain attributes, written to the shared table once a turn of the loop.

An attribute costs a third of a store in the table. And a connection counts only with its frontend and its server; the
rows of the backend and of the process follow from these once a turn. What other workers decide by (a server's SCUR, a
backend's QCUR) is written at once by those who change it.
"""

from __future__ import annotations

import struct
from collections.abc import Collection

from hitlessd.table import Column, RowKey, Table

__all__ = ["CONNECTS", "OTHER", "REQUESTS", "REUSES", "Account", "Ledger", "Row", "Tally"]

_OF_HTTP = (Column.REQ_TOT, Column.HRSP_OTHER, Column.CONNECT, Column.REUSE)
_REQ_TOT = int(Column.REQ_TOT)
#: Places in Tally.codes. That of a response is its class, 1 to 5, or OTHER.
REQUESTS, OTHER, CONNECTS, REUSES = (int(c) - _REQ_TOT for c in _OF_HTTP)
_pack_into = struct.Struct("20Q").pack_into


class Row:
    """One row of the table as this worker counts it; lower-case names of Column."""

    __slots__ = (
        "bin",
        "bout",
        "changed",
        "cli_abrt",
        "dreq",
        "dresp",
        "econ",
        "ereq",
        "eresp",
        "lastsess",
        "lbtot",
        "ledger",
        "number",
        "qcur",
        "qmax",
        "qtimeout",
        "scur",
        "slot",
        "smax",
        "spliced",
        "srv_abrt",
        "start",
        "stot",
        "wredis",
        "wretr",
    )

    def __init__(self, ledger: Ledger, slot: memoryview, number: int, start: int) -> None:
        self.slot = slot
        self.ledger = ledger
        self.number = number
        self.start = start
        self.changed = False
        # A worker that takes a dead one's place counts on; "now" begins at nothing.
        self.scur = self.qcur = 0
        slot[start + Column.SCUR] = slot[start + Column.QCUR] = 0
        self.smax = slot[start + Column.SMAX]
        self.qmax = slot[start + Column.QMAX]
        self.stot = slot[start + Column.STOT]
        self.bin = slot[start + Column.BIN]
        self.bout = slot[start + Column.BOUT]
        self.dreq = slot[start + Column.DREQ]
        self.dresp = slot[start + Column.DRESP]
        self.ereq = slot[start + Column.EREQ]
        self.eresp = slot[start + Column.ERESP]
        self.econ = slot[start + Column.ECON]
        self.wretr = slot[start + Column.WRETR]
        self.wredis = slot[start + Column.WREDIS]
        self.cli_abrt = slot[start + Column.CLI_ABRT]
        self.srv_abrt = slot[start + Column.SRV_ABRT]
        self.lbtot = slot[start + Column.LBTOT]
        self.lastsess = slot[start + Column.LASTSESS]
        self.spliced = slot[start + Column.SPLICED]
        self.qtimeout = slot[start + Column.QTIMEOUT]

    def change(self) -> None:
        """Call before or after touching anything: it is written at the end of the turn."""
        if not self.changed:
            self.changed = True
            self.ledger.changed.append(self)

    def write(self) -> None:
        """Bring the table up to date."""
        self.changed = False
        # One call; native "Q" stores each word whole.
        _pack_into(
            self.slot,
            self.start * 8,
            self.scur,
            self.smax,
            self.qcur,
            self.qmax,
            self.stot,
            self.bin,
            self.bout,
            self.dreq,
            self.dresp,
            self.ereq,
            self.econ,
            self.eresp,
            self.wretr,
            self.wredis,
            self.cli_abrt,
            self.srv_abrt,
            self.lbtot,
            self.lastsess,
            self.spliced,
            self.qtimeout,
        )


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
        """It will be collected at the end of the turn."""
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
            row.stot = slot[start + 4] = row.stot + opened  # STOT
            if row.lastsess != wall:
                row.lastsess = slot[start + 17] = wall  # LASTSESS
            if peak > row.smax:
                row.smax = slot[start + 1] = peak  # SMAX
        self.peak = sessions
        if came or went:
            self.bin = self.bout = 0
            row.bin = slot[start + 5] = row.bin + came  # BIN
            row.bout = slot[start + 6] = row.bout + went  # BOUT
            if spliced:
                self.spliced = 0
                row.spliced = slot[start + 18] = row.spliced + spliced  # SPLICED
        codes = self.codes
        if codes is not None:
            at = start + _REQ_TOT
            for place, number in enumerate(codes):
                if number:
                    slot[at + place] += number
                    codes[place] = 0


class Account:
    """What HTTP exchanges of one frontend with one server have added to three tallies since it was last settled: once
    a turn instead of with each. Whoever touches one sees to it that it is in the ledger's `accounts`, once."""

    __slots__ = ("bin", "bout", "classes", "dirty", "ledger", "opened", "reused", "tallies")

    def __init__(self, frontend: Tally, backend: Tally, server: Tally) -> None:
        self.ledger = server.ledger
        self.tallies = (frontend, backend, server)
        self.opened = 0  # exchanges begun
        self.bin = self.bout = 0
        self.classes = [0] * 6  # responses, by the first digit of their status
        self.reused = 0  # of those that were answered, how many came on a connection that was there
        self.dirty = False

    def settle(self) -> None:
        """Enter it in the tallies, which are touched anyway: their numbers of sessions may have changed."""
        self.dirty = False
        _, backend, server = self.tallies
        backend.opened += self.opened
        server.opened += self.opened
        self.opened = 0
        answered = sum(self.classes)
        for tally in self.tallies:
            if not tally.dirty:
                tally.dirty = True
                tally.ledger.dirty.append(tally)
            if answered:
                tally.bin += self.bin
                tally.bout += self.bout
                codes = tally.codes
                assert codes is not None
                codes[REQUESTS] += answered
                for place, number in enumerate(self.classes):
                    codes[place] += number
        if answered:
            assert server.codes is not None
            server.codes[REUSES] += self.reused
            self.bin = self.bout = self.reused = 0
            self.classes = [0] * 6


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
            for column in columns:
                setattr(row, column.name.lower(), 0)
                row.slot[row.start + column] = 0

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
