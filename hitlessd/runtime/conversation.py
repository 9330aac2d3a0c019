"""Commands about the connection itself: prompt, level, time-out, the sockets of the runtime API."""

from __future__ import annotations

import re

from hitlessd.model import Level
from hitlessd.runtime.command import DENIED, Call, Command, address_text

__all__ = ["COMMANDS", "LAST"]

_LONGEST_TIMEOUT = 24 * 86400.0


def _prompt(call: Call) -> str:
    session = call.session
    if call.words[1:2] == ["timed"]:  # HAProxy's since 2.9
        session.prompt, session.timed = True, not session.timed
    else:
        session.prompt = not session.prompt
    return ""


def _quit(call: Call) -> str:
    call.session.closing = True
    return ""


def _lower(call: Call) -> str:
    wanted: Level = "operator" if call.words[0] == "operator" else "user"
    if not call.session.may(wanted):
        return DENIED
    call.session.level = wanted
    call.session.privileged = False
    return ""


def _set_timeout(call: Call) -> str:
    words = call.words
    if len(words) < 3 or words[2] != "cli":
        return "'set timeout' only supports 'cli'.\n"
    if len(words) < 4:
        return "Expects an integer value.\n"
    match = re.fullmatch(r"([0-9]{1,12})(us|ms|s|m|h|d|)", words[3])
    unit = {"us": 1e-6, "ms": 1e-3, "": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
    if not match or not int(match[1]):
        return "Invalid timeout value.\n"
    call.session.timeout = min(int(match[1]) * unit[match[2]], _LONGEST_TIMEOUT)
    return ""


def _show_level(call: Call) -> str:
    return call.session.level + "\n"


def _show_sockets(call: Call) -> str:
    return "# socket lvl processes\n" + "".join(f"{address_text(s)} {s.level} all\n" for s in call.sockets)


COMMANDS = (
    Command(
        ("operator",), "operator", "lower the level of the current CLI session to operator", _lower, scope="session"
    ),
    Command(("set", "timeout"), "set timeout [cli] <delay>", "change a timeout setting", _set_timeout, scope="session"),
    Command(
        ("show", "cli", "level"),
        "show cli level",
        "display the level of the current CLI session",
        _show_level,
        scope="session",
    ),
    Command(("show", "cli", "sockets"), "show cli sockets", "dump list of cli sockets", _show_sockets, scope="session"),
    Command(("user",), "user", "lower the level of the current CLI session to user", _lower, scope="session"),
)

#: What every list of commands ends with, behind `help`.
LAST = (
    Command(("prompt",), "prompt", "toggle interactive mode with prompt", _prompt, scope="session"),
    Command(("quit",), "quit", "disconnect", _quit, scope="session"),
)
