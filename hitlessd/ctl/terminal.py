"""A terminal that is ours for a while: keys as they are pressed, a whole screen to paint, and all restored whatever
happens."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import termios
from collections.abc import Iterator, Sequence
from types import FrameType

__all__ = ["Screen", "keys_of", "opened"]

_ENTER = "\x1b[?1049h\x1b[?25l"  # the other screen, no cursor (xterm's control sequences)
_LEAVE = "\x1b[?25h\x1b[?1049l"
_KEYS = {
    "\x1b[A": "up", "\x1bOA": "up", "\x1b[B": "down", "\x1bOB": "down", "\x1b[5~": "page up", "\x1b[6~": "page down",
    "\x1b[H": "home", "\x1bOH": "home", "\x1b[1~": "home", "\x1b[F": "end", "\x1bOF": "end", "\x1b[4~": "end",
    "\r": "enter", "\n": "enter", "\x7f": "backspace", "\b": "backspace", "\x1b": "escape",
}  # fmt: skip
_LONGEST = max(map(len, _KEYS))
_REST = 0.05  # seconds in which what follows an ESC must come, if it is a key
_ENDING = (signal.SIGTERM, signal.SIGHUP)


class Screen:
    """What opened() gives. `woken` is readable when a signal has come, the size has changed for example."""

    def __init__(self, keyboard: int, output: int) -> None:
        self._keyboard = keyboard
        self._output = output
        self._before = termios.tcgetattr(keyboard)
        self.woken, self._wake = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)

    @property
    def keyboard(self) -> int:
        """A descriptor, readable when keys have been pressed."""
        return self._keyboard

    @property
    def size(self) -> tuple[int, int]:
        """Columns and lines."""
        columns, lines = os.get_terminal_size(self._output)
        return max(1, columns), max(1, lines)

    def paint(self, lines: Sequence[str]) -> None:
        """Show these lines and nothing else; they fit. Raises OSError."""
        text = "\x1b[H" + "\r\n".join(f"{line}\x1b[K" for line in lines) + "\x1b[J"
        self._write(text)

    def pressed(self) -> list[str]:
        """What has been pressed: characters, or names as in _KEYS. Raises EOFError when the terminal is gone."""
        data = self._read()
        if data.endswith((b"\x1b", b"\x1b[", b"\x1bO")) and select.select([self._keyboard], [], [], _REST)[0]:
            data += self._read()
        return keys_of(data.decode("utf-8", "ignore"))

    def calm(self) -> None:
        """Take note of what `woken` says."""
        with contextlib.suppress(BlockingIOError):
            os.read(self.woken, 4096)

    def enter(self) -> None:
        settings = termios.tcgetattr(self._keyboard)
        settings[3] &= ~(termios.ICANON | termios.ECHO)
        termios.tcsetattr(self._keyboard, termios.TCSADRAIN, settings)
        self._write(_ENTER)

    def leave(self) -> None:
        """As it was before enter(); does no harm twice."""
        with contextlib.suppress(OSError):
            self._write(_LEAVE)
        with contextlib.suppress(termios.error):
            termios.tcsetattr(self._keyboard, termios.TCSADRAIN, self._before)

    def wake(self, _number: int = 0, _frame: FrameType | None = None) -> None:
        with contextlib.suppress(BlockingIOError):
            os.write(self._wake, b"x")

    def suspend(self, number: int, _frame: FrameType | None) -> None:
        """SIGTSTP: give the terminal back for as long as we are stopped."""
        self.leave()
        signal.signal(number, signal.SIG_DFL)
        signal.raise_signal(number)
        signal.signal(number, self.suspend)
        self.enter()
        self.wake()

    def close(self) -> None:
        os.close(self.woken)
        os.close(self._wake)

    def _read(self) -> bytes:
        try:
            data = os.read(self._keyboard, 1024)
        except OSError:
            data = b""
        if not data:
            raise EOFError
        return data

    def _write(self, text: str) -> None:
        data = text.encode(sys.stdout.encoding or "ascii", "replace")
        while data:
            data = data[os.write(self._output, data) :]


def keys_of(text: str) -> list[str]:
    """Keys from what a terminal sends; sequences that are unknown are left out."""
    keys = []
    while text:
        for length in range(min(_LONGEST, len(text)), 0, -1):
            if key := _KEYS.get(text[:length]):
                if key == "escape" and len(text) > 1 and text[1] in "[O":
                    length = _unknown(text)
                else:
                    keys.append(key)
                text = text[length:]
                break
        else:
            if text[0].isprintable():
                keys.append(text[0])
            text = text[1:]
    return keys


def _unknown(text: str) -> int:
    """The length of a control sequence that means nothing to us (ECMA-48, 5.4)."""
    for at in range(2, len(text)):
        if "@" <= text[at] <= "~":
            return at + 1
    return len(text)


@contextlib.contextmanager
def opened() -> Iterator[Screen]:
    """The terminal of the standard input and output. SIGTERM and SIGHUP end the block (SystemExit)."""
    screen = Screen(sys.stdin.fileno(), sys.stdout.fileno())

    def end(number: int, _frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    before = {number: signal.signal(number, end) for number in _ENDING}
    before[signal.SIGWINCH] = signal.signal(signal.SIGWINCH, screen.wake)
    before[signal.SIGTSTP] = signal.signal(signal.SIGTSTP, screen.suspend)
    try:
        screen.enter()
        yield screen
    finally:
        for number, handler in before.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)
        screen.leave()
        screen.close()
