"""What a main process holds while it serves: shared by those parts of it that replace, stop and report it."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import dataclass, field

from hitlessd import __version__
from hitlessd.errors import PeerError
from hitlessd.events import Event
from hitlessd.handover.process import PeerProcess
from hitlessd.log import Logger
from hitlessd.main import status
from hitlessd.main.equipment import Equipment
from hitlessd.main.inheritance import Ancestor
from hitlessd.main.pidfile import Pidfile
from hitlessd.model import Config
from hitlessd.runtime.server import RuntimeServer
from hitlessd.table import Table

__all__ = ["Office", "send_signal"]


@dataclass(slots=True)
class Office:
    """One generation's. `ancestors` are the generations before it that still drain, the oldest first."""

    config: Config
    generation: int
    equipment: Equipment
    server: RuntimeServer
    pidfile: Pidfile
    config_error: str = ""
    ancestors: list[Ancestor] = field(default_factory=list)
    started: float = field(default_factory=time.monotonic)
    pid: int = field(default_factory=os.getpid)
    stopping: bool = False
    given: bool = False  # a haproxy has taken our listeners, and may serve our unix paths

    def tables(self) -> list[Table]:
        """Ours first, then those of the ancestors, the youngest first."""
        return [self.equipment.table, *(ancestor.table for ancestor in reversed(self.ancestors))]

    def sessions(self) -> int:
        """Connections now, over all generations."""
        return status.sessions(self.tables())

    def as_ancestor(self) -> Ancestor:
        """What the next generation will know us as."""
        workers = [pid for _, pid in sorted(self.equipment.pool.members())]
        return Ancestor(self.generation, self.pid, self.equipment.table, self.started, __version__, workers)

    def open_runtime(self) -> None:
        """Accept clients of the runtime API."""
        for stats, listener in self.equipment.runtime:
            self.server.add_listener(stats, listener.sock)

    def close_runtime(self) -> None:
        """Accept none any more; those that are there stay."""
        for _, listener in self.equipment.runtime:
            self.server.remove_listener(listener.sock)

    def unlink_paths(self) -> None:
        """Remove the unix paths that are ours alone."""
        listeners = [] if self.given else self.equipment.listeners
        for _, listener in (*listeners, *self.equipment.runtime):
            listener.unlink()

    def signal_ancestors(self, number: signal.Signals, log: Logger) -> None:
        for ancestor in self.ancestors:
            if ancestor.process:
                send_signal(ancestor.pid, number, log)


def send_signal(pid: int, number: signal.Signals, log: Logger) -> None:
    """Signal a process if it is still there, as HAProxy does with -sf and -st."""
    try:
        process = PeerProcess(pid)
    except PeerError:
        return
    try:
        process.signal(number)
    except PeerError as error:
        log("warning", str(error), event=Event.SIGNAL_FAILED, pid=pid)
    finally:
        process.close()
