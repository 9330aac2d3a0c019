"""Main's event loop: order, cancelling, callbacks that fail, descriptors that come and go, signals."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Callable, Iterator

import pytest

from hitlessd.loop import READ, WRITE, Loop
from tests.support.descriptors import no_leak
from tests.support.processes import Deadline


class _Clock:
    """A clock that stands until told."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class _Bench:
    def __init__(self) -> None:
        self.clock = _Clock()
        self.reports: list[tuple[str, BaseException]] = []
        self.loop = Loop(lambda what, error: self.reports.append((what, error)), self.clock)
        self.seen: list[object] = []

    def see(self, what: object) -> Callable[..., object]:
        return lambda *_: self.seen.append(what)


@pytest.fixture
def bench() -> Iterator[_Bench]:
    with no_leak():
        bench = _Bench()
        yield bench
        bench.loop.close()


def _fail(*_: object) -> None:
    raise ValueError("by a test")


def test_timers_run_in_order_of_time_and_then_of_asking(bench: _Bench) -> None:
    for seconds, what in ((2.0, "c"), (1.0, "a"), (1.0, "b"), (3.0, "d")):
        bench.loop.call_later(seconds, bench.see(what))
    bench.clock.now += 2.5
    bench.loop.turn(0)
    assert bench.seen == ["a", "b", "c"]
    bench.clock.now += 1
    bench.loop.turn(0)
    assert bench.seen == ["a", "b", "c", "d"]


def test_a_cancelled_timer_never_runs(bench: _Bench) -> None:
    timers = [bench.loop.call_soon(bench.see(n)) for n in range(3)]
    timers[1].cancel()
    timers[1].cancel()
    bench.loop.turn(0)
    assert bench.seen == [0, 2]
    timers[0].cancel()  # after it has run


def test_a_timer_may_cancel_another_that_is_due(bench: _Bench) -> None:
    bench.loop.call_soon(lambda: second.cancel())
    second = bench.loop.call_soon(bench.see("second"))
    bench.loop.turn(0)
    assert bench.seen == []


def test_a_timer_that_adds_timers_lets_descriptors_have_their_turn(bench: _Bench) -> None:
    def again() -> None:
        bench.seen.append("timer")
        bench.loop.call_soon(again)

    with socket.socket() as sock:
        bench.loop.add(sock.fileno(), WRITE, bench.see("descriptor"))
        bench.loop.call_soon(again)
        bench.loop.turn(0)
        bench.loop.turn(0)
        bench.loop.remove(sock.fileno())
    assert bench.seen == ["descriptor", "timer"] * 2


def test_a_timer_of_a_year_does_not_overflow(bench: _Bench) -> None:
    one, two = socket.socketpair()
    two.send(b"x")
    bench.loop.add(one.fileno(), READ, bench.see("data"))
    bench.loop.call_later(365 * 86400.0, bench.see("late"))
    bench.loop.turn()
    assert bench.seen == ["data"]
    one.close()
    two.close()


def test_callbacks_that_raise_are_reported_and_the_loop_goes_on(bench: _Bench) -> None:
    one, two = socket.socketpair()
    bench.loop.add(one.fileno(), WRITE, _fail)
    bench.loop.add(two.fileno(), WRITE, bench.see("descriptor"))
    bench.loop.call_soon(_fail)
    bench.loop.call_soon(bench.see("timer"))
    bench.loop.turn(0)
    assert bench.seen == ["descriptor", "timer"]
    assert [what for what, _ in bench.reports] == [f"descriptor {one.fileno()}", "timer"]
    assert all(isinstance(error, ValueError) for _, error in bench.reports)
    one.close()
    two.close()


def test_a_request_to_exit_passes(bench: _Bench) -> None:
    def leave() -> None:
        raise SystemExit(3)

    bench.loop.call_soon(leave)
    with pytest.raises(SystemExit):
        bench.loop.run()


def test_a_descriptor_removed_during_a_turn_hears_no_more(bench: _Bench) -> None:
    pair = socket.socketpair()

    def first(this: socket.socket, other: socket.socket) -> Callable[[int], None]:
        def ready(_events: int) -> None:
            bench.seen.append(this)
            bench.loop.remove(other.fileno())
            other.close()

        return ready

    bench.loop.add(pair[0].fileno(), WRITE, first(pair[0], pair[1]))
    bench.loop.add(pair[1].fileno(), WRITE, first(pair[1], pair[0]))
    bench.loop.turn(0)
    assert len(bench.seen) == 1
    for sock in pair:
        bench.loop.remove(sock.fileno())
        sock.close()


def test_events_of_a_closed_descriptor_do_not_reach_its_numbers_next_owner(bench: _Bench) -> None:
    pair = socket.socketpair()
    opened: list[int] = []

    def replace(other: socket.socket) -> Callable[[int], None]:
        def ready(_events: int) -> None:
            number = other.fileno()
            bench.loop.remove(number)
            other.close()
            reader, writer = os.pipe2(os.O_CLOEXEC)
            opened.extend((reader, writer))
            assert number in (reader, writer)
            bench.loop.add(reader, READ, bench.see("a pipe that nobody has written to"))

        return ready

    bench.loop.add(pair[0].fileno(), WRITE, replace(pair[1]))
    bench.loop.add(pair[1].fileno(), WRITE, replace(pair[0]))
    bench.loop.turn(0)
    assert (bench.seen, bench.reports) == ([], [])
    for fd in opened:
        os.close(fd)
    for sock in pair:
        sock.close()


def test_modify_and_remove(bench: _Bench) -> None:
    one, two = socket.socketpair()
    bench.loop.add(one.fileno(), READ, bench.see("one"))
    bench.loop.turn(0)
    assert bench.seen == []
    bench.loop.modify(one.fileno(), READ | WRITE)
    bench.loop.turn(0)
    assert bench.seen == ["one"]
    bench.loop.remove(one.fileno())
    bench.loop.remove(one.fileno())
    bench.loop.turn(0)
    assert bench.seen == ["one"]
    with pytest.raises(OSError, match="No such file"):
        bench.loop.modify(one.fileno(), READ)
    one.close()
    two.close()


def test_run_ends_with_stop(bench: _Bench) -> None:
    bench.loop.call_soon(bench.see("before"))
    bench.loop.call_soon(bench.loop.stop)
    bench.loop.run()
    assert bench.seen == ["before"]


@pytest.fixture
def _signals() -> Iterator[None]:
    numbers = (signal.SIGUSR1, signal.SIGUSR2, signal.SIGTTOU)
    before = [signal.getsignal(number) for number in numbers]
    yield
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)
    assert signal.set_wakeup_fd(-1) == -1  # the loop has let go of it


@pytest.mark.usefixtures("_signals")
def test_signals_run_in_the_loop_and_only_their_own_callback(bench: _Bench) -> None:
    bench.loop.handle_signals({signal.SIGUSR1: bench.see(1), signal.SIGUSR2: _fail, signal.SIGTTOU: bench.see(3)})
    os.kill(os.getpid(), signal.SIGUSR1)
    os.kill(os.getpid(), signal.SIGUSR1)
    assert bench.seen == []  # not inside other code
    bench.loop.turn(10)
    assert bench.seen == [1]
    os.kill(os.getpid(), signal.SIGUSR2)
    os.kill(os.getpid(), signal.SIGTTOU)
    limit = Deadline(10)
    while len(bench.seen) < 2:
        limit.check("signal")
        bench.loop.turn(limit.left)
    assert bench.seen == [1, 3]
    assert [what for what, _ in bench.reports] == ["signal"]
