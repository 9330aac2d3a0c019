"""The pool of pipes for os.splice, within a budget.

The pipes of an ordinary user beyond fs.pipe-user-pages-soft (64 MiB in all) shrink to two pages, and enlarging one then
fails with EPERM (pipe(7)); so each worker keeps to its share, and does without a pipe when there is none.
"""

from __future__ import annotations

import fcntl
import os
from typing import Protocol

__all__ = ["BUDGET", "SIZE", "Pipe", "PipePool", "Registry"]

#: Bytes of pipe buffers of all workers together, below the 64 MiB of pipe(7).
BUDGET = 48 << 20
#: Bytes asked for in one pipe; larger ones were not faster.
SIZE = 256 << 10
#: Pipes of one worker, of two descriptors each: main plans its limit on open files with that (main/limits.py).
_MOST = 128
#: A pipe smaller than this is not worth its system calls.
_LEAST = 64 << 10


class Pipe:
    """A pipe and how many bytes lie in it."""

    __slots__ = ("fill", "place", "reader", "size", "stamp", "writer")

    def __init__(self, reader: int, writer: int, size: int, fill: int = 0) -> None:
        self.reader = reader
        self.writer = writer
        self.size = size
        self.fill = fill
        self.place = -1  # among the book's pipes, if it is parked (parkpipes.py)
        self.stamp = 0  # what goes into its word there besides the mark

    @classmethod
    def of(cls, reader: int, writer: int) -> Pipe:
        """One that somebody else has made. Raises OSError when it is none."""
        return cls(reader, writer, fcntl.fcntl(writer, fcntl.F_GETPIPE_SZ))

    def close(self) -> None:
        os.close(self.reader)
        os.close(self.writer)


class Registry(Protocol):
    """Who wants to know which pipes there are."""

    def add_pipe(self, pipe: Pipe) -> None: ...

    def drop_pipe(self, pipe: Pipe) -> None: ...


class PipePool:
    """Pipes, made when first needed and kept for later. Only an empty one may come back."""

    def __init__(self, budget: int, registry: Registry | None = None) -> None:
        self._budget = budget
        self._registry = registry
        self._free: list[Pipe] = []
        self.lent = 0
        self.bytes = 0
        self._exhausted = False

    def take(self) -> Pipe | None:
        """An empty pipe, or None when there is none to be had: relay without."""
        if self._free:
            self.lent += 1
            return self._free.pop()
        # All are lent here.
        if self._exhausted or self.lent >= _MOST or self.bytes + SIZE > self._budget:
            return None
        try:
            reader, writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:
            return None
        try:
            size = fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, SIZE)
        except OSError:
            size = fcntl.fcntl(writer, fcntl.F_GETPIPE_SZ)
            if size < _LEAST:
                # The user's share is used up, maybe by others: ask again when one of ours has come back.
                os.close(reader)
                os.close(writer)
                self._exhausted = True
                return None
        pipe = Pipe(reader, writer, size)
        self.adopt(pipe)
        return pipe

    def give(self, pipe: Pipe) -> None:
        """Back to the pool; one that still holds bytes is closed, they must not reach another connection."""
        self.lent -= 1
        self._exhausted = False
        if pipe.fill:
            self._let_go(pipe)
            pipe.close()
        else:
            self._free.append(pipe)

    def surrender(self, pipe: Pipe) -> None:
        """The pipe leaves with its connection: somebody else closes it."""
        self.lent -= 1
        self.bytes -= pipe.size

    def adopt(self, pipe: Pipe) -> None:
        """A pipe that came with a connection counts as lent from now on."""
        self.lent += 1
        self.bytes += pipe.size
        if self._registry:
            self._registry.add_pipe(pipe)

    def close(self) -> None:
        """Close those that are free."""
        while self._free:
            pipe = self._free.pop()
            self._let_go(pipe)
            pipe.close()

    def _let_go(self, pipe: Pipe) -> None:
        self.bytes -= pipe.size
        if self._registry:
            self._registry.drop_pipe(pipe)
