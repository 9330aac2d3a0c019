"""What `hitlessctl top` shows and does: a table that sorts and filters itself, and what each key means. No I/O."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from hitlessd.ctl.connection import fields
from hitlessd.ctl.csvtext import SERVER, Row, integer, rows
from hitlessd.dataclass import dataclass, field

__all__ = ["QUESTIONS", "SORTS", "Board", "Line", "clean"]

#: What to ask for each refresh.
QUESTIONS = ("show info", "show stat")
#: Orders that `s` goes through.
SORTS = ("configuration", "sessions", "rate", "bytes", "status")
_STATES = {"d": "drain", "e": "ready", "m": "maint"}
_HEAVIEST = 256
_KEEP = 10_000  # rows whose earlier counts are kept for rates


@dataclass(frozen=True, slots=True)
class Line:
    """A row of the table: a frontend, a server or a backend."""

    proxy: str
    name: str
    server: bool
    status: str
    weight: str
    current: int
    queue: int
    rate: float  # sessions a second; of HTTP: requests
    incoming: float  # bytes a second
    outgoing: float
    check: str

    @property
    def key(self) -> tuple[str, str]:
        return self.proxy, self.name

    @property
    def down(self) -> bool:
        return not self.status.startswith(("UP", "OPEN", "no check"))


_ORDERS: Mapping[str, Callable[[Line], tuple[float, ...]]] = {
    "configuration": lambda _line: (),
    "sessions": lambda line: (-line.current,),
    "rate": lambda line: (-line.rate,),
    "bytes": lambda line: (-line.incoming - line.outgoing,),
    "status": lambda line: (not line.down,),
}


@dataclass(slots=True)
class Board:
    """The table, and where its user is. key() returns commands that are to be sent; `over` when it is to end."""

    info: Mapping[str, str] = field(default_factory=dict)
    lines: list[Line] = field(default_factory=list)
    sort: str = SORTS[0]
    pattern: str = ""
    chosen: tuple[str, str] = ("", "")
    message: str = ""
    asking: str = ""  # "filter", "weight", "confirm" while the last line asks for something
    typed: str = ""
    over: bool = False
    page: int = 10  # lines that a page has
    _subject: str = ""  # the server whose weight is asked for
    _command: str = ""  # that waits for a yes
    _counts: dict[tuple[str, str], tuple[int, int, int]] = field(default_factory=dict)
    _at: float = 0.0

    def update(self, info: str, stat: str, now: float) -> None:
        """Answers to QUESTIONS, at a time in seconds of any steady clock."""
        self.info = fields(info)
        before, passed = self._counts, now - self._at
        self._counts, self._at = {}, now
        self.lines = [self._line(row, before, passed) for row in rows(stat)[:_KEEP]]
        visible = self.visible()
        if visible and all(line.key != self.chosen for line in visible):
            self.chosen = visible[0].key

    def _line(self, row: Row, before: Mapping[tuple[str, str], tuple[int, int, int]], passed: float) -> Line:
        key = (clean(row.get("pxname", "")), clean(row.get("svname", "")))
        events = "req_tot" if row.get("mode") == "http" else "stot"
        counts = self._counts[key] = (integer(row, events), integer(row, "bin"), integer(row, "bout"))
        if passed > 0 and key in before:
            # Counters that were cleared begin again.
            rates = [max(0, new - old) / passed for new, old in zip(counts, before[key], strict=True)]
        else:
            rates = [0.0, 0.0, 0.0]
        return Line(
            *key,
            server=row.get("type") == SERVER,
            status=clean(row.get("status", "")),
            weight=clean(row.get("weight", "")),
            current=integer(row, "scur"),
            queue=integer(row, "qcur"),
            rate=rates[0],
            incoming=rates[1],
            outgoing=rates[2],
            check=clean(" ".join(filter(None, (row.get("check_status", ""), row.get("last_chk", ""))))),
        )

    def visible(self) -> list[Line]:
        """What the filter lets through, in order."""
        wanted = self.pattern.lower()
        found = [line for line in self.lines if wanted in f"{line.proxy}/{line.name} {line.status}".lower()]
        return sorted(found, key=_ORDERS[self.sort])

    @property
    def prompt(self) -> str:
        """The last line, while something is asked for."""
        match self.asking:
            case "filter":
                return f"filter: {self.typed}"
            case "weight":
                return f"weight of {self._subject} (0 to {_HEAVIEST}): {self.typed}"
            case "confirm":
                return f"{self._command}? (y/n)"
        return ""

    def key(self, key: str) -> list[str]:
        """A key was pressed."""
        if self.asking == "confirm":
            command, self._command, self.asking = self._command, "", ""
            if key == "y":
                self.message = f"{command} ..."
                return [command]
            self.message = "nothing was changed"
        elif self.asking:
            self._type(key)
        else:
            self._browse(key)
        return []

    def _type(self, key: str) -> None:
        if key == "escape":
            if self.asking == "filter":
                self.pattern = ""
            self.asking = self.typed = ""
        elif key == "enter":
            typed, asked, self.typed, self.asking = self.typed, self.asking, "", ""
            if asked == "weight":
                self._weigh(typed)
        elif key == "backspace":
            self.typed = self.typed[:-1]
        elif len(key) == 1 and len(self.typed) < 64:
            self.typed += key
        if self.asking == "filter":
            self.pattern = self.typed

    def _weigh(self, typed: str) -> None:
        if not (typed.isascii() and typed.isdecimal() and int(typed) <= _HEAVIEST):
            self.message = f"cannot set the weight: found {typed!r}, expected a number from 0 to {_HEAVIEST}"
            return
        self._confirm(f"set server {self._subject} weight {typed}")

    def _browse(self, key: str) -> None:
        self.message = ""
        moves = {"up": -1, "k": -1, "down": 1, "j": 1, "page up": -self.page, "page down": self.page,
                 "home": -_KEEP, "end": _KEEP}  # fmt: skip
        if key in moves:
            self._move(moves[key])
        elif key == "q":
            self.over = True
        elif key == "s":
            self.sort = SORTS[(SORTS.index(self.sort) + 1) % len(SORTS)]
        elif key == "/":
            self.asking, self.typed = "filter", self.pattern
        elif key == "escape":
            self.pattern = ""
        elif key in _STATES or key == "w":
            self._change(key)

    def _move(self, steps: int) -> None:
        visible = self.visible()
        if visible:
            at = next((at for at, line in enumerate(visible) if line.key == self.chosen), 0)
            self.chosen = visible[max(0, min(len(visible) - 1, at + steps))].key

    def _change(self, key: str) -> None:
        if not any(line.server and line.key == self.chosen for line in self.visible()):
            self.message = "cannot change that: choose a server"
        elif key == "w":
            self._subject = "/".join(self.chosen)
            self.asking = "weight"
        else:
            self._confirm(f"set server {'/'.join(self.chosen)} state {_STATES[key]}")

    def _confirm(self, command: str) -> None:
        self._command, self.asking = command, "confirm"


def clean(text: str) -> str:
    """A text that a terminal takes for text."""
    return text if text.isprintable() else "".join(each if each.isprintable() else "?" for each in text)
