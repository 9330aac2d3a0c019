"""Collecting what is wrong with a configuration: places, wording, nearest words. Nothing here knows an option.

A problem reads `FILE:LINE: [section] option: cannot ...: found X, expected Y; did you mean Z?` and never ends the
reading: a person mends everything in one go.
"""

from __future__ import annotations

from collections.abc import Iterable

from hitlessd.model import Where

__all__ = ["LIMIT", "Enough", "Place", "Problems", "nearest", "quote"]

#: So many problems are told in full; a wrong file (a log, a table) would otherwise answer with a line for each of its
#: own.
LIMIT = 100
_QUOTE_LIMIT = 60


def quote(text: str) -> str:
    """What was found, fit for one line of a terminal: no control or bidirectional characters, not endless."""
    if not text:
        return "nothing"
    if len(text) > _QUOTE_LIMIT:
        text = text[: _QUOTE_LIMIT - 3] + "..."
    if not text.isprintable():
        text = ascii(text)[1:-1]
    return f'"{text}"'


def nearest(word: str, candidates: Iterable[str]) -> str:
    """The candidate that was probably meant, or "" when none is near."""
    from difflib import get_close_matches  # only needed for errors; a reload does not pay for it

    found = get_close_matches(word[:_QUOTE_LIMIT], list(candidates), 1)
    return found[0] if found else ""


class Enough(Exception):
    """LIMIT errors were found."""


class Problems:
    """Every problem and every warning of one reading."""

    def __init__(self) -> None:
        self._errors: list[tuple[int, int, str]] = []
        self._warnings: list[tuple[int, int, str]] = []
        self._order: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._errors)

    def add(self, where: Where, text: str) -> None:
        """Raises Enough after the last one."""
        self._errors.append(self._entry(where, text))
        if len(self._errors) == LIMIT:
            raise Enough

    def warn(self, where: Where, text: str) -> None:
        self._warnings.append(self._entry(where, text))

    def begin(self, file: str) -> None:
        """Say that `file` comes next in the order of reading; decides the order of the messages."""
        self._order.setdefault(file, len(self._order))

    def errors(self) -> list[str]:
        """One message a line, in the order of the files."""
        texts = [text for _, _, text in sorted(self._errors, key=lambda entry: entry[:2])]
        if len(texts) >= LIMIT:
            texts.append(f"cannot list every problem: reading ended after these {LIMIT}")
        return texts

    def warnings(self) -> tuple[str, ...]:
        return tuple(text for _, _, text in sorted(self._warnings, key=lambda entry: entry[:2]))

    def _entry(self, where: Where, text: str) -> tuple[int, int, str]:
        # line 0 stands for a file as a whole
        prefix = str(where) if where.line else where.file
        return (self._order.get(where.file, len(self._order)), where.line, f"{prefix}: {text}")


class Place:
    """A line of a section, able to say what is wrong with it."""

    __slots__ = ("option", "problems", "section", "where")

    def __init__(self, problems: Problems, where: Where, section: str, option: str = "") -> None:
        self.problems = problems
        self.where = where
        self.section = section
        self.option = option

    def refuse(
        self, what: str, found: str | None, expected: str, *, near: Iterable[str] = (), word: str = "", note: str = ""
    ) -> None:
        """Record "cannot WHAT: found FOUND, expected EXPECTED"; `near` are the words that may have been meant by `word`
        (or by `found`). found=None leaves "found" out."""
        text = f"{self.label}: cannot {what}: "
        text += f"expected {expected}" if found is None else f"found {quote(found)}, expected {expected}"
        suggestion = nearest(word or found or "", near) if near else ""
        if suggestion:
            text += f'; did you mean "{suggestion}"?'
        elif note:
            text += f"; {note}"
        self.problems.add(self.where, text)

    def fail(self, text: str) -> None:
        """Record a problem that is worded otherwise; `text` begins with "cannot"."""
        self.problems.add(self.where, f"{self.label}: {text}")

    def warn(self, text: str) -> None:
        self.problems.warn(self.where, f"{self.label}: {text}")

    @property
    def label(self) -> str:
        section = self.section if len(self.section) <= _QUOTE_LIMIT else self.section[: _QUOTE_LIMIT - 3] + "..."
        option = self.option if len(self.option) <= _QUOTE_LIMIT else self.option[: _QUOTE_LIMIT - 3] + "..."
        text = f"[{section}] {option}" if option else f"[{section}]"
        return text if text.isprintable() else ascii(text)[1:-1]
