"""`hitlessctl status`: asks, and shows the answer as the output can take it."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from typing import Any

from hitlessd.ctl.connection import ask
from hitlessd.ctl.output import DONE, is_terminal, say
from hitlessd.ctl.summary import QUESTIONS, facts, proxy_table, summarize, text

__all__ = ["status"]


def status(where: str, as_json: bool) -> int:
    """Returns the exit status. Raises Unreachable, Unwritable."""
    answers = ask(where, list(QUESTIONS))
    record = summarize(dict(zip(QUESTIONS, answers, strict=True)))
    if as_json:
        say(json.dumps(record, ensure_ascii=False, indent=2))
    elif not (is_terminal() and _show(record)):
        say(text(record, time.time()))
    return DONE


def _show(record: Mapping[str, Any]) -> bool:
    """With colours and tables. False if the library for them is not installed."""
    try:
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text
    except ImportError:
        return False
    head = Table.grid(padding=(0, 2))
    head.add_column(style="bold", no_wrap=True)
    head.add_column()
    for name, said, bad in facts(record, time.time()):
        head.add_row(name, Text(said, style="red" if bad else ""))
    heading, *lines = proxy_table(record)
    table = Table(box=None, pad_edge=False, header_style="bold")
    for at, title in enumerate(heading):
        table.add_column(title, justify="right" if at > 3 else "left", no_wrap=at > 1)
    for line in lines:
        good = line[3].startswith(("UP", "OPEN", "no check"))
        status = Text(line[3], style="green" if good else "yellow" if line[3] == "DRAIN" else "red")
        table.add_row(*(Text(cell) for cell in line[:3]), status, *(Text(cell) for cell in line[4:]))
    console = Console(highlight=False)
    with console.capture() as capture:
        console.print(head)
        console.print()
        console.print(table)
    say(capture.get())
    return True
