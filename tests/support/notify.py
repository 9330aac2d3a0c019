"""A service manager's end of sd_notify(3): a datagram socket that notes who said what (SO_PASSCRED, unix(7))."""

from __future__ import annotations

import array
import contextlib
import os
import socket
import struct
import threading
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from tests.support.processes import Deadline

_UCRED = struct.Struct("=iII")
_ROOM = socket.CMSG_SPACE(_UCRED.size) + socket.CMSG_SPACE(253 * 4)


@dataclass(frozen=True)
class Datagram:
    """One message: its sender as the kernel knows it, its lines, and the number of descriptors that came with it."""

    pid: int
    lines: tuple[str, ...]
    fds: int

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(line.partition("=")[0] for line in self.lines)

    def value(self, name: str) -> str:
        return dict(line.split("=", 1) for line in self.lines)[name]


class NotifySocket:
    """Give `environment` to a daemon. Descriptors are closed at once, which is what BARRIER=1 waits for."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / "notify.sock"
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        self._sock.bind(str(self.path))
        self._changed = threading.Condition()
        self._datagrams: list[Datagram] = []
        self._marked = threading.Event()
        self._thread = threading.Thread(target=self._read, daemon=True)

    @property
    def environment(self) -> dict[str, str]:
        """Without a descriptor store."""
        return {"NOTIFY_SOCKET": str(self.path), "FDSTORE": "0"}

    def __enter__(self) -> NotifySocket:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as waker:
            waker.sendto(b"END", str(self.path))
        self._thread.join(5)
        self._sock.close()

    def _read(self) -> None:
        while True:
            data, ancillary, _, _ = self._sock.recvmsg(65536, _ROOM)
            pid, fds = 0, array.array("i")
            for level, kind, payload in ancillary:
                if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                    fds.frombytes(payload)
                elif level == socket.SOL_SOCKET and kind == socket.SCM_CREDENTIALS:
                    pid = _UCRED.unpack(payload)[0]
            if data == b"END":
                return
            if data == b"MARK":
                self._marked.set()
                continue
            with self._changed:
                self._datagrams.append(Datagram(pid, tuple(data.decode().splitlines()), len(fds)))
                self._changed.notify_all()
            for fd in fds:
                with contextlib.suppress(OSError):
                    os.close(fd)

    def settle(self) -> None:
        """Return when all that was sent before this call has been read."""
        self._marked.clear()
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as marker:
            marker.sendto(b"MARK", str(self.path))
        assert self._marked.wait(15), "nobody reads the notify socket"

    @property
    def datagrams(self) -> list[Datagram]:
        """All so far, but for the STATUS= alone that a daemon sends now and then."""
        with self._changed:
            return [each for each in self._datagrams if each.names != ("STATUS",)]

    @property
    def statuses(self) -> list[str]:
        """Every STATUS= so far."""
        with self._changed:
            return [each.value("STATUS") for each in self._datagrams if "STATUS" in each.names]

    def wait(self, line: str, pid: int = 0, after: int = 0, deadline: float = 15.0) -> int:
        """The index in `datagrams` of the first one, from number `after` on, with such a line, of that process."""
        limit = Deadline(deadline)
        with self._changed:
            while True:
                known = [each for each in self._datagrams if each.names != ("STATUS",)]
                for index, each in enumerate(known[after:], after):
                    if line in each.lines and pid in (0, each.pid):
                        return index
                limit.check(f"{line} from {pid or 'anybody'}; heard {known}")
                self._changed.wait(limit.left)
