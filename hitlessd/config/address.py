"""Addresses as HAProxy writes them (configuration manual, "Address formats"), for `bind`, `stats socket` and `server`.

Each function returns the address, or None after it told its place what is wrong.
"""

from __future__ import annotations

import re
import socket

from hitlessd.model import InetAddress, SystemdAddress, UnixAddress

from .problems import Place
from .resolve import Names

__all__ = ["PATH_LIMIT", "listening_address", "server_address"]

#: sun_path holds 107 bytes and a NUL (unix(7)). A socket is bound under a temporary name first, as HAProxy does, and
#: its suffix needs room: HAProxy's limit is this one, too.
PATH_LIMIT = 97
_SUN_PATH = 107
_HOST = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_.-]{0,252})")
_SYSTEMD_NAME = re.compile(r"[!-9;-~]{1,255}")  # FileDescriptorName=: printable ASCII without the colon
_PREFIXES = ("ipv4", "ipv6", "unix", "abns", "sd")
_WHAT = "use this address"


def listening_address(place: Place, text: str, *, systemd: bool) -> InetAddress | UnixAddress | SystemdAddress | None:
    """An address to listen on: numeric, with a port; `systemd` allows `sd@NAME`."""
    prefix, rest = _prefix(text)
    if prefix == "sd" and systemd:
        return _systemd(place, rest)
    if prefix == "unix" or (not prefix and "/" in text):
        return _path(place, rest, PATH_LIMIT)
    if prefix == "abns":
        return _abstract(place, rest)
    if prefix not in ("", "ipv4", "ipv6"):
        _refuse_prefix(place, text, prefix, systemd)
        return None
    if "," in rest:
        place.refuse(_WHAT, text, "one address a line", note="write each further address on a continuation line")
        return None
    split = _split(place, text, rest)
    if split is None:
        return None
    host, port_text = split
    if not port_text:
        place.refuse(_WHAT, text, "ADDRESS:PORT", note="write [ADDRESS]:PORT for IPv6" if ":" in rest else "")
        return None
    port = _port(place, port_text)
    if host in ("", "*"):
        host = "::" if prefix == "ipv6" else "0.0.0.0"
    numeric = numeric_host(host)
    if not numeric:
        what = "a device name" if "%" in host else "a host name"
        note = f"{what} does not belong here" + ("" if "%" not in host else ": give the device with `interface`")
        place.refuse(_WHAT, text, "a numeric address, or *:PORT for every one", note=note)
        return None
    if not _is_family(place, text, prefix, numeric) or port is None:
        return None
    return InetAddress(numeric, port)


def server_address(place: Place, text: str, names: Names) -> tuple[InetAddress | UnixAddress, str] | None:
    """A server's address, and its host name when it was not a number. Without a port, 0."""
    prefix, rest = _prefix(text)
    if prefix == "unix" or (not prefix and "/" in text):
        path = _path(place, rest, _SUN_PATH)
        return (path, "") if path else None
    if prefix == "abns":
        abstract = _abstract(place, rest)
        return (abstract, "") if abstract else None
    if prefix not in ("", "ipv4", "ipv6"):
        _refuse_prefix(place, text, prefix, False)
        return None
    if rest.count(":") > 1 and not rest.startswith("["):
        place.refuse(_WHAT, text, "an IPv6 address in brackets, as in [2001:db8::1]:80")
        return None
    split = _split(place, text, rest)
    if split is None:
        return None
    host, port_text = split
    if rest.endswith(":"):
        place.refuse(_WHAT, text, "a port after the colon, or no colon for the port that the client connected to")
        return None
    port = _port(place, port_text) if port_text else 0
    numeric = numeric_host(host)
    if numeric:
        if not _is_family(place, text, prefix, numeric) or port is None:
            return None
        return InetAddress(numeric, port), ""
    if not _HOST.fullmatch(host):
        place.refuse(_WHAT, text, "ADDRESS[:PORT], NAME[:PORT], /PATH or abns@NAME")
        return None
    if host.rstrip(".").rpartition(".")[2].isdigit():  # getaddrinfo would take 10.1 for 10.0.0.1
        place.refuse(_WHAT, text, "an IPv4 address of four numbers from 0 to 255")
        return None
    found = _resolve(place, host, prefix, names)
    if not found or port is None:
        return None
    return InetAddress(found, port), host


def numeric_host(host: str) -> str:
    """A numeric host in its canonical form, or "" when it is not numeric."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.inet_ntop(family, socket.inet_pton(family, host))
    except (OSError, ValueError):
        return ""


def _prefix(text: str) -> tuple[str, str]:
    """The part before the @ (never "" when there is an @; "" without) and the rest."""
    if text.startswith("/") or "@" not in text:
        return "", text
    prefix, _, rest = text.partition("@")
    return prefix or "@", rest


def _resolve(place: Place, host: str, prefix: str, names: Names) -> str:
    try:
        addresses = names.lookup(host)
    except OSError as error:
        place.fail(f'cannot resolve the host name "{host}": {error}')
        return ""
    for address in addresses:
        numeric = numeric_host(address)
        if numeric and (not prefix or (prefix == "ipv6") == (":" in numeric)):
            return numeric
    place.refuse(f"use the addresses of {host}", ", ".join(addresses), f"an {_family_name(prefix)} address")
    return ""


def _split(place: Place, text: str, rest: str) -> tuple[str, str] | None:
    """Host and port, the port "" when there is none."""
    if not rest.startswith("["):
        host, colon, port = rest.rpartition(":")
        return (host, port) if colon else (rest, "")
    host, bracket, tail = rest[1:].partition("]")
    if not bracket or (tail and tail[0] != ":") or ":" not in host:
        place.refuse(_WHAT, text, "[IPV6-ADDRESS]:PORT")
        return None
    return host, tail[1:]


def _port(place: Place, text: str) -> int | None:
    if text.isascii() and text.isdigit() and len(text) <= 5 and 1 <= int(text) <= 65535:
        return int(text)
    if re.fullmatch("[0-9]+-[0-9]+", text):
        place.refuse(
            "use this port", text, "one port", note="ranges of ports are not supported; write each address on its line"
        )
    elif re.fullmatch("[+-][0-9]+", text):
        place.refuse("use this port", text, "a port from 1 to 65535", note="shifted ports are not supported")
    else:
        place.refuse("use this port", text, "a port from 1 to 65535")
    return None


def _is_family(place: Place, text: str, prefix: str, numeric: str) -> bool:
    if prefix and (prefix == "ipv6") != (":" in numeric):
        place.refuse(_WHAT, text, f"an {_family_name(prefix)} address after {prefix}@")
        return False
    return True


def _family_name(prefix: str) -> str:
    return {"ipv4": "IPv4", "ipv6": "IPv6"}.get(prefix, "IPv4 or IPv6")


def _bytes(place: Place, name: str) -> int | None:
    """How long a name is for the system."""
    try:
        return len(name.encode("utf-8", "surrogateescape"))
    except UnicodeEncodeError:
        place.refuse("use this name", name, "one that UTF-8 can spell")
        return None


def _path(place: Place, path: str, limit: int) -> UnixAddress | None:
    if not path.startswith("/"):
        place.refuse("use this path", path, "an absolute path, beginning with /")
        return None
    if path.endswith("/"):
        place.refuse("use this path", path, "the path of a socket, not of a directory")
        return None
    length = _bytes(place, path)
    if length is None:
        return None
    if length > limit:
        why = "" if limit == _SUN_PATH else f": the system takes {_SUN_PATH}, and a temporary name needs the rest"
        place.fail(f"cannot use this path: found {length} bytes, expected at most {limit}{why}")
        return None
    return UnixAddress(path)


def _abstract(place: Place, name: str) -> UnixAddress | None:
    length = _bytes(place, name)
    if length is None:
        return None
    if not 1 <= length <= _SUN_PATH:
        place.fail(f"cannot use this name: found {length} bytes after abns@, expected 1 to {_SUN_PATH}")
        return None
    return UnixAddress("\0" + name)


def _systemd(place: Place, name: str) -> SystemdAddress | None:
    if not _SYSTEMD_NAME.fullmatch(name):
        place.refuse("use this name", name, "the FileDescriptorName= of a .socket unit: printable ASCII without ':'")
        return None
    return SystemdAddress(name)


def _refuse_prefix(place: Place, text: str, prefix: str, systemd: bool) -> None:
    allowed = _PREFIXES if systemd else _PREFIXES[:-1]
    note = ""
    if prefix == "fd" and systemd:
        note = "name the socket in its .socket unit (FileDescriptorName=) and write sd@NAME"
    elif prefix == "sd":
        note = "sd@ is for bind"
    expected = "one of " + ", ".join(word + "@" for word in allowed) + " or none before the address"
    if note:
        place.refuse(_WHAT, text, expected, note=note)
    else:
        place.refuse(_WHAT, text, expected, near=allowed, word=prefix)
