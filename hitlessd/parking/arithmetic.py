"""Which bytes a dead process had taken from one socket and not passed on to the other. Arithmetic only, no I/O.

All that was read from one side and not written to the other must be found: at the end of a block, or of the scratch,
then in a pipe. If anything is missing, or too much, the connection must not go on.

Where the relay itself adds to what it passes on, as a PROXY header, or takes something out, the two counters differ by
a `shift`, positive for what was added, even when everything is passed on.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum

from hitlessd.dataclass import dataclass, field
from hitlessd.parking.counters import Counters

__all__ = ["Buffers", "Fate", "Hole", "fate", "rest"]


class Hole(Exception):
    """Bytes are missing, or come twice. The text tells what is wrong, for the log."""


class Fate(Enum):
    """What becomes of an established connection, by the states of its sockets."""

    GOES_ON = "goes on"
    ENDING = "ending"  # we were about to close it: close it
    CUT = "cut"  # one side was reset: reset the other


@dataclass(slots=True)
class Buffers:
    """Where bytes of one direction may lie."""

    piped: int = 0  # in a pipe
    kept: tuple[int, bytes] | None = None  # a block: the stream's byte that it begins with, and what it holds
    label: int | None = None  # the scratch's label, if it is of this direction: the stream's byte that it begins with
    scratch: Sequence[int] = field(default=b"")


def fate(client: Counters, server: Counters) -> Fate:
    """A relay sends FIN to one side only behind that of the other, unless it closes the connection.

    A side that has ended both ways may still have had something to say, which its peer has not got.
    """
    if client.closed and server.closed:
        return Fate.ENDING
    if client.broken or server.broken:
        return Fate.CUT
    if (client.shut and not server.ended) or (server.shut and not client.ended):
        return Fate.ENDING
    return Fate.GOES_ON


def rest(source: Counters, target: Counters, buffers: Buffers, shift: int = 0) -> bytes:
    """What is to be sent to the target before anything else, and before what lies in the pipe. Raises Hole."""
    missing = source.consumed + shift - target.written
    ahead = missing - buffers.piped
    if missing < 0 or ahead < 0:
        raise Hole("more was passed on than had been read")
    if missing and target.shut:
        raise Hole("bytes are left behind an end that was passed on")
    if not ahead:
        return b""
    end = source.consumed - buffers.piped
    if buffers.kept is not None:
        first, data = buffers.kept
        if first + len(data) == end and ahead <= len(data):
            return bytes(data[-ahead:])
    if buffers.label is not None and not buffers.piped:
        size = end - buffers.label
        if ahead <= size <= len(buffers.scratch):
            return bytes(buffers.scratch[size - ahead : size])
    raise Hole("bytes that were on their way died with the process")
