"""Servers and their addresses as JSON has them, for what main tells its workers at run time. No I/O."""

from __future__ import annotations

from typing import Any

from hitlessd.dataclass import MISSING, fields
from hitlessd.model import Check, InetAddress, Server, UnixAddress

__all__ = ["dump_address", "dump_server", "load_address", "load_server", "parse_address"]

Address = InetAddress | UnixAddress


def dump_address(address: Address) -> list[Any] | str:
    """Host and port, or a path (with a leading NUL in the abstract namespace)."""
    return [address.host, address.port] if isinstance(address, InetAddress) else address.path


def load_address(record: Any) -> Address:
    """The reverse. Raises TypeError, ValueError, IndexError for what is none."""
    return UnixAddress(record) if isinstance(record, str) else InetAddress(str(record[0]), int(record[1]))


def parse_address(text: str) -> Address:
    """An address in a form in which `str()` gives it, or a path. Raises ValueError."""
    kind, at, rest = text.partition("@")
    if text.startswith("/"):
        return UnixAddress(text)
    if at and kind in ("unix", "abns") and rest:
        return UnixAddress(rest if kind == "unix" else "\0" + rest)
    host, _, port = text.rpartition(":")
    if not host or not port.isdecimal():
        raise ValueError(f"{text!r} is no address")
    return InetAddress(host.removeprefix("[").removesuffix("]"), int(port))


def dump_server(server: Server) -> dict[str, Any]:
    """All of a server but where it stands in the configuration; what has its default value is left out."""
    record = _told(server) | {"name": server.name, "address": dump_address(server.address)}
    if server.check is not None:
        record["check"] = _told(server.check)
        if server.check.address is not None:
            record["check"]["address"] = dump_address(server.check.address)
    return record


def load_server(record: dict[str, Any]) -> Server:
    """The reverse. Raises KeyError, TypeError, ValueError, IndexError for what is none."""
    known = _known(Server, record) | {"address": load_address(record["address"])}
    if (told := record.get("check")) is not None:
        check = _known(Check, told)
        if "address" in told:
            check["address"] = load_address(told["address"])
        known["check"] = Check(**check)
    return Server(**known)


#: Of these there is another form, or none.
_APART = frozenset({"address", "check", "where"})


def _told(what: Server | Check) -> dict[str, Any]:
    return {
        field.name: getattr(what, field.name)
        for field in fields(what)
        if field.name not in _APART and (field.default is MISSING or getattr(what, field.name) != field.default)
    }


def _known(kind: type[Server | Check], record: dict[str, Any]) -> dict[str, Any]:
    names = {field.name for field in fields(kind)} - _APART
    return {name: value for name, value in record.items() if name in names}
