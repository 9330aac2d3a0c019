"""The book of a park: what the next process must know of the parked connections besides their descriptors.

A sealed memfd that one worker maps and writes, and its heir reads. Each word has one meaning that survives the worker's
death at any instruction: what a word announces is there before the word says so.

    head | a slot's words, for each | a pipe's owner, for each | a block's label, for each | a slot's text, for each
    | notes | scratch | blocks

- A **slot** is one connection: its state, its number, what of it was accounted, and a text (its serial form).
- **Notes** are texts that many slots share: names, and records of proxies. They are only ever added.
- The **scratch** is the buffer that every recv goes to. Its label says for whom, and from which byte of the stream on.
- A **block** keeps what was read from one side and not yet written to the other; its label says whose it is.
- A **pipe's owner** is a word: the pipe's number, for a place is used again, and behind it the mark.
- A **mark** names one direction of one slot: from the client is 2 * (slot + 1), from the server one more. 0: nobody's.
"""

from __future__ import annotations

import fcntl
import json
import mmap
import os
import struct
import time
from enum import IntEnum
from typing import Any

from hitlessd.errors import PeerError

__all__ = ["BLOCK", "LABEL_AT", "LABEL_MARK", "PIPES", "Book", "SlotState", "mark_of"]

_MAGIC = int.from_bytes(b"hitlessP", "little")
_FORMAT = 1
_PAGE = 4096
_HEAD_BYTES = _PAGE
#: Bytes of the scratch, and of a block: one recv.
BLOCK = 64 << 10
#: Pipes that a worker may have parked.
PIPES = 512
#: Of a slot's text: an exchange between IPv6 addresses, with counters and times of ten digits.
_TEXT = 768
_NOTES = 16 << 20
_MOST_BLOCKS = 4096
#: Blocks that stay in memory when they are free; those above give it back.
_WARM_BLOCKS = 64
_MAX_SLOTS = 1 << 22
_MAX_BYTES = 1 << 40
_WORD = (1 << 64) - 1


class _Head(IntEnum):
    (MAGIC, FORMAT, SLOTS, SLOT_WORDS, TEXT, PIPES, NOTES, BLOCKS, BLOCK, GENERATION, HEARTBEAT, NOTES_END, ATTEMPTS,
     LABEL_MARK, LABEL_AT, RESUMED, ENDED) = range(17)  # fmt: skip


#: Words of the head that the relay writes before it reads into the scratch: for whom, and from which byte on.
LABEL_MARK, LABEL_AT = int(_Head.LABEL_MARK), int(_Head.LABEL_AT)


class SlotState(IntEnum):
    """What becomes of a slot's connection when its worker is dead."""

    FREE = 0  # there is none
    LIVE = 1  # it goes on if the kernel's counters allow it
    FROZEN = 2  # the worker had stopped serving it before it ended: it is as its text says
    MOVING = 3  # on its way to another worker, who may have it
    ENDING = 4  # being closed: close it


class _Slot(IntEnum):
    STATE, NUMBER, ACCOUNTED_IN, ACCOUNTED_OUT, WRITTEN_AT, LENGTH, SHIFT, SERVER_SHIFT = range(8)


#: The words of a slot behind its state.
_pack_into = struct.Struct("7Q").pack_into
_SLOT_WORDS = 8
_LABEL_WORDS = 4  # of a block: mark, first byte of the stream, length


def mark_of(slot: int, from_server: bool) -> int:
    return 2 * (slot + 1) + from_server


def _page(size: int) -> int:
    return -(-size // _PAGE) * _PAGE


class Book:
    """A mapped book. `words` is all of it, as unsigned 64-bit words."""

    def __init__(self, fd: int, mapping: mmap.mmap) -> None:
        self.fd = fd
        self._mapping = mapping
        self.bytes = memoryview(mapping)
        words = self.words = self.bytes.cast("Q")
        self.slots = words[_Head.SLOTS]
        self.generation = words[_Head.GENERATION]
        self.text_size = words[_Head.TEXT]
        self._stride = words[_Head.SLOT_WORDS]
        self._pipes, self._blocks, self._notes_size = words[_Head.PIPES], words[_Head.BLOCKS], words[_Head.NOTES]
        self._block_size = words[_Head.BLOCK]
        (self._slots_at, owners_at, self._labels_at, self._texts_at, self._notes_at, scratch_at, self._blocks_at, _) = (
            _regions(*(words[i] for i in _SIZES))
        )
        #: The word of the first pipe's owner.
        self.owners_at = owners_at // 8
        self.scratch = self.bytes[scratch_at : scratch_at + self._block_size]
        self._next_block = 0
        self._free_blocks: list[int] = []

    @classmethod
    def create(cls, slots: int, generation: int) -> Book:
        """A new one, empty and sealed. Raises OSError."""
        blocks = min(2 * slots, _MOST_BLOCKS)
        sizes = (slots, _SLOT_WORDS, _TEXT, PIPES, _NOTES, blocks, BLOCK)
        fd = os.memfd_create("hitlessd-book", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            size = _regions(*sizes)[-1]
            os.truncate(fd, size)  # holes: what is never written costs nothing
            mapping = mmap.mmap(fd, size)
            with memoryview(mapping) as view, view.cast("Q") as words:
                words[_Head.FORMAT] = _FORMAT
                for word, value in zip(_SIZES, sizes, strict=True):
                    words[word] = value
                words[_Head.GENERATION] = generation
                words[_Head.HEARTBEAT] = time.monotonic_ns()
                words[_Head.MAGIC] = _MAGIC
            # Nobody who holds the descriptor can make our mapping fault by shrinking the file.
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
        except BaseException:
            os.close(fd)
            raise
        return cls(fd, mapping)

    @classmethod
    def attach(cls, fd: int) -> Book:
        """Map what another process made; takes the descriptor over. Raises PeerError if it is not sound.

        A later version may have larger slots and texts, and more of everything: sizes are the file's own.
        """
        try:
            size = os.fstat(fd).st_size
            if not fcntl.fcntl(fd, fcntl.F_GET_SEALS) & fcntl.F_SEAL_SHRINK or not _HEAD_BYTES <= size <= _MAX_BYTES:
                raise PeerError("cannot use a book of parked connections: it is not a sealed one of a sound size")
            mapping = mmap.mmap(fd, size)
            with memoryview(mapping)[:_HEAD_BYTES] as view, view.cast("Q") as words:
                head = words.tolist()
            sizes = [head[word] for word in _SIZES]
            if head[_Head.MAGIC] != _MAGIC or head[_Head.FORMAT] != _FORMAT:
                raise PeerError("cannot use a book of parked connections: unknown format")
            if sizes[0] > _MAX_SLOTS or sizes[1] < len(_Slot) or max(sizes) > _MAX_BYTES:
                raise PeerError("cannot use a book of parked connections: its sizes make no sense")
            if _regions(*sizes)[-1] != size:
                raise PeerError("cannot use a book of parked connections: its sizes contradict each other")
        except (OSError, ValueError) as error:
            os.close(fd)
            raise PeerError(f"cannot use a book of parked connections: {error}") from None
        except PeerError:
            os.close(fd)
            raise
        return cls(fd, mapping)

    def lock(self) -> bool:
        """Become its only reader and writer, for as long as this process lives; False while another one is.

        A POSIX lock (fcntl(2)): the kernel releases it when the process is dead, and only then, provided that the
        process closes no descriptor of the book before.
        """
        try:
            fcntl.lockf(self.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            return False
        return True

    def close(self) -> None:
        """Unmap and close. Views that were given out must have been released."""
        for view in (self.scratch, self.words, self.bytes):
            view.release()
        self._mapping.close()
        os.close(self.fd)

    # Slots

    def write(
        self,
        slot: int,
        state: SlotState,
        number: int,
        text: bytes,
        accounted: tuple[int, int],
        shifts: tuple[int, int] = (0, 0),
    ) -> None:
        """Fill a slot; its state last. `text` has at most text_size bytes; `shifts` are those from the client and from
        the server, see shift()."""
        words, at = self.words, self._slots_at // 8 + slot * self._stride
        words[at] = 0  # its state: FREE
        start = self._texts_at + slot * self.text_size
        self.bytes[start : start + len(text)] = text
        # All but the state in one call; native "Q" stores each word whole.
        _pack_into(
            self.bytes, (at + 1) * 8, number, *accounted, time.monotonic_ns(), len(text), shifts[0] & _WORD,
            shifts[1] & _WORD
        )  # fmt: skip
        words[at] = state

    def state(self, slot: int) -> int:
        return self.words[self._slot_at(slot)]

    def set_state(self, slot: int, state: SlotState) -> None:
        self.words[self._slots_at // 8 + slot * self._stride] = state

    def account(self, slot: int, accounted_in: int, accounted_out: int) -> None:
        """What of the connection's bytes has gone into the counters."""
        at = self._slot_at(slot)
        self.words[at + _Slot.ACCOUNTED_IN], self.words[at + _Slot.ACCOUNTED_OUT] = accounted_in, accounted_out

    def shift(self, mark: int, shift: int) -> None:
        """By how much what is passed on of a direction exceeds, or falls short of, what is read."""
        self.words[self._shift_at(mark)] = shift & _WORD

    def shift_of(self, mark: int) -> int:
        return _signed(self.words[self._shift_at(mark)])

    def _shift_at(self, mark: int) -> int:
        return self._slot_at(mark // 2 - 1) + _Slot.SHIFT + mark % 2

    def number(self, slot: int) -> int:
        return self.words[self._slot_at(slot) + _Slot.NUMBER]

    def accounted(self, slot: int) -> tuple[int, int]:
        at = self._slot_at(slot)
        return self.words[at + _Slot.ACCOUNTED_IN], self.words[at + _Slot.ACCOUNTED_OUT]

    def age(self, slot: int) -> float:
        """Seconds since it was written, whichever process did."""
        return max(0.0, (time.monotonic_ns() - self.words[self._slot_at(slot) + _Slot.WRITTEN_AT]) / 1e9)

    def text(self, slot: int) -> bytes:
        length = min(self.words[self._slot_at(slot) + _Slot.LENGTH], self.text_size)
        start = self._texts_at + slot * self.text_size
        return bytes(self.bytes[start : start + length])

    def states(self) -> list[int]:
        """Of all slots."""
        return self._column(_Slot.STATE)

    def numbers(self) -> list[int]:
        """Of all slots, whatever their states."""
        return self._column(_Slot.NUMBER)

    def _column(self, word: _Slot) -> list[int]:
        start = self._slots_at // 8
        with self.words[start + word : start + self.slots * self._stride : self._stride] as column:
            return column.tolist()

    def held(self) -> int:
        """Connections that are its worker's."""
        states = self.states()
        return states.count(SlotState.LIVE) + states.count(SlotState.FROZEN)

    def empty(self) -> bool:
        """There is nothing that anybody must look after."""
        return not any(self.states())

    def _slot_at(self, slot: int) -> int:
        return self._slots_at // 8 + slot * self._stride

    # Notes

    def add_note(self, note: dict[str, Any]) -> bool:
        """Add a text for all slots; False when there is no room for it."""
        text = json.dumps(note, separators=(",", ":")).encode() + b"\n"
        end = self.words[_Head.NOTES_END]
        if end + len(text) > self._notes_size:
            return False
        start = self._notes_at + end
        self.bytes[start : start + len(text)] = text
        self.words[_Head.NOTES_END] = end + len(text)
        return True

    def notes(self) -> list[dict[str, Any]]:
        """In the order in which they were added. Raises ValueError, RecursionError for what add_note() has not
        written."""
        end = min(self.words[_Head.NOTES_END], self._notes_size)
        lines = bytes(self.bytes[self._notes_at : self._notes_at + end]).splitlines()
        notes = [json.loads(line) for line in lines]
        if not all(isinstance(note, dict) for note in notes):
            raise ValueError("its notes make no sense")
        return notes

    # Blocks

    def keep(self, mark: int, first: int, data: bytes | memoryview) -> tuple[int, memoryview] | None:
        """Copy bytes of a direction, from the stream's byte `first` on, to a block: its number and a view of the
        copy. None when no block is free. `first` is negative where more was added to the stream than it had itself."""
        if len(data) > self._block_size:
            return None
        if self._free_blocks:
            block = self._free_blocks.pop()
        elif self._next_block < self._blocks:
            block = self._next_block
            self._next_block += 1
        else:
            return None
        start = self._blocks_at + block * self._block_size
        view = self.bytes[start : start + len(data)]
        view[:] = data
        words, at = self.words, self._label_at(block)
        words[at + 1], words[at + 2] = first & _WORD, len(data)
        words[at] = mark
        return block, view

    def release(self, block: int) -> None:
        """The bytes are out: others may have the block."""
        self.words[self._label_at(block)] = 0
        self._free_blocks.append(block)
        if block >= _WARM_BLOCKS:
            self._mapping.madvise(mmap.MADV_REMOVE, self._blocks_at + block * self._block_size, self._block_size)

    def kept(self) -> dict[int, tuple[int, bytes]]:
        """By mark: the stream's byte that a block begins with, and what it holds."""
        start = self._labels_at // 8
        marks = self.words[start : start + self._blocks * _LABEL_WORDS : _LABEL_WORDS].tolist()
        found = {}
        for block, mark in enumerate(marks):
            if mark:
                at = self._label_at(block)
                length = min(self.words[at + 2], self._block_size)
                begin = self._blocks_at + block * self._block_size
                found[mark] = (_signed(self.words[at + 1]), bytes(self.bytes[begin : begin + length]))
        return found

    def _label_at(self, block: int) -> int:
        return self._labels_at // 8 + block * _LABEL_WORDS

    # Pipes

    def owners(self) -> list[tuple[int, int]]:
        """Of each place: the number of the pipe that has it now, and the mark of its bytes' owner."""
        words = self.words[self.owners_at : self.owners_at + self._pipes].tolist()
        return [(word >> 32, word & 0xFFFFFFFF) for word in words]

    # Signs of life

    def beat(self) -> None:
        """Its worker lives."""
        self.words[_Head.HEARTBEAT] = time.monotonic_ns()

    @property
    def silence(self) -> float:
        """Seconds since the last sign of life."""
        return max(0.0, (time.monotonic_ns() - self.words[_Head.HEARTBEAT]) / 1e9)

    def attempt(self) -> int:
        """Count a process that begins to resume what is in it: how many have without progress, this one included."""
        self.words[_Head.ATTEMPTS] += 1
        return self.words[_Head.ATTEMPTS]

    def progress(self, resumed: int, ended: int) -> None:
        """So many of what is in it have been dealt with, by all heirs together: should this one die, the next one
        knows."""
        self.words[_Head.RESUMED], self.words[_Head.ENDED] = resumed, ended
        self.words[_Head.ATTEMPTS] = 0

    @property
    def dealt_with(self) -> tuple[int, int]:
        """Connections that heirs so far have resumed, and found to have ended."""
        return self.words[_Head.RESUMED], self.words[_Head.ENDED]


_SIZES = (_Head.SLOTS, _Head.SLOT_WORDS, _Head.TEXT, _Head.PIPES, _Head.NOTES, _Head.BLOCKS, _Head.BLOCK)


def _signed(word: int) -> int:
    return word - (1 << 64) if word >> 63 else word


def _regions(
    slots: int, slot_words: int, text: int, pipes: int, notes: int, blocks: int, block: int
) -> tuple[int, int, int, int, int, int, int, int]:
    """Where each region begins, in bytes, and where the last one ends."""
    at = [_HEAD_BYTES]
    labels = blocks * _LABEL_WORDS * 8
    for size in (slots * slot_words * 8, pipes * 8, labels, slots * text, notes, block, blocks * block):
        at.append(_page(at[-1] + size))
    one, two, three, four, five, six, seven, end = at
    return one, two, three, four, five, six, seven, end
