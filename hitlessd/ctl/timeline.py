"""What `hitlessctl reload -v` and `--json` print of an outcome."""

from __future__ import annotations

import json
import os
import shutil
from typing import TYPE_CHECKING, Any

from hitlessd.ctl.output import is_terminal, say

if TYPE_CHECKING:
    from hitlessd.ctl.reload import Show

__all__ = ["latest", "records", "shower", "timeline"]

#: What happens in a phase, see hitlessd/handover/phases.py.
_MEANING = {
    "start": "the new process starts",
    "configuration": "it reads the configuration",
    "prepare": "it opens listeners and forks workers",
    "accept": "its workers begin to accept",
    "stop": "the old workers stop accepting",
    "commit": "systemd and the runtime API change over",
    "migrate": "old and new workers are connected",
    "move": "connections move",
}
_LEAST, _MOST = 10, 40  # columns of a bar


def records(text: str, name: str) -> list[dict[str, Any]]:
    """An answer in JSON: a list, a list under that name, or a record a line; empty if it is nothing of the kind."""
    try:
        try:
            found = json.loads(text)
        except ValueError:
            found = [json.loads(line) for line in text.splitlines() if line.strip()]
    except ValueError:
        return []
    if isinstance(found, dict):
        found = found.get(name, [found])
    return [each for each in found if isinstance(each, dict)] if isinstance(found, list) else []


def latest(text: str) -> dict[str, Any]:
    """Of the answer to `show reloads json` the youngest; empty if there is none."""
    found = [each for each in records(text, "reloads") if isinstance(each.get("number"), int)]
    return max(found, key=lambda each: int(each["number"]), default={})


def shower(as_json: bool) -> Show:
    """What reload() wants."""

    def show(ok: bool, text: str, history: str) -> None:
        outcome = latest(history)
        if as_json:
            say(json.dumps({**outcome, "ok": ok, "reason": text}, ensure_ascii=False))
            return
        if ok:
            say(text)
        if outcome:
            bars = is_terminal() and _writes_blocks()
            say(
                timeline(
                    outcome, shutil.get_terminal_size((80, 24)).columns if bars else 0, "NO_COLOR" not in os.environ
                )
            )

    return show


def _writes_blocks() -> bool:
    import sys

    try:
        "█".encode(sys.stdout.encoding)
    except (LookupError, UnicodeEncodeError):
        return False
    return True


def timeline(outcome: dict[str, Any], columns: int = 0, colours: bool = False) -> str:
    """A line a phase, from an entry of `show reloads json`, and what came of it.

    `columns` is the width of the terminal for bars of blocks and colours, 0 for plain text.
    """
    try:
        phases = [(str(name), float(seconds)) for name, seconds in outcome.get("phases", ())]
    except (TypeError, ValueError):
        phases = []  # of a version that means something else by it
    duration = outcome.get("duration")
    total = duration if isinstance(duration, int | float) and duration else sum(seconds for _, seconds in phases)
    width = max(_LEAST, min(_MOST, columns - 38)) if columns else 20
    lines, at = [], 0.0
    for index, (name, seconds) in enumerate(phases):
        failed = not outcome.get("ok") and index == len(phases) - 1
        bar = _bar(at, seconds, max(total, at + seconds), width, bool(columns))
        if columns and colours:
            bar = f"\x1b[{31 if failed else 32}m{bar}\x1b[0m"
        what = "it failed here" if failed else _MEANING.get(name, "")
        line = f"{name:<13} {seconds * 1000:>8.1f} ms  {bar}"
        if not columns or columns >= 38 + width + 20:
            line += f"  {what}"
        lines.append(line.rstrip())
        at += seconds
    lines.append(f"{'total':<13} {total * 1000:>8.1f} ms")
    counts = [f"{outcome.get(name, 0)} {name}" for name in ("moved", "kept", "lost")]
    listeners = [f"{outcome.get(name, 0)} {name}" for name in ("taken", "bound", "closed")]
    if outcome.get("ok"):
        lines += [f"connections: {', '.join(counts)}", f"listeners:   {', '.join(listeners)}"]
    elif outcome.get("lost"):
        lines.append(f"connections: {outcome['lost']} lost")
    return "\n".join(lines)


def _bar(at: float, seconds: float, total: float, width: int, blocks: bool) -> str:
    """Where in the whole a phase lies; never empty."""
    if total <= 0:
        return " " * width
    first = min(width - 1, int(at / total * width))
    last = max(first + 1, min(width, round((at + seconds) / total * width)))
    full, empty = ("█", "·") if blocks else ("#", ".")
    return empty * first + full * (last - first) + empty * (width - last)
