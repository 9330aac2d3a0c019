"""Where log lines go: the journal with fields when systemd started us, a syslog server, or a stream.

Severities are syslog(3)'s, as in HAProxy's `log` line. Logging never raises, and a reader that does not read costs
lines, which are counted and told later, but no time: a worker that waits for its log relays nothing.
"""

from __future__ import annotations

import contextlib
import os
import select
import sys
import time
from collections.abc import Callable
from typing import Protocol, TextIO

from hitlessd.events import Event
from hitlessd.journal import SOCKET as journal_socket
from hitlessd.journal import Journal
from hitlessd.model import LogTarget
from hitlessd.syslog import Syslog

__all__ = ["SEVERITIES", "Log", "Logger"]

SEVERITIES = ("emerg", "alert", "crit", "err", "warning", "notice", "info", "debug")
_WARNING, _INFO = SEVERITIES.index("warning"), SEVERITIES.index("info")


class Logger(Protocol):
    """What modules that log are given. The event and the fields are there to be searched for: in the journal they are
    MESSAGE_ID= and HITLESSD_NAME=."""

    def __call__(self, severity: str, message: str, /, *, event: Event | None = None, **fields: object) -> None: ...


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


class _Patient:
    """A descriptor that is written to if that does not block. O_NONBLOCK is not ours to set: others have the open file
    too."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        poll = select.poll()
        poll.register(fd, select.POLLOUT)
        self._poll = poll.poll

    def write(self, data: bytes) -> bool:
        """False if it would block."""
        for start in range(0, len(data), select.PIPE_BUF):
            # Writable means: room for PIPE_BUF bytes (pipe(7)).
            if not self._poll(0):
                return False
            os.write(self.fd, data[start : start + select.PIPE_BUF])
        return True


class _Sink(Protocol):
    """Somewhere to write to. message() and access() tell whether it was taken. All may raise OSError or ValueError."""

    structured: bool  # an access log entry's `fields` are of use

    def open(self) -> None: ...
    def message(
        self, priority: int, text: str, event: Event | None, fields: dict[str, object], generation: int
    ) -> bool: ...
    def access(self, line: str, whole: bool, fields: str, generation: int) -> bool: ...
    def close(self) -> None: ...


class _Stream:
    """Standard output or error."""

    structured = False

    def __init__(self, stream: TextIO | None, name: str) -> None:
        self._stream = stream  # None if the descriptor was closed when Python started
        self._name = name
        self._file: _Patient | None = None
        self._second = -1
        self._stamp = ""

    def open(self) -> None:
        """The stream is there."""

    def message(
        self, priority: int, text: str, event: Event | None, fields: dict[str, object], generation: int
    ) -> bool:
        details = _details(fields)
        return self._write(f"{self._head(priority, generation)}{text}{details}\n")

    def access(self, line: str, whole: bool, fields: str, generation: int) -> bool:
        # A line of JSON is of use only when nothing else stands in it.
        return self._write(f"{line}\n" if whole else f"{self._head(_INFO, generation)}{line}\n")

    def close(self) -> None:
        """The stream is Python's."""

    def _head(self, priority: int, generation: int) -> str:
        now = time.time()
        second = int(now)
        if second != self._second:
            self._stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(second))
            self._second = second
        who = f"generation {generation}" if generation else "starting"
        stamp = f"{self._stamp}.{int(now * 1000) % 1000:03d}"
        return f"{stamp} {self._name}[{os.getpid()}] {who} {SEVERITIES[priority]}: "

    def _write(self, text: str) -> bool:
        if self._stream is None:
            return True
        try:
            fd = self._stream.fileno()
        except (OSError, ValueError):
            # Not a file: somebody has put another object in its place.
            self._stream.write(text)
            return True
        if self._file is None or fd != self._file.fd:
            self._file = _Patient(fd)
        return self._file.write(text.encode(errors="backslashreplace"))


class _Journal:
    """journald, with fields."""

    structured = True

    def __init__(self, name: str, path: str) -> None:
        self._journal = Journal(path)
        self._name = name

    def open(self) -> None:
        self._journal.open()

    def message(
        self, priority: int, text: str, event: Event | None, fields: dict[str, object], generation: int
    ) -> bool:
        entry = self._entry(priority, text, generation)
        if event is not None:
            entry.append(("MESSAGE_ID", event.message_id))
        entry += [(f"HITLESSD_{name.upper()}", _printable(value)) for name, value in fields.items()]
        return self._journal.send(entry)

    def access(self, line: str, whole: bool, fields: str, generation: int) -> bool:
        head = f"PRIORITY={_INFO}\nSYSLOG_IDENTIFIER={self._name}\nHITLESSD_GENERATION={generation}\n"
        entry = f"MESSAGE={line}\n{head}{fields}"
        return self._journal.send_entry(entry.encode(errors="backslashreplace"))

    def close(self) -> None:
        self._journal.close()

    def _entry(self, priority: int, text: str, generation: int) -> list[tuple[str, str]]:
        return [
            ("MESSAGE", text),
            ("PRIORITY", str(priority)),
            ("SYSLOG_IDENTIFIER", self._name),
            ("HITLESSD_GENERATION", str(generation)),
        ]


class _Syslog:
    """A syslog server."""

    structured = False

    def __init__(self, server: Syslog) -> None:
        self._server = server
        self.access = server.access

    def open(self) -> None:
        """It was, when it was made."""

    def message(
        self, priority: int, text: str, event: Event | None, fields: dict[str, object], generation: int
    ) -> bool:
        return self._server.send(priority, f"{text}{_details(fields)}")

    def close(self) -> None:
        self._server.close()


def _details(fields: dict[str, object]) -> str:
    text = "".join(f" {name}={_printable(value)}" for name, value in fields.items())
    return f" |{text}" if text else ""


class Log:
    """A Logger. `generation` appears in every line, so that two generations can be told apart."""

    def __init__(
        self, target: LogTarget, generation: int = 0, name: str = "hitlessd", journal: str = journal_socket
    ) -> None:
        self.generation = generation
        self.name = name
        self._journal = journal
        self._sink: _Sink | None = None
        self.configure(target)

    def configure(self, target: LogTarget) -> None:
        """Log there from now on."""
        if self._sink is not None:
            self._sink.close()
        self._threshold = SEVERITIES.index(target.level)
        self._lost = 0
        sink = self._sink = self._open(target)
        self._access = sink.access
        self._structured = sink.structured

    def _open(self, target: LogTarget) -> _Sink:
        if target.target == "journal" or (target.target == "auto" and _journal_is(2)):
            return _Journal(self.name, self._journal)
        if target.target == "syslog" and target.address is not None:
            return _Syslog(Syslog(target.address, target.facility, self.name))
        return _Stream(sys.stdout if target.target == "stdout" else sys.stderr, self.name)

    def open(self) -> None:
        """Have the descriptor that a line wants, which may be the very thing that it has to tell is missing."""
        if self._sink is not None:
            with contextlib.suppress(OSError):
                self._sink.open()

    def __call__(self, severity: str, message: str, /, *, event: Event | None = None, **fields: object) -> None:
        priority = SEVERITIES.index(severity)
        if priority <= self._threshold:
            self._deliver(lambda sink: sink.message(priority, _printable(message), event, fields, self.generation))

    @property
    def wanted(self) -> bool:
        """Whether access() writes anything."""
        return self._threshold >= _INFO

    @property
    def structured(self) -> bool:
        """Whether access() should be given fields."""
        return self._structured

    def access(self, line: str, whole: bool = False, fields: str = "", /) -> None:
        """An access log entry, of severity info: its text, which is one line, and its fields as the journal wants them.
        Nothing is put before, and nothing cut off, what must stay `whole`."""
        if self._threshold < _INFO:
            return
        if self._lost:
            self._deliver(lambda sink: sink.access(line, whole, fields, self.generation))
            return
        # As _deliver(), without a function for each line.
        try:
            if not self._access(line, whole, fields, self.generation):
                self._lost = 1
        except (OSError, ValueError):
            return

    def _deliver(self, write: Callable[[_Sink], bool]) -> None:
        sink = self._sink
        assert sink is not None
        try:
            if self._lost:
                text = f"{self._lost} lines are lost: nobody reads"
                more: dict[str, object] = {"lines": self._lost}
                if not sink.message(
                    _WARNING, text, event=Event.LOG_LINES_LOST, fields=more, generation=self.generation
                ):
                    self._lost += 1
                    return
                self._lost = 0
            if not write(sink):
                self._lost += 1
        except (OSError, ValueError):
            # A full disk or a closed stream is no reason to stop serving.
            return
