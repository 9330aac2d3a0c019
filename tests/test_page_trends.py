"""The five minutes that sparklines show."""

from __future__ import annotations

from hitlessd.main.trends import POINTS, STEP, Trends
from hitlessd.table import RowKey

WEB, APP = RowKey("frontend", "web"), RowKey("backend", "app")


def _after(seconds: int, rate: int = 2) -> Trends:
    trends = Trends()
    for _ in range(seconds):
        trends.tick([(WEB, rate), (APP, 0)])
    return trends


def test_a_point_is_the_sum_of_five_seconds() -> None:
    trends = _after(2 * STEP + 3)
    assert trends.of(WEB) == (10, 10)
    assert trends.of(APP) == (0, 0)
    assert trends.of(RowKey("frontend", "other")) == ()


def test_there_are_five_minutes_of_it() -> None:
    assert len(_after(STEP * (POINTS + 3)).of(WEB)) == POINTS == 60


def test_a_successor_goes_on_with_it() -> None:
    trends = Trends()
    trends.restore(_after(2 * STEP).export())
    for _ in range(STEP):
        trends.tick([(WEB, 1)])
    assert trends.of(WEB) == (10, 10, 5)
    assert trends.of(APP) == ()  # no longer configured


def test_of_a_great_many_proxies_some_have_none() -> None:
    trends = Trends()
    keys = [RowKey("backend", f"b{number}") for number in range(1000)]
    for _ in range(STEP):
        trends.tick((key, 1) for key in keys)
    assert trends.of(keys[0]) == (5,)
    assert trends.of(keys[999]) == ()
    assert len(trends.export()) == 300
