"""hitlessctl: speaks to a running hitlessd over its runtime API socket.

It runs in every reload, so it imports next to nothing and parses its few options itself.

Exit status: 0 done; 1 refused; 2 usage; 3 hitlessd cannot be reached, or its answer did not arrive; 130 interrupted.
"""

from __future__ import annotations

import os
import socket
import stat
import sys
import time

__all__ = ["main"]

DONE, REFUSED, USAGE, UNREACHABLE = range(4)
_INTERRUPTED = 128 + 2  # as a shell says of a program that SIGINT ended

_DEFAULT = "/run/hitlessd/hitlessd.sock"
_RECONNECT = 30.0  # seconds in which a new main process must answer after the one we spoke to has gone
#: The same as an ExecReload=: systemd starts the crashed service again only after we have ended (systemd.service(5)).
_RECONNECT_IN_UNIT = 1.0
_ANSWER = 10.0  # seconds without a byte until an answer other than a reload's is given up
_PAUSE = 0.05  # seconds between attempts to reconnect
#: How an answer begins that says no.
_REFUSALS = (
    "Unknown command",
    "Permission denied",
    "cannot ",
    "No such ",
    "Invalid ",
    "Expects ",
    "'set ",
    "Success=0",
)

_USAGE = """\
usage: hitlessctl [-s SOCKET] reload [-v] [--timeout SECONDS]
       hitlessctl [-s SOCKET] status
       hitlessctl [-s SOCKET] COMMAND [ARGUMENT ...]

  reload   load the configuration into a new generation; waits for the outcome
  status   a summary for people
  COMMAND  any command of the runtime API, such as `show stat`; `help` lists them

  -s SOCKET          the runtime API socket: a path, ipv4@HOST:PORT, ipv6@[HOST]:PORT or abns@NAME
                     (default: $HITLESSD_SOCKET, else /run/hitlessd/hitlessd.sock)
  -v                 with reload: say what was done
  --timeout SECONDS  with reload: wait no longer than this (default: as long as it takes)
  -h, --help         show this text

exit status: 0 done, 1 refused, 2 usage, 3 hitlessd cannot be reached or did not answer, 130 interrupted
"""


class _Unreachable(Exception):
    """Says why, for a person."""


class _UsageError(Exception):
    """Says what is wrong with the command line."""


class _Unwritable(Exception):
    """Says why the answer could not be printed."""


class _Connection:
    """A connection to the runtime API. `deadline` is time.monotonic(), None for none; `longest` seconds to connect."""

    def __init__(self, where: str, deadline: float | None, longest: float | None = _ANSWER) -> None:
        self._deadline = deadline
        self._left = b""
        try:
            family, address = _parse_address(where)
            self._sock = socket.socket(family, socket.SOCK_STREAM)
        except (ValueError, OSError) as error:
            raise _Unreachable(f"cannot reach hitlessd at {where}: {error}") from None
        try:
            self._sock.settimeout(self._patience(longest))
            self._sock.connect(address)
        except OSError as error:
            self._sock.close()
            raise _Unreachable(_why(where, error)) from None
        except (TypeError, ValueError):  # a host name that cannot be encoded
            self._sock.close()
            raise _Unreachable(f"cannot reach hitlessd at {where}: not a host name") from None

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


def _parse_address(where: str) -> tuple[int, tuple[str, int] | str]:
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


def _why(where: str, error: OSError) -> str:
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


def _fields(text: str) -> dict[str, str]:
    pairs = (line.partition(": ") for line in text.splitlines())
    return {name: value for name, _, value in pairs}


def _number(info: dict[str, str], name: str) -> int:
    value = info.get(name, "")
    return int(value) if value.isascii() and value.isdigit() else 0


def _ask(where: str, commands: list[str], deadline: float | None = None) -> list[str]:
    """The answers to commands sent at once. Raises _Unreachable."""
    connection = _Connection(where, deadline)
    try:
        connection.send(";".join(commands))
        answers = []
        for _ in commands:
            answer = connection.answer(_ANSWER)
            if answer is None:
                raise _Unreachable(f"cannot get an answer from hitlessd at {where}: it closed the connection")
            answers.append(answer)
        return answers
    except OSError as error:
        reason = "it takes too long" if isinstance(error, TimeoutError) else error.strerror
        raise _Unreachable(f"cannot get an answer from hitlessd at {where}: {reason}") from None
    finally:
        connection.close()


def _say(text: str, error: bool = False) -> None:
    """Print what came, whatever the terminal's encoding. Raises _Unwritable."""
    stream = sys.stderr if error else sys.stdout
    if stream is None:  # closed (`>&-`): nobody wants to know
        return
    if text and not text.endswith("\n"):
        text += "\n"
    try:
        try:
            stream.write(text)
        except UnicodeEncodeError:
            stream.write(text.encode("ascii", "backslashreplace").decode("ascii"))
        stream.flush()
    except OSError as why:
        # Python would complain at its exit about what is left in the buffer.
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())
        os.close(null)
        # The reader may have seen enough (`hitlessctl show stat | head`); of errors there is nobody left to tell.
        if not error and not isinstance(why, BrokenPipeError):
            raise _Unwritable(f"cannot write the answer: {why.strerror}") from None


# reload


def _reload(where: str, verbose: bool, timeout: float | None) -> int:
    deadline = None if timeout is None else time.monotonic() + timeout
    before: dict[str, str] = {}
    try:
        connection = _Connection(where, deadline, None)
        try:
            connection.send("show info;reload")
            info = connection.answer(None)
            before = _fields(info or "")
            answer = connection.answer(None) if info is not None else None
        finally:
            connection.close()
    except TimeoutError:
        return _no_answer(where, timeout)
    except OSError:
        answer = None
    if answer is None:
        return _outcome_from_successor(where, before, verbose, deadline, timeout)
    result, _, text = answer.partition("\n--")
    text = text.strip("\n")
    if result == "Success=1":
        if verbose:
            _say(text or "reloaded")
        return DONE
    if result == "Success=0":
        _say(f"cannot reload: {text or 'no reason given'}", error=True)
    elif answer.startswith("Permission denied"):
        step = "run as root or as hitlessd's user, or give the `stats socket` level admin"
        _say(f"cannot reload: permission denied at {where}; next step: {step}", error=True)
    else:
        _say(f"cannot reload: {answer}", error=True)
    return REFUSED


def _no_answer(where: str, timeout: float | None) -> int:
    waited = f"within {timeout:g} s" if timeout is not None else "in time"
    _say(
        f"cannot learn how the reload ended: hitlessd at {where} did not answer {waited}; next step: hitlessctl status",
        error=True,
    )
    return UNREACHABLE


def _outcome_from_successor(
    where: str, before: dict[str, str], verbose: bool, deadline: float | None, timeout: float | None
) -> int:
    """The main process has gone without an answer: whoever serves now tells how it ended."""
    asked = _number(before, "Now_monotonic_usec")
    in_unit = os.environ.get("SYSTEMD_EXEC_PID") == str(os.getpid())
    until = time.monotonic() + (_RECONNECT_IN_UNIT if in_unit else _RECONNECT)
    if deadline is not None:
        until = min(until, deadline)
    reason = f"cannot reach hitlessd at {where}"
    while True:
        try:
            info = _fields(_ask(where, ["show info"], until)[0])
            if not asked or _number(info, "Start_monotonic_usec") > asked:
                return _judge(where, info, verbose, bool(asked))
            reason = f"generation {info.get('Generation', '?')} still serves and did not say why"
        except _Unreachable as error:
            reason = str(error)
        if time.monotonic() >= until:
            break
        time.sleep(_PAUSE)
    if deadline is not None and until == deadline:
        return _no_answer(where, timeout)
    _say(f"cannot learn how the reload ended: hitlessd closed the connection, and {reason}", error=True)
    return UNREACHABLE


def _judge(where: str, info: dict[str, str], verbose: bool, comparable: bool) -> int:
    """Whether a main process that started after our call runs what the file says."""
    generation, state = info.get("Generation", "?"), info.get("ConfigState", "")
    if not comparable:
        _say(
            f"cannot learn how the reload ended: hitlessd closed the connection; generation {generation} serves now; "
            "next step: hitlessctl reload",
            error=True,
        )
        return UNREACHABLE
    if state == "file":
        if verbose:
            _say(f"generation {generation} serves; it started after this call and runs the configuration file")
        return DONE
    try:
        details = _ask(where, ["show errors"])[0]
    except _Unreachable:
        details = ""
    if details.startswith(_REFUSALS):
        details = ""
    _say(
        f"cannot reload: generation {generation} was started, but it runs the stored configuration because the file "
        f"is invalid\n{details}".rstrip("\n"),
        error=True,
    )
    return REFUSED


# status


def _status(where: str) -> int:
    from hitlessd.runtime.summary import summary  # a reload has no use for it

    info, rows, proc, errors = _ask(where, ["show info", "show stat", "show proc", "show errors"])
    _say(summary(_fields(info), rows, proc, "" if errors.startswith(_REFUSALS) else errors, time.time()))
    return DONE


# the command line


def _parse(arguments: list[str]) -> tuple[str, list[str], bool, float | None]:
    """Socket, command words, -v, --timeout. Raises _UsageError."""
    where = os.environ.get("HITLESSD_SOCKET") or _DEFAULT
    words: list[str] = []
    verbose, timeout = False, None
    rest = list(arguments)
    while rest:
        word = rest.pop(0)
        name, equals, value = word.partition("=")
        if words and words[0] != "reload":
            words.append(word)
        elif word in ("-s", "--timeout") or (equals and name == "--timeout"):
            if not equals:
                if not rest:
                    raise _UsageError(f"cannot use {word}: it needs an argument")
                value = rest.pop(0)
            if name == "-s":
                where = value
            else:
                timeout = _seconds(value)
        elif word == "-v":
            verbose = True
        elif word.startswith("-"):
            raise _UsageError(f"cannot use {word}: it is not an option")
        else:
            words.append(word)
    if not words:
        raise _UsageError("cannot do anything: no command, such as reload, status or show stat")
    if words[0] in ("reload", "status") and len(words) > 1:
        raise _UsageError(f"cannot {words[0]}: found {words[1]!r}, expected no argument")
    if words[0] != "reload" and (verbose or timeout is not None):
        raise _UsageError("cannot use -v or --timeout: they go with reload only")
    if any("\n" in word or "\0" in word for word in words):
        raise _UsageError("cannot send the command: it must be one line")
    return where, words, verbose, timeout


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < 1e9:
        raise _UsageError(f"cannot use --timeout: found {text!r}, expected a number of seconds above 0")
    return seconds


def _command(where: str, words: list[str]) -> int:
    status = DONE
    connection = _Connection(where, None)
    try:
        connection.send(" ".join(words))
        connection.end()
        answers = 0
        while (answer := connection.answer(_ANSWER)) is not None:
            answers += 1
            refused = answer.startswith(_REFUSALS)
            _say(answer, error=refused)
            status = REFUSED if refused else status
    except OSError as error:
        reason = "it takes too long" if isinstance(error, TimeoutError) else error.strerror
        raise _Unreachable(f"cannot get an answer from hitlessd at {where}: {reason}") from None
    finally:
        connection.close()
    if not answers and words != ["quit"]:
        raise _Unreachable(f"cannot get an answer from hitlessd at {where}: it closed the connection")
    return status


def main(argv: list[str] | None = None) -> int:
    """Run hitlessctl and return its exit status. `argv` is without the program's name."""
    arguments = sys.argv[1:] if argv is None else argv
    try:
        return _run(arguments)
    except _UsageError as error:
        _say(f"hitlessctl: {error}\n{_USAGE}", error=True)
        return USAGE
    except (_Unreachable, _Unwritable) as error:
        _say(str(error), error=True)
        return UNREACHABLE
    except KeyboardInterrupt:
        _say("cannot wait: interrupted" + "; the reload goes on" * ("reload" in arguments), error=True)
        return _INTERRUPTED


def _run(arguments: list[str]) -> int:
    if any(word in ("-h", "--help") for word in arguments):
        _say(_USAGE)
        return DONE
    where, words, verbose, timeout = _parse(arguments)
    if words[0] == "reload":
        return _reload(where, verbose, timeout)
    if words == ["status"]:
        return _status(where)
    return _command(where, words)


if __name__ == "__main__":
    sys.exit(main())
