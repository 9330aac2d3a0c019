"""Starting the successor by an exec of our own command line, so that new code and a new Python run."""

from __future__ import annotations

import errno
import os
import socket
import sys
from collections.abc import Callable, Sequence

from hitlessd.errors import PeerError, SystemRefused, reason_of
from hitlessd.handover.process import PeerProcess
from hitlessd.handover.successor import Summons, summon_fails
from hitlessd.systemd import leave_no_trace

__all__ = ["command_line", "fork_orphan", "spawn"]

#: Options that named another predecessor, or asked for what is done already.
_ONCE_WITH_VALUE = frozenset({"-x"})
_ONCE_WITH_PIDS = frozenset({"-sf", "-st"})
_ONCE = frozenset({"-D"})


def command_line(original: Sequence[str]) -> list[str]:
    """The command line of a successor, from that of this process (sys.orig_argv)."""
    result: list[str] = []
    rest = list(original)
    while rest:
        word = rest.pop(0)
        if word in _ONCE_WITH_VALUE:
            rest[:1] = []
        elif word in _ONCE_WITH_PIDS:
            while rest and rest[0].isdecimal():
                rest.pop(0)
        elif word not in _ONCE:
            result.append(word)
    return result


def spawn(nonce: str, argv: Sequence[str]) -> tuple[PeerProcess, socket.socket]:
    """Start a successor; returns its process and our end of the stream to it. Raises SystemRefused."""
    try:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        with theirs:
            try:
                return _start(theirs, nonce, argv), ours
            except BaseException:
                ours.close()
                raise
    except (OSError, PeerError) as error:
        raise SystemRefused(f"cannot start the successor: {reason_of(error)}") from None


def _start(theirs: socket.socket, nonce: str, argv: Sequence[str]) -> PeerProcess:
    held, gate = os.pipe2(os.O_CLOEXEC)
    try:
        parent = os.getpid()
        if not (pid := fork_orphan()):
            os.close(gate)
            _execute(held, theirs, Summons(theirs.fileno(), nonce, parent), argv)
        return PeerProcess(pid)
    finally:
        os.close(held)
        os.close(gate)  # the successor goes on


def fork_orphan(beforehand: Callable[[], object] = lambda: None) -> int:
    """fork(2) a process that is not our child: its pid, and 0 in it. `beforehand()` is called for it. Raises OSError.

    A successor must be a child of PID 1 by the time its pid is announced, or systemd warns that it supervises a process
    that is not its child; hence the process in the middle, which ends at once.
    """
    reader, writer = os.pipe2(os.O_CLOEXEC)
    try:
        middle = os.fork()
        if not middle:
            try:
                beforehand()
                child = os.fork()
                if child:
                    os.write(writer, str(child).encode())
                    os._exit(0)
            except BaseException:
                os._exit(1)  # nothing of the parent may run here
            return 0
        os.close(writer)
        writer = -1
        text = os.read(reader, 32)
        os.waitpid(middle, 0)
        if not text:
            raise OSError(errno.EAGAIN, "cannot fork")
        return int(text)
    finally:
        os.close(reader)
        if writer >= 0:
            os.close(writer)


def _execute(held: int, stream: socket.socket, summons: Summons, argv: Sequence[str]) -> None:
    """In the successor. Never returns; nothing of the parent may run in this process.

    It waits until `held` ends: had it failed before the parent watches it, the reason would be lost.
    """
    try:
        os.read(held, 1)
        environment = dict(os.environ)
        leave_no_trace(environment)
        summons.put(environment)
        os.set_inheritable(stream.fileno(), True)
        try:
            os.execvpe(argv[0], list(argv), environment)
        except OSError as error:
            summon_fails(stream, f"cannot execute {argv[0]}: {error.strerror}")
    except BaseException as error:
        sys.stderr.write(f"hitlessd: cannot start the successor: {error}\n")
    finally:
        os._exit(1)
