"""What http-request and http-response rules make of a message, from the lines of a configuration on."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest

from hitlessd.config import parse
from hitlessd.http.edit import ADD, DELETE, SET
from hitlessd.http.rules import NOTHING, Answer, Verdict, compile_rules
from hitlessd.http.texts import compile_text
from hitlessd.model import SourceFile
from hitlessd.samples import CONNECTION, REQUEST, Mistake

from .test_conditions import Head, Known, request, response


def verdict(lines: str, sample: Known, kind: str = "http-request", earlier: Any = ()) -> Verdict:
    config = parse([SourceFile("x", f"[listen l]\nmode = http\nbind = :1\nserver s = /run/x\n{kind} = {lines}\n")])
    front = config.frontends[0]
    rules = compile_rules(front.http_request or front.http_response, response=kind == "http-response")
    assert rules is not None
    return rules.apply(sample, earlier)


def answer(lines: str, sample: Known, kind: str = "http-request") -> Answer:
    found = verdict(lines, sample, kind)
    assert found.answer is not None
    return found.answer


@dataclass
class Expected:
    lines: str
    edits: tuple[Any, ...] = field(default=())


def test_no_rules() -> None:
    assert compile_rules(()) is None


@pytest.mark.parametrize(
    ("lines", "edits"),
    [
        ("allow", ()),
        ("set-header X-A b if FALSE", ()),
        ("set-header X-A 'a b'", ((SET, b"X-A", b"a b"),)),
        ("set-header X-A é\\xff", ((SET, b"X-A", b"\xc3\xa9\xff"),)),
        ("set-header X-A 50%%", ((SET, b"X-A", b"50%"),)),
        ("add-header X-A %[src]:%[src_port]", ((ADD, b"X-A", b"192.0.2.9:4711"),)),
        ("add-header X-A %ci:%cp", ((ADD, b"X-A", b"192.0.2.9:4711"),)),
        ("add-header X-A '%{+Q}[path] %HM %HP %HQ %HU'", ((ADD, b"X-A", b'"/a/b" GET /a/b ?q=1 /a/b?q=1'),)),
        ("add-header X-A %HV", ((ADD, b"X-A", b"HTTP/1.1"),)),
        ("add-header X-A %[req.hdr(x-one),upper]-%[req.hdr(none)]-", ((ADD, b"X-A", b"B, C--"),)),
        ("add-header X-A %[req.hdr(x-one),length]", ((ADD, b"X-A", b"1"),)),
        ("del-header X-One\n  del-header X-Two if FALSE", ((DELETE, b"X-One", b""),)),
        ("allow\n  set-header X-A b", ()),
        ("set-header A b\n  allow if { path_beg /a }\n  set-header B c", ((SET, b"A", b"b"),)),
        # each rule sees what those before it did
        (
            "del-header X-One\n add-header X-A b if { hdr(x-one) -m found }\n add-header X-B c unless { hdr(X-ONE) b }",
            ((DELETE, b"X-One", b""), (ADD, b"X-B", b"c")),
        ),
        (
            "set-header X-New 1\n  add-header X-New 2\n  add-header X-A '%[req.hdr_cnt(x-new)] %[req.hdr(x-new)]'",
            ((SET, b"X-New", b"1"), (ADD, b"X-New", b"2"), (ADD, b"X-A", b"2 2")),
        ),
        ("set-header Host b\n  add-header X-A %[base]", ((SET, b"Host", b"b"), (ADD, b"X-A", b"b/a/b"))),
        ("set-header X b\n  add-header X-A %[base]", ((SET, b"X", b"b"), (ADD, b"X-A", b"www.example.net/a/b"))),
    ],
)  # fmt: skip
def test_edits(lines: str, edits: tuple[Any, ...]) -> None:
    lines = lines.replace("%[req.hdr(x-one),upper]", "%[req.fhdr(x-one),upper]")
    found = verdict(lines, request(b"/a/b?q=1", (b"Host", b"www.example.net"), (b"X-One", b"b, c")))
    assert found.edits == edits
    assert found.answer is None


def test_nothing_to_do_costs_nothing() -> None:
    assert verdict("deny if { path /x }\n  set-header A b if FALSE", request(b"/")) is NOTHING


def test_earlier_changes_are_seen_and_left_out() -> None:
    """A backend's rules come after its frontend's."""
    found = verdict(
        "add-header X-A b if { hdr(x) y }\n  add-header X-B b if !{ hdr(host) -m found }",
        request(b"/", (b"Host", b"a")),
        earlier=[(SET, b"X", b"y"), (DELETE, b"host", b"")],
    )
    assert found.edits == ((ADD, b"X-A", b"b"), (ADD, b"X-B", b"b"))


def test_deny() -> None:
    found = answer("deny if { path -m beg /a }", request(b"/a"))
    assert (found.kind, found.status, found.body, found.headers) == ("deny", 403, None, ())
    assert answer("deny deny_status 429", request(b"/a")).status == 429
    found = answer("set-header A b\n  deny status 418 content-type a/b string tea hdr X-A %[path]", request(b"/a"))
    assert (found.kind, found.status, found.body, found.content_type) == ("deny", 418, b"tea", b"a/b")
    assert found.headers == ((b"X-A", b"/a"),)


def test_deny_of_a_response() -> None:
    assert answer("deny if { status 500:599 }", response(503), "http-response").status == 502


def test_return() -> None:
    found = answer("return", request(b"/a"))
    assert (found.kind, found.status, found.body, found.content_type) == ("return", 200, None, b"")
    found = answer("return content-type text/plain lf-string '%[method] %[path] 100%%'", request(b"/a"))
    assert (found.body, found.content_type) == (b"GET /a 100%", b"text/plain")
    found = answer("return content-type text/plain string 'a %[path] 100%'", request(b"/a"))
    assert found.body == b"a %[path] 100%"


@pytest.mark.parametrize(
    ("rule", "target", "location", "status"),
    [
        ("location /x", b"/a?b", b"/x", 302),
        ("location https://%[req.hdr(host)]%[path] code 301", b"/a?b", b"https://www.example.net/a", 301),
        ("prefix https://a", b"/a?b", b"https://a/a?b", 302),
        ("prefix / code 307", b"/a?b", b"/a?b", 307),
        ("prefix /x", b"http://h/a?b", b"/x/a?b", 302),
        ("prefix /x", b"http://h", b"/x/", 302),
        ("prefix /x", b"*", b"/x/", 302),
        ("scheme https code 308", b"/a?b", b"https://www.example.net/a?b", 308),
    ],
)
def test_redirect(rule: str, target: bytes, location: bytes, status: int) -> None:
    found = answer("redirect " + rule, request(target, (b"Host", b"www.example.net")))
    assert (found.kind, found.location, found.status) == ("redirect", location, status)


def test_redirect_without_a_host() -> None:
    assert answer("redirect scheme https", request(b"/a")).location == b"https:///a"


def test_response_rules() -> None:
    sample = response(200, (b"Server", b"x"), (b"Cache-Control", b"no-store, max-age=0"))
    found = verdict(
        "del-header Server\n  set-header X-Status %[status]/%ST if { status 200 }\n"
        "  add-header X-C 1 if { res.hdr(cache-control) max-age=0 }\n"
        "  add-header X-S 1 if { res.hdr(server) -m found }\n"
        "  add-header X-P %[path] if { path /p }\n  redirect location /q if { res.hdr(x-c) 1 }",
        sample,
        "http-response",
    )
    assert found.edits == (
        (DELETE, b"Server", b""),
        (SET, b"X-Status", b"200/200"),
        (ADD, b"X-C", b"1"),
        (ADD, b"X-P", b"/p"),
    )
    assert found.answer is not None
    assert found.answer.location == b"/q"


def test_the_head_itself_is_not_changed() -> None:
    sample = request(b"/", (b"A", b"b"))
    verdict("del-header A\n  allow if { hdr(a) b }", sample)
    assert isinstance(sample.request, Head)
    assert sample.request.fields == ((b"A", b"b"),)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("%", "cannot use this variable: found \"%\", expected %[FETCH], %NAME, or %% for the sign itself"),
        ("a%-b", "cannot use this variable: found \"%-b\", expected %[FETCH], %NAME"),
        ("%Tr", 'cannot use this variable: found "%Tr", expected one of %ci, %cp, %fi'),
        ("%[pth]", 'cannot use this sample fetch: found "pth", expected one that this version has'),
        ("%[hdr]", 'cannot use this sample fetch: found "hdr", expected hdr(NAME)'),
        ("%[]", 'cannot read this sample fetch: found ""'),
        ("%[path,lowr]", 'cannot use this converter: found "lowr", expected one of lower, upper, length'),
        ("%{+E}[path]", 'cannot use these flags: found "+E", expected +Q or none'),
        ("%[status]", 'cannot ask for this here: found "status", expected what is known when the rule is applied'),
        ("%ST", 'cannot ask for this here: found "%ST"'),
    ],
)  # fmt: skip
def test_texts_that_cannot_be_used(text: str, message: str) -> None:
    with pytest.raises(Mistake) as caught:
        compile_text(text, (CONNECTION, REQUEST))
    assert str(caught.value).startswith(message)


def test_text_without_anything_to_tell() -> None:
    sample = Known()
    for variable in ("%[src]", "%cp", "%[path]", "%HQ", "%HV", "%[req.ssl_sni]", "%s", "%[res.hdr(a)]"):
        assert compile_text(f"<{variable}>")(sample) == b"<>"
    assert compile_text("%H")(sample) != b""
