"""From merged sections to the frozen Config: inheritance from [defaults], numbering, and the checks across sections."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import get_args

from hitlessd.model import (
    Backend,
    Balance,
    Bind,
    Config,
    Frontend,
    Global,
    InetAddress,
    LogTarget,
    Server,
    SourceFile,
    StatsSocket,
    Timeouts,
    UnixAddress,
    Where,
)

from . import values
from .ini import Option
from .lines import bind_line, log_line, server_line, stats_socket_line
from .problems import Place, Problems
from .resolve import Names
from .sections import Entry, Merged

__all__ = ["build"]

_BALANCES: tuple[Balance, ...] = get_args(Balance)
_WORKERS_LIMIT = 64
_RETRIES = 3  # HAProxy's default
_RETRIES_LIMIT = 65535
_FIRST_IID = 2  # HAProxy keeps 1 for itself


@dataclass(slots=True, eq=False, repr=False)
class _Settings:
    """What one section says itself; None and absence: nothing."""

    entry: Entry
    maxconn: int | None = None
    default_backend: tuple[str, Place] | None = None
    balance: Balance | None = None
    retries: int | None = None
    flags: dict[str, bool] = field(default_factory=dict)
    timeouts: dict[str, float | None] = field(default_factory=dict)  # by their names in Timeouts
    binds: list[Bind] = field(default_factory=list)
    servers: list[Server] = field(default_factory=list)

    def inherit(self, defaults: _Settings) -> None:
        self.maxconn = defaults.maxconn if self.maxconn is None else self.maxconn
        self.balance = self.balance or defaults.balance
        self.retries = defaults.retries if self.retries is None else self.retries
        self.flags = defaults.flags | self.flags
        self.timeouts = defaults.timeouts | self.timeouts
        # HAProxy gives [defaults]' default_backend to every listen, whose own servers are then never used
        if not (self.entry.kind == "listen" and _has(self.entry, "server ")):
            self.default_backend = self.default_backend or defaults.default_backend


def build(
    merged: Merged,
    files: tuple[SourceFile, ...],
    names: Names,
    problems: Problems,
    *,
    origin: str = "",
    whole: bool = True,
) -> Config:
    """Check everything and assemble; the result counts only while `problems` has no error.

    `origin` is what the configuration as a whole is called, else its first file's name. `whole` False: some files could
    not be read, so nothing is said of what may stand in them.
    """
    global_ = Global()
    for entry in merged.of("global"):
        global_ = _global(entry, problems)
    defaults = _Settings(Entry("defaults", "", Where("", 0)))
    for entry in merged.of("defaults"):
        defaults = _settings(entry, names, problems)
    frontends: list[Frontend] = []
    backends: list[Backend] = []
    proxies: list[_Settings] = []
    for iid, entry in enumerate(merged.of("listen", "frontend", "backend"), _FIRST_IID):
        proxy = _settings(entry, names, problems)
        proxy.inherit(defaults)
        proxies.append(proxy)
        if entry.kind != "backend":
            frontends.append(_frontend(proxy, iid))
        if entry.kind != "frontend":
            backends.append(_backend(proxy, iid))
    _check_addresses(global_, frontends, proxies, problems)
    if whole:
        _check_whole(merged, files, origin, proxies, problems)
    return Config(global_, tuple(frontends), tuple(backends), files, dict(names.resolved), problems.warnings())


def _global(entry: Entry, problems: Problems) -> Global:
    stats: list[StatsSocket] = []
    workers, maxconn, hard_stop, log, takeover = 0, 0, None, LogTarget(), False
    reload_timeout, crash_proof = Global().reload_timeout, Global().crash_proof
    park_after, park_timeout = Global().park_after, Global().park_timeout
    for name, option in entry.options.items():
        place = Place(problems, option.where, entry.title, option.name)
        text = option.text
        match name:
            case "stats socket":
                for line, where in option.lines:
                    found = stats_socket_line(Place(problems, where, entry.title, option.name), line)
                    if found:
                        stats.append(found)
            case "workers":
                if text.isdigit():
                    workers = values.integer(place, text, 1, _WORKERS_LIMIT) or 0
                elif text != "auto":
                    place.refuse(
                        "use this number", text, f"auto or a number from 1 to {_WORKERS_LIMIT}", near=("auto",)
                    )
            case "maxconn":
                maxconn = values.integer(place, text, 0, values.INT_MAX) or 0
            case "hard-stop-after":
                hard_stop = values.duration(place, text, zero=False)
            case "log":
                log = log_line(place, text) or log
            case "reload-timeout":
                reload_timeout = values.duration(place, text, zero=False) or reload_timeout
            case "external-takeover":
                takeover = values.switch(place, text) or False
            case "crash-proof":
                crash_proof = values.switch(place, text) or False
            case "park-after":
                park_after = values.duration(place, text) or 0.0  # 0 is of use: park whatever is established
            case "park-timeout":
                park_timeout = values.duration(place, text, zero=False) or park_timeout
    return Global(
        tuple(stats), workers, maxconn, hard_stop, log, reload_timeout, takeover, crash_proof, park_after, park_timeout
    )


def _settings(entry: Entry, names: Names, problems: Problems) -> _Settings:
    settings = _Settings(entry)
    for name, option in entry.options.items():
        place = Place(problems, option.where, entry.title, option.name)
        text = option.text
        if name.startswith("server "):
            _server(settings, place, name[len("server ") :], text, names)
        elif name.startswith("timeout "):
            seconds = values.duration(place, text)
            # 0 means never, as with HAProxy
            settings.timeouts[name[len("timeout ") :].replace("-", "_")] = seconds or None
        elif name.startswith("option ") or name == "shutdown-on-reload":
            settings.flags[name] = _flag(place, option)
        else:
            _setting(settings, place, name, option, problems)
    return settings


def _setting(settings: _Settings, place: Place, name: str, option: Option, problems: Problems) -> None:
    text = option.text
    match name:
        case "bind":
            for line, where in option.lines:
                bind = bind_line(Place(problems, where, settings.entry.title, option.name), line)
                if bind:
                    settings.binds.append(bind)
        case "mode":
            if text != "tcp":
                place.refuse("use this mode", text, "tcp", note="this version relays TCP only")
        case "maxconn":
            settings.maxconn = values.integer(place, text, 0, values.INT_MAX)
        case "retries":
            settings.retries = values.integer(place, text, 0, _RETRIES_LIMIT)
        case "default_backend":
            settings.default_backend = (text, place)
        case "balance":
            settings.balance = _balance(place, text)


def _server(settings: _Settings, place: Place, name: str, text: str, names: Names) -> None:
    valid = values.name(place, name, "server")
    server = server_line(place, name, len(settings.servers) + 1, text, names)
    if valid and server:
        settings.servers.append(server)


def _balance(place: Place, text: str) -> Balance | None:
    for balance in _BALANCES:
        if balance == text:
            return balance
    place.refuse("balance like this", text, "roundrobin, leastconn or source", near=_BALANCES)
    return None


def _flag(place: Place, option: Option) -> bool:
    if option.name.startswith("no "):
        return False
    return values.switch(place, option.text, bare=True) or False


def _frontend(proxy: _Settings, iid: int) -> Frontend:
    entry = proxy.entry
    target = proxy.default_backend[0] if proxy.default_backend else entry.name if entry.kind == "listen" else ""
    return Frontend(
        entry.name, iid, tuple(proxy.binds), target, Timeouts(**proxy.timeouts), proxy.maxconn or 0,
        proxy.flags.get("option tcplog", False), proxy.flags.get("option dontlognull", False), "tcp", entry.where,
        *_moving(proxy),
    )  # fmt: skip


def _backend(proxy: _Settings, iid: int) -> Backend:
    retries = _RETRIES if proxy.retries is None else proxy.retries
    return Backend(
        proxy.entry.name, iid, tuple(proxy.servers), proxy.balance or "roundrobin", Timeouts(**proxy.timeouts), retries,
        proxy.flags.get("option redispatch", False), "tcp", proxy.entry.where,
        *_moving(proxy),
    )  # fmt: skip


def _moving(proxy: _Settings) -> tuple[bool, bool]:
    """What becomes of connections at a reload: `migrate` and `shutdown_on_reload`."""
    return proxy.flags.get("option migrate", True), proxy.flags.get("shutdown-on-reload", False)


def _check_addresses(global_: Global, frontends: list[Frontend], proxies: list[_Settings], problems: Problems) -> None:
    """Every address once, among listeners and runtime sockets."""
    taken: dict[tuple[object, ...], tuple[str, Where]] = {}
    stats = [(Bind(socket.address, socket.where), "global", "stats socket") for socket in global_.stats_sockets]
    titles = [proxy.entry.title for proxy in proxies if proxy.entry.kind != "backend"]
    binds = [
        (bind, title, "bind") for frontend, title in zip(frontends, titles, strict=True) for bind in frontend.binds
    ]
    for bind, title, option in stats + binds:
        address = bind.address
        key: tuple[object, ...] = (address, bind.interface)
        if isinstance(address, UnixAddress) and not address.abstract:
            key = (os.path.normpath(address.path),)
        if key in taken:
            other, where = taken[key]
            Place(problems, bind.where, title, option).fail(
                f"cannot use {address} twice: expected an address of its own, and [{other}] at {where} has it"
            )
        else:
            taken[key] = (title, bind.where)


def _check_whole(
    merged: Merged, files: tuple[SourceFile, ...], origin: str, proxies: list[_Settings], problems: Problems
) -> None:
    backends = {proxy.entry.name: proxy for proxy in proxies if proxy.entry.kind != "frontend"}
    if not any(merged.of("listen", "frontend")) and not merged.headers_refused:
        name = origin or next((source.name for source in files), "(no file)")
        problems.add(
            Where(name, 0), "cannot use this configuration: found no [frontend] or [listen], expected at least one"
        )
    told: set[Where] = set()
    for proxy in proxies:
        entry = proxy.entry
        place = Place(problems, entry.where, entry.title)
        if entry.kind != "backend":
            _check_frontend(proxy, place, backends, told, merged.headers_refused)
        if entry.kind != "frontend" and not _has(entry, "server ") and not proxy.default_backend:
            place.warn("there is no server, so every connection to it is closed")
        _warn_timeouts(proxy, place)


def _check_frontend(
    proxy: _Settings, place: Place, backends: dict[str, _Settings], told: set[Where], headers_refused: bool
) -> None:
    entry = proxy.entry
    if "bind" not in entry.options:
        note = "; write [backend NAME] for servers alone" if entry.kind == "listen" else ""
        place.fail(f"cannot accept anything: found no bind, expected at least one{note}")
    if proxy.default_backend:
        name, named_at = proxy.default_backend
        if name not in backends and not headers_refused and named_at.where not in told:
            told.add(named_at.where)
            named_at.refuse("use this backend", name, "the name of a [backend] or [listen] section", near=backends)
    elif entry.kind == "frontend":
        place.fail("cannot pass connections on: found no default_backend, expected one here or in [defaults]")
    target = backends.get(proxy.default_backend[0] if proxy.default_backend else entry.name)
    if target and any(isinstance(bind.address, UnixAddress) for bind in proxy.binds):
        for server in target.servers:
            if isinstance(server.address, InetAddress) and not server.address.port and server.where not in told:
                told.add(server.where)
                Place(place.problems, server.where, target.entry.title, f"server {server.name}").fail(
                    f"cannot take the port that the client connected to: [{entry.title}] listens on a unix socket, "
                    "expected ADDRESS:PORT"
                )


def _warn_timeouts(proxy: _Settings, place: Place) -> None:
    kind = proxy.entry.kind
    wanted = ["client"] if kind != "backend" else []
    if kind == "backend" or (kind == "listen" and proxy.servers):
        wanted += ["connect", "server"]
    missing = [f"timeout {name}" for name in wanted if name not in proxy.timeouts]
    if missing:
        place.warn(f"{', '.join(missing)}: not set, so a connection whose other side has vanished may stay for ever")


def _has(entry: Entry, prefix: str) -> bool:
    return any(name.startswith(prefix) for name in entry.options)
