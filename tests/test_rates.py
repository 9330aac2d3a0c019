"""Rates over one table and over several, in which rows may be elsewhere, folded or missing."""

from __future__ import annotations

from hitlessd.main.status import Rates
from hitlessd.table import PROCESS, Column, Health, HealthRecord, RowKey, ServerState, Table

FRONT, SERVER, GONE = RowKey("frontend", "f"), RowKey("server", "b", "s"), RowKey("server", "b", "gone")


def count(table: Table, key: RowKey, number: int) -> None:
    slot = table.slot(0)
    slot[table.index[key] * table.columns + Column.STOT] += number
    slot.release()


def test_rates_are_of_all_generations_by_name() -> None:
    old, new = Table.create([PROCESS, GONE, SERVER, FRONT], 1, 1), Table.create([PROCESS, FRONT, SERVER], 1, 2)
    rates = Rates(kinds=("frontend", "server"))
    count(old, SERVER, 5)
    rates.tick([new, old])
    count(old, SERVER, 2)
    count(old, GONE, 9)
    count(new, SERVER, 1)
    count(new, FRONT, 4)
    rates.tick([new, old])
    assert [rates.of(key) for key in (SERVER, FRONT, GONE, PROCESS)] == [(3, 3), (4, 4), (0, 0), (0, 0)]
    new.fold(old)  # what it counted is the new one's now, and not to be counted again
    rates.tick([new, old])
    assert [rates.of(key) for key in (SERVER, FRONT)] == [(0, 3), (0, 4)]
    for table in (old, new):
        table.close()


def test_what_workers_decide_by_is_what_is_asked_one_by_one() -> None:
    table = Table.create([PROCESS, SERVER], 1, 1)
    row = table.index[SERVER]
    assert not table.any_health()
    for state in ServerState:
        for weight in (0, 3):
            for health in Health:
                table.set_state(row, state, weight, 1)
                table.set_health(row, HealthRecord(health, identity=7, up_since=11))
                running = health is not Health.DOWN and state is not ServerState.MAINT
                usable = running and state is ServerState.READY and weight > 0 and health is not Health.STOPPING
                assert table.standing(row) == (state, weight, running, usable, 11)
                assert (table.state(row), table.weight(row), table.up_since(row)) == (state, weight, 11)
                assert (table.running(row), table.usable(row)) == (running, usable)
                assert table.usable_rows()[row] == usable
    assert table.any_health()
    table.close()
