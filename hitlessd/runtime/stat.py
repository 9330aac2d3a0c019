"""What `show stat` says of each frontend, server and backend. statrow.py knows the columns, typed.py the other formats.

Pure functions of what the control object says; no I/O. A field that HAProxy has and we know nothing of stays empty; one
that can only be zero here (no TLS, no HTTP/2, no compression) says 0 wherever HAProxy says 0: tools add such fields up.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from hitlessd import health
from hitlessd.dataclass import dataclass
from hitlessd.model import Backend, Check, Frontend, InetAddress, Mode, Server
from hitlessd.runtime.control import Control
from hitlessd.runtime.serverstate import ServerNow, server_now
from hitlessd.runtime.statrow import BACKEND, COLUMNS, FRONTEND, SERVER, Row, counts, header, template
from hitlessd.table import Column, HealthRecord, RowKey, ServerState, Table, totals

__all__ = ["COLUMNS", "StatFilter", "collected", "show_stat", "stat_csv", "stat_rows"]

_SSL = ("ssl_sess", "ssl_reused_sess", "ssl_failed_handshake")
_MODULES = COLUMNS[COLUMNS.index("ssl_sess") :]
_FRONTEND = template(
    (
        *("rate_lim", "req_rate", "req_rate_max", "req_tot", "comp_in", "comp_out", "comp_byp", "comp_rsp"),
        *("dcon", "dses", "wrew", "eint", *_MODULES),
    )
)
_SERVER = template(
    (
        "rtime",
        "rtime_max",
        "wrew",
        "reuse",
        "srv_icur",
        "eint",
        "idle_conn_cur",
        "safe_conn_cur",
        "used_conn_cur",
        *_SSL,
    )
)
_BACKEND = template(
    (
        *("comp_in", "comp_out", "comp_byp", "comp_rsp", "rtime", "rtime_max", "wrew", "reuse", "eint"),
        *_MODULES,
    )
)

_OF_FRONTEND = counts("scur smax stot bin bout dreq dresp ereq dcon")
_OF_SERVER = counts("qcur qmax scur smax stot bin bout dresp econ eresp wretr wredis lbtot cli_abrt srv_abrt")
_OF_BACKEND = counts("dreq chkdown") + _OF_SERVER
#: Where `mode = http`: what is 0 beyond that, and what is counted.
_ZERO_HTTP = ("cache_lookups", "cache_hits")
_RESPONSES = counts("hrsp_1xx hrsp_2xx hrsp_3xx hrsp_4xx hrsp_5xx hrsp_other req_tot")
_INTERCEPTED = counts("intercepted")
_CHECKED = counts("chkfail chkdown")
_OBSERVED = counts("hanafail")

_UNCHECKED = HealthRecord()
#: How often rows are begun anew because a generation ends or the configuration changes meanwhile.
_TRIES = 3
#: `show stat <iid> <type> <sid>`: bits of <type>.
_FRONTENDS, _BACKENDS, _SERVERS = 1, 2, 4


@dataclass(frozen=True, slots=True)
class StatFilter:
    """What `show stat` was asked for; -1 is everything. `addresses`: whether the reader may see where servers are."""

    iid: int = -1
    types: int = -1
    sid: int = -1  # selects among servers only
    hide_maint: bool = False
    hide_down: bool = False
    addresses: bool = False


def show_stat(control: Control, wanted: StatFilter, now: float) -> str:
    """The CSV of `show stat`, header included. `now` is CLOCK_REALTIME seconds."""
    return "".join(stat_csv(stat_rows(control, wanted, now)))


def stat_csv(rows: Iterable[Row]) -> Iterator[str]:
    """The CSV of `show stat`, header included, line by line."""
    yield header()
    for row in rows:
        yield row.csv()


def collected(control: Control, wanted: StatFilter, now: float, rows: list[Row]) -> Iterator[None]:
    """Fill `rows` with stat_rows() in steps, between which anything may happen: they are of one moment's configuration
    and generations all the same."""
    for _ in range(_TRIES):
        tables, config = control.tables(), control.config
        rows.clear()
        for row in stat_rows(control, wanted, now):
            rows.append(row)
            yield
            # A generation that has ended takes its table with it.
            if control.config is not config or not _same(tables, control.tables()):
                break
        else:
            return
    rows[:] = stat_rows(control, wanted, now)


def _same(before: Sequence[Table], now: Sequence[Table]) -> bool:
    return len(before) == len(now) and all(one is other for one, other in zip(before, now, strict=True))


def stat_rows(control: Control, wanted: StatFilter, now: float) -> Iterator[Row]:
    """The rows: proxies in the order of the file, each as frontend, servers, backend."""
    config, tables = control.config, control.tables()
    proxies: dict[int, tuple[list[Frontend], list[Backend]]] = {}
    for frontend in config.frontends:
        proxies.setdefault(frontend.iid, ([], []))[0].append(frontend)
    for backend in config.backends:
        proxies.setdefault(backend.iid, ([], []))[1].append(backend)
    # All that there ever were: the sum over a backend's servers must not fall when one is taken away.
    servers: dict[str, set[RowKey]] = {}
    for key in (key for table in tables for key in table.keys if key.kind == "server"):
        servers.setdefault(key.proxy, set()).add(key)
    for iid, (frontends, backends) in sorted(proxies.items()):
        if wanted.iid not in (-1, iid):
            continue
        if wanted.types & _FRONTENDS:
            for frontend in frontends:
                yield _frontend(control, frontend, tables)
        for backend in backends:
            states: list[ServerNow] = []
            sums: dict[RowKey, Sequence[int]] = {}
            for server in backend.servers:
                key = RowKey("server", backend.name, server.name)
                state, counted = server_now(server, backend, tables), totals(tables, key)
                states.append(state)
                sums[key] = counted
                hidden = (wanted.hide_maint or wanted.hide_down) and state.admin is ServerState.MAINT
                hidden = hidden or (wanted.hide_down and not state.up)
                if wanted.types & _SERVERS and wanted.sid in (-1, server.sid) and not hidden:
                    yield _server(control, backend, server, state, counted, now, wanted.addresses)
            if wanted.types & _BACKENDS:
                for key in servers.get(backend.name, set()).difference(sums):
                    sums[key] = totals(tables, key)
                yield _backend(control, backend, states, tables, now, wanted, sums.values())


def _frontend(control: Control, frontend: Frontend, tables: Sequence[Table]) -> Row:
    key = RowKey("frontend", frontend.name)
    counted = totals(tables, key)
    rate, rate_max = control.rates(key)
    row = Row(frontend.name, "FRONTEND", frontend.iid, 0, FRONTEND, frontend.mode, _FRONTEND)
    row.count(_OF_FRONTEND, counted)
    row.set(
        rate_lim=frontend.rate_limit,
        slim=frontend.maxconn or control.maxconn or "",
        status="STOP" if control.stopping or frontend.shut else "PAUSED" if frontend.disabled else "OPEN",
        rate=rate,
        rate_max=rate_max,
        conn_rate=rate,
        conn_rate_max=rate_max,
        conn_tot=counted[Column.STOT],
    )
    if frontend.mode == "http":
        row.count(_RESPONSES, counted)
        row.count(_INTERCEPTED, counted)
        requests, requests_max = control.request_rates(key)
        row.set(**dict.fromkeys(_ZERO_HTTP, 0), req_rate=requests, req_rate_max=requests_max)
        row.set(h1_open_connections=counted[Column.SCUR], h1_total_connections=counted[Column.STOT])
        row.set(h1_total_streams=counted[Column.REQ_TOT], h1_open_streams="")
        row.set(h1_bytes_in=counted[Column.BIN], h1_bytes_out=counted[Column.BOUT])
    return row


def _server(
    control: Control,
    backend: Backend,
    server: Server,
    state: ServerNow,
    counted: Sequence[int],
    now: float,
    addresses: bool,
) -> Row:
    rate, rate_max = control.rates(RowKey("server", backend.name, server.name))
    row = Row(backend.name, server.name, backend.iid, server.sid, SERVER, backend.mode, _SERVER)
    row.count(_OF_SERVER, counted)
    connect, reuse = _connections(counted, backend.mode)
    row.set(
        slim=server.maxconn or "",
        status=state.status(server),
        weight=state.weight,
        uweight=state.weight,
        act=int(not server.backup),
        bck=int(server.backup),
        lastchg=max(0, int(now - (state.since or control.started_at))),
        rate=rate,
        rate_max=rate_max,
        lastsess=_last_session(counted, now),
        connect=connect,
        reuse=reuse,
    )
    if backend.mode == "http":
        row.count(_RESPONSES, counted)
        idle, fresh = counted[Column.IDLE], counted[Column.FRESH]
        row.set(srv_icur=idle, idle_conn_cur=fresh, safe_conn_cur=max(0, idle - fresh))
        row.set(used_conn_cur=counted[Column.SCUR])
        if server.pool_max_conn >= 0:
            row.set(src_ilim=server.pool_max_conn)
        if addresses:
            row.set(cookie=server.cookie)
    if server.check is not None:
        _check(row, server, server.check, state, counted, now)
    if addresses:
        row.set(addr=str(server.address) if isinstance(server.address, InetAddress) else "unix")
    return row


def _connections(counted: Sequence[int], mode: Mode) -> tuple[int, int]:
    """How often a server was connected to, and how often there was no need."""
    if mode == "http":
        return counted[Column.CONNECT], counted[Column.REUSE]
    # Each session begins with an attempt; others are counted where they follow.
    return counted[Column.STOT] + counted[Column.WRETR], 0


def _check(row: Row, server: Server, check: Check, state: ServerNow, counted: Sequence[int], now: float) -> None:
    row.count(_CHECKED, counted)
    gone = state.admin is ServerState.MAINT or not state.up
    row.set(downtime=_downtime(counted, state.since if gone else 0, now))
    if server.observe:
        row.count(_OBSERVED, counted)
    if state.admin is ServerState.MAINT:
        return  # nobody checks it
    record = state.health
    result = health.Result(record.result) if record.result in health.DESCRIPTIONS else health.Result.INI
    row.set(
        check_status=result.name,
        check_code=record.code or "",
        check_duration=record.duration if record.checked_at and result is not health.Result.HANA else "",
        last_chk=state.text,
        check_desc=health.DESCRIPTIONS[result],
        check_rise=check.rise,
        check_fall=check.fall,
        check_health=record.counter,
    )


def _downtime(counted: Sequence[int], since: int, now: float) -> int:
    """Seconds ever, with those since it went, if it is away now."""
    return counted[Column.DOWNTIME] + (max(0, int(now) - since) if since else 0)


def _backend(
    control: Control,
    backend: Backend,
    states: Sequence[ServerNow],
    tables: Sequence[Table],
    now: float,
    wanted: StatFilter,
    servers: Iterable[Sequence[int]],
) -> Row:
    key = RowKey("backend", backend.name)
    counted = totals(tables, key)
    rate, rate_max = control.rates(key)
    at = tables[0].index.get(key) if tables else None
    record = _UNCHECKED if at is None else tables[0].health(at)
    active = [state for state in states if state.usable and not state.backup]
    backup = [state for state in states if state.usable and state.backup]
    # Without active servers only the first usable backup gets connections (HAProxy's default, no `option allbackups`).
    weight = sum(state.weight for state in active) or sum(state.weight for state in backup[:1])
    up = bool(active or backup or not states)
    status = "UP" if up else "DOWN"
    if wanted.hide_maint or wanted.hide_down:
        status += f" ({len(active) + len(backup)}/{len(states)})"
    row = Row(backend.name, "BACKEND", backend.iid, 0, BACKEND, backend.mode, _BACKEND)
    row.count(_OF_BACKEND, counted)
    made = [_connections(each, backend.mode) for each in servers]
    connect, reuse = sum(each[0] for each in made), sum(each[1] for each in made)
    row.set(
        status=status,
        weight=weight,
        uweight=weight,
        act=len(active),
        bck=len(backup),
        lastchg=max(0, int(now - (record.since or control.started_at))),
        rate=rate,
        rate_max=rate_max,
        lastsess=_last_session(counted, now),
        connect=connect,
        reuse=reuse,
    )
    if backend.mode == "http":
        row.count(_RESPONSES, counted)
        row.set(**dict.fromkeys(_ZERO_HTTP, 0))
        if backend.cookie and wanted.addresses:
            row.set(cookie=backend.cookie.name)
        idle = sum(each[Column.IDLE] for each in servers)
        row.set(h1_open_connections=idle + counted[Column.SCUR], h1_total_connections=connect)
        row.set(h1_total_streams=connect + reuse, h1_open_streams=counted[Column.SCUR])
        row.set(h1_bytes_in="", h1_bytes_out="")
    if states:
        row.set(downtime=_downtime(counted, 0 if up else record.since, now))
    if wanted.addresses:
        row.set(algo=backend.balance)
    return row


def _last_session(counted: Sequence[int], now: float) -> int:
    """Seconds since the latest session, -1 when there was none."""
    last = counted[Column.LASTSESS]
    return max(0, int(now - last)) if last else -1
