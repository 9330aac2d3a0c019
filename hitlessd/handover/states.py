"""The handover as one table a side: what may happen in which state, and what follows. No I/O.

    predecessor                                   successor
                              <- hello            reads the configuration, says who it is
    offer, batches of listeners ->                asks for each batch, binds what is new, forks its workers
                              <- ready            ... or refuse, with the reason
    go ->                                         its workers start to accept
                              <- accepting
    its workers stop; MAINPID=; commit ->         is main now: READY=1
                              <- committed
    migrate ->                                    its workers get one end of each way
                              <- adopted          they take connections over as they come
    moved ->                                      answers those who wait for the reload
    closes its listeners, drains what is left, BARRIER=1, exits

Everything that can fail comes before MAINPID=: afterwards systemd ends the unit if the successor dies. Whatever happens
in whichever state, exactly one generation accepts afterwards.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import NamedTuple

from hitlessd.errors import StateError

__all__ = ["PREDECESSOR", "SUCCESSOR", "Action", "Event", "Machine", "State"]


class State(Enum):
    """Where a side stands; the names are those that logs and fault injection use."""

    HELLO = "hello"  # waiting for the successor to introduce itself
    OFFER = "offer"  # listeners are being passed, the successor prepares
    ACCEPT = "accept"  # the successor's workers start to accept
    STOP = "stop"  # predecessor: its own workers stop accepting
    COMMIT = "commit"  # predecessor: MAINPID= is sent; successor: says READY=1
    MIGRATE = "migrate"  # the successor serves; its workers get their ends of the ways
    MOVE = "move"  # connections move from worker to worker
    DONE = "done"
    FAILED = "failed"


class Event(Enum):
    """What can happen. Messages are named as on the wire."""

    HELLO = "hello"
    NEXT = "next"
    READY = "ready"
    REFUSE = "refuse"
    ACCEPTING = "accepting"
    STOPPED = "stopped"  # our own workers accept no more
    COMMITTED = "committed"
    MIGRATE = "migrate"
    ADOPTED = "adopted"
    MOVED = "moved"  # the predecessor's workers have given away what they can
    OFFER = "offer"
    BATCH = "batch"
    GO = "go"
    COMMIT = "commit"
    PREPARED = "prepared"  # successor: everything that can fail has succeeded
    SERVING = "serving"  # successor: its workers accept
    LOST = "lost"  # the other side closed the connection
    SILENT = "silent"  # the other side did not answer in time
    GARBAGE = "garbage"  # the other side broke the protocol


class Action(Enum):
    """What the side must do on a transition."""

    NOTHING = "nothing"
    SEND_OFFER = "send offer"
    SEND_BATCH = "send batch"
    SEND_GO = "send go"
    STOP_WORKERS = "stop workers"
    COMMIT = "commit"
    MIGRATE = "migrate"
    DRAIN = "drain"
    FORGET = "forget"  # refused in good order: nothing had changed
    KILL = "kill"  # make sure that the other side is dead, then forget it
    KILL_AND_RESUME = "kill and resume"  # ... then accept again
    ASK_BATCH = "ask batch"
    PREPARE = "prepare"
    SEND_READY = "send ready"
    ACCEPT = "accept"
    SEND_ACCEPTING = "send accepting"
    TAKE_OVER = "take over"
    ADOPT = "adopt"
    REPLACE = "replace"  # the predecessor is dead or must be: go on alone, or leave it to systemd


class Step(NamedTuple):
    state: State
    action: Action


Table = Mapping[tuple[State, Event], Step]


def _whatever(states: tuple[State, ...], events: tuple[Event, ...], step: Step) -> dict[tuple[State, Event], Step]:
    return {(state, event): step for state in states for event in events}


_TROUBLE = (Event.LOST, Event.SILENT, Event.GARBAGE)

PREDECESSOR: Table = {
    (State.HELLO, Event.HELLO): Step(State.OFFER, Action.SEND_OFFER),
    (State.OFFER, Event.NEXT): Step(State.OFFER, Action.SEND_BATCH),
    (State.OFFER, Event.READY): Step(State.ACCEPT, Action.SEND_GO),
    (State.ACCEPT, Event.ACCEPTING): Step(State.STOP, Action.STOP_WORKERS),
    (State.STOP, Event.STOPPED): Step(State.COMMIT, Action.COMMIT),
    (State.COMMIT, Event.COMMITTED): Step(State.MIGRATE, Action.MIGRATE),
    (State.MIGRATE, Event.ADOPTED): Step(State.MOVE, Action.NOTHING),
    # The successor is of a version that takes nobody.
    (State.MIGRATE, Event.MOVED): Step(State.DONE, Action.DRAIN),
    (State.MOVE, Event.MOVED): Step(State.DONE, Action.DRAIN),
    # Its workers may still be at it, and serve what they have; ours give up nothing that was not claimed.
    **_whatever((State.MOVE,), (Event.SILENT, Event.GARBAGE), Step(State.DONE, Action.DRAIN)),
    (State.MOVE, Event.LOST): Step(State.FAILED, Action.KILL_AND_RESUME),
    **_whatever((State.HELLO, State.OFFER), (Event.REFUSE,), Step(State.FAILED, Action.FORGET)),
    **_whatever((State.HELLO, State.OFFER), _TROUBLE, Step(State.FAILED, Action.KILL)),
    **_whatever(
        (State.ACCEPT, State.STOP, State.COMMIT, State.MIGRATE), _TROUBLE, Step(State.FAILED, Action.KILL_AND_RESUME)
    ),
    (State.ACCEPT, Event.REFUSE): Step(State.FAILED, Action.KILL_AND_RESUME),
}

SUCCESSOR: Table = {
    (State.HELLO, Event.OFFER): Step(State.OFFER, Action.ASK_BATCH),
    (State.OFFER, Event.BATCH): Step(State.OFFER, Action.ASK_BATCH),
    (State.OFFER, Event.PREPARED): Step(State.OFFER, Action.SEND_READY),
    (State.OFFER, Event.GO): Step(State.ACCEPT, Action.ACCEPT),
    (State.ACCEPT, Event.SERVING): Step(State.ACCEPT, Action.SEND_ACCEPTING),
    (State.ACCEPT, Event.COMMIT): Step(State.COMMIT, Action.TAKE_OVER),
    (State.COMMIT, Event.SERVING): Step(State.MIGRATE, Action.NOTHING),
    (State.MIGRATE, Event.MIGRATE): Step(State.MOVE, Action.ADOPT),
    **_whatever((State.MIGRATE, State.MOVE), (Event.MOVED,), Step(State.DONE, Action.NOTHING)),
    # A predecessor that refuses (another version, not permitted) lives and serves on.
    **_whatever((State.HELLO, State.OFFER), (Event.REFUSE,), Step(State.FAILED, Action.FORGET)),
    **_whatever((State.HELLO, State.OFFER, State.ACCEPT), _TROUBLE, Step(State.FAILED, Action.REPLACE)),
    # From the commit on we are main, whatever becomes of the predecessor.
    **_whatever((State.COMMIT, State.MIGRATE, State.MOVE), _TROUBLE, Step(State.DONE, Action.NOTHING)),
}


class Machine:
    """One side of one handover. An event that the table does not know raises StateError and changes nothing."""

    def __init__(self, table: Table) -> None:
        self.state = State.HELLO
        self._table = table

    def handle(self, event: Event) -> Action:
        """Move on, and say what must be done now."""
        step = self._table.get((self.state, event))
        if step is None:
            raise StateError(f"cannot handle '{event.value}' in state '{self.state.value}'")
        self.state = step.state
        return step.action
