"""Words for the completions of shells: `hitlessctl _complete WORD...`, the last of which is being typed.

Prints one candidate a line, and `:files` where a file is wanted. Never fails, and says nothing else.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence

from hitlessd.ctl.commandline import OPTIONS, OWN
from hitlessd.ctl.connection import Unreachable, ask
from hitlessd.ctl.csvtext import BACKEND, FRONTEND, SERVER, rows
from hitlessd.ctl.output import DONE, say

__all__ = ["complete"]

#: Commands of the runtime API. Words in capitals stand for what there is; `a|b` for either, `...` repeats the last.
_GRAMMAR = """
add server SERVER
clear counters all
del server SERVER
disable frontend FRONTEND
disable agent|health|server SERVER
enable frontend FRONTEND
enable agent|health|server SERVER
get weight SERVER
help
prompt
quit
set maxconn frontend FRONTEND
set maxconn global
set maxconn server SERVER
set server SERVER addr
set server SERVER health up|stopping|down
set server SERVER state ready|drain|maint
set server SERVER weight
set timeout cli
set weight SERVER
show activity|changes|env|errors|listeners|proc|reloads|sess|startup-logs|version
show backend
show cli level|sockets
show info json|typed|desc|float|--json ...
show schema json
show servers conn|state BACKEND
show stat json|typed|desc|no-maint|up|--json ...
shutdown frontend FRONTEND
shutdown session
shutdown sessions server SERVER
"""
_KINDS = {"FRONTEND": FRONTEND, "BACKEND": BACKEND, "SERVER": SERVER}
_FILES = ":files"
_PATIENCE = 1.0  # seconds until somebody at a keyboard has waited too long


def complete(where: str, words: Sequence[str]) -> int:
    """Print the candidates; returns the exit status."""
    *before, typed = words or ("",)
    found = [word for word in _candidates(where, before) if word == _FILES or word.startswith(typed)]
    if found:
        say("\n".join(dict.fromkeys(found)))
    return DONE


def _candidates(where: str, before: list[str]) -> list[str]:
    """What may stand behind these words."""
    command: list[str] = []
    while before:
        word = before.pop(0)
        if word in ("-s", "--timeout") and (not command or command[0] in OWN):
            if not before:
                return [_FILES] if word == "-s" else []
            value = before.pop(0)
            where = value if word == "-s" else where
        elif command or not word.startswith("-"):
            command.append(word)
    if not command:
        return [*OWN, *(line.split()[0] for line in _GRAMMAR.splitlines() if line), *OPTIONS]
    if command[0] in OWN:
        return [*OWN[command[0]], "-s", *([_FILES] if command[0] == "check" else [])]
    return _next(command, lambda kind: _names(where, kind))


def _next(command: Sequence[str], names: Callable[[str], Iterable[str]]) -> list[str]:
    """What may follow."""
    found: list[str] = []
    for line in _GRAMMAR.splitlines():
        pattern = line.split()
        if pattern[-1:] == ["..."]:
            pattern[-1:] = pattern[-2:-1] * max(0, len(command) + 2 - len(pattern))
        if len(pattern) > len(command) and all(
            word in place.split("|") or place in _KINDS for word, place in zip(command, pattern, strict=False)
        ):
            place = pattern[len(command)]
            found += names(place) if place in _KINDS else place.split("|")
    return found


def _names(where: str, kind: str) -> list[str]:
    try:
        answer = ask(where, ["show stat"], time.monotonic() + _PATIENCE)[0]
    except Unreachable:
        return []
    found = [row for row in rows(answer) if row.get("type") == _KINDS[kind]]
    return [f"{row['pxname']}/{row['svname']}" if kind == "SERVER" else row["pxname"] for row in found]
