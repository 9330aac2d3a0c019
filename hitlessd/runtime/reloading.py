"""`reload`, and how it is answered."""

from __future__ import annotations

from hitlessd.runtime.command import WAIT, Call, Command, Wait, without_empty_lines
from hitlessd.runtime.control import ReloadOutcome

__all__ = ["COMMANDS", "reload_answer"]


def _reload(call: Call) -> Wait:
    call.promise(call.control.request_reload(call.answer))
    return WAIT


def reload_answer(outcome: ReloadOutcome) -> str:
    """The answer to `reload`, as HAProxy's master CLI gives it: a line with the result, a separator, the messages."""
    return f"Success={int(outcome.ok)}\n--\n" + without_empty_lines(outcome.reason)


COMMANDS = (
    Command(
        ("reload",),
        "reload",
        "load the configuration into a new generation, answer when it serves",
        _reload,
        "admin",
        privileged=True,
    ),
)
