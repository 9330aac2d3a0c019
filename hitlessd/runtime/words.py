"""How a line of the runtime API is split into commands and a command into words (management guide, 9.3). No I/O."""

from __future__ import annotations

import re

__all__ = ["split_line", "split_words"]


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
