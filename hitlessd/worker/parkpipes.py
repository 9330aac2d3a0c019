"""The pipes of a worker that are parked: each once, before a byte enters it; the book says whose bytes it has now.

So a pipe can go from one connection to the next without being parked again, and its bytes are never taken for those of
another one.
"""

from __future__ import annotations

from hitlessd.parking.book import Book
from hitlessd.parking.park import Kind, Record
from hitlessd.worker.parkqueue import Queue
from hitlessd.worker.pipes import Pipe

__all__ = ["ParkedPipes"]

_LAST = (1 << 32) - 1


class ParkedPipes:
    """By their places in the book."""

    def __init__(self, book: Book, queue: Queue) -> None:
        self._book = book
        self._queue = queue
        self._pipes: dict[int, Pipe] = {}
        self._free: list[int] = []
        self._next = 0
        self._most = len(book.owners())
        self._serial = 0

    def __len__(self) -> int:
        return len(self._pipes)

    def add(self, pipe: Pipe) -> str:
        """Give it a place. Why that could not be done, or ""."""
        if not self._free and self._next == self._most:
            return f"at most {self._most} pipes of a worker may be parked"
        if why := self._queue.full(2):
            return why
        if self._free:
            place = self._free.pop()
        else:
            place = self._next
            self._next += 1
        # The queue may still hold the record of an earlier pipe of this place: its number is another one.
        self._serial = self._serial % _LAST + 1
        why = self._queue.send([Record(Kind.PIPE, self._serial, place)], [pipe.reader, pipe.writer])
        if why:
            self._free.append(place)
            return why
        pipe.place, pipe.stamp = place, self._serial << 32
        self._pipes[place] = pipe
        self.own(pipe, 0)
        return ""

    def own(self, pipe: Pipe, mark: int) -> None:
        """What enters it from now on is of the direction `mark`."""
        self._book.words[self._book.owners_at + pipe.place] = pipe.stamp | mark

    def free(self, place: int) -> None:
        """The pipe that has this place is no longer ours."""
        self._book.words[self._book.owners_at + place] = 0
        del self._pipes[place]
        self._free.append(place)

    def living(self, record: Record) -> list[int]:
        """The descriptors of a pipe's record, none if it is of no use any more."""
        pipe = self._pipes.get(record.slot)
        return [pipe.reader, pipe.writer] if pipe is not None and pipe.stamp == record.number << 32 else []
