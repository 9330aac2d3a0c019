"""What hitlessctl prints, and how it ends. Imported by every reload."""

from __future__ import annotations

import os
import sys

__all__ = ["DONE", "INTERRUPTED", "REFUSED", "UNREACHABLE", "USAGE", "Unwritable", "is_terminal", "say"]

#: Exit statuses.
DONE, REFUSED, USAGE, UNREACHABLE = range(4)
INTERRUPTED = 128 + 2  # as a shell says of a program that SIGINT ended


class Unwritable(Exception):
    """Says why the answer could not be printed."""


def is_terminal() -> bool:
    """Whether a person sees the standard output, on something that knows more than lines of text."""
    return sys.stdout is not None and sys.stdout.isatty() and os.environ.get("TERM", "dumb") != "dumb"


def say(text: str, error: bool = False) -> None:
    """Print what came, whatever the terminal's encoding. Raises Unwritable."""
    stream = sys.stderr if error else sys.stdout
    if stream is None:  # closed (`>&-`): nobody wants to know
        return
    if text and not text.endswith("\n"):
        text += "\n"
    try:
        try:
            stream.write(text)
        except UnicodeEncodeError:
            stream.write(text.encode("ascii", "backslashreplace").decode("ascii"))
        stream.flush()
    except OSError as why:
        # Python would complain at its exit about what is left in the buffer.
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())
        os.close(null)
        # The reader may have seen enough (`hitlessctl show stat | head`); of errors there is nobody left to tell.
        if not error and not isinstance(why, BrokenPipeError):
            raise Unwritable(f"cannot write the answer: {why.strerror}") from None
