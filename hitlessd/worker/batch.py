"""A batch of connections on its way to another worker: serial forms and claims in one shared memory file.

    head | one byte a connection: its claim | JSON

Whoever has claimed a connection owns it: the receiver claims it first of all, and does no I/O on it before it has
answered. So the sender takes back what a receiver that is gone has neither answered for nor parked. The file travels as
the first descriptor of a message; behind it come, for each connection in turn, the client's socket, the server's if
there is one, and reader and writer of a pipe for each direction that has bytes in one. Versions: a later one adds
fields and never changes the meaning of one.
"""

from __future__ import annotations

import json
import mmap
import os
import socket
import struct
import time
from collections.abc import Sequence
from json.encoder import encode_basestring_ascii
from typing import Any

from hitlessd.dataclass import dataclass, field
from hitlessd.descriptors import MOST, close_all
from hitlessd.errors import PeerError
from hitlessd.worker.form import SerialConnection
from hitlessd.worker.lanes import Proxies
from hitlessd.worker.pipes import Pipe
from hitlessd.worker.serial import Frozen

__all__ = ["ROOM", "Batch", "Texts", "descriptors_of"]

#: Records by name, each as JSON.
Texts = dict[str, str]

_HEAD = struct.Struct("=8sIIQQ")  # magic, version, connections, bytes of JSON, whether they are counted
_MAGIC = b"hitlessB"
_VERSION = 1
_COUNTED_AT = 24
#: Far above what MOST descriptors' connections can have in flight.
_LONGEST = 128 << 20
_STREAM = int(socket.SOCK_STREAM) | int(socket.SOCK_NONBLOCK)
#: Descriptors of connections that one message holds; one more is the file's.
ROOM = MOST - 1


def descriptors_of(frozen: Frozen) -> list[int]:
    """In the order in which they travel."""
    fds = [frozen.client.fileno()]
    if frozen.server is not None:
        fds.append(frozen.server.fileno())
    for pipe in (frozen.to_server, frozen.to_client):
        if pipe is not None:
            fds += [pipe.reader, pipe.writer]
    return fds


@dataclass
class Batch:
    """A mapped batch. Of one that was read, `frontends` and `backends` are records of what its connections belong to,
    see lanes.py."""

    fd: int
    mapping: mmap.mmap
    forms: list[SerialConnection]
    frontends: Proxies = field(default_factory=dict)
    backends: Proxies = field(default_factory=dict)
    elapsed: float = 0.0  # seconds between writing and reading it

    @classmethod
    def write(cls, forms: Sequence[str], frontends: Texts, backends: Texts) -> Batch:
        """A new one, nobody's claim on any; everything is JSON already. Raises OSError."""
        text = (
            f'{{"at":{time.monotonic()!r},"frontends":{_object(frontends)},"backends":{_object(backends)},'
            f'"connections":[{",".join(forms)}]}}'
        ).encode()
        data = _HEAD.pack(_MAGIC, _VERSION, len(forms), len(text), 0) + bytes(len(forms)) + text
        fd = os.memfd_create("hitlessd-batch", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.truncate(fd, len(data))
            mapping = mmap.mmap(fd, len(data))
        except OSError:
            os.close(fd)
            raise
        mapping[:] = data
        return cls(fd, mapping, [])

    @classmethod
    def read(cls, fd: int) -> Batch:
        """What another worker wrote; takes the descriptor over. Raises PeerError if it is not sound."""
        try:
            size = os.fstat(fd).st_size
            if not _HEAD.size <= size <= _LONGEST:
                raise PeerError(f"cannot read a batch of connections: it has {size} bytes")
            mapping = mmap.mmap(fd, size)
            magic, _, count, length, _ = _HEAD.unpack_from(mapping)
            if magic != _MAGIC or _HEAD.size + count + length != size:
                raise PeerError("cannot read a batch of connections: it is none")
            record = json.loads(mapping[_HEAD.size + count :])
            forms = [SerialConnection.from_dict(form) for form in record["connections"]]
            if len(forms) != count:
                raise PeerError("cannot read a batch of connections: its numbers contradict each other")
            frontends, backends = record.get("frontends", {}), record.get("backends", {})
            if not isinstance(frontends, dict) or not isinstance(backends, dict):
                raise PeerError("cannot read a batch of connections: it makes no sense")
            elapsed = max(0.0, time.monotonic() - float(record.get("at", time.monotonic())))
        except PeerError:
            os.close(fd)
            raise
        except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
            os.close(fd)
            raise PeerError(f"cannot read a batch of connections: {error}") from None
        return cls(fd, mapping, forms, frontends, backends, elapsed)

    def claim(self, position: int) -> None:
        """It is ours now, whatever happens."""
        self.mapping[_HEAD.size + position] = 1

    def claimed(self, position: int) -> bool:
        return bool(self.mapping[_HEAD.size + position])

    def keep(self, position: int) -> None:
        """It is parked: should we die now, our heir goes on with it."""
        self.mapping[_HEAD.size + position] = 2

    def kept(self, position: int) -> bool:
        """Whether its receiver has it even if that one is dead and has not answered."""
        state = self.mapping[_HEAD.size + position]
        return state == 2 or bool(state and self.counted)

    def count(self) -> None:
        """All that were claimed are the receiver's for good: whoever comes after its death answers for them."""
        self.mapping[_COUNTED_AT] = 1

    @property
    def counted(self) -> bool:
        return bool(self.mapping[_COUNTED_AT])

    def thaw(self, fds: Sequence[int]) -> list[Frozen]:
        """The connections, with the descriptors that came along, which are the result's. Raises PeerError, having
        closed them, when their number is wrong."""
        need = sum(_count(form) for form in self.forms)
        if need != len(fds):
            close_all(fds)
            raise PeerError(f"cannot take over connections: {need} descriptors announced, {len(fds)} received")
        rest = iter(fds)
        return [_thaw(form, rest) for form in self.forms]

    def close(self) -> None:
        self.mapping.close()
        os.close(self.fd)


def _count(form: SerialConnection) -> int:
    other = form.server_side
    return 1 + (other is not None) + 2 * bool(form.client.piped) + 2 * bool(other is not None and other.piped)


def _thaw(form: SerialConnection, fds: Any) -> Frozen:
    other = form.server_side
    client = _socket(form.client.family, next(fds))
    server = _socket(other.family, next(fds)) if other is not None else None
    to_server = _pipe(fds) if form.client.piped else None
    to_client = _pipe(fds) if other is not None and other.piped else None
    return Frozen(form, client, server, to_server, to_client)


def _socket(family: int, fd: int) -> socket.SocketType:
    """Without asking the kernel for what was told already, which takes three system calls."""
    return socket.SocketType(family, _STREAM, 0, fd) if family else socket.SocketType(fileno=fd)


def _object(texts: Texts) -> str:
    return "{" + ",".join([f"{encode_basestring_ascii(name)}:{text}" for name, text in texts.items()]) + "}"


def _pipe(fds: Any) -> Pipe:
    return Pipe.of(next(fds), next(fds))
