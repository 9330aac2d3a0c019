"""From merged sections to the frozen Config: inheritance from [defaults], numbering, and what belongs to one mode
only."""

from __future__ import annotations

from hitlessd.model import (
    Backend,
    Config,
    Frontend,
    Global,
    HttpCheck,
    LogTarget,
    MetricsBind,
    Mode,
    SourceFile,
    StatsSocket,
    Timeouts,
    Where,
)

from . import values
from .attached import Attached
from .checks import check_addresses, check_pages, check_whole
from .formats import log_format_problem
from .lines import log_line, metrics_bind_line, stats_socket_line
from .problems import Place, Problems
from .proxies import Balancing, http_checks
from .resolve import Names
from .sections import Entry, Merged
from .settings import Reader, Settings

__all__ = ["build"]

_WORKERS_LIMIT = 64
_RETRIES = 3  # HAProxy's default
_FIRST_IID = 2  # HAProxy keeps 1 for itself


def build(
    merged: Merged,
    files: tuple[SourceFile, ...],
    names: Names,
    attached: Attached,
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
        global_ = _global(entry, names, problems)
    reader = Reader(names, attached, problems)
    defaults = Settings(Entry("defaults", "", Where("", 0)))
    for entry in merged.of("defaults"):
        defaults = reader.read(entry)
    frontends: list[Frontend] = []
    backends: list[Backend] = []
    proxies: list[Settings] = []
    for iid, entry in enumerate(merged.of("listen", "frontend", "backend"), _FIRST_IID):
        proxy = reader.read(entry, defaults)
        _fit_to_mode(proxy, Place(problems, entry.where, entry.title))
        proxies.append(proxy)
        if entry.kind != "backend":
            frontends.append(_frontend(proxy, iid))
        if entry.kind != "frontend":
            backends.append(_backend(proxy, iid))
    check_addresses(global_, frontends, proxies, problems)
    check_pages(frontends, backends, problems)
    if whole:
        check_whole(merged, files, origin, proxies, problems)
    return Config(
        global_,
        tuple(frontends),
        tuple(backends),
        files + attached.files,
        dict(names.resolved),
        problems.warnings(),
    )


def _global(entry: Entry, names: Names, problems: Problems) -> Global:
    stats: list[StatsSocket] = []
    metrics: list[MetricsBind] = []
    workers, maxconn, hard_stop, log, takeover = 0, 0, None, LogTarget(), False
    reload_timeout, crash_proof = Global().reload_timeout, Global().crash_proof
    park_after, park_timeout = Global().park_after, Global().park_timeout
    stats_maxconn = Global().stats_maxconn
    for name, option in entry.options.items():
        place = Place(problems, option.where, entry.title, option.name)
        text = option.text
        match name:
            case "stats socket":
                for line, where in option.lines:
                    found = stats_socket_line(Place(problems, where, entry.title, option.name), line)
                    if found:
                        stats.append(found)
            case "metrics bind":
                for line, where in option.lines:
                    bind = metrics_bind_line(Place(problems, where, entry.title, option.name), line)
                    if bind:
                        metrics.append(bind)
            case "stats maxconn":
                stats_maxconn = values.integer(place, text, 1, values.INT_MAX) or stats_maxconn
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
                log = log_line(place, text, names) or log
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
        tuple(stats),
        workers,
        maxconn,
        hard_stop,
        log,
        reload_timeout,
        takeover,
        crash_proof,
        park_after,
        park_timeout,
        metrics_binds=tuple(metrics),
        stats_maxconn=stats_maxconn,
    )


def _fit_to_mode(proxy: Settings, place: Place) -> None:
    """Drop what the mode has no use for, with HAProxy's warnings; only what the section inherits goes in silence, where
    HAProxy has no warning either."""
    kind = proxy.entry.kind
    if proxy.http_checks and not proxy.has_http_check:
        if kind != "frontend" and proxy.entry.has("http-check"):
            place.warn("http-check is ignored without `option httpchk`")
        proxy.http_checks = []
    if proxy.mode == "http":
        return
    if proxy.log_format and kind != "backend" and (problem := log_format_problem(proxy.log_format, http=False)):
        option = proxy.entry.options.get("log-format")
        where = option.where if option else place.where  # it may be that of [defaults]
        Place(place.problems, where, proxy.entry.title, "log-format").fail(problem)
    if proxy.asks_hello and not proxy.inspect_delay:
        place.warn(
            "rules ask for the name in a ClientHello, but it is not waited for, so that most connections have none: "
            "expected `tcp-request = inspect-delay TIME`"
        )
    ignored = []
    for name, rules in (("http-request", proxy.http_request), ("http-response", proxy.http_response)):
        if rules:
            rules.clear()
            ignored.append(name)
    if proxy.stats:
        proxy.stats = None
        ignored.append("stats")
    if kind != "backend" and proxy.flags.get("option httplog"):
        proxy.flags |= {"option httplog": False, "option tcplog": True}
        place.warn("option httplog needs `mode = http`, so option tcplog takes its place")
    if proxy.forwardfor:
        proxy.forwardfor = None
        ignored.append("option forwardfor")
    if kind != "frontend":
        if proxy.cookie:
            proxy.cookie = None
            ignored.append("cookie")
        for server in proxy.servers:
            if server.observe == "layer7":
                Place(place.problems, server.where, proxy.entry.title, f"server {server.name}").fail(
                    "cannot observe layer7: expected `mode = http`, which reads answers"
                )
        if proxy.balance and proxy.balance.algorithm in ("uri", "hdr"):
            place.warn(f"balance = {proxy.balance.algorithm} needs `mode = http`, so roundrobin takes its place")
            proxy.balance = Balancing()
    for name in ignored:
        place.warn(f"{name} is ignored: it needs `mode = http`")


def _frontend(proxy: Settings, iid: int) -> Frontend:
    entry = proxy.entry
    target = proxy.default_backend[0] if proxy.default_backend else entry.name if entry.kind == "listen" else ""
    migrate, shutdown = _moving(proxy)
    return Frontend(
        entry.name,
        iid,
        tuple(proxy.binds),
        target,
        Timeouts(**proxy.timeouts),
        proxy.maxconn or 0,
        mode=_mode(proxy),
        where=entry.where,
        migrate=migrate,
        shutdown_on_reload=shutdown,
        tcplog=proxy.flags.get("option tcplog", False),
        dontlognull=proxy.flags.get("option dontlognull", False),
        httplog=proxy.flags.get("option httplog", False),
        log_json=proxy.flags.get("option jsonlog", False),
        log_format=proxy.log_format or "",
        tcp_rules=tuple(proxy.tcp_rules),
        use_backend=tuple(rule for rule, _ in proxy.use_backend),
        rate_limit=proxy.rate_limit or 0,
        inspect_delay=proxy.inspect_delay,
        forwardfor=proxy.forwardfor,
        httpclose=proxy.flags.get("option httpclose", False),
        http_request=tuple(proxy.http_request),
        http_response=tuple(proxy.http_response),
        errorfiles=tuple(sorted(proxy.errorfiles.items())),
        stats=proxy.stats,
    )


def _backend(proxy: Settings, iid: int) -> Backend:
    balancing = proxy.balance or Balancing()
    migrate, shutdown = _moving(proxy)
    return Backend(
        proxy.entry.name,
        iid,
        tuple(proxy.servers),
        balancing.algorithm,
        Timeouts(**proxy.timeouts),
        _RETRIES if proxy.retries is None else proxy.retries,
        proxy.flags.get("option redispatch", False),
        _mode(proxy),
        proxy.entry.where,
        migrate,
        shutdown,
        balance_header=balancing.header,
        balance_draws=balancing.draws,
        balance_uri_len=balancing.uri_len,
        balance_uri_depth=balancing.uri_depth,
        balance_uri_whole=balancing.uri_whole,
        hash_consistent=proxy.hash_consistent or False,
        http_reuse=proxy.http_reuse or "safe",
        cookie=proxy.cookie,
        http_check=_http_check(proxy),
        forwardfor=proxy.forwardfor,
        httpclose=proxy.flags.get("option httpclose", False),
        abortonclose=proxy.flags.get("option abortonclose", False),
        http_request=tuple(proxy.http_request),
        http_response=tuple(proxy.http_response),
        errorfiles=tuple(sorted(proxy.errorfiles.items())),
        stats=proxy.stats,
    )


def _mode(proxy: Settings) -> Mode:
    return proxy.mode or "tcp"


def _http_check(proxy: Settings) -> HttpCheck | None:
    if not proxy.has_http_check:
        return None
    return http_checks(proxy.http_check or HttpCheck(), proxy.http_checks)


def _moving(proxy: Settings) -> tuple[bool, bool]:
    """What becomes of connections at a reload: `migrate` and `shutdown_on_reload`."""
    return proxy.flags.get("option migrate", True), proxy.flags.get("shutdown-on-reload", False)
