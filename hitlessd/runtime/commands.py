"""The commands of the runtime API: their table, `help`, and what each answers. No I/O: the server owns the sockets.

The words are HAProxy 2.6's (management guide, 9.3 and 9.4.1), so that existing tools understand the answers.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from hitlessd.model import InetAddress, Level, StatsSocket
from hitlessd.runtime.control import Control, ReloadOutcome
from hitlessd.runtime.info import event_date, show_info, show_proc
from hitlessd.runtime.sess import session_details, session_line, session_number
from hitlessd.runtime.stat import StatFilter, show_stat

__all__ = [
    "IDLE_TIMEOUT",
    "LEVELS",
    "WAIT",
    "Call",
    "Pieces",
    "Session",
    "address_text",
    "execute",
    "reload_answer",
    "split_line",
]

LEVELS: tuple[Level, ...] = ("user", "operator", "admin")
IDLE_TIMEOUT = 10.0  # seconds; HAProxy's default for `stats timeout`
_LONGEST_TIMEOUT = 24 * 86400.0


class _Wait:
    """The type of WAIT."""


#: Instead of an answer: it will come later, through Call.answer.
WAIT = _Wait()


class Pieces:
    """Instead of an answer: one that comes later and in pieces.

    `next(done)` asks for the next piece; done(text), called once and later, gets it, None at the end.
    """

    def __init__(self, ask: Callable[[Callable[[str | None], object]], object]) -> None:
        self.next = ask


_Answer = str | _Wait | Pieces


@dataclass(slots=True)
class Session:
    """What one client may do and how it wants its answers."""

    level: Level
    #: The peer is root or has our own uid: it could trace or stop this process, so that it may read what there is and
    #: reload, whatever the socket's level. Lowering the level gives this up too.
    privileged: bool = False
    prompt: bool = False
    timeout: float = IDLE_TIMEOUT  # seconds
    closing: bool = False  # the client asked to be disconnected

    def may(self, level: Level) -> bool:
        return LEVELS.index(self.level) >= LEVELS.index(level)


@dataclass(slots=True)
class Call:
    """One command being executed."""

    words: Sequence[str]
    session: Session
    control: Control
    sockets: Sequence[StatsSocket]
    monotonic: float  # the loop's time now
    answer: Callable[[ReloadOutcome], None]  # takes the outcome for which a command WAITs
    promise: Callable[[int], None] = field(default=lambda _number: None)  # hears the number of the reload waited for


class _Command(NamedTuple):
    words: tuple[str, ...]
    usage: str
    summary: str
    run: Callable[[Call], _Answer]
    level: Level = "user"
    privileged: bool = False  # privileged peers may, whatever their level


def split_line(line: bytes) -> list[bytes]:
    """The commands of a line, delimited by `;`. A backslash protects what follows it (management guide, 9.3).

    As with HAProxy a NUL ends the line, whatever follows.
    """
    line = line.partition(b"\0")[0].rstrip(b"\r")
    if b"\\" not in line:
        return line.split(b";")
    # No NUL is left in the line, so one can stand for a protected delimiter.
    hidden = re.sub(rb"\\(.)", lambda match: b"\0" if match[1] == b";" else match[0], line, flags=re.S)
    return [command.replace(b"\0", b"\\;") for command in hidden.split(b";")]


def split_words(command: bytes) -> list[str]:
    """The words of a command; a backslash protects a blank and disappears."""
    words = re.findall(r"(?:\\.|[^ \t\\]|\\$)+", command.decode("utf-8", "replace"), flags=re.S)
    return [re.sub(r"\\(.)", r"\1", word, flags=re.S) for word in words]


def execute(command: bytes, call_with: Callable[[Sequence[str]], Call]) -> _Answer:
    """Run one command and return its answer: a text, empty or ending in a newline, or WAIT, or Pieces. Never raises for
    bad input."""
    words = split_words(command)
    call = call_with(words)
    for candidate in COMMANDS:
        if tuple(words[: len(candidate.words)]) == candidate.words:
            return candidate.run(call) if _allowed(candidate, call.session) else "Permission denied\n"
    return _unknown(call)


def _allowed(command: _Command, session: Session) -> bool:
    return session.may(command.level) or (command.privileged and session.privileged)


# help


def _usage(command: _Command) -> str:
    return f"  {command.usage:<40}: {command.summary}\n"


def _listing(heading: str, commands: Sequence[_Command]) -> str:
    # HAProxy always ends its lists with these three, whatever matched.
    return heading + "".join(map(_usage, [*commands, *_ALWAYS]))


def _matches(words: Sequence[str], session: Session) -> list[_Command]:
    """The commands that somebody who typed `words` may have meant: those that begin alike, else that look alike."""
    known = [command for command in COMMANDS if command not in _ALWAYS and _allowed(command, session)]
    for length in range(len(words), 0, -1):
        typed = words[:length]
        found = [
            command
            for command in known
            if len(command.words) >= length
            and all(full.startswith(part) for full, part in zip(command.words, typed, strict=False))
        ]
        if found and length == len(words):
            return found
        if found:
            known = found
            break
    text = " ".join(words[:3])[:64]
    scores = [
        (max(_likeness(text, " ".join(command.words[:length])) for length in range(1, 4)), command) for command in known
    ]
    best = max((score for score, _ in scores), default=0.0)
    return [command for score, command in scores if score >= max(0.4, best - 0.2)]


def _likeness(one: str, other: str) -> float:
    """How many pairs of neighbouring characters two texts share: 0 none, 1 all (Dice's coefficient)."""
    pairs = [{f" {text} "[at : at + 2] for at in range(len(text) + 1)} for text in (one.lower(), other)]
    return 2 * len(pairs[0] & pairs[1]) / (len(pairs[0]) + len(pairs[1]))


def _help(call: Call) -> str:
    heading = "The following commands are valid at this level:\n"
    words = call.words[1:]
    return _listing(heading, _matches(words, call.session) if words else _permitted(call.session))


def _unknown(call: Call) -> str:
    found = _matches(call.words, call.session) if call.words else []
    if found:
        return _listing("Unknown command, but maybe one of the following ones is a better match:\n", found)
    heading = "Unknown command. Please enter one of the following commands only:\n"
    return _listing(heading, _permitted(call.session))


def _permitted(session: Session) -> list[_Command]:
    return [command for command in COMMANDS if command not in _ALWAYS and _allowed(command, session)]


# The session's own commands


def _prompt(call: Call) -> str:
    call.session.prompt = not call.session.prompt
    return ""


def _quit(call: Call) -> str:
    call.session.closing = True
    return ""


def _lower(call: Call) -> str:
    wanted: Level = "operator" if call.words[0] == "operator" else "user"
    if not call.session.may(wanted):
        return "Permission denied\n"
    call.session.level = wanted
    call.session.privileged = False
    return ""


def _set_timeout(call: Call) -> str:
    words = call.words
    if len(words) < 3 or words[2] != "cli":
        return "'set timeout' only supports 'cli'.\n"
    if len(words) < 4:
        return "Expects an integer value.\n"
    match = re.fullmatch(r"([0-9]{1,12})(us|ms|s|m|h|d|)", words[3])
    unit = {"us": 1e-6, "ms": 1e-3, "": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
    if not match or not int(match[1]):
        return "Invalid timeout value.\n"
    call.session.timeout = min(int(match[1]) * unit[match[2]], _LONGEST_TIMEOUT)
    return ""


def _show_level(call: Call) -> str:
    return call.session.level + "\n"


def address_text(stats: StatsSocket) -> str:
    """A stats socket's address as HAProxy writes it: `unix@/path`, `abns@name`, `ipv4@1.2.3.4:5`, `ipv6@[::1]:5`."""
    address = stats.address
    if isinstance(address, InetAddress):
        return f"{'ipv6' if ':' in address.host else 'ipv4'}@{address}"
    return str(address)


def _show_sockets(call: Call) -> str:
    return "# socket lvl processes\n" + "".join(f"{address_text(s)} {s.level} all\n" for s in call.sockets)


# What the process says of itself


def _show_version(call: Call) -> str:
    return call.control.version + "\n"


def _unsupported_format(words: Sequence[str]) -> str | None:
    for word in words:
        if word in ("typed", "json", "desc"):
            return f"cannot write the format '{word}': only the plain format is supported\n"
    return None


def _show_info(call: Call) -> str:
    return _unsupported_format(call.words[2:]) or show_info(call.control, call.monotonic)


def _show_stat(call: Call) -> str:
    words = list(call.words[2:])
    if words[:1] == ["domain"]:
        if words[1:2] != ["proxy"]:
            return "Invalid statistics domain.\n"
        del words[:2]
    iid = types = sid = -1
    if len(words) >= 3:
        config = call.control.config
        iid = _integer(words[0])
        if not iid:
            named = [proxy.iid for proxy in config.frontends if proxy.name == words[0]]
            named += [proxy.iid for proxy in config.backends if proxy.name == words[0]]
            if not named:
                return "No such proxy.\n"
            iid = named[0]
        types, sid = _integer(words[1]), _integer(words[2])
        del words[:3]
    if refusal := _unsupported_format(words):
        return refusal
    # HAProxy shows addresses and algorithms from level operator on.
    addresses = call.session.may("operator") or call.session.privileged
    wanted = StatFilter(iid, types, sid, "no-maint" in words, "up" in words, addresses)
    return show_stat(call.control, wanted, time.time())


def _integer(text: str) -> int:
    """As atoi(3): 0 for what is not a number."""
    match = re.match(r"[-+]?[0-9]{1,9}", text)
    return int(match[0]) if match else 0


def _show_proc(call: Call) -> str:
    return show_proc(call.control)


def _show_errors(call: Call) -> str:
    """What is wrong now: why the latest reload was refused, and why a start had to use the stored configuration."""
    control, events = call.control, []
    last = control.last_reload
    if last and not last.ok:
        what = f"{event_date(last.at)} reload {last.number}: refused after {last.duration:.3f} s, nothing was changed"
        events.append((what, last.reason))
    if control.warm:
        what = f"{event_date(control.started_at)} start: the configuration is invalid, the stored one is served"
        events.append((what, control.config_error))
    lines = [f"Total events captured on {event_date(time.time())} : {len(events)}"]
    for what, reason in events:
        lines.append(what)
        lines += ["  " + line for line in reason.splitlines()]
    return _without_empty_lines("\n".join(lines))


def _show_startup_logs(call: Call) -> str:
    return _without_empty_lines(call.control.startup_logs)


def _without_empty_lines(text: str) -> str:
    """An empty line ends an answer, so none may be within."""
    return "".join(line.rstrip() + "\n" for line in text.splitlines() if line.strip())


# Sessions


def _show_sess(call: Call) -> _Answer:
    control, words = call.control, call.words[2:]
    only = session_number(words[0]) if words and words[0] != "all" else 0
    if words and words[0] != "all" and not only:
        return "Session not found.\n"
    dump = session_details if words else session_line
    after: int | None = 0

    def ask(done: Callable[[str | None], object]) -> None:
        def came(page: dict[str, Any]) -> None:
            nonlocal after
            forms = page["sessions"]
            after = int(forms[-1]["number"]) if forms and page.get("more") else None
            done("Session not found.\n" if only and not forms else "".join(map(dump, forms)))

        if after is None:
            done(None)
        else:
            control.sessions(after, only, came)

    return Pieces(ask)


def _once(ask: Callable[[Callable[[dict[str, Any]], object]], object], text: Callable[[int], str]) -> Pieces:
    """An answer in one piece, made of how many sessions were closed."""
    asked = False

    def next_piece(done: Callable[[str | None], object]) -> None:
        nonlocal asked
        if asked:
            done(None)
        else:
            asked = True
            ask(lambda result: done(text(int(result.get("closed", 0)))))

    return Pieces(next_piece)


def _shutdown_session(call: Call) -> _Answer:
    number = session_number(call.words[2]) if len(call.words) > 2 else 0
    if not number:
        return "Session pointer expected (use 'show sess').\n"
    return _once(
        lambda done: call.control.shut_down(number, (), done),
        lambda closed: "" if closed else "No such session (use 'show sess').\n",
    )


def _shutdown_sessions_server(call: Call) -> _Answer:
    backend, slash, server = (call.words[3] if len(call.words) > 3 else "").partition("/")
    if not slash:
        return "Require 'backend/server'.\n"
    known = {(b.name, s.name) for b in call.control.config.backends for s in b.servers}
    return _once(
        lambda done: call.control.shut_down(0, (backend, server), done),
        lambda closed: "" if closed or (backend, server) in known else "No such server.\n",
    )


# Reload


def _reload(call: Call) -> _Wait:
    call.promise(call.control.request_reload(call.answer))
    return WAIT


def reload_answer(outcome: ReloadOutcome) -> str:
    """The answer to `reload`, as HAProxy's master CLI gives it: a line with the result, a separator, the messages."""
    return f"Success={int(outcome.ok)}\n--\n" + _without_empty_lines(outcome.reason)


_ALWAYS = (
    _Command(("help",), "help [<command>]", "list matching or all commands", _help),
    _Command(("prompt",), "prompt", "toggle interactive mode with prompt", _prompt),
    _Command(("quit",), "quit", "disconnect", _quit),
)

#: In the order of HAProxy's `help`: alphabetical, then the three that every list ends with.
COMMANDS: tuple[_Command, ...] = (
    _Command(("operator",), "operator", "lower the level of the current CLI session to operator", _lower),
    _Command(
        ("reload",),
        "reload",
        "load the configuration into a new generation, answer when it serves",
        _reload,
        "admin",
        privileged=True,
    ),
    _Command(("set", "timeout"), "set timeout [cli] <delay>", "change a timeout setting", _set_timeout),
    _Command(("show", "cli", "level"), "show cli level", "display the level of the current CLI session", _show_level),
    _Command(("show", "cli", "sockets"), "show cli sockets", "dump list of cli sockets", _show_sockets),
    _Command(
        ("show", "errors"),
        "show errors",
        "report why the last reload was refused",
        _show_errors,
        "operator",
        privileged=True,
    ),
    _Command(("show", "info"), "show info [float]*", "report information about the running process", _show_info),
    _Command(("show", "proc"), "show proc", "show generations and their processes", _show_proc),
    _Command(
        ("show", "startup-logs"),
        "show startup-logs",
        "report warnings of the running configuration",
        _show_startup_logs,
        "operator",
        privileged=True,
    ),
    _Command(
        ("show", "sess"),
        "show sess [id]",
        "report the list of current sessions or dump this exact session",
        _show_sess,
        "operator",
        privileged=True,
    ),
    _Command(("show", "stat"), "show stat [no-maint|up]*", "report counters for each proxy and server", _show_stat),
    _Command(("show", "version"), "show version", "show version of the current process", _show_version),
    _Command(
        ("shutdown", "session"),
        "shutdown session [id]",
        "kill a specific session",
        _shutdown_session,
        "admin",
    ),
    _Command(
        ("shutdown", "sessions", "server"),
        "shutdown sessions server <bk>/<srv>",
        "kill sessions on a server",
        _shutdown_sessions_server,
        "admin",
    ),
    _Command(("user",), "user", "lower the level of the current CLI session to user", _lower),
    *_ALWAYS,
)
