"""What `hitlessctl status` says, made of the runtime API's answers: a record for programs, and a text of it. No I/O."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from hitlessd.ctl.connection import fields, is_refusal, number
from hitlessd.ctl.csvtext import FRONTEND, SERVER, Row, integer, is_down, rows
from hitlessd.ctl.timeline import records

__all__ = ["QUESTIONS", "age", "facts", "proxy_table", "summarize", "text"]

#: What to ask for a summary. What a daemon does not know, or does not tell everybody, is left out.
QUESTIONS = ("show info", "show stat", "show proc", "show errors", "show reloads json", "show changes json")
_LAST = 5  # reloads that are shown
_ROW = "{:<20} {:<20} {:<4} {:<10} {:>8} {:>12} {:>12}"


def summarize(answers: Mapping[str, str]) -> dict[str, Any]:
    """The record, from the answers by question."""
    info = fields(answers.get("show info", ""))
    table = rows(answers.get("show stat", ""))
    errors = answers.get("show errors", "")
    servers = [row for row in table if row.get("type") == SERVER]
    down = [row for row in servers if is_down(row)]
    frontends = [row for row in table if row.get("type") == FRONTEND]
    stored = info.get("ConfigState") == "stored"
    return {
        "version": info.get("Version", "?"),
        "generation": number(info, "Generation"),
        "pid": number(info, "Pid"),
        "uptime": info.get("Uptime", "?"),
        "uptime_sec": number(info, "Uptime_sec"),
        "stopping": info.get("Stopping") == "1",
        "listeners": number(info, "Listeners"),
        "workers": number(info, "Workers"),
        "configuration": "last good" if stored else "file",
        "errors": [] if is_refusal(errors) else errors.splitlines()[1:],
        "servers": {
            "used": len(servers) - len(down),
            "total": len(servers),
            "out": [
                {
                    "backend": row.get("pxname", ""),
                    "server": row.get("svname", ""),
                    "status": row.get("status", ""),
                    "reason": row.get("last_chk") or row.get("check_desc") or "",
                    "since_sec": integer(row, "lastchg"),
                }
                for row in down
            ],
        },
        "sessions": {
            "current": number(info, "CurrConns"),
            "total": number(info, "CumConns"),
            "rate": number(info, "SessRate"),
            "rate_max": number(info, "MaxSessRate"),
            "parked": number(info, "CurrParked"),
            "resumed": number(info, "CumResumed"),
            "lost": number(info, "CumLost"),
        },
        "requests": {
            "total": sum(integer(row, "req_tot") for row in frontends),
            "rate": sum(integer(row, "req_rate") for row in frontends),
        }
        if any(row.get("mode") == "http" for row in frontends)
        else None,
        "draining": _draining(answers.get("show proc", "")),
        "reloads": {
            "done": number(info, "Reloads"),
            "refused": number(info, "ReloadsRefused"),
            "last": _last(info, answers.get("show reloads json", "")),
        },
        "changes": records(answers.get("show changes json", ""), "changes"),
        "proxies": [_proxy(row) for row in table],
    }


def _proxy(row: Row) -> dict[str, Any]:
    http = row.get("mode") == "http"
    return {
        "proxy": row.get("pxname", ""),
        "name": row.get("svname", ""),
        "mode": row.get("mode", ""),
        "status": row.get("status", ""),
        "current": integer(row, "scur"),
        "total": integer(row, "stot"),
        "requests": integer(row, "req_tot") if http else None,  # HAProxy says 0
    }


def _draining(proc: str) -> list[dict[str, Any]]:
    """PID, type, reloads, uptime, version, generation, sessions, moved, and why the rest has stayed."""
    found = []
    for line in proc.partition("# old workers")[2].splitlines():
        words = line.split(None, 8)
        if len(words) > 6 and words[1] == "master":
            generation, sessions = (int(word) if word.isdecimal() else 0 for word in words[5:7])
            why = words[8] if len(words) > 8 else ""
            found.append({"generation": generation, "pid": int(words[0]), "sessions": sessions, "why": why})
    return found


def _last(info: dict[str, str], history: str) -> list[dict[str, Any]]:
    """The latest reloads, the oldest first."""
    if known := records(history, "reloads"):
        return sorted(known, key=lambda each: int(each.get("number", 0)))[-_LAST:]
    last, _, result = info.get("LastReload", "none").partition(" ")
    if not last.isdecimal():
        return []
    duration = number(info, "LastReload_duration_ms") / 1000
    at = number(info, "LastReload_time_sec")
    return [{"number": int(last), "ok": result == "success", "duration": duration, "at": at}]


# For people


def facts(record: Mapping[str, Any], now: float) -> list[tuple[str, str, bool]]:
    """Lines of a name, what is to be said, and whether it is bad. `now` is CLOCK_REALTIME seconds."""
    sessions, servers, reloads = record["sessions"], record["servers"], record["reloads"]
    stopping = ", stopping" if record["stopping"] else ""
    lines: list[tuple[str, str, bool]] = [
        (
            "hitlessd",
            f"{record['version']}, generation {record['generation'] or '?'}, pid {record['pid'] or '?'},"
            f" up {record['uptime']}{stopping}",
            bool(stopping),
        ),
        (
            "configuration",
            "the last good one; the file is invalid" if record["configuration"] != "file" else "the file",
            record["configuration"] != "file",
        ),
        (
            "listeners",
            f"{record['listeners']}, shared by {record['workers']} worker{'s' if record['workers'] != 1 else ''}",
            False,
        ),
        ("servers", f"{servers['used']} of {servers['total']} in use", False),
    ]
    for each in servers["out"]:
        reason = f": {each['reason']}" if each["reason"] else ""
        since = f" for {age(each['since_sec'])}" if each["since_sec"] else ""
        lines.append(("", f"{each['backend']}/{each['server']} {each['status']}{since}{reason}", True))
    lines.append(
        (
            "sessions",
            f"{sessions['current']} now, {sessions['total']} in all, {sessions['rate']}/s"
            f" (most: {sessions['rate_max']}/s), {sessions['parked']} parked",
            False,
        )
    )
    if sessions["resumed"] or sessions["lost"]:
        text = f"{sessions['resumed']} resumed after restarts and crashes, {sessions['lost']} lost"
        lines.append(("", text, bool(sessions["lost"])))
    if record["requests"]:
        lines.append(("requests", f"{record['requests']['total']} in all, {record['requests']['rate']}/s", False))
    for name, each in zip(_first("draining"), record["draining"], strict=False):
        why = f"; {each['why']}" if each["why"] else ""
        text = f"generation {each['generation']} (pid {each['pid']}, {each['sessions']} sessions{why})"
        lines.append((name, text, False))
    lines.append(("reloads", f"{reloads['done']} done, {reloads['refused']} refused", False))
    lines += [("", _reload(each, now), not each.get("ok")) for each in reversed(reloads["last"])]
    for name, each in zip(_first("changed"), record["changes"], strict=False):
        lines.append((name, _change(each), False))
    lines += [("error" if not index else "", line, True) for index, line in enumerate(record["errors"])]
    return lines


def _first(name: str) -> Sequence[str]:
    """The name for the first line of several."""
    return [name] + [""] * 9999


def _reload(each: Mapping[str, Any], now: float) -> str:
    ok = bool(each.get("ok"))
    text = (
        f"number {each.get('number', '?')}, {'done' if ok else 'refused'} after"
        f" {float(each.get('duration', 0)) * 1000:.0f} ms, {age(max(0, int(now - float(each.get('at', 0)))))} ago"
        f" ({time.strftime('%H:%M:%S', time.localtime(float(each.get('at', 0))))})"
    )
    if ok and "moved" in each:
        return f"{text}: {each['moved']} moved, {each.get('kept', 0)} kept, {each.get('lost', 0)} lost"
    reason = str(each.get("reason", "")).splitlines()
    return f"{text}: {reason[0]}" if reason and not ok else text


def _change(each: Mapping[str, Any]) -> str:
    """Something that an operator has changed: what is in force, and what the configuration says."""
    where = "/".join(str(each[name]) for name in ("proxy", "server") if each.get(name))
    before = each.get("before", each.get("configured"))
    return (
        f"{str(each.get('kind', '?')).replace('-', ' ')} {where}: {_value(each.get('value'))}"
        f"{f' (configured: {_value(before)})' if before is not None else ''}".replace(" : ", ": ")
    )


def _value(value: object) -> str:
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)


def proxy_table(record: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """The heading, and a row a proxy or server."""
    lines: list[tuple[str, ...]] = [("PROXY", "NAME", "MODE", "STATUS", "NOW", "TOTAL", "REQUESTS")]
    for each in record["proxies"]:
        requests = "" if each["requests"] is None else str(each["requests"])
        names = (each["proxy"], each["name"], each["mode"], each["status"])
        lines.append((*names, str(each["current"]), str(each["total"]), requests))
    return lines


def text(record: Mapping[str, Any], now: float) -> str:
    """All of it without a terminal's help."""
    lines = [f"{name + ':' if name else '':<15}{said}" for name, said, _ in facts(record, now)]
    return "\n".join([*lines, "", *(_ROW.format(*row).rstrip() for row in proxy_table(record))])


def age(seconds: int) -> str:
    """How long ago, in one unit."""
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds // size} {unit}"
    return f"{seconds} s"
