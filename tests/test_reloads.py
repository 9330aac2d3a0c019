"""Who is told what about which reload."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from hitlessd.loop import Loop
from hitlessd.main.reloads import Reloads
from hitlessd.runtime.control import ReloadOutcome


class _Bench:
    def __init__(self) -> None:
        self.reports: list[BaseException] = []
        self.loop = Loop(lambda _what, error: self.reports.append(error))
        self.begun: list[int] = []
        self.reloads = Reloads(self.loop, self.begun.append)
        self.told: dict[str, list[int]] = {}

    def ask(self, who: str) -> int:
        return self.reloads.request(self.caller(who))

    def caller(self, who: str) -> Callable[[ReloadOutcome], None]:
        return lambda outcome: self.told.setdefault(who, []).append(outcome.number)

    def finish(self, ok: bool = True) -> None:
        self.reloads.finished(ReloadOutcome(self.reloads.number, ok))

    def turn(self) -> None:
        self.loop.turn(0)


def test_requests_at_the_same_time_are_one_reload() -> None:
    bench = _Bench()
    assert [bench.ask("a"), bench.ask("b")] == [1, 1]
    assert bench.begun == []  # not inside the call
    bench.turn()
    assert (bench.begun, bench.told, bench.reloads.running) == ([1], {}, True)
    bench.finish()
    assert bench.told == {"a": [1], "b": [1]}
    bench.turn()
    assert (bench.begun, bench.reloads.running) == ([1], False)


def test_requests_during_a_reload_are_about_the_next_one() -> None:
    bench = _Bench()
    bench.ask("a")
    bench.turn()
    assert [bench.ask("b"), bench.ask("c")] == [2, 2]
    bench.turn()
    assert bench.begun == [1]
    bench.finish(False)
    assert bench.told == {"a": [1]}
    bench.turn()
    assert bench.begun == [1, 2]
    bench.finish()
    assert bench.told == {"a": [1], "b": [2], "c": [2]}
    assert (bench.reloads.completed, bench.reloads.refused) == (1, 1)


def test_a_caller_that_asks_again_when_answered_gets_another_reload() -> None:
    bench = _Bench()
    bench.reloads.request(lambda outcome: bench.told.setdefault("first", []).append(bench.ask("again")))
    bench.turn()
    bench.finish()
    bench.turn()
    assert (bench.begun, bench.told) == ([1, 2], {"first": [2]})


def test_the_next_generation_answers_whom_this_one_has_promised_the_outcome() -> None:
    old = _Bench()
    old.ask("a")
    old.turn()
    new = _Bench()
    new.reloads.restore(old.reloads.export())
    new.reloads.note(ReloadOutcome(1, True))
    assert new.reloads.resume(1, new.caller("a")) == 1
    assert new.told == {}  # not inside the call
    assert new.reloads.resume(2, new.caller("b")) == 2
    new.turn()
    assert (new.told, new.begun) == ({"a": [1]}, [2])
    new.finish()
    assert new.told == {"a": [1], "b": [2]}
    assert new.reloads.resume(1, new.caller("late")) == 1
    new.turn()
    assert new.told["late"] == [2]
    assert (new.reloads.completed, new.reloads.refused) == (2, 0)


def test_whom_a_predecessor_could_not_answer_gets_a_new_reload() -> None:
    bench = _Bench()
    bench.reloads.restore({"number": 7, "completed": 5, "refused": 2})
    assert bench.reloads.resume(7, bench.caller("a")) == 8
    bench.turn()
    bench.finish()
    assert (bench.told, bench.reloads.completed) == ({"a": [8]}, 6)


def test_a_reload_that_cannot_begin_is_refused_and_the_next_one_begins() -> None:
    bench = _Bench()
    outcomes: list[ReloadOutcome] = []
    broken = True

    def begin(number: int) -> None:
        if broken:
            raise OSError(24, "Too many open files")
        bench.begun.append(number)

    reloads = Reloads(bench.loop, begin)
    reloads.request(outcomes.append)
    bench.turn()
    assert [(outcome.number, outcome.ok) for outcome in outcomes] == [(1, False)]
    assert "Too many open files" in outcomes[0].reason
    assert len(bench.reports) == 1  # it is a bug, and heard of
    broken = False
    reloads.request(outcomes.append)
    bench.turn()
    assert bench.begun == [2]


def test_a_caller_that_fails_does_not_block_the_next_reload() -> None:
    bench = _Bench()

    def fail(_outcome: ReloadOutcome) -> None:
        raise ValueError("by a test")

    bench.reloads.request(fail)
    bench.turn()
    bench.ask("b")
    with pytest.raises(ValueError, match="by a test"):
        bench.finish()
    bench.turn()
    assert bench.begun == [1, 2]


def test_numbers_go_on_over_generations() -> None:
    one, two = _Bench(), _Bench()
    one.reloads.restore({})
    for ok in (True, False, True):
        one.ask("x")
        one.turn()
        one.finish(ok)
    two.reloads.restore(one.reloads.export())
    assert (two.reloads.number, two.reloads.completed, two.reloads.refused) == (3, 2, 1)


class _AnyOrder(RuleBasedStateMachine):
    """Whatever happens in whatever order: each caller is answered once, about a reload begun after its call."""

    def __init__(self) -> None:
        super().__init__()
        self.bench = _Bench()
        self.asked: dict[str, int] = {}  # number of reloads that had begun when it asked

    def teardown(self) -> None:
        while self.bench.reloads.running or len(self.bench.told) < len(self.asked):
            if self.bench.reloads.running:
                self.bench.finish()
            self.bench.turn()
        assert not self.bench.reports
        self.bench.loop.close()

    @rule()
    def ask(self) -> None:
        who = f"caller {len(self.asked)}"
        self.asked[who] = len(self.bench.begun)
        self.bench.ask(who)

    @rule()
    def turn(self) -> None:
        self.bench.turn()

    @precondition(lambda self: self.bench.reloads.running)
    @rule(ok=st.booleans())
    def finish(self, ok: bool) -> None:
        self.bench.finish(ok)

    @invariant()
    def once_and_about_a_later_one(self) -> None:
        for who, numbers in self.bench.told.items():
            assert len(numbers) == 1
            assert numbers[0] > self.asked[who]
            assert numbers[0] in self.bench.begun

    @invariant()
    def one_at_a_time_in_order(self) -> None:
        assert self.bench.begun == list(range(1, self.bench.reloads.number + 1))


_AnyOrder.TestCase.settings = settings(max_examples=40, stateful_step_count=30)
TestAnyOrder = _AnyOrder.TestCase
