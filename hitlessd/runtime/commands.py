"""All commands of the runtime API, and who answers which. No I/O: the server owns the sockets.

The words are HAProxy 2.6's (management guide, 9.3 and 9.4.1), so that existing tools understand the answers. Imported
with the first command that comes: a reload does not wait for what it may never need.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from hitlessd.runtime import (
    administer,
    conversation,
    histories,
    innards,
    listening,
    reloading,
    reports,
    serverlists,
    sessions,
)
from hitlessd.runtime.addressing import aim, find, narrowed
from hitlessd.runtime.command import DENIED, Answer, Call, Command
from hitlessd.runtime.helping import help_for, unknown
from hitlessd.runtime.words import split_words

__all__ = ["COMMANDS", "execute"]


def execute(command: bytes, call_with: Callable[[Sequence[str]], Call]) -> Answer:
    """Run one command and return its answer. Never raises for bad input."""
    words = split_words(command)
    call = call_with(words)
    session, target = call.session, call.session.target
    if words and words[0].startswith("@"):
        named = aim(words[0], call.control)
        if named is None:
            return _missing(words[0])
        target = named
        call.words = words = words[1:]
        if not words:
            session.target = target
            return ""
    for length in range(min(len(words), _LONGEST), 0, -1):
        if found := _BY_WORDS.get(tuple(words[:length])):
            return _run(found, call, target) if found.allowed(session) else DENIED
    return unknown(words, session, COMMANDS, _ALWAYS)


def _run(command: Command, call: Call, target: int) -> Answer:
    if target:
        info = find(target, call.control)
        if info is None and command.scope != "session":
            return _missing(f"@{target}")
        if info is not None and (refusal := narrowed(call, command, info)):
            return refusal
    return command.run(call)


def _missing(prefix: str) -> str:
    return f"Can't find the target PID matching the prefix '{prefix}'\n"


def _help(call: Call) -> str:
    return help_for(call.words[1:], call.session, COMMANDS, _ALWAYS)


#: In the order of HAProxy's `help`: alphabetical, then the three that every list ends with.
COMMANDS: tuple[Command, ...] = tuple(
    sorted(
        (
            *administer.COMMANDS,
            *conversation.COMMANDS,
            *histories.COMMANDS,
            *innards.COMMANDS,
            *listening.COMMANDS,
            *reloading.COMMANDS,
            *reports.COMMANDS,
            *serverlists.COMMANDS,
            *sessions.COMMANDS,
        ),
        key=lambda command: command.words,
    )
)
_ALWAYS = (Command(("help",), "help [<command>]", "list matching or all commands", _help), *conversation.LAST)
_BY_WORDS = {command.words: command for command in (*COMMANDS, *_ALWAYS)}
_LONGEST = max(map(len, _BY_WORDS))
