"""How often the same is said, on a clock of the tests'."""

from __future__ import annotations

import pytest

from hitlessd.events import Event
from hitlessd.quota import Quota


class Book:
    """A log, a clock, and the calls that were asked for."""

    def __init__(self, burst: int = 2, period: float = 10.0) -> None:
        self.now = 100.0
        self.lines: list[tuple[str, Event | None, object]] = []
        self.wakes: list[float] = []
        self.quota = Quota(self._log, lambda: self.now, self.wakes.append, burst, period)

    def _log(self, severity: str, message: str, /, *, event: Event | None = None, **fields: object) -> None:
        assert severity == "err"
        self.lines.append((message, event, fields.get("suppressed")))

    def say(self, *messages: str, about: object = None, event: Event = Event.SERVER_UP) -> None:
        for message in messages:
            self.quota("err", message, event=event, about=about)

    def turn(self, seconds: float) -> None:
        """Let time pass, and do what was asked for."""
        self.now += seconds
        due, self.wakes[:] = [at for at in self.wakes if at <= self.now], [at for at in self.wakes if at > self.now]
        for _ in due:
            self.quota.settle()

    @property
    def texts(self) -> list[str]:
        return [message for message, _, _ in self.lines]


def test_what_is_within_the_quota_is_said_at_once_and_asks_for_nothing() -> None:
    book = Book()
    book.say("a", "b")
    book.turn(10.0)
    book.say("c", "d")
    assert book.texts == ["a", "b", "c", "d"]
    assert book.wakes == []


def test_the_last_of_what_is_held_back_is_said_at_the_end_with_the_number_of_the_others() -> None:
    book = Book()
    book.say("a", "b", "c", "d", "e")
    assert book.texts == ["a", "b"]
    assert book.wakes == [110.0]
    book.turn(9.9)
    assert len(book.lines) == 2
    book.turn(0.1)
    assert book.lines[2:] == [("e (2 similar messages suppressed)", Event.SERVER_UP, 2)]


def test_one_that_is_held_back_is_said_as_it_is() -> None:
    book = Book()
    book.say("a", "b", "c")
    book.turn(10.0)
    assert book.lines[2:] == [("c", Event.SERVER_UP, None)]


def test_a_flood_is_one_line_a_period() -> None:
    book = Book(burst=1)
    for number in range(1000):
        book.say(str(number))
        book.turn(0.1)
    assert len(book.lines) <= 11
    book.turn(10.0)
    book.turn(10.0)
    assert book.texts[-1].startswith("999")
    assert sum(1 if count is None else int(str(count)) + 1 for _, _, count in book.lines) == 1000


def test_matters_are_told_apart_and_events_that_share_one_are_not() -> None:
    book = Book(burst=1)
    book.say("up", about="s1")
    book.say("down", about="s1", event=Event.SERVER_DOWN)
    book.say("up", about="s2")
    book.turn(10.0)
    assert [(text, event) for text, event, _ in book.lines] == [
        ("up", Event.SERVER_UP),
        ("up", Event.SERVER_UP),
        ("down", Event.SERVER_DOWN),
    ]


def test_too_many_matters_are_one() -> None:
    book = Book(burst=1)
    for number in range(1000):
        book.say("x", about=number)
    assert len(book.lines) == 101
    book.turn(10.0)
    assert len(book.lines) == 102
    book.turn(10.0)
    book.say("y", about="new")
    assert book.texts[-1] == "y"


@pytest.mark.parametrize("held", [0, 3])
def test_the_end_says_what_was_held_back(held: int) -> None:
    book = Book()
    book.say("a", "b", *"c" * held)
    book.quota.close()
    book.quota.close()
    assert len(book.lines) == 2 + bool(held)
