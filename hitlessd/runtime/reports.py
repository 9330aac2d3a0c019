"""Commands that tell what the process is, counts and has seen."""

from __future__ import annotations

import time

from hitlessd.runtime.command import Call, Command, integer, without_empty_lines
from hitlessd.runtime.info import event_date, info_fields, show_info, show_proc
from hitlessd.runtime.stat import StatFilter, show_stat, stat_rows

__all__ = ["COMMANDS"]


def _show_version(call: Call) -> str:
    return call.control.version + "\n"


def _show_info(call: Call) -> str:
    words = call.words[2:]
    floating, desc = "float" in words, "desc" in words
    fields = info_fields(call.control, call.monotonic, floating)
    if "json" not in words and "typed" not in words:
        return show_info(fields, desc)
    from hitlessd.runtime import typed

    return typed.info_json(fields, floating) if "json" in words else typed.info_typed(fields, floating, desc)


def _show_stat(call: Call) -> str:
    words = list(call.words[2:])
    if words[:1] == ["domain"]:
        if words[1:2] != ["proxy"]:
            return "Invalid statistics domain.\n"
        del words[:2]
    iid = types = sid = -1
    if len(words) >= 3:
        config = call.control.config
        iid = integer(words[0])
        if not iid:
            named = [proxy.iid for proxy in config.frontends if proxy.name == words[0]]
            named += [proxy.iid for proxy in config.backends if proxy.name == words[0]]
            if not named:
                return "No such proxy.\n"
            iid = named[0]
        types, sid = integer(words[1]), integer(words[2])
        del words[:3]
    # HAProxy shows addresses and algorithms from level operator on.
    addresses = call.session.may("operator") or call.session.privileged
    wanted = StatFilter(iid, types, sid, "no-maint" in words, "up" in words, addresses)
    if "json" not in words and "typed" not in words:
        return show_stat(call.control, wanted, time.time())
    from hitlessd.runtime import typed

    rows = stat_rows(call.control, wanted, time.time())
    return typed.stat_json(rows) if "json" in words else typed.stat_typed(rows, "desc" in words)


def _show_schema(_call: Call) -> str:
    from hitlessd.runtime.typed import schema

    return schema()


def _show_proc(call: Call) -> str:
    return show_proc(call.control)


def _show_errors(call: Call) -> str:
    """What is wrong now: why the latest reload was refused, and why a start had to use the stored configuration."""
    control, events = call.control, []
    name = call.words[2] if len(call.words) > 2 else ""
    known = {proxy.name for proxy in control.config.frontends} | {proxy.name for proxy in control.config.backends}
    if name and name not in known and integer(name) <= 0:
        return "No such proxy.\n"
    last = control.last_reload
    if last and not last.ok:
        what = f"{event_date(last.at)} reload {last.number}: refused after {last.duration:.3f} s, nothing was changed"
        events.append((what, last.reason))
    if control.warm:
        what = f"{event_date(control.started_at)} start: the configuration is invalid, the stored one is served"
        events.append((what, control.config_error))
    lines = [f"Total events captured on {event_date(time.time())} : {len(events)}"]
    for what, reason in events:
        lines.append(what)
        lines += ["  " + line for line in reason.splitlines()]
    return without_empty_lines("\n".join(lines))


def _show_startup_logs(call: Call) -> str:
    return without_empty_lines(call.control.startup_logs)


COMMANDS = (
    Command(
        ("show", "errors"),
        "show errors [<px>] [request|response]",
        "report why the last reload was refused",
        _show_errors,
        "operator",
        privileged=True,
    ),
    Command(
        ("show", "info"),
        "show info [desc|json|typed|float]*",
        "report information about the running process",
        _show_info,
        scope="generation",
    ),
    Command(("show", "proc"), "show proc", "show generations and their processes", _show_proc, scope="generation"),
    Command(
        ("show", "startup-logs"),
        "show startup-logs",
        "report warnings of the running configuration",
        _show_startup_logs,
        "operator",
        privileged=True,
    ),
    Command(
        ("show", "schema", "json"), "show schema json", "report schema used for stats", _show_schema, scope="session"
    ),
    Command(
        ("show", "stat"),
        "show stat [desc|json|no-maint|typed|up]*",
        "report counters for each proxy and server",
        _show_stat,
        scope="generation",
    ),
    Command(
        ("show", "version"), "show version", "show version of the current process", _show_version, scope="generation"
    ),
)
