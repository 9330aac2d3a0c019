"""The handover's transition tables, every pair of them."""

from __future__ import annotations

import itertools

import pytest

from hitlessd.errors import StateError
from hitlessd.handover.faults import injector
from hitlessd.handover.states import PREDECESSOR, SUCCESSOR, Action, Event, Machine, State, Step, Table

TABLES = {"predecessor": PREDECESSOR, "successor": SUCCESSOR}
FINAL = (State.DONE, State.FAILED)
TROUBLE = (Event.LOST, Event.SILENT, Event.GARBAGE)


def _states(table: Table) -> set[State]:
    return {state for state, _ in table} | {step.state for step in table.values()}


@pytest.mark.parametrize("side", TABLES)
@pytest.mark.parametrize(("state", "event"), list(itertools.product(State, Event)))
def test_every_pair_is_as_listed_or_raises_and_changes_nothing(side: str, state: State, event: Event) -> None:
    table = TABLES[side]
    machine = Machine(table)
    machine.state = state
    step = table.get((state, event))
    if step is None:
        with pytest.raises(StateError, match=f"'{event.value}' in state '{state.value}'"):
            machine.handle(event)
        assert machine.state is state
    else:
        assert machine.handle(event) is step.action
        assert machine.state is step.state


@pytest.mark.parametrize("side", TABLES)
def test_every_state_but_the_last_handles_a_peer_in_trouble(side: str) -> None:
    table = TABLES[side]
    for state in _states(table):
        handled = {event for event in TROUBLE if (state, event) in table}
        assert handled == (set() if state in FINAL else set(TROUBLE)), state


@pytest.mark.parametrize("side", TABLES)
def test_a_final_state_is_reachable_from_every_state_and_every_state_from_the_first(side: str) -> None:
    table = TABLES[side]

    def reach(start: State) -> set[State]:
        found, queue = {start}, [start]
        while queue:
            here = queue.pop()
            new = {step.state for (state, _), step in table.items() if state is here} - found
            found |= new
            queue += new
        return found

    for state in _states(table):
        assert reach(state) & set(FINAL), state
    assert reach(State.HELLO) == _states(table)


@pytest.mark.parametrize("side", TABLES)
def test_nothing_leaves_a_final_state(side: str) -> None:
    assert not [pair for pair in TABLES[side] if pair[0] in FINAL]


def test_a_predecessor_that_may_have_stopped_accepting_resumes_only_over_a_dead_successor() -> None:
    for state in (State.ACCEPT, State.STOP, State.COMMIT, State.MIGRATE):
        for event in TROUBLE:
            assert PREDECESSOR[state, event] == Step(State.FAILED, Action.KILL_AND_RESUME)
    # Once its workers take connections over it is not ended for being slow, but it may still die.
    assert PREDECESSOR[State.MOVE, Event.LOST] == Step(State.FAILED, Action.KILL_AND_RESUME)
    assert PREDECESSOR[State.MOVE, Event.SILENT] == Step(State.DONE, Action.DRAIN)
    assert all(step.action is not Action.FORGET or event is Event.REFUSE for (_, event), step in PREDECESSOR.items())


def test_a_successor_replaces_its_predecessor_only_over_its_dead_body_until_it_is_main() -> None:
    for state in (State.HELLO, State.OFFER, State.ACCEPT):
        assert {SUCCESSOR[state, event] for event in TROUBLE} == {Step(State.FAILED, Action.REPLACE)}
    for state in (State.COMMIT, State.MIGRATE, State.MOVE):
        assert {SUCCESSOR[state, event] for event in TROUBLE} == {Step(State.DONE, Action.NOTHING)}


def test_the_straight_path_of_both_sides() -> None:
    predecessor = Machine(PREDECESSOR)
    path = (Event.HELLO, Event.NEXT, Event.NEXT, Event.READY, Event.ACCEPTING, Event.STOPPED, Event.COMMITTED)
    assert [predecessor.handle(event) for event in (*path, Event.ADOPTED, Event.MOVED)] == [
        Action.SEND_OFFER,
        Action.SEND_BATCH,
        Action.SEND_BATCH,
        Action.SEND_GO,
        Action.STOP_WORKERS,
        Action.COMMIT,
        Action.MIGRATE,
        Action.NOTHING,
        Action.DRAIN,
    ]
    successor = Machine(SUCCESSOR)
    straight = (Event.OFFER, Event.BATCH, Event.PREPARED, Event.GO, Event.SERVING, Event.COMMIT, Event.SERVING)
    actions = [successor.handle(event) for event in (*straight, Event.MIGRATE, Event.MOVED)]
    assert actions[-4:] == [Action.TAKE_OVER, Action.NOTHING, Action.ADOPT, Action.NOTHING]
    assert predecessor.state is successor.state is State.DONE


def test_fault_injection_is_asleep_without_its_variable() -> None:
    injector("predecessor", {})(State.HELLO)
    injector("predecessor", {"HITLESSD_FAULTS": "/nonexistent/file"})(State.HELLO)
