"""A program on a terminal of our own: its screen is read as a person would, keys are pressed."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import select
import signal
import struct
import termios
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType

import pyte

from tests.support.processes import Deadline, end

__all__ = ["Terminal"]

#: Nobody shows these, and a screen ignores them.
_MARK = b"\0" * 8


class Terminal:
    """Runs `command`; the screen is an xterm's of that size."""

    def __init__(
        self, command: Sequence[str], env: Mapping[str, str] | None = None, columns: int = 80, lines: int = 24
    ) -> None:
        self._command = list(command)
        self._env = {**os.environ, "TERM": "xterm-256color", "LANG": "C.UTF-8", **(env or {})}
        for name in ("COLUMNS", "LINES", "NO_COLOR"):
            if name not in (env or {}):
                self._env.pop(name, None)
        self._size = columns, lines
        self.raw = b""  # all that came
        self._screen = pyte.Screen(columns, lines)
        self._stream = pyte.ByteStream(self._screen)
        self._status: int | None = None

    def __enter__(self) -> Terminal:
        # The parent holds on to the other end: its settings can be read when the program has ended.
        self._master, self.terminal = pty.openpty()
        self._resize()
        self.settings = termios.tcgetattr(self.terminal)
        self.pid = os.fork()
        if not self.pid:
            try:
                os.login_tty(self.terminal)
                signal.signal(signal.SIGINT, signal.SIG_DFL)  # whoever runs in the background has it ignored
                os.execvpe(self._command[0], self._command, self._env)
            finally:
                os._exit(127)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._status is None:
            end(self.pid, 5, signal.SIGKILL)
            with contextlib.suppress(ChildProcessError):
                os.waitpid(self.pid, 0)
        os.close(self._master)
        os.close(self.terminal)
        if error is not None:
            print("\n".join(["--- screen ---", *self.lines]))

    @property
    def lines(self) -> list[str]:
        """What is on the screen."""
        return [line.rstrip() for line in self._screen.display]

    @property
    def text(self) -> str:
        return "\n".join(self.lines)

    def press(self, keys: str) -> None:
        os.write(self._master, keys.encode())

    def resize(self, columns: int, lines: int) -> None:
        """As a window that is dragged larger."""
        self._size = columns, lines
        self._screen.resize(lines, columns)
        self._resize()

    def _resize(self) -> None:
        columns, lines = self._size
        fcntl.ioctl(self._master, termios.TIOCSWINSZ, struct.pack("4H", lines, columns, 0, 0))

    def until(self, condition: Callable[[str], object], what: str, deadline: float = 15.0) -> str:
        """Read until the screen's text satisfies that; returns the text."""
        limit = Deadline(deadline)
        while not condition(self.text):
            limit.check(f"{what}; the screen says:\n{self.text}")
            self._read(limit.left)
        return self.text

    def shows(self, text: str) -> str:
        """Wait until that is on the screen."""
        return self.until(lambda screen: text in screen, f"{text!r} on the screen")

    def ended(self, deadline: float = 15.0) -> int:
        """Wait until the program has ended; its exit status, negative for a signal."""
        limit = Deadline(deadline)
        pidfd = os.pidfd_open(self.pid)
        try:
            while not select.select([pidfd], [], [], 0)[0]:
                limit.check(f"the program ends; the screen says:\n{self.text}")
                self._read(min(limit.left, 0.1))
        finally:
            os.close(pidfd)
        # What it wrote last may still be on its way through the kernel; what we write comes behind it.
        os.write(self.terminal, _MARK)
        while _MARK not in self.raw:
            limit.check("all that the program has written")
            self._read(limit.left)
        self.raw = self.raw.replace(_MARK, b"")
        self._status = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return self._status

    def _read(self, seconds: float) -> bool:
        if not select.select([self._master], [], [], seconds)[0]:
            return False
        data = os.read(self._master, 65536)
        self.raw += data
        self._stream.feed(data)
        return True
