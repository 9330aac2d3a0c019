"""Commands that change something at run time, other than by a reload: of frontends, of all, and of sessions.

Words, answers and errors are HAProxy 2.6's (management guide, 9.3).
"""

from __future__ import annotations

import re
from collections.abc import Callable

from hitlessd.changes import Change, Item, Kind
from hitlessd.model import Frontend
from hitlessd.runtime import administer_servers
from hitlessd.runtime.command import DENIED, Answer, Call, Command, integer, later
from hitlessd.runtime.sess import session_number

__all__ = ["COMMANDS"]

_INT_MAX = (1 << 31) - 1


def _change(call: Call, kind: Kind, proxy: str, value: object, answer: str = "") -> Answer:
    change = Change(Item(kind, proxy), value)
    return later(lambda done: call.control.administer(change, lambda why: done(why + "\n" if why else answer)))


# Frontends


def _with_frontend(run: Callable[[Call, Frontend], Answer], at: int = 2) -> Callable[[Call], Answer]:
    def found(call: Call) -> Answer:
        if len(call.words) <= at:
            return "A frontend name is expected.\n"
        frontend = next((each for each in call.control.config.frontends if each.name == call.words[at]), None)
        return run(call, frontend) if frontend else "No such frontend.\n"

    return found


def _enable_frontend(call: Call, frontend: Frontend) -> Answer:
    if frontend.shut:
        return "Frontend was previously shut down, cannot enable.\n"
    if not frontend.disabled:
        return "All sockets are already enabled.\n"
    return _change(call, "frontend-state", frontend.name, "on")


def _disable_frontend(call: Call, frontend: Frontend) -> Answer:
    if frontend.shut:
        return "Frontend was previously shut down, cannot disable.\n"
    if frontend.disabled:
        return "All sockets are already disabled.\n"
    return _change(call, "frontend-state", frontend.name, "off")


def _shutdown_frontend(call: Call, frontend: Frontend) -> Answer:
    if frontend.shut:
        return "Frontend was already shut down.\n"
    return later(lambda done: call.control.shut_frontend(frontend.name, lambda why: done(why + "\n" if why else "")))


def _maxconn_frontend(call: Call, frontend: Frontend) -> Answer:
    if len(call.words) < 5:
        return "Integer value expected.\n"
    number = integer(call.words[4])
    if number < 0:
        return "Value out of range.\n"
    return _change(call, "frontend-maxconn", frontend.name, number)


def _maxconn_global(call: Call) -> Answer:
    if len(call.words) < 4:
        return "Expects an integer value.\n"
    number = integer(call.words[3])
    if number > call.control.most_connections:
        return "Value out of range.\n"
    return _change(call, "global-maxconn", "", number if number > 0 else call.control.configured.global_.maxconn)


# Counters


def _clear_counters(call: Call) -> Answer:
    everything = call.words[2:3] == ["all"]
    if everything and not call.session.may("admin"):
        return DENIED
    return later(lambda done: call.control.clear_counters(everything, lambda why: done(why + "\n" if why else "")))


# Sessions


def _shutdown_session(call: Call) -> Answer:
    number = session_number(call.words[2]) if len(call.words) > 2 else 0
    if not number:
        return "Session pointer expected (use 'show sess').\n"
    unknown = "No such session (use 'show sess').\n"
    return later(
        lambda done: call.control.shut_down(number, (), lambda result: done("" if result.get("closed") else unknown))
    )


def _shutdown_sessions_server(call: Call) -> Answer:
    backend, slash, server = (call.words[3] if len(call.words) > 3 else "").partition("/")
    if not slash:
        return "Require 'backend/server'.\n"
    known = {(b.name, s.name) for b in call.control.config.backends for s in b.servers}
    unknown = "" if (backend, server) in known else "No such server.\n"
    return later(
        lambda done: call.control.shut_down(
            0, (backend, server), lambda result: done("" if result.get("closed") else unknown)
        )
    )


def _admin(usage: str, summary: str, run: Callable[[Call], Answer]) -> Command:
    """Its first words, in small letters, are those that begin it."""
    words = re.match(r"[a-z]+(?: [a-z]+)*", usage)
    assert words
    return Command(tuple(words[0].split(" ")), usage, summary, run, "admin")


COMMANDS = (
    *administer_servers.COMMANDS,
    Command(
        ("clear", "counters"),
        "clear counters [all]",
        "clear max statistics counters (or all counters)",
        _clear_counters,
        "operator",
    ),
    _admin("disable frontend <frontend>", "temporarily disable specific frontend", _with_frontend(_disable_frontend)),
    _admin("enable frontend <frontend>", "re-enable specific frontend", _with_frontend(_enable_frontend)),
    _admin(
        "set maxconn frontend <frontend> <value>",
        "change a frontend's maxconn setting",
        _with_frontend(_maxconn_frontend, 3),
    ),
    _admin("set maxconn global <value>", "change the per-process maxconn setting", _maxconn_global),
    _admin("shutdown frontend <frontend>", "stop a specific frontend", _with_frontend(_shutdown_frontend)),
    _admin("shutdown session [id]", "kill a specific session", _shutdown_session),
    _admin("shutdown sessions server <bk>/<srv>", "kill sessions on a server", _shutdown_sessions_server),
)
