"""The formats of `show info` and `show proc`: HAProxy 2.6's fields in its order (management guide, 9.3 and 9.4.1).

Pure functions of what the control object says; no I/O.
"""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Iterable, Sequence

from hitlessd.runtime.control import Control, GenerationInfo
from hitlessd.table import PROCESS, Column, Table, totals

__all__ = ["event_date", "info_fields", "show_info", "show_proc", "uptime_text"]


#: Of this version; HAProxy's form.
_RELEASED = "2026/11/28"


def uptime_text(seconds: float) -> str:
    """HAProxy's form: `0d 0h00m59s`."""
    whole = max(0, int(seconds))
    return f"{whole // 86400}d {whole // 3600 % 24}h{whole // 60 % 60:02}m{whole % 60:02}s"


def show_info(fields: Sequence[tuple[str, object]], desc: bool = False) -> str:
    """`show info`, a field a line; with `desc` each says what it is."""
    if not desc:
        return "".join(f"{name}: {value}\n" for name, value in fields)
    from hitlessd.runtime.descriptions import describe

    return "".join(f'{name}: {value}:"{describe(name)}"\n' for name, value in fields)


def info_fields(control: Control, monotonic: float, floating: bool = False) -> list[tuple[str, object]]:
    """HAProxy's fields in its order, then our own. `monotonic` is the loop's time now.

    `floating`: some have more digits. What can only be zero here is 0, as tools ask for it.
    """
    tables = control.tables()
    uptime = max(0.0, monotonic - control.started)
    rate, rate_max = control.rates(PROCESS)
    counted = totals(tables, PROCESS)
    sessions = counted[Column.SCUR]
    descriptors = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    generations = control.generations()
    workers = len(generations[0].workers) if generations else 0
    completed, refused = control.reloads
    last = control.last_reload
    return [
        # Clients look for this name before they believe the rest; who we are is said by Product.
        ("Name", "HAProxy"),
        ("Version", control.version),
        ("Release_date", _RELEASED),
        ("Nbthread", 1),
        ("Nbproc", workers),
        ("Process_num", 1),
        ("Pid", control.pid),
        ("Uptime", uptime_text(uptime)),
        ("Uptime_sec", f"{uptime:.6f}" if floating else int(uptime)),
        ("Memmax_MB", 0),
        ("Ulimit-n", descriptors),
        ("Maxsock", descriptors),
        ("Maxconn", control.maxconn),
        ("Hard_maxconn", control.maxconn),
        ("CurrConns", sessions),
        ("CumConns", counted[Column.STOT]),
        ("CumReq", _requests(control, tables)),
        *_zeroes("MaxSslConns CurrSslConns CumSslConns Maxpipes PipesUsed PipesFree"),
        ("ConnRate", rate),
        ("ConnRateLimit", 0),
        ("MaxConnRate", rate_max),
        ("SessRate", rate),
        ("SessRateLimit", 0),
        ("MaxSessRate", rate_max),
        *_zeroes("SslRate SslRateLimit MaxSslRate SslFrontendKeyRate SslFrontendMaxKeyRate"),
        *_zeroes("SslFrontendSessionReuse_pct SslBackendKeyRate SslBackendMaxKeyRate SslCacheLookups SslCacheMisses"),
        *_zeroes("CompressBpsIn CompressBpsOut CompressBpsRateLim ZlibMemUsage MaxZlibMemUsage"),
        ("Tasks", sessions + control.listeners),
        ("Run_queue", 0),
        ("Idle_pct", _idle(generations[0].workers if generations else ())),
        ("node", os.uname().nodename),
        ("Stopping", int(control.stopping)),
        ("Jobs", sessions + control.listeners),
        ("Unstoppable Jobs", 0),
        ("Listeners", control.listeners),
        *_zeroes("ActivePeers ConnectedPeers BusyPolling FailedResolutions"),
        ("TotalBytesOut", counted[Column.BOUT]),
        ("TotalSplicdedBytesOut", counted[Column.SPLICED]),  # HAProxy's spelling
        *_zeroes("DebugCommandsIssued CumRecvLogs"),
        ("Build info", control.version),
        ("Memmax_bytes", 0),
        ("Start_time_sec", f"{control.started_at:.6f}" if floating else int(control.started_at)),
        ("Tainted", 0),
        ("Product", "hitlessd"),
        ("Generation", control.generation),
        ("Generations", len(generations)),
        ("Workers", workers),
        ("Reloads", completed),
        ("ReloadsRefused", refused),
        ("LastReload", f"{last.number} {'success' if last.ok else 'failure'}" if last else "none"),
        ("LastReload_time_sec", int(last.at) if last else 0),
        ("LastReload_duration_ms", round(last.duration * 1000) if last else 0),
        ("ConfigState", "stored" if control.warm else "file"),
        ("CurrParked", counted[Column.PARKED]),
        ("CumResumed", counted[Column.RESUMED]),
        ("CumLost", counted[Column.LOST]),
        ("Start_monotonic_usec", int(control.started * 1e6)),
        ("Now_monotonic_usec", int(monotonic * 1e6)),
    ]


def _idle(workers: Sequence[tuple[int, int]]) -> int:
    """The percentage of its life for which the busiest worker has waited; 100 if nothing is known (proc(5))."""
    ticks, idle = os.sysconf("SC_CLK_TCK"), 100.0
    for pid, _ in workers:
        try:
            with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as file:
                fields = file.read().rpartition(")")[2].split()
            used, began = int(fields[11]) + int(fields[12]), int(fields[19])
        except (OSError, ValueError, IndexError):
            continue  # it has just ended
        age = time.clock_gettime(time.CLOCK_BOOTTIME) * ticks - began
        idle = min(idle, 100.0 * (1.0 - used / age)) if age > 0 else idle
    return max(0, round(idle))


def _zeroes(names: str) -> list[tuple[str, object]]:
    return [(name, 0) for name in names.split()]


def _requests(control: Control, tables: Sequence[Table]) -> int:
    """As HAProxy's: requests, and in TCP mode connections."""
    http = {frontend.name for frontend in control.config.frontends if frontend.mode == "http"}
    total = 0
    for key in {key for table in tables for key in table.keys if key.kind == "frontend"}:
        counted = totals(tables, key)
        requests = counted[Column.REQ_TOT]
        # One that is no longer configured has had requests, if it was one of HTTP.
        total += requests if requests or key.proxy in http else counted[Column.STOT]
    return total


def show_proc(control: Control) -> str:
    """The generations and their workers in the form of HAProxy's master CLI (management guide, 9.4.1)."""
    generations = control.generations()
    refused = control.reloads[1]
    lines = [
        _columns(
            "#<PID>", "<type>", "<reloads>", "<uptime>", "<version>", "<generation>", "<sessions>", "<moved>", "<note>"
        )
    ]
    for info in generations:
        if info.role == "current":
            lines.append(_process(info, "master", f"{info.reloads} [failed: {refused}]"))
    lines.append("# workers\n")
    lines += _workers(info for info in generations if info.role == "current")
    draining = [info for info in generations if info.role == "draining"]
    if draining:
        lines.append("# old workers\n")
    for info in draining:
        lines.append(_process(info, "master", str(info.reloads)))
        lines += _workers([info])
    lines.append("# programs\n")
    return "".join(lines)


def _workers(generations: Iterable[GenerationInfo]) -> list[str]:
    lines = []
    for info in generations:
        # A worker of the current generation has survived no reload; one that drains, as many as its generation.
        reloads = 0 if info.role == "current" else info.reloads
        for pid, sessions in info.workers:
            uptime = _compact_uptime(info.uptime)
            lines.append(_columns(pid, "worker", reloads, uptime, info.version, info.generation, sessions))
    return lines


def _process(info: GenerationInfo, kind: str, reloads: str) -> str:
    sessions = sum(sessions for _, sessions in info.workers)
    return _columns(
        info.pid,
        kind,
        reloads,
        _compact_uptime(info.uptime),
        info.version,
        info.generation,
        sessions,
        info.moved,
        info.note,
    )


def _columns(*values: object) -> str:
    return " ".join(f"{value!s:<15}" for value in values).rstrip() + "\n"


def _compact_uptime(seconds: float) -> str:
    whole = max(0, int(seconds))
    return f"{whole // 86400}d{whole // 3600 % 24:02}h{whole // 60 % 60:02}m{whole % 60:02}s"


def event_date(at: float) -> str:
    """HAProxy's date of an event: `[22/Nov/2026:21:27:25.330]`, local time."""
    return time.strftime("[%d/%b/%Y:%H:%M:%S", time.localtime(at)) + f".{int(at * 1000) % 1000:03}]"
