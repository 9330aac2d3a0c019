"""Server selection: fairness, weights, stability; the rules are those of docs/balancing.md. No sockets."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hitlessd.balance import (
    Chooser,
    First,
    Hashed,
    LeastConn,
    Random,
    RoundRobin,
    StaticRoundRobin,
    chooser,
    is_static,
    unscaled,
)
from hitlessd.hashing import MapBased, Rendezvous, server_map, source_hash, text_hash, uri_key
from hitlessd.model import Backend, Balance, InetAddress, Server

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


def make(balance: Balance, weights: list[int], start: int = 0, seed: int = 0, **options: bool | int) -> Chooser:
    names = [str(number) for number in range(len(weights))]
    return chooser(Backend("b", 1, balance=balance, **options), weights, names, start, seed)  # type: ignore[arg-type]


@pytest.mark.parametrize("consistent", [False, True])
@pytest.mark.parametrize("balance", get_args(Balance))
@given(weights=weight_lists, data=st.data())
def test_full_servers_are_passed_over(
    balance: Balance, consistent: bool, weights: list[int], data: st.DataObject
) -> None:
    """By all of them, as long as there is no key."""
    full = data.draw(st.sets(st.integers(0, len(weights) - 1)))
    chosen = make(balance, weights, hash_consistent=consistent).choose(b"", idle, full)
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


def reference_map(weights: list[int]) -> list[int]:
    """The table in the words of docs/balancing.md, step by step."""
    total, credit, entries = sum(weights), [0] * len(weights), []
    for _ in range(total):
        credit = [old + weight for old, weight in zip(credit, weights, strict=True)]
        turns = [(value + total) // total for value in credit]
        chosen = turns.index(max(turns))
        credit[chosen] -= total
        entries.append(chosen)
    return entries


@given(st.lists(st.integers(1, 64) | st.integers(1, 256), min_size=1, max_size=10))
def test_the_static_table_follows_its_rule(weights: list[int]) -> None:
    entries = server_map(weights)
    assert entries == reference_map(weights)
    counted = Counter(entries)
    assert [counted[position] for position in range(len(weights))] == weights


def test_static_rr_goes_along_the_table() -> None:
    assert picks(StaticRoundRobin(server_map([3, 1, 2])), 12) == server_map([3, 1, 2]) * 2
    algorithm = StaticRoundRobin(server_map([1, 1, 1]), start=1)
    assert picks(algorithm, 3) == [1, 2, 0]
    assert algorithm.choose(b"", idle, {1}) == 2
    assert algorithm.choose(b"", idle) == 0


def test_static_weights_lose_their_common_divisor() -> None:
    servers = tuple(Server(f"s{n}", InetAddress("::1", 1), weight=weight) for n, weight in enumerate([40, 60, 0]))
    assert unscaled(Backend("b", 1, servers), [40, 60]) == [2, 3]
    assert unscaled(Backend("b", 1, ()), [40]) == [40]


def test_static_are_static_rr_and_the_map() -> None:
    static = {
        (balance, consistent)
        for balance in get_args(Balance)
        for consistent in (False, True)
        if is_static(Backend("b", 1, balance=balance, hash_consistent=consistent))
    }
    assert static == {("static-rr", False), ("static-rr", True), ("source", False), ("uri", False), ("hdr", False)}


def test_first_fills_one_after_the_other() -> None:
    loads = [0, 0, 0]
    algorithm, limits, went = First(3), [2, 1, 3], []
    for _ in range(7):
        chosen = algorithm.choose(b"", loads.__getitem__, {p for p in range(3) if loads[p] >= limits[p]})
        went.append(chosen)
        if chosen is not None:
            loads[chosen] += 1
    assert went == [0, 0, 1, 2, 2, 2, None]
    loads[0] = 1
    assert algorithm.choose(b"", loads.__getitem__, {1, 2}) == 0


def test_random_follows_weights() -> None:
    counted = Counter(picks(Random([1, 3, 4], 1, 42), 8000))
    assert [counted[position] / 8000 for position in range(3)] == pytest.approx([1 / 8, 3 / 8, 4 / 8], abs=0.02)


@given(st.integers(2, 8), st.integers(0, 2**64 - 1))
def test_random_takes_the_least_loaded_of_its_draws(draws: int, seed: int) -> None:
    """With one draw more than there are others, and all drawn, it is the least loaded of all."""
    loads, weights = [8, 3, 9], [4, 1, 3]
    one, many = Random(weights, 1, seed), Random(weights, draws, seed)
    for _ in range(20):
        drawn = [one.choose(b"", loads.__getitem__) for _ in range(draws)]
        expected = min((p for p in drawn if p is not None), key=lambda p: loads[p] / weights[p])
        assert many.choose(b"", loads.__getitem__) == expected


def test_random_of_two_is_fairer_than_of_one() -> None:
    def spread(draws: int) -> int:
        loads, algorithm = [0] * 10, Random([1] * 10, draws, 7)
        for _ in range(5000):
            position = algorithm.choose(b"", loads.__getitem__)
            assert position is not None
            loads[position] += 1
        return max(loads) - min(loads)

    assert spread(2) < 10 < spread(1)


def test_random_does_the_same_in_no_two_workers() -> None:
    assert picks(Random([1] * 9, 2, 1), 20) != picks(Random([1] * 9, 2, 2), 20)


keys = [f"10.{n % 7}.{n // 250}.{n % 250}".encode() for n in range(4000)]


@pytest.mark.parametrize("consistent", [False, True])
def test_a_hash_is_the_same_in_every_worker_and_at_any_time(consistent: bool) -> None:
    workers = [make("hdr", [1, 2, 3], start, start, hash_consistent=consistent) for start in range(3)]
    first, *others = ([worker.choose(k, idle) for k in keys] for worker in workers)
    assert all(other == first for other in others)
    assert [workers[0].choose(k, idle) for k in keys] == first


def test_the_spelling_of_the_hashes_is_a_promise() -> None:
    """It must not change with a release: clients would lose their servers, and workers of two generations disagree."""
    consistent = Rendezvous([1, 1, 1], ["a", "b", "c"])
    assert [consistent.position(bytes([10, 0, 0, n])) for n in range(12)] == [1, 2, 2, 1, 0, 1, 1, 0, 1, 1, 2, 0]
    assert source_hash(bytes([10, 1, 2, 3])) == 0x0A010203
    assert source_hash(bytes(range(16))) == 0x00010203 ^ 0x04050607 ^ 0x08090A0B ^ 0x0C0D0E0F
    assert [text_hash(text) for text in (b"", b"a", b"ab", b"/index.html")] == [0, 97, 6363201, 858007926]


def test_consistent_follows_weights() -> None:
    counted = Counter(map(Rendezvous([1, 3], ["a", "b"]).position, keys))
    assert counted[1] / len(keys) == pytest.approx(0.75, abs=0.03)


@given(st.lists(st.integers(1, 256), min_size=2, max_size=8), st.data())
def test_consistent_moves_only_the_keys_of_a_lost_server(weights: list[int], data: st.DataObject) -> None:
    names = [f"s{number}" for number in range(len(weights))]
    lost = data.draw(st.integers(0, len(weights) - 1))
    before = Rendezvous(weights, names)
    after = Rendezvous(weights[:lost] + weights[lost + 1 :], names[:lost] + names[lost + 1 :])
    left = names[:lost] + names[lost + 1 :]
    for key in keys[::20]:
        was = before.position(key)
        assert was == lost or names[was] == left[after.position(key)]


@given(st.lists(st.integers(1, 256), min_size=2, max_size=8), st.data())
def test_consistent_moves_keys_only_to_a_server_that_grows(weights: list[int], data: st.DataObject) -> None:
    names = [f"s{number}" for number in range(len(weights))]
    grown = data.draw(st.integers(0, len(weights) - 1))
    before = Rendezvous(weights, names)
    after = Rendezvous([w * 2 if n == grown else w for n, w in enumerate(weights)], names)
    for key in keys[::20]:
        assert after.position(key) in (before.position(key), grown)


@given(weight_lists, st.binary(max_size=40))
def test_map_based_is_the_hash_modulo_the_weights(weights: list[int], key: bytes) -> None:
    mapping = MapBased(weights, text_hash)
    assert mapping.position(key) == reference_map(weights)[text_hash(key) % sum(weights)]


def test_map_based_gives_neighbours_in_turn() -> None:
    """Addresses that follow each other go to one server after the other, so the parts are exact."""
    mapping = MapBased([1, 2, 1], source_hash)
    counted = Counter(mapping.position(bytes([10, 0, 0, n])) for n in range(256))
    assert counted == {0: 64, 1: 128, 2: 64}


def test_who_has_no_key_goes_in_turn() -> None:
    assert picks(make("hdr", [1, 1, 1], hash_consistent=True), 4) == [0, 1, 2, 0]
    assert picks(make("uri", [1, 1, 1]), 4) == [0, 1, 2, 0]


@pytest.mark.parametrize("consistent", [False, True])
def test_a_hash_waits_for_its_server(consistent: bool) -> None:
    algorithm = make("source", [1, 1], hash_consistent=consistent)
    assert isinstance(algorithm, Hashed)
    own = algorithm.choose(b"x", idle)
    assert own is not None
    assert algorithm.home(b"x") == own
    assert algorithm.choose(b"x", idle, {own}) is None
    assert algorithm.choose(b"x", idle, {1 - own}) == own


@pytest.mark.parametrize("mapping", [Rendezvous([1], ["a"]), MapBased([1], source_hash)], ids=["consistent", "map"])
def test_a_bounded_number_of_keys_is_remembered(mapping: Rendezvous | MapBased) -> None:
    for number in range(70_000):
        mapping.position(number.to_bytes(4, "big"))
    assert len(mapping._known) <= 65_536


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, b"/a/b/c.html"),
        ({"whole": True}, b"/a/b/c.html?x=/1"),
        ({"length": 4}, b"/a/b"),
        ({"depth": 1}, b"/a"),
        ({"depth": 2}, b"/a/b"),
        ({"depth": 3}, b"/a/b/c.html"),
        ({"depth": 4, "whole": True}, b"/a/b/c.html?x=/1"),
        ({"depth": 3, "whole": True}, b"/a/b/c.html?x="),
        ({"depth": 2, "length": 3}, b"/a/"),
    ],
    ids=repr,
)
def test_what_of_a_uri_counts(options: dict[str, int], expected: bytes) -> None:
    assert uri_key(b"/a/b/c.html?x=/1", **options) == expected  # type: ignore[arg-type]


def test_a_uri_may_be_absolute() -> None:
    assert uri_key(b"http://host/a/b", depth=3) == b"http://host/a"
    assert uri_key(b"*") == b"*"


def test_the_rules_name_tests_that_exist() -> None:
    root = Path(__file__).resolve().parent.parent
    named = set(re.findall(r"`(test_\w+)`", (root / "docs" / "balancing.md").read_text()))
    written = {
        name
        for path in (root / "tests").glob("test_*.py")
        for name in re.findall(r"^def (test_\w+)", path.read_text(), re.M)
    }
    assert named <= written
    assert len(named) > 30
