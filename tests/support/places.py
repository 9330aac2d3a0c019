"""Where a handover can go wrong: every state of both transition tables, as fault injection names them."""

from __future__ import annotations

from hitlessd.handover.states import PREDECESSOR, SUCCESSOR, State

__all__ = ["places"]


def places() -> list[str]:
    """Every state that either side can be in, but for the end of a failed attempt."""
    found = []
    for role, table in (("predecessor", PREDECESSOR), ("successor", SUCCESSOR)):
        states = {state for state, _ in table} | {step.state for step in table.values()}
        # A successor that is done is simply the main process.
        final = {State.FAILED} | ({State.DONE} if role == "successor" else set())
        found += [f"{role}.{state.value}" for state in State if state in states - final]
    return found
