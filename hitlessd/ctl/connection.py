"""A connection to the runtime API, and questions over it. Imported by every reload."""

from __future__ import annotations

import _socket as socket  # `socket` itself imports enum and selectors, which takes 5 ms
import os
import stat
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["ANSWER", "Connection", "Unreachable", "ask", "fields", "is_refusal", "number", "parse_address", "why"]

ANSWER = 10.0  # seconds without a byte until an answer other than a reload's is given up
#: How an answer begins that says no.
_REFUSALS = (
    "Unknown command",
    "Permission denied",
    "cannot ",
    "No such ",
    "Can't find ",
    "Invalid ",
    "Expects ",
    "Require ",
    "'set ",
    "Success=0",
)


#: Commands that have nothing to say but why they are refused, apart from _CHANGED; of what is as wanted they say so.
_CHANGING = frozenset(("add", "clear", "del", "disable", "enable", "set", "shutdown"))
_CHANGED = frozenset(
    (
        "New server registered.", "Server deleted.", "All sockets are already enabled.",
        "All sockets are already disabled.", "Frontend was already shut down.",
    )
)  # fmt: skip


class Unreachable(Exception):
    """Says why, for a person."""


class Connection:
    """A connection to the runtime API. `deadline` is time.monotonic(), None for none; `longest` seconds to connect."""

    def __init__(self, where: str, deadline: float | None, longest: float | None = ANSWER) -> None:
        self._deadline = deadline
        self._left = b""
        try:
            family, address = parse_address(where)
            self._sock = socket.socket(family, socket.SOCK_STREAM)
        except (ValueError, OSError) as error:
            raise Unreachable(f"cannot reach hitlessd at {where}: {error}") from None
        try:
            self._sock.settimeout(self._patience(longest))
            self._sock.connect(address)
        except OSError as error:
            self._sock.close()
            raise Unreachable(why(where, error)) from None
        except (TypeError, ValueError):  # a host name that cannot be encoded
            self._sock.close()
            raise Unreachable(f"cannot reach hitlessd at {where}: not a host name") from None

    def _patience(self, longest: float | None) -> float | None:
        if self._deadline is None:
            return longest
        left = max(0.001, self._deadline - time.monotonic())
        return left if longest is None else min(left, longest)

    def send(self, line: str) -> None:
        """Raises OSError."""
        self._sock.sendall(line.encode("utf-8", "surrogateescape") + b"\n")

    def end(self) -> None:
        """Say that no further line will come. Raises OSError."""
        self._sock.shutdown(socket.SHUT_WR)

    def answer(self, longest: float | None) -> str | None:
        """The next answer, without the empty line that ends it; None when the other side closes before that.

        Raises TimeoutError after `longest` seconds without a byte.
        """
        data = bytearray(self._left)
        # An empty answer is the empty line alone.
        while not data.startswith(b"\n") and b"\n\n" not in data:
            self._sock.settimeout(self._patience(longest))
            try:
                received = self._sock.recv(1 << 18)
            except ConnectionError:
                received = b""
            if not received:
                return None
            data += received
        text, _, self._left = (b"", b"", bytes(data[1:])) if data.startswith(b"\n") else bytes(data).partition(b"\n\n")
        return text.decode("utf-8", "surrogateescape")

    def close(self) -> None:
        self._sock.close()


def parse_address(where: str) -> tuple[int, tuple[str, int] | str]:
    kind, at, rest = where.partition("@")
    if at and kind == "unix":
        return socket.AF_UNIX, rest
    if at and kind == "abns":
        return socket.AF_UNIX, "\0" + rest
    if at and kind in ("ipv4", "ipv6"):
        host, _, port = rest.rpartition(":")
        if not host or not port.isascii() or not port.isdigit() or int(port) > 65535:
            raise ValueError(f"found {rest!r}, expected HOST:PORT after {kind}@")
        return (socket.AF_INET if kind == "ipv4" else socket.AF_INET6), (host.strip("[]"), int(port))
    if not where:
        raise ValueError("no socket is named")
    return socket.AF_UNIX, where


def why(where: str, error: OSError) -> str:
    if isinstance(error, FileNotFoundError) and ":" in where and "/" not in where:
        step = f"for an address write ipv4@{where} or ipv6@{where}"
    elif isinstance(error, ConnectionRefusedError) and "@" not in where and not _is_socket(where):
        return f"cannot reach hitlessd at {where}: it is not a socket; next step: give -s the path of a `stats socket`"
    elif isinstance(error, socket.gaierror) or error.errno is None:  # a name; a path that is too long
        step = "mend the address after -s, or in HITLESSD_SOCKET"
    elif isinstance(error, FileNotFoundError):
        step = "is it running (systemctl status hitlessd), and is this its `stats socket`?"
    elif isinstance(error, PermissionError):
        step = "run as root, or as a user that may open the socket"
    elif isinstance(error, ConnectionRefusedError):
        step = "nobody serves it any more; start hitlessd (systemctl start hitlessd)"
    else:
        step = "look at the log (journalctl -u hitlessd)"
    return f"cannot reach hitlessd at {where}: {error.strerror or error}; next step: {step}"


def _is_socket(path: str) -> bool:
    try:
        return stat.S_ISSOCK(os.stat(path).st_mode)
    except OSError:
        return True  # nothing is known


def fields(text: str) -> dict[str, str]:
    pairs = (line.partition(": ") for line in text.splitlines())
    return {name: value for name, _, value in pairs}


def number(info: dict[str, str], name: str) -> int:
    value = info.get(name, "")
    return int(value) if value.isascii() and value.isdigit() else 0


def ask(where: str, commands: list[str], deadline: float | None = None) -> list[str]:
    """The answers to commands sent at once. Raises Unreachable."""
    connection = Connection(where, deadline)
    try:
        connection.send(";".join(commands))
        answers = []
        for _ in commands:
            answer = connection.answer(ANSWER)
            if answer is None:
                raise Unreachable(f"cannot get an answer from hitlessd at {where}: it closed the connection")
            answers.append(answer)
        return answers
    except OSError as error:
        reason = "it takes too long" if isinstance(error, TimeoutError) else error.strerror
        raise Unreachable(f"cannot get an answer from hitlessd at {where}: {reason}") from None
    finally:
        connection.close()


def is_refusal(answer: str, words: Sequence[str] = ()) -> bool:
    """Whether an answer, to a command of these words, says no."""
    if answer.startswith(_REFUSALS):
        return True
    line = " ".join(words)
    verb = next((word for word in line.split() if not word.startswith("@")), "")
    if verb not in _CHANGING or ";" in line:
        return False  # of several commands it is not known which one this answers
    text = answer.strip()
    moved = text.endswith(" by 'stats socket command'") and "problem converting" not in text
    return bool(text) and not moved and text not in _CHANGED
