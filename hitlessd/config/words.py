"""Which options there are, in which sections they belong, and what to answer to HAProxy's words that this version does
not have."""

from __future__ import annotations

__all__ = [
    "ABSENT_SECTIONS",
    "FLAGS",
    "KINDS",
    "NAMED",
    "OPTIONS",
    "SEVERAL_LINES",
    "VALUED",
    "absent",
    "absent_bind_word",
    "absent_server_word",
    "places",
]


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


KINDS = ("global", "defaults", "listen", "frontend", "backend")
_G = ("global",)
_FRONT = ("defaults", "listen", "frontend")
_BOTH = ("defaults", "listen", "frontend", "backend")
_BACK = ("defaults", "listen", "backend")

_PROXIES = ("listen", "frontend", "backend")

#: Every option and the kinds of sections that take it. `server` stands for `server NAME`, `acl` for `acl NAME`.
OPTIONS: dict[str, tuple[str, ...]] = {
    "stats socket": _G,
    "metrics bind": _G,
    "stats maxconn": _G,
    "workers": _G,
    "hard-stop-after": _G,
    "log": _G,
    "reload-timeout": _G,
    "external-takeover": _G,
    "crash-proof": _G,
    "park-after": _G,
    "park-timeout": _G,
    "maxconn": ("global", *_FRONT),
    "mode": _BOTH,
    "bind": ("listen", "frontend"),
    "default_backend": _FRONT,
    "option tcplog": _FRONT,
    "option dontlognull": _FRONT,
    "option migrate": _BOTH,
    "shutdown-on-reload": _BOTH,
    "balance": _BACK,
    "server": ("listen", "backend"),
    "retries": _BACK,
    "option redispatch": _BACK,
    "option httplog": _FRONT,
    "option jsonlog": _FRONT,
    "log-format": _FRONT,
    "rate-limit sessions": _FRONT,
    "acl": _PROXIES,
    "use_backend": ("listen", "frontend"),
    "tcp-request": ("listen", "frontend"),
    "http-request": _PROXIES,
    "http-response": _PROXIES,
    "option forwardfor": _BOTH,
    "option httpclose": _BOTH,
    "errorfile": _BOTH,
    "default-server": _BACK,
    "hash-type": _BACK,
    "cookie": _BACK,
    "http-reuse": _BACK,
    "option abortonclose": _BACK,
    "option httpchk": _BACK,
    "http-check": _BACK,
    "stats enable": _BOTH,
    "stats uri": _BOTH,
    "stats realm": _BOTH,
    "stats auth": _BOTH,
    "stats admin": _PROXIES,
    "stats refresh": _BOTH,
    "stats hide-version": _BOTH,
    "stats scope": _BOTH,
    "stats show-desc": _BOTH,
    "stats show-node": _BOTH,
    "stats show-legends": _BOTH,
    "stats show-modules": _BOTH,
    "timeout client": _FRONT,
    "timeout client-fin": _FRONT,
    "timeout connect": _BACK,
    "timeout server": _BACK,
    "timeout server-fin": _BACK,
    "timeout tunnel": _BACK,
    "timeout queue": _BACK,
    "timeout check": _BACK,
    "timeout http-request": _BOTH,
    "timeout http-keep-alive": _BOTH,
}

#: Those whose order counts, or of which there may be many: one a line, below the first.
SEVERAL_LINES = frozenset(
    ("bind", "stats socket", "metrics bind", "acl", "use_backend", "tcp-request", "http-request", "http-response",
     "errorfile", "default-server", "http-check", "stats auth", "stats scope")
)  # fmt: skip

#: Those that are `option NAME` and say more than on or off.
VALUED = frozenset(("option forwardfor", "option httpchk"))
_STATS_FLAGS = _words("enable hide-version show-legends show-modules show-node")
#: Those that may stand without a value.
FLAGS = frozenset(
    (
        *(name for name in OPTIONS if name.startswith("option ")),
        *(f"stats {word}" for word in _STATS_FLAGS),
        "shutdown-on-reload",
    )
)
#: Those that are followed by a name of the operator's choice.
NAMED = frozenset(("server", "acl"))

#: Sections of HAProxy's that this version does not have.
ABSENT_SECTIONS = _words("cache crt-store http-errors log-forward mailers peers program resolvers ring userlist")

_ABSENT_OPTIONS = _words(
    """backlog ca-base capture chroot compression cpu-map crt-base declare description
    dispatch email-alert enabled errorloc errorloc302 errorloc303 errorfiles filter force-persist fullconn grace group
    hash-balance-factor http-after-response http-error id ignore-persist
    insecure-fork-wanted load-server-state-from-file log-format-sd log-send-hostname log-tag lua-load maxcompcpuusage
    maxconnrate maxpipes maxrate maxsessrate maxsslconn max-spread-checks monitor monitor-uri node numa-cpu-mapping
    persist server-state-base server-state-file server-template setenv presetenv source
    spread-checks ssl-default-bind-ciphers ssl-default-bind-options ssl-default-server-options stick stick-table
    strict-limits tcp-check tcp-response transparent unique-id-format unix-bind use-server"""
)

_INSTEAD = {
    "daemon": "leave it out and let systemd keep the program in the background, or give the -D switch",
    "master-worker": "leave it out: hitlessd always runs as one main process with workers",
    "nbthread": "use `workers` instead",
    "nbproc": "use `workers` instead",
    "thread-groups": "use `workers` instead",
    "cpu-map": "use CPUAffinity= in the unit instead",
    "user": "use User= in the unit instead",
    "uid": "use User= in the unit instead",
    "group": "use Group= in the unit instead",
    "gid": "use Group= in the unit instead",
    "chroot": "use the unit's sandboxing (ProtectSystem=, RootDirectory=) instead",
    "ulimit-n": "use LimitNOFILE= in the unit instead",
    "pidfile": "use the -p switch instead",
    "stats timeout": "the runtime socket has no timeout to set in this version",
    "backlog": "use `backlog N` in the bind line instead",
    "stats http-request": "use `http-request = deny ...` with the page's path",
    "stats bind-process": "leave it out: the page tells of all workers",
    "option tcp-check": "leave it out: `check` in a server line connects, unless `option httpchk` asks for more",
    "option http-server-close": "use `http-reuse = never` or `option httpclose`",
    "option http-keep-alive": "leave it out: that is the default, which `no option httpclose` restores",
    "option tcpka": "TCP keep-alive is not supported yet",
    "option clitcpka": "TCP keep-alive is not supported yet",
    "option srvtcpka": "TCP keep-alive is not supported yet",
    "timeout http-response": "use `timeout server`",
    "redirect": "use `http-request = redirect ...`",
    "reqadd": "use `http-request = add-header ...`",
    "block": "use `http-request = deny ...`",
}

_SERVER_WORDS = _words(
    """agent-addr agent-check agent-inter agent-port agent-send alpn ca-file check-alpn check-proto check-sni check-ssl
    check-via-socks4 ciphers ciphersuites crl-file crt crt-list force-sslv3 force-tlsv10 force-tlsv11
    force-tlsv12 force-tlsv13 id init-addr init-state log-proto max-reuse maxqueue minconn namespace no-ssl
    no-tls-tickets npn on-marked-up pool-conn-name pool-low-conn proto proxy-v2-options redir
    resolve-net resolve-opts resolve-prefer resolvers send-proxy-v2-ssl
    send-proxy-v2-ssl-cn shard sni socks4 source ssl ssl-max-ver ssl-min-ver ssl-reuse tcp-ut tfo track usesrc verify
    verifyhost ws"""
)
_BIND_WORDS = _words(
    """accept-netscaler-cip allow-0rtt alpn ca-file ciphers ciphersuites crl-file crt crt-list curves
    defer-accept ecdhe expose-fd gid id level maxconn mss name namespace nice npn proto process severity-output
    shards ssl strict-sni tcp-ut tfo thread tls-ticket-keys tls-tickets transparent uid verify"""
)


def absent(name: str) -> str:
    """What to answer to an option of HAProxy's that this version does not have; "" when HAProxy does not have it
    either."""
    words = name.removeprefix("no ").split()
    for key in (" ".join(words[:2]), words[0] if words else ""):
        if key in _INSTEAD:
            return _INSTEAD[key]
        if key in _ABSENT_OPTIONS:
            return "this version does not have it"
    return ""


def absent_server_word(word: str) -> str:
    """What to answer to a word of HAProxy's `server` line that this version does not have, or ""."""
    return "this version does not have it" if word in _SERVER_WORDS else ""


def absent_bind_word(word: str) -> str:
    """What to answer to a word of HAProxy's `bind` line that this version does not have, or ""."""
    return "this version does not have it" if word in _BIND_WORDS else ""


def places(name: str) -> str:
    """The sections that take an option, as a person reads it: `[defaults], [listen] or [frontend]`."""
    kinds = [f"[{kind}]" for kind in OPTIONS[name]]
    return kinds[0] if len(kinds) == 1 else ", ".join(kinds[:-1]) + " or " + kinds[-1]
