"""Balancing among many servers: the rules are those among few, and a choice looks at few of them."""

from __future__ import annotations

import random
from collections import Counter
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hitlessd.balance import LeastConn, RankedLeastConn, RoundRobin, chooser
from hitlessd.model import Backend
from hitlessd.ranking import MANY, Ranking, turn_of_many

weight_lists = st.lists(st.integers(1, 256), min_size=1, max_size=40)


class Loads:
    """Connections of each server; counts the questions."""

    def __init__(self, count: int) -> None:
        self.now = [0] * count
        self.asked = 0

    def __call__(self, position: int) -> int:
        self.asked += 1
        return self.now[position]


@given(weight_lists)
def test_a_turn_gives_each_exactly_its_weight(weights: list[int]) -> None:
    counted = Counter(turn_of_many(weights))
    assert [counted[position] for position in range(len(weights))] == weights


@given(weight_lists)
def test_a_turn_is_even(weights: list[int]) -> None:
    """At each place, each has had what is due to it by then, but for as many places as there are servers."""
    total, had = sum(weights), [0] * len(weights)
    for place, position in enumerate(turn_of_many(weights), 1):
        had[position] += 1
        due = weights[position] * place / total
        assert abs(had[position] - due) <= 1 + weights[position] * len(weights) / total


def test_heavy_ones_are_not_chosen_in_a_row() -> None:
    turn = list(turn_of_many([20] + [1] * 20))
    assert sum(one == other == 0 for one, other in pairwise(turn)) <= 1


def test_roundrobin_finds_light_ones_among_many_full_heavy_ones_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half a million places of a turn are not gone through; the light ones have their weights."""
    algorithm, loads = RoundRobin([256] * 2000 + [1, 3]), Loads(2002)
    steps = 0
    following = algorithm._next

    def step() -> int:
        nonlocal steps
        steps += 1
        return following()

    monkeypatch.setattr(algorithm, "_next", step)
    chosen = [algorithm.choose(b"", loads, range(2000)) for _ in range(8)]
    assert Counter(chosen) == {2000: 2, 2001: 6}
    assert steps <= 8 * 2 * 2002


@pytest.mark.parametrize("weights", [[1] * MANY, [3] * 50, [5, 1] * 20, [251, 241] * 40])
def test_roundrobin_among_many_gives_each_its_weight(weights: list[int]) -> None:
    algorithm, loads = RoundRobin(weights, 5), Loads(len(weights))
    assert loads.asked == 0
    for _ in range(3):
        counted = Counter(algorithm.choose(b"", loads) for _ in range(sum(weights)))
        assert all(abs(counted[position] - weight) <= 1 for position, weight in enumerate(weights))


def test_equal_ones_have_their_turn_in_the_order_of_the_file() -> None:
    algorithm = RoundRobin([7] * 50, 3)
    assert [algorithm.choose(b"", Loads(50)) for _ in range(50)] == [*range(3, 50), 0, 1, 2]


@pytest.mark.parametrize("seed", range(40))
def test_the_least_loaded_for_its_weight_is_taken(seed: int) -> None:
    """Whoever says when there are fewer is told what a look at all of them would tell."""
    chance = random.Random(seed)
    weights = [chance.randint(1, 16) for _ in range(chance.randint(1, 30))]
    loads, algorithm = Loads(len(weights)), RankedLeastConn(weights, 2, alone=True)
    for _ in range(300):
        if chance.random() < 0.4:
            position = chance.randrange(len(weights))
            loads.now[position] = chance.randint(0, loads.now[position])
            algorithm.look(position, loads)
            continue
        full = {chance.randrange(len(weights)) for _ in range(chance.randint(0, 3))}
        chosen = algorithm.choose(b"", loads, full)
        ranks = [(loads.now[at] + 1) / weight for at, weight in enumerate(weights) if at not in full]
        if not ranks:
            assert chosen is None
            continue
        assert chosen is not None and chosen not in full
        assert (loads.now[chosen] + 1) / weights[chosen] == min(ranks)
        loads.now[chosen] += chance.randint(0, 1)  # 0: it could not be had after all
        algorithm.look(chosen, loads)


def test_equals_are_taken_in_turn_by_whoever_has_waited_longest() -> None:
    loads, algorithm = Loads(20), RankedLeastConn([1] * 20, 18, alone=True)
    assert [algorithm.choose(b"", loads, {0}) for _ in range(3)] == [18, 19, 1]
    assert algorithm.choose(b"", loads) == 0


def test_what_others_have_ended_is_found_in_the_end() -> None:
    """Other workers do not say when they have ended connections."""
    loads, algorithm = Loads(100), RankedLeastConn([1] * 100)
    loads.now = [5] * 100
    for _ in range(100):
        algorithm.choose(b"", loads)
    loads.now[42] = 0
    assert 42 in [algorithm.choose(b"", loads) for _ in range(26)]


def test_what_others_have_begun_is_seen_at_once() -> None:
    loads, algorithm = Loads(100), RankedLeastConn([1] * 100)
    loads.now = [3] * 100
    loads.now[77] = 1
    assert algorithm.choose(b"", loads) == 77


def test_a_choice_among_thousands_asks_few() -> None:
    loads, algorithm = Loads(2000), RankedLeastConn([1] * 2000)
    for _ in range(4000):
        position = algorithm.choose(b"", loads)
        assert position is not None
        loads.now[position] += 1
    assert loads.asked < 4000 * 8
    assert max(loads.now) - min(loads.now) <= 1


def test_what_holds_no_more_does_not_pile_up() -> None:
    loads, ranking = Loads(20), Ranking([1] * 20, 0)
    for _ in range(2000):
        position = ranking.take(loads, ())
        assert position is not None
        ranking.look(position, loads)  # it has ended already
    assert sum(map(len, ranking._queues.values())) <= 81


def test_few_servers_are_looked_at_one_by_one() -> None:
    backend = Backend("b", 1, balance="leastconn")
    for count, kind in ((MANY - 1, LeastConn), (MANY, RankedLeastConn)):
        assert type(chooser(backend, [1] * count, ["x"] * count, 0)) is kind
