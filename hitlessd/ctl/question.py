"""Questions to the runtime API for somebody who must not wait: the answer comes when it comes."""

from __future__ import annotations

import socket
import time

from hitlessd.ctl.connection import Unreachable, parse_address, why

__all__ = ["Question"]

_CONNECT = 1.0  # seconds; a unix socket takes none
_MOST = 64 << 20  # bytes of answers


class Question:
    """Commands sent at once over a connection of their own. `deadline` is time.monotonic()."""

    def __init__(self, where: str, commands: list[str], seconds: float) -> None:
        """Raises Unreachable."""
        self._where = where
        self._count = len(commands)
        self._data = bytearray()
        self.deadline = time.monotonic() + seconds
        try:
            family, address = parse_address(where)
            self._sock = socket.socket(family, socket.SOCK_STREAM)
        except (ValueError, OSError) as error:
            raise Unreachable(f"cannot reach hitlessd at {where}: {error}") from None
        try:
            self._sock.settimeout(_CONNECT)
            self._sock.connect(address)
            self._sock.sendall(";".join(commands).encode("utf-8", "surrogateescape") + b"\n")
            self._sock.setblocking(False)
        except OSError as error:
            self._sock.close()
            raise Unreachable(why(where, error)) from None

    def fileno(self) -> int:
        return self._sock.fileno()

    def answers(self) -> list[str] | None:
        """All of them once the last has come, None before. Raises Unreachable when no more will come."""
        try:
            while piece := self._sock.recv(1 << 18):
                self._data += piece
                if len(self._data) > _MOST:
                    raise Unreachable(f"cannot use the answer of hitlessd at {self._where}: it is too long")
        except BlockingIOError:
            if time.monotonic() < self.deadline:
                return None
            self.close()
            raise Unreachable(f"cannot get an answer from hitlessd at {self._where}: it takes too long") from None
        except OSError:
            pass
        self.close()
        text = self._data.decode("utf-8", "replace")
        found = []
        for _ in range(self._count):
            # An empty answer is the empty line alone.
            if text.startswith("\n"):
                found.append("")
                text = text[1:]
                continue
            answer, end, text = text.partition("\n\n")
            if not end:
                raise Unreachable(f"cannot get an answer from hitlessd at {self._where}: it closed the connection")
            found.append(answer)
        return found

    def close(self) -> None:
        self._sock.close()
