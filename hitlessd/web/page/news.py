"""What open pages are told each second, as server-sent events: made once for all of them, whoever asks first. No I/O.

An event is JSON: `t` the time, `r` a list for each row that has changed (its index, then places in Values and what is
there now), `h` sections of the page by their id, as HTML. With `all`, the layout, it says everything, not what changed.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from typing import Any

from hitlessd.web.page.board import Board, Values

__all__ = ["FRESH", "News", "Viewer"]

#: Seconds for which what was looked up counts as now; a little under the interval of those who ask.
FRESH = 0.9

Sections = Callable[[], Mapping[str, str]]


class News:
    """Of one board. `sections()` gives the HTML of those parts of the page that are sent whole."""

    def __init__(self, board: Board, sections: Sections, clock: Callable[[], float] = time.monotonic) -> None:
        self.board = board
        self._sections = sections
        self._clock = clock
        self._at = float("-inf")
        self.number = 0
        self.now = 0  # CLOCK_REALTIME seconds of the latest look
        self.html: Mapping[str, str] = {}
        self._values: list[Values] = []
        self._layout = ""
        self._change = ""
        self._whole = ""

    def refresh(self) -> None:
        """Look again, if it is time to."""
        now = self._clock()
        if now - self._at < FRESH:
            return
        self._at, self.now = now, int(time.time())
        board = self.board
        board.refresh()
        html = self._sections()
        self.number += 1
        self._whole = ""
        if board.layout != self._layout:
            self._change = ""  # everybody gets everything
        else:
            new = {"t": self.now, "r": _differences(self._values, board.values)}
            if changed := {name: text for name, text in html.items() if text != self.html.get(name)}:
                new["h"] = changed
            self._change = _event(new)
        self._layout, self._values, self.html = board.layout, list(board.values), html

    def since(self, number: int) -> str:
        """What somebody who has heard everything up to this number has to hear."""
        self.refresh()
        if number == self.number:
            return ""
        if number == self.number - 1 and self._change:
            return self._change
        if not self._whole:
            rows = [[at, *_all(values)] for at, values in enumerate(self._values)]
            self._whole = _event({"all": self._layout, "t": self.now, "r": rows, "h": self.html})
        return self._whole


class Viewer:
    """One open page; next() is a Feed's. `greeting` are fields that it gets for itself at the beginning."""

    def __init__(self, news: News, greeting: Mapping[str, Any]) -> None:
        self._news = news
        self._number = -1
        self._first = "retry: 1000\n" + _event(greeting)

    def next(self) -> str:
        first, self._first = self._first, ""
        text = first + self._news.since(self._number)
        self._number = self._news.number
        return text


def _event(fields: Mapping[str, Any]) -> str:
    return f"data: {json.dumps(fields, separators=(',', ':'))}\n\n"


def _all(values: Values) -> list[Any]:
    """Places and values in turn."""
    return [word for pair in enumerate(values) for word in pair]


def _differences(before: list[Values], after: list[Values]) -> list[list[Any]]:
    found = []
    for index, (old, new) in enumerate(zip(before, after, strict=True)):
        if old is not new and old != new:
            row: list[Any] = [index]
            for at, (one, other) in enumerate(zip(old, new, strict=True)):
                if one != other:
                    row += (at, other)
            found.append(row)
    return found
