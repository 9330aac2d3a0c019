"""What conditions say of a connection, a request and a response: every criterion and every way to match."""

from __future__ import annotations

import re
from dataclasses import dataclass

import pytest

from hitlessd.conditions import PREDEFINED, compile_acl, compile_condition
from hitlessd.config import parse
from hitlessd.config.acl import HTTP_RESPONSE, Scope, acl, condition
from hitlessd.matching import network
from hitlessd.model import NOWHERE, SourceFile
from hitlessd.samples import FETCHES, Mistake, expression, fetcher, find, split_call, text

ANYWHERE = Scope(tuple(range(5)), "anywhere")


@dataclass
class Head:
    """As hitlessd.http.heads has them, as far as samples ask."""

    fields: tuple[tuple[bytes, bytes], ...] = ()
    method: bytes = b"GET"
    target: bytes = b"/"
    version: int = 11
    status: int = 200

    @property
    def path(self) -> bytes:
        return re.sub(rb"^[a-z]+://[^/]*", b"", self.target).partition(b"?")[0]

    @property
    def query(self) -> bytes:
        return self.target.partition(b"?")[2]

    @property
    def host(self) -> bytes:
        return (self.values(b"host") or [b""])[0]

    def values(self, name: bytes) -> list[bytes]:
        return [value for field, value in self.fields if field.lower() == name]


@dataclass
class Known:
    """A Sample."""

    client: tuple[str, int] | None = None
    local: tuple[str, int] | None = None
    request: Head | None = None
    response: Head | None = None
    sni: str = ""
    frontend_name: str = ""
    backend_name: str = ""
    server_name: str = ""


def request(target: bytes, *fields: tuple[bytes, bytes], method: bytes = b"GET", version: int = 11) -> Known:
    return Known(
        ("192.0.2.9", 4711), ("192.0.2.1", 80), Head(fields, method, target, version), None, "", "front", "back", "srv"
    )


def response(status: int, *fields: tuple[bytes, bytes]) -> Known:
    sample = request(b"/p")
    sample.response = Head(fields, status=status)
    return sample


def holds(words: str, sample: Known) -> bool:
    """`words` as they stand between braces."""
    return compile_acl(acl("", words.split(" "), NOWHERE))(sample)


TEXTS = [
        ("path /a", b"/a?b", True),
        ("path /a /b", b"/b", True),
        ("path /A", b"/a", False),
        ("path -i /A", b"/a", True),
        ("path /a", b"/a/", False),
        ("path -- -i", b"-i", True),
        ("path_beg /a /b", b"/bc", True),
        ("path_beg /a /b", b"/cb", False),
        ("path -m beg /a", b"/abc", True),
        ("path_beg -i /A", b"/abc", True),
        ("path_end .png .jpg", b"/x.jpg", True),
        ("path_end .png", b"/x.png?a", True),
        ("path_end -m beg /x", b"/x.png", True),
        ("path_sub bc", b"/abcd", True),
        ("path_sub bd", b"/abcd", False),
        ("path_reg ^/a[0-9]+$", b"/a123", True),
        ("path_reg ^/a[0-9]+$", b"/a123b", False),
        ("path_reg -i ^/A x", b"/a", True),
        ("path_reg x ^/b", b"/a", False),
        # the manual's own examples; :80 would be dropped as the default port there
        *(("path_dir " + word, b"/images/png/logo/32x32.png", True) for word in (
            "/images", "/images/png", "images/png", "/png/logo", "logo/32x32.png", "32x32.png")),
        *(("path_dir " + word, b"/images/png/logo/32x32.png", False) for word in ("32x32", "mages", "image", "/")),
        *(("url_dom " + word, b"http://www1.dc-eu.example.com:8080/blah", True) for word in (
            "http", "www1", ".www1", "dc-eu", "example", "com", "8080", "dc-eu.example", "blah", ":www1:",
            "dc-eu.example.com:8080")),
        *(("url_dom " + word, b"http://www1.dc-eu.example.com:8080/blah", False) for word in ("eu", "dc", "...")),
        ("path_len 4", b"/abc", True),
        ("path_len gt 4", b"/abc", False),
        ("path -m len 2:4 9", b"/abc", True),
        ("path -m found", b"/", True),
        ("query a=b", b"/?a=b", True),
        ("query -m sub b", b"/?a=b", True),
        ("url /?a=b", b"/?a=b", True),
        ("base www.example.net/a", b"/a?b", True),
        ("base_beg www.", b"/a?b", True),
        ("path é", "é".encode(), True),
    ]  # fmt: skip


@pytest.mark.parametrize(("words", "target", "expected"), TEXTS)
def test_texts(words: str, target: bytes, expected: bool) -> None:
    assert holds(words, request(target, (b"Host", b"www.example.net"))) is expected


FIELDS = (
    (b"Host", b"www.Example.net:80"),
    (b"Accept", b"text/html, text/plain;q=0.5"),
    (b"Accept", b'"a,b" , c'),
    (b"Content-Length", b"12"),
    (b"X-Forwarded-For", b"10.0.0.1, 192.0.2.7"),
    (b"X-Empty", b""),
    (b"X-Quoted", b'a="b\\",c", d'),
)


HEADERS = [
    ("hdr(host) www.Example.net:80", True),
    ("hdr(HOST) www.example.net:80", False),
    ("hdr(host) -i WWW.example.net:80", True),
    ("req.hdr(host) -m dom -i example", True),
    ("hdr_dom(host) -i example.net", True),
    ("hdr_dom(host) ample", False),
    ("hdr_beg(host) www.", True),
    ("hdr_end(host) :80", True),
    ("hdr_sub(host) Exam", True),
    ("hdr_reg(host) ^www\\.", True),
    ("hdr_dir(host) x", False),
    ("hdr_len(host) 18", True),
    ("hdr(accept) text/html", True),
    ("hdr(accept) text/plain;q=0.5", True),
    ("hdr(accept) c", True),
    ('hdr(accept) "a,b"', True),
    ('hdr(accept) "a', False),
    ("hdr(accept,1) text/html", True),
    ("hdr(accept,2) text/html", False),
    ("hdr(accept,-1) c", True),
    ("hdr(accept,-4) text/html", True),
    ("hdr(accept,-5) -m found", False),
    ("hdr(accept,5) -m found", False),
    ('req.fhdr(accept) "text/html', False),
    ("req.fhdr(accept) -m end c", True),
    ("req.fhdr(accept,1) -m end c", False),
    ("req.fhdr_cnt(accept) 2", True),
    ("hdr_cnt(accept) 4", True),
    ("hdr_cnt(accept) ge 5", False),
    ("hdr_cnt(x-none) 0", True),
    ("hdr_cnt(x-none) eq 0", True),
    ("hdr_val(content-length) gt 0", True),
    ("hdr_val(content-length) lt 12", False),
    ("hdr_val(content-length) le 12", True),
    ("hdr_val(host) gt 0", False),
    ("hdr(content-length) -m int 12", True),
    ("hdr(host) -m int 12", False),
    ("hdr_ip(x-forwarded-for) 192.0.2.0/24", True),
    ("hdr_ip(x-forwarded-for,1) 192.0.2.0/24", False),
    ("hdr_ip(host) 0.0.0.0/0", False),
    ("hdr(x-empty) -m found", True),
    ("hdr(x-none) -m found", False),
    ("hdr(x-none) x", False),
    ("hdr(x-none) -m bool", False),
    ("hdr(content-length) -m bool", True),
    ("hdr(x-quoted) d", True),
    ('hdr(x-quoted) -m sub a="b', True),
    ("hdr_cnt(x-quoted) 2", True),
]


@pytest.mark.parametrize(("words", "expected"), HEADERS)
def test_headers(words: str, expected: bool) -> None:
    assert holds(words, request(b"/", *FIELDS)) is expected


@pytest.mark.parametrize(
    ("client", "words", "expected"),
    [
        ("192.0.2.1", "src 192.0.2.1", True),
        ("192.0.2.1", "src 192.0.2.2 192.0.2.0/24", True),
        ("192.0.3.1", "src 192.0.2.0/24", False),
        ("192.0.2.1", "src 192.0.2.0/255.255.255.0", True),
        ("10.0.0.1", "src 10.1", True),
        ("10.9.9.9", "src 10/8", False),  # 0.0.0.10/8, as the manual warns
        ("127.5.5.5", "src 127.1/8", True),
        ("0.0.0.0", "src 0.0.0.0/0", True),
        ("2001:db8::1", "src 2001:db8::/32", True),
        ("2001:db9::1", "src 2001:db8::/32", False),
        ("::ffff:192.0.2.1", "src 192.0.2.0/24", True),
        ("::192.0.2.1", "src 192.0.2.0/24", True),
        ("2002:c000:201::", "src 192.0.2.0/24", True),
        ("2001:db8::c000:201", "src 192.0.2.0/24", False),
        ("192.0.2.1", "src ::ffff:0:0/96", True),
        ("192.0.2.1", "src 2001:db8::/32", False),
        ("192.0.2.1", "src -m found", True),
        ("192.0.2.1", "src -m beg 192.", True),
        (None, "src 0.0.0.0/0", False),
        (None, "src -m found", False),
        ("192.0.2.1", "src_port 4711", True),
        ("192.0.2.1", "src_port 1:4710 4712:", False),
        ("192.0.2.1", "src_port :5000", True),
        ("192.0.2.1", "src_port gt 5 lt 3", True),
        ("192.0.2.1", "src_port lt 5 3", False),
        (None, "src_port 0:", False),
        ("192.0.2.1", "dst 192.0.2.80", True),
        ("192.0.2.1", "dst_port 443", True),
        ("192.0.2.1", "fe_name front", True),
        ("192.0.2.1", "be_name front", False),
        ("192.0.2.1", "ssl_fc", False),
        ("192.0.2.1", "always_true", True),
        ("192.0.2.1", "always_false", False),
        ("192.0.2.1", "always_true -m int 1", True),
        ("192.0.2.1", "req.ssl_sni www.example.net", True),
        ("192.0.2.1", "req_ssl_sni -m end .example.net", True),
        ("192.0.2.1", "ssl_fc_sni -i WWW.example.net", True),
        ("192.0.2.1", "ssl_fc_sni_end .org", False),
        ("192.0.2.1", "ssl_fc_sni_reg ^w+\\.", True),
        ("192.0.2.1", "path /", False),
        ("192.0.2.1", "path -m found", False),
        ("192.0.2.1", "method GET", False),
        ("192.0.2.1", "status 200", False),
        ("192.0.2.1", "hdr_cnt(a) 0", False),
    ],
)
def test_connections(client: str | None, words: str, expected: bool) -> None:
    end = (client, 4711) if client else None
    sample = Known(end, ("192.0.2.80", 443), sni="www.example.net", frontend_name="front")
    assert holds(words, sample) is expected


def test_no_server_name() -> None:
    assert not holds("req.ssl_sni -m found", Known())
    assert not holds("req.ssl_sni -m reg .*", Known())


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("status 404", True),
        ("status 400:499", True),
        ("status lt 400", False),
        ("res.hdr(server) a", True),
        ("shdr(server) a", True),
        ("shdr_beg(server) a", True),
        ("res.hdr_cnt(server) 2", True),
        ("res.fhdr_cnt(server) 1", True),
        ("res.fhdr(server) -m sub ,", True),
        ("res.hdr_val(age) 7", True),
        ("res.hdr_ip(x) 192.0.2.1", True),
        ("res.ver 1.1", True),
        ("srv_name srv", True),
        ("hdr(server) -m found", False),
        ("path /p", True),
    ],
)
def test_responses(words: str, expected: bool) -> None:
    sample = response(404, (b"Server", b"a, b"), (b"Age", b"7"), (b"X", b"192.0.2.1"))
    assert holds(words, sample) is expected


@pytest.mark.parametrize(
    ("name", "sample", "expected"),
    [
        ("TRUE", Known(), True),
        ("FALSE", Known(), False),
        ("LOCALHOST", Known(("127.1.2.3", 1)), True),
        ("LOCALHOST", Known(("::1", 1)), True),
        ("LOCALHOST", Known(("192.0.2.1", 1)), False),
        ("HTTP_1.0", request(b"/", version=10), True),
        ("HTTP_1.1", request(b"/", version=10), False),
        ("HTTP_1.1", request(b"/"), True),
        ("HTTP_CONTENT", request(b"/", (b"Content-Length", b"0")), False),
        ("HTTP_CONTENT", request(b"/", (b"Content-Length", b"1")), True),
        ("HTTP_URL_ABS", request(b"http://a/"), True),
        ("HTTP_URL_ABS", request(b"/http://a/"), False),
        ("HTTP_URL_SLASH", request(b"/a"), True),
        ("HTTP_URL_STAR", request(b"*"), True),
        ("METH_GET", request(b"/", method=b"HEAD"), True),
        ("METH_POST", request(b"/", method=b"POST"), True),
        ("METH_POST", request(b"/"), False),
    ],
)
def test_predefined(name: str, sample: Known, expected: bool) -> None:
    assert compile_acl(PREDEFINED[name])(sample) is expected


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("if yes", True),
        ("if no", False),
        ("if !no", True),
        ("if ! yes", False),
        ("if !!yes", True),
        ("unless yes", False),
        ("unless !yes", True),
        ("if yes no", False),
        ("if yes !no", True),
        ("if no or yes", True),
        ("if no || no", False),
        ("unless no || no", True),
        ("unless yes !no", False),
        ("if no yes or yes !no", True),
        ("if both", True),
        ("if !both", False),
        ("unless both", False),
        ("if neither", False),
        ("if !neither yes", True),
        ("if { path /a } !{ path /b }", True),
        ("if { path /b } or { path /a }", True),
        ("if TRUE !FALSE", True),
    ],
)
def test_conditions(words: str, expected: bool) -> None:
    acls = {
        "yes": [acl("yes", ["path", "/a"], NOWHERE)],
        "no": [acl("no", ["path", "/b"], NOWHERE)],
        "both": [acl("both", ["path", "/b"], NOWHERE), acl("both", ["path", "/a"], NOWHERE)],
        "neither": [acl("neither", ["path", "/b"], NOWHERE), acl("neither", ["path", "/c"], NOWHERE)],
    }
    found = condition(words.split(" "), acls, ANYWHERE, NOWHERE)
    assert found is not None
    assert compile_condition(found)(request(b"/a")) is expected


def test_no_condition() -> None:
    assert condition([], {}, ANYWHERE, NOWHERE) is None
    assert compile_condition(None)(Known())


def test_from_the_configuration_on() -> None:
    lines = 'acl a = path /a\n  path /b\nuse_backend = l if a { hdr(x) -m sub "b  c" }\n'
    config = parse([SourceFile("x", f"[listen l]\nmode = http\nbind = :1\nserver s = /run/x\n{lines}")])
    test = compile_condition(config.frontends[0].use_backend[0].condition)
    assert test(request(b"/b", (b"X", b"ab  cd")))
    assert not test(request(b"/b", (b"X", b"ab cd")))
    assert not test(request(b"/c", (b"X", b"ab  cd")))


def test_fetchers() -> None:
    sample = request(b"/a?b", *FIELDS)
    assert fetcher("src")(sample) == b"192.0.2.9"
    assert fetcher("dst_port")(sample) == 80
    assert fetcher("hdr", "accept")(sample) == b"c"  # the last one, as HAProxy outside of conditions
    assert fetcher("req.fhdr", "x-forwarded-for")(sample) == b"10.0.0.1, 192.0.2.7"
    assert fetcher("hdr", "none")(sample) is None
    assert fetcher("status")(sample) is None
    assert fetcher("query")(sample) == b"b"
    assert text(fetcher("src_port")(sample)) == "4711"
    assert (text(b"\xe9"), text(None), text(True), text(False)) == ("\xe9", "", "1", "0")


def test_every_fetch_answers_when_nothing_is_known() -> None:
    for name, fetch in FETCHES.items():
        argument = "x" if fetch.argument else ""
        value = fetcher(name, argument)(Known())
        assert value in (None, True, False), name


def test_expressions() -> None:
    fetch, get = expression("req.hdr(Host,1),lower,upper")
    assert fetch is FETCHES["req.hdr"]
    assert get(request(b"/", *FIELDS)) == b"WWW.EXAMPLE.NET:80"
    assert expression("src_port,length")[1](request(b"/")) == 4
    assert expression("path,lower")[1](Known()) is None


@pytest.mark.parametrize(
    "word", ["", "a(", "path()x", "path(a)", "hdr()", "hdr", "hdr(a,b)", "pth", "path,x", "path,lower,x"]
)
def test_expressions_that_cannot_be_used(word: str) -> None:
    with pytest.raises(Mistake):
        expression(word)


def test_split_call() -> None:
    assert split_call("hdr(a, 1)") == ("hdr", "a,1")
    assert split_call("path()") == ("path", "")
    for word in ("", "(", "a(b", "a)b"):
        with pytest.raises(Mistake):
            split_call(word)


def test_mistakes_are_value_errors() -> None:
    with pytest.raises(
        ValueError, match='cannot use this sample fetch: found "nope", expected one that this version has'
    ):
        find("nope")


def test_networks() -> None:
    assert network("10.0.0.7/8") == (32, 10 << 24, 0xFF000000)
    assert network("::1") == (128, 1, (1 << 128) - 1)
    for wrong in (
        "",
        "a",
        "1.2.3.4.5",
        "1.2.3.4/",
        "1.2.3.4/33",
        "1.2.3.4/-1",
        "::1/129",
        "300.1.1.1",
        "1.2.3.4/1.2",
        "::g",
    ):
        with pytest.raises(Mistake):
            network(wrong)


def test_scopes_name_every_stage() -> None:
    assert {fetch.stage for fetch in FETCHES.values()} <= set(range(5))
    assert len(HTTP_RESPONSE.stages) == 4
