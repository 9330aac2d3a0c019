"""Where a connection that came from another generation belongs: a frontend and a backend, which the configuration may
know no more, or know as no pair.

Such a connection lives on under its old names. What it needs of the old configuration (timeouts, servers, flags) comes
along as a record: unknown fields are ignored, missing ones have the model's defaults.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, get_args

from hitlessd.dataclass import asdict, fields
from hitlessd.errors import PeerError
from hitlessd.model import Backend, Balance, Frontend, Server, Timeouts
from hitlessd.records import dump_address, load_address
from hitlessd.worker.backend import LiveBackend, LiveServer
from hitlessd.worker.connection import UNDECIDED
from hitlessd.worker.frontend import LiveFrontend

if TYPE_CHECKING:
    from hitlessd.worker.form import SerialConnection
    from hitlessd.worker.loop import Worker

__all__ = ["Lanes", "Places", "Proxies", "backend_record", "frontend_record", "server_record"]

#: Records by name, of frontends and of backends.
Proxies = dict[str, dict[str, Any]]

_FRONTEND = ("mode", "tcplog", "dontlognull", "migrate", "shutdown_on_reload")
_BACKEND = (
    "mode",
    "balance",
    "balance_header",
    "balance_draws",
    "balance_uri_len",
    "balance_uri_depth",
    "balance_uri_whole",
    "hash_consistent",
    "retries",
    "redispatch",
    "abortonclose",
    "migrate",
    "shutdown_on_reload",
)
_SERVER = ("name", "sid", "weight", "backup", "disabled", "maxconn", "send_proxy")


def frontend_record(frontend: Frontend) -> dict[str, Any]:
    """What a connection needs to know of its frontend."""
    return {"timeouts": asdict(frontend.timeouts)} | {name: getattr(frontend, name) for name in _FRONTEND}


def backend_record(backend: Backend) -> dict[str, Any]:
    """What a connection needs to know of its backend, and of the servers that it may still be sent to."""
    servers = [server_record(server) for server in backend.servers]
    return {"timeouts": asdict(backend.timeouts), "servers": servers} | {
        name: getattr(backend, name) for name in _BACKEND
    }


def server_record(server: Server) -> dict[str, Any]:
    """One of "servers" in a backend's record."""
    return {name: getattr(server, name) for name in _SERVER} | {"address": dump_address(server.address)}


def _known(record: dict[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    return {name: record[name] for name in names if name in record}


def _timeouts(record: dict[str, Any]) -> Timeouts:
    given = record.get("timeouts", {})
    return Timeouts(
        **{f.name: None if given[f.name] is None else float(given[f.name]) for f in fields(Timeouts) if f.name in given}
    )


def _frontend(name: str, backend: str, record: dict[str, Any]) -> Frontend:
    return Frontend(name, 0, default_backend=backend, timeouts=_timeouts(record), **_known(record, _FRONTEND))


def _server(record: dict[str, Any]) -> Server:
    return Server(address=load_address(record["address"]), **_known(record, _SERVER))


def _backend(name: str, record: dict[str, Any]) -> Backend:
    known = _known(record, _BACKEND)
    if known.get("balance") not in get_args(Balance):
        known.pop("balance", None)  # of a later version: any will do
    servers = tuple(map(_server, record.get("servers", ())))
    return Backend(name, 0, servers, timeouts=_timeouts(record), **known)


_NONSENSE = (KeyError, TypeError, ValueError, AttributeError, IndexError)


def _unknown(serial: SerialConnection, error: Exception) -> PeerError:
    return PeerError(
        f"cannot resume a connection of {serial.frontend} to {serial.backend}: these are not configured,"
        f" and what came with it makes no sense ({type(error).__name__}: {error})"
    )


class Lanes:
    """Pairs of a frontend and a backend, and servers, that connections of other generations came with."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self._pairs: dict[tuple[str, str], LiveFrontend] = {}
        self._servers: dict[tuple[str, str], LiveServer] = {}

    def find(self, serial: SerialConnection, frontends: Proxies, backends: Proxies) -> tuple[LiveFrontend, LiveBackend]:
        """The connection's frontend and its backend, made of the records where the configuration has no such thing.

        Raises PeerError when there is no record either.
        """
        frontend, backend = serial.frontend, serial.backend
        live = self._worker.frontends.get(frontend)
        if live is not None and live.config.mode != ("tcp" if serial.http is None else "http"):
            live = None
        if live is not None:
            undecided = serial.state in UNDECIDED or (serial.http is not None and not serial.entered)
            if live.backend.name == backend or undecided:
                return live, live.backend
            if not live.bound and (backend in self._worker.backends or serial.http is not None):
                # The next request is the new configuration's.
                return live, self._backend(serial, backends)
        pair = self._pairs.get((frontend, backend))
        if pair is None:
            target = self._backend(serial, backends)
            try:
                config = live.config if live is not None else _frontend(frontend, backend, frontends[frontend])
                pair = LiveFrontend(self._worker, config, target)
                pair.retired = live is None
                pair.find_way()
            except _NONSENSE as error:
                raise _unknown(serial, error) from None
            self._pairs[frontend, backend] = pair
        return pair, pair.backend

    def _backend(self, serial: SerialConnection, backends: Proxies) -> LiveBackend:
        """The connection's backend, from now on among the worker's."""
        name = serial.backend
        live = self._worker.backends.get(name)
        if live is None:
            try:
                live = LiveBackend(self._worker, _backend(name, backends[name]))
            except _NONSENSE as error:
                raise _unknown(serial, error) from None
            self._worker.backends[name] = live
        return live

    def former_server(self, backend: LiveBackend, name: str, backends: Proxies) -> LiveServer | None:
        """The server of that name, which is none of the backend's any more, so that balancing does not choose it; None
        if nothing is known of it."""
        live = self._servers.get((backend.name, name))
        if live is None:
            try:
                record = next(r for r in backends[backend.name]["servers"] if r["name"] == name)
                live = self._servers[backend.name, name] = LiveServer(self._worker, backend, _server(record))
                live.usable = False
            except (StopIteration, KeyError, TypeError, ValueError, IndexError):
                return None
        return live

    def reclaim(self, backend: LiveBackend, name: str) -> LiveServer | None:
        """The server of that name that former_server() has made, if any: it is one of the backend's again."""
        return self._servers.pop((backend.name, name), None)

    def frontends(self) -> Iterable[LiveFrontend]:
        """Those of pairs."""
        return self._pairs.values()


class Places:
    """Where connections belong that are resumed in one turn, in which nothing changes: what was found for one is known
    for the next."""

    def __init__(self, lanes: Lanes, frontends: Proxies | None = None, backends: Proxies | None = None) -> None:
        """With records of what this configuration may have no more."""
        self._lanes = lanes
        self._frontends = frontends or {}
        self._backends = backends or {}
        self._found: dict[tuple[str, str, str], tuple[LiveFrontend, LiveBackend, LiveServer | None]] = {}
        self._servers: dict[LiveBackend, dict[str, LiveServer]] = {}

    def of(self, serial: SerialConnection) -> tuple[LiveFrontend, LiveBackend, LiveServer | None]:
        """The connection's frontend, its backend, and its server, None if it has none or nothing is known of it.

        Raises PeerError when nothing is known of its frontend or backend."""
        # For the others it depends on more than these.
        plain = serial.http is None and serial.state not in UNDECIDED
        names = (serial.frontend, serial.backend, serial.server)
        found = self._found.get(names) if plain else None
        if found is None:
            frontend, backend = self._lanes.find(serial, self._frontends, self._backends)
            found = frontend, backend, self._server(backend, serial.server) if serial.server else None
            if plain:
                self._found[names] = found
        return found

    def _server(self, backend: LiveBackend, name: str) -> LiveServer | None:
        servers = self._servers.get(backend)
        if servers is None:
            servers = self._servers[backend] = {server.name: server for server in backend.servers}
        return servers.get(name) or self._lanes.former_server(backend, name, self._backends)
