"""The configuration as the rest of the program sees it: frozen dataclasses, no reading, no system calls.

Durations are seconds as float, None meaning "no limit". Names are unique as HAProxy demands: frontends among frontends,
backends among backends; a `[listen NAME]` section becomes one Frontend and one Backend of that name and the same iid.
"""

from __future__ import annotations

import socket
from dataclasses import dataclass, field
from typing import Literal

__all__ = [
    "NOWHERE",
    "Address",
    "Backend",
    "Balance",
    "Bind",
    "Config",
    "Frontend",
    "Global",
    "InetAddress",
    "Level",
    "LogTarget",
    "Server",
    "Severity",
    "SourceFile",
    "StatsSocket",
    "SystemdAddress",
    "Timeouts",
    "UnixAddress",
    "Where",
]

Balance = Literal["roundrobin", "leastconn", "source"]
Level = Literal["user", "operator", "admin"]
#: syslog(3) severities, the least talkative first; HAProxy's names.
Severity = Literal["emerg", "alert", "crit", "err", "warning", "notice", "info", "debug"]


@dataclass(frozen=True, slots=True)
class Where:
    """A place in a configuration file; `str()` gives FILE:LINE."""

    file: str
    line: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"


NOWHERE = Where("(default)", 0)


@dataclass(frozen=True, slots=True)
class InetAddress:
    """A numeric IPv4 or IPv6 address. Port 0 on a server means: the port that the client connected to."""

    host: str
    port: int

    @property
    def family(self) -> socket.AddressFamily:
        return socket.AF_INET6 if ":" in self.host else socket.AF_INET

    @property
    def sockaddr(self) -> tuple[str, int]:
        return (self.host, self.port)

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class UnixAddress:
    """A unix socket: a path, or with a leading NUL a name in the abstract namespace (unix(7))."""

    path: str

    @property
    def family(self) -> socket.AddressFamily:
        return socket.AF_UNIX

    @property
    def abstract(self) -> bool:
        return self.path.startswith("\0")

    @property
    def sockaddr(self) -> str:
        return self.path

    def __str__(self) -> str:
        return "abns@" + self.path[1:] if self.abstract else "unix@" + self.path


@dataclass(frozen=True, slots=True)
class SystemdAddress:
    """`sd@NAME`: the addresses of the sockets that systemd passes under FileDescriptorName=NAME (systemd.socket(5))."""

    name: str

    def __str__(self) -> str:
        return "sd@" + self.name


Address = InetAddress | UnixAddress | SystemdAddress


@dataclass(frozen=True, slots=True)
class Bind:
    """One address on which a frontend accepts."""

    address: Address
    where: Where = NOWHERE
    backlog: int = 0  # listen(2)'s backlog; 0: the system's maximum
    interface: str = ""  # SO_BINDTODEVICE, socket(7)
    v6only: bool = True  # IPV6_V6ONLY, ipv6(7); False for `v4v6`
    mode: int | None = None  # of a unix path
    user: str = ""  # owner of a unix path, name or number
    group: str = ""


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Seconds of inactivity, None for never (HAProxy configuration manual, "timeout ...")."""

    connect: float | None = None
    client: float | None = None
    server: float | None = None
    client_fin: float | None = None
    server_fin: float | None = None
    tunnel: float | None = None
    queue: float | None = None  # where unset, `connect` counts, as with HAProxy


@dataclass(frozen=True, slots=True)
class Server:
    """A server of a backend."""

    name: str
    address: InetAddress | UnixAddress
    sid: int = 1  # numbered from 1 within its backend, in the order of the file
    weight: int = 1  # 0..256
    backup: bool = False
    disabled: bool = False
    maxconn: int = 0  # 0: no limit
    hostname: str = ""  # what the file said, when it was not a number
    where: Where = NOWHERE


@dataclass(frozen=True, slots=True)
class Backend:
    """Servers and how to choose among them."""

    name: str
    iid: int
    servers: tuple[Server, ...] = ()
    balance: Balance = "roundrobin"
    timeouts: Timeouts = Timeouts()
    retries: int = 3
    redispatch: bool = False
    mode: Literal["tcp"] = "tcp"
    where: Where = NOWHERE
    migrate: bool = True  # connections move to the successor at a reload
    shutdown_on_reload: bool = False  # ... and are closed there


@dataclass(frozen=True, slots=True)
class Frontend:
    """Where clients come in."""

    name: str
    iid: int
    binds: tuple[Bind, ...] = ()
    default_backend: str = ""  # always the name of a Backend in the same Config
    timeouts: Timeouts = Timeouts()
    maxconn: int = 0  # 0: no limit but the global one
    tcplog: bool = False  # `option tcplog`: one log line a connection
    dontlognull: bool = False
    mode: Literal["tcp"] = "tcp"
    where: Where = NOWHERE
    migrate: bool = True  # connections move to the successor at a reload
    shutdown_on_reload: bool = False  # ... and are closed there


@dataclass(frozen=True, slots=True)
class StatsSocket:
    """A runtime API socket (HAProxy management guide, "Unix Socket commands")."""

    address: InetAddress | UnixAddress
    mode: int | None = None
    user: str = ""
    group: str = ""
    level: Level = "operator"  # HAProxy's default
    expose_fd_listeners: bool = False
    where: Where = NOWHERE


@dataclass(frozen=True, slots=True)
class LogTarget:
    """`log = auto|journal|stderr|stdout [LEVEL]`; auto: the journal when systemd started us, else stderr."""

    target: Literal["auto", "journal", "stderr", "stdout"] = "auto"
    level: Severity = "info"


@dataclass(frozen=True, slots=True)
class Global:
    """Section [global]."""

    stats_sockets: tuple[StatsSocket, ...] = ()
    workers: int = 0  # 0: auto, one per CPU that we may run on
    maxconn: int = 0  # 0: as many as the descriptor limit allows
    hard_stop_after: float | None = None
    log: LogTarget = LogTarget()
    reload_timeout: float = 60.0  # the longest wait for the other side in a handover
    external_takeover: bool = False  # a process outside systemd's unit may take over from the one in it
    crash_proof: bool = True  # established connections are parked while they are served, not only at a restart
    park_after: float = 1.0  # seconds; the age from which on an established connection is parked, 0: at once
    park_timeout: float = 60.0  # seconds; what nobody has resumed for longer is closed


@dataclass(frozen=True, slots=True)
class SourceFile:
    """The text of a configuration file as it was read."""

    name: str
    text: str


@dataclass(frozen=True, slots=True)
class Config:
    """A whole, checked configuration."""

    global_: Global = Global()
    frontends: tuple[Frontend, ...] = ()
    backends: tuple[Backend, ...] = ()
    files: tuple[SourceFile, ...] = ()
    resolved: dict[str, tuple[str, ...]] = field(default_factory=dict)  # server host names to the addresses they had
    warnings: tuple[str, ...] = ()

    def backend(self, name: str) -> Backend:
        """The backend of that name. Raises KeyError."""
        for backend in self.backends:
            if backend.name == name:
                return backend
        raise KeyError(name)
