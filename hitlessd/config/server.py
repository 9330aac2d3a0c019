"""`server` lines, and the words that `default-server` gives to all of a backend."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any, cast, get_args

from hitlessd.dataclass import replace
from hitlessd.errors import ConfigError
from hitlessd.model import Backend, Check, InetAddress, Mode, Observe, Server, UnixAddress, Where

from . import values
from .address import numeric_host, server_address
from .pairs import pairs
from .problems import Place, Problems
from .resolve import Names
from .words import absent_server_word

__all__ = ["Words", "added_server", "default_server_line", "numeric_address", "server_line"]

#: What the words of a line say, by the fields that they set. A later line overrules an earlier one, field by field.
Words = Mapping[str, Any]

_WEIGHT_LIMIT = 256
#: Servers that were added and are looked at again with every change: to read their words costs most of it.
_REMEMBERED = 4096
_ON_ERROR = ("fastinter", "fail-check", "sudden-death", "mark-down")
_ON_MARKED_DOWN = ("shutdown-sessions",)
_OBSERVE: tuple[Observe, ...] = tuple(word for word in get_args(Observe) if word)
_CHECK_FIELDS = ("inter", "fastinter", "downinter", "rise", "fall")


def _integer(low: int, high: int, what: str) -> Callable[[Place, str], int | None]:
    return lambda place, text: values.integer(place, text, low, high, what)


def _time(place: Place, text: str) -> float | None:
    return values.duration(place, text)


def _interval(place: Place, text: str) -> float | None:
    return values.duration(place, text, zero=False)


def _cookie(place: Place, text: str) -> str | None:
    if text.isascii() and text.isprintable() and not any(sign in text for sign in ' ",;\\'):
        return text
    place.refuse("use this cookie", text, "a value without quotes, commas, semicolons and backslashes")
    return None


def _pool(place: Place, text: str) -> int | None:
    return -1 if text == "-1" else values.integer(place, text, 0, values.INT_MAX, "keep so many connections")


# word -> field, and how its value is read, or the value that the word alone means
_WORDS: dict[str, tuple[str, Callable[[Place, str], Any] | bool | int]] = {
    "weight": ("weight", _integer(0, _WEIGHT_LIMIT, "use this weight")),
    "backup": ("backup", True),
    "no-backup": ("backup", False),
    "disabled": ("disabled", True),
    "enabled": ("disabled", False),
    "maxconn": ("maxconn", _integer(0, values.INT_MAX, "use this number")),
    "check": ("check", True),
    "no-check": ("check", False),
    "inter": ("inter", _interval),
    "fastinter": ("fastinter", _interval),
    "downinter": ("downinter", _interval),
    "rise": ("rise", _integer(1, values.INT_MAX, "use this number")),
    "fall": ("fall", _integer(1, values.INT_MAX, "use this number")),
    "addr": ("check_host", lambda place, text: text),
    "port": ("check_port", _integer(1, 65535, "use this port")),
    "check-send-proxy": ("check_send_proxy", True),
    "slowstart": ("slowstart", _time),
    "cookie": ("cookie", _cookie),
    "send-proxy": ("send_proxy", 1),
    "send-proxy-v2": ("send_proxy", 2),
    "no-send-proxy": ("send_proxy", 0),
    "no-send-proxy-v2": ("send_proxy", 0),
    "observe": ("observe", lambda place, text: values.one_of(place, text, _OBSERVE, "observe this")),
    "error-limit": ("error_limit", _integer(1, values.INT_MAX, "use this number")),
    "on-error": ("on_error", lambda place, text: values.one_of(place, text, _ON_ERROR, "react like this")),
    "on-marked-down": (
        "on_marked_down", lambda place, text: values.one_of(place, text, _ON_MARKED_DOWN, "react like this"),
    ),
    "pool-max-conn": ("pool_max_conn", _pool),
    "pool-purge-delay": ("pool_purge_delay", _time),
}  # fmt: skip
_TAKES_VALUE = {word: callable(meaning) for word, (_, meaning) in _WORDS.items()}


def default_server_line(place: Place, text: str) -> Words:
    """The words of a line of `default-server`."""
    return _words(place, text.split(" "))


def server_line(place: Place, name: str, sid: int, text: str, names: Names, defaults: Sequence[Words]) -> Server | None:
    """`ADDR[:PORT] [WORD...]`; None when the address is wrong. Of `defaults`, the later ones overrule."""
    first, *rest = text.split(" ")
    found = server_address(place, first, names)
    own = _words(place, rest)
    if found is None:
        return None
    address, hostname = found
    given: dict[str, Any] = {}
    for each in (*defaults, own):
        given.update(each)
    check = _check(place, given, address, names)
    direct = {name: value for name, value in given.items() if name in _SERVER_FIELDS}
    return Server(name, address, sid, hostname=hostname, where=place.where, check=check, **direct)


def added_server(backend: Backend, name: str, sid: int, text: str) -> Server:
    """A server that `add server` describes, with the words of a `server` line: in maintenance unless it is `enabled`,
    and without what `default-server` says (HAProxy management guide, "add server"). Raises ConfigError."""
    return _added_server(backend.name, backend.mode, name, sid, text)


@lru_cache(_REMEMBERED)
def _added_server(backend: str, mode: Mode, name: str, sid: int, text: str) -> Server:
    problems = Problems()
    place = Place(problems, _AT_RUN_TIME, f"backend {backend}", f"server {name}")
    values.name(place, name, "server")
    server = server_line(place, name, sid, text, Names(_no_names), ({"disabled": True},))
    if server and server.cookie:
        place.fail("cannot give a cookie at run time")
    if server and server.observe == "layer7" and mode != "http":
        place.fail("cannot observe layer7: expected `mode = http`, which reads answers")
    if problems or server is None:
        raise ConfigError([text.removeprefix(": ") for text in problems.errors()])
    return replace(server, added=True)


def numeric_address(text: str) -> InetAddress | UnixAddress:
    """An address as str() of one has it, or as a `server` line does, without host names. Raises ConfigError."""
    problems = Problems()
    text = text.removesuffix(":0")  # no port of its own
    found = server_address(Place(problems, _AT_RUN_TIME, "address"), text, Names(_no_names))
    if problems or found is None:
        raise ConfigError([text.removeprefix(": ") for text in problems.errors()])
    return found[0]


def _no_names(_name: str) -> Sequence[str]:
    raise OSError("names are not resolved at run time; give an address")


_AT_RUN_TIME = Where("", 0)
_SERVER_FIELDS = frozenset(
    ("weight", "backup", "disabled", "maxconn", "slowstart", "cookie", "send_proxy", "observe", "error_limit",
     "on_error", "on_marked_down", "pool_max_conn", "pool_purge_delay")
)  # fmt: skip


def _words(place: Place, words: Sequence[str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    given: list[str] = []
    for word, argument in pairs(place, words, _TAKES_VALUE, absent_server_word, given):
        field, meaning = _WORDS[word]
        value = meaning(place, argument) if callable(meaning) else meaning
        if value is not None:
            found[field] = value
    return found


def _check(place: Place, given: Words, server: InetAddress | UnixAddress, names: Names) -> Check | None:
    if not given.get("check"):
        return None
    own_target = "check_host" in given or "check_port" in given
    address: InetAddress | UnixAddress | None = None
    if own_target:
        address = _check_address(place, given, server, names)
        if address is None:
            return None
    target = address or server
    if isinstance(target, InetAddress) and not target.port:
        place.fail("cannot check this server: found no port, expected one in its address or after `port`")
        return None
    version = cast(int, given.get("send_proxy", 0))
    if given.get("check_send_proxy"):
        version = version or 1
    elif own_target:
        version = 0  # as HAProxy: a check that goes elsewhere is none of the traffic
    fields = {name: given[name] for name in _CHECK_FIELDS if name in given}
    return Check(address=address, send_proxy=version, **fields)


def _check_address(
    place: Place, given: Words, server: InetAddress | UnixAddress, names: Names
) -> InetAddress | UnixAddress | None:
    """Where `addr` and `port` send the checks."""
    host, port = given.get("check_host", ""), given.get("check_port", 0)
    target: InetAddress | UnixAddress = server
    if host:
        # an IPv6 address may stand without brackets here, since it has no port
        found = server_address(place, f"[{host}]" if ":" in host and numeric_host(host) else host, names)
        if found is None:
            return None
        target = found[0]
    if isinstance(target, UnixAddress):
        if port:
            place.fail(f"cannot use port with {target}: expected an IPv4 or IPv6 address")
            return None
        return target
    own_port = server.port if isinstance(server, InetAddress) else 0
    return InetAddress(target.host, port or target.port or own_port)
