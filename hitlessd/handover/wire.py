"""Framing of the takeover exchange, without I/O: messages to bytes and back, descriptors kept in step.

A frame is a 12-byte head (magic, length of the JSON text, number of descriptors) and the text. Its descriptors travel
with its first byte (SCM_RIGHTS, unix(7)), at most MAX_FDS of them, so that one frame never needs two messages.
"""

from __future__ import annotations

import json
import os
import struct
from collections import deque
from collections.abc import Sequence
from typing import Any, NamedTuple

from hitlessd.errors import PeerError

__all__ = ["MAGIC", "MAX_FDS", "MIGRATES", "VERSION", "FrameReader", "Message", "encode", "speaks_with"]

#: Version of the exchange. N talks with N-1 and N+1: unknown keys are ignored, missing ones have defaults.
VERSION = 2
#: The first version whose successors take connections over.
MIGRATES = 2
#: HAProxy's batch too, and just under the kernel's 253 (SCM_MAX_FD).
MAX_FDS = 252
#: Far above what 10,000 listeners need, far below what could hurt.
MAX_TEXT = 8 << 20

_HEAD = struct.Struct("!4sII")
MAGIC = b"hlsd"


class Message(NamedTuple):
    """`text["is"]` names the message. Whoever takes `fds` owns them."""

    text: dict[str, Any]
    fds: list[int]

    @property
    def kind(self) -> str:
        return str(self.text["is"])


def speaks_with(version: object) -> bool:
    """Whether we understand a peer of that protocol version."""
    return isinstance(version, int) and abs(version - VERSION) <= 1


def encode(text: dict[str, Any], fds: Sequence[int] = ()) -> bytes:
    """A frame that must be sent with these descriptors attached to its first byte."""
    body = json.dumps(text, separators=(",", ":")).encode()
    if len(fds) > MAX_FDS or len(body) > MAX_TEXT:
        raise ValueError(f"a frame holds {MAX_FDS} descriptors and {MAX_TEXT} bytes")
    return _HEAD.pack(MAGIC, len(body), len(fds)) + body


class FrameReader:
    """Puts received pieces together; what is not a frame raises PeerError. close() drops what was not taken."""

    def __init__(self) -> None:
        self._bytes = bytearray()
        self._fds: deque[int] = deque()

    def feed(self, data: bytes, fds: Sequence[int] = ()) -> list[Message]:
        """The messages that are complete now. What follows them and is no frame raises at the next call, if only of
        feed(b""), so that how the bytes were cut changes nothing and no descriptor of a good message is lost."""
        self._bytes += data
        self._fds.extend(fds)
        messages: list[Message] = []
        try:
            while (message := self._next()) is not None:
                messages.append(message)
        except PeerError:
            if not messages:
                raise
        return messages

    def _next(self) -> Message | None:
        if len(self._bytes) < _HEAD.size:
            # Garbage should be told from a slow peer at the first byte.
            if not MAGIC.startswith(self._bytes[:4]):
                raise PeerError("cannot understand the other side: this is not the takeover protocol")
            self._refuse_strays(MAX_FDS if self._bytes else 0)
            return None
        magic, length, count = _HEAD.unpack_from(self._bytes)
        if magic != MAGIC:
            raise PeerError("cannot understand the other side: this is not the takeover protocol")
        if length > MAX_TEXT or count > MAX_FDS:
            raise PeerError(f"cannot accept a frame of {length} bytes and {count} descriptors: too large")
        if len(self._bytes) < _HEAD.size + length:
            self._refuse_strays(count)
            return None
        if len(self._fds) < count:
            raise PeerError(f"cannot accept a frame: {count} descriptors announced, {len(self._fds)} received")
        body = bytes(self._bytes[_HEAD.size : _HEAD.size + length])
        try:
            text = json.loads(body)
        except (ValueError, RecursionError):
            raise PeerError("cannot understand the other side: a frame is not JSON") from None
        if not isinstance(text, dict) or not isinstance(text.get("is"), str):
            raise PeerError("cannot understand the other side: a frame is not a message")
        del self._bytes[: _HEAD.size + length]
        return Message(text, [self._fds.popleft() for _ in range(count)])

    def _refuse_strays(self, most: int) -> None:
        """Descriptors beyond those of the frame that has begun would be taken for the next one's, or pile up."""
        if len(self._fds) > most:
            raise PeerError(f"cannot accept a frame: {len(self._fds)} descriptors came, at most {most} were due")

    def close(self) -> None:
        """Close the descriptors that no message has taken."""
        while self._fds:
            os.close(self._fds.popleft())
        self._bytes.clear()
