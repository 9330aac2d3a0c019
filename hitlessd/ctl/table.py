"""`show stat` as a table, for a person at a terminal; scripts get the text as it came."""

from __future__ import annotations

from hitlessd.ctl.csvtext import is_down, rows
from hitlessd.ctl.output import say

__all__ = ["show_stat"]

_COLUMNS = {
    "PROXY": "pxname", "NAME": "svname", "STATUS": "status", "WEIGHT": "weight", "NOW": "scur", "TOTAL": "stot",
    "IN": "bin", "OUT": "bout", "QUEUE": "qcur", "RATE": "rate", "ERRORS": "econ", "MOST": "smax",
    "CHECK": "check_status",
}  # fmt: skip
_TEXTS = ("PROXY", "NAME", "STATUS", "CHECK")
_NARROW, _FEW = 100, 8  # columns of a terminal that has room for so many of the above only


def show_stat(answer: str) -> None:
    """Print it; as text if it is no table, or if rich is not installed. Raises Unwritable."""
    found = rows(answer)
    try:
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text
    except ImportError:
        found = []
    if not found:
        return say(answer)
    console = Console(highlight=False)
    columns = dict(list(_COLUMNS.items())[: _FEW if console.width < _NARROW else None])
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in columns:
        name = title in ("PROXY", "NAME")
        table.add_column(title, justify="left" if title in _TEXTS else "right", overflow="fold", no_wrap=not name)
    for row in found:
        style = "red" if is_down(row) else "bold" if row.get("svname") in ("FRONTEND", "BACKEND") else ""
        table.add_row(*(Text(row.get(name, "")) for name in columns.values()), style=style)
    with console.capture() as capture:
        console.print(table)
    say(capture.get())
