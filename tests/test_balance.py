"""Server selection: fairness, weights, stability; no sockets."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hitlessd.balance import Chooser, LeastConn, RoundRobin, Source, chooser

weight_lists = st.lists(st.integers(1, 256), min_size=1, max_size=12)


def idle(position: int) -> int:
    return 0


def picks(algorithm: Chooser, count: int, key: bytes = b"") -> list[int | None]:
    return [algorithm.choose(key, idle) for _ in range(count)]


def test_roundrobin_takes_each_in_turn() -> None:
    assert picks(RoundRobin([1, 1, 1]), 6) == [0, 1, 2, 0, 1, 2]


def test_roundrobin_mixes_weights_smoothly() -> None:
    assert picks(RoundRobin([2, 1]), 6) == [0, 1, 0, 0, 1, 0]
    assert picks(RoundRobin([200, 100]), 3) == [0, 1, 0]


@given(weight_lists)
def test_roundrobin_gives_each_exactly_its_weight_in_a_turn(weights: list[int]) -> None:
    counted = Counter(picks(RoundRobin(weights), sum(weights)))
    assert [counted[position] for position in range(len(weights))] == weights


def test_roundrobin_starts_elsewhere_in_each_worker() -> None:
    assert {RoundRobin([1, 1, 1], start).choose(b"", idle) for start in range(3)} == {0, 1, 2}


def test_roundrobin_without_a_precomputed_cycle() -> None:
    weights = [251, 241] * 40
    algorithm = RoundRobin(weights, 3)
    counted = Counter(picks(algorithm, sum(weights)))
    assert all(abs(counted[position] - weight) <= 1 for position, weight in enumerate(weights))
    assert algorithm.choose(b"", idle, set(range(79))) == 79


@pytest.mark.parametrize("balance", ["roundrobin", "leastconn"])
@given(weights=weight_lists, data=st.data())
def test_full_servers_are_passed_over(balance: str, weights: list[int], data: st.DataObject) -> None:
    full = data.draw(st.sets(st.integers(0, len(weights) - 1)))
    algorithm = chooser(balance, weights, [str(i) for i in range(len(weights))], 0)  # type: ignore[arg-type]
    chosen = algorithm.choose(b"", idle, full)
    assert (chosen is None) == (len(full) == len(weights))
    assert chosen not in full


def test_leastconn_takes_the_least_loaded_for_its_weight() -> None:
    loads = [4, 3, 9]
    assert LeastConn([1, 1, 1]).choose(b"", loads.__getitem__) == 1
    assert LeastConn([1, 1, 4]).choose(b"", loads.__getitem__) == 2
    assert LeastConn([2, 1]).choose(b"", idle) == 0


def test_leastconn_takes_turns_among_equals() -> None:
    assert picks(LeastConn([1, 1, 1]), 6) == [0, 1, 2, 0, 1, 2]


@given(weight_lists, st.integers(1, 300))
def test_leastconn_fills_in_proportion(weights: list[int], count: int) -> None:
    loads = [0] * len(weights)
    algorithm = LeastConn(weights)
    for _ in range(count):
        position = algorithm.choose(b"", loads.__getitem__)
        assert position is not None
        loads[position] += 1
    # No other placement of the last one would have been better for its weight.
    worst = max(range(len(weights)), key=lambda p: loads[p] / weights[p])
    assert all(loads[worst] / weights[worst] <= (loads[p] + 1) / weights[p] for p in range(len(weights)))


keys = [f"10.{n % 7}.{n // 250}.{n % 250}".encode() for n in range(4000)]


def test_source_is_stable_over_time_and_processes() -> None:
    names = ["a", "b", "c"]
    first, second = Source([1, 1, 1], names), Source([1, 1, 1], names)
    assert [first.choose(k, idle) for k in keys] == [second.choose(k, idle) for k in keys]
    # The spelling of the algorithm is part of the promise: it must not change with a release.
    assert [first.choose(bytes([10, 0, 0, n]), idle) for n in range(12)] == [
        Source([1, 1, 1], names).choose(bytes([10, 0, 0, n]), idle) for n in range(12)
    ]


def test_source_follows_weights() -> None:
    counted = Counter(Source([1, 3], ["a", "b"]).choose(k, idle) for k in keys)
    assert counted[1] / len(keys) == pytest.approx(0.75, abs=0.03)


def test_source_moves_only_the_clients_of_a_lost_server() -> None:
    before, after = Source([1, 1, 1, 1], list("abcd")), Source([1, 1, 1], list("abd"))
    for key in keys:
        was, now = before.choose(key, idle), after.choose(key, idle)
        assert was is not None and now is not None
        assert was == 2 or "abcd"[was] == "abd"[now]


def test_source_waits_for_its_server() -> None:
    algorithm = Source([1, 1], ["a", "b"])
    own = algorithm.choose(b"x", idle)
    assert own is not None
    assert algorithm.choose(b"x", idle, {own}) is None
    assert algorithm.choose(b"x", idle, {1 - own}) == own


def test_source_remembers_a_bounded_number_of_clients() -> None:
    algorithm = Source([1], ["a"])
    for number in range(70_000):
        algorithm.choose(number.to_bytes(4, "big"), idle)
    assert len(algorithm._known) <= 65_536
