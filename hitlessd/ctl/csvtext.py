"""The answer to `show stat`, taken apart. Importing csv would cost more than this. No I/O."""

from __future__ import annotations

__all__ = ["BACKEND", "FRONTEND", "SERVER", "Row", "integer", "is_down", "rows"]

Row = dict[str, str]
#: Of a row: its `type`.
FRONTEND, BACKEND, SERVER = "0", "1", "2"


def rows(answer: str) -> list[Row]:
    """The lines by column; empty for what is no such answer."""
    header, *lines = answer.splitlines() or [""]
    if not header.startswith("# pxname,"):
        return []
    names = header.removeprefix("# ").split(",")
    return [dict(zip(names, _cells(line), strict=False)) for line in lines if line]


def _cells(line: str) -> list[str]:
    if '"' not in line:
        return line.split(",")
    cells, quoted = [""], False
    for character in line:
        if character == '"':
            quoted = not quoted
        elif character == "," and not quoted:
            cells.append("")
        else:
            cells[-1] += character
    return cells


def integer(row: Row, name: str) -> int:
    """A cell's number; 0 where it is empty."""
    text = row.get(name, "")
    return int(text) if text.removeprefix("-").isdecimal() else 0


def is_down(row: Row) -> bool:
    """Whether it gets no new connections: DOWN, MAINT, DRAIN, STOP, NOLB."""
    status = row.get("status", "")
    return not status.startswith(("UP", "OPEN", "no check"))
