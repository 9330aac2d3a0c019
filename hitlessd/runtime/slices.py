"""Long answers, made in slices: main's loop has checks, handovers and other clients to see to meanwhile. No I/O."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

from hitlessd.runtime.command import Answer, Pieces

__all__ = ["SLICE", "at_once", "in_slices"]

#: Seconds of CPU time that one answer is worked on before others have their turn.
SLICE = 0.01
#: Pieces between two looks at that clock, which is a system call. One takes 0.1 ms at most.
_LOOK = 8


def at_once(texts: Iterator[str]) -> tuple[str, bool]:
    """What can be made in a slice, and whether that is the rest of it."""
    until = time.thread_time() + SLICE
    made = []
    for number, text in enumerate(texts, 1):
        made.append(text)
        if not number % _LOOK and time.thread_time() >= until:
            return "".join(made), False
    return "".join(made), True


def in_slices(texts: Iterator[str]) -> Answer:
    """A command's answer: whole if one slice is enough for it."""
    text, over = at_once(texts)
    if over:
        return text
    made, all_made = text, False

    def next_piece(done: Callable[[str | None], object]) -> None:
        nonlocal made, all_made
        if not made and not all_made:
            made, all_made = at_once(texts)
        text, made = made, ""
        done(None if all_made and not text else text)

    return Pieces(next_piece)
