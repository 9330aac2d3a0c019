"""The `stats` options of proxies and `use-service`: their values, whom they are inherited by, and what is told of wrong
ones. haproxy is asked what it thinks of the same."""

# One message a line, as the reader has them.
# ruff: noqa: E501

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from hitlessd.config import parse
from hitlessd.errors import ConfigError
from hitlessd.model import Acl, Condition, Config, HttpRule, SourceFile, StatsPage, Term, Where
from tests.support.beside import for_haproxy
from tests.support.fronts import HAPROXY

TIMES = "timeout connect = 5s\ntimeout client = 5s\ntimeout server = 5s\n"
HEAD = (
    f"[defaults]\nmode = http\n{TIMES}[listen l]\nbind = 127.0.0.1:9\nserver s = 192.0.2.1:1\nacl api = path_beg /api\n"
)
FIRST = 1 + HEAD.count("\n")


def read(text: str) -> Config:
    return parse([SourceFile("1.conf", text)])


def page_of(lines: str) -> StatsPage | None:
    """Of a [listen] with these lines; both halves have the same."""
    config = read(HEAD + lines + "\n")
    assert config.warnings == ()
    assert config.frontends[0].stats == config.backends[0].stats
    return config.frontends[0].stats


def problems(text: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        read(text)
    return str(caught.value).splitlines()


def haproxy(directory: Path, text: str) -> tuple[bool, list[str]]:
    """Whether haproxy accepts the same, and its warnings."""
    file = directory / "haproxy.cfg"
    file.write_text(for_haproxy(text) + "\n")
    done = subprocess.run([HAPROXY, "-c", "-f", str(file)], capture_output=True, text=True, timeout=20, check=False)
    return done.returncode == 0, [line for line in done.stderr.splitlines() if line.startswith("[WARNING]")]


HERE = Where("1.conf", FIRST)


@pytest.mark.parametrize(
    ("lines", "page"),
    [
        ("stats enable", StatsPage(where=HERE)),
        ("stats enable = on", StatsPage(where=HERE)),
        ("stats enable = off", None),
        ("stats uri = /a?b;c", StatsPage(uri="/a?b;c", where=HERE)),
        ("stats realm = My Realm", StatsPage(realm="My Realm", where=HERE)),
        ("stats realm = My\\ Realm", StatsPage(realm="My Realm", where=HERE)),
        ("stats auth = u:p:q", StatsPage(auth=(("u", "p:q"),), where=HERE)),
        ("stats auth = u:\n  'a b:c d'", StatsPage(auth=(("u", ""), ("a b", "c d")), where=HERE)),
        ("stats refresh = 5", StatsPage(refresh=5.0, where=HERE)),
        ("stats refresh = 500ms", StatsPage(refresh=0.5, where=HERE)),
        ("stats refresh = 0", StatsPage(where=HERE)),
        ("stats hide-version", StatsPage(hide_version=True, where=HERE)),
        ("stats hide-version = off", StatsPage(where=HERE)),
        ("stats scope = .\n  b\n  b", StatsPage(scope=(".", "b"), where=HERE)),
        ("stats show-desc = All of  it", StatsPage(description="All of it", where=HERE)),
        ("stats show-node = n.1", StatsPage(node="n.1", where=HERE)),
        ("stats show-node", StatsPage(node=os.uname().nodename, where=HERE)),
        ("stats show-legends", StatsPage(where=HERE)),
        ("stats show-modules", StatsPage(where=HERE)),
        ("stats enable = off\nstats uri = /x", None),
    ],
)
def test_values(lines: str, page: StatsPage | None) -> None:
    assert page_of(lines) == page


def test_admin() -> None:
    found = page_of("stats admin = unless api or { src 127.0.0.1 }")
    assert found
    api = Acl("path_beg", values=("/api",), name="api", where=Where("1.conf", FIRST - 1))
    src = Acl("src", values=("127.0.0.1",), where=HERE)
    assert found.admin == Condition(((Term((api,)),), (Term((src,)),)), unless=True)


def test_admin_may_use_acls_that_stand_behind_it() -> None:
    found = page_of("stats admin = if later\nacl later = src 127.0.0.1")
    assert found
    assert found.admin is not None


def test_use_service() -> None:
    (rule,) = read(HEAD + "http-request = use-service prometheus-exporter if api\n").frontends[0].http_request
    assert (rule.action, rule.name, rule.condition is not None) == ("use-service", "prometheus-exporter", True)
    assert HttpRule("use-service", "prometheus-exporter").condition is None


def test_whoever_says_something_inherits_nothing() -> None:
    """As with HAProxy."""
    config = read(
        f"[defaults]\nmode = http\n{TIMES}stats uri = /d\nstats auth = u:p\n"
        "[listen a]\nbind = :1\n[listen b]\nbind = :2\nstats uri = /b\n[listen c]\nbind = :3\nstats enable = off\n"
    )
    assert [(each.stats.uri, each.stats.auth) if each.stats else None for each in config.frontends] == [
        ("/d", (("u", "p"),)),
        ("/b", ()),
        None,
    ]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (
            "stats enabl",
            'stats enabl: cannot use this option: found "stats enabl", expected an option of [listen]; did you mean "stats enable"?',
        ),
        ("stats enable = maybe", 'stats enable: cannot set this switch: found "maybe", expected on or off'),
        ("stats uri", "stats uri: cannot use this option without a value: expected `stats uri = VALUE`"),
        (
            "stats uri /stats",
            'stats uri: cannot read this option: found "stats uri /stats", expected `stats uri = /stats`',
        ),
        ("stats uri = stats", 'stats uri: cannot use this uri: found "stats", expected a path, beginning with /'),
        ("stats uri = /a b", 'stats uri: cannot use this uri: found "/a b", expected one path, as in /stats'),
        (
            "stats uri = /\u00e4",
            'stats uri: cannot use this uri: found "/\u00e4", expected visible ASCII characters, and no #',
        ),
        (
            "stats realm = a\\nb",
            'stats realm: cannot use this realm: found "a\\nb", expected text without control characters',
        ),
        ("stats auth = user", 'stats auth: cannot use this account: found "user", expected USER:PASSWORD'),
        (
            "stats auth = u:p v:q",
            'stats auth: cannot use this account: found "u:p v:q", expected USER:PASSWORD, in quotes if it has blanks',
        ),
        (
            "stats auth = u:p\n  u:q",
            'stats auth: cannot give this user twice: found "u", expected one password for each',
        ),
        (
            "stats admin = iff api",
            'stats admin: cannot use this word: found "iff", expected if or unless, and a condition, as in `stats admin = if { src 127.0.0.1 }`; did you mean "if"?',
        ),
        (
            "stats admin = if apj",
            'stats admin: cannot use this acl: found "apj", expected the name of an acl of this section; did you mean "api"?',
        ),
        (
            "stats admin = if { status 200 }",
            'stats admin: cannot ask for this here: found "status", expected a criterion that is known once a request has been read, in `mode = http`',
        ),
        (
            "stats refresh = soon",
            'stats refresh: cannot use this time: found "soon", expected a whole number with us, ms, s, m, h or d, as in 500ms or 2s',
        ),
        (
            "stats scope = a/b",
            'stats scope: cannot show this proxy: found "a/b", expected the name of a proxy, or . for this one',
        ),
        (
            "stats show-node = a/b",
            'stats show-node: cannot show this node: found "a/b", expected letters, digits and . _ - only, at most 63',
        ),
        (
            "stats show-desc",
            "stats show-desc: cannot use this option without a value: expected `stats show-desc = VALUE`",
        ),
        (
            "stats http-request = deny",
            "stats http-request: cannot use this option: use `http-request = deny ...` with the page's path",
        ),
        (
            "http-request = use-service",
            "http-request: cannot use this service: found nothing, expected prometheus-exporter",
        ),
        (
            "http-request = use-service prometheus",
            'http-request: cannot use this service: found "prometheus", expected prometheus-exporter; did you mean "prometheus-exporter"?',
        ),
        (
            "http-response = use-service prometheus-exporter",
            'http-response: cannot use this action: found "use-service", expected one of allow, deny, set-header, add-header, del-header, redirect, return',
        ),
    ],
)
def test_mistakes(lines: str, message: str) -> None:
    (problem,) = problems(HEAD + lines + "\n")
    line = FIRST + lines.count("\n")
    assert problem == f"1.conf:{line}: [listen l] {message}"


@pytest.mark.parametrize("option", ["admin = if TRUE", "http-request = deny"])
def test_not_in_defaults(tmp_path: Path, option: str) -> None:
    text = f"[defaults]\nmode = http\n{TIMES}stats {option}\n[listen l]\nbind = 127.0.0.1:9\n"
    assert len(problems(text)) == 1
    assert haproxy(tmp_path, text)[0] is False


@pytest.mark.parametrize("inherited", [False, True])
def test_without_http_mode(tmp_path: Path, inherited: bool) -> None:
    """It is warned of, inherited or not."""
    sections = ["[listen l]\nbind = 127.0.0.1:9\nserver s = 192.0.2.1:1\n", "[backend b]\nserver s = 192.0.2.1:1\n"]
    head = f"[defaults]\nmode = tcp\n{TIMES}"
    if inherited:
        text = head + "stats enable\n" + "".join(sections)
    else:
        text = head + "".join(section + "stats uri = /x\n" for section in sections)
    config = read(text)
    assert [warning.partition(": ")[2] for warning in config.warnings] == [
        "[listen l]: stats is ignored: it needs `mode = http`",
        "[backend b]: stats is ignored: it needs `mode = http`",
    ]
    assert not any(frontend.stats for frontend in config.frontends)
    assert not any(backend.stats for backend in config.backends)
    accepted, warnings = haproxy(tmp_path, text)
    assert accepted
    assert len(warnings) == 2


def test_one_name_has_one_page() -> None:
    """Workers name the proxy whose page is asked for, and nobody may get the wrong one."""
    text = (
        f"[defaults]\nmode = http\n{TIMES}[frontend l]\nbind = :1\nstats uri = /a\ndefault_backend = l\n[backend l]\n"
    )
    assert problems(text + "stats uri = /b\nstats auth = u:p\n") == [
        "1.conf:11: [backend l] stats: cannot have another page than that of [frontend l] at 1.conf:8: expected another name, or one page"
    ]
    inherited = read(text.replace("mode = http\n", "mode = http\nstats uri = /b\n").replace("stats uri = /a\n", ""))
    assert inherited.frontends[0].stats == inherited.backends[0].stats


@pytest.mark.parametrize(
    "line", ["stats enable", "http-request = use-service prometheus-exporter if { path /metrics }"]
)
def test_needs_no_server(tmp_path: Path, line: str) -> None:
    text = f"[defaults]\nmode = http\n{TIMES}[listen l]\nbind = 127.0.0.1:9\n{line}\n"
    assert read(text).warnings == ()
    assert haproxy(tmp_path, text) == (True, [])


@pytest.mark.parametrize(
    ("lines", "valid"),
    [
        ("stats enable\nstats uri = /x\nstats realm = My\\ Realm\nstats auth = u:p\n  v:\nstats refresh = 5", True),
        ("stats hide-version\nstats scope = .\n  l\nstats show-desc = all of it\nstats show-node = n1", True),
        ("stats show-node\nstats show-legends\nstats show-modules\nstats admin = if api", True),
        ("stats enabl", False),
        ("stats admin = iff TRUE", False),
        ("stats admin = if apj", False),
        ("stats refresh = soon", False),
        ("stats show-node = a/b", False),
        ("http-request = use-service prometheus-exporter if api", True),
        ("http-request = use-service prometheus", False),
        ("http-response = use-service prometheus-exporter", False),
    ],
)
def test_haproxy_thinks_the_same(tmp_path: Path, lines: str, valid: bool) -> None:
    text = HEAD + lines + "\n"
    assert haproxy(tmp_path, text)[0] is valid
    if valid:
        assert read(text).warnings == ()
    else:
        assert problems(text)
