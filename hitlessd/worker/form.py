"""The serial form of a connection: all that a process must know to go on with it, besides its descriptors.

It is what moves to another process, is parked, and is shown. Times are ages and remainders in seconds, so that they
mean the same on another clock; sizes are bytes. Later versions add fields and never change the meaning of one: an
unknown field is ignored, a missing one has the default below.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable
from operator import attrgetter, itemgetter
from typing import Any, TypeVar

from hitlessd.dataclass import dataclass, field, fields
from hitlessd.errors import PeerError
from hitlessd.worker.connection import State
from hitlessd.worker.http.serial import check_http

__all__ = ["STATES", "VERSION", "SerialConnection", "SerialSide", "encode"]

VERSION = 1

_Kind = TypeVar("_Kind")


# Not frozen, for thousands move at once: that would double what it costs to make one.
@dataclass(slots=True)
class SerialSide:
    """One socket of a connection."""

    family: int = 0  # of the socket's address; 0: not told. Where it is told, the socket is one of SOCK_NONBLOCK
    received: int = 0  # bytes read from it, ever
    shift: int = 0  # bytes written to the other side, less `received`, once everything is passed on
    idle: float = 0.0  # since it last sent or took something
    eof: bool = False  # it has sent FIN, and everything before it was read
    shut: bool = False  # we have sent FIN to it
    urgent: bool = False  # an urgent mark may lie ahead of what was read
    bulky: int = 0  # how bulky its flow is, for the choice between recv and splice
    kept: str = ""  # base64: read from the other side and not yet written to this one
    held: int = 0  # how many bytes that are, where they lie elsewhere
    piped: int = 0  # bytes from this side that lie in the pipe that comes along, behind the other side's `kept`


@dataclass(slots=True)
class SerialConnection:
    """A connection in any state but closed."""

    version: int = VERSION
    generation: int = 0
    worker: int = 0
    number: int = 0
    frontend: str = ""
    backend: str = ""
    server: str = ""  # "" while none is assigned
    state: str = str(State.ESTABLISHED)
    client_address: tuple[str, int] | None = None  # None: a unix socket
    preface: int = 0  # bytes of the PROXY header with which the client began
    destination: tuple[str, int] | None = None  # where that one says that the client connected to
    frontend_address: str = ""  # where the client connected to
    source_address: str = ""  # where we connect to the server from
    server_address: str = ""
    accepted_at: float = 0.0  # CLOCK_REALTIME
    age: float = 0.0  # since accept
    assigned_after: float = -1.0  # from accept to a server's slot; negative: not yet
    connected_after: float = -1.0  # from accept to the connection to the server; negative: not yet
    due_in: float | None = None  # what is left of the time to queue, connect, pause or tarry; None: for ever
    expires_in: float | None = None  # until the nearest timeout, as of now; for people
    retries: int = 0
    redispatched: bool = False
    queue_position: int = 0
    cause: str = ""  # HAProxy's termination state, once something went wrong
    dead: str = ""  # "client" or "server": its socket has failed, the other side only takes what is left for it
    accounted_in: int = 0
    accounted_out: int = 0
    entered: bool = False  # the backend counts it by itself
    shared: bool = False  # duplicates of its sockets may be held by nobody who would close them soon
    counted: bool = False  # the kernel's counters of its sockets are known to agree with `received` and what is kept
    http: dict[str, Any] | None = None  # see httpserial.py
    client: SerialSide = field(default_factory=SerialSide)
    server_side: SerialSide | None = None

    def as_dict(self) -> dict[str, Any]:
        """For JSON; what has its default value is left out."""
        form = {"version": self.version, "state": self.state} | _told(self)
        for name in ("client", "server_side"):
            side = getattr(self, name)
            if side is not None:
                form[name] = _told(side)
        return form

    @classmethod
    def from_dict(cls, form: dict[str, Any]) -> SerialConnection:
        """The reverse, whichever version wrote it. Raises PeerError when it cannot be one."""
        try:
            serial = _made(cls, form)
            serial.client = _made(SerialSide, form.get("client") or {})
            if serial.server_side is not None:
                serial.server_side = _made(SerialSide, form["server_side"])
            if serial.client_address is not None:
                host, port = serial.client_address
                serial.client_address = (str(host), int(port))
            if serial.destination is not None:
                host, port = serial.destination
                serial.destination = (str(host), int(port))
            if serial.state not in STATES:
                raise ValueError(f"unknown state {serial.state!r}")
            if serial.http is not None:
                check_http(serial.http)
            for side in (serial.client, serial.server_side):
                if side is not None and side.kept:
                    base64.b64decode(side.kept, validate=True)
        except (TypeError, ValueError, AttributeError, binascii.Error) as error:
            raise PeerError(f"cannot read the serial form of a connection: {error}") from None
        return serial


def _told(what: SerialConnection | SerialSide) -> dict[str, Any]:
    """The fields that do not have their default value."""
    names, values, defaults = _TOLD[type(what)]
    # Most are the very object that the default is, which is found out in a third of the time.
    return {n: v for n, v, d in zip(names, values(what), defaults, strict=True) if v is not d and v != d}


def _made(kind: Callable[..., _Kind], form: dict[str, Any]) -> _Kind:
    """An object with the form's fields, those of no later version. Raises TypeError, AttributeError for no form."""
    values, defaults = _FIELDS[kind]
    # By place: names that came as text are compared with each parameter's, which takes three times as long.
    return kind(*values(defaults | form))


#: Names, what reads their values from an object, and defaults; without the sides of a connection, which are told by
#: themselves.
_TOLD: dict[type, tuple[tuple[str, ...], Callable[[Any], tuple[Any, ...]], tuple[Any, ...]]] = {
    kind: (
        names := tuple(f.name for f in fields(kind) if f.name not in ("client", "server_side")),
        attrgetter(*names),
        tuple(f.default for f in fields(kind) if f.name in names),
    )
    for kind in (SerialSide, SerialConnection)
}
#: What takes their values from a dictionary in the order of the parameters, and their defaults; `client` is set later.
_FIELDS: dict[Any, tuple[Callable[[dict[str, Any]], tuple[Any, ...]], dict[str, Any]]] = {
    kind: (
        itemgetter(*(f.name for f in fields(kind))),
        {f.name: f.default if f.name != "client" else None for f in fields(kind)},
    )
    for kind in (SerialSide, SerialConnection)
}
#: By their names.
STATES = {str(state): state for state in State}


def encode(data: bytes) -> str:
    """Bytes as SerialSide.kept has them."""
    return base64.b64encode(data).decode()
