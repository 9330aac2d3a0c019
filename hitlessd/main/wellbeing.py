"""What a generation knows of its servers' health before it has checked anything: what the one before knew, if it is
still worth something. See docs/health-checks.md for what "stale" means."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from hitlessd.health import STALE, STALE_CHECKS, Result, forced_identity, identity, interval, moment, top
from hitlessd.model import Backend, Check, Config, Server
from hitlessd.table import Health, HealthRecord, RowKey, Table

__all__ = ["any_usable", "carry_over", "rows_of", "unknown", "usable"]

#: Servers from which on it is cheaper to look at the whole table at once.
_FEW = 64


def unknown(check: Check, mark: int, now: float) -> HealthRecord:
    """Of a server that nobody has checked: up, until the first failure."""
    return HealthRecord(Health.UP, int(now), check.rise, Result.INI, identity=mark)


def carry_over(config: Config, table: Table, older: Sequence[Table], now: float) -> None:
    """Fill in the health of our servers: what the youngest of the `older` tables (the youngest comes first) says about
    the same server, at the same address, checked in the same way; else they are unknown.

    `now` is CLOCK_REALTIME. May be called again as long as our own checks have not begun: what has been found meanwhile
    comes over, too.
    """
    index, known = table.index, [(old, old.index) for old in older]
    told = any(old.any_health() for old in older)
    for backend in config.backends:
        for server in backend.servers:
            if server.check is None and not told:
                continue
            key = RowKey("server", backend.name, server.name)
            row = index[key]
            if server.check is None:
                _carry_over_forced(key, server, row, table, known)
                continue
            mark = identity(backend, server)
            ours = table.health(row)
            found = unknown(server.check, mark, now) if not ours.identity else ours
            text = ""
            for old, rows in known:
                at = rows.get(key)
                theirs = old.health(at) if at is not None else None
                if theirs is None or theirs.identity != mark or not _fresh(server.check, theirs):
                    continue
                if theirs.checked_at >= ours.checked_at:
                    found, text = _fitted(server.check, theirs), old.check_text(at or 0)
                break
            if found != ours:
                table.set_health(row, found)
                table.set_check_text(row, text)
        _carry_over_backend(backend, table, older, now)


def _carry_over_forced(
    key: RowKey, server: Server, row: int, table: Table, known: Sequence[tuple[Table, Mapping[RowKey, int]]]
) -> None:
    """What an operator has said of a server that nobody checks; mostly nothing."""
    for old, rows in known:
        at = rows.get(key)
        if at is not None:
            if (theirs := old.health(at)).identity and theirs.identity == forced_identity(server):
                table.set_health(row, theirs)
            return


def rows_of(backend: Backend, table: Table) -> tuple[list[int], list[int]]:
    """Where the table has its servers: active ones, backups."""
    rows: tuple[list[int], list[int]] = [], []
    for server in backend.servers:
        rows[server.backup].append(table.index[RowKey("server", backend.name, server.name)])
    return rows


def usable(rows: tuple[list[int], list[int]], table: Table) -> tuple[int, int]:
    """How many servers in rows_of() a backend may be chosen now: active ones, backups."""
    if len(rows[0]) + len(rows[1]) < _FEW:
        return sum(map(table.usable, rows[0])), sum(map(table.usable, rows[1]))
    flags = table.usable_rows()
    return sum(map(flags.__getitem__, rows[0])), sum(map(flags.__getitem__, rows[1]))


def any_usable(rows: tuple[list[int], list[int]], table: Table) -> bool:
    """Whether there is one."""
    return any(map(table.usable, rows[0])) or any(map(table.usable, rows[1]))


def _carry_over_backend(backend: Backend, table: Table, older: Sequence[Table], now: float) -> None:
    key = RowKey("backend", backend.name)
    row = table.index[key]
    index = table.index
    rows = (index[RowKey("server", backend.name, server.name)] for server in backend.servers)
    up = not backend.servers or any(map(table.usable, rows))
    record = HealthRecord(Health.UP if up else Health.DOWN, int(now))
    for old in older:
        at = old.index.get(key)
        theirs = old.health(at) if at is not None else HealthRecord()
        if theirs.health == record.health:
            record = record._replace(since=theirs.since)
            break
    if table.health(row).health != record.health:
        table.set_health(row, record)


def _fresh(check: Check, record: HealthRecord) -> bool:
    limit = max(STALE, STALE_CHECKS * interval(check, record.counter))
    # Before its first check there is only when that is due.
    return abs(moment() - (record.checked_at or record.next_at) / 1000) <= limit


def _fitted(check: Check, record: HealthRecord) -> HealthRecord:
    """Rise and fall may have changed: the state stays, and so does the counter where it can."""
    if record.health != Health.DOWN:
        counter = min(max(record.counter, check.rise), top(check))
    else:
        counter = min(record.counter, check.rise - 1)
    return record._replace(counter=counter)
