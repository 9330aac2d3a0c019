"""What a start and a reload came to: the outcome for those who asked, and the lines for the log."""

from __future__ import annotations

import os
import time

from hitlessd import __version__
from hitlessd.events import Event
from hitlessd.log import Logger
from hitlessd.main.birth import Born
from hitlessd.main.equipment import Equipment
from hitlessd.main.limits import store_entries, store_problem
from hitlessd.main.office import Office
from hitlessd.runtime.control import ReloadOutcome
from hitlessd.systemd import Manager

__all__ = ["outcome_of", "phases_of", "say_ready"]

#: Listeners of a reload that are named in the log, opened and closed ones each.
_MOST_LISTENERS = 100


def phases_of(born: Born) -> tuple[tuple[str, float], ...]:
    """What of the reload took how long, in seconds; nothing for a start."""
    return born.phases.all(born.inheritance.reloads.get("began")) if born.phases else ()


def outcome_of(born: Born, number: int) -> ReloadOutcome | None:
    """Of the reload that brought this generation up, as far as it has come; None if there was none."""
    began = born.inheritance.reloads.get("began")
    if not isinstance(began, int | float) or not began:
        return None
    duration = time.monotonic() - began
    equipment = born.equipment
    summary = (
        f"generation {born.generation} (pid {os.getpid()}) serves, took {duration * 1000:.0f} ms;"
        f" listeners: {equipment.taken} taken, {equipment.bound} bound, {len(equipment.unwanted)} closed"
    )
    summary = "\n".join([summary, *born.config.warnings])
    return ReloadOutcome(
        number,
        True,
        summary,
        duration,
        time.time(),
        born.generation,
        taken=equipment.taken,
        bound=equipment.bound,
        closed=len(equipment.unwanted),
    )


def say_ready(
    log: Logger, office: Office, manager: Manager, outcome: ReloadOutcome | None, predecessor: int, moved: int
) -> None:
    """Log that this generation serves, with what is wrong; `outcome` if it was reloaded, from process `predecessor`,
    of which `moved` connections have come."""
    equipment = office.equipment
    for warning in office.config.warnings:
        log("warning", warning, event=Event.CONFIGURATION_WARNING)
    if equipment.limits.shortage:
        log("warning", equipment.limits.shortage, event=Event.DESCRIPTORS_SHORT)
    if problem := _store_problem(equipment, manager):
        log("warning", problem, event=Event.STORE_SMALL)
    fields = {
        "pid": os.getpid(),
        "workers": equipment.table.workers,
        "taken": equipment.taken,
        "bound": equipment.bound,
        "closed": len(equipment.unwanted),
    }
    if outcome:
        told = ",".join(f"{what.replace(' ', '-')}:{took * 1000:.1f}" for what, took in outcome.phases)
        phases = {"phases": told} if told else {}
        log(
            "notice",
            f"reload {outcome.number} done: {outcome.reason.splitlines()[0]}",
            event=Event.RELOAD_DONE,
            **fields,
            reload=outcome.number,
            predecessor=predecessor,
            moved=moved,
            duration_ms=round(outcome.duration * 1000),
            **phases,
        )
        _say_listeners(log, equipment)
    else:
        log(
            "notice",
            f"hitlessd {__version__} serves: generation {office.generation}, {len(equipment.listeners)} listeners"
            f" ({equipment.taken} taken, {equipment.bound} bound), {equipment.table.workers} workers,"
            f" maxconn {equipment.limits.maxconn}",
            event=Event.STARTED,
            **fields,
        )


def _say_listeners(log: Logger, equipment: Equipment) -> None:
    """Which ones a reload has opened and closed."""
    names = {id(listener): want.frontend for want, listener in equipment.listeners}
    for listener in equipment.opened[:_MOST_LISTENERS]:
        frontend = names.get(id(listener), "")
        text = f"listening on {listener.identity} for {frontend or 'the runtime API'}"
        log("info", text, event=Event.LISTENER_ADDED, address=listener.identity, frontend=frontend)
    for listener in equipment.unwanted[:_MOST_LISTENERS]:
        text = f"no longer listening on {listener.identity}"
        log("info", text, event=Event.LISTENER_REMOVED, address=listener.identity)


def _store_problem(equipment: Equipment, manager: Manager) -> str:
    """What the unit does not grant, and what comes of it."""
    if manager.store_limit is None or not manager.has_store:
        return ""
    own = sum(1 for _, listener in equipment.listeners if listener.origin != "systemd")
    entries = store_entries(own, len(equipment.mains), equipment.table.workers)
    return store_problem(entries, manager.store_limit)
