"""What is served: the configuration as the files have it, and what operators have changed since. Pure functions.

Servers that were deleted and added come first, then what was changed of those that there are; so the order in which
changes were made does not matter. A change whose item is not in the configuration any more, or is not what it was when
the change was made, has no effect: the file counts.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, get_args

from hitlessd.balance import is_static
from hitlessd.changes import Change, Changes, Item, Kind
from hitlessd.config.server import added_server, numeric_address
from hitlessd.dataclass import replace
from hitlessd.errors import ConfigError
from hitlessd.model import Backend, Config, Frontend, InetAddress, Server

__all__ = ["Difference", "added_words", "configured", "differences", "effective", "free_sid", "keep", "structure"]

MOST_WEIGHT = 256
_INT_MAX = (1 << 31) - 1
_KINDS: tuple[Kind, ...] = get_args(Kind)
#: HAProxy's word for a server's number; `add server` writes it behind the others, so that it stays.
_ID = re.compile(r" id ([1-9][0-9]{0,8})$")


class Difference(NamedTuple):
    """Something that has become another: an item, and what it is now. Of server-added it is the server itself."""

    item: Item
    value: Any


def effective(config: Config, changes: Changes) -> tuple[Config, list[Change]]:
    """The configuration with all changes that have an effect, and those that have none any more."""
    if not changes.items:
        return config, []
    found, dropped = _structure(config, changes)
    known = {(backend.name, server.name): server for backend in found.backends for server in backend.servers}
    kept = {
        item: change
        for item, change in changes.items.items()
        if item.kind not in _STRUCTURE and _fits(found, known, change, dropped)
    }
    backends = []
    for backend in found.backends:
        servers = tuple(_changed(server, backend, kept, dropped) for server in backend.servers)
        backends.append(backend if servers == backend.servers else replace(backend, servers=servers))
    frontends = tuple(_changed_frontend(frontend, kept) for frontend in found.frontends)
    global_ = found.global_
    if change := kept.get(Item("global-maxconn")):
        global_ = replace(global_, maxconn=change.value)
    return replace(found, global_=global_, frontends=frontends, backends=tuple(backends)), dropped


def structure(config: Config, changes: Changes) -> Config:
    """The configuration with those servers that there are, and nothing else changed."""
    return _structure(config, changes)[0]


def configured(config: Config, item: Item) -> Any:
    """What a configuration, or the structure() of one, says of an item; None if it is not there."""
    match item.kind:
        case "global-maxconn":
            return config.global_.maxconn
        case "frontend-state" | "frontend-maxconn":
            frontend = next((each for each in config.frontends if each.name == item.proxy), None)
            if frontend is None:
                return None
            return frontend.maxconn if item.kind == "frontend-maxconn" else "off" if frontend.disabled else "on"
    server = _server(config, item)
    return None if server is None else _said(server, item)


def _said(server: Server, item: Item) -> Any:
    match item.kind:
        case "server-added":
            return None
        case "server-state":
            return _state(server)
        case "server-weight":
            return server.weight
        case "server-maxconn":
            return server.maxconn
        case "server-check":
            # One that was added is not checked until somebody says so (HAProxy management guide, "add server").
            return server.check is not None and not server.added
        case _:
            return _address(server)


def keep(changes: Changes, dropped: Iterable[Change]) -> Changes:
    """All but some."""
    gone = {change.item for change in dropped}
    return Changes({item: change for item, change in changes.items.items() if item not in gone})


def added_words(change: Change) -> tuple[str, int]:
    """The words of a server that was added, and its number."""
    text = str(change.value)
    match = _ID.search(text)
    return (text[: match.start()], int(match[1])) if match else (text, 0)


def free_sid(servers: Iterable[Server]) -> int:
    """The lowest number that none has, as HAProxy gives it."""
    used = {server.sid for server in servers}
    return next(sid for sid in range(1, len(used) + 2) if sid not in used)


def differences(before: Config, after: Config) -> list[Difference]:
    """What has to be done to come from one to the other; both are of the same configuration."""
    found: list[Difference] = []

    def note(kind: Kind, proxy: str, server: str, old: Any, new: Any) -> None:
        if old != new:
            found.append(Difference(Item(kind, proxy, server), new))

    note("global-maxconn", "", "", before.global_.maxconn, after.global_.maxconn)
    for one, other in zip(before.frontends, after.frontends, strict=True):
        note("frontend-state", one.name, "", *("off" if each.disabled else "on" for each in (one, other)))
        note("frontend-maxconn", one.name, "", one.maxconn, other.maxconn)
    for old, new in zip(before.backends, after.backends, strict=True):
        if old is new:
            continue
        was, will_be = ({server.name: server for server in backend.servers} for backend in (old, new))
        for name, server in was.items():
            if name not in will_be or server.added is not will_be[name].added:
                found.append(Difference(Item("server-deleted", old.name, name), True))
        for name, server in will_be.items():
            if name not in was or server.added is not was[name].added:
                found.append(Difference(Item("server-added", new.name, name), server))
                continue
            earlier = was[name]
            if earlier is server:
                continue
            note("server-address", new.name, name, str(earlier.address), str(server.address))
            note("server-maxconn", new.name, name, earlier.maxconn, server.maxconn)
            note("server-check", new.name, name, earlier.check is not None, server.check is not None)
            note("server-weight", new.name, name, earlier.weight, server.weight)
            note("server-state", new.name, name, *(_state(each) for each in (earlier, server)))
    return found


_STRUCTURE: tuple[Kind, ...] = ("server-deleted", "server-added")


def _state(server: Server) -> str:
    return "maint" if server.disabled else "drain" if server.drain else "ready"


def _structure(config: Config, changes: Changes) -> tuple[Config, list[Change]]:
    dropped: list[Change] = []
    gone: set[tuple[str, str]] = set()
    for change in changes.items.values():
        if change.item.kind == "server-deleted":
            server = _server(config, change.item)
            if server is not None and _address(server) == change.before:
                gone.add((change.item.proxy, change.item.server))
            else:
                dropped.append(change)
    new: dict[str, list[Change]] = {}
    for change in changes.items.values():
        if change.item.kind == "server-added":
            new.setdefault(change.item.proxy, []).append(change)
    backends = []
    for backend in config.backends:
        servers = tuple(server for server in backend.servers if (backend.name, server.name) not in gone)
        servers = _with_added(backend, servers, new.pop(backend.name, ()), dropped)
        backends.append(backend if servers == backend.servers else replace(backend, servers=servers))
    dropped += [change for changes_of_one in new.values() for change in changes_of_one]
    return replace(config, backends=tuple(backends)), dropped


def _with_added(
    backend: Backend, servers: tuple[Server, ...], changes: Sequence[Change], dropped: list[Change]
) -> tuple[Server, ...]:
    names, sids = {server.name for server in servers}, {server.sid for server in servers}
    found: list[Server] = []
    late: list[Change] = []
    for change in sorted(changes, key=lambda change: (added_words(change)[1], change.item.server)):
        try:
            if change.item.server in names:
                raise ConfigError(["there is one of that name"])
            words, sid = added_words(change)
            server = added_server(backend, change.item.server, sid, words)
        except ConfigError:
            dropped.append(change)
            continue
        if not sid or sid in sids:
            late.append(change)  # the file has given its number to another one
            continue
        sids.add(sid)
        found.append(server)
    for change in late:
        sid = free_sid((*servers, *found))
        found.append(added_server(backend, change.item.server, sid, added_words(change)[0]))
    return (*servers, *sorted(found, key=lambda server: server.sid))


def _server(config: Config, item: Item) -> Server | None:
    return next(
        (
            server
            for backend in config.backends
            if backend.name == item.proxy
            for server in backend.servers
            if server.name == item.server
        ),
        None,
    )


def _address(server: Server) -> str:
    """As the file has it: a name may have another address each time it is looked up."""
    port = server.address.port if isinstance(server.address, InetAddress) else 0
    return f"{server.hostname}:{port}" if server.hostname else str(server.address)


def _number(most: int) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= most


_SOUND: dict[Kind, Callable[[Any], bool]] = {
    "server-state": lambda value: value in ("ready", "drain", "maint"),
    "server-weight": _number(MOST_WEIGHT),
    "server-address": lambda value: isinstance(value, str),
    "server-maxconn": _number(_INT_MAX),
    "server-check": lambda value: isinstance(value, bool),
    "frontend-state": lambda value: value in ("on", "off"),
    "frontend-maxconn": _number(_INT_MAX),
    "global-maxconn": _number(_INT_MAX),
}


def _fits(config: Config, servers: Mapping[tuple[str, str], Server], change: Change, dropped: list[Change]) -> bool:
    item = change.item
    if item.kind not in _KINDS:
        return False  # of a later version, which may come back
    server = servers.get((item.proxy, item.server))
    said = _said(server, item) if server else configured(config, item)
    if said is None or said != change.before or not _SOUND[item.kind](change.value):
        dropped.append(change)
        return False
    return True


def _changed(server: Server, backend: Backend, kept: dict[Item, Change], dropped: list[Change]) -> Server:
    def value(kind: Kind, otherwise: Any) -> Any:
        change = kept.get(Item(kind, backend.name, server.name))
        return otherwise if change is None else change.value

    fields: dict[str, Any] = {}
    if (state := value("server-state", "")) != "":
        fields |= {"disabled": state == "maint", "drain": state == "drain"}
    weight = value("server-weight", server.weight)
    if weight != server.weight:
        if weight and is_static(backend):
            dropped.append(kept[Item("server-weight", backend.name, server.name)])
        else:
            fields |= {"weight": weight, "configured_weight": server.weight}
    if address := value("server-address", ""):
        try:
            fields |= {"address": numeric_address(address), "hostname": ""}
        except ConfigError:
            dropped.append(kept[Item("server-address", backend.name, server.name)])
    maxconn = value("server-maxconn", server.maxconn)
    if maxconn != server.maxconn:
        fields["maxconn"] = maxconn
    if server.check is not None and not value("server-check", not server.added):
        fields["check"] = None
    return replace(server, **fields) if fields else server


def _changed_frontend(frontend: Frontend, kept: dict[Item, Change]) -> Frontend:
    fields: dict[str, Any] = {}
    if change := kept.get(Item("frontend-state", frontend.name)):
        fields["disabled"] = change.value == "off"
    if change := kept.get(Item("frontend-maxconn", frontend.name)):
        fields["maxconn"] = change.value
    return replace(frontend, **fields) if fields else frontend
