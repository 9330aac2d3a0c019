"""The format of `show stat`: HAProxy 2.6's columns in its order (management guide, 9.1).

Pure functions of what the control object says; no I/O. A field that HAProxy has and we know nothing of stays empty; one
that can only be zero here (no TLS, no HTTP/2, no compression) says 0 wherever HAProxy says 0: tools add such fields up.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from hitlessd import health
from hitlessd.model import Backend, Check, Frontend, InetAddress, Mode, Server
from hitlessd.runtime.control import Control
from hitlessd.table import Column, Health, HealthRecord, RowKey, ServerState, Table, sum_over

__all__ = ["COLUMNS", "StatFilter", "show_stat"]

_NAMES = """
    pxname svname qcur qmax scur smax slim stot bin bout dreq dresp ereq econ eresp wretr wredis status weight act bck
    chkfail chkdown lastchg downtime qlimit pid iid sid throttle lbtot tracked type rate rate_lim rate_max check_status
    check_code check_duration hrsp_1xx hrsp_2xx hrsp_3xx hrsp_4xx hrsp_5xx hrsp_other hanafail req_rate req_rate_max
    req_tot cli_abrt srv_abrt comp_in comp_out comp_byp comp_rsp lastsess last_chk last_agt qtime ctime rtime ttime
    agent_status agent_code agent_duration check_desc agent_desc check_rise check_fall check_health agent_rise
    agent_fall agent_health addr cookie mode algo conn_rate conn_rate_max conn_tot intercepted dcon dses wrew connect
    reuse cache_lookups cache_hits srv_icur src_ilim qtime_max ctime_max rtime_max ttime_max eint idle_conn_cur
    safe_conn_cur used_conn_cur need_conn_est uweight agg_server_status agg_server_check_status agg_check_status -
    ssl_sess ssl_reused_sess ssl_failed_handshake h2_headers_rcvd h2_data_rcvd h2_settings_rcvd h2_rst_stream_rcvd
    h2_goaway_rcvd h2_detected_conn_protocol_errors h2_detected_strm_protocol_errors h2_rst_stream_resp h2_goaway_resp
    h2_open_connections h2_backend_open_streams h2_total_connections h2_backend_total_streams h1_open_connections
    h1_open_streams h1_total_connections h1_total_streams h1_bytes_in h1_bytes_out h1_spliced_bytes_in
    h1_spliced_bytes_out
"""
COLUMNS: tuple[str, ...] = tuple(_NAMES.split())
_AT = {name: at for at, name in enumerate(COLUMNS)}

_SSL = ("ssl_sess", "ssl_reused_sess", "ssl_failed_handshake")
_MODULES = COLUMNS[_AT["ssl_sess"] :]
_ZERO_FRONTEND = (
    *("rate_lim", "req_rate", "req_rate_max", "req_tot", "comp_in", "comp_out", "comp_byp", "comp_rsp"),
    *("dcon", "dses", "wrew", "eint", *_MODULES),
)
_ZERO_SERVER = ("rtime", "rtime_max", "wrew", "reuse", "srv_icur", "eint", "idle_conn_cur", "safe_conn_cur", *_SSL)
_ZERO_BACKEND = (
    *("comp_in", "comp_out", "comp_byp", "comp_rsp", "rtime", "rtime_max", "wrew", "reuse", "eint"),
    *_MODULES,
)

#: Where `mode = http`: what is 0 beyond that, and what is counted.
_ZERO_HTTP = ("cache_lookups", "cache_hits")
_RESPONSES = "hrsp_1xx hrsp_2xx hrsp_3xx hrsp_4xx hrsp_5xx hrsp_other req_tot"

_UNCHECKED = HealthRecord()
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


class _Row:
    """A row under construction."""

    def __init__(
        self, pxname: str, svname: str, iid: int, sid: int, kind: int, mode: Mode, zeroes: Iterable[str]
    ) -> None:
        values: list[str] = [""] * len(COLUMNS)
        for name in zeroes:
            values[_AT[name]] = "0"
        self.values = values
        self.set(pxname=pxname, svname=svname, pid=1, iid=iid, sid=sid, type=kind, mode=mode)
        values[_AT["-"]] = "-"

    def set(self, **fields: object) -> None:
        for name, value in fields.items():
            self.values[_AT[name]] = str(value)

    def number(self, name: str) -> int:
        return int(self.values[_AT[name]])

    def line(self) -> str:
        return ",".join(map(_quoted, self.values)) + ",\n"


def _quoted(text: str) -> str:
    """RFC 4180's quoting, only where the text is ambiguous."""
    if "," in text or '"' in text:
        return '"' + text.replace('"', '""') + '"'
    return text


def show_stat(control: Control, wanted: StatFilter, now: float) -> str:
    """The CSV of `show stat`, header included. `now` is CLOCK_REALTIME seconds."""
    return "".join(["# ", ",".join(COLUMNS), ",\n", *_rows(control, wanted, now)])


def _rows(control: Control, wanted: StatFilter, now: float) -> Iterator[str]:
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
            states = [_state(server, backend, tables) for server in backend.servers]
            if wanted.types & _SERVERS:
                for server, state in zip(backend.servers, states, strict=True):
                    hidden = (wanted.hide_maint or wanted.hide_down) and state.admin is ServerState.MAINT
                    hidden = hidden or (wanted.hide_down and state.health.health == Health.DOWN)
                    if wanted.sid in (-1, server.sid) and not hidden:
                        yield _server(control, backend, server, state, tables, now, wanted.addresses)
            if wanted.types & _BACKENDS:
                yield _backend(control, backend, states, tables, now, wanted, servers.get(backend.name, ()))


@dataclass(frozen=True, slots=True)
class _ServerNow:
    admin: ServerState
    weight: int
    since: int  # CLOCK_REALTIME seconds of the latest change, 0 when there never was one
    backup: bool
    health: HealthRecord = _UNCHECKED
    text: str = ""  # of the latest check

    @property
    def usable(self) -> bool:
        away = self.health.health in (Health.DOWN, Health.STOPPING)
        return self.admin is ServerState.READY and self.weight > 0 and not away

    def status(self, server: Server) -> str:
        """HAProxy's words; maintenance goes before what checks say, and that before draining."""
        if self.admin is ServerState.MAINT:
            return "MAINT"
        if self.health.health == Health.STOPPING:
            return "NOLB"  # as an operator has said
        if server.check is None:
            if self.health.health == Health.DOWN:
                return "DOWN"
            return "DRAIN" if self.admin is ServerState.DRAIN else "no check"
        up = self.health.health != Health.DOWN
        text = health.status(server.check, self.health.counter, up)
        return text.replace("UP", "DRAIN") if up and self.admin is ServerState.DRAIN else text


def _state(server: Server, backend: Backend, tables: Sequence[Table]) -> _ServerNow:
    """What main last wrote of a server; what the configuration says before it did."""
    row = tables[0].index.get(RowKey("server", backend.name, server.name)) if tables else None
    if row is None or not tables[0].since(row):
        admin = ServerState.MAINT if server.disabled else ServerState.READY
        return _ServerNow(admin, server.weight, 0, server.backup)
    table = tables[0]
    record = table.health(row)
    since = max(table.since(row), record.since)
    return _ServerNow(table.state(row), table.weight(row), since, server.backup, record, table.check_text(row))


def _frontend(control: Control, frontend: Frontend, tables: Sequence[Table]) -> str:
    key = RowKey("frontend", frontend.name)
    rate, rate_max = control.rates(key)
    row = _Row(frontend.name, "FRONTEND", frontend.iid, 0, 0, frontend.mode, _ZERO_FRONTEND)
    _count(row, key, tables, "scur smax stot bin bout dreq dresp ereq dcon")
    row.set(
        rate_lim=frontend.rate_limit,
        slim=frontend.maxconn or control.maxconn or "",
        status="STOP" if control.stopping or frontend.shut else "PAUSED" if frontend.disabled else "OPEN",
        rate=rate,
        rate_max=rate_max,
        conn_rate=rate,
        conn_rate_max=rate_max,
        conn_tot=row.number("stot"),
    )
    if frontend.mode == "http":
        _count(row, key, tables, _RESPONSES + " intercepted")
        requests, requests_max = control.request_rates(key)
        row.set(**dict.fromkeys(_ZERO_HTTP, 0), req_rate=requests, req_rate_max=requests_max)
        row.set(h1_open_connections=row.number("scur"), h1_total_connections=row.number("stot"))
        row.set(h1_total_streams=row.number("req_tot"), h1_open_streams="")
        row.set(h1_bytes_in=row.number("bin"), h1_bytes_out=row.number("bout"))
    return row.line()


def _server(
    control: Control,
    backend: Backend,
    server: Server,
    state: _ServerNow,
    tables: Sequence[Table],
    now: float,
    addresses: bool,
) -> str:
    key = RowKey("server", backend.name, server.name)
    rate, rate_max = control.rates(key)
    row = _Row(backend.name, server.name, backend.iid, server.sid, 2, backend.mode, _ZERO_SERVER)
    _count(row, key, tables, "qcur qmax scur smax stot bin bout dresp econ eresp wretr wredis lbtot cli_abrt srv_abrt")
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
        lastsess=_last_session(key, tables, now),
        used_conn_cur=row.number("scur") if backend.mode == "http" else 0,
        **_connections(key, backend.mode, tables),
    )
    if backend.mode == "http":
        _count(row, key, tables, _RESPONSES)
        idle, fresh = (sum_over(tables, key, column) for column in (Column.IDLE, Column.FRESH))
        row.set(srv_icur=idle, idle_conn_cur=fresh, safe_conn_cur=max(0, idle - fresh))
        if server.pool_max_conn >= 0:
            row.set(src_ilim=server.pool_max_conn)
        if addresses:
            row.set(cookie=server.cookie)
    if server.check is not None:
        _check(row, key, server, server.check, state, tables, now)
    if addresses:
        row.set(addr=server.address if isinstance(server.address, InetAddress) else "unix")
    return row.line()


def _connections(key: RowKey, mode: Mode, tables: Sequence[Table]) -> dict[str, int]:
    """How often a server was connected to, and how often there was no need."""
    if mode == "http":
        return {"connect": sum_over(tables, key, Column.CONNECT), "reuse": sum_over(tables, key, Column.REUSE)}
    # Each session begins with an attempt; others are counted where they follow.
    return {"connect": sum_over(tables, key, Column.STOT) + sum_over(tables, key, Column.WRETR), "reuse": 0}


def _check(
    row: _Row, key: RowKey, server: Server, check: Check, state: _ServerNow, tables: Sequence[Table], now: float
) -> None:
    _count(row, key, tables, "chkfail chkdown")
    gone = state.admin is ServerState.MAINT or state.health.health == Health.DOWN
    row.set(downtime=_downtime(key, state.since if gone else 0, tables, now))
    if server.observe:
        _count(row, key, tables, "hanafail")
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


def _downtime(key: RowKey, since: int, tables: Sequence[Table], now: float) -> int:
    """Seconds ever, with those since it went, if it is away now."""
    return sum_over(tables, key, Column.DOWNTIME) + (max(0, int(now) - since) if since else 0)


def _backend(
    control: Control,
    backend: Backend,
    states: Sequence[_ServerNow],
    tables: Sequence[Table],
    now: float,
    wanted: StatFilter,
    servers: Iterable[RowKey],
) -> str:
    key = RowKey("backend", backend.name)
    rate, rate_max = control.rates(key)
    at = tables[0].index.get(key) if tables else None
    record = _UNCHECKED if at is None else tables[0].health(at)
    active = [state for state in states if state.usable and not state.backup]
    backup = [state for state in states if state.usable and state.backup]
    # Without active servers only the first usable backup gets connections (HAProxy's default, no `option allbackups`).
    weight = sum(state.weight for state in active) or sum(state.weight for state in backup[:1])
    status = "UP" if active or backup or not states else "DOWN"
    if wanted.hide_maint or wanted.hide_down:
        status += f" ({len(active) + len(backup)}/{len(states)})"
    row = _Row(backend.name, "BACKEND", backend.iid, 0, 1, backend.mode, _ZERO_BACKEND)
    _count(
        row, key, tables, "qcur qmax scur smax stot bin bout dreq dresp econ eresp wretr wredis lbtot cli_abrt srv_abrt"
    )
    row.set(
        status=status,
        weight=weight,
        uweight=weight,
        act=len(active),
        bck=len(backup),
        lastchg=max(0, int(now - (record.since or control.started_at))),
        rate=rate,
        rate_max=rate_max,
        lastsess=_last_session(key, tables, now),
    )
    _count(row, key, tables, "chkdown")
    made = [_connections(key, backend.mode, tables) for key in servers]
    row.set(connect=sum(each["connect"] for each in made), reuse=sum(each["reuse"] for each in made))
    if backend.mode == "http":
        _count(row, key, tables, _RESPONSES)
        row.set(**dict.fromkeys(_ZERO_HTTP, 0))
        if backend.cookie and wanted.addresses:
            row.set(cookie=backend.cookie.name)
        idle = sum(sum_over(tables, key, Column.IDLE) for key in servers)
        row.set(h1_open_connections=idle + row.number("scur"), h1_total_connections=row.number("connect"))
        row.set(h1_total_streams=row.number("connect") + row.number("reuse"), h1_open_streams=row.number("scur"))
        row.set(h1_bytes_in="", h1_bytes_out="")
    if states:
        row.set(downtime=_downtime(key, 0 if status.startswith("UP") else record.since, tables, now))
    if wanted.addresses:
        row.set(algo=backend.balance)
    return row.line()


def _count(row: _Row, key: RowKey, tables: Sequence[Table], names: str) -> None:
    for name in names.split():
        row.values[_AT[name]] = str(sum_over(tables, key, Column[name.upper()]))


def _last_session(key: RowKey, tables: Sequence[Table], now: float) -> int:
    """Seconds since the latest session, -1 when there was none."""
    last = sum_over(tables, key, Column.LASTSESS)
    return max(0, int(now - last)) if last else -1
