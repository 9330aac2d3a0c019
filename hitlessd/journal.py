"""Entries for the journal in its native protocol (systemd.io/JOURNAL_NATIVE_PROTOCOL), without ever waiting for it.

libsystemd's sd_journal_sendv(3) blocks while journald takes nothing; a worker that waited for it would relay nothing.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
from collections.abc import Iterable

from hitlessd.datagrams import Datagrams

__all__ = ["SOCKET", "Journal"]

SOCKET = "/run/systemd/journal/socket"
#: As libsystemd asks for; the kernel gives what net.core.wmem_max allows.
_SEND_BUFFER = 8 << 20
#: journald takes a memfd only when nobody can change it any more.
_SEALS = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE


def _entry(fields: Iterable[tuple[str, str]]) -> bytes:
    """Names are our own, in capitals; a value may have line breaks."""
    parts: list[bytes] = []
    for name, value in fields:
        data = value.encode(errors="backslashreplace")
        if b"\n" in data:
            parts += (name.encode(), b"\n", len(data).to_bytes(8, "little"), data, b"\n")
        else:
            parts += (name.encode(), b"=", data, b"\n")
    return b"".join(parts)


class Journal:
    """A connection to journald, opened when it is first needed, or before."""

    def __init__(self, path: str = SOCKET) -> None:
        self._datagrams = Datagrams(socket.AF_UNIX, path, _SEND_BUFFER)
        self.open = self._datagrams.open

    def send(self, fields: Iterable[tuple[str, str]]) -> bool:
        """Whether journald has it; False when it takes nothing now. Raises OSError only for want of descriptors."""
        return self.send_entry(_entry(fields))

    def send_entry(self, entry: bytes) -> bool:
        """The same of what is an entry already."""
        error = self._datagrams.send(entry)
        # ENOBUFS is also what a full queue says.
        return not error or (error in (errno.EMSGSIZE, errno.ENOBUFS) and self._send_file(entry))

    def _send_file(self, entry: bytes) -> bool:
        """What is too large for a datagram goes as a file."""
        fd = os.memfd_create("journal-entry", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            with open(fd, "wb", buffering=0, closefd=False) as file:
                file.write(entry)
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
            return not self._datagrams.send_descriptor(fd)
        except OSError:
            return False
        finally:
            os.close(fd)

    def close(self) -> None:
        self._datagrams.close()
