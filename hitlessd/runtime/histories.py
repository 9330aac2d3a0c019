"""`show reloads` and `show changes`: what has happened to the configuration, for people and as JSON."""

from __future__ import annotations

import time
from typing import Any

from hitlessd.changes import Change
from hitlessd.runtime.command import Call, Command
from hitlessd.runtime.control import ReloadOutcome

__all__ = ["COMMANDS", "change_record", "reload_record"]


def reload_record(outcome: ReloadOutcome) -> dict[str, Any]:
    """An outcome as `show reloads json` has it; times in seconds, `at` since 1970."""
    return {
        "number": outcome.number,
        "ok": outcome.ok,
        "reason": outcome.reason,
        "duration": round(outcome.duration, 6),
        "at": round(outcome.at, 3),
        "generation": outcome.generation,
        "moved": outcome.moved,
        "kept": outcome.kept,
        "lost": outcome.lost,
        "taken": outcome.taken,
        "bound": outcome.bound,
        "closed": outcome.closed,
        "phases": [[name, round(seconds, 6)] for name, seconds in outcome.phases],
    }


def change_record(change: Change) -> dict[str, Any]:
    """A change as `show changes json` has it."""
    item = change.item
    return {
        "kind": item.kind,
        "proxy": item.proxy,
        "server": item.server,
        "value": change.value,
        "configured": change.before,
    }


def _columns(*values: object) -> str:
    *fixed, last = values
    return (" ".join(f"{value!s:<12}" for value in fixed) + f" {last}").rstrip() + "\n"


def _json(value: object) -> str:
    import json

    return json.dumps(value, separators=(",", ":")) + "\n"


def _show_reloads(call: Call) -> str:
    history = call.control.history
    if "json" in call.words[2:]:
        return _json([reload_record(outcome) for outcome in history])
    names = "result took_ms generation taken bound closed moved kept lost"
    lines = [_columns("# number", *names.split(), f"{'ended':<19}  reason")]
    for each in history:
        ended = time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(each.at))
        numbers = (each.generation, each.taken, each.bound, each.closed, each.moved, each.kept, each.lost)
        result = "success" if each.ok else "failure"
        reason = " ".join(each.reason.splitlines()[:1])
        lines.append(_columns(each.number, result, round(each.duration * 1000), *numbers, f"{ended}  {reason}"))
    return "".join(lines)


def _show_changes(call: Call) -> str:
    changes = call.control.changes.items.values()
    if "json" in call.words[2:]:
        return _json([change_record(change) for change in changes])
    lines = ["# kind proxy/server value configured\n"]
    for change in changes:
        item = change.item
        name = "/".join(filter(None, (item.proxy, item.server))) or "-"
        lines.append(f"{item.kind} {name} {_value(change.value)} {_value(change.before)}\n")
    return "".join(lines)


def _value(value: object) -> str:
    if value is None or value == "":
        return "-"
    return str(value).lower() if isinstance(value, bool) else str(value)


COMMANDS = (
    Command(
        ("show", "changes"),
        "show changes [json]",
        "list what was changed at run time, and what the configuration says",
        _show_changes,
        "operator",
        privileged=True,
    ),
    Command(
        ("show", "reloads"),
        "show reloads [json]",
        "list the latest reloads and what came of them",
        _show_reloads,
        "operator",
        privileged=True,
    ),
)
