"""Taking connections over from a worker of the predecessor: one end of a SOCK_SEQPACKET pair, see emigration.py."""

from __future__ import annotations

import os
import select
import socket
from typing import TYPE_CHECKING

from hitlessd import channel
from hitlessd.descriptors import close_all
from hitlessd.errors import PeerError
from hitlessd.events import Event
from hitlessd.handover.faults import striker
from hitlessd.worker.batch import Batch
from hitlessd.worker.connection import Connection, State
from hitlessd.worker.lanes import Places, Proxies
from hitlessd.worker.relay import ignore
from hitlessd.worker.serial import Frozen, resume, resume_idle

if TYPE_CHECKING:
    from hitlessd.worker.loop import Worker

__all__ = ["Immigration"]


class Immigration:
    """Takes what comes until the sender closes its end; a batch a turn, so that others are served between two."""

    def __init__(self, worker: Worker, fd: int) -> None:
        """Owns the descriptor."""
        self._worker = worker
        self._batches = 0
        # Records of all batches so far.
        self._frontends: Proxies = {}
        self._backends: Proxies = {}
        self._strike = striker("immigration", os.environ)
        self._sock = socket.socket(fileno=fd)
        self._sock.setblocking(False)
        worker.arrivals.add(self)
        worker.handlers[fd] = self._on_event
        worker.epoll.register(fd, select.EPOLLIN)

    def close(self) -> None:
        """Take no more; the sender takes back what is on its way."""
        worker = self._worker
        if self not in worker.arrivals:
            return
        worker.arrivals.discard(self)
        worker.epoll.unregister(self._sock.fileno())
        worker.handlers[self._sock.fileno()] = ignore
        self._sock.close()

    def _on_event(self, _events: int) -> None:
        try:
            message, fds = channel.receive_with(self._sock)
        except BlockingIOError:
            return
        except PeerError as error:
            return self._refuse(str(error))
        except OSError:
            message, fds = None, []
        if message is None:
            return self.close()
        if message.get("is") != "batch" or not fds:
            close_all(fds)
            return self._refuse("the successor does not understand them")
        try:
            batch = Batch.read(fds[0])
        except PeerError as error:
            close_all(fds[1:])
            return self._refuse(str(error))
        try:
            self._take(batch, batch.thaw(fds[1:]))
        except PeerError as error:
            self._refuse(str(error))
        finally:
            batch.close()

    def _take(self, batch: Batch, connections: list[Frozen]) -> None:
        worker = self._worker
        self._batches += 1
        taken: dict[Connection, int] = {}
        self._frontends |= batch.frontends
        self._backends |= batch.backends
        places = Places(worker.lanes, self._frontends, self._backends)
        for position, frozen in enumerate(connections):
            batch.claim(position)
            try:
                if frozen.serial.state == State.POOLED:
                    resume_idle(worker, frozen)
                    continue
                conn = resume(worker, frozen, places, batch.elapsed)
            except Exception as error:
                worker.complain(
                    f"a connection is lost: cannot take it over: {error}", event=Event.CONNECTIONS_LOST, lost=1
                )
                frozen.reset()
                continue
            taken[conn] = position
        self._strike(f"claim-{self._batches}")
        worker.welcome(list(taken))
        # Kept first: the sender must not go on with what our heir has. Who dies in between has lost one.
        worker.parking.admit(taken, lambda conn: batch.keep(taken[conn]))
        # Nothing of them was read or written: had we died, the sender would go on with those that are not parked.
        batch.count()
        # Before anybody knows: whoever hears of the move may ask at once how many are here.
        worker.write_counters()
        try:
            channel.send(self._sock, {"is": "taken", "remembers": True})
        except OSError:
            pass  # the sender is gone; what it sent is still to be read
        self._strike(f"batch-{self._batches}")

    def _refuse(self, why: str) -> None:
        """Nothing of this batch is claimed. Say why, so that the operator learns it."""
        self._worker.log("err", f"cannot take over connections: {why}", event=Event.MOVING_FAILED, reason=why)
        try:
            channel.send(self._sock, {"is": "refused", "why": why})
        except OSError:
            pass
        self.close()
