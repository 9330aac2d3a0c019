"""Commands that change something at run time, other than by a reload."""

from __future__ import annotations

from hitlessd.runtime.command import Answer, Call, Command, later
from hitlessd.runtime.sess import session_number

__all__ = ["COMMANDS"]


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


COMMANDS = (
    Command(("shutdown", "session"), "shutdown session [id]", "kill a specific session", _shutdown_session, "admin"),
    Command(
        ("shutdown", "sessions", "server"),
        "shutdown sessions server <bk>/<srv>",
        "kill sessions on a server",
        _shutdown_sessions_server,
        "admin",
    ),
)
