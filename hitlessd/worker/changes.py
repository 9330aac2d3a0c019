"""What operators change at run time, as a worker carries it out. States and weights of servers are not among it: those
are in the shared table.

Every order may come twice, and to a worker that was forked when the change was in force already.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from hitlessd.dataclass import replace
from hitlessd.model import Server
from hitlessd.records import load_server, parse_address
from hitlessd.table import Column, RowKey
from hitlessd.worker.backend import LiveBackend, LiveServer
from hitlessd.worker.http.state import HttpState

if TYPE_CHECKING:
    from hitlessd.worker.frontend import LiveFrontend
    from hitlessd.worker.loop import Worker

__all__ = ["change", "clear_maxima", "shut_frontend"]

_NONSENSE = (KeyError, TypeError, ValueError, IndexError, AttributeError)


class _Refused(Exception):
    """Why a change cannot be made, for a person."""


def change(worker: Worker, order: dict[str, Any]) -> dict[str, Any]:
    """Make one change: `kind`, `proxy`, `server` and `value` as in hitlessd/changes.py. The answer is empty, or says
    `why` it was not made.

    The value of server-added is {"row": its row in the table, "record": as dump_server() gives it}, that of
    global-maxconn this worker's share.
    """
    kind = str(order.get("kind"))
    proxy, server = str(order.get("proxy", "")), str(order.get("server", ""))
    try:
        if kind in _OF_SERVERS:
            _OF_SERVERS[kind](worker, _backend(worker, proxy), server, order["value"])
        elif kind in _OF_FRONTENDS:
            _OF_FRONTENDS[kind](worker, _frontend(worker, proxy), order["value"])
        elif kind == "global-maxconn":
            worker.limit_to(int(order["value"]))
        else:
            raise _Refused(f"cannot make a change of the kind {kind!r}: unknown")
    except _Refused as refused:
        return {"why": str(refused)}
    except _NONSENSE as error:
        return {"why": f"cannot make a change of the kind {kind!r}: {type(error).__name__}: {error}"}
    return {}


def shut_frontend(worker: Worker, order: dict[str, Any]) -> dict[str, Any]:
    """Leave the listeners of a frontend for good; who waits there is let in first, unless it accepts nobody."""
    try:
        frontend = _frontend(worker, str(order.get("proxy", "")))
    except _Refused as refused:
        return {"why": str(refused)}
    for listener in frontend.listeners:
        listener.arm(False)
        if frontend.open:
            listener.accept()
        listener.close()
    frontend.listeners.clear()
    return {}


def clear_maxima(worker: Worker, order: dict[str, Any]) -> dict[str, Any]:
    """Forget how many sessions there were at once, at most; with "all" also when the latest one was."""
    worker.write_counters()
    columns = [Column.SMAX, Column.QMAX] + ([Column.LASTSESS] if order.get("all") else [])
    worker.ledger.clear_maxima(columns)
    return {}


def _backend(worker: Worker, name: str) -> LiveBackend:
    backend = worker.backends.get(name)
    if backend is None:
        raise _Refused(f"cannot change backend {name}: this worker has none of that name")
    return backend


def _frontend(worker: Worker, name: str) -> LiveFrontend:
    frontend = worker.frontends.get(name)
    if frontend is None:
        raise _Refused(f"cannot change frontend {name}: this worker has none of that name")
    return frontend


def _find(backend: LiveBackend, name: str) -> LiveServer | None:
    return next((server for server in backend.servers if server.name == name), None)


def _server(backend: LiveBackend, name: str) -> LiveServer:
    server = _find(backend, name)
    if server is None:
        raise _Refused(f"cannot change server {backend.name}/{name}: this worker has none of that name")
    return server


# -- servers -------------------------------------------------------------------------------------------------------


def _set_address(worker: Worker, backend: LiveBackend, name: str, value: Any) -> None:
    server = _server(backend, name)
    _configure(worker, backend, server, replace(server.config, address=parse_address(value), hostname=""))


def _set_maxconn(worker: Worker, backend: LiveBackend, name: str, value: Any) -> None:
    server = _server(backend, name)
    _configure(worker, backend, server, replace(server.config, maxconn=int(value)))


def _configure(worker: Worker, backend: LiveBackend, server: LiveServer, config: Server) -> None:
    """Whoever has a connection to the server keeps it; who waits for one may have it now."""
    if config == server.config:
        return
    elsewhere = config.address != server.config.address
    server.configure(config)
    if elsewhere:
        # What is connected to the old address is of no use to others.
        if server.pool is not None:
            server.pool.clear()
        for conn in worker.connections:
            if conn.target is server and isinstance(conn, HttpState) and conn.server is not None and conn.exchange:
                conn.direct = False
                conn.exchange.surplus = True
    _rearrange(worker, backend)


def _add(worker: Worker, backend: LiveBackend, name: str, value: Any) -> None:
    config = load_server(value["record"])
    if config.name != name:
        raise _Refused(f"cannot add server {backend.name}/{name}: it is told of as {config.name}")
    server = _find(backend, name)
    if server is not None:
        _configure(worker, backend, server, replace(config, where=server.config.where))
        return
    key = RowKey("server", backend.name, name)
    if worker.table.index.get(key) != int(value["row"]):
        raise _Refused(f"cannot add server {backend.name}/{name}: it has no row in the shared table")
    # It may have been a server before that the configuration had no more, but whose connections are here.
    server = worker.lanes.reclaim(backend, name)
    if server is None:
        server = LiveServer(worker, backend, config)
    else:
        server.configure(config)
        server.sit_on(worker.ledger.row(key))
    # As in the configuration that later processes get: behind the others, by number.
    servers = backend.servers
    later = (at for at, other in enumerate(servers) if other.config.added and other.config.sid > config.sid)
    servers.insert(next(later, len(servers)), server)
    _rearrange(worker, backend)


def _delete(worker: Worker, backend: LiveBackend, name: str, _value: Any) -> None:
    server = _find(backend, name)
    if server is None:
        return
    if server.sessions:
        raise _Refused(f"cannot delete server {backend.name}/{name}: {server.sessions} connections of it are left")
    worker.write_counters()
    server.retire()
    backend.servers.remove(server)
    for frontend in worker.every_frontend():
        frontend.accounts.pop(server, None)
    _rearrange(worker, backend)


def _rearrange(worker: Worker, backend: LiveBackend) -> None:
    """A backend's servers are others, or not what they were."""
    worker.write_counters()  # with a limit, the others decide from now on by what has been kept back
    backend.arrange()
    for frontend in worker.every_frontend():
        if frontend.backend is backend:
            frontend.find_way()
    worker.dispatch.add(backend)


# -- frontends -----------------------------------------------------------------------------------------------------


def _set_state(worker: Worker, frontend: LiveFrontend, value: Any) -> None:
    if value not in ("on", "off"):
        raise ValueError(f"{value!r} is neither on nor off")
    frontend.config = replace(frontend.config, disabled=value == "off")
    if value == "on":
        for listener in frontend.listeners:
            listener.begin_again()
    worker.arm()


def _limit(worker: Worker, frontend: LiveFrontend, value: Any) -> None:
    frontend.config = replace(frontend.config, maxconn=int(value))
    frontend.limit = frontend.share()
    worker.arm()


_OF_SERVERS: dict[str, Callable[[Worker, LiveBackend, str, Any], None]] = {
    "server-address": _set_address,
    "server-maxconn": _set_maxconn,
    "server-added": _add,
    "server-deleted": _delete,
}
_OF_FRONTENDS: dict[str, Callable[[Worker, LiveFrontend, Any], None]] = {
    "frontend-state": _set_state,
    "frontend-maxconn": _limit,
}
