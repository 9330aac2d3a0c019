"""The orders that main gives a worker over the channel, and the answers.

An order may carry a number, "r", which its answer repeats.
"""

from __future__ import annotations

import os
import select
import socket
from collections import deque
from typing import TYPE_CHECKING, Any, NoReturn

from hitlessd import channel, latecomers
from hitlessd.descriptors import close_all
from hitlessd.errors import PeerError
from hitlessd.events import Event
from hitlessd.worker import changes, sessions
from hitlessd.worker.emigration import Emigration
from hitlessd.worker.immigration import Immigration
from hitlessd.worker.resumption import Resumption

if TYPE_CHECKING:
    from hitlessd.worker.loop import Worker

__all__ = ["Orders"]


class Orders:
    """The worker's end of the channel."""

    def __init__(self, worker: Worker, sock: socket.socket) -> None:
        self._worker = worker
        self._sock = sock
        self._fd = sock.fileno()
        self._outbox: deque[dict[str, Any]] = deque()
        worker.handlers[self._fd] = self.on_event
        worker.epoll.register(self._fd, select.EPOLLIN)

    @property
    def answered(self) -> bool:
        """Main has, or will find, every answer."""
        return not self._outbox

    def on_event(self, events: int) -> None:
        """Main has something to say, or room for answers."""
        if events & select.EPOLLOUT:
            self._post()
        if not events & (select.EPOLLIN | select.EPOLLHUP | select.EPOLLERR):
            return
        try:
            message, fds = channel.receive_with(self._sock)
        except BlockingIOError:
            return
        except PeerError as error:
            self._worker.log("err", str(error), event=Event.BUG)
            return
        except OSError:
            message, fds = None, []
        if message is None:
            # Main is gone. What would be left of us nobody could stop.
            self._worker.log("crit", "the main process is gone: this worker ends", event=Event.MAIN_LOST)
            self._worker.write_counters()
            os._exit(1)
        self._follow(message, fds)

    def tell(self, what: str, **more: Any) -> None:
        """Tell main what it did not ask for."""
        self._outbox.append({"did": what, **more})
        self._post()

    def pass_on(self, message: dict[str, Any], fd: int) -> bool:
        """Give main a descriptor, of which ours stays ours; False if it does not take it now."""
        if self._outbox:
            return False
        try:
            channel.send(self._sock, message, [fd])
        except OSError:
            return False
        return True

    def answer(self, order: dict[str, Any], **more: Any) -> None:
        """Tell main that the order is carried out, and what came of it: the table has it already."""
        self._worker.write_counters()
        told = {"did": order.get("do"), **more}
        if "r" in order:
            told["r"] = order["r"]
        self._outbox.append(told)
        self._post()

    def _follow(self, message: dict[str, Any], fds: list[int]) -> None:
        worker = self._worker
        order = message.get("do")
        more: dict[str, Any] = {}
        match order:
            case "accept" | "resume":
                worker.accept(True)
            case "pause":
                worker.accept(False)
            case "stop":
                worker.stop_accepting()
            case "drain":
                worker.drain(frozenset(message.get("leave", ())))
            case "sweep":
                worker.sweep()
            case "ping":
                worker.follow_clock()
                more = {"n": message.get("n"), "sessions": len(worker.connections)}
            case "quit" | "hurry":
                self._end_now(str(order))
            case "park":
                self._park_all(message)
            case "resume-parked":
                Resumption.of(worker, str(message.get("name")), fds, bool(message.get("cold")), message, self.answer)
                return
            case "migrate":
                for arrival in list(worker.arrivals):
                    arrival.close()
                Emigration(worker, fds, lambda report: self.answer(message, **report), message.get("ways", 0))
                return
            case "adopt":
                for fd in fds:
                    Immigration(worker, fd)
                fds = []
            case "complete":
                # So late that nobody waits for it: a few milliseconds in all.
                for _ in latecomers.imports(latecomers.WORKERS):
                    pass
            case "have":
                wanted = frozenset(message.get("numbers", ()))
                found = [conn.number for conn in worker.connections if conn.number in wanted]
                more = {"have": found, "arriving": bool(worker.arrivals)}
            case "change":
                more = changes.change(worker, message)
            case "shut-frontend":
                more = changes.shut_frontend(worker, message)
            case "clear-maxima":
                more = changes.clear_maxima(worker, message)
            case "show-sessions":
                more = sessions.show(worker, message)
            case "shutdown-session":
                more = sessions.shut_down(worker, message)
            case _:
                worker.log("err", f"cannot follow the order {order!r}: unknown", event=Event.BUG)
                close_all(fds)
                return
        close_all(fds)
        self.answer(message, **more)

    def _post(self) -> None:
        """Send answers; what does not fit waits until main has read."""
        while self._outbox:
            try:
                channel.send(self._sock, self._outbox[0])
            except BlockingIOError:
                self._worker.epoll.modify(self._fd, select.EPOLLIN | select.EPOLLOUT)
                return
            except OSError:
                pass  # main is gone; the end of the channel is read next
            self._outbox.popleft()
        self._worker.epoll.modify(self._fd, select.EPOLLIN)

    def _park_all(self, order: dict[str, Any]) -> NoReturn:
        """Serve nobody any more, and end; whoever comes after us goes on with all that are here."""
        parked, lost = self._worker.parking.freeze()
        self.answer(order, parked=parked, lost=lost)
        os._exit(0)

    def _end_now(self, order: str) -> NoReturn:
        """Close every connection, then the process."""
        worker = self._worker
        count = len(worker.connections)
        for conn in list(worker.connections):
            try:
                conn.cause = conn.cause or "KD"
                conn.close()
            except Exception:
                worker.crashed(conn)
        worker.settle()
        worker.write_counters()
        if order == "hurry":
            text = f"{count} connections were closed because the time to drain was over"
            worker.log("warning", text, event=Event.HARD_STOP, closed=count)
        os._exit(0)
