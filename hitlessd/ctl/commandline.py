"""The command line of hitlessctl. Imported by every reload: it parses its few options itself."""

from __future__ import annotations

import os
import sys

from hitlessd.ctl.connection import ANSWER, Connection, Unreachable, is_refusal
from hitlessd.ctl.output import DONE, INTERRUPTED, REFUSED, UNREACHABLE, USAGE, Unwritable, is_terminal, say

TYPE_CHECKING = False
if TYPE_CHECKING:
    from hitlessd.ctl.reload import Show

__all__ = ["OPTIONS", "OWN", "main"]

_DEFAULT = "/run/hitlessd/hitlessd.sock"
#: Commands of hitlessctl itself, and the options that each takes.
OWN = {"reload": ("-v", "--json", "--timeout"), "status": ("--json",), "top": (), "check": ("--json",)}
OPTIONS = ("-s", "-v", "--json", "--timeout", "-h", "--help")
#: What completion scripts call, see complete.py.
_COMPLETE = "_complete"

_USAGE = """\
usage: hitlessctl [-s SOCKET] reload [-v] [--json] [--timeout SECONDS]
       hitlessctl [-s SOCKET] status [--json]
       hitlessctl [-s SOCKET] top
       hitlessctl [-s SOCKET] check [--json] [FILE ...]
       hitlessctl [-s SOCKET] COMMAND [ARGUMENT ...]

  reload   load the configuration into a new generation; waits for the outcome
  status   a summary for people
  top      proxies and servers, live; keys drain them, enable them and change their weights
  check    check configuration files, and say what a reload would change
           (default: those that the running hitlessd reads, else its unit's)
  COMMAND  any command of the runtime API, such as `show stat`; `help` lists them

  -s SOCKET          the runtime API socket: a path, ipv4@HOST:PORT, ipv6@[HOST]:PORT or abns@NAME
                     (default: $HITLESSD_SOCKET, else /run/hitlessd/hitlessd.sock)
  -v                 with reload: say what was done, and what took how long
  --json             for programs; also behind `show stat`, `show info` and others that have such a form
  --timeout SECONDS  with reload: wait no longer than this (default: as long as it takes)
  -h, --help         show this text

exit status: 0 done, 1 refused or invalid, 2 usage, 3 hitlessd cannot be reached or did not answer, 130 interrupted
"""


class _UsageError(Exception):
    """Says what is wrong with the command line."""


class _Options:
    """What the command line says; `words` are the command and its arguments."""

    def __init__(self) -> None:
        self.where = os.environ.get("HITLESSD_SOCKET") or _DEFAULT
        self.words: list[str] = []
        self.verbose = self.json = False
        self.timeout: float | None = None


def _parse(arguments: list[str]) -> _Options:
    """Raises _UsageError."""
    options = _Options()
    words = options.words
    given: list[str] = []
    rest = list(arguments)
    while rest:
        word = rest.pop(0)
        name, equals, value = word.partition("=")
        if words and words[0] not in OWN and (words[0] != "show" or word != "--json"):
            words.append(word)
        elif word in ("-s", "--timeout") or (equals and name == "--timeout"):
            if not equals:
                if not rest:
                    raise _UsageError(f"cannot use {word}: it needs an argument")
                value = rest.pop(0)
            if name == "-s":
                options.where = value
            else:
                given.append(name)
                options.timeout = _seconds(value)
        elif word in ("-v", "--json"):
            given.append(word)
            options.verbose |= word == "-v"
            options.json |= word == "--json"
        elif word.startswith("-"):
            raise _UsageError(f"cannot use {word}: it is not an option{_meant(word, OPTIONS)}")
        else:
            words.append(word)
    if not words:
        raise _UsageError("cannot do anything: no command, such as reload, status or show stat")
    if words[0] in OWN and words[0] != "check" and len(words) > 1:
        raise _UsageError(f"cannot {words[0]}: found {words[1]!r}, expected no argument")
    for name in given:
        if name not in OWN.get(words[0], ("--json",) if words[0] == "show" else ()):
            takers = [own for own, takes in OWN.items() if name in takes]
            if name == "--json":
                takers.append("show")
            raise _UsageError(f"cannot use {name} with {words[0]}: it goes with {' and '.join(takers)} only")
    if any("\n" in word or "\0" in word for word in words):
        raise _UsageError("cannot send the command: it must be one line")
    return options


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < 1e9:
        raise _UsageError(f"cannot use --timeout: found {text!r}, expected a number of seconds above 0")
    return seconds


def _meant(word: str, known: tuple[str, ...]) -> str:
    """What somebody who typed a wrong word may have wanted, or ""."""
    import difflib  # for mistakes only

    near = difflib.get_close_matches(word, known, 1, 0.6)
    return f"; did you mean {near[0]}?" if near else ""


def _command(where: str, words: list[str]) -> int:
    status = DONE
    pretty = words[:2] == ["show", "stat"] and "json" not in words and "typed" not in words and is_terminal()
    connection = Connection(where, None)
    try:
        connection.send(" ".join(words))
        connection.end()
        answers = 0
        while (answer := connection.answer(ANSWER)) is not None:
            answers += 1
            if is_refusal(answer, words):
                status = REFUSED
                say(f"{answer}\n{_next_step(answer, words)}", error=True)
            elif pretty:
                from hitlessd.ctl.table import show_stat

                show_stat(answer)
            else:
                say(answer)
    except OSError as error:
        reason = "it takes too long" if isinstance(error, TimeoutError) else error.strerror
        raise Unreachable(f"cannot get an answer from hitlessd at {where}: {reason}") from None
    finally:
        connection.close()
    if not answers and words != ["quit"]:
        raise Unreachable(f"cannot get an answer from hitlessd at {where}: it closed the connection")
    return status


def _next_step(answer: str, words: list[str]) -> str:
    """For a person whose command was refused."""
    if answer.startswith("Permission denied"):
        return "next step: run as root or as hitlessd's user, or use a `stats socket` with a higher level\n"
    if answer.startswith("Unknown command") and (near := _meant(words[0], tuple(OWN))):
        return f"next step: {near[2:].replace('mean ', 'mean hitlessctl ')}\n"
    return ""


def main(argv: list[str] | None = None) -> int:
    """Run hitlessctl and return its exit status. `argv` is without the program's name."""
    arguments = sys.argv[1:] if argv is None else argv
    try:
        return _run(arguments)
    except _UsageError as error:
        say(f"hitlessctl: {error}\n{_USAGE}", error=True)
        return USAGE
    except (Unreachable, Unwritable) as error:
        say(str(error), error=True)
        return UNREACHABLE
    except KeyboardInterrupt:
        say("cannot wait: interrupted" + "; the reload goes on" * ("reload" in arguments), error=True)
        return INTERRUPTED


def _run(arguments: list[str]) -> int:
    if arguments[:1] == [_COMPLETE]:
        from hitlessd.ctl.complete import complete

        return complete(os.environ.get("HITLESSD_SOCKET") or _DEFAULT, arguments[1:])
    if any(word in ("-h", "--help") for word in arguments):
        say(_USAGE)
        return DONE
    options = _parse(arguments)
    where, words = options.where, options.words
    match words[0]:
        case "reload":
            from hitlessd.ctl.reload import quietly, reload

            show: Show = quietly
            if options.verbose or options.json:
                from hitlessd.ctl.timeline import shower

                show = shower(options.json)
            return reload(where, options.timeout, show)
        case "status":
            from hitlessd.ctl.status import status

            return status(where, options.json)
        case "top":
            from hitlessd.ctl.top import top

            return top(where)
        case "check":
            from hitlessd.ctl.check import check

            return check(where, words[1:], options.json)
    return _command(where, [*words, "json"] if options.json else words)
