"""Where log lines go: the journal with fields when systemd started us, else a stream with the fields in the text.

Severities are syslog(3)'s, as in HAProxy's `log` line. Logging never raises, and a stream that nobody reads costs
lines, not time: a worker that waits for its log relays nothing.
"""

from __future__ import annotations

import os
import select
import sys
import time
from collections.abc import Callable
from typing import Protocol, TextIO

from hitlessd.model import LogTarget

__all__ = ["SEVERITIES", "Log", "Logger"]

SEVERITIES = ("emerg", "alert", "crit", "err", "warning", "notice", "info", "debug")


class Logger(Protocol):
    """What modules that log are given."""

    def __call__(self, severity: str, message: str, /, **fields: object) -> None: ...


def _journal_is(fd: int) -> bool:
    """Whether that descriptor is our connection to the journal (systemd.exec(5), $JOURNAL_STREAM)."""
    try:
        status = os.fstat(fd)
        device, _, inode = os.environ.get("JOURNAL_STREAM", "").partition(":")
        return (int(device), int(inode)) == (status.st_dev, status.st_ino)
    except (OSError, ValueError):
        return False


def _printable(value: object) -> str:
    """A file name need not be UTF-8, yet the line that names it must come out."""
    text = str(value)
    return text if text.isascii() else text.encode(errors="backslashreplace").decode()


def _write_at_once(fd: int, data: bytes) -> bool:
    """Write if that does not block; False if it would. O_NONBLOCK is not ours to set: others have the open file too."""
    poll = select.poll()
    poll.register(fd, select.POLLOUT)
    for start in range(0, len(data), select.PIPE_BUF):
        # Writable means: room for PIPE_BUF bytes (pipe(7)).
        if not poll.poll(0):
            return False
        os.write(fd, data[start : start + select.PIPE_BUF])
    return True


class Log:
    """A Logger. `generation` appears in every line, so that two generations can be told apart."""

    def __init__(self, target: LogTarget, generation: int = 0, name: str = "hitlessd") -> None:
        self.generation = generation
        self.name = name
        self.configure(target)

    def configure(self, target: LogTarget) -> None:
        """Log there from now on."""
        self._threshold = SEVERITIES.index(target.level)
        self._write: Callable[[int, str, dict[str, str]], None]
        if target.target == "journal" or (target.target == "auto" and _journal_is(2)):
            self._write = self._to_journal
        else:
            # None if the descriptor was closed when Python started.
            self._stream: TextIO | None = sys.stdout if target.target == "stdout" else sys.stderr
            self._write = self._to_stream
        self._lost = 0

    def __call__(self, severity: str, message: str, /, **fields: object) -> None:
        priority = SEVERITIES.index(severity)
        if priority > self._threshold:
            return
        try:
            self._write(priority, _printable(message), {name: _printable(value) for name, value in fields.items()})
        except (OSError, ValueError):
            # A full disk or a closed stream is no reason to stop serving.
            return

    def _to_journal(self, priority: int, message: str, fields: dict[str, str]) -> None:
        from systemd import journal  # imports much; only who logs to the journal pays

        journal.send(
            message,
            PRIORITY=priority,
            SYSLOG_IDENTIFIER=self.name,
            HITLESSD_GENERATION=self.generation,
            **{f"HITLESSD_{name.upper()}": value for name, value in fields.items()},
        )

    def _to_stream(self, priority: int, message: str, fields: dict[str, str]) -> None:
        if self._stream is None:
            return
        now = time.time()
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(now)) + f".{int(now * 1000) % 1000:03d}"
        details = "".join(f" {name}={value}" for name, value in fields.items())
        who = f"generation {self.generation}" if self.generation else "starting"
        line = f"{stamp} {self.name}[{os.getpid()}] {who} {SEVERITIES[priority]}: {message}"
        data = f"{line}{' |' if details else ''}{details}\n".encode(errors="backslashreplace")
        if self._lost:
            data = f"{stamp} {self.name}[{os.getpid()}] {self._lost} lines are lost: nobody reads\n".encode() + data
        try:
            fd = self._stream.fileno()
        except (OSError, ValueError):
            # Not a file: somebody has put another object in its place.
            self._stream.write(data.decode())
            return
        self._lost = 0 if _write_at_once(fd, data) else self._lost + 1
