"""A client of the runtime API: its buffers, its rights, and the form in which it moves to a successor."""

from __future__ import annotations

import binascii
import os
import socket
import struct
from collections import deque
from typing import Any

from hitlessd.model import InetAddress, StatsSocket, UnixAddress
from hitlessd.runtime.command import LEVELS, Pieces, Session, address_text
from hitlessd.runtime.control import Credentials

__all__ = [
    "EXPORT_CLIENTS",
    "EXPORT_LIMIT",
    "EXPORT_TOTAL",
    "LINE_LIMIT",
    "Client",
    "is_privileged",
    "restored",
    "takeover_refusal",
]

LINE_LIMIT = 16384  # bytes of a line with its newline; HAProxy's tune.bufsize
EXPORT_CLIENTS = 224  # that go to a successor; a frame of the handover has room for 252 descriptors
EXPORT_LIMIT = 65536  # bytes of unread answers that go to a successor
EXPORT_TOTAL = 2 << 20  # bytes of everything that goes to a successor, before its encoding
_FORMAT = 1  # of an exported client


class Client:
    """One connection. `waiting` is the number of the reload whose outcome it waits for."""

    def __init__(self, sock: socket.socket, stats: StatsSocket, session: Session, now: float) -> None:
        self.sock = sock
        self.stats = stats
        self.session = session
        self.credentials = _credentials(sock)
        self.input = bytearray()
        self.commands: deque[bytes] = deque()  # of the line being executed
        self.output = bytearray()
        self.waiting: int | None = None
        self.pieces: Pieces | None = None  # of the answer that is being given
        self.asking = False  # for the next of them
        self.pausing = False  # one has come: others have their turn before the next
        self.asked = False  # has sent a line
        self.ended = False  # has sent all that it will
        self.closing = False  # answer, then close
        self.alive = True
        self.active = now  # loop time of the latest sign of life
        self.events = 0  # what the loop waits for

    def __str__(self) -> str:
        who = f" (pid {self.credentials.pid}, uid {self.credentials.uid})" if self.credentials else ""
        return f"runtime API client of {address_text(self.stats)}{who}"

    @property
    def due(self) -> float:
        """Loop time at which it has been silent for too long; a reload may take as long as it likes."""
        return float("inf") if self.waiting is not None else self.active + self.session.timeout

    @property
    def busy(self) -> bool:
        """An answer is still to come, so that the next command has to wait."""
        return self.waiting is not None or self.pieces is not None

    @property
    def size(self) -> int:
        """Bytes that state() has to carry, about."""
        return len(self.input) + sum(len(command) + 1 for command in self.commands) + len(self.output) + 1024

    def state(self, now: float) -> dict[str, Any]:
        """What restored() needs to go on in another process (JSON). `now` is the loop's time."""
        stats, session, address = self.stats, self.session, self.stats.address
        return {
            "format": _FORMAT,
            "address": list(address.sockaddr) if isinstance(address, InetAddress) else address.path,
            "socket_level": stats.level,
            "expose_fd_listeners": stats.expose_fd_listeners,
            "level": session.level,
            "privileged": session.privileged,
            "prompt": session.prompt,
            "timed": session.timed,
            "target": session.target,
            "timeout": session.timeout,
            "input": _text(self.input),
            "commands": _text(b"\0".join(self.commands)) if self.commands else None,
            "output": _text(self.output),
            "reload": self.waiting,
            "asked": self.asked,
            "ended": self.ended,
            "closing": self.closing,
            "idle": max(0.0, now - self.active),
        }


def _credentials(sock: socket.socket) -> Credentials | None:
    if sock.family != socket.AF_UNIX:
        return None
    return Credentials(*struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)))


def is_privileged(credentials: Credentials | None) -> bool:
    return credentials is not None and credentials.uid in (0, os.geteuid())


def takeover_refusal(stats: StatsSocket, credentials: Credentials | None) -> str:
    """Why this client may not take over, empty if it may."""
    if not stats.expose_fd_listeners or not isinstance(stats.address, UnixAddress):
        return f"cannot take over: the stats socket {address_text(stats)} lacks 'expose-fd listeners'"
    if credentials is None or not is_privileged(credentials):
        uid = credentials.uid if credentials else "unknown"
        return f"cannot take over: only root and uid {os.geteuid()} may, this is uid {uid}"
    return ""


def _text(data: bytes | bytearray) -> str:
    return binascii.b2a_base64(data, newline=False).decode("ascii")


def _bytes(text: Any, limit: int) -> bytes:
    data = binascii.a2b_base64(text, strict_mode=True)
    if len(data) > limit:
        raise ValueError(f"{len(data)} bytes where {limit} are allowed")
    return data


def restored(sock: socket.socket, state: dict[str, Any], now: float) -> tuple[Client, int | None]:
    """A client from its exported state, and the reload it waits for. Raises KeyError, TypeError, ValueError."""
    if state["format"] != _FORMAT:
        raise ValueError(f"unknown format {state['format']!r}")
    level, socket_level, timeout = state["level"], state["socket_level"], float(state["timeout"])
    if level not in LEVELS or socket_level not in LEVELS or not 0 < timeout < float("inf"):
        raise ValueError("unsound level or time-out")
    where = state["address"]
    address = UnixAddress(where) if isinstance(where, str) else InetAddress(str(where[0]), int(where[1]))
    stats = StatsSocket(address, level=socket_level, expose_fd_listeners=state["expose_fd_listeners"] is True)
    session = Session(level, state["privileged"] is True, state["prompt"] is True, timeout=timeout)
    # What earlier versions do not say.
    session.timed, session.target = state.get("timed") is True, int(state.get("target", 0))
    client = Client(sock, stats, session, now - float(state["idle"]))
    client.input += _bytes(state["input"], LINE_LIMIT)
    if state["commands"] is not None:
        client.commands.extend(_bytes(state["commands"], LINE_LIMIT).split(b"\0"))
    client.output += _bytes(state["output"], EXPORT_LIMIT)
    client.asked, client.ended, client.closing = (state[name] is True for name in ("asked", "ended", "closing"))
    waiting = state["reload"]
    return client, None if waiting is None else int(waiting)
