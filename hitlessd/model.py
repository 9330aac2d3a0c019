"""The configuration as the rest of the program sees it: frozen dataclasses, no reading, no system calls.

Durations are seconds as float, None meaning "no limit". Names are unique as HAProxy demands: frontends among frontends,
backends among backends; a `[listen NAME]` section becomes one Frontend and one Backend of that name and the same iid.
"""

from __future__ import annotations

import socket
from typing import Literal

from hitlessd.dataclass import dataclass, field

__all__ = [
    "NOWHERE",
    "Acl",
    "Address",
    "Backend",
    "Balance",
    "Bind",
    "Check",
    "Condition",
    "Config",
    "Cookie",
    "Expectation",
    "ForwardFor",
    "Frontend",
    "Global",
    "HttpCheck",
    "HttpRule",
    "InetAddress",
    "Level",
    "LogTarget",
    "MetricsBind",
    "Mode",
    "Observe",
    "Reuse",
    "Server",
    "Severity",
    "SourceFile",
    "StatsPage",
    "StatsSocket",
    "SystemdAddress",
    "TcpRule",
    "Term",
    "Timeouts",
    "UnixAddress",
    "UseBackend",
    "Where",
]

Mode = Literal["tcp", "http"]
Balance = Literal["roundrobin", "static-rr", "leastconn", "first", "source", "uri", "hdr", "random"]
Reuse = Literal["never", "safe", "aggressive", "always"]
Observe = Literal["", "layer4", "layer7"]
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
    accept_proxy: bool = False  # every connection begins with a PROXY header, v1 or v2


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
    http_request: float | None = None  # for a whole head; where unset, `client` counts
    http_keep_alive: float | None = None  # for the next request to begin; where unset, `http_request` counts
    check: float | None = None  # for a check's answer, once it is connected; where unset, its interval counts


@dataclass(frozen=True, slots=True)
class Acl:
    """One test of a connection or a request: a criterion and the values of which one must match.

    `acl NAME = ...` given several times under one name, or in several lines, is a Term with several of these.
    """

    criterion: str  # a name of HAProxy's: path, path_beg, hdr, hdr_dom, src, ...; see samples.py
    argument: str = ""  # what stood in parentheses
    insensitive: bool = False  # -i
    values: tuple[str, ...] = ()
    name: str = ""  # "" for an anonymous one, { ... }
    where: Where = NOWHERE
    match: str = ""  # -m; "": what the criterion implies


@dataclass(frozen=True, slots=True)
class Term:
    """Holds when any of its tests does, or, negated, when none does."""

    tests: tuple[Acl, ...]
    negated: bool = False


@dataclass(frozen=True, slots=True)
class Condition:
    """`if A !B || C`: alternatives, each of which needs all of its terms; `unless` negates the whole."""

    alternatives: tuple[tuple[Term, ...], ...]
    unless: bool = False


@dataclass(frozen=True, slots=True)
class UseBackend:
    """`use_backend NAME if|unless ...`; the first whose condition holds decides."""

    backend: str
    condition: Condition | None = None
    where: Where = NOWHERE


@dataclass(frozen=True, slots=True)
class TcpRule:
    """`tcp-request connection accept|reject if|unless ...`, decided as soon as a client is accepted."""

    action: Literal["accept", "reject"]
    condition: Condition | None = None
    where: Where = NOWHERE


@dataclass(frozen=True, slots=True)
class HttpRule:
    """A line of `http-request` or `http-response`.

    `value` is text in the language of log-format, as in `%[src]`: of a header, a redirect's target, a returned body.
    """

    action: Literal["allow", "deny", "set-header", "add-header", "del-header", "redirect", "return", "use-service"]
    name: str = ""  # of the header; of a redirect: location, prefix or scheme; of the service: prometheus-exporter
    value: str = ""
    status: int = 0  # of deny, redirect and return
    content_type: str = ""  # of return
    headers: tuple[tuple[str, str], ...] = ()  # of return: names and log-format texts
    body: bytes | None = None  # of return: a body without variables, as from a file
    condition: Condition | None = None
    where: Where = NOWHERE


@dataclass(frozen=True, slots=True)
class ForwardFor:
    """`option forwardfor [except NETWORK] [header NAME] [if-none]`."""

    header: str = "X-Forwarded-For"
    unless_from: str = ""  # a network in CIDR notation
    if_none: bool = False


@dataclass(frozen=True, slots=True)
class Cookie:
    """`cookie NAME insert|rewrite|prefix [indirect] [nocache] [httponly] [secure] [domain D]... [attr A]...`."""

    name: str
    mode: Literal["insert", "rewrite", "prefix"] = "insert"
    indirect: bool = False
    nocache: bool = False
    httponly: bool = False
    secure: bool = False
    postonly: bool = False
    preserve: bool = False
    domains: tuple[str, ...] = ()
    attributes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Check:
    """`check` of a server and what goes with it."""

    inter: float = 2.0  # seconds
    fastinter: float | None = None  # while changing between up and down; None: inter
    downinter: float | None = None  # while down; None: inter
    rise: int = 2
    fall: int = 3
    address: InetAddress | UnixAddress | None = None  # None: the server's own
    send_proxy: int = 0  # `check-send-proxy`: version of the PROXY header of a check, 0 for none


@dataclass(frozen=True, slots=True)
class Expectation:
    """`http-check expect [!] status|rstatus|string|rstring|hdr VALUE`."""

    kind: Literal["status", "rstatus", "string", "rstring", "hdr"]
    value: str  # status: numbers and ranges, as in 200-399,404
    name: str = ""  # of the header
    negated: bool = False


@dataclass(frozen=True, slots=True)
class HttpCheck:
    """`option httpchk [METHOD] [URI] [VERSION]`, `http-check send ...`, `http-check expect ...`."""

    method: str = "OPTIONS"
    uri: str = "/"
    version: str = "HTTP/1.0"
    headers: tuple[tuple[str, str], ...] = ()
    body: str = ""
    expect: tuple[Expectation, ...] = ()  # none: any 2xx or 3xx


@dataclass(frozen=True, slots=True)
class StatsPage:
    """`stats enable` and what goes with it: the page of a proxy (HAProxy configuration manual, "stats ...")."""

    uri: str = "/haproxy?stats"  # what a request's target begins with
    realm: str = "HAProxy Statistics"
    auth: tuple[tuple[str, str], ...] = ()  # user names and passwords; none: everybody may look
    admin: Condition | None = None  # who may change something; None: nobody
    refresh: float | None = None  # seconds, for browsers without scripts
    hide_version: bool = False
    scope: tuple[str, ...] = ()  # names of the proxies to show, "." for the own one; none: all
    description: str = ""  # `stats show-desc`
    node: str = ""  # `stats show-node`
    where: Where = NOWHERE


@dataclass(frozen=True, slots=True)
class Server:
    """A server of a backend."""

    name: str
    address: InetAddress | UnixAddress
    sid: int = 1  # numbered from 1 within its backend, in the order of the file
    weight: int = 1  # 0..256
    backup: bool = False
    disabled: bool = False
    drain: bool = False  # nobody new but those who belong to it; an operator's word at run time
    added: bool = False  # by `add server` at run time
    maxconn: int = 0  # 0: no limit
    hostname: str = ""  # what the file said, when it was not a number
    where: Where = NOWHERE
    check: Check | None = None
    slowstart: float = 0.0  # seconds in which the weight grows from a tenth to its full size after the server is up
    cookie: str = ""  # its value in the backend's cookie
    send_proxy: int = 0  # version of the PROXY header that begins each connection to it, 0 for none
    observe: Observe = ""  # traffic counts as a check
    error_limit: int = 10  # errors in a row that `observe` needs
    on_error: Literal["fastinter", "fail-check", "sudden-death", "mark-down"] = "fail-check"
    on_marked_down: Literal["", "shutdown-sessions"] = ""
    pool_max_conn: int = -1  # idle connections kept for reuse, -1: no limit of its own
    pool_purge_delay: float = 5.0  # seconds after which half of the superfluous idle ones are closed
    configured_weight: int | None = None  # what the configuration says, where an operator has changed the weight

    @property
    def initial_weight(self) -> int:
        """The weight before anybody changed it at run time."""
        return self.weight if self.configured_weight is None else self.configured_weight


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
    mode: Mode = "tcp"
    where: Where = NOWHERE
    migrate: bool = True  # connections move to the successor at a reload
    shutdown_on_reload: bool = False  # ... and are closed there
    balance_header: str = ""  # of `balance hdr(NAME)`
    balance_draws: int = 2  # of `balance random(DRAWS)`
    balance_uri_len: int = 0  # `balance uri len N`: so many characters count, 0 for all
    balance_uri_depth: int = 0  # `balance uri depth N`: so many directories count, 0 for all
    balance_uri_whole: bool = False  # `balance uri whole`: the query counts, too
    hash_consistent: bool = False  # `hash-type consistent`; else map-based
    http_reuse: Reuse = "safe"
    cookie: Cookie | None = None
    http_check: HttpCheck | None = None
    forwardfor: ForwardFor | None = None
    httpclose: bool = False
    abortonclose: bool = False
    http_request: tuple[HttpRule, ...] = ()
    http_response: tuple[HttpRule, ...] = ()
    errorfiles: tuple[tuple[int, bytes], ...] = ()  # status and the whole answer, head and body
    stats: StatsPage | None = None


@dataclass(frozen=True, slots=True)
class Frontend:
    """Where clients come in."""

    name: str
    iid: int
    binds: tuple[Bind, ...] = ()
    default_backend: str = ""  # the name of a Backend in the same Config; "": none but those of use_backend
    timeouts: Timeouts = Timeouts()
    maxconn: int = 0  # 0: no limit but the global one
    tcplog: bool = False  # `option tcplog`: one log line a connection
    dontlognull: bool = False
    mode: Mode = "tcp"
    where: Where = NOWHERE
    migrate: bool = True  # connections move to the successor at a reload
    shutdown_on_reload: bool = False  # ... and are closed there
    httplog: bool = False
    log_format: str = ""  # "": what tcplog or httplog say
    log_json: bool = False  # `option jsonlog`: one JSON object a line
    tcp_rules: tuple[TcpRule, ...] = ()
    use_backend: tuple[UseBackend, ...] = ()
    rate_limit: int = 0  # `rate-limit sessions N`: new ones a second, 0 for no limit
    inspect_delay: float = 0.0  # `tcp-request inspect-delay`: seconds to wait for what use_backend asks about
    forwardfor: ForwardFor | None = None
    httpclose: bool = False
    http_request: tuple[HttpRule, ...] = ()
    http_response: tuple[HttpRule, ...] = ()
    errorfiles: tuple[tuple[int, bytes], ...] = ()
    stats: StatsPage | None = None
    disabled: bool = False  # accepts nobody, as `disable frontend` says at run time
    shut: bool = False  # `shutdown frontend`: its listeners are closed until the next reload


@dataclass(frozen=True, slots=True)
class MetricsBind:
    """`metrics bind`: where Prometheus finds `/metrics`."""

    address: InetAddress | UnixAddress
    mode: int | None = None
    user: str = ""
    group: str = ""
    where: Where = NOWHERE


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
    """`log = auto|journal|stderr|stdout [LEVEL]`; auto: the journal when systemd started us, else stderr.
    `log = ADDRESS FACILITY [LEVEL]`: a syslog server, UDP or a unix datagram socket."""

    target: Literal["auto", "journal", "stderr", "stdout", "syslog"] = "auto"
    level: Severity = "info"
    address: InetAddress | UnixAddress | None = None  # of the syslog server
    facility: str = "local0"


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
    stats_maxconn: int = 10  # `stats maxconn`: clients of the runtime API that are neither root nor of our uid
    metrics_binds: tuple[MetricsBind, ...] = ()


@dataclass(frozen=True, slots=True)
class SourceFile:
    """The text of a configuration file as it was read.

    What such a file attaches (`errorfile`, `return file`) is kept likewise, that a start can do without the files: its
    name begins with a NUL, and each character of its text stands for a byte (Latin-1).
    """

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
