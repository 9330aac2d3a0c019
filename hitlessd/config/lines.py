"""The options that are whole lines of words: `bind`, `server`, `stats socket` and `log`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Literal, TypeVar, cast, get_args

from hitlessd.model import (
    Bind,
    InetAddress,
    Level,
    LogTarget,
    Server,
    Severity,
    StatsSocket,
    SystemdAddress,
    UnixAddress,
)

from . import values
from .address import listening_address, server_address
from .problems import Place
from .resolve import Names
from .words import absent_bind_word, absent_server_word

__all__ = ["bind_line", "log_line", "server_line", "stats_socket_line"]

_Word = TypeVar("_Word", bound=str)
_LEVELS: tuple[Level, ...] = get_args(Level)
_SEVERITIES: tuple[Severity, ...] = get_args(Severity)
_Target = Literal["auto", "journal", "stderr", "stdout"]
_LOG_TARGETS = get_args(_Target)
_FACILITIES = (
    "kern", "user", "mail", "daemon", "auth", "syslog", "lpr", "news", "uucp", "cron", "auth2", "ftp", "ntp", "audit",
    "alert", "cron2", "local0", "local1", "local2", "local3", "local4", "local5", "local6", "local7",
)  # fmt: skip
# word -> whether an argument follows
_BIND_WORDS = {
    "v4v6": False, "v6only": False, "backlog": True, "interface": True, "mode": True, "user": True, "group": True,
}  # fmt: skip
_STATS_WORDS = {"mode": True, "user": True, "group": True, "level": True, "expose-fd": True}
_SERVER_WORDS = {"weight": True, "backup": False, "disabled": False, "maxconn": True}
_INTERFACE_LIMIT = 15  # IFNAMSIZ without the NUL, netdevice(7)
_BACKLOG_LIMIT = 65535
_WEIGHT_LIMIT = 256
_UNINDENTED = "a line that is indented deeper than the one above continues it"


def bind_line(place: Place, text: str) -> Bind | None:
    """`ADDRESS [v4v6|v6only] [backlog N] [interface DEV] [mode M] [user U] [group G]`; None when the address is
    wrong."""
    first, *rest = text.split(" ")
    if "=" in first or rest[:1] == ["="]:
        place.refuse("use this address", text, "an address", note=_UNINDENTED)
        return None
    address = listening_address(place, first, systemd=True)
    backlog, interface, mode, user, group = 0, "", None, "", ""
    given: list[str] = []
    for word, argument in _pairs(place, rest, _BIND_WORDS, absent_bind_word, given):
        match word:
            case "backlog":
                backlog = values.integer(place, argument, 1, _BACKLOG_LIMIT, "use this backlog") or 0
            case "interface":
                interface = _interface(place, argument)
            case "mode":
                mode = values.file_mode(place, argument)
            case "user":
                user = values.user_name(place, argument) or ""
            case "group":
                group = values.group_name(place, argument) or ""
    if address is None:
        return None
    _check_bind_words(place, address, given)
    v6only = "v4v6" not in given
    return Bind(address, place.where, backlog, interface, v6only, mode, user, group)


def _check_bind_words(place: Place, address: InetAddress | UnixAddress | SystemdAddress, given: list[str]) -> None:
    if "v4v6" in given and "v6only" in given:
        place.fail("cannot combine v4v6 and v6only: expected one of them")
    for word in given:
        if isinstance(address, SystemdAddress):
            place.fail(f"cannot use {word} with {address}: expected it in the .socket unit, which makes the socket")
        elif word in ("mode", "user", "group") and not (isinstance(address, UnixAddress) and not address.abstract):
            place.fail(f"cannot use {word} with {address}: expected the path of a unix socket")
        elif word in ("v4v6", "v6only") and not (isinstance(address, InetAddress) and ":" in address.host):
            place.fail(f"cannot use {word} with {address}: expected an IPv6 address")
        elif word == "interface" and not isinstance(address, InetAddress):
            place.fail(f"cannot use {word} with {address}: expected an IPv4 or IPv6 address")


def stats_socket_line(place: Place, text: str) -> StatsSocket | None:
    """`ADDRESS [mode M] [user U] [group G] [level user|operator|admin] [expose-fd listeners]`; None when the address is
    wrong."""
    first, *rest = text.split(" ")
    if "=" in first or rest[:1] == ["="]:
        place.refuse("use this address", text, "an address", note=_UNINDENTED)
        return None
    address = listening_address(place, first, systemd=False)
    mode, user, group, expose = None, "", "", False
    level: Level = "operator"
    given: list[str] = []
    for word, argument in _pairs(place, rest, _STATS_WORDS, absent_bind_word, given):
        match word:
            case "mode":
                mode = values.file_mode(place, argument)
            case "user":
                user = values.user_name(place, argument) or ""
            case "group":
                group = values.group_name(place, argument) or ""
            case "level":
                found = _one_of(place, argument, _LEVELS, "use this level")
                level = found or level
            case "expose-fd":
                expose = argument == "listeners"
                if not expose:
                    place.refuse("expose these descriptors", argument, "listeners", near=("listeners",))
    if address is None or isinstance(address, SystemdAddress):
        return None
    for word in given:
        if word == "expose-fd" and isinstance(address, InetAddress):
            place.fail(f"cannot use expose-fd with {address}: expected a unix socket, for TCP carries no descriptors")
        elif word in ("mode", "user", "group") and (isinstance(address, InetAddress) or address.abstract):
            place.fail(f"cannot use {word} with {address}: expected the path of a unix socket")
    return StatsSocket(address, mode, user, group, level, expose, place.where)


def server_line(place: Place, name: str, sid: int, text: str, names: Names) -> Server | None:
    """`ADDR[:PORT] [weight N] [backup] [disabled] [maxconn N]`; None when the address is wrong."""
    first, *rest = text.split(" ")
    found = server_address(place, first, names)
    weight, maxconn = 1, 0
    given: list[str] = []
    for word, argument in _pairs(place, rest, _SERVER_WORDS, absent_server_word, given):
        match word:
            case "weight":
                number = values.integer(place, argument, 0, _WEIGHT_LIMIT, "use this weight")
                weight = 1 if number is None else number
            case "maxconn":
                maxconn = values.integer(place, argument, 0, values.INT_MAX) or 0
    if found is None:
        return None
    address, hostname = found
    return Server(name, address, sid, weight, "backup" in given, "disabled" in given, maxconn, hostname, place.where)


def log_line(place: Place, text: str) -> LogTarget | None:
    """`auto|journal|stderr|stdout [LEVEL]`, or HAProxy's `/dev/log FACILITY [LEVEL]`, which means the journal."""
    target, *rest = text.split(" ")
    if target == "/dev/log":
        target = "journal"
        if not rest or rest[0] not in _FACILITIES:
            place.refuse(
                "use this facility", rest[0] if rest else "", "one of syslog's, as in local0", near=_FACILITIES
            )
            return None
        rest = rest[1:]
    if target not in _LOG_TARGETS:
        remote = target[:1].isdigit() or "@" in target or "/" in target
        note = "logging to a syslog server is not supported" if remote else ""
        expected = "auto, journal, stderr or stdout"
        place.refuse("log to this target", target, expected, near=() if note else _LOG_TARGETS, note=note)
        return None
    level = _one_of(place, rest[0], _SEVERITIES, "use this level") if rest else "info"
    if len(rest) > 1:
        place.refuse("use more words", " ".join(rest[1:]), "at most a level after the target")
        return None
    return LogTarget(cast(_Target, target), level) if level else None


def _pairs(
    place: Place, words: list[str], known: dict[str, bool], absent: Callable[[str], str], given: list[str]
) -> Iterator[tuple[str, str]]:
    """The known words of a line with their arguments (or ""); refuses the others. `given` gets each known one."""
    rest = iter(words)
    skipping = False
    for word in rest:
        if word not in known:
            if skipping:
                continue
            note = absent(word)
            place.refuse("use this word", word, "one of " + ", ".join(known), near=() if note else known, note=note)
            skipping = True  # its arguments are unknown, too
            continue
        skipping = False
        argument = next(rest, "") if known[word] else ""
        if known[word] and not argument:
            place.refuse(f"use {word} alone", "", "a value after it")
        elif word in given:
            place.fail(f"cannot use {word} twice: expected it once in a line")
        else:
            given.append(word)
            yield word, argument


def _interface(place: Place, text: str) -> str:
    if len(text.encode("utf-8", "surrogateescape")) <= _INTERFACE_LIMIT and "/" not in text:
        return text
    place.refuse("use this interface", text, f"the name of a network device, at most {_INTERFACE_LIMIT} bytes")
    return ""


def _one_of(place: Place, text: str, words: tuple[_Word, ...], what: str) -> _Word | None:
    for word in words:
        if word == text:
            return word
    place.refuse(what, text, ", ".join(words[:-1]) + " or " + words[-1], near=words)
    return None
