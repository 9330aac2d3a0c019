"""A spare: a process that has imported all that a successor needs, and waits to be it.

Imports are most of a start, and so of a reload that executes the program anew. A main process therefore forks itself
when it has imported everything and holds nothing. On its first summons that child forks the next spare and goes on as
the successor. All of them wait in turn at one end of the same socket pair, the line; its other end goes from main
process to main process. Where it ends, the spare does.

A process that was forked cannot bring new code to work. A spare compares the files of its modules, its interpreter and
its libraries with what they were, and gives up when any has changed: the successor is executed then.
"""

from __future__ import annotations

import contextlib
import gc
import os
import resource
import select
import signal
import socket
import sys
import time
from collections.abc import Sequence

from hitlessd import channel, latecomers
from hitlessd.config import parse
from hitlessd.dataclass import compile_all, dataclass
from hitlessd.descriptors import close_all, open_descriptors
from hitlessd.errors import PeerError, reason_of
from hitlessd.handover.process import PeerProcess
from hitlessd.handover.successor import Summons
from hitlessd.main.sources import Sources, started
from hitlessd.main.spawn import command_line, fork_orphan
from hitlessd.model import SourceFile
from hitlessd.systemd import leave_no_trace

__all__ = ["NAME", "Place", "Spare", "fork_spare", "prepare"]

#: What ps(1) calls it; at most 15 bytes (comm in proc(5)).
NAME = "hitlessd-spare"
#: Seconds that a spare may take to answer: it may be importing, which takes a tenth of one.
_PATIENCE = 2.0
#: Of main; in a spare they end nothing, since `systemctl kill -s HUP` sends them to every process.
_IGNORED = frozenset({signal.SIGHUP, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2, signal.SIGTTOU, signal.SIGTTIN})
#: Its regular expressions, codecs and the like are ready when it has been read once.
_REHEARSAL = """\
[listen rehearsal]
bind = 127.0.0.1:1
server s = 127.0.0.1:1
"""
_COMM = "/proc/self/comm"


@dataclass(slots=True)
class Place:
    """Whose part this process has: a main process's, with a spare, unless none could be made. `summons` says who wants
    it to be a successor; None at the first start."""

    spare: Spare | None
    summons: Summons | None = None


class Spare:
    """The spare, as its main process knows it."""

    def __init__(self, line: socket.socket, pid: int) -> None:
        """Owns `line`. Raises PeerError when there is no such process."""
        self._line = line
        self._process = PeerProcess(pid)
        self._surroundings = _surroundings()

    def prepare(self, packages: Sequence[str]) -> None:
        """Have it import these packages, now that nobody waits for it."""
        try:
            channel.send(self._line, {"import": list(packages)})
        except OSError:
            return  # stopped, or dead: summon() will tell

    def summon(self, nonce: str) -> tuple[PeerProcess, socket.socket]:
        """Make it the successor; returns its process and our end of the stream to it. We have the next one then.

        Raises PeerError: it cannot be, and is gone.
        """
        try:
            if self._surroundings != _surroundings():
                raise PeerError("limits, priority or CPUs of this process have changed")
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
            try:
                with theirs:
                    message = {"nonce": nonce, "predecessor": os.getpid()}
                    channel.send(self._line, message, [theirs.fileno(), self._line.fileno()])
                successor, self._process = self._process, self._next()
            except BaseException:
                ours.close()
                raise
            return successor, ours
        except (OSError, PeerError) as error:
            self.end()
            raise PeerError("the spare is gone" if isinstance(error, BrokenPipeError) else reason_of(error)) from None

    def _next(self) -> PeerProcess:
        poll = select.poll()
        poll.register(self._line, select.POLLIN)
        if not poll.poll(_PATIENCE * 1000):
            raise PeerError(f"the spare does not answer within {_PATIENCE:g} s")
        answer = channel.receive(self._line)
        if answer is None:
            raise PeerError("the spare is gone")
        pid = answer.get("spare")
        if not isinstance(pid, int):
            raise PeerError(str(answer.get("reason", "the spare makes no sense")))
        return PeerProcess(pid)

    def end(self) -> None:
        """Do without it, from now on."""
        try:
            self._process.signal(signal.SIGKILL)  # it may be stopped, and hear nothing
        except PeerError:
            pass
        self.close()

    def close(self) -> None:
        """Leave it to whoever else has the line."""
        self._process.close()
        self._line.close()


def fork_spare() -> Place:
    """Returns in the main process, with its spare, and in each spare when that is summoned.

    The caller has imported what a successor needs, and holds nothing that must not be there twice but its standard
    streams. A command line that must not be repeated as it is gets no spare: ps(1) would show it of all successors.
    """
    if command_line(sys.orig_argv) != sys.orig_argv:
        return Place(None)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        since = started()  # what we have read is older than the spare is
        with open(_COMM) as file:
            name = file.read().strip()
        if pid := _fork():
            theirs.close()
            return Place(Spare(ours, pid))
    except (OSError, PeerError):
        ours.close()
        theirs.close()
        return Place(None)  # a reload will execute the program
    ours.detach()
    _hold_only(theirs.fileno())
    for number in _IGNORED:
        signal.signal(number, signal.SIG_IGN)
    leave_no_trace(os.environ)  # type: ignore[arg-type]
    Summons.take(os.environ)  # type: ignore[arg-type]  # that was main's
    try:
        place = _wait(theirs, since)
        _call(name)
        time.tzset()  # or the successor would go by the time zone of the first start
    except (OSError, PeerError):
        os._exit(1)  # the main process has gone, or will see that we have
    # The signals stay ignored until the main process handles them: one in between must not end a successor.
    return place


def _wait(line: socket.socket, since: int) -> Place:
    """In a spare. Returns when it is to be the successor; its child, the next spare, goes on waiting.

    `since`: when the process began that has read our files. Raises OSError when the main process has gone, PeerError
    when there are no descriptors left.
    """
    sources = Sources(since)
    prepared: set[str] = set()
    spoilt = ""
    while True:
        message, fds = channel.receive_with(line)
        if message is None:
            os._exit(0)
        if "import" in message:
            # Each generation asks for it. Done again by each spare, it would add up in their heirs.
            if not prepared.issuperset(message["import"]):
                prepared.update(message["import"])
                try:
                    prepare(message["import"])
                except Exception as error:  # files that are just being replaced may be anything
                    spoilt = f"it cannot import what it needs: {error}"
                gc.collect()
                sources.note()
            continue
        try:
            if spoilt:
                raise PeerError(spoilt)
            if changed := sources.changed():
                raise PeerError(f"{changed} has changed")
            pid = _fork()
        except (OSError, PeerError) as error:
            channel.send(line, {"reason": reason_of(error)})
            os._exit(0)
        if not pid:
            close_all(fds)
            continue
        channel.send(line, {"spare": pid})
        line.close()
        stream, ours = fds
        summons = Summons(stream, message["nonce"], message["predecessor"])
        return Place(_heir(socket.socket(fileno=ours), pid), summons)


def _heir(line: socket.socket, pid: int) -> Spare | None:
    """None if it has ended already."""
    try:
        return Spare(line, pid)
    except (OSError, PeerError):
        line.close()
        return None


def prepare(packages: Sequence[str]) -> None:
    """Do what each successor would do again."""
    for _ in latecomers.imports(tuple(packages)):
        pass
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] == "hitlessd":
            compile_all(module)
    parse((SourceFile("rehearsal", _REHEARSAL),))


def _fork() -> int:
    """The pid of a spare, 0 in it."""
    return fork_orphan(lambda: _call(NAME))


def _call(name: str) -> None:
    """Change what ps(1) and top(1) call this process."""
    with open(_COMM, "w") as file:
        file.write(name)


def _hold_only(line: int) -> None:
    """What systemd has passed is main's."""
    # Not os.closerange(): the limit says nothing of what was open before it was lowered, and can be a billion.
    for fd in open_descriptors():
        if fd > 2 and fd != line:
            with contextlib.suppress(OSError):  # the listing's own
                os.close(fd)


def _surroundings() -> tuple[object, ...]:
    """What a process that is started now inherits, and one that was forked before would not."""
    numbers = {getattr(resource, name) for name in dir(resource) if name.startswith("RLIMIT_")}
    limits = {number: resource.getrlimit(number) for number in numbers}
    limits[resource.RLIMIT_NOFILE] = (0, limits[resource.RLIMIT_NOFILE][1])  # a main process raises its soft one
    with open("/proc/self/oom_score_adj") as file:
        score = file.read()
    return (
        os.sched_getaffinity(0),
        os.sched_getscheduler(0),
        os.getpriority(os.PRIO_PROCESS, 0),
        os.sched_getparam(0).sched_priority,
        limits,
        score,
    )
