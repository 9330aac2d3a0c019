"""Leaving: replaced, told to finish, or told to stop. Whoever is still served by an older generation counts, too."""

from __future__ import annotations

import signal
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from hitlessd.events import Event
from hitlessd.log import Logger
from hitlessd.loop import Loop
from hitlessd.main import status
from hitlessd.main.office import Office
from hitlessd.systemd import Manager

__all__ = ["Departure"]

#: Seconds that SIGTERM leaves the workers, and generations that still drain, to close what they have.
_STOP_PATIENCE = 2.0
#: Seconds that a stop waits, at most, for answers of main's web server that have begun.
_WEB_PATIENCE = 1.0


class Departure:
    """Ends the loop when it is over."""

    def __init__(
        self, loop: Loop, log: Logger, manager: Manager, office: Office, lose: Callable[[Counter[str]], object]
    ) -> None:
        """`lose` counts and logs connections that are lost, by reason."""
        self._lose = lose
        self._loop = loop
        self._log = log
        self._manager = manager
        self._office = office
        self._awaits_ancestors = False
        self._draining = False
        self._drained = False
        self._web_deadline = 0.0  # loop time

    def drain(self, awaits_ancestors: bool, kept: Sequence[int] = ()) -> None:
        """Accept nothing more, serve who is there, then end; hard-stop-after is the last resort.

        `kept`: the successor has these of our listeners, by their place among them, and whoever waits there.
        `awaits_ancestors`: we stay the unit's main process, so that our end would end older generations, too.
        """
        office = self._office
        office.stopping = True
        self._draining = True
        self._awaits_ancestors = awaits_ancestors
        office.close_runtime()
        office.server.close()
        office.web.leave()
        for listener in (*office.equipment.mains, *(listener for _, listener in office.equipment.listeners)):
            listener.close()
        pool = office.equipment.pool
        pool.close_listeners()
        pool.when_gone(self._gone)
        pool.tell("drain", leave=sorted(kept))
        limit = office.config.global_.hard_stop_after
        if limit is not None:
            self._loop.call_later(limit, self._hurry)
        self._watch_workers()

    def finish(self) -> None:
        """SIGUSR1: as drain(), by ourselves and for good."""
        self._log("notice", "finishing: no new connections are accepted", event=Event.FINISHING)
        self._manager.notify(f"STATUS=finishing {self._office.sessions()} connections")
        self._office.unlink_paths()
        self._office.pidfile.remove()
        self.drain(awaits_ancestors=True)

    def stop(self) -> None:
        """SIGTERM: close everything now, older generations included."""
        office = self._office
        keeps = self._manager.has_store
        if not office.stopping:
            self._manager.notify("STOPPING=1", "STATUS=stopping")
            what = "leaving to systemd, for a restart," if keeps else "closing"
            sessions = office.sessions()
            self._log("notice", f"stopping: {what} {sessions} connections", event=Event.STOPPING, sessions=sessions)
            if not keeps:
                office.unlink_paths()
            office.pidfile.remove()
        office.stopping = True
        self._draining = False
        office.web.leave()
        self._web_deadline = self._loop.time() + _WEB_PATIENCE
        office.signal_ancestors(signal.SIGTERM, self._log)
        office.equipment.pool.when_gone(self._stopped)
        if keeps:
            office.equipment.pool.park(self._parked)
        else:
            office.equipment.pool.tell("quit")
        self._loop.call_later(_STOP_PATIENCE, self._stop_hard)

    def ancestor_ended(self) -> None:
        self._end_when_drained()

    def _watch_workers(self) -> None:
        if self._draining:
            self._office.equipment.pool.tick()
            self._loop.call_later(1.0, self._watch_workers)

    def _hurry(self) -> None:
        left = status.sessions([self._office.equipment.table])
        text = f"hard-stop-after has run out: closing {left} connections"
        self._log("warning", text, event=Event.HARD_STOP, closed=left)
        self._office.equipment.pool.tell("hurry")

    def _gone(self) -> None:
        self._log("info", f"generation {self._office.generation} has drained", event=Event.GENERATION_DRAINED)
        self._drained = True
        self._end_when_drained()

    def _end_when_drained(self) -> None:
        if not self._drained or (self._awaits_ancestors and any(x.process for x in self._office.ancestors)):
            return
        # PID 1 must have seen all that we sent before it sees us end.
        self._manager.barrier()
        self._loop.stop()

    def _parked(self, answers: Sequence[dict[str, Any] | None]) -> None:
        """What becomes of them is systemd's business: a stop closes them, a restart goes on with them."""
        lost: Counter[str] = Counter()
        parked = 0
        for answer in answers:
            parked += int((answer or {}).get("parked", 0))
            lost.update((answer or {}).get("lost", {}))
        if parked:
            text = f"{parked} connections are parked and left to systemd"
            self._log("notice", text, event=Event.CONNECTIONS_PARKED, parked=parked)
        self._lose(lost)

    def _stop_hard(self) -> None:
        self._office.equipment.pool.kill_all()
        self._office.signal_ancestors(signal.SIGKILL, self._log)

    def _stopped(self) -> None:
        """systemd kills what is left of the unit as soon as we are gone: let those that drain close in good order."""
        answering = self._office.web.busy and self._loop.time() < self._web_deadline
        if not answering and not any(ancestor.process for ancestor in self._office.ancestors):
            self._loop.stop()
        else:
            self._loop.call_later(0.02, self._stopped)
