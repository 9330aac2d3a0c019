"""Which options there are, in which sections they belong, and what to answer to HAProxy's words that this version does
not have."""

from __future__ import annotations

__all__ = [
    "ABSENT_SECTIONS",
    "KINDS",
    "OPTIONS",
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

#: Every option and the kinds of sections that take it. `server` stands for `server NAME`.
OPTIONS: dict[str, tuple[str, ...]] = {
    "stats socket": _G,
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
    "timeout client": _FRONT,
    "timeout client-fin": _FRONT,
    "timeout connect": _BACK,
    "timeout server": _BACK,
    "timeout server-fin": _BACK,
    "timeout tunnel": _BACK,
    "timeout queue": _BACK,
}

#: Sections of HAProxy's that this version does not have.
ABSENT_SECTIONS = _words("cache crt-store http-errors log-forward mailers peers program resolvers ring userlist")

_ABSENT_OPTIONS = _words(
    """acl backlog ca-base capture chroot compression cookie cpu-map crt-base declare default-server description
    dispatch email-alert enabled errorfile errorloc filter force-persist fullconn grace group hash-balance-factor
    hash-type http-after-response http-check http-error http-request http-response http-reuse id ignore-persist
    insecure-fork-wanted load-server-state-from-file log-format log-send-hostname log-tag lua-load maxcompcpuusage
    maxconnrate maxpipes maxrate maxsessrate maxsslconn max-spread-checks monitor monitor-uri node numa-cpu-mapping
    persist rate-limit redirect server-state-base server-state-file server-template setenv presetenv source
    spread-checks ssl-default-bind-ciphers ssl-default-bind-options ssl-default-server-options stick stick-table
    strict-limits tcp-check tcp-request tcp-response transparent unique-id-format unix-bind use-server use_backend"""
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
    "option tcp-check": "health checks are not supported yet",
    "option httpchk": "health checks are not supported yet",
    "tcp-check": "health checks are not supported yet",
    "http-check": "health checks are not supported yet",
    "timeout check": "health checks are not supported yet",
    "option httplog": "this version relays TCP only: use `option tcplog`",
    "option forwardfor": "this version relays TCP only",
    "option httpclose": "this version relays TCP only",
    "option http-server-close": "this version relays TCP only",
    "option http-keep-alive": "this version relays TCP only",
    "option tcpka": "TCP keep-alive is not supported yet",
    "option clitcpka": "TCP keep-alive is not supported yet",
    "option srvtcpka": "TCP keep-alive is not supported yet",
    "timeout http-request": "this version relays TCP only",
    "timeout http-keep-alive": "this version relays TCP only",
    "default-server": "repeat its words in each server line",
    "use_backend": "use default_backend: this version has no rules",
    "cookie": "use `balance source` for persistence",
}

_CHECK_WORDS = _words(
    """addr agent-addr agent-check agent-inter agent-port agent-send check check-alpn check-proto check-send-proxy
    check-sni check-ssl check-via-socks4 downinter error-limit fall fastinter inter observe on-error on-marked-down
    on-marked-up on-marked-up-sessions port rise slowstart track"""
)
_SERVER_WORDS = _words(
    """alpn ca-file ciphers ciphersuites cookie crl-file crt crt-list enabled force-sslv3 force-tlsv10 force-tlsv11
    force-tlsv12 force-tlsv13 id init-addr init-state log-proto max-reuse maxqueue minconn namespace no-check no-ssl
    no-tls-tickets npn pool-conn-name pool-low-conn pool-max-conn pool-purge-delay proto proxy-v2-options redir
    resolve-net resolve-opts resolve-prefer resolvers send-proxy send-proxy-v2 send-proxy-v2-ssl
    send-proxy-v2-ssl-cn shard sni socks4 source ssl ssl-max-ver ssl-min-ver ssl-reuse tcp-ut tfo usesrc verify
    verifyhost ws"""
)
_BIND_WORDS = _words(
    """accept-netscaler-cip accept-proxy allow-0rtt alpn ca-file ciphers ciphersuites crl-file crt crt-list curves
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
    if word in _CHECK_WORDS:
        return "health checks are not supported yet; leave it out"
    return "this version does not have it" if word in _SERVER_WORDS else ""


def absent_bind_word(word: str) -> str:
    """What to answer to a word of HAProxy's `bind` line that this version does not have, or ""."""
    return "this version does not have it" if word in _BIND_WORDS else ""


def places(name: str) -> str:
    """The sections that take an option, as a person reads it: `[defaults], [listen] or [frontend]`."""
    kinds = [f"[{kind}]" for kind in OPTIONS[name]]
    return kinds[0] if len(kinds) == 1 else ", ".join(kinds[:-1]) + " or " + kinds[-1]
