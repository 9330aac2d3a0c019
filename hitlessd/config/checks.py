"""The checks across sections: addresses, backends that are named, modes, and what is missing."""

from __future__ import annotations

import os

from hitlessd.model import Backend, Bind, Frontend, Global, InetAddress, SourceFile, UnixAddress, Where

from .problems import Place, Problems
from .sections import Merged
from .settings import Settings

__all__ = ["check_addresses", "check_pages", "check_whole"]


def check_addresses(global_: Global, frontends: list[Frontend], proxies: list[Settings], problems: Problems) -> None:
    """Every address once, among listeners, runtime sockets and those of metrics."""
    taken: dict[tuple[object, ...], tuple[str, Where]] = {}
    stats = [(Bind(socket.address, socket.where), "global", "stats socket") for socket in global_.stats_sockets]
    stats += [(Bind(bind.address, bind.where), "global", "metrics bind") for bind in global_.metrics_binds]
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


def check_pages(frontends: list[Frontend], backends: list[Backend], problems: Problems) -> None:
    """A page is known by the name of its proxy, which a frontend and a backend may share."""
    pages = {frontend.name: frontend.stats for frontend in frontends if frontend.stats}
    for backend in backends:
        other = pages.get(backend.name)
        if backend.stats and other and other != backend.stats:
            Place(problems, backend.stats.where, f"backend {backend.name}", "stats").fail(
                f"cannot have another page than that of [frontend {backend.name}] at {other.where}: expected another "
                "name, or one page"
            )


def check_whole(
    merged: Merged, files: tuple[SourceFile, ...], origin: str, proxies: list[Settings], problems: Problems
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
        answers = proxy.stats or any(rule.action == "use-service" for rule in proxy.http_request)
        if entry.kind != "frontend" and not entry.has("server ") and not proxy.default_backend and not answers:
            place.warn("there is no server, so every connection to it is closed")
        _warn_timeouts(proxy, place)


def _check_frontend(
    proxy: Settings, place: Place, backends: dict[str, Settings], told: set[Where], headers_refused: bool
) -> None:
    entry = proxy.entry
    if "bind" not in entry.options:
        note = "; write [backend NAME] for servers alone" if entry.kind == "listen" else ""
        place.fail(f"cannot accept anything: found no bind, expected at least one{note}")
    targets = [(rule.backend, named_at) for rule, named_at in proxy.use_backend]
    if proxy.default_backend:
        targets.append(proxy.default_backend)
    elif entry.kind == "listen":
        targets.append((entry.name, place))
    elif not targets and "use_backend" not in entry.options and proxy.mode != "http":
        place.fail("cannot pass connections on: found no default_backend, expected one here or in [defaults]")
    for name, named_at in targets:
        if name in backends:
            _check_target(proxy, place, backends[name], named_at, told)
        elif not headers_refused and named_at.where not in told:
            told.add(named_at.where)
            named_at.refuse("use this backend", name, "the name of a [backend] or [listen] section", near=backends)


def _check_target(proxy: Settings, place: Place, target: Settings, named_at: Place, told: set[Where]) -> None:
    ours, theirs = proxy.mode or "tcp", target.mode or "tcp"
    if ours != theirs and named_at.where not in told:
        if named_at.section == "defaults":
            named_at = place  # whose mode it is
        named_at.fail(
            f"cannot use [{target.entry.title}] with `mode = {theirs}`: expected `mode = {ours}` as in "
            f"[{proxy.entry.title}]"
        )
    if any(isinstance(bind.address, UnixAddress) for bind in proxy.binds):
        for server in target.servers:
            if isinstance(server.address, InetAddress) and not server.address.port and server.where not in told:
                told.add(server.where)
                Place(place.problems, server.where, target.entry.title, f"server {server.name}").fail(
                    f"cannot take the port that the client connected to: [{proxy.entry.title}] listens on a unix "
                    "socket, expected ADDRESS:PORT"
                )


def _warn_timeouts(proxy: Settings, place: Place) -> None:
    kind = proxy.entry.kind
    wanted = ["client"] if kind != "backend" else []
    if kind == "backend" or (kind == "listen" and proxy.servers):
        wanted += ["connect", "server"]
    missing = [f"timeout {name}" for name in wanted if name not in proxy.timeouts]
    if missing:
        place.warn(f"{', '.join(missing)}: not set, so a connection whose other side has vanished may stay for ever")
