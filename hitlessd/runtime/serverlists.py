"""`show servers state`, `show servers conn` and `show backend`, in HAProxy 2.6's forms (management guide, 9.3)."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence

from hitlessd.health import Result
from hitlessd.model import Backend, InetAddress, Server
from hitlessd.runtime.command import Call, Command
from hitlessd.runtime.control import Control
from hitlessd.runtime.serverstate import ServerNow, server_now
from hitlessd.table import Column, RowKey, ServerState, Table, totals

__all__ = ["COMMANDS"]

_STATE_COLUMNS = (
    "be_id be_name srv_id srv_name srv_addr srv_op_state srv_admin_state srv_uweight srv_iweight "
    "srv_time_since_last_change srv_check_status srv_check_result srv_check_health srv_check_state srv_agent_state "
    "bk_f_forced_id srv_f_forced_id srv_fqdn srv_port srvrecord srv_use_ssl srv_check_port srv_check_addr "
    "srv_agent_addr srv_agent_port"
)
_CONN_COLUMNS = (
    "bkname/svname bkid/svid addr port - purge_delay used_cur used_max need_est unsafe_nb safe_nb idle_lim idle_cur"
)

#: HAProxy's numbers (its server-t.h and check-t.h).
_STOPPED, _STARTING, _RUNNING = 0, 1, 2
_FORCED_MAINT, _CONFIGURED_MAINT, _FORCED_DRAIN = 0x01, 0x04, 0x08
_CHECK_CONFIGURED, _CHECK_ENABLED, _CHECK_PAUSED = 2, 4, 8
_FAILED, _PASSED = 2, 3
_STATUS = {
    Result.INI: 1,
    Result.HANA: 4,
    Result.SOCKERR: 5,
    Result.L4OK: 6,
    Result.L4TOUT: 7,
    Result.L4CON: 8,
    Result.L7TOUT: 12,
    Result.L7RSP: 13,
    Result.L7OK: 15,
    Result.L7STS: 17,
}
#: Its `rise`, where a server is not checked.
_RISE = 2


def _of(call: Call, line: Callable[[Backend, Server, ServerNow, Sequence[Table]], str]) -> str | None:
    """A line a server of the backend that the fourth word names, or of all; None if there is none of that name."""
    name, control = call.words[3] if len(call.words) > 3 else "", call.control
    backends = [backend for backend in control.config.backends if not name or backend.name == name]
    if not backends:
        return None if name else ""
    tables = control.tables()
    return "".join(
        line(backend, server, server_now(server, backend, tables), tables)
        for backend in backends
        for server in backend.servers
    )


def _show_state(call: Call) -> str:
    configured = dict(_servers(call.control))
    now = time.time()

    def line(backend: Backend, server: Server, state: ServerNow, _tables: Sequence[Table]) -> str:
        original = configured.get((backend.name, server.name), server)
        return _state_line(backend, server, original, state, now, now - call.control.started_at)

    found = _of(call, line)
    return "Can't find backend.\n" if found is None else f"1\n# {_STATE_COLUMNS}\n{found}"


def _servers(control: Control) -> Iterator[tuple[tuple[str, str], Server]]:
    for backend in control.configured.backends:
        for server in backend.servers:
            yield (backend.name, server.name), server


def _state_line(backend: Backend, server: Server, original: Server, state: ServerNow, now: float, age: float) -> str:
    """`original` is what the files say of it; `age` is this generation's, in seconds."""
    maintained = state.admin is ServerState.MAINT
    admin = _FORCED_MAINT * maintained | _FORCED_DRAIN * (state.admin is ServerState.DRAIN)
    admin |= _CONFIGURED_MAINT * original.disabled
    record = state.health
    starting = bool(server.slowstart) and 0 <= now - record.up_since < server.slowstart
    running = not maintained and state.up
    host, port = _where(server)
    check_port, check_addr = 0, "-"
    checks = _CHECK_CONFIGURED * (original.check is not None) | _CHECK_ENABLED * (server.check is not None)
    if maintained and (checks or original.disabled):
        checks |= _CHECK_PAUSED
    status, result, health = 1, 0, _RISE
    if server.check is not None:
        latest = Result(record.result) if record.result in _STATUS else Result.INI
        status, health = _STATUS[latest], record.counter
        result = 0 if latest is Result.INI else _PASSED if latest.passed else _FAILED
        if isinstance(server.check.address, InetAddress):
            check_port, check_addr = server.check.address.port, server.check.address.host
    values: list[object] = [
        *(backend.iid, backend.name, server.sid, server.name, host),
        (_STARTING if starting else _RUNNING) if running else _STOPPED,
        *(admin, state.weight, original.weight, max(0, int(now - state.since if state.since else age))),
        *(status, result, 0 if maintained else health, checks, 0, 0, 0, server.hostname or "-", port, "-", 0),
        # HAProxy's `addr` is that of agents, too.
        *(check_port, check_addr, check_addr, check_port),
    ]
    return " ".join(map(str, values)) + "\n"


def _where(server: Server) -> tuple[str, int]:
    address = server.address
    return (address.host, address.port) if isinstance(address, InetAddress) else ("-", 0)


def _show_conn(call: Call) -> str:
    workers = call.control.tables()[0].workers if call.control.tables() else 0
    found = _of(call, _conn_line)
    if found is None:
        return "Can't find backend.\n"
    return f"# {_CONN_COLUMNS} idle_per_thr[{workers}]\n{found}"


def _conn_line(backend: Backend, server: Server, _state: ServerNow, tables: Sequence[Table]) -> str:
    key = RowKey("server", backend.name, server.name)
    counted = totals(tables, key)
    idle, fresh = counted[Column.IDLE], counted[Column.FRESH]
    http = backend.mode == "http"
    used, most = (counted[Column.SCUR], counted[Column.SMAX]) if http else (0, 0)
    host, port = _where(server)
    values: list[object] = [
        *(f"{backend.name}/{server.name}", f"{backend.iid}/{server.sid}", host, port, "-"),
        *(int(server.pool_purge_delay * 1000), used, most, most, fresh, max(0, idle - fresh)),
        *(server.pool_max_conn, idle, *_idle_by_worker(tables[:1], key)),
    ]
    return " ".join(map(str, values)) + "\n"


def _idle_by_worker(tables: Sequence[Table], key: RowKey) -> Iterator[int]:
    for table in tables:
        at = table.index.get(key)
        for worker in range(table.workers):
            with table.slot(worker) as slot:
                yield 0 if at is None else slot[at * table.columns + Column.IDLE]


def _show_backend(call: Call) -> str:
    return "# name\n" + "".join(f"{backend.name}\n" for backend in call.control.config.backends)


COMMANDS = (
    Command(("show", "backend"), "show backend", "list backends in the current running config", _show_backend),
    Command(
        ("show", "servers", "conn"),
        "show servers conn [<backend>]",
        "dump server connections status (all or for a single backend)",
        _show_conn,
        scope="generation",
    ),
    Command(
        ("show", "servers", "state"),
        "show servers state [<backend>]",
        "dump volatile server information (all or for a single backend)",
        _show_state,
        scope="generation",
    ),
)
