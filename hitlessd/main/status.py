"""What main tells about itself: the STATUS line, `show proc`, sessions and rates. Reads the tables, changes nothing."""

from __future__ import annotations

import time
from collections.abc import Container, Iterator, Mapping, Sequence

from hitlessd.main.arrival import Arrival
from hitlessd.main.equipment import Equipment
from hitlessd.main.inheritance import Ancestor
from hitlessd.main.reloads import Reloads
from hitlessd.model import Config
from hitlessd.runtime.control import Control, GenerationInfo
from hitlessd.table import MOST, PROCESS, Column, Health, RowKey, ServerState, Table, sum_over

__all__ = ["Rates", "busy", "generations", "line", "retired", "sessions", "unparked"]


_ALL = ("process", "frontend", "backend", "server")


class Rates:
    """Of a column of rows, sessions for instance: how many a second, from one tick a second."""

    def __init__(self, column: Column = Column.STOT, kinds: Container[str] = _ALL) -> None:
        self._column, self._kinds = column, kinds
        self.ticks = 0
        self._before: dict[RowKey, int] = {}
        self._now: dict[RowKey, tuple[int, int]] = {}

    def tick(self, tables: Sequence[Table]) -> None:
        self.ticks += 1
        totals = self._totals(tables)
        before, now = self._before, self._now
        for key, total in totals.items():
            new = max(0, total - before.get(key, total))
            known = now.get(key)
            if known is None or new or known[0]:
                now[key] = (new, max(new, known[1] if known else 0))
        self._before = totals

    def _totals(self, tables: Sequence[Table]) -> dict[RowKey, int]:
        """There may be thousands of rows: a table's all at once."""
        kinds, column = self._kinds, self._column
        totals = {key: 0 for key in tables[0].keys if key.kind in kinds}
        for table in tables:
            if not table.folded:
                for key, value in zip(table.keys, table.column_values(column), strict=False):
                    if key in totals:
                        totals[key] = (totals[key] + value) & MOST
        return totals

    def clear(self) -> None:
        """Forget the most there ever were; totals may begin anew, too."""
        self._before = {}
        self._now = {key: (now, now) for key, (now, _) in self._now.items()}

    def of(self, key: RowKey) -> tuple[int, int]:
        return self._now.get(key, (0, 0))


def busy(config: Config, sessions: Rates, requests: Rates) -> Iterator[tuple[RowKey, int]]:
    """What the process, frontends and backends had in the last second: sessions, or requests of HTTP frontends."""
    yield PROCESS, sessions.of(PROCESS)[0]
    for frontend in config.frontends:
        key = RowKey("frontend", frontend.name)
        yield key, (requests if frontend.mode == "http" else sessions).of(key)[0]
    for backend in config.backends:
        key = RowKey("backend", backend.name)
        yield key, sessions.of(key)[0]


def sessions(tables: Sequence[Table]) -> int:
    """Connections now, over these generations."""
    return sum_over(tables, PROCESS, Column.SCUR)


def unparked(tables: Sequence[Table]) -> int:
    """Of the connections of these generations, or of what they had when they died, those that were not parked."""
    return sum(table.unparked(worker) for table in tables for worker in range(table.workers))


def retired(equipment: Equipment) -> int:
    """Connections of this generation whose frontend is no longer configured."""
    table = equipment.table
    named = sum(
        table.value(table.index[RowKey("frontend", frontend.name)], Column.SCUR)
        for frontend in equipment.config.frontends
    )
    return max(0, table.value(table.index[PROCESS], Column.SCUR) - named)


def _reasons(kept: Mapping[str, int]) -> str:
    return ", ".join(f"{number}: {why}" for why, number in kept.items())


def generations(
    main: Control, equipment: Equipment, ancestors: Sequence[Ancestor], arrival: Arrival | None
) -> list[GenerationInfo]:
    """The current one first, then the draining ones, the youngest first."""
    now = time.monotonic()
    members = dict(equipment.pool.members())
    current = GenerationInfo(
        main.generation,
        main.pid,
        "current",
        now - main.started,
        main.reloads[0],
        _workers(equipment.table, [members.get(i, 0) for i in range(equipment.table.workers)]),
        main.version,
        arrival.moved if arrival else 0,
        "" if arrival is None or arrival.over else "connections are moving in",
    )
    draining = [
        GenerationInfo(
            ancestor.generation,
            ancestor.pid,
            "draining",
            now - ancestor.started,
            main.generation - ancestor.generation,
            _workers(ancestor.table, ancestor.workers),
            ancestor.version,
            ancestor.moved,
            _reasons(ancestor.kept),
        )
        for ancestor in reversed(ancestors)
    ]
    return [current, *draining]


def _workers(table: Table, pids: Sequence[int]) -> list[tuple[int, int]]:
    row = table.index[PROCESS]
    at = row * table.columns + Column.SCUR
    return [(pid, table.slot(index)[at]) for index, pid in enumerate(pids[: table.workers])]


def line(
    main: Control, equipment: Equipment, reloads: Reloads, ancestors: Sequence[Ancestor], arrival: Arrival | None
) -> str:
    """One line for `systemctl status`."""
    table = equipment.table
    keys = [
        RowKey("server", backend.name, server.name) for backend in main.config.backends for server in backend.servers
    ]
    servers = [table.index[key] for key in keys if key in table.index]
    decisions = table.decisions()  # of thousands, all at once
    up = sum(1 for row in servers if decisions[row][0] == ServerState.READY and decisions[row][2] != Health.DOWN)
    parts = [
        f"generation {main.generation}",
        f"{len(equipment.listeners)} listeners",
        f"{sessions(main.tables())} sessions",
        f"servers {up}/{len(servers)} up",
    ]
    if arrival and arrival.moved:
        parts.append(f"{arrival.moved} moved here by the last reload")
    if unknown := retired(equipment):
        parts.append(f"{unknown} of proxies that are no longer configured")
    if ancestors:
        reasons = "; ".join(filter(None, (_reasons(ancestor.kept) for ancestor in ancestors)))
        left = sessions([ancestor.table for ancestor in ancestors])
        parts.append(
            f"{len(ancestors)} older generation{'s' if len(ancestors) > 1 else ''} draining {left}"
            + (f" ({reasons})" if reasons else "")
        )
    if main.warm:
        parts.append("SERVING THE LAST GOOD CONFIGURATION: " + main.config_error.splitlines()[0])
    if last := reloads.last:
        at = time.strftime("%H:%M:%S", time.localtime(last.at))
        if last.ok:
            parts.append(f"last reload {at} in {last.duration * 1000:.0f} ms")
        else:
            parts.append(f"LAST RELOAD REFUSED {at}: {last.reason.splitlines()[0]}")
    return ", ".join(parts)
