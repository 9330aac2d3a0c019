"""Colours, bars and tables for a terminal, and the same without them for a file."""

import os
import shutil
import sys
import unicodedata
from collections.abc import Sequence
from typing import Final, TextIO

_CODES: Final = {
    "bold": "1", "dim": "2", "red": "31", "green": "32", "yellow": "33", "blue": "34", "magenta": "35", "cyan": "36",
}  # fmt: skip
_EIGHTHS: Final = " ▏▎▍▌▋▊▉"
_SPARKS: Final = "▁▂▃▄▅▆▇█"


class Terminal:
    """An output that knows whether it may move the cursor and use colours; respects NO_COLOR and dumb terminals."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self.stream = stream if stream is not None else sys.stdout
        self.live = self.stream.isatty() and os.environ.get("TERM", "dumb") != "dumb"
        self.colours = self.live and "NO_COLOR" not in os.environ
        self._drawn = 0

    @property
    def width(self) -> int:
        return min(shutil.get_terminal_size((100, 24)).columns, 110)

    def paint(self, text: str, *styles: str) -> str:
        """The text in these styles, if there are colours here."""
        if not self.colours or not styles:
            return text
        return f"\x1b[{';'.join(_CODES[style] for style in styles)}m{text}\x1b[0m"

    def line(self, text: str = "") -> None:
        """A line that stays."""
        self.erase()
        print(text, file=self.stream, flush=True)

    def erase(self) -> None:
        """Take away what draw() drew."""
        if self._drawn:
            print(f"\x1b[{self._drawn}F\x1b[J", end="", file=self.stream, flush=True)
            self._drawn = 0

    def draw(self, lines: Sequence[str]) -> None:
        """Lines in the place of those drawn before; nothing if the terminal cannot do that."""
        if self.live:
            back = f"\x1b[{self._drawn}F" if self._drawn else ""
            body = "".join(f"{line}\x1b[K\n" for line in lines)
            print(f"{back}{body}\x1b[J", end="", file=self.stream, flush=True)
            self._drawn = len(lines)


def visible(text: str) -> int:
    """Columns that the text takes, escape sequences aside."""
    columns, skipping = 0, False
    for character in text:
        if skipping:
            skipping = character != "m"
        elif character == "\x1b":
            skipping = True
        elif not unicodedata.combining(character):
            columns += 1
    return columns


def pad(text: str, width: int, right: bool = False) -> str:
    """The text filled up with blanks, at the left if it is to stand at the right."""
    blanks = " " * max(0, width - visible(text))
    return blanks + text if right else text + blanks


def bar(share: float, width: int) -> str:
    """A bar of `share` (0 to 1) of `width` columns, to an eighth of a column."""
    eighths = round(max(0.0, min(1.0, share)) * width * 8)
    full, rest = divmod(eighths, 8)
    return ("█" * full + (_EIGHTHS[rest] if rest else "")).ljust(width)


def sparkline(values: Sequence[float], width: int) -> str:
    """The last `width` values as small columns, the greatest at full height."""
    shown = list(values)[-width:]
    top = max(shown, default=0.0) or 1.0
    return "".join(_SPARKS[min(7, int(value / top * 7.999))] for value in shown).rjust(width)
