"""The counter between down and up, and what follows from it."""

from __future__ import annotations

import itertools
from collections import deque

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hitlessd import health
from hitlessd.health import DESCRIPTIONS, Result
from hitlessd.model import Backend, Check, Expectation, HttpCheck, InetAddress, Server
from hitlessd.table import Health

CHECKS = [Check(rise=rise, fall=fall) for rise, fall in itertools.product(range(1, 5), repeat=2)]


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: f"rise {check.rise} fall {check.fall}")
def test_every_sequence_of_checks_does_what_the_manual_says(check: Check) -> None:
    """Up: down after `fall` failures in a row. Down: up after `rise` passes in a row. At first one failure."""
    for results in itertools.product((False, True), repeat=9):
        counter, up, run, first = check.rise, True, 0, True
        for passed in results:
            counter = health.after(check, counter, passed)
            if passed is up:
                run = 0
            else:
                run += 1
                if run == (1 if first else check.fall) if up else run == check.rise:
                    up, run = not up, 0
            first = False
            assert (counter >= check.rise) is up, results
            assert 0 <= counter <= health.top(check)
            # At the end of the scale, or as many steps away from it as the run is long.
            assert counter == (health.top(check) - run if up else run)


@given(st.sampled_from(CHECKS), st.data())
def test_the_scale_is_never_left(check: Check, data: st.DataObject) -> None:
    counter = data.draw(st.integers(0, health.top(check)))
    for how in data.draw(
        st.lists(st.sampled_from([True, False, "fastinter", "fail-check", "sudden-death", "mark-down"]))
    ):
        if isinstance(how, bool):
            counter = health.after(check, counter, how)
        else:
            counter = health.struck(check, counter, str(how))
        assert 0 <= counter <= health.top(check)


def test_what_observe_does_to_a_server() -> None:
    check = Check(rise=2, fall=3)
    assert [health.struck(check, counter, "fastinter") for counter in range(5)] == [0, 1, 2, 3, 4]
    assert [health.struck(check, counter, "fail-check") for counter in range(5)] == [0, 0, 0, 2, 3]
    assert [health.struck(check, counter, "sudden-death") for counter in range(5)] == [0, 0, 0, 2, 2]
    assert [health.struck(check, counter, "mark-down") for counter in range(5)] == [0] * 5


def test_intervals() -> None:
    plain, other = Check(inter=2), Check(inter=2, fastinter=0.5, downinter=9)
    assert [health.interval(plain, counter) for counter in range(5)] == [2] * 5
    assert [health.interval(other, counter) for counter in range(5)] == [9, 0.5, 0.5, 0.5, 2]
    assert (health.shortest_interval(plain), health.shortest_interval(other)) == (2, 0.5)


def test_first_checks_are_spread() -> None:
    delays = [health.first_delay(Check(inter=2), position, 1000, 0.5) for position in range(1000)]
    assert delays == [position * 2 / 1000 for position in range(1000)]
    assert health.first_delay(Check(inter=0.1), 1, 2, 0.1) == 0.5  # over a second at least
    assert health.first_delay(Check(inter=2), 0, 1, 2) == 0


def test_status_texts_are_those_of_haproxy() -> None:
    check = Check(rise=2, fall=3)
    texts = [health.status(check, counter, counter >= 2) for counter in range(5)]
    assert texts == ["DOWN", "DOWN 1/2", "UP 1/3", "UP 2/3", "UP"]


def test_every_result_is_described() -> None:
    assert set(DESCRIPTIONS) == set(Result)
    assert [result for result in Result if result.passed] == [Result.L4OK, Result.L7OK]


def test_what_is_checked_has_an_identity_and_how_often_has_none() -> None:
    server = Server("s", InetAddress("127.0.0.1", 1), check=Check())
    backend = Backend("b", 1, (server,), http_check=HttpCheck())
    same = health.identity(backend, server)
    assert 0 < same < 1 << 64
    often = Server("s", InetAddress("127.0.0.1", 1), check=Check(1, 2, 3, 4, 5), weight=7, backup=True)
    assert health.identity(backend, often) == same
    others = deque(
        [
            health.identity(backend, Server("s", InetAddress("127.0.0.1", 2), check=Check())),
            health.identity(backend, Server("s", InetAddress("127.0.0.1", 1), check=Check(send_proxy=1))),
            health.identity(
                backend, Server("s", InetAddress("127.0.0.1", 1), check=Check(address=InetAddress("127.0.0.1", 9)))
            ),
            health.identity(Backend("b", 1), server),
        ]
    )
    for http in (
        HttpCheck("GET"),
        HttpCheck(uri="/x"),
        HttpCheck(body="x"),
        HttpCheck(headers=(("a", "b"),)),
        HttpCheck(expect=(Expectation("status", "200"),)),
        HttpCheck(expect=(Expectation("status", "200", negated=True),)),
    ):
        others.append(health.identity(Backend("b", 1, http_check=http), server))
    assert len({same, *others}) == 1 + len(others)
    assert health.identity(backend, Server("s", InetAddress("127.0.0.1", 1))) == 0
    assert int(Health.UNCHECKED) == 0  # what an older table says of everybody
