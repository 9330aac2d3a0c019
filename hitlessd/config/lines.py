"""The options of listening and logging that are whole lines of words: `bind`, `stats socket`, `metrics bind`, `log`."""

from __future__ import annotations

from typing import Literal, cast, get_args

from hitlessd.dataclass import dataclass
from hitlessd.model import (
    Bind,
    InetAddress,
    Level,
    LogTarget,
    MetricsBind,
    Severity,
    StatsSocket,
    SystemdAddress,
    UnixAddress,
)

from . import values
from .address import listening_address, server_address
from .pairs import pairs
from .problems import Place
from .resolve import Names
from .words import absent_bind_word

__all__ = ["bind_line", "log_line", "metrics_bind_line", "stats_socket_line"]

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
    "accept-proxy": False,
}  # fmt: skip
_STATS_WORDS = {"mode": True, "user": True, "group": True, "level": True, "expose-fd": True}
_METRICS_WORDS = {"mode": True, "user": True, "group": True}
_INTERFACE_LIMIT = 15  # IFNAMSIZ without the NUL, netdevice(7)
_BACKLOG_LIMIT = 65535
_SYSLOG_PORT = 514
_UNINDENTED = "a line that is indented deeper than the one above continues it"


@dataclass(slots=True)
class _Owner:
    """What the path of a unix socket is given."""

    mode: int | None = None
    user: str = ""
    group: str = ""

    def take(self, place: Place, word: str, argument: str) -> None:
        """If it is about that."""
        match word:
            case "mode":
                self.mode = values.file_mode(place, argument)
            case "user":
                self.user = values.user_name(place, argument) or ""
            case "group":
                self.group = values.group_name(place, argument) or ""


def _address_and_words(place: Place, text: str) -> list[str] | None:
    """The words of a line that begins with an address; None for what is another option, by its indentation."""
    words = text.split(" ")
    if "=" in words[0] or words[1:2] == ["="]:
        place.refuse("use this address", text, "an address", note=_UNINDENTED)
        return None
    return words


def bind_line(place: Place, text: str) -> Bind | None:
    """`ADDRESS [v4v6|v6only] [backlog N] [interface DEV] [mode M] [user U] [group G] [accept-proxy]`; None when
    the address is wrong."""
    words = _address_and_words(place, text)
    if words is None:
        return None
    first, *rest = words
    address = listening_address(place, first, systemd=True)
    backlog, interface, owner = 0, "", _Owner()
    given: list[str] = []
    for word, argument in pairs(place, rest, _BIND_WORDS, absent_bind_word, given):
        match word:
            case "backlog":
                backlog = values.integer(place, argument, 1, _BACKLOG_LIMIT, "use this backlog") or 0
            case "interface":
                interface = _interface(place, argument)
            case _:
                owner.take(place, word, argument)
    if address is None:
        return None
    _check_bind_words(place, address, given)
    v6only = "v4v6" not in given
    return Bind(
        address, place.where, backlog, interface, v6only, owner.mode, owner.user, owner.group, "accept-proxy" in given
    )


def _check_bind_words(place: Place, address: InetAddress | UnixAddress | SystemdAddress, given: list[str]) -> None:
    if "v4v6" in given and "v6only" in given:
        place.fail("cannot combine v4v6 and v6only: expected one of them")
    for word in given:
        if word == "accept-proxy":
            continue  # what comes first in a connection has nothing to do with its socket
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
    words = _address_and_words(place, text)
    if words is None:
        return None
    first, *rest = words
    address = listening_address(place, first, systemd=False)
    owner, expose = _Owner(), False
    level: Level = "operator"
    given: list[str] = []
    for word, argument in pairs(place, rest, _STATS_WORDS, absent_bind_word, given):
        match word:
            case "level":
                found = values.one_of(place, argument, _LEVELS, "use this level")
                level = found or level
            case "expose-fd":
                expose = argument == "listeners"
                if not expose:
                    place.refuse("expose these descriptors", argument, "listeners", near=("listeners",))
            case _:
                owner.take(place, word, argument)
    if address is None or isinstance(address, SystemdAddress):
        return None
    for word in given:
        if word == "expose-fd" and isinstance(address, InetAddress):
            place.fail(f"cannot use expose-fd with {address}: expected a unix socket, for TCP carries no descriptors")
        elif word in _METRICS_WORDS:
            _check_path_word(place, address, word)
    return StatsSocket(address, owner.mode, owner.user, owner.group, level, expose, place.where)


def metrics_bind_line(place: Place, text: str) -> MetricsBind | None:
    """`ADDRESS [mode M] [user U] [group G]`; None when the address is wrong."""
    words = _address_and_words(place, text)
    if words is None:
        return None
    first, *rest = words
    address = listening_address(place, first, systemd=False)
    owner = _Owner()
    given: list[str] = []
    for word, argument in pairs(place, rest, _METRICS_WORDS, absent_bind_word, given):
        owner.take(place, word, argument)
    if address is None or isinstance(address, SystemdAddress):
        return None
    for word in given:
        _check_path_word(place, address, word)
    return MetricsBind(address, owner.mode, owner.user, owner.group, place.where)


def _check_path_word(place: Place, address: InetAddress | UnixAddress, word: str) -> None:
    """Only what is a file has a mode and an owner."""
    if isinstance(address, InetAddress) or address.abstract:
        place.fail(f"cannot use {word} with {address}: expected the path of a unix socket")


def log_line(place: Place, text: str, names: Names) -> LogTarget | None:
    """`auto|journal|stderr|stdout [LEVEL]`, `ADDRESS FACILITY [LEVEL]` for a syslog server, or HAProxy's
    `/dev/log FACILITY [LEVEL]`, which means the journal."""
    target, *rest = text.split(" ")
    local = target in _LOG_TARGETS
    remote = target[:1].isdigit() or target[:1] == "[" or any(sign in target for sign in "@/:.")
    if not local and not remote:
        expected = "auto, journal, stderr, stdout, or the address of a syslog server"
        place.refuse("log to this target", target, expected, near=_LOG_TARGETS)
        return None
    facility = ""
    if not local:
        facility, *rest = rest or [""]
        if facility not in _FACILITIES:
            place.refuse("use this facility", facility, "one of syslog's, as in local0", near=_FACILITIES)
            return None
    level = values.one_of(place, rest[0], _SEVERITIES, "use this level") if rest else "info"
    if len(rest) > 1:
        place.refuse(
            "use more words", " ".join(rest[1:]), f"at most a level after the {'target' if local else 'facility'}"
        )
        return None
    if local or target == "/dev/log":
        return LogTarget("journal" if target == "/dev/log" else cast(_Target, target), level) if level else None
    found = server_address(place, target.removeprefix("udp@"), names)
    if found is None or level is None:
        return None
    address = found[0]
    if isinstance(address, InetAddress) and not address.port:
        address = InetAddress(address.host, _SYSLOG_PORT)
    return LogTarget("syslog", level, address, facility)


def _interface(place: Place, text: str) -> str:
    if len(text.encode("utf-8", "surrogateescape")) <= _INTERFACE_LIMIT and "/" not in text:
        return text
    place.refuse("use this interface", text, f"the name of a network device, at most {_INTERFACE_LIMIT} bytes")
    return ""
