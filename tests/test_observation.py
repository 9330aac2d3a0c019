"""`observe`: errors in a row over several workers, each of which writes its own words only."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hitlessd.model import Check, InetAddress, Server
from hitlessd.table import PROCESS, Column, RowKey, Table
from hitlessd.worker.observation import L4_ERROR, Observation

KEY = RowKey("server", "b", "s")


class Workers:
    """Several workers of one table, and what they tell main."""

    def __init__(self, count: int, limit: int) -> None:
        self.table = Table.create([PROCESS, KEY], count, 1)
        self.slots = [self.table.slot(index) for index in range(count)]
        self.told: list[dict[str, str]] = []
        self.server = Server("s", InetAddress("127.0.0.1", 1), check=Check(), observe="layer4", error_limit=limit)
        self.each = [self.begin(index) for index in range(count)]

    def begin(self, index: int) -> Observation:
        def tell(what: str, **more: str) -> None:
            assert what == "observed"
            self.told.append(more)

        worker: Any = SimpleNamespace(
            table=self.table, index=index, slots=self.slots, orders=SimpleNamespace(tell=tell)
        )
        return Observation(worker, "b", self.server)

    def close(self) -> None:
        self.each.clear()
        for slot in self.slots:
            slot.release()
        self.table.close()


@given(
    st.integers(1, 3),
    st.integers(1, 5),
    st.lists(st.tuples(st.integers(0, 2), st.sampled_from(["ok", "error", "error", "error", "main", "death"]))),
)
def test_errors_in_a_row_are_counted_over_all_workers(count: int, limit: int, events: list[tuple[int, str]]) -> None:
    workers, run, told = Workers(count, limit), [0] * count, 0
    for index, what in events:
        index %= count
        if what == "ok":
            workers.each[index].passed()
            run = [0] * count
        elif what == "main":  # a check has passed
            workers.table.add(KEY, Column.OBSERVED_OK, 1)
            run = [0] * count
        elif what == "death":  # what it has seen goes with it
            workers.table.clear_gauges(index)
            workers.each[index] = workers.begin(index)
            run[index] = 0
        else:
            workers.each[index].failed(L4_ERROR)
            run[index] += 1
            if sum(run) >= limit:
                run = [0] * count
                told += 1
                text = f"Detected {limit} consecutive errors, last one was: L4 unsuccessful connection"
                assert workers.told[-1] == {"backend": "b", "server": "s", "text": text}
        assert len(workers.told) == told
    workers.close()


@pytest.mark.parametrize("method", ["passed", "failed"])
def test_a_server_that_the_table_does_not_know_is_not_observed(method: str) -> None:
    workers = Workers(1, 1)
    workers.table.index.clear()
    nobody = workers.begin(0)
    getattr(nobody, method)(*(["x"] if method == "failed" else []))
    assert not workers.told
    workers.close()
