"""How many connections fit into the limit on open files, and what a restart keeps of them."""

from __future__ import annotations

import resource
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hitlessd.errors import SystemRefused
from hitlessd.main.limits import plan, raise_soft_limit, store_entries, store_problem
from hitlessd.model import Config, Global


def _config(maxconn: int) -> Config:
    return Config(Global(maxconn=maxconn))


@given(st.integers(0, 100_000), st.integers(1, 64), st.integers(0, 5000), st.integers(0, 200_000))
def test_what_is_promised_fits(maxconn: int, workers: int, listeners: int, nofile: int) -> None:
    try:
        limits = plan(_config(maxconn), workers, listeners, nofile)
    except SystemRefused:
        return
    assert limits.nofile == nofile
    assert limits.maxconn == maxconn or (not maxconn and limits.maxconn >= 1)
    assert limits.share * workers >= limits.maxconn
    # Two descriptors a connection in a worker; each listener twice in main.
    assert listeners + 2 * limits.share < nofile
    assert 2 * listeners < nofile


def test_without_maxconn_it_is_what_the_limit_allows_up_to_a_default() -> None:
    assert plan(_config(0), 2, 4, 20_000).maxconn == 2 * ((20_000 - 388) // 2)
    assert plan(_config(0), 8, 4, 1_000_000).maxconn == 20_000


def test_the_refusal_says_what_would_do() -> None:
    with pytest.raises(SystemRefused, match=r"LimitNOFILE= in the unit\) or set maxconn to (\d+) or less") as caught:
        plan(_config(10_000), 2, 4, 2000)
    largest = int(str(caught.value).split("set maxconn to ")[1].split()[0])
    assert plan(_config(largest), 2, 4, 2000).maxconn == largest
    with pytest.raises(SystemRefused):
        plan(_config(largest + 1), 2, 4, 2000)
    needed = int(str(caught.value).split("listeners need ")[1].split()[0])
    assert plan(_config(10_000), 2, 4, needed).share == 5000
    with pytest.raises(SystemRefused):
        plan(_config(10_000), 2, 4, needed - 1)


def test_nothing_fits_into_nothing() -> None:
    with pytest.raises(SystemRefused, match="cannot serve anybody: 1 workers with 0 listeners need 386 descriptors"):
        plan(_config(0), 1, 0, 385)
    assert plan(_config(0), 1, 0, 386).share == 1


def test_listeners_have_to_fit_twice() -> None:
    with pytest.raises(SystemRefused, match="cannot serve 900 listeners: handing them over needs 1940 descriptors"):
        plan(_config(0), 1, 900, 1600)


@given(st.integers(1, 100_000), st.integers(1, 64), st.integers(0, 5000), st.integers(0, 1_000_000))
def test_the_limit_that_is_asked_for_is_enough_and_no_more(
    maxconn: int, workers: int, listeners: int, nofile: int
) -> None:
    try:
        needed = plan(_config(maxconn), workers, listeners, nofile).needed
    except SystemRefused:
        needed = plan(_config(maxconn), workers, listeners, 100_000_000).needed
    enough = plan(_config(maxconn), workers, listeners, needed)
    assert (enough.needed, enough.shortage) == (needed, "")
    assert enough.parked >= 2 * enough.share + 256
    assert 3 * workers * enough.parked <= needed
    try:
        scarce = plan(_config(maxconn), workers, listeners, needed - 1)
    except SystemRefused:
        return
    assert f"raise it to {needed} " in scarce.shortage


@given(st.integers(0, 100_000), st.integers(1, 64), st.integers(386, 200_000))
def test_the_shortage_says_how_many_can_be_parked(maxconn: int, workers: int, nofile: int) -> None:
    try:
        limits = plan(_config(maxconn), workers, 0, nofile)
    except SystemRefused:
        return
    assert limits.parked == nofile // 3 // workers
    if not limits.shortage:
        assert workers * (limits.parked - 256) >= 2 * limits.maxconn
        return
    fit = int(limits.shortage.removeprefix("cannot be sure to park more than ").split()[0])
    assert fit < limits.maxconn
    assert f"of maxconn {limits.maxconn} connections" in limits.shortage
    assert ("set maxconn to" in limits.shortage) == (fit > 0)
    if fit:
        assert plan(_config(fit), workers, 0, nofile).shortage == ""
    if fit + workers < limits.maxconn:
        assert plan(_config(fit + workers), workers, 0, nofile).shortage


def test_parking_takes_three_times_what_connections_and_pipes_take() -> None:
    limits = plan(_config(20_000), 2, 4, 524_288)
    assert limits.needed == 3 * (2 * 20_000 + 2 * 128 * 2)
    assert limits.parked == 524_288 // 3 // 2
    assert limits.shortage == ""


def test_serving_may_need_more_than_parking() -> None:
    assert plan(_config(10), 1, 5000, 524_288).needed == 128 + 2 * (5000 + 6)


def test_the_store_has_room_for_both_generations() -> None:
    assert store_entries(0, 0, 1) == 2 * (3 + 3)
    assert store_entries(3, 1, 2) == 2 * (3 + 1 + 3 + 6)
    assert store_problem(24, 24) == ""
    assert store_problem(24, 23) == (
        "cannot be sure to keep everything over a restart: systemd stores 23 descriptors, and a reload may"
        " take 24; raise it to 24 (FileDescriptorStoreMax= in the unit)"
    )


@pytest.fixture
def _restored() -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


@pytest.mark.usefixtures("_restored")
def test_the_soft_limit_is_raised_to_the_hard_one() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(512, hard), hard))
    assert raise_soft_limit() == hard
    assert resource.getrlimit(resource.RLIMIT_NOFILE) == (hard, hard)
