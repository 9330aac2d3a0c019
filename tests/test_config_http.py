"""What the options of HTTP mode, of rules, checks and balancing mean: each one's value in the model."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from hitlessd.config import load, parse
from hitlessd.errors import ConfigError
from hitlessd.main.store import State
from hitlessd.model import (
    Acl,
    Backend,
    Check,
    Condition,
    Config,
    Cookie,
    Expectation,
    ForwardFor,
    Frontend,
    HttpCheck,
    HttpRule,
    InetAddress,
    LogTarget,
    Server,
    SourceFile,
    TcpRule,
    Term,
    UnixAddress,
    UseBackend,
    Where,
)

TIMEOUTS = "timeout connect = 5s\ntimeout client = 1m\ntimeout server = 1m\n"


def read(*texts: str) -> Config:
    return parse(
        [SourceFile(f"{i}.conf", text) for i, text in enumerate(texts, 1)], resolver=lambda host: ["192.0.2.9"]
    )


def frontend(lines: str, mode: str = "http") -> Frontend:
    config = read(
        f"[defaults]\n{TIMEOUTS}mode = {mode}\n[frontend f]\nbind = :1\ndefault_backend = b\n{lines}\n"
        "[backend b]\nserver s = 192.0.2.1:1\n[backend c]\nserver s = 192.0.2.1:1\n"
    )
    assert config.warnings == ()
    return config.frontends[0]


def backend(lines: str, mode: str = "http") -> Backend:
    config = read(f"[defaults]\n{TIMEOUTS}mode = {mode}\n[listen b]\nbind = :1\n{lines}\n")
    assert config.warnings == ()
    return config.backends[0]


def server(words: str, mode: str = "http") -> Server:
    return backend(f"server s = 192.0.2.1:80 {words}", mode).servers[0]


def rules(*lines: str) -> list[HttpRule]:
    """Without their places."""
    found = frontend("http-request = " + "\n  ".join(lines)).http_request
    return [plain(rule) for rule in found]


def plain(rule: HttpRule) -> HttpRule:
    return HttpRule(
        rule.action, rule.name, rule.value, rule.status, rule.content_type, rule.headers, rule.body, rule.condition
    )


def test_mode_is_inherited() -> None:
    config = read(
        "[defaults]\nmode = http\n" + TIMEOUTS + "[frontend f]\nbind = :1\n[listen l]\nbind = :2\nmode = tcp\n"
        "server s = 192.0.2.1:1\n"
    )
    assert [each.mode for each in config.frontends] == ["http", "tcp"]
    assert config.frontends[0].default_backend == ""
    assert config.backends[0].mode == "tcp"


@pytest.mark.parametrize(
    ("line", "field", "value"),
    [
        ("option httplog", "httplog", True),
        ("option jsonlog", "log_json", True),
        ("option tcplog", "tcplog", True),
        ('log-format = "a  b # c"', "log_format", "a  b # c"),
        ("log-format = a  b", "log_format", "a b"),
        ("log-format = a\\ b", "log_format", "a\\ b"),
        ("log-format = 'a \"b\"'", "log_format", 'a "b"'),
        ("rate-limit sessions = 100", "rate_limit", 100),
        ("option httpclose", "httpclose", True),
        ("option forwardfor", "forwardfor", ForwardFor()),
        ("option forwardfor = on", "forwardfor", ForwardFor()),
        ("option forwardfor = off", "forwardfor", None),
        ("no option forwardfor", "forwardfor", None),
        (
            "option forwardfor = except 127.0.0.0/8 header X-Client if-none",
            "forwardfor",
            ForwardFor("X-Client", "127.0.0.0/8", True),
        ),
        ("tcp-request = inspect-delay 5s", "inspect_delay", 5.0),
        ("tcp-request = content accept if { req_ssl_hello_type 1 }", "tcp_rules", ()),
        ("errorfile = 503 /dev/null", "errorfiles", ((503, b""),)),
    ],
)
def test_frontend(line: str, field: str, value: Any) -> None:
    assert getattr(frontend(line), field) == value


@pytest.mark.parametrize(
    ("line", "fields"),
    [
        ("balance = static-rr", {"balance": "static-rr"}),
        ("balance = first", {"balance": "first"}),
        ("balance = uri", {"balance": "uri", "balance_uri_len": 0, "balance_uri_depth": 0, "balance_uri_whole": False}),
        (
            "balance = uri whole len 20 depth 3",
            {"balance": "uri", "balance_uri_len": 20, "balance_uri_depth": 3, "balance_uri_whole": True},
        ),
        ("balance = hdr(X-User)", {"balance": "hdr", "balance_header": "X-User"}),
        ("balance = random", {"balance": "random", "balance_draws": 2}),
        ("balance = random(3)", {"balance": "random", "balance_draws": 3}),
        ("hash-type = consistent", {"hash_consistent": True}),
        ("hash-type = map-based", {"hash_consistent": False}),
        ("http-reuse = always", {"http_reuse": "always"}),
        ("option abortonclose", {"abortonclose": True}),
        ("cookie = SRV insert", {"cookie": Cookie("SRV")}),
        (
            "cookie = SRV insert indirect nocache httponly secure postonly preserve domain .a domain b attr X=Y",
            {"cookie": Cookie("SRV", "insert", True, True, True, True, True, True, (".a", "b"), ("X=Y",))},
        ),
        ("cookie = JSESSIONID prefix nocache", {"cookie": Cookie("JSESSIONID", "prefix", nocache=True)}),
        ("option httpchk", {"http_check": HttpCheck()}),
        ("option httpchk = /x", {"http_check": HttpCheck(uri="/x")}),
        ("option httpchk = HEAD /x", {"http_check": HttpCheck("HEAD", "/x")}),
        ("option httpchk = GET /x HTTP/1.1", {"http_check": HttpCheck("GET", "/x", "HTTP/1.1")}),
        ("no option httpchk", {"http_check": None}),
        (
            "option httpchk\nhttp-check = send meth GET uri /h?a=b ver HTTP/1.1 hdr Host www.example.net hdr "
            'Connection close hdr X-A "50%% b" body x\n  expect ! status 200-299,404\n  expect !rstring "a b"\n'
            "  expect hdr name X\n  expect hdr name X value Y",
            {
                "http_check": HttpCheck(
                    "GET",
                    "/h?a=b",
                    "HTTP/1.1",
                    (("Host", "www.example.net"), ("X-A", "50% b")),
                    "x",
                    (
                        Expectation("status", "200-299,404", "", True),
                        Expectation("rstring", "a b", "", True),
                        Expectation("hdr", "", "X"),
                        Expectation("hdr", "Y", "X"),
                    ),
                )
            },
        ),
    ],
)
def test_backend(line: str, fields: dict[str, Any]) -> None:
    found = backend(line + "\nserver s = 192.0.2.1:1")
    assert {name: getattr(found, name) for name in fields} == fields


@pytest.mark.parametrize(
    ("words", "fields"),
    [
        ("check", {"check": Check()}),
        (
            "check inter 5s fastinter 500ms downinter 1m rise 1 fall 5",
            {"check": Check(5.0, 0.5, 60.0, 1, 5)},
        ),
        ("inter 5s", {"check": None}),
        ("check port 81", {"check": Check(address=InetAddress("192.0.2.1", 81))}),
        ("check addr 192.0.2.2", {"check": Check(address=InetAddress("192.0.2.2", 80))}),
        ("check addr 192.0.2.2:82", {"check": Check(address=InetAddress("192.0.2.2", 82))}),
        ("check addr 2001:db8::2 port 81", {"check": Check(address=InetAddress("2001:db8::2", 81))}),
        ("check addr /run/x", {"check": Check(address=UnixAddress("/run/x"))}),
        ("check send-proxy", {"send_proxy": 1, "check": Check(send_proxy=1)}),
        ("check send-proxy-v2", {"send_proxy": 2, "check": Check(send_proxy=2)}),
        ("check check-send-proxy", {"send_proxy": 0, "check": Check(send_proxy=1)}),
        ("check send-proxy-v2 port 81", {"check": Check(address=InetAddress("192.0.2.1", 81))}),
        (
            "check send-proxy-v2 check-send-proxy port 81",
            {"check": Check(address=InetAddress("192.0.2.1", 81), send_proxy=2)},
        ),
        ("slowstart 30s cookie abc", {"slowstart": 30.0, "cookie": "abc"}),
        (
            "observe layer7 error-limit 3 on-error mark-down on-marked-down shutdown-sessions",
            {"observe": "layer7", "error_limit": 3, "on_error": "mark-down", "on_marked_down": "shutdown-sessions"},
        ),
        ("pool-max-conn 10 pool-purge-delay 1m", {"pool_max_conn": 10, "pool_purge_delay": 60.0}),
        ("pool-max-conn -1", {"pool_max_conn": -1}),
    ],
)
def test_server(words: str, fields: dict[str, Any]) -> None:
    found = server(words)
    assert {name: getattr(found, name) for name in fields} == fields


def test_default_server() -> None:
    config = read(
        f"[defaults]\n{TIMEOUTS}default-server = check inter 1s weight 7\n"
        "[backend b]\nserver a = 192.0.2.1:1\ndefault-server = fall 9 weight 3 backup\n  rise 4\n"
        "server c = 192.0.2.1:1 weight 5 no-check no-backup\n[backend d]\nserver a = 192.0.2.1:1\n"
        "[frontend f]\nbind = :1\ndefault_backend = b\n"
    )
    first, second = config.backends[0].servers
    assert (first.weight, first.backup, first.check) == (3, True, Check(1.0, rise=4, fall=9))
    assert (second.weight, second.backup, second.check) == (5, False, None)
    assert config.backends[1].servers[0].check == Check(1.0)
    assert config.backends[1].servers[0].weight == 7


def test_accept_proxy() -> None:
    binds = frontend("").binds + read("[listen l]\nbind = sd@x accept-proxy\nserver s = /run/x\n").frontends[0].binds
    assert [bind.accept_proxy for bind in binds] == [False, True]


def test_timeouts() -> None:
    found = backend("timeout http-request = 10s\ntimeout http-keep-alive = 5s\ntimeout check = 3s\nserver s = /run/x")
    assert (found.timeouts.http_request, found.timeouts.http_keep_alive, found.timeouts.check) == (10.0, 5.0, 3.0)


@pytest.mark.parametrize(
    ("value", "target"),
    [
        ("192.0.2.1 local0", LogTarget("syslog", "info", InetAddress("192.0.2.1", 514), "local0")),
        ("udp@192.0.2.1:5140 daemon notice", LogTarget("syslog", "notice", InetAddress("192.0.2.1", 5140), "daemon")),
        ("[2001:db8::1]:514 local7", LogTarget("syslog", "info", InetAddress("2001:db8::1", 514), "local7")),
        ("/run/log.sock user", LogTarget("syslog", "info", UnixAddress("/run/log.sock"), "user")),
        ("log.example.net local0", LogTarget("syslog", "info", InetAddress("192.0.2.9", 514), "local0")),
        ("/dev/log local0 notice", LogTarget("journal", "notice")),
    ],
)
def test_log(value: str, target: LogTarget) -> None:
    config = read(f"[global]\nlog = {value}\n[listen a]\nbind = :1\nserver s = /run/x\n")
    assert config.global_.log == target


def test_conditions() -> None:
    found = frontend(
        "acl api = path_beg /api /v2\n  hdr(Host,1) -i -m str A.example\nacl one = src 10.0.0.0/8 ::1\n"
        "use_backend = c if api !one or ! { path -- -i } !{ method POST }\n  b unless TRUE\n  c"
    )
    api = (
        Acl("path_beg", values=("/api", "/v2"), name="api", where=Where("1.conf", 9)),
        Acl("hdr", "Host,1", True, ("A.example",), "api", Where("1.conf", 10), "str"),
    )
    one = (Acl("src", values=("10.0.0.0/8", "::1"), name="one", where=Where("1.conf", 11)),)
    where = Where("1.conf", 12)
    assert found.use_backend == (
        UseBackend(
            "c",
            Condition(
                (
                    (Term(api), Term(one, True)),
                    (
                        Term((Acl("path", values=("-i",), where=where),), True),
                        Term((Acl("method", values=("POST",), where=where),), True),
                    ),
                )
            ),
            where,
        ),
        UseBackend(
            "b", Condition(((Term((Acl("always_true", name="TRUE"),)),),), unless=True), Where("1.conf", 13)
        ),
        UseBackend("c", None, Where("1.conf", 14)),
    )  # fmt: skip


def test_tcp_rules() -> None:
    found = frontend(
        "acl bad = src 192.0.2.0/24\ntcp-request = connection accept if LOCALHOST\n  connection reject if bad\n"
        "  inspect-delay 5s\nuse_backend = c if { req.ssl_sni -m end .example.net }",
        "tcp",
    )
    assert [rule.action for rule in found.tcp_rules] == ["accept", "reject"]
    assert isinstance(found.tcp_rules[0], TcpRule)
    assert found.use_backend[0].condition == Condition(
        ((Term((Acl("req.ssl_sni", values=(".example.net",), where=Where("1.conf", 13), match="end"),)),),)
    )


def test_http_rules(tmp_path: Path) -> None:
    page = tmp_path / "page"
    page.write_bytes(b"\xff page")
    assert rules(
        "allow",
        "deny",
        "deny deny_status 429",
        "deny status 418 content-type text/plain string \"tea  pot; #1\"",
        'set-header X-A "a \\"b\\" \\x41 \\. 50%%"',
        "add-header X-B ''",
        "del-header X-C",
        "redirect location /x",
        "redirect code 301 prefix https://a",
        "redirect scheme https code 308",
        "return",
        "return status 204",
        f"return content-type a/b file {page} hdr X-A b hdr X-C 'd e'",
        "return content-type a/b lf-string 'a%%'",
    ) == [
        HttpRule("allow"),
        HttpRule("deny", status=403),
        HttpRule("deny", status=429),
        HttpRule("deny", status=418, content_type="text/plain", body=b"tea  pot; #1"),
        HttpRule("set-header", "X-A", 'a "b" A \\. 50%%'),
        HttpRule("add-header", "X-B", ""),
        HttpRule("del-header", "X-C"),
        HttpRule("redirect", "location", "/x", 302),
        HttpRule("redirect", "prefix", "https://a", 301),
        HttpRule("redirect", "scheme", "https", 308),
        HttpRule("return", status=200),
        HttpRule("return", status=204),
        HttpRule("return", "", "", 200, "a/b", (("X-A", "b"), ("X-C", "d e")), b"\xff page"),
        HttpRule("return", "", "a%%", 200, "a/b"),
    ]  # fmt: skip


def test_rules_have_conditions_and_places() -> None:
    found = frontend("http-request = deny if { path /x }\nhttp-response = set-header A b unless { status 200:299 }")
    condition = Condition(((Term((Acl("path", values=("/x",), where=Where("1.conf", 9)),)),),))
    assert found.http_request == (HttpRule("deny", status=403, condition=condition, where=Where("1.conf", 9)),)
    assert found.http_response[0].where == Where("1.conf", 10)
    assert found.http_response[0].condition is not None
    assert found.http_response[0].condition.unless


def test_inheritance() -> None:
    config = read(
        f"[defaults]\n{TIMEOUTS}mode = http\noption httplog\noption forwardfor\nerrorfile = 503 /dev/null\n  400 "
        "/dev/null\nbalance = uri len 3\nhash-type = consistent\ncookie = A insert\nhttp-reuse = never\n"
        "option httpchk = /a\nhttp-check = expect status 200\nrate-limit sessions = 3\n"
        "[listen a]\nbind = :1\nserver s = /run/x\n"
        "[listen b]\nbind = :2\nserver s = /run/x\nno option forwardfor\nlog-format = x\nno option httpchk\n"
        "[listen c]\nbind = :3\nserver s = /run/x\noption tcplog\nhttp-check = expect string x\n"
    )
    a, b, c = config.frontends
    first, second, third = config.backends
    assert (a.httplog, b.httplog, c.httplog, c.tcplog, b.log_format) == (True, False, False, True, "x")
    assert (a.forwardfor, b.forwardfor) == (ForwardFor(), None)
    assert a.errorfiles == ((400, b""), (503, b""))
    assert (a.rate_limit, first.balance, first.balance_uri_len) == (3, "uri", 3)
    assert (first.hash_consistent, first.cookie, first.http_reuse) == (True, Cookie("A"), "never")
    assert first.http_check == HttpCheck(uri="/a", expect=(Expectation("status", "200"),))
    assert second.http_check is None
    assert third.http_check == HttpCheck(uri="/a", expect=(Expectation("string", "x"),))
    assert config.warnings == ()


def test_what_needs_http_is_ignored_with_a_warning() -> None:
    config = read(
        f"[listen a]\n{TIMEOUTS}bind = :1\nserver s = /run/x cookie a\noption httplog\noption forwardfor\n"
        "cookie = A insert\nbalance = uri\nhttp-request = deny if {{ path /x }}\nhttp-response = del-header A\n"
        "http-check = expect status 200\n".replace("{{", "{").replace("}}", "}")
    )
    assert config.warnings == tuple(
        f"1.conf:1: [listen a]: {text}"
        for text in (
            "http-check is ignored without `option httpchk`",
            "option httplog needs `mode = http`, so option tcplog takes its place",
            "balance = uri needs `mode = http`, so roundrobin takes its place",
            "http-request is ignored: it needs `mode = http`",
            "http-response is ignored: it needs `mode = http`",
            "option forwardfor is ignored: it needs `mode = http`",
            "cookie is ignored: it needs `mode = http`",
        )
    )
    front, back = config.frontends[0], config.backends[0]
    assert (front.httplog, front.tcplog, front.forwardfor, front.http_request, front.http_response) == (
        False, True, None, (), (),
    )  # fmt: skip
    assert (back.cookie, back.balance, back.http_request, back.http_check) == (None, "roundrobin", (), None)


def test_hash_functions_change_nothing() -> None:
    config = read(f"[listen a]\n{TIMEOUTS}bind = :1\nserver s = /run/x\nhash-type = consistent sdbm avalanche\n")
    assert config.backends[0].hash_consistent
    (warning,) = config.warnings
    assert warning.endswith("hash-type: sdbm avalanche changes nothing: there is one hash function")


@pytest.mark.parametrize(
    ("lines", "warns"),
    [
        ("use_backend = b if { req.ssl_sni -m end .x }\n", True),
        ("acl x = ssl_fc_sni a\nacl y = src 10.0.0.0/8\nuse_backend = b if y !x\n", True),
        ("use_backend = b if { req.ssl_sni a }\ntcp-request = inspect-delay 5s\n", False),
        ("use_backend = b if { src 10.0.0.0/8 }\n", False),
        ("acl x = ssl_fc_sni a\n", False),
    ],
)
def test_names_that_nobody_waits_for(lines: str, warns: bool) -> None:
    backend = "[backend b]\ntimeout connect = 1s\ntimeout server = 1s\nserver s = /run/x\n"
    config = read(f"[listen a]\n{TIMEOUTS}bind = :1\nserver s = /run/x\n{lines}{backend}")
    assert [text.endswith("expected `tcp-request = inspect-delay TIME`") for text in config.warnings] == [True] * warns


def test_pages_are_kept_with_the_text(tmp_path: Path) -> None:
    page, body = tmp_path / "503.http", tmp_path / "body"
    page.write_bytes(b"HTTP/1.1 503 No\r\n\r\n\xff")
    body.write_bytes(b"hello")
    text = (
        f"[defaults]\nmode = http\nerrorfile = 503 {page}\n[listen a]\nbind = :1\nserver s = /run/x\n"
        f"http-request = return content-type a/b file {body}\n"
    )
    path = tmp_path / "hitlessd.conf"
    path.write_text(text)
    config = load([str(path)])
    assert config.frontends[0].errorfiles == ((503, b"HTTP/1.1 503 No\r\n\r\n\xff"),)
    assert config.backends[0].errorfiles == config.frontends[0].errorfiles
    assert len(config.files) == 3
    page.unlink()
    body.write_bytes(b"other")
    again = parse(State.load(State(1, config.files).dump()).files)
    assert again == config
    with pytest.raises(ConfigError) as caught:
        load([str(path)])
    (problem,) = caught.value.problems
    assert problem.startswith(f"{path}:3: [defaults] errorfile: cannot use this file: found ")
    assert problem.endswith("expected one that can be read (No such file or directory)")


def test_a_drop_in_replaces_rules_as_a_whole() -> None:
    config = read(
        "[listen a]\nmode = http\nbind = :1\nserver s = /run/x\nacl x = path /a\nhttp-request = deny if x\n  allow\n",
        "[listen a]\nacl x = path /b\nhttp-request = deny deny_status 404 if x\n",
    )
    (rule,) = config.frontends[0].http_request
    assert rule.status == 404
    assert rule.condition is not None
    assert rule.condition.alternatives[0][0].tests[0].values == ("/b",)


def test_log_formats_are_checked_for_their_mode(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("hitlessd.logformat")
    module.problem_of = (  # type: ignore[attr-defined]
        lambda text, *, http: "" if http and text != "%x" else f'cannot use the variable "{text}": http {http}'
    )
    monkeypatch.setitem(sys.modules, "hitlessd.logformat", module)
    assert frontend("log-format = %HM").log_format == "%HM"
    with pytest.raises(ConfigError) as caught:
        read(
            "[defaults]\nlog-format = %a\n[listen l]\nbind = :1\nserver s = /run/x\n[listen m]\nmode = http\n"
            "bind = :2\nlog-format = %x\nserver s = /run/x\n[listen n]\nbind = :3\nserver s = /run/x\nlog-format = %b\n"
        )
    assert caught.value.problems == [
        '1.conf:3: [listen l] log-format: cannot use the variable "%a": http False',
        '1.conf:9: [listen m] log-format: cannot use the variable "%x": http True',
        '1.conf:14: [listen n] log-format: cannot use the variable "%b": http False',
    ]


def test_quotes_in_a_line() -> None:
    """Blanks in quotes count, and what would begin a comment elsewhere; an apostrophe that nothing closes is one."""
    config = read(
        "[listen a] # it's a comment\nmode = http # don't\nbind = :1\nserver s = /run/it's # its\n"
        "http-request = set-header A \"a  #b\" # 'c\n  set-header B 'a ; b\"'\n  set-header C a\\ \\#b ; c\n"
    )
    assert config.backends[0].servers[0].address == UnixAddress("/run/it's")
    assert [rule.value for rule in config.frontends[0].http_request] == ["a  #b", 'a ; b"', "a #b"]
