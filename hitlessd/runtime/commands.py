"""All commands of the runtime API: how a line is split, and who answers it. No I/O: the server owns the sockets.

The words are HAProxy 2.6's (management guide, 9.3 and 9.4.1), so that existing tools understand the answers.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from hitlessd.runtime import administer, conversation, listening, reloading, reports, sessions
from hitlessd.runtime.command import DENIED, Answer, Call, Command
from hitlessd.runtime.helping import help_for, unknown

__all__ = ["COMMANDS", "execute", "split_line", "split_words"]


def split_line(line: bytes) -> list[bytes]:
    """The commands of a line, delimited by `;`. A backslash protects what follows it (management guide, 9.3).

    As with HAProxy a NUL ends the line, whatever follows.
    """
    line = line.partition(b"\0")[0].rstrip(b"\r")
    if b"\\" not in line:
        return line.split(b";")
    # No NUL is left in the line, so one can stand for a protected delimiter.
    hidden = re.sub(rb"\\(.)", lambda match: b"\0" if match[1] == b";" else match[0], line, flags=re.S)
    return [command.replace(b"\0", b"\\;") for command in hidden.split(b";")]


def split_words(command: bytes) -> list[str]:
    """The words of a command; a backslash protects a blank and disappears."""
    words = re.findall(r"(?:\\.|[^ \t\\]|\\$)+", command.decode("utf-8", "replace"), flags=re.S)
    return [re.sub(r"\\(.)", r"\1", word, flags=re.S) for word in words]


def execute(command: bytes, call_with: Callable[[Sequence[str]], Call]) -> Answer:
    """Run one command and return its answer. Never raises for bad input."""
    words = split_words(command)
    call = call_with(words)
    for length in range(min(len(words), _LONGEST), 0, -1):
        if found := _BY_WORDS.get(tuple(words[:length])):
            return found.run(call) if found.allowed(call.session) else DENIED
    return unknown(words, call.session, COMMANDS, _ALWAYS)


def _help(call: Call) -> str:
    return help_for(call.words[1:], call.session, COMMANDS, _ALWAYS)


#: In the order of HAProxy's `help`: alphabetical, then the three that every list ends with.
COMMANDS: tuple[Command, ...] = tuple(
    sorted(
        (
            *administer.COMMANDS,
            *conversation.COMMANDS,
            *listening.COMMANDS,
            *reloading.COMMANDS,
            *reports.COMMANDS,
            *sessions.COMMANDS,
        ),
        key=lambda command: command.words,
    )
)
_ALWAYS = (Command(("help",), "help [<command>]", "list matching or all commands", _help), *conversation.LAST)
_BY_WORDS = {command.words: command for command in (*COMMANDS, *_ALWAYS)}
_LONGEST = max(map(len, _BY_WORDS))
