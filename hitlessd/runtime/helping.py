"""`help`, and the answer to a command that nobody knows: HAProxy's lists, and which commands may have been meant."""

from __future__ import annotations

from collections.abc import Sequence

from hitlessd.runtime.command import Command, Session

__all__ = ["help_for", "unknown"]


def help_for(words: Sequence[str], session: Session, commands: Sequence[Command], always: Sequence[Command]) -> str:
    """The commands that begin with `words`, or all; `always` are those that end every list."""
    known = [command for command in commands if command.allowed(session)]
    heading = "The following commands are valid at this level:\n"
    return _listing(heading, _matches(words, known) if words else known, always)


def unknown(words: Sequence[str], session: Session, commands: Sequence[Command], always: Sequence[Command]) -> str:
    """The answer to a command that does not exist."""
    known = [command for command in commands if command.allowed(session)]
    if found := _matches(words, known) if words else []:
        heading = "Unknown command, but maybe one of the following ones is a better match:\n"
        return _listing(heading, found, always)
    return _listing("Unknown command. Please enter one of the following commands only:\n", known, always)


def _listing(heading: str, commands: Sequence[Command], always: Sequence[Command]) -> str:
    # HAProxy always ends its lists with these three, whatever matched.
    return heading + "".join(f"  {each.usage:<40}: {each.summary}\n" for each in (*commands, *always))


def _matches(words: Sequence[str], known: list[Command]) -> list[Command]:
    """The commands that somebody who typed `words` may have meant: those that begin alike, else that look alike."""
    for length in range(len(words), 0, -1):
        typed = words[:length]
        found = [
            command
            for command in known
            if len(command.words) >= length
            and all(full.startswith(part) for full, part in zip(command.words, typed, strict=False))
        ]
        if found and length == len(words):
            return found
        if found:
            known = found
            break
    text = " ".join(words[:3])[:64]
    scores = [
        (max(_likeness(text, " ".join(command.words[:length])) for length in range(1, 4)), command) for command in known
    ]
    best = max((score for score, _ in scores), default=0.0)
    return [command for score, command in scores if score >= max(0.4, best - 0.2)]


def _likeness(one: str, other: str) -> float:
    """How many pairs of neighbouring characters two texts share: 0 none, 1 all (Dice's coefficient)."""
    pairs = [{f" {text} "[at : at + 2] for at in range(len(text) + 1)} for text in (one.lower(), other)]
    return 2 * len(pairs[0] & pairs[1]) / (len(pairs[0]) + len(pairs[1]))
