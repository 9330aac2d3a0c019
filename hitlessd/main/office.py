"""What a main process holds while it serves: shared by those parts of it that replace, stop and report it."""

from __future__ import annotations

import os
import signal
import socket
import time
from typing import Any

from hitlessd import __version__
from hitlessd.dataclass import dataclass, field
from hitlessd.errors import PeerError
from hitlessd.events import Event
from hitlessd.handover.process import PeerProcess
from hitlessd.handover.wire import MAX_FDS
from hitlessd.log import Logger
from hitlessd.main import status
from hitlessd.main.equipment import Equipment
from hitlessd.main.inheritance import Ancestor
from hitlessd.main.pidfile import Pidfile
from hitlessd.model import Config
from hitlessd.runtime.server import RuntimeServer
from hitlessd.table import Table
from hitlessd.web.message import Grant
from hitlessd.web.passage import KINDS
from hitlessd.web.server import WebServer

__all__ = ["Office", "send_signal"]


@dataclass(slots=True)
class Office:
    """One generation's. `ancestors` are the generations before it that still drain, the oldest first."""

    config: Config
    generation: int
    equipment: Equipment
    server: RuntimeServer
    web: WebServer
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
        """Accept clients of main's own: of the runtime API and of metrics."""
        for stats, listener in self.equipment.runtime:
            self.server.add_listener(stats, listener.sock)
        for _, listener in self.equipment.metrics:
            self.web.add_listener(listener.sock, Grant("metrics"))

    def close_runtime(self) -> None:
        """Accept none any more; those that are there stay."""
        for _, listener in self.equipment.runtime:
            self.server.remove_listener(listener.sock)
        for _, listener in self.equipment.metrics:
            self.web.remove_listener(listener.sock)

    def export_clients(self) -> list[tuple[int, dict[str, Any]]]:
        """Give them all away, for a successor: descriptors, and what import_client() needs of each."""
        runtime = [(sock.detach(), state) for sock, state in self.server.export_clients()]
        return runtime + self.web.export_clients(MAX_FDS - len(runtime))

    def import_client(self, fd: int, state: dict[str, Any]) -> None:
        """Go on with what another generation exported. Owns `fd`. Raises PeerError, the descriptor closed."""
        if state.get("kind") in KINDS:
            self.web.import_client(fd, state)
            return
        try:
            sock = socket.socket(fileno=fd)
        except OSError as error:
            os.close(fd)
            raise PeerError(f"cannot take over a client: {error.strerror}") from None
        self.server.import_client(sock, state)

    def unlink_paths(self) -> None:
        """Remove the unix paths that are ours alone."""
        listeners = [] if self.given else self.equipment.listeners
        for listener in (*(listener for _, listener in listeners), *self.equipment.mains):
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
