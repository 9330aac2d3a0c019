"""The timer wheel, on a clock of its own."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from hitlessd.worker.timers import GRAIN, NEVER, Wheel


class Member:
    def __init__(self, due: float) -> None:
        self.bucket = 0
        self.due = due
        self.calls: list[float] = []

    def deadline(self) -> float:
        return self.due

    looked_at = deadline

    def expired(self) -> None:
        self.calls.append(self.due)

    def fired(self) -> int:
        return len(self.calls)


def test_an_empty_wheel_is_never_due() -> None:
    wheel = Wheel()
    assert wheel.next() == NEVER
    wheel.run(1e9)


def test_a_member_without_a_deadline_is_in_no_bucket() -> None:
    wheel, member = Wheel(), Member(NEVER)
    wheel.add(member, NEVER)
    assert not member.bucket and wheel.next() == NEVER
    wheel.remove(member)


def test_never_early_and_at_most_one_bucket_late() -> None:
    wheel, member = Wheel(), Member(10.0)
    wheel.add(member, 10.0)
    wheel.run(9.999)
    assert not member.fired()
    assert 10.0 <= wheel.next() <= 10.0 + GRAIN
    wheel.run(wheel.next())
    assert member.fired() == 1 and not member.bucket and not len(wheel)


def test_activity_moves_no_timer_but_the_expiry_looks_again() -> None:
    wheel, member = Wheel(), Member(5.0)
    wheel.add(member, 5.0)
    member.due = 50.0
    wheel.run(6.0)
    assert not member.fired() and 50.0 <= wheel.next() <= 50.0 + GRAIN
    wheel.run(51.0)
    assert member.fired() == 1


def test_a_removed_member_wakes_nobody() -> None:
    wheel, member = Wheel(), Member(5.0)
    wheel.add(member, 5.0)
    wheel.remove(member)
    assert wheel.next() == NEVER


def test_tighten_moves_only_to_the_nearer() -> None:
    wheel, member = Wheel(), Member(5.0)
    wheel.tighten(member)
    assert 5.0 <= wheel.next() <= 5.0 + GRAIN
    member.due = 50.0
    wheel.tighten(member)
    assert wheel.next() <= 5.0 + GRAIN
    member.due = 2.0
    wheel.tighten(member)
    assert 2.0 <= wheel.next() <= 2.0 + GRAIN
    member.due = NEVER
    wheel.run(3.0)
    assert not member.fired() and not len(wheel)


def test_an_exception_of_one_does_not_lose_the_others() -> None:
    class Bad(Member):
        def expired(self) -> None:
            raise RuntimeError

    wheel, good = Wheel(), Member(1.0)
    bad = Bad(1.0)
    wheel.add(good, 1.0)
    wheel.add(bad, 1.0)
    try:
        wheel.run(2.0)
    except RuntimeError:
        wheel.run(2.0)
    assert good.fired() == 1 and not len(wheel)


@given(st.lists(st.floats(0, 100), max_size=40), st.lists(st.floats(0, 7), min_size=1, max_size=40))
def test_everyone_is_called_once_and_in_time(dues: list[float], steps: list[float]) -> None:
    wheel, now = Wheel(), 0.0
    members = [Member(due) for due in dues]
    for member in members:
        wheel.add(member, member.due)
    for step in steps:
        now += step
        wheel.run(now)
        for member in members:
            if member.due + 2 * GRAIN <= now:
                assert member.fired() == 1
            if member.due > now:
                assert not member.fired()
    wheel.run(1000)
    wheel.run(1000 + GRAIN)
    wheel.run(1000 + 2 * GRAIN)
    assert all(member.fired() == 1 for member in members)
    assert wheel.next() == NEVER
