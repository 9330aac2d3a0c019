"""A worker's counters: counted in plain attributes, written to the shared table once a turn of the loop.

An attribute costs a third of a store in the table. What other workers decide by (a server's SCUR, a backend's QCUR) is
written at once by those who change it.
"""

from __future__ import annotations

import struct

from hitlessd.table import Column, RowKey, Table

__all__ = ["Ledger", "Row"]

_pack_into = struct.Struct("20Q").pack_into


class Row:
    """One row of the table as this worker counts it; lower-case names of Column."""

    __slots__ = (
        "bin",
        "bout",
        "changed",
        "cli_abrt",
        "econ",
        "lastsess",
        "lbtot",
        "ledger",
        "number",
        "qcur",
        "qmax",
        "qtimeout",
        "scur",
        "smax",
        "spliced",
        "srv_abrt",
        "start",
        "stot",
        "wredis",
        "wretr",
    )

    def __init__(self, ledger: Ledger, number: int, start: int) -> None:
        slot = ledger.slot
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

    def session_begins(self, wall: int) -> None:
        """One more session; `wall` is CLOCK_REALTIME in seconds."""
        scur = self.scur = self.scur + 1
        if scur > self.smax:
            self.smax = scur
        self.stot += 1
        self.lastsess = wall
        if not self.changed:
            self.changed = True
            self.ledger.changed.append(self)

    def session_counted(self, wall: int) -> None:
        """As session_begins(), for a server: SCUR has been counted when its slot was claimed."""
        if self.scur > self.smax:
            self.smax = self.scur
        self.stot += 1
        self.lbtot += 1
        self.lastsess = wall
        if not self.changed:
            self.changed = True
            self.ledger.changed.append(self)

    def session_ends(self) -> None:
        self.scur -= 1
        if not self.changed:
            self.changed = True
            self.ledger.changed.append(self)

    def transferred(self, from_client: int, to_client: int, spliced: int) -> None:
        self.bin += from_client
        self.bout += to_client
        self.spliced += spliced
        if not self.changed:
            self.changed = True
            self.ledger.changed.append(self)

    def write(self) -> None:
        """Bring the table up to date."""
        self.changed = False
        # One call; native "Q" stores each word whole. The four that stay 0 are about HTTP.
        _pack_into(
            self.ledger.slot,
            self.start * 8,
            self.scur,
            self.smax,
            self.qcur,
            self.qmax,
            self.stot,
            self.bin,
            self.bout,
            0,
            0,
            0,
            self.econ,
            0,
            self.wretr,
            self.wredis,
            self.cli_abrt,
            self.srv_abrt,
            self.lbtot,
            self.lastsess,
            self.spliced,
            self.qtimeout,
        )


class Ledger:
    """All rows of this worker's slot."""

    def __init__(self, table: Table, worker: int) -> None:
        self.slot = table.slot(worker)
        self.changed: list[Row] = []
        self._table = table

    def row(self, key: RowKey) -> Row:
        """The row of that key. Raises KeyError."""
        number = self._table.index[key]
        return Row(self, number, number * self._table.columns)

    def write(self) -> None:
        """Write what has changed since the last time."""
        changed = self.changed
        while changed:
            changed.pop().write()
