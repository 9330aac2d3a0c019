"""Commands that change servers: their state, weight, address, limit and checks, and those that add and delete them.

Words, answers and errors are HAProxy 2.6's (management guide, 9.3).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, Literal, get_args

from hitlessd.balance import is_static
from hitlessd.changes import Change, Item, Kind
from hitlessd.model import Backend, InetAddress, Server, UnixAddress
from hitlessd.runtime.command import Answer, Call, Command, later

__all__ = ["COMMANDS"]

_Find = Callable[[Call, Backend, Server], Answer]
_Health = Literal["up", "stopping", "down"]

_REQUIRED = "Require 'backend/server'.\n"
_NO_SERVER = "No such server.\n"
_MOST_WEIGHT = 256
_INT_MAX = (1 << 31) - 1
#: A percentage that HAProxy does not cut to the greatest weight but takes.
_MOST_RELATIVE = 25600


def _with_server(run: _Find, at: int = 2) -> Callable[[Call], Answer]:
    """`backend/server` is the word at that place."""

    def found(call: Call) -> Answer:
        name, slash, server_name = (call.words[at] if len(call.words) > at else "").partition("/")
        if not slash:
            return _REQUIRED
        backend = next((each for each in call.control.config.backends if each.name == name), None)
        if backend is None:
            return "No such backend.\n"
        server = next((each for each in backend.servers if each.name == server_name), None)
        return run(call, backend, server) if server else _NO_SERVER

    return found


def _change(
    call: Call, kind: Kind, backend: Backend, server: str, value: Any, answer: str = "", failed: str = ""
) -> Answer:
    """`failed` comes before the reason, should it be refused."""
    change = Change(Item(kind, backend.name, server), value)
    return later(lambda done: call.control.administer(change, lambda why: done(f"{failed}{why}\n" if why else answer)))


# State


def _state(word: str) -> _Find:
    return lambda call, backend, server: _change(call, "server-state", backend, server.name, word)


def _set_state(call: Call, backend: Backend, server: Server) -> Answer:
    word = call.words[4] if len(call.words) > 4 else ""
    if word not in ("ready", "drain", "maint"):
        return "'set server <srv> state' expects 'ready', 'drain' and 'maint'.\n"
    return _change(call, "server-state", backend, server.name, word)


def _set_health(call: Call, backend: Backend, server: Server) -> Answer:
    how: _Health | None = next((word for word in get_args(_Health) if word in call.words[4:5]), None)
    if how is None:
        return "'set server <srv> health' expects 'up', 'stopping', or 'down'.\n"
    return later(
        lambda done: call.control.force_health(
            backend.name, server.name, how, lambda why: done(why + "\n" if why else "")
        )
    )


def _disable_health(call: Call, backend: Backend, server: Server) -> Answer:
    return _change(call, "server-check", backend, server.name, False) if server.check else ""


def _enable_health(call: Call, backend: Backend, server: Server) -> Answer:
    if not call.control.may_check(backend.name, server.name):
        return "Health check was not configured on this server, cannot enable.\n"
    return _change(call, "server-check", backend, server.name, True)


def _disable_agent(_call: Call, _backend: Backend, _server: Server) -> Answer:
    return ""


def _enable_agent(_call: Call, _backend: Backend, _server: Server) -> Answer:
    return "Agent was not configured on this server, cannot enable.\n"


# Weight


def _get_weight(_call: Call, _backend: Backend, server: Server) -> Answer:
    return f"{server.weight} (initial {server.initial_weight})\n"


def _weight_word(at: int) -> _Find:
    return lambda call, backend, server: _weigh(call, backend, server, call.words[at] if len(call.words) > at else "")


def _weigh(call: Call, backend: Backend, server: Server, text: str) -> Answer:
    if not text:
        return "Require <weight> or <weight%>.\n"
    match = re.match(r"([-+]?[0-9]{1,9})(%?)", text)
    if not match:
        return "Empty weight string empty or preceded by garbage\n"
    if match.end() < len(text):
        return "Trailing garbage in weight string\n"
    number, initial = int(match[1]), server.initial_weight
    if match[2]:
        if number < 0:
            return "Relative weight must be positive.\n"
        # As HAProxy: relative to the configured weight, and cut to what a weight may be.
        weight = min(min(number, _MOST_RELATIVE) * initial // 100, _MOST_WEIGHT)
    else:
        weight = number
        if not 0 <= weight <= _MOST_WEIGHT:
            return "Absolute weight can only be between 0 and 256 inclusive.\n"
    if is_static(backend) and weight not in (0, initial):
        return "Backend is using a static LB algorithm and only accepts weights '0%' and '100%'.\n"
    return _change(call, "server-weight", backend, server.name, weight)


# Address, limit


def _set_addr(call: Call, backend: Backend, server: Server) -> Answer:
    words = call.words[4:]
    if not words:
        return "set server <b>/<s> addr requires an address and optionally a port.\n"
    from hitlessd.config.address import numeric_host

    host = numeric_host(words[0].removeprefix("[").removesuffix("]"))
    if not host:
        return f"Invalid addr '{words[0]}' by 'stats socket command'\n"
    old = server.address
    old_host, old_port = (old.host, old.port) if isinstance(old, InetAddress) else (str(old), 0)
    told = "no need to change the addr" if host == old_host else f"IP changed from '{old_host}' to '{host}'"
    port = old_port
    if words[1:2] == ["port"]:
        text = words[2] if len(words) > 2 else ""
        if not re.fullmatch(r"[0-9]{1,5}", text) or not 1 <= int(text) <= 65535:
            return f"{told}, problem converting port '{text}' to an int by 'stats socket command'\n"
        port = int(text)
        told += ", "
        told += "no need to change the port" if port == old_port else f"port changed from '{old_port}' to '{port}'"
    told += " by 'stats socket command'\n"
    if not port and server.check and server.check.address is None:
        return "cannot change the address: health checks need a port\n"
    address: InetAddress | UnixAddress = InetAddress(host, port)
    if not port and (problem := _portless(call, backend)):
        return problem
    if address == old:
        return told
    return _change(call, "server-address", backend, server.name, str(address), told)


def _maxconn(call: Call, backend: Backend, server: Server) -> Answer:
    text = call.words[4] if len(call.words) > 4 else ""
    if not text:
        return "Require <maxconn>.\n"
    match = re.match(r"[-+]?[0-9]{1,9}", text)
    if not match:
        return "maxconn string empty or preceded by garbage\n"
    if match.end() < len(text):
        return "Trailing garbage in maxconn string\n"
    # 0 is no limit, and so is less with HAProxy.
    return _change(call, "server-maxconn", backend, server.name, max(0, int(match[0])))


# `set server`

_USAGE = (
    "usage: set server <backend>/<server> addr | agent | agent-addr | agent-port | agent-send | check-addr |"
    " check-port | fqdn | health | ssl | state | weight\n"
)


def _says(text: str) -> _Find:
    return lambda _call, _backend, _server: text


def _fqdn(call: Call, _backend: Backend, _server: Server) -> Answer:
    if len(call.words) < 5:
        return "set server <b>/<s> fqdn requires a FQDN.\n"
    return "set server <b>/<s> fqdn failed because no resolution is configured.\n"


def _check_target(call: Call, _backend: Backend, server: Server) -> Answer:
    if server.check is None:
        return "health checks are not enabled on this server\n"
    return f"cannot change {call.words[3]} at run time: give `addr` and `port` in the server's line, and reload\n"


_SETTINGS: dict[str, _Find] = {
    "addr": _set_addr,
    "agent": _says("agent checks are not enabled on this server.\n"),
    "agent-addr": _says("agent checks are not enabled on this server\n"),
    "agent-port": _says("agent checks are not enabled on this server\n"),
    "agent-send": _says("agent checks are not enabled on this server.\n"),
    "check-addr": _check_target,
    "check-port": _check_target,
    "fqdn": _fqdn,
    "health": _set_health,
    "ssl": _says("'set server <srv> ssl' cannot be set.  default-server should define ssl settings\n"),
    "state": _set_state,
    "weight": _weight_word(4),
}


def _set_server(call: Call, backend: Backend, server: Server) -> Answer:
    setting = _SETTINGS.get(call.words[3]) if len(call.words) > 3 else None
    return setting(call, backend, server) if setting else _USAGE


# Servers that come and go


def _add(call: Call) -> Answer:
    name, slash, server_name = (call.words[2] if len(call.words) > 2 else "").partition("/")
    if not slash or not server_name:
        return _REQUIRED
    backend = next((each for each in call.control.config.backends if each.name == name), None)
    if backend is None:
        return "No such backend.\n"
    if is_static(backend):
        return "Backend must use a dynamic load balancing to support dynamic servers.\n"
    if len(call.words) < 4:
        return "'server' expects <name> and <addr>[:<port>] as arguments.\n"
    if any(server.name == server_name for server in backend.servers):
        return "Already exists a server with the same name in backend.\n"
    words = " ".join(call.words[3:])
    if problem := _addable(call, backend, server_name, words):
        return problem
    return _change(call, "server-added", backend, server_name, words, "New server registered.\n")


def _portless(call: Call, backend: Backend) -> str:
    """Why a server of that backend needs a port, "" if it does not."""
    for frontend in call.control.config.frontends:
        backends = {frontend.default_backend, *(rule.backend for rule in frontend.use_backend)}
        if backend.name in backends and any(isinstance(bind.address, UnixAddress) for bind in frontend.binds):
            return (
                f"cannot take the port that the client connected to: {frontend.name} listens on a unix socket,"
                " expected ADDRESS:PORT\n"
            )
    return ""


def _addable(call: Call, backend: Backend, name: str, words: str) -> str:
    from hitlessd.config.server import added_server
    from hitlessd.errors import ConfigError

    if " cookie " in f" {words} ":
        return "'cookie' option is not accepted for dynamic server\n"
    match = re.search(r" id (\S+)$", words)
    if match:
        other = next((server for server in backend.servers if str(server.sid) == match[1]), None)
        if other:
            return f"'id' : custom id {other.sid} already used ('server {other.name}').\n"
        if not re.fullmatch(r"[1-9][0-9]{0,8}", match[1]):
            return "'id' : custom id has to be > 0\n"
        words = words[: match.start()]
    try:
        server = added_server(backend, name, 1, words)
    except ConfigError as error:
        return f"{error}\n"
    portless = isinstance(server.address, InetAddress) and not server.address.port
    return _portless(call, backend) if portless else ""


def _delete(call: Call, backend: Backend, server: Server) -> Answer:
    return _change(call, "server-deleted", backend, server.name, True, "Server deleted.\n")


def _delete_any(call: Call) -> Answer:
    return _with_server(_delete)(call)


def _admin(words: str, usage: str, summary: str, run: Callable[[Call], Answer]) -> Command:
    return Command(tuple(words.split(" ")), usage, summary, run, "admin")


COMMANDS = (
    _admin("add server", "add server <bk>/<srv>", "create a new server", _add),
    _admin("del server", "del server <bk>/<srv>", "remove a dynamically added server", _delete_any),
    _admin("disable agent", "disable agent", "disable agent checks", _with_server(_disable_agent)),
    _admin("disable health", "disable health", "disable health checks", _with_server(_disable_health)),
    _admin(
        "disable server",
        "disable server (DEPRECATED)",
        "disable a server for maintenance (use 'set server' instead)",
        _with_server(_state("maint")),
    ),
    _admin("enable agent", "enable agent", "enable agent checks", _with_server(_enable_agent)),
    _admin("enable health", "enable health", "enable health checks", _with_server(_enable_health)),
    _admin(
        "enable server",
        "enable server  (DEPRECATED)",
        "enable a disabled server (use 'set server' instead)",
        _with_server(_state("ready")),
    ),
    Command(("get", "weight"), "get weight <bk>/<srv>", "report a server's current weight", _with_server(_get_weight)),
    _admin(
        "set maxconn server",
        "set maxconn server <bk>/<srv>",
        "change a server's maxconn setting",
        _with_server(_maxconn, 3),
    ),
    _admin(
        "set server",
        "set server <bk>/<srv> [opts]",
        "change a server's state, weight, address or ssl",
        _with_server(_set_server),
    ),
    _admin(
        "set weight",
        "set weight <bk>/<srv>  (DEPRECATED)",
        "change a server's weight (use 'set server' instead)",
        _with_server(_weight_word(3)),
    ),
)
