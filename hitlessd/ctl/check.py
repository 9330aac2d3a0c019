"""`hitlessctl check`: whether configuration files are valid, and what a reload would change."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any

from hitlessd.config import load
from hitlessd.ctl.connection import Unreachable, ask, fields, is_refusal, number
from hitlessd.ctl.csvtext import BACKEND, FRONTEND, SERVER, rows
from hitlessd.ctl.output import DONE, REFUSED, say
from hitlessd.errors import HitlessdError
from hitlessd.model import Config

__all__ = ["check", "differences"]

#: What the unit's ExecStart= names.
_FILES = ("/etc/hitlessd/hitlessd.conf", "/etc/hitlessd/conf.d")
_QUESTIONS = ["show info", "show stat", "show listeners"]
_Names = dict[str, list[str]]


def check(where: str, files: Sequence[str], as_json: bool) -> int:
    """Returns the exit status: 0 valid, 1 not, whether or not a hitlessd runs."""
    try:
        answers, silence = ask(where, _QUESTIONS), ""
    except Unreachable as error:
        answers, silence = [], str(error)
    if not files:
        files = _running_files(number(fields(answers[0]), "Pid") if answers else 0) or _FILES
    try:
        config = load(files)
    except HitlessdError as error:
        if as_json:
            say(json.dumps({"valid": False, "files": list(files), "errors": str(error).splitlines()}))
        else:
            say(str(error), error=True)
        return REFUSED
    changes = differences(config, *answers[1:]) if answers and not any(map(is_refusal, answers)) else None
    if as_json:
        record: dict[str, Any] = {"valid": True, "files": list(files), "warnings": list(config.warnings)}
        say(json.dumps({**record, "changes": changes}, ensure_ascii=False))
        return DONE
    for warning in config.warnings:
        say(f"warning: {warning}", error=True)
    say(f"Configuration is valid: {' '.join(files)}")
    if changes is None:
        why = silence or next(filter(is_refusal, answers)).strip()
        say(f"cannot say what a reload would change: {why}", error=True)
        return DONE
    say(_text(changes))
    return DONE


def _running_files(pid: int) -> list[str]:
    """What a hitlessd was told to read, as it names it, from the root; empty if that cannot be known."""
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            words = [os.fsdecode(word) for word in file.read().split(b"\0")]
        directory = os.readlink(f"/proc/{pid}/cwd")
    except OSError:
        return []
    if not any("hitlessd" in word for word in words):
        return []  # the pid of another machine, or of a container
    return [os.path.join(directory, name) for option, name in pairwise(words) if option == "-f"]


def differences(config: Config, stat: str, listeners: str) -> dict[str, _Names]:
    """What a reload would open, add, close and remove. `stat` and `listeners` are the daemon's answers."""
    table = rows(stat)
    servers = [f"{backend.name}/{server.name}" for backend in config.backends for server in backend.servers]
    binds = [
        f"{frontend.name} {bind.address}" + (f" interface {bind.interface}" if bind.interface else "")
        for frontend in config.frontends
        for bind in frontend.binds
    ]
    # A socket stays, whichever frontend it serves next.
    open_now, open_then = ([line.partition(" ")[2] for line in lines] for lines in (listeners.splitlines()[1:], binds))
    opened, closed = _compare(open_now, open_then)
    result = {"listeners": {"opened": opened, "closed": closed}}
    for what, kind, then in (
        ("frontends", FRONTEND, [frontend.name for frontend in config.frontends]),
        ("backends", BACKEND, [backend.name for backend in config.backends]),
        ("servers", SERVER, servers),
    ):
        found = [row for row in table if row.get("type") == kind]
        now = [f"{row['pxname']}/{row['svname']}" if kind == SERVER else row["pxname"] for row in found]
        added, removed = _compare(now, then)
        result[what] = {"added": added, "removed": removed}
    return result


def _compare(now: Iterable[str], then: Iterable[str]) -> tuple[list[str], list[str]]:
    """What is new, what has gone; in order, each once."""
    before, after = dict.fromkeys(now), dict.fromkeys(then)
    return [each for each in after if each not in before], [each for each in before if each not in after]


def _text(changes: dict[str, _Names]) -> str:
    lines = [
        f"  {word} {what.removesuffix('s')}{'s' if len(names) > 1 else ''}: {', '.join(names)}"
        for what, words in changes.items()
        for word, names in words.items()
        if names
    ]
    if not lines:
        return "a reload would open, close, add and remove nothing"
    return "\n".join(["a reload would have these", *lines])
