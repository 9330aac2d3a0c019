"""`show env` and `show activity`: the process behind the service."""

from __future__ import annotations

import os
import time

from hitlessd.runtime.command import Call, Command
from hitlessd.table import PROCESS, Column

__all__ = ["COMMANDS"]

#: HAProxy's names where it counts the same, a thread being a worker.
_ACTIVITY = (
    ("accepted", Column.STOT),
    ("cur_conns", Column.SCUR),
    ("parked", Column.PARKED),
    ("bytes_in", Column.BIN),
    ("bytes_out", Column.BOUT),
    ("bytes_spliced", Column.SPLICED),
)


def _show_env(call: Call) -> str:
    names = call.words[2:3]
    found = {name: value for name, value in os.environ.items() if not names or name == names[0]}
    if names and not found:
        return "Variable not found\n"
    # An empty line ends an answer, so that a value may not bring one.
    return "".join(f"{name}={value}".replace("\n", "\\n") + "\n" for name, value in found.items())


def _show_activity(call: Call) -> str:
    tables = call.control.tables()
    if not tables:
        return ""
    table = tables[0]
    at = table.index[PROCESS] * table.columns
    rows = []
    for worker in range(table.workers):
        with table.slot(worker) as slot:
            rows.append([slot[at + column] for _, column in _ACTIVITY])
    lines = [f"thread_id: 1 (1..{table.workers})\n", f"date_now: {time.time():.6f}\n"]
    for (name, _), values in zip(_ACTIVITY, zip(*rows, strict=True), strict=True):
        lines.append(f"{name}: {sum(values)} [ {' '.join(map(str, values))} ]\n")
    return "".join(lines)


COMMANDS = (
    Command(
        ("show", "activity"),
        "show activity",
        "show per-thread activity stats (for support/developers)",
        _show_activity,
        scope="generation",
    ),
    Command(
        ("show", "env"),
        "show env [var]",
        "dump environment variables known to the process",
        _show_env,
        "operator",
        privileged=True,
    ),
)
