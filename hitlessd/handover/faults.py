"""Fault injection: a process that kills or stops itself at a place of the handover, for the tests.

Active only when HITLESSD_FAULTS names a file. Its text, for example `predecessor.offer SIGKILL`, is removed before the
signal is raised, so that it strikes once.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Mapping

from hitlessd.handover.states import State

__all__ = ["injector", "striker"]


def injector(role: str, environment: Mapping[str, str]) -> Callable[[State], None]:
    """What to call on entering a state; does nothing in production."""
    strike = striker(role, environment)
    return lambda state: strike(state.value)


def striker(role: str, environment: Mapping[str, str]) -> Callable[[str], None]:
    """What to call at a place of that name; does nothing in production."""
    path = environment.get("HITLESSD_FAULTS")
    if not path:
        return lambda _place: None

    def strike(place: str) -> None:
        try:
            with open(path, encoding="ascii") as file:
                where, _, name = file.read().strip().partition(" ")
        except (OSError, ValueError):
            return
        if where == f"{role}.{place}":
            try:
                os.unlink(path)
            except FileNotFoundError:
                return  # it has just struck somebody else
            os.kill(os.getpid(), signal.Signals[name])

    return strike
