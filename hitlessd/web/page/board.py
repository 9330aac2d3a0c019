"""What the page shows of proxies and servers, as numbers and words: a row each, looked up once a second. No I/O."""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from hitlessd import health
from hitlessd.changes import Change
from hitlessd.dataclass import dataclass, replace
from hitlessd.model import Backend, Config, Frontend, Server
from hitlessd.runtime.control import Control
from hitlessd.runtime.serverstate import ServerNow, configured_now
from hitlessd.table import MAXIMA, PROCESS, Column, HealthRecord, RowKey, ServerState, Table

__all__ = ["FIELDS", "Board", "Row", "Values", "scoped"]


class Values(NamedTuple):
    """Of one row; the script knows them by their places here."""

    state: str = ""  # as `show stat` has it
    since: int = 0  # CLOCK_REALTIME seconds
    scur: int = 0
    smax: int = 0
    rate: int = 0  # a second: requests in HTTP mode, else sessions
    qcur: int = 0
    stot: int = 0
    h2: int = 0  # responses by class
    h3: int = 0
    h4: int = 0
    h5: int = 0
    bin: int = 0
    bout: int = 0
    err: int = 0
    weight: int = 0
    admin: str = ""  # of a server ready, drain or maint; of a frontend on or off
    check: str = ""  # the latest check's result
    why: str = ""  # what is wrong, in words
    usable: int = 0  # servers of a backend that may get new sessions; 1 for one of them


class _Standing(NamedTuple):
    """What does not change with each request: see Values."""

    state: str = ""
    since: int = 0
    weight: int = 0
    admin: str = ""
    check: str = ""
    why: str = ""
    usable: int = 0


FIELDS = Values._fields
#: What is counted of a row, in this order; _values() knows it. The last ones are errors; no row has all of them.
_COUNTED = (
    *(Column.SCUR, Column.SMAX, Column.QCUR, Column.STOT),
    *(Column.HRSP_2XX, Column.HRSP_3XX, Column.HRSP_4XX, Column.HRSP_5XX),
    *(Column.BIN, Column.BOUT, Column.EREQ, Column.ECON, Column.ERESP, Column.DREQ, Column.DCON, Column.DSES),
)
_QCUR = _COUNTED.index(Column.QCUR)
#: Where a HealthRecord begins in a row's state.
_HEALTH_AT = 3
_UNKNOWN = (0,) * (_HEALTH_AT + len(HealthRecord._fields))
_ADMIN = {ServerState.READY: "ready", ServerState.DRAIN: "drain", ServerState.MAINT: "maint"}


@dataclass(frozen=True, slots=True)
class Row:
    """What does not change of a row while the configuration stays the same."""

    index: int
    key: RowKey
    item: Frontend | Backend | Server | None = None  # None: the process
    backend: Backend | None = None  # of a server
    limit: int = 0  # of sessions

    @property
    def http(self) -> bool:
        owner = self.backend or self.item
        return isinstance(owner, Frontend | Backend) and owner.mode == "http"


def scoped(config: Config, names: frozenset[str] | None) -> Config:
    """The configuration with these proxies alone; None: all."""
    if names is None:
        return config
    return replace(
        config,
        frontends=tuple(each for each in config.frontends if each.name in names),
        backends=tuple(each for each in config.backends if each.name in names),
    )


class Board:
    """The rows of the proxies that a page may show, and what they are worth; `names` as for scoped()."""

    def __init__(self, control: Control, names: frozenset[str] | None = None) -> None:
        self._control = control
        self.names = names
        self.rows: list[Row] = []
        self.values: list[Values] = []
        self.layout = ""  # the same as long as tables need no other rows and marks, in every generation
        self._source: Config | None = None
        self._changes: tuple[Change, ...] = ()
        # What values were made of, and the costlier half of them.
        self._about: list[tuple[tuple[int, ...], int] | None] = []
        self._counted: list[tuple[tuple[int, ...], int] | None] = []
        self._standing: list[_Standing] = []

    def refresh(self) -> None:
        """Look again."""
        control = self._control
        changes = tuple(control.changes.items.values())
        if control.config is not self._source or changes != self._changes:
            self._source, self._changes = control.config, changes
            self.rows = list(_rows(scoped(control.config, self.names), control.maxconn))
            outline: list[object] = [[*row.key, row.http, row.limit] for row in self.rows]
            text = json.dumps([outline, control.changes.export()])
            self.layout = f"{zlib.crc32(text.encode()):08x}"
            self.values = [Values()] * len(self.rows)
            self._about = [None] * len(self.rows)
            self._counted = [None] * len(self.rows)
            self._standing = [_Standing()] * len(self.rows)
        tables = [table for table in control.tables() if not table.folded]
        places = [[table.index.get(row.key, -1) for row in self.rows] for table in tables]
        counts = list(zip(*(_column(tables, places, column) for column in _COUNTED), strict=True))
        records = [_UNKNOWN] * len(self.rows)
        if tables:
            stored = tables[0].state_records()
            records = [stored[place] if place >= 0 else _UNKNOWN for place in places[0]]
        usable = servers = queued = 0
        for row, counted, record in zip(self.rows, counts, records, strict=True):
            rate, more = self._rate(row), 0
            match row.item:
                case Backend():
                    more, usable, servers = usable if servers else -1, 0, 0
                    queued += counted[_QCUR]
                case Frontend() as frontend:
                    more = 2 if control.stopping or frontend.shut else int(frontend.disabled)
            # Most rows are as they were, and cost nothing more.
            index, about = row.index, (record, more)
            if about != self._about[index]:
                self._about[index] = about
                self._standing[index] = self._stand(row, record, more, tables)
                self._counted[index] = None
            if (counted, rate) != self._counted[index]:
                self._counted[index] = (counted, rate)
                self.values[index] = _values(self._standing[index], counted, rate)
            if row.backend:
                servers, usable = servers + 1, usable + self.values[row.index].usable
        self.values[0] = self.values[0]._replace(qcur=queued)

    def _rate(self, row: Row) -> int:
        by_request = row.http and row.key.kind == "frontend"
        return (self._control.request_rates if by_request else self._control.rates)(row.key)[0]

    def _stand(self, row: Row, record: tuple[int, ...], more: int, tables: Sequence[Table]) -> _Standing:
        started = int(self._control.started_at)
        match row.item:
            case Frontend():
                state, admin = (("OPEN", "on"), ("PAUSED", "off"), ("STOP", "off"))[more]
                return _Standing(state, admin=admin)
            case Backend():
                since = HealthRecord(*record[_HEALTH_AT:]).since
                return _Standing("UP" if more else "DOWN", since or started, usable=max(0, more))
            case Server() as server:
                at = tables[0].index.get(row.key) if tables else None
                return _server(server, record, started, "" if at is None else tables[0].check_text(at))
        return _Standing()


def _values(standing: _Standing, counted: tuple[int, ...], rate: int) -> Values:
    state, since, weight, admin, check, why, usable = standing
    scur, smax, qcur, stot, h2, h3, h4, h5, bytes_in, bytes_out, *errors = counted
    return Values(
        *(state, since, scur, smax, rate, qcur, stot, h2, h3, h4, h5, bytes_in, bytes_out, sum(errors)),
        *(weight, admin, check, why, usable),
    )


def _server(server: Server, record: tuple[int, ...], started: int, text: str) -> _Standing:
    state, weight, since, *checked = record
    if since:
        found = HealthRecord(*checked)
        now = ServerNow(ServerState(state), weight, max(since, found.since), server.backup, found, text)
    else:
        now = configured_now(server)
    check = why = ""
    if server.check and now.admin is not ServerState.MAINT:
        number = now.health.result
        result = health.Result(number) if number in health.DESCRIPTIONS else health.Result.INI
        check = result.name + (f"/{now.health.code}" if now.health.code else "")
        if result is not health.Result.INI and not result.passed:
            why = health.DESCRIPTIONS[result] + (f": {text}" if text else "")
    return _Standing(
        now.status(server), now.since or started, now.weight, _ADMIN[now.admin], check, why, int(now.usable)
    )


def _column(tables: Sequence[Table], places: Sequence[Sequence[int]], column: Column) -> list[int]:
    """A column of our rows, over all generations."""
    found: list[list[int]] = []
    for table, rows in zip(tables, places, strict=True):
        values = [*table.column_values(column), 0]  # the last for rows that it lacks
        found.append([values[row] for row in rows])
    if len(found) == 1:
        return found[0]
    return list(map(max if column in MAXIMA else _sum, *found))


def _sum(*values: int) -> int:
    # Counters that were cleared say less than nothing in one of the tables; see table.py.
    return sum(values) & (1 << 64) - 1


def _rows(config: Config, maxconn: int) -> Iterator[Row]:
    """In the order of `show stat`, behind one for the process."""
    yield Row(0, PROCESS)
    index = 1
    proxies: list[Frontend | Backend] = [*config.frontends, *config.backends]
    for proxy in sorted(proxies, key=lambda each: each.iid):  # a listen's frontend stays before its backend
        if isinstance(proxy, Frontend):
            yield Row(index, RowKey("frontend", proxy.name), proxy, None, proxy.maxconn or maxconn)
        else:
            for server in proxy.servers:
                yield Row(index, RowKey("server", proxy.name, server.name), server, proxy, server.maxconn)
                index += 1
            yield Row(index, RowKey("backend", proxy.name), proxy)
        index += 1
