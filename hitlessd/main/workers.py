"""The workers of one generation: forked, asked, watched and replaced. Main never dies of a worker."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import gc
import os
import signal
import socket
import stat
import sys
from collections.abc import Callable, Sequence
from typing import Any

from hitlessd import channel, worker
from hitlessd.bugs import account
from hitlessd.descriptors import ShortOfDescriptors, close_all, open_descriptors
from hitlessd.errors import PeerError
from hitlessd.events import Event
from hitlessd.handover.process import PeerProcess
from hitlessd.log import Log
from hitlessd.loop import READ, Loop, Timer
from hitlessd.main.parks import Parks
from hitlessd.model import Bind, Config
from hitlessd.parking.park import PARTS, Park
from hitlessd.table import PROCESS, Column, Table

__all__ = ["Answer", "Pool", "Visited"]

#: Pings that a worker may leave unanswered; they go out once a second, so that a stopped machine costs no worker.
_PATIENCE = 5
#: Seconds a worker may take to stop accepting before it is killed: a handover waits for it.
_STOP_PATIENCE = 5.0
#: Seconds to wait before a worker that died soon after its start is forked again: doubled each time, up to the limit.
_BACK_OFF, _LONGEST_BACK_OFF = 0.05, 0.5
_SOON = 10.0
#: Seconds until descriptors that the kernel did not let pass are sent again, and how often.
_AGAIN, _TRIES = 0.05, 100
_PR_SET_PDEATHSIG = 1
_MAINS_SIGNALS = (
    signal.SIGTERM,
    signal.SIGINT,
    signal.SIGHUP,
    signal.SIGUSR1,
    signal.SIGUSR2,
    signal.SIGTTOU,
    signal.SIGTTIN,
)


#: What a worker answered to an order; None when it died first.
Answer = dict[str, Any] | None
#: Called with a client's socket, from then on the callee's, and the message that came with it.
Visited = Callable[[socket.socket, dict[str, Any]], object]


def die_with(parent: int) -> None:
    """Have the kernel kill this process when its parent ends, even if it is stopped then (prctl(2))."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)


class _Worker:
    """A worker process as main knows it."""

    def __init__(self, index: int, pid: int, sock: socket.socket, park: Park | None, started: float) -> None:
        self.index = index
        self.pid = pid
        self.process = PeerProcess(pid)
        self.sock = sock
        self.park = park
        self.started = started
        self.unanswered = 0
        self.alive = False
        self.waiting: dict[int, tuple[str, Callable[[Answer], object]]] = {}  # by the number of the request


class Pool:
    """All workers of this generation. `state` is what they were told last: idle, accept, pause, stop or drain."""

    def __init__(
        self,
        loop: Loop,
        log: Log,
        config: Config,
        listeners: Sequence[tuple[str, Bind, socket.socket]],
        table: Table,
        share: int,
        parks: Parks,
    ) -> None:
        self._loop = loop
        self._log = log
        self._config = config
        self._listeners = list(listeners)
        self._table = table
        self._share = share
        self._parks = parks
        self._when_bereaved: Callable[[Park, int, int], object] = lambda _park, _index, _lost: None
        self._when_replaced: Callable[[], object] = lambda: None
        self._when_observed: Callable[[str, str, str], object] = lambda _backend, _server, _text: None
        self._visits: list[tuple[socket.socket, dict[str, Any]]] = []  # before anybody wants to hear of them
        self._when_visited: Visited = lambda sock, message: self._visits.append((sock, message))
        self._wake = [os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC) for _ in range(table.workers)]
        self._workers: dict[int, _Worker] = {}
        self._back_off = [0.0] * table.workers
        self._when_gone: Callable[[], object] | None = None
        self._paused = False
        self._stop_timer: Timer | None = None
        self._requests = 0
        self.state = "idle"
        self.deaths = 0

    def reconfigure(self, config: Config, share: int) -> None:
        """Workers that are forked from now on begin with this; `share` is each one's part of the global maxconn."""
        self._config = config
        self._share = share

    def start(self) -> None:
        """Fork them all. Raises OSError."""
        # Frozen, the parent's objects stay shared; the child's collector would copy every page. There is little garbage
        # among them, and to look for it would take 10 ms of each reload.
        gc.freeze()
        for index in range(self._table.workers):
            self._fork(index)
        gc.unfreeze()

    @property
    def alive(self) -> bool:
        """All are there and have given a sign of life."""
        return len(self._workers) == self._table.workers and all(w.alive for w in self._workers.values())

    def members(self) -> list[tuple[int, int]]:
        """(index, pid) of each."""
        return [(w.index, w.pid) for w in self._workers.values()]

    def tell(self, order: str, done: Callable[[], object] | None = None, **more: Any) -> None:
        """Give all workers an order of the channel; `done` is called when each has answered or is dead.

        Whoever hands over, or leaves, can be neither paused nor resumed: another generation accepts. It is remembered,
        should this one accept again.
        """
        if order in ("pause", "resume"):
            self._paused = order == "pause"
            if self.state in ("idle", "stop", "drain", "quit", "hurry", "park"):
                if done:
                    self._loop.call_soon(done)
                return
        elif order == "accept" and self._paused:
            order = "pause"
        self.state = {"resume": "accept", "sweep": self.state}.get(order, order)
        self.ask(order, (lambda _answers: done()) if done else None, **more)

    def ask(self, order: str, done: Callable[[list[Answer]], object] | None = None, **more: Any) -> None:
        """Send an order to all workers; `done` gets what each has answered, None for one that died first."""
        answers: dict[int, Answer] = {}
        members = list(self._workers.values())

        def answered(index: int, answer: Answer) -> None:
            answers[index] = answer
            if len(answers) == len(members) and done:
                self._loop.call_soon(lambda: done([answers[index] for index in sorted(answers)]))

        if not members and done:
            self._loop.call_soon(lambda: done([]))
        for member in members:
            self._ask_one(member, {"do": order, **more}, lambda answer, i=member.index: answered(i, answer))  # type: ignore[misc]

    def migrate(self, receivers: int, done: Callable[[dict[str, Any]], object]) -> list[int]:
        """Have all move their connections to the `receivers` workers of a successor; `done` gets the report of all, see
        worker/emigration.py. Returns the far ends of the ways, as many as make every sender and every receiver busy;
        they are the caller's."""
        members = [self._workers[index] for index in sorted(self._workers)]
        near: dict[int, list[socket.socket]] = {member.index: [] for member in members}
        far: list[int] = []
        for number in range(max(len(members), receivers) if members else 0):
            one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            near[members[number % len(members)].index].append(one)
            far.append(other.detach())
        report: dict[str, Any] = {"moved": 0, "kept": {}, "lost": 0}
        waiting = len(members)

        def answered(answer: Answer) -> None:
            nonlocal waiting
            waiting -= 1
            for name in ("moved", "lost"):
                report[name] += (answer or {}).get(name, 0)
            for why, number in (answer or {}).get("kept", {}).items():
                report["kept"][why] = report["kept"].get(why, 0) + number
            if not waiting:
                self._loop.call_soon(lambda: done(report))

        if not members:
            self._loop.call_soon(lambda: done(report))
        for member in members:
            ways = near[member.index]
            self._ask_one(member, {"do": "migrate", "ways": len(far)}, answered, [way.fileno() for way in ways])
            for way in ways:
                way.close()
        return far

    def adopt(self, fds: Sequence[int]) -> None:
        """Give our workers the far ends of a predecessor's ways, in turn; owns them."""
        members = [self._workers[index] for index in sorted(self._workers)]
        for number, fd in enumerate(fds):
            # Without a worker the way ends here, and the sender keeps what it has.
            if members:
                self._ask_one(members[number % len(members)], {"do": "adopt"}, fds=[fd])
            os.close(fd)

    def stop_accepting(self, done: Callable[[], object]) -> None:
        """As tell("stop"), but a worker that does not answer in time is killed: it must not accept any more."""
        waiting = list(self._workers.values())
        if self._stop_timer:
            self._stop_timer.cancel()  # of a handover that was called off
        timer = self._stop_timer = self._loop.call_later(_STOP_PATIENCE, lambda: self._kill_silent(waiting, "stop"))

        def finished() -> None:
            timer.cancel()
            done()

        self.tell("stop", finished)

    def park(self, done: Callable[[list[Answer]], object]) -> None:
        """Have all workers park what they serve, and end; `done` gets what each has answered."""
        self.state = "park"
        self.ask("park", done)

    def when_bereaved(self, died: Callable[[Park, int, int], object], replaced: Callable[[], object]) -> None:
        """Call back when a worker has died, with its park, its index, and how many connections died with it; and when
        there is another one in its place."""
        self._when_bereaved, self._when_replaced = died, replaced

    def when_observed(self, callback: Callable[[str, str, str], object]) -> None:
        """Call back with a backend, a server of it, and a text, when workers have seen too many errors of it."""
        self._when_observed = callback

    def when_visited(self, callback: Visited) -> None:
        """Call back with each client that a worker passes on to main, those included that are here already."""
        self._when_visited = callback
        while self._visits:
            callback(*self._visits.pop(0))

    def resume_parked(self, park: Park, index: int, cold: bool, done: Callable[[Answer], object]) -> bool:
        """Have worker `index` go on with what is parked there, or another one, if there will be none of that index;
        False when there is nobody just now. `done` gets its report; None when it died first."""
        members = [self._workers[i] for i in sorted(self._workers)]
        member = self._workers.get(index % self._table.workers)
        if member is None and members and self._when_gone is not None:
            member = members[0]
        if member is None:
            return False
        parts = park.parts()
        order = {"do": "resume-parked", "name": park.name, "cold": cold}
        self._ask_one(member, order, done, [parts[part] for part in PARTS])
        return True

    def when_gone(self, callback: Callable[[], object]) -> None:
        """From now on nobody is replaced; call back when the last one has ended."""
        self._when_gone = callback
        if not self._workers:
            self._loop.call_soon(callback)

    def tick(self) -> None:
        """Once a second: ask for a sign of life, and end who has given none for long."""
        for member in list(self._workers.values()):
            if member.unanswered >= _PATIENCE:
                text = f"worker {member.index} (pid {member.pid}) does not answer: killing it"
                self._log("err", text, event=Event.WORKER_SILENT, worker=member.index, pid=member.pid)
                self._kill(member)
            else:
                member.unanswered += 1
                self._send(member, {"do": "ping", "n": member.unanswered})

    def close_listeners(self) -> None:
        """Main's own copies are closed by their owner; forget them, so that a later fork does not use them."""
        self._listeners.clear()

    def kill_all(self) -> None:
        for member in list(self._workers.values()):
            self._kill(member)

    def _fork(self, index: int) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)
        theirs.setblocking(False)
        park = self._parks.create()
        sys.stdout.flush()
        sys.stderr.flush()
        parent = os.getpid()
        pid = os.fork()
        if not pid:
            self._become(index, theirs, park, parent)
        theirs.close()
        member = _Worker(index, pid, ours, park, self._loop.time())
        self._workers[index] = member
        self._loop.add(ours.fileno(), READ, lambda _events: self._heard(member))
        member.process.when_dead(self._loop, lambda: self._buried(member))
        if self.state in ("accept", "pause"):
            self._ask_one(member, {"do": self.state})
        else:
            self._send(member, {"do": "ping", "n": 0})

    def _become(self, index: int, sock: socket.socket, park: Park | None, parent: int) -> None:
        """In the child: shed everything that is main's, then serve. Never returns."""
        try:
            die_with(parent)
            signal.set_wakeup_fd(-1)
            # A signal to the process group is main's to obey; it ends us over the channel, or by SIGKILL.
            for number in _MAINS_SIGNALS:
                signal.signal(number, signal.SIG_IGN)
            keep = {0, 1, 2, sock.fileno(), self._table.fd, *self._wake}
            keep.update(s.fileno() for _, _, s in self._listeners)
            keep.update(park.parts().values() if park else ())
            _close_all_but(keep)
            gc.enable()
            self._log.open()
            worker.run(
                worker.WorkerSetup(
                    index=index,
                    config=self._config,
                    listeners=self._listeners,
                    table=self._table,
                    channel=sock,
                    wake=self._wake,
                    log=self._log,
                    access=self._log,
                    maxconn=self._share,
                    generation=self._table.generation,
                    park=park,
                    park_limit=self._parks.limit,
                    exact=self._parks.exact,
                )
            )
        except BaseException as error:
            with contextlib.suppress(Exception):
                self._log("crit", f"worker {index} ends: {account(error)}", event=Event.BUG)
        finally:
            os._exit(1)

    def _ask_one(
        self,
        member: _Worker,
        message: dict[str, Any],
        done: Callable[[Answer], object] = lambda _answer: None,
        fds: Sequence[int] = (),
    ) -> None:
        self._requests += 1
        member.waiting[self._requests] = (message["do"], done)
        self._send(member, {**message, "r": self._requests}, fds)

    def _send(self, member: _Worker, message: dict[str, Any], fds: Sequence[int] = (), tries: int = _TRIES) -> None:
        try:
            channel.send(member.sock, message, fds)
        except BlockingIOError:
            # A full channel means a worker that reads nothing: the missing pings will end it.
            if message["do"] != "ping":
                self._kill(member)
        except OSError as error:
            if error.errno == errno.ETOOMANYREFS and tries:
                # Too many descriptors of this user are in flight: a state of the system, which passes.
                again = [os.dup(fd) for fd in fds]
                self._loop.call_later(_AGAIN, lambda: self._send_again(member, message, again, tries - 1))
            elif error.errno == errno.ETOOMANYREFS:
                text = f"cannot {message['do']}: too many descriptors are in flight (LimitNOFILE=)"
                self._log("err", text, event=Event.DESCRIPTORS_SHORT)
                _, done = member.waiting.pop(message.get("r", 0), ("", None))
                if done:
                    done(None)
            return  # else it is dead; the pidfd tells

    def _send_again(self, member: _Worker, message: dict[str, Any], fds: list[int], tries: int) -> None:
        try:
            if self._workers.get(member.index) is member:
                self._send(member, message, fds, tries)
        finally:
            close_all(fds)

    def _heard(self, member: _Worker) -> bool:
        """Take one message; False if there was none."""
        fds: list[int] = []
        try:
            message, fds = channel.receive_with(member.sock)
        except BlockingIOError:
            return False
        except ShortOfDescriptors as error:
            text = f"a client that worker {member.index} has passed on is lost: {error}"
            self._log("err", text, event=Event.WEB_CLIENT_DROPPED)
            return True
        except (OSError, PeerError):
            message = None
        if message is None:
            # Its end is closed: it is ending, and will be buried.
            self._loop.remove(member.sock.fileno())
            return False
        member.alive = True
        if message.get("did") == "ping":
            member.unanswered = 0
        elif message.get("did") == "observed":
            self._when_observed(*(str(message.get(name, "")) for name in ("backend", "server", "text")))
        elif message.get("did") == "web" and fds:
            self._when_visited(socket.socket(fileno=fds.pop(0)), message)
        close_all(fds)
        _, done = member.waiting.pop(message.get("r", 0), ("", None))
        if done:
            done(message)
        return True

    def _kill_silent(self, members: Sequence[_Worker], order: str) -> None:
        for member in members:
            if any(waiting == order for waiting, _ in member.waiting.values()):
                text = f"worker {member.index} (pid {member.pid}) does not {order}: killing it"
                self._log("err", text, event=Event.WORKER_SILENT, worker=member.index, pid=member.pid)
                self._kill(member)

    def _kill(self, member: _Worker) -> None:
        with contextlib.suppress(PeerError):
            member.process.signal(signal.SIGKILL)

    def _buried(self, member: _Worker) -> None:
        _, status = os.waitpid(member.pid, 0)
        code = os.waitstatus_to_exitcode(status)
        while self._heard(member):
            pass  # what it said last
        self._loop.remove(member.sock.fileno())
        member.sock.close()
        if self._workers.get(member.index) is member:
            del self._workers[member.index]
        lost = self._table.unparked(member.index)
        self._table.clear_gauges(member.index)
        leaving = self._when_gone is not None
        parked = member.park.book.held() if member.park else 0
        if code or not leaving:
            self.deaths += 1
            self._table.add(PROCESS, Column.DEATHS, 1)
            how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with status {code}"
            self._log(
                "err",
                f"worker {member.index} (pid {member.pid}) {how}; {parked} connections of it are parked,"
                f" {lost} are lost",
                event=Event.WORKER_DIED,
                worker=member.index,
                pid=member.pid,
                parked=parked,
            )
        for _, done in member.waiting.values():
            done(None)
        member.waiting.clear()
        if member.park and (code or not leaving):
            self._when_bereaved(member.park, member.index, lost)
        # What it was woken for and did not accept must not wait for the next connection; a queue may have room now.
        for other in list(self._workers.values()):
            self._send(other, {"do": "sweep"})
            with contextlib.suppress(BlockingIOError):
                os.eventfd_write(self._wake[other.index], 1)
        if leaving:
            if not self._workers and self._when_gone:
                self._when_gone()
            return
        soon = self._loop.time() - member.started < _SOON
        wait = self._back_off[member.index] if soon else 0.0
        self._back_off[member.index] = min(_LONGEST_BACK_OFF, max(_BACK_OFF, wait * 2))
        self._loop.call_later(wait, lambda: self._replace(member.index))

    def _replace(self, index: int) -> None:
        if self._when_gone is not None or index in self._workers or self.state in ("drain", "quit", "park"):
            return
        try:
            self._fork(index)
        except OSError as error:
            text = f"cannot fork worker {index}: {error.strerror}; trying again in {_LONGEST_BACK_OFF:g} s"
            self._log("crit", text, event=Event.WORKER_MISSING, worker=index)
            self._loop.call_later(_LONGEST_BACK_OFF, lambda: self._replace(index))
        else:
            self._when_replaced()


def _close_all_but(keep: set[int]) -> None:
    """Close main's descriptors in a worker, or a client of main would not see us close it.

    Datagram sockets stay: that of the log is among them.
    """
    for fd in open_descriptors():
        if fd in keep:
            continue
        try:
            if stat.S_ISSOCK(os.fstat(fd).st_mode):
                with socket.socket(fileno=os.dup(fd)) as probe:
                    if probe.type == socket.SOCK_DGRAM:
                        continue
            os.close(fd)
        except OSError:
            continue
