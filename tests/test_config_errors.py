"""What a wrong configuration is told: the whole message, with file, line, section, option, and what was meant."""

from __future__ import annotations

import socket
from collections.abc import Sequence

import pytest

from hitlessd.config import parse
from hitlessd.config.problems import LIMIT
from hitlessd.errors import ConfigError
from hitlessd.model import SourceFile

#: Sections that make a configuration whole; the line under test comes before them.
REST = "\n[listen rest]\nbind = :9999\nserver s = 192.0.2.1\n"


def problems_of(*texts: str) -> list[str]:
    def resolver(host: str) -> Sequence[str]:
        if host == "four.example":
            return ["192.0.2.4"]
        if host == "nothing.example":
            return []
        if host == "strange.example":
            return ["not an address"]
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    with pytest.raises(ConfigError) as caught:
        parse([SourceFile(f"{i}.conf", text) for i, text in enumerate(texts, 1)], resolver=resolver)
    return caught.value.problems


GLOBAL = [
    ("workers = 65", 'workers: cannot use this number: found "65", expected a number from 1 to 64'),
    ("workers = 0", 'workers: cannot use this number: found "0", expected a number from 1 to 64'),
    (
        "workers = aut",
        'workers: cannot use this number: found "aut", expected auto or a number from 1 to 64; did you mean "auto"?',
    ),
    ("workers = ٣", 'workers: cannot use this number: found "٣", expected a number from 1 to 64'),
    ("maxconn = -1", 'maxconn: cannot use this number: found "-1", expected a number from 0 to 2147483647'),
    ("maxconn = 1_000", 'maxconn: cannot use this number: found "1_000", expected a number from 0 to 2147483647'),
    (
        "maxconn = " + "9" * 5000,
        f'maxconn: cannot use this number: found "{"9" * 57}...", expected a number from 0 to 2147483647',
    ),
    ("maxconn", "maxconn: cannot use this option without a value: expected `maxconn = VALUE`"),
    ("maxconn =", "maxconn: cannot use this option without a value: expected `maxconn = VALUE`"),
    ("maxconn 5", 'maxconn: cannot read this option: found "maxconn 5", expected `maxconn = 5`'),
    ("hard-stop-after = 0", 'hard-stop-after: cannot use this time: found "0", expected more than 0'),
    (
        "hard-stop-after = 1.5s",
        'hard-stop-after: cannot use this time: found "1.5s", expected a whole number with us, ms, s, m, h or d, as in '
        "500ms or 2s",
    ),
    (
        "reload-timeout = 25d",
        'reload-timeout: cannot use this time: found "25d", expected at most 2147483647ms, which is 24 days',
    ),
    (
        "reload-timeout = 2147483648",
        'reload-timeout: cannot use this time: found "2147483648", expected at most 2147483647ms, which is 24 days',
    ),
    ("external-takeover = yes", 'external-takeover: cannot set this switch: found "yes", expected on or off'),
    ("crash-proof = 1", 'crash-proof: cannot set this switch: found "1", expected on or off'),
    ("crash-proof", "crash-proof: cannot use this option without a value: expected `crash-proof = VALUE`"),
    (
        "park-after = -1s",
        'park-after: cannot use this time: found "-1s", expected a whole number with us, ms, s, m, h or d, as in 500ms '
        "or 2s",
    ),
    (
        "park-after = 25d",
        'park-after: cannot use this time: found "25d", expected at most 2147483647ms, which is 24 days',
    ),
    ("park-timeout = 0", 'park-timeout: cannot use this time: found "0", expected more than 0'),
    (
        "log = jurnal",
        'log: cannot log to this target: found "jurnal", expected auto, journal, stderr, stdout, or the address of a '
        'syslog server; did you mean "journal"?',
    ),
    (
        "log = 192.0.2.1:514 info",
        'log: cannot use this facility: found "info", expected one of syslog\'s, as in local0',
    ),
    (
        "log = 192.0.2.1:514 local0 info notice",
        'log: cannot use more words: found "notice", expected at most a level after the facility',
    ),
    ("log = 192.0.2.1:x local0", 'log: cannot use this port: found "x", expected a port from 1 to 65535'),
    (
        "log = 192.0.2.1 local0 loud",
        'log: cannot use this level: found "loud", expected emerg, alert, crit, err, warning, notice, info or debug',
    ),
    ("log = stderr info x", 'log: cannot use more words: found "x", expected at most a level after the target'),
    (
        "log = /run/systemd/log",
        "log: cannot use this facility: found nothing, expected one of syslog's, as in local0",
    ),
    (
        "log = stderr inf",
        'log: cannot use this level: found "inf", expected emerg, alert, crit, err, warning, notice, info or debug; '
        'did you mean "info"?',
    ),
    (
        "log = /dev/log lokal0",
        'log: cannot use this facility: found "lokal0", expected one of syslog\'s, as in local0; did you mean "local',
    ),
    ("log = /dev/log", "log: cannot use this facility: found nothing, expected one of syslog's, as in local0"),
    (
        "stats socket = run/x",
        'stats socket: cannot use this path: found "run/x", expected an absolute path, beginning with /',
    ),
    (
        "stats socket = unix@x",
        'stats socket: cannot use this path: found "x", expected an absolute path, beginning with /',
    ),
    (
        "stats socket = /run/",
        'stats socket: cannot use this path: found "/run/", expected the path of a socket, not of a directory',
    ),
    (
        "stats socket = /" + "é" * 49,
        "stats socket: cannot use this path: found 99 bytes, expected at most 97: the system takes 107, and a "
        "temporary name needs the rest",
    ),
    (
        "stats socket = abns@" + "x" * 108,
        "stats socket: cannot use this name: found 108 bytes after abns@, expected 1 to 107",
    ),
    ("stats socket = abns@", "stats socket: cannot use this name: found 0 bytes after abns@, expected 1 to 107"),
    (
        "stats socket = sd@x",
        'stats socket: cannot use this address: found "sd@x", expected one of ipv4@, ipv6@, unix@, abns@ or none '
        "before the address; sd@ is for bind",
    ),
    (
        "stats socket = 127.0.0.1:99 expose-fd listeners",
        "stats socket: cannot use expose-fd with 127.0.0.1:99: expected a unix socket, for TCP carries no descriptors",
    ),
    (
        "stats socket = 127.0.0.1:99 mode 600",
        "stats socket: cannot use mode with 127.0.0.1:99: expected the path of a unix socket",
    ),
    (
        "stats socket = abns@x user root",
        "stats socket: cannot use user with abns@x: expected the path of a unix socket",
    ),
    (
        "stats socket = /run/x mode 8",
        'stats socket: cannot use this mode: found "8", expected three octal digits, as in 660',
    ),
    (
        "stats socket = /run/x level admn",
        'stats socket: cannot use this level: found "admn", expected user, operator or admin; did you mean "admin"?',
    ),
    (
        "stats socket = /run/x level",
        "stats socket: cannot use level alone: found nothing, expected a value after it",
    ),
    (
        "stats socket = /run/x expose-fd listener",
        'stats socket: cannot expose these descriptors: found "listener", expected listeners; did you mean '
        '"listeners"?',
    ),
    (
        "stats socket = /run/x mode 600 mode 600",
        "stats socket: cannot use mode twice: expected it once in a line",
    ),
    (
        "stats socket = /run/x user no-such-user",
        'stats socket: cannot use this user: found "no-such-user", expected a user that exists on this system '
        "(getent passwd)",
    ),
    (
        "stats socket = /run/x group no-such-group",
        'stats socket: cannot use this group: found "no-such-group", expected a group that exists on this system '
        "(getent group)",
    ),
    (
        "stats socket = /run/x user 4294967295",
        'stats socket: cannot use this user number: found "4294967295", expected a number from 0 to 4294967294',
    ),
    (
        "stats socket = /run/x levle admin",
        'stats socket: cannot use this word: found "levle", expected one of mode, user, group, level, expose-fd; did '
        'you mean "level"?',
    ),
    (
        "daemon",
        "daemon: cannot use this option: leave it out and let systemd keep the program in the background, or give the "
        "-D switch",
    ),
    (
        "master-worker",
        "master-worker: cannot use this option: leave it out: hitlessd always runs as one main process with workers",
    ),
    ("nbthread = 4", "nbthread: cannot use this option: use `workers` instead"),
    ("nbthread 4", "nbthread: cannot use this option: use `workers` instead"),
    ("user = haproxy", "user: cannot use this option: use User= in the unit instead"),
    ("group haproxy", "group: cannot use this option: use Group= in the unit instead"),
    ("stats timeout = 30s", "stats timeout: cannot use this option: the runtime socket has no timeout to set in this"),
    ("lua-load = /x", "lua-load: cannot use this option: this version does not have it"),
    ("mode = tcp", "mode: cannot use this option in a [global] section: expected it in [defaults], [listen], [front"),
    (
        "worker = 3",
        'worker: cannot use this option: found "worker", expected an option of [global]; did you mean "workers"?',
    ),
    (
        "timeout conect = 3",
        'timeout conect: cannot use this option: found "timeout conect", expected an option of [global]; did you mean '
        '"timeout connect"?',
    ),
    ("zzzz = 3", 'zzzz: cannot use this option: found "zzzz", expected an option of [global]'),
]


@pytest.mark.parametrize(("line", "message"), GLOBAL)
def test_global(line: str, message: str) -> None:
    (problem,) = problems_of(f"[global]\n{line}{REST}")
    assert problem.startswith(f"1.conf:2: [global] {message}")


BIND = [
    (
        "localhost:80",
        'cannot use this address: found "localhost:80", expected a numeric address, or *:PORT for every one; a host '
        "name does not belong here",
    ),
    (
        "[fe80::1%eth0]:80",
        'cannot use this address: found "[fe80::1%eth0]:80", expected a numeric address, or *:PORT for every one; a '
        "device name does not belong here: give the device with `interface`",
    ),
    ("1.2.3.4", 'cannot use this address: found "1.2.3.4", expected ADDRESS:PORT'),
    ("[::1]", 'cannot use this address: found "[::1]", expected ADDRESS:PORT; write [ADDRESS]:PORT for IPv6'),
    ("[::1:80", 'cannot use this address: found "[::1:80", expected [IPV6-ADDRESS]:PORT'),
    ("[1.2.3.4]:80", 'cannot use this address: found "[1.2.3.4]:80", expected [IPV6-ADDRESS]:PORT'),
    ("[::1]80", 'cannot use this address: found "[::1]80", expected [IPV6-ADDRESS]:PORT'),
    ("1.2.3:80", 'cannot use this address: found "1.2.3:80", expected a numeric address, or'),
    (":0", 'cannot use this port: found "0", expected a port from 1 to 65535'),
    (":65536", 'cannot use this port: found "65536", expected a port from 1 to 65535'),
    (":http", 'cannot use this port: found "http", expected a port from 1 to 65535'),
    (
        ":80-90",
        'cannot use this port: found "80-90", expected one port; ranges of ports are not supported; write each address '
        "on its line",
    ),
    (
        ":80,:81",
        'cannot use this address: found ":80,:81", expected one address a line; write each further address on a '
        "continuation line",
    ),
    ("ipv4@[::1]:80", 'cannot use this address: found "ipv4@[::1]:80", expected an IPv4 address after ipv4@'),
    ("ipv6@1.2.3.4:80", 'cannot use this address: found "ipv6@1.2.3.4:80", expected an IPv6 address after ipv6@'),
    (
        "fd@3",
        'cannot use this address: found "fd@3", expected one of ipv4@, ipv6@, unix@, abns@, sd@ or none before the '
        "address; name the socket in its .socket unit (FileDescriptorName=) and write sd@NAME",
    ),
    (
        "ipv5@1.2.3.4:80",
        'cannot use this address: found "ipv5@1.2.3.4:80", expected one of ipv4@, ipv6@, unix@, abns@, sd@ or none '
        'before the address; did you mean "ipv',
    ),
    ("@1.2.3.4:80", 'cannot use this address: found "@1.2.3.4:80", expected one of ipv4@, '),
    ("udp@/run/x", 'cannot use this address: found "udp@/run/x", expected one of ipv4@, '),
    ("sd@", "cannot use this name: found nothing, expected the FileDescriptorName= of a .socket unit"),
    ("sd@a:b", 'cannot use this name: found "a:b", expected the FileDescriptorName= of a .socket unit'),
    (
        "sd@http backlog 3",
        "cannot use backlog with sd@http: expected it in the .socket unit, which makes the socket",
    ),
    ("[::]:80 v4v6 v6only", "cannot combine v4v6 and v6only: expected one of them"),
    (":80 v4v6", "cannot use v4v6 with 0.0.0.0:80: expected an IPv6 address"),
    ("/run/x v6only", "cannot use v6only with unix@/run/x: expected an IPv6 address"),
    ("/run/x interface eth0", "cannot use interface with unix@/run/x: expected an IPv4 or IPv6 address"),
    (":80 mode 600", "cannot use mode with 0.0.0.0:80: expected the path of a unix socket"),
    (
        ":80 interface abcdefghijklmnop",
        'cannot use this interface: found "abcdefghijklmnop", expected the name of a network device, at most 15 bytes',
    ),
    (":80 backlog 0", 'cannot use this backlog: found "0", expected a number from 1 to 65535'),
    (
        ":80 ssl crt /x",
        'cannot use this word: found "ssl", expected one of v4v6, v6only, backlog, interface, mode, user, group, '
        "accept-proxy; this version does not have it",
    ),
    (
        ":80 baklog 3",
        'cannot use this word: found "baklog", expected one of v4v6, v6only, backlog, interface, mode, user, group, '
        'accept-proxy; did you mean "backlog"?',
    ),
    (
        "/" + "x" * 97,
        "cannot use this path: found 98 bytes, expected at most 97: the system takes 107, and a temporary name needs",
    ),
    (
        "maxconn = 4",
        'cannot use this address: found "maxconn = 4", expected an address; a line that is indented deeper',
    ),
    (
        ":9999",
        "cannot use 0.0.0.0:9999 twice: expected an address of its own, and [listen rest] at 1.conf:3 has it",
    ),
]


@pytest.mark.parametrize(("value", "message"), BIND)
def test_bind(value: str, message: str) -> None:
    (problem,) = problems_of(f"{REST}[listen f]\nbind = :1\n  {value}\nserver s = 192.0.2.1:1\n")
    assert problem.startswith(f"1.conf:7: [listen f] bind: {message}")


SERVER = [
    (
        "10.0.0.256:80",
        'use this address: found "10.0.0.256:80", expected an IPv4 address of four numbers from 0 to 255',
    ),
    ("10.1:80", 'use this address: found "10.1:80", expected an IPv4 address of four numbers from 0 to 255'),
    (
        "2001:db8::1:80",
        'use this address: found "2001:db8::1:80", expected an IPv6 address in brackets, as in [2001:db8::1]:80',
    ),
    (
        "192.0.2.1:",
        'use this address: found "192.0.2.1:", expected a port after the colon, or no colon for the port that the '
        "client connected to",
    ),
    ("192.0.2.1:0", 'use this port: found "0", expected a port from 1 to 65535'),
    (
        "192.0.2.1:+1",
        'use this port: found "+1", expected a port from 1 to 65535; shifted ports are not supported',
    ),
    ("*:80", 'use this address: found "*:80", expected ADDRESS[:PORT], NAME[:PORT], /PATH or abns@NAME'),
    ("sd@x", 'use this address: found "sd@x", expected one of ipv4@, ipv6@, unix@, abns@ or none before'),
    ("no.example:80", 'resolve the host name "no.example": Name or service not known'),
    ("nothing.example", 'resolve the host name "nothing.example": it has no address'),
    (
        "ipv6@four.example",
        'use the addresses of four.example: found "192.0.2.4", expected an IPv6 address',
    ),
    ("strange.example", 'use the addresses of strange.example: found "not an address", expected an IPv4 or IPv6'),
    ("x" * 300 + ":80", f'use this address: found "{"x" * 57}...", expected ADDRESS[:PORT], '),
    ("192.0.2.1 weight 257", 'use this weight: found "257", expected a number from 0 to 256'),
    ("192.0.2.1 weight", "use weight alone: found nothing, expected a value after it"),
    (
        "192.0.2.1:80 agent-check agent-port 3",
        'use this word: found "agent-check", expected a word that belongs here; this version does not have it',
    ),
    (
        "192.0.2.1 check",
        "check this server: found no port, expected one in its address or after `port`",
    ),
    ("/run/x check port 80", "use port with unix@/run/x: expected an IPv4 or IPv6 address"),
    ("192.0.2.1:80 check addr 10.1", 'use this address: found "10.1", expected an IPv4 address of four numbers'),
    ("192.0.2.1:80 inter 0", 'use this time: found "0", expected more than 0'),
    ("192.0.2.1:80 rise 0", 'use this number: found "0", expected a number from 1 to 2147483647'),
    ("192.0.2.1:80 check check", "use check twice: expected it once in a line"),
    ("192.0.2.1:80 observe layer5", 'observe this: found "layer5", expected layer4 or layer7; did you mean "layer'),
    ("192.0.2.1:80 observe layer7", "observe layer7: expected `mode = http`, which reads answers"),
    ("192.0.2.1:80 on-error mark-dwn", 'react like this: found "mark-dwn", expected fastinter, fail-check, sudden-d'),
    ("192.0.2.1:80 on-marked-down die", 'react like this: found "die", expected shutdown-sessions'),
    ("192.0.2.1:80 pool-max-conn -2", 'keep so many connections: found "-2", expected a number from 0 to 2147483647'),
    ("192.0.2.1:80 cookie a;b", 'use this cookie: found "a;b", expected a value without quotes, commas, semicolons'),
    (
        "192.0.2.1:80 send-prxy",
        'use this word: found "send-prxy", expected a word that belongs here; did you mean "send-proxy"?',
    ),
    (
        "192.0.2.1:80 wieght 3 backup",
        'use this word: found "wieght", expected a word that belongs here; did you mean "weight"?',
    ),
    ("unix@x", 'use this path: found "x", expected an absolute path, beginning with /'),
    ("/" + "x" * 107, "use this path: found 108 bytes, expected at most 107"),
]


@pytest.mark.parametrize(("value", "message"), SERVER)
def test_server(value: str, message: str) -> None:
    (problem,) = problems_of(f"{REST}[backend b]\nserver one = {value}\n")
    assert problem.startswith(f"1.conf:6: [backend b] server one: cannot {message}")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            "server a 192.0.2.1:80 check",
            'server: cannot read this server: found "server a 192.0.2.1:80 check", expected `server a = 192.0.2.1:80 '
            "check`",
        ),
        (
            "server = a 192.0.2.1:80",
            'server: cannot read this server: found "server a 192.0.2.1:80", expected `server a = 192.0.2.1:80`',
        ),
        ("server a", 'server: cannot read this server: found "server a", expected `server a = ADDRESS:PORT`'),
        ("server", 'server: cannot read this server: found "server", expected `server NAME = ADDRESS:PORT`'),
        (
            "server a/b = 192.0.2.1",
            'server a/b: cannot name a server like this: found "a/b", expected letters, digits and . _ : - only',
        ),
        (
            "balance = rondrobin",
            'balance: cannot balance like this: found "rondrobin", expected roundrobin, static-rr, leastconn, first, '
            'source, uri, hdr or random; did you mean "roundrobin"?',
        ),
        ("balance = url_param(x)", 'balance: cannot balance like this: found "url_param(x)", expected roundrobin, '),
        ("balance = hdr", 'balance: cannot balance like this: found "hdr", expected hdr(NAME)'),
        ("balance = hdr()", 'balance: cannot balance like this: found "hdr()", expected hdr(NAME)'),
        ("balance = hdr(a b)", 'balance: cannot balance like this: found "hdr(a b)", expected roundrobin, static-rr'),
        (
            "balance = uri path-only",
            'balance: cannot use this word: found "path-only", expected whole, len N or depth N',
        ),
        ("balance = uri len", 'balance: cannot use this word: found "len", expected a number after it'),
        ("balance = random(0)", 'balance: cannot use this draw: found "0", expected a number from 1 to 65535'),
        ("balance = source x", 'balance: cannot use more words: found "x", expected nothing after source'),
        ("mode = htp", 'mode: cannot use this mode: found "htp", expected tcp or http; did you mean "http"?'),
        ("bind = :1", "bind: cannot use this option in a [backend] section: expected it in [listen] or [frontend]"),
        ("retries = x", 'retries: cannot use this number: found "x", expected a number from 0 to 65535'),
        ("option redispatch = 3", 'option redispatch: cannot set this switch: found "3", expected on or off'),
        (
            "no option redispatch = on",
            'no option redispatch: cannot use this option with a value: found "on", expected `no option redispatch` '
            "alone, or `option redispatch = off`",
        ),
        ("option httpchk GET /", 'option httpchk: cannot read this option: found "option httpchk GET /", expected '),
        ("option tcp-check", "option: cannot use this option: leave it out: `check` in a server line connects, unless"),
        ("timeout client = 2s", "timeout client: cannot use this option in a [backend] section: expected it in [defau"),
        ("Balance = source", 'Balance: cannot use this option: found "Balance", expected an option of [backend]; did'),
        (
            "http-request deny if x",
            'http-request: cannot read this option: found "http-request deny if x", expected `http-request = deny if '
            "x`",
        ),
        (
            "http-request set-header a b=c",
            'http-request: cannot read this option: found "http-request set-header a b = c", expected `http-request = '
            "set-header a b = c`",
        ),
        ("http-after-response = x", "http-after-response: cannot use this option: this version does not have it"),
    ],
)
def test_backend(line: str, message: str) -> None:
    (problem,) = problems_of(f"{REST}[backend b]\n{line}\n")
    assert problem.startswith(f"1.conf:6: [backend b] {message}")


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (
            "[fronted x]",
            ': [fronted x]: cannot use this section: found "fronted", expected [global], [defaults], [listen NAME], '
            '[frontend NAME] or [backend NAME]; did you mean "frontend"?',
        ),
        ("[peers x]", ': [peers x]: cannot use this section: found "peers", expected [global], [defaults], [listen NA'),
        ("[]", ": []: cannot use this section: found nothing, expected [global]"),
        ("[frontend]", ": [frontend]: cannot use this section without a name: expected [frontend NAME]"),
        ("[global x]", ': [global x]: cannot name this section: found "x", expected [global] alone'),
        (
            "[frontend a b]",
            ': [frontend a b]: cannot name a frontend like this: found "a b", expected letters, digits and . _ : - o',
        ),
        ("[frontend a", ': cannot read this section header: found "[frontend a", expected [KIND] or [KIND NAME]'),
        ("[frontend a] x", ': cannot read this section header: found "[frontend a] x", expected [KIND] or [KIND NAME]'),
        ("[frontend a # b]", ": cannot read this section header: found"),
        ("= 3", ': cannot read this line: found "= 3", expected OPTION = VALUE'),
        ("x\x00y", ": cannot read this line: found the control character 0x00, expected text"),
        ("x\ry", ": cannot read this line: found the control character 0x0d, expected text"),
        ("\x1b[31m", ": cannot read this line: found the control character 0x1b, expected text"),
    ],
)
def test_lines_that_are_no_option(header: str, message: str) -> None:
    problems = problems_of(f"{REST}{header}\n")
    assert len(problems) == 1
    assert problems[0].startswith(f"1.conf:5{message}")


def test_indented_header() -> None:
    (problem,) = problems_of(f"{REST}[backend b]\n  [listen x]\n")
    assert problem == (
        '1.conf:6: [backend b]: cannot read this section header: found "[listen x]", expected [KIND] or [KIND NAME], '
        "beginning at the left margin"
    )


def test_haproxys_own_headers() -> None:
    haproxy = "global\n    maxconn 4\nfrontend www\n    bind :80\n"
    assert problems_of(haproxy) == [
        '1.conf:1: cannot use "global" here: expected [global]',
        '1.conf:3: cannot use "frontend www" here: expected [frontend www]',
    ]
    assert problems_of("[defaults]\n" + haproxy + REST) == [
        '1.conf:2: [defaults]: cannot read this section header: found "global", expected [global]',
        '1.conf:4: [defaults]: cannot read this section header: found "frontend www", expected [frontend www]',
    ]


def test_option_before_any_section() -> None:
    (problem,) = problems_of("\nworkers = 3\n" + REST)
    assert problem == '1.conf:2: cannot use "workers" here: expected a section header before it, as in [global]'


def test_same_option_twice_in_a_file() -> None:
    assert problems_of(
        "[global]\nmaxconn = 1\nmaxconn = 2\nmaxconn = 3\n[listen a]\nbind = :1\nbind = :2\nserver s = 192.0.2.1\n"
        "server s = 192.0.2.2\noption redispatch\nno option redispatch\n"
    ) == [
        "1.conf:3: [global] maxconn: cannot give this option twice: expected it once in a section, and it stands at "
        "1.conf:2",
        "1.conf:4: [global] maxconn: cannot give this option twice: expected it once in a section, and it stands at "
        "1.conf:2",
        "1.conf:7: [listen a] bind: cannot give this option twice: expected it once in a section, and it stands at "
        "1.conf:6; write further lines below it, indented deeper",
        "1.conf:9: [listen a] server s: cannot give this option twice: expected it once in a section, and it stands at "
        "1.conf:8",
        "1.conf:11: [listen a] no option redispatch: cannot give this option twice: expected it once in a section, and "
        "it stands at 1.conf:10",
    ]


def test_same_section_twice_in_a_file() -> None:
    assert problems_of(f"[defaults]\n[defaults]\n{REST}[listen rest]\nmaxconn = 3\n") == [
        "1.conf:2: [defaults]: cannot begin this section again: expected it once in a file, and it began at 1.conf:1",
        "1.conf:7: [listen rest]: cannot begin this section again: expected it once in a file, and it began at "
        "1.conf:4",
    ]


def test_names_that_clash() -> None:
    (problem,) = problems_of(
        f"{REST}[frontend x]\nbind = :1\ndefault_backend = x\n[backend x]\n", "[backend rest]\nserver a = 192.0.2.1\n"
    )
    assert problem == (
        "2.conf:1: [backend rest]: cannot use the name rest twice: expected another than that of [listen rest] at "
        "1.conf:2"
    )


def test_option_that_is_continued_by_mistake() -> None:
    (problem,) = problems_of(f"{REST}[backend b]\n  balance = source\n    server a = 192.0.2.1\n")
    assert problem == (
        '1.conf:7: [backend b] balance: cannot continue this option on a further line: found "server a = 192.0.2.1", '
        "expected nothing; a line that is indented deeper than the one above continues it"
    )


def test_switch_that_is_continued() -> None:
    (problem,) = problems_of(f"{REST}[backend b]\n  option redispatch\n    on\n      off\n")
    assert problem.startswith("1.conf:8: [backend b] option redispatch: cannot continue this option")


def test_frontend_checks() -> None:
    assert problems_of(
        "[frontend a]\n[frontend b]\nbind = :1\ndefault_backend = ap\n[listen c]\nserver s = 192.0.2.1\n"
        "[backend app]\n[frontend d]\nbind = :2\ndefault_backend = zzzzzzz\n"
    ) == [
        "1.conf:1: [frontend a]: cannot accept anything: found no bind, expected at least one",
        "1.conf:1: [frontend a]: cannot pass connections on: found no default_backend, expected one here or in "
        "[defaults]",
        '1.conf:4: [frontend b] default_backend: cannot use this backend: found "ap", expected the name of a [backend] '
        'or [listen] section; did you mean "app"?',
        "1.conf:5: [listen c]: cannot accept anything: found no bind, expected at least one; write [backend NAME] for "
        "servers alone",
        '1.conf:10: [frontend d] default_backend: cannot use this backend: found "zzzzzzz", expected the name of a '
        "[backend] or [listen] section",
    ]


def test_wrong_default_backend_in_defaults_is_told_once() -> None:
    (problem,) = problems_of(
        "[defaults]\ndefault_backend = nowhere\n[frontend a]\nbind = :1\n[frontend b]\nbind = :2\n"
    )
    assert problem.startswith("1.conf:2: [defaults] default_backend: cannot use this backend")


def test_server_without_port_behind_a_unix_socket() -> None:
    (problem,) = problems_of("[listen a]\nbind = /run/x\n  :1\nserver s = 192.0.2.1\n")
    assert problem == (
        "1.conf:4: [listen a] server s: cannot take the port that the client connected to: [listen a] listens on a "
        "unix socket, expected ADDRESS:PORT"
    )


@pytest.mark.parametrize("text", ["", "\n\n", "# nothing", "[global]\n", "[backend b]\nserver s = 192.0.2.1\n"])
def test_nothing_to_accept(text: str) -> None:
    assert problems_of(text) == [
        "1.conf: cannot use this configuration: found no [frontend] or [listen], expected at least one"
    ]


def test_no_file() -> None:
    (problem,) = problems_of()
    assert problem.startswith("(no file): cannot use this configuration")


def test_addresses_twice() -> None:
    assert problems_of(
        "[frontend a]\nbind = *:1\n  :1\n  [0::0]:2\n  /run/x\n  sd@a\ndefault_backend = b\n"
        "[global]\nstats socket = /run/x\n[backend b]\nserver s = 192.0.2.1:1\n",
        "[frontend c]\nbind = :::2\n   /run/../run/x\n   sd@a\ndefault_backend = b\n",
    ) == [
        "1.conf:3: [frontend a] bind: cannot use 0.0.0.0:1 twice: expected an address of its own, and [frontend a] at "
        "1.conf:2 has it",
        "1.conf:5: [frontend a] bind: cannot use unix@/run/x twice: expected an address of its own, and [global] at "
        "1.conf:9 has it",
        "2.conf:2: [frontend c] bind: cannot use [::]:2 twice: expected an address of its own, and [frontend a] at "
        "1.conf:4 has it",
        "2.conf:3: [frontend c] bind: cannot use unix@/run/../run/x twice: expected an address of its own, and "
        "[global] at 1.conf:9 has it",
        "2.conf:4: [frontend c] bind: cannot use sd@a twice: expected an address of its own, and [frontend a] at "
        "1.conf:6 has it",
    ]


def test_all_problems_at_once_in_the_order_of_the_files() -> None:
    problems = problems_of(
        "[listen a]\nbind = :1 bcklog 4\nserver s = no.example wieght 4 backup nope\nmod = tcp\n[global]\nlog = x\n",
        "[global]\nworkers = 99\nmaxconn 5\n[listen a]\nretries = -1\n",
    )
    assert [problem.split(" ")[0] for problem in problems] == [
        "1.conf:2:",
        "1.conf:3:",
        "1.conf:3:",
        "1.conf:3:",
        "1.conf:4:",
        "1.conf:6:",
        "2.conf:2:",
        "2.conf:3:",
        "2.conf:5:",
    ]


def test_found_text_is_fit_for_a_terminal() -> None:
    (problem,) = problems_of(f"{REST}[backend b]\nbalance = a\u202eb\u2028c\ud800\n")
    assert 'found "a\\u202eb c\\ud800"' in problem
    assert problem.isprintable()
    (problem,) = problems_of(f"{REST}[backend b]\na\u202e{'x' * 1000} = 3\n")
    assert problem.isprintable()
    assert len(problem) < 300


def test_a_wrong_file_is_not_answered_line_by_line() -> None:
    problems = problems_of("".join(f"word {i}\n" for i in range(10 * LIMIT)))
    assert len(problems) == LIMIT + 1
    assert problems[-1] == f"cannot list every problem: reading ended after these {LIMIT}"


def test_too_many_lines() -> None:
    assert problems_of("\n" * 60_000)[0] == "1.conf: cannot read: found 60001 lines, expected at most 50000"
