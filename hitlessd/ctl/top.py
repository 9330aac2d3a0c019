"""`hitlessctl top`: proxies and servers, live. Asks every second, and goes on through reloads and restarts."""

from __future__ import annotations

import select
import sys
import time
from typing import Any

from hitlessd.ctl.board import QUESTIONS, Board, Line, clean
from hitlessd.ctl.connection import Unreachable, ask
from hitlessd.ctl.output import DONE, INTERRUPTED, REFUSED, USAGE, is_terminal, say
from hitlessd.ctl.question import Question
from hitlessd.ctl.terminal import Screen, opened

__all__ = ["top"]

_EVERY = 1.0  # seconds between two refreshes
_AGAIN = 0.2  # seconds until the next attempt when nobody answered
_PATIENCE = 5.0  # seconds for an answer
_SILENCE = 2.0  # seconds without an answer until we say so: a reload is no reason to worry anybody
_KEYS = "arrows/jk choose  d drain  e enable  m maint  w weight  s sort  / filter  q quit"
_HEADING, _FOOTING = 3, 2  # lines above and below the rows


def top(where: str) -> int:
    """Returns the exit status. Raises Unreachable when nobody answers at the start."""
    if not (is_terminal() and sys.stdin is not None and sys.stdin.isatty()):
        say("cannot show a live table: this is no terminal; next step: hitlessctl status", error=True)
        return USAGE
    try:
        import rich  # noqa: F401  (painted with below)
    except ImportError:
        say(
            "cannot show a live table: the package python3-rich is not installed;"
            " next step: apt-get install python3-rich",
            error=True,
        )
        return REFUSED
    board = Board()
    info, stat = ask(where, list(QUESTIONS))
    board.update(info, stat, time.monotonic())
    with opened() as screen:
        try:
            _Top(where, board, screen).run()
        except (EOFError, OSError):  # nobody is there any more
            pass
        except KeyboardInterrupt:  # as good a way to leave as any
            return INTERRUPTED
    return DONE


class _Top:
    def __init__(self, where: str, board: Board, screen: Screen) -> None:
        self._where = where
        self._board = board
        self._screen = screen
        self._question: Question | None = None
        self._commands: list[str] = []
        self._sent = ""  # the command that is being answered
        self._due = time.monotonic()
        self._heard = self._due  # when the latest answer came
        self._trouble = ""

    def run(self) -> None:
        try:
            while not self._board.over:
                self._ask()
                self._screen.paint(_paint(self._board, self._screen.size, self._silence()))
                self._wait()
        finally:
            if self._question:
                self._question.close()

    def _silence(self) -> str:
        silent = time.monotonic() - self._heard
        return f"no answer for {silent:.0f} s: {self._trouble}" if self._trouble and silent > _SILENCE else ""

    def _ask(self) -> None:
        if self._question or (not self._commands and time.monotonic() < self._due):
            return
        self._sent = self._commands.pop(0) if self._commands else ""
        try:
            self._question = Question(self._where, [self._sent] if self._sent else list(QUESTIONS), _PATIENCE)
        except Unreachable as error:
            self._failed(error)

    def _wait(self) -> None:
        now = time.monotonic()
        watched: list[Any] = [self._screen.keyboard, self._screen.woken]
        until = self._due if not self._question else self._question.deadline
        if self._question:
            watched.append(self._question)
        ready = select.select(watched, [], [], max(0.0, min(until - now, _EVERY)))[0]
        if self._screen.woken in ready:
            self._screen.calm()
        if self._screen.keyboard in ready:
            for key in self._screen.pressed():
                self._commands += self._board.key(key)
        if self._question and (self._question in ready or time.monotonic() >= self._question.deadline):
            self._read(self._question)

    def _read(self, question: Question) -> None:
        try:
            answers = question.answers()
        except Unreachable as error:
            self._question = None
            return self._failed(error)
        if answers is None:
            return
        self._question, self._trouble = None, ""
        now = self._heard = time.monotonic()
        if self._sent:
            said = " ".join(answers[0].split())
            self._board.message = f"{self._sent}: {clean(said) or 'done'}"
            self._due = now  # show what came of it
        else:
            self._board.update(answers[0], answers[1], now)
            self._due = max(self._due + _EVERY, now)

    def _failed(self, error: Unreachable) -> None:
        self._trouble = str(error)
        self._due = time.monotonic() + _AGAIN
        if self._sent:
            self._board.message = f"cannot tell whether it was done: {self._sent}; {error}"


def _paint(board: Board, size: tuple[int, int], silence: str) -> list[str]:
    """The screen's lines."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    columns, height = size
    visible = board.visible()
    board.page = max(1, height - _HEADING - _FOOTING)
    at = next((at for at, line in enumerate(visible) if line.key == board.chosen), 0)
    first = max(0, min(at - board.page // 2, len(visible) - board.page))
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold", width=columns)
    table.add_column("PROXY", ratio=3, no_wrap=True)
    table.add_column("NAME", ratio=3, no_wrap=True)
    table.add_column("STATUS", width=9, no_wrap=True)
    for title, width in (("WGHT", 4), ("NOW", 6), ("QUEUE", 5), ("RATE/s", 7), ("IN/s", 6), ("OUT/s", 6)):
        table.add_column(title, width=width, justify="right", no_wrap=True)
    if columns >= 110:
        table.add_column("CHECK", ratio=3, no_wrap=True)
    for line in visible[first : first + board.page]:
        cells = _cells(line)
        style = "reverse" if line.key == board.chosen else ""
        colour = "red" if line.down and line.status != "DRAIN" else "yellow" if line.down else "green"
        texts = [Text(cell, style=colour if at == 2 else "") for at, cell in enumerate(cells)]
        table.add_row(*texts[: 10 if columns >= 110 else 9], style=style)
    info = board.info
    head = (
        f"hitlessd {info.get('Version', '?')}  generation {info.get('Generation', '?')}  up {info.get('Uptime', '?')}"
        f"  sessions {info.get('CurrConns', '?')}  {info.get('SessRate', '?')}/s"
    )
    about = f"{len(visible)} of {len(board.lines)} rows, sorted by {board.sort}"
    about += f", filter: {board.pattern}" if board.pattern else ""
    console = Console(width=columns, height=height, force_terminal=True, highlight=False, legacy_windows=False)
    with console.capture() as capture:
        for text, style in ((head, "bold"), (silence or about, "red" if silence else "dim")):
            console.print(Text(clean(text), style=style, no_wrap=True, overflow="ellipsis"))
        console.print(table)
    lines = capture.get().split("\n")[: height - _FOOTING]
    lines += [""] * (height - _FOOTING - len(lines))
    with console.capture() as capture:
        console.print(Text(clean(board.message), no_wrap=True, overflow="ellipsis"))
        prompt = board.prompt or _KEYS
        console.print(Text(clean(prompt), style="bold" if board.asking else "dim", no_wrap=True, overflow="ellipsis"))
    return (lines + capture.get().split("\n"))[:height]


def _cells(line: Line) -> tuple[str, ...]:
    return (
        line.proxy, line.name, line.status, line.weight, str(line.current), str(line.queue),
        f"{line.rate:.1f}" if line.rate < 1000 else _short(line.rate), _short(line.incoming), _short(line.outgoing),
        line.check,
    )  # fmt: skip


def _short(number: float) -> str:
    """At most 5 characters: 999, 1.2k, 34M."""
    for unit in ("", "k", "M", "G", "T"):
        if number < 1000:
            return f"{number:.1f}{unit}" if unit and number < 10 else f"{number:.0f}{unit}"
        number /= 1000
    return f"{number:.0f}P"
