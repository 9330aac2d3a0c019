"""The formats of `show info` and `show proc`: HAProxy 2.6's fields in its order (management guide, 9.3 and 9.4.1).

Pure functions of what the control object says; no I/O.
"""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Iterable, Sequence

from hitlessd.runtime.control import Control, GenerationInfo
from hitlessd.table import PROCESS, Column, Table, sum_over

__all__ = ["event_date", "show_info", "show_proc", "uptime_text"]


def uptime_text(seconds: float) -> str:
    """HAProxy's form: `0d 0h00m59s`."""
    whole = max(0, int(seconds))
    return f"{whole // 86400}d {whole // 3600 % 24}h{whole // 60 % 60:02}m{whole % 60:02}s"


def show_info(control: Control, monotonic: float) -> str:
    """The lines of `show info`: HAProxy's fields in its order, then our own. `monotonic` is the loop's time now."""
    tables = control.tables()
    uptime = monotonic - control.started
    rate, rate_max = control.rates(PROCESS)
    sessions, total, bytes_out, spliced = (
        sum_over(tables, PROCESS, column) for column in (Column.SCUR, Column.STOT, Column.BOUT, Column.SPLICED)
    )
    parked, resumed, lost = (
        sum_over(tables, PROCESS, column) for column in (Column.PARKED, Column.RESUMED, Column.LOST)
    )
    descriptors = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    generations = control.generations()
    workers = len(generations[0].workers) if generations else 0
    completed, refused = control.reloads
    last = control.last_reload
    fields: list[tuple[str, object]] = [
        ("Name", "hitlessd"),
        ("Version", control.version),
        ("Nbthread", 1),
        ("Nbproc", workers),
        ("Process_num", 1),
        ("Pid", control.pid),
        ("Uptime", uptime_text(uptime)),
        ("Uptime_sec", max(0, int(uptime))),
        ("Memmax_MB", 0),
        ("Ulimit-n", descriptors),
        ("Maxsock", descriptors),
        ("Maxconn", control.maxconn),
        ("Hard_maxconn", control.maxconn),
        ("CurrConns", sessions),
        ("CumConns", total),
        ("CumReq", _requests(control, tables)),
        ("MaxSslConns", 0),
        ("CurrSslConns", 0),
        ("CumSslConns", 0),
        ("ConnRate", rate),
        ("ConnRateLimit", 0),
        ("MaxConnRate", rate_max),
        ("SessRate", rate),
        ("SessRateLimit", 0),
        ("MaxSessRate", rate_max),
        ("node", os.uname().nodename),
        ("Stopping", int(control.stopping)),
        ("Jobs", sessions + control.listeners),
        ("Unstoppable Jobs", 0),
        ("Listeners", control.listeners),
        ("TotalBytesOut", bytes_out),
        ("TotalSplicdedBytesOut", spliced),  # HAProxy's spelling
        ("Build info", control.version),
        ("Memmax_bytes", 0),
        ("Start_time_sec", int(control.started_at)),
        ("Generation", control.generation),
        ("Generations", len(generations)),
        ("Workers", workers),
        ("Reloads", completed),
        ("ReloadsRefused", refused),
        ("LastReload", f"{last.number} {'success' if last.ok else 'failure'}" if last else "none"),
        ("LastReload_time_sec", int(last.at) if last else 0),
        ("LastReload_duration_ms", round(last.duration * 1000) if last else 0),
        ("ConfigState", "stored" if control.warm else "file"),
        ("CurrParked", parked),
        ("CumResumed", resumed),
        ("CumLost", lost),
        ("Start_monotonic_usec", int(control.started * 1e6)),
        ("Now_monotonic_usec", int(monotonic * 1e6)),
    ]
    return "".join(f"{name}: {value}\n" for name, value in fields)


def _requests(control: Control, tables: Sequence[Table]) -> int:
    """As HAProxy's: requests, and in TCP mode connections."""
    http = {frontend.name for frontend in control.config.frontends if frontend.mode == "http"}
    total = 0
    for key in {key for table in tables for key in table.keys if key.kind == "frontend"}:
        requests = sum_over(tables, key, Column.REQ_TOT)
        # One that is no longer configured has had requests, if it was one of HTTP.
        total += requests if requests or key.proxy in http else sum_over(tables, key, Column.STOT)
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
