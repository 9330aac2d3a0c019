"""What a command of the runtime API is, what it is called with, and the forms that its answer may have. No I/O.

Each family of commands is a module with a tuple COMMANDS; commands.py puts them together.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

from hitlessd.dataclass import dataclass, field
from hitlessd.model import InetAddress, Level, StatsSocket
from hitlessd.runtime.control import Control, ReloadOutcome

__all__ = [
    "DENIED",
    "IDLE_TIMEOUT",
    "LEVELS",
    "WAIT",
    "Answer",
    "Call",
    "Command",
    "Pieces",
    "Session",
    "Wait",
    "address_text",
    "integer",
    "later",
    "without_empty_lines",
]

LEVELS: tuple[Level, ...] = ("user", "operator", "admin")
IDLE_TIMEOUT = 10.0  # seconds; HAProxy's default for `stats timeout`
DENIED = "Permission denied\n"


class Wait:
    """The type of WAIT."""


#: Instead of an answer: it will come later, through Call.answer.
WAIT = Wait()


class Pieces:
    """Instead of an answer: one that comes later and in pieces.

    `next(done)` asks for the next piece; done(text), called once and later, gets it, None at the end.
    """

    def __init__(self, ask: Callable[[Callable[[str | None], object]], object]) -> None:
        self.next = ask


def later(ask: Callable[[Callable[[str], object]], object]) -> Pieces:
    """An answer in one piece that comes later: `ask(done)` is called once, done(text) once, maybe at once."""
    asked = False

    def next_piece(done: Callable[[str | None], object]) -> None:
        nonlocal asked
        if asked:
            done(None)
        else:
            asked = True
            ask(done)

    return Pieces(next_piece)


#: A text, empty or ending in a newline, or one that comes later.
Answer = str | Wait | Pieces


@dataclass(slots=True)
class Session:
    """What one client may do and how it wants its answers."""

    level: Level
    #: The peer is root or has our own uid: it could trace or stop this process, so that it may read what there is and
    #: reload, whatever the socket's level. Lowering the level gives this up too.
    privileged: bool = False
    prompt: bool = False
    timed: bool = False  # the prompt shows our age
    target: int = 0  # the generation that is asked, 0 for all; see addressing.py
    timeout: float = IDLE_TIMEOUT  # seconds
    closing: bool = False  # the client asked to be disconnected

    def may(self, level: Level) -> bool:
        return LEVELS.index(self.level) >= LEVELS.index(level)

    def ending(self, age: float) -> str:
        """What follows an answer: an empty line, then the prompt if it is wanted. `age`: the process's, in seconds."""
        if not self.prompt:
            return "\n"
        whole = max(0, int(age))
        days, hours, minutes, seconds = whole // 86400, whole // 3600 % 24, whole // 60 % 60, whole % 60
        uptime = f"[{days}:{hours:02}:{minutes:02}:{seconds:02}]" if self.timed else ""
        return f"\n{self.target or ''}{uptime}> "


@dataclass(slots=True)
class Call:
    """One command being executed."""

    words: Sequence[str]
    session: Session
    control: Control
    sockets: Sequence[StatsSocket]
    monotonic: float  # the loop's time now
    answer: Callable[[ReloadOutcome], None]  # takes the outcome for which a command WAITs
    promise: Callable[[int], None] = field(default=lambda _number: None)  # hears the number of the reload waited for


class Command(NamedTuple):
    """An entry of the table of commands. Whoever may not use it is denied before `run` is called."""

    words: tuple[str, ...]  # that begin it
    usage: str  # as `help` shows it
    summary: str
    run: Callable[[Call], Answer]
    level: Level = "user"  # that a session needs
    privileged: bool = False  # privileged peers may, whatever their level
    #: Who answers behind a prefix `@N`: that generation; the client's connection, whoever is asked; or all together,
    #: which is the current generation's to say.
    scope: Literal["all", "generation", "session"] = "all"

    def allowed(self, session: Session) -> bool:
        return session.may(self.level) or (self.privileged and session.privileged)


def integer(text: str) -> int:
    """As atoi(3): 0 for what is not a number."""
    match = re.match(r"[-+]?[0-9]{1,9}", text)
    return int(match[0]) if match else 0


def without_empty_lines(text: str) -> str:
    """An empty line ends an answer, so none may be within."""
    return "".join(line.rstrip() + "\n" for line in text.splitlines() if line.strip())


def address_text(stats: StatsSocket) -> str:
    """A stats socket's address as HAProxy writes it: `unix@/path`, `abns@name`, `ipv4@1.2.3.4:5`, `ipv6@[::1]:5`."""
    address = stats.address
    if isinstance(address, InetAddress):
        return f"{'ipv6' if ':' in address.host else 'ipv4'}@{address}"
    return str(address)
