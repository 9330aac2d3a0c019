"""Sockets and clients of the runtime API on the main process's loop: accept, read lines, write answers, time out."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any

from hitlessd.model import StatsSocket
from hitlessd.runtime.control import Control, LoopLike

__all__ = ["RuntimeServer"]


class RuntimeServer:
    """Serves the runtime API on any number of listening sockets. `log(severity, message, **fields)`."""

    def __init__(self, loop: LoopLike, control: Control, log: Callable[..., None]) -> None:
        raise NotImplementedError

    def add_listener(self, stats: StatsSocket, sock: socket.socket) -> None:
        """Accept on `sock`, a non-blocking listening socket that stays the caller's to close. Raises OSError."""
        raise NotImplementedError

    def remove_listener(self, sock: socket.socket) -> None:
        """Stop accepting on `sock`, before it is closed or handed over. Its clients stay; an unknown one is ignored."""
        raise NotImplementedError

    def export_clients(self) -> list[tuple[socket.socket, dict[str, Any]]]:
        """Give every client away, for a successor: the socket, and what import_client() needs (JSON)."""
        raise NotImplementedError

    def import_client(self, sock: socket.socket, state: dict[str, Any]) -> None:
        """Serve a client that another server exported. Owns `sock` from here on. Raises PeerError, `sock` closed."""
        raise NotImplementedError

    def close(self) -> None:
        """Forget the listeners and close every client, sending what the kernel takes at once."""
        raise NotImplementedError
