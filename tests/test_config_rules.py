"""What wrong rules, conditions and their like are told: nothing is ever silently false."""

# One message a line, as the reader has them.
# ruff: noqa: E501

from __future__ import annotations

from pathlib import Path

import pytest

from .test_config_errors import problems_of

HEAD = "[defaults]\nmode = {mode}\n[listen l]\nbind = :1\nserver s = 192.0.2.1:1\nacl api = path_beg /api\n"


def told(line: str, mode: str = "http") -> str:
    """The one message about a line of a [listen]."""
    (problem,) = problems_of(HEAD.format(mode=mode) + line + "\n")
    option = line.partition(" =")[0]
    place = f"1.conf:{7 + line.count(chr(10))}: [listen l] {option}: cannot "
    assert problem.startswith(place)
    return problem.removeprefix(place)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("use_backend = l if apj", 'use this acl: found "apj", expected the name of an acl of this section; did you mean "api"?'),
        ("use_backend = l if", 'read this condition: found "if", expected a term at its end'),
        ("use_backend = l iff api", 'use this word: found "iff", expected if or unless, and a condition; did you mean "if"?'),
        ("use_backend = l if api or", 'read this condition: found "if api or", expected a term at its end'),
        ("use_backend = l if or api", 'read this condition: found "or", expected a term on both sides of it'),
        ("use_backend = l if api !", 'read this condition: found "if api !", expected a term at its end'),
        ("use_backend = l if ! or api", 'read this condition: found "or", expected a term on both sides of it'),
        ("use_backend = l if {path /x}", 'read this condition: found "{path", expected a blank after { and before }'),
        ("use_backend = l if { path /x", 'read this condition: found "{ path /x", expected a } that closes it, after a b'),
        ("use_backend = l if { }", "read this condition: found nothing, expected a criterion, as in path_beg /api"),
        ("use_backend = l if { pth_beg /x }", 'use this criterion: found "pth_beg", expected one that this version has; did you mean "path_beg"?'),
        ("use_backend = l if { path }", 'compare with nothing: found "path", expected values after it, or path -m found'),
        ("use_backend = l if { path -i }", 'compare with nothing: found "path", expected values after it'),
        ("use_backend = l if { path -f /etc/x }", 'use this flag: found "-f", expected values in the line: this version reads none'),
        ("use_backend = l if { path -x y }", 'use this flag: found "-x", expected -i, -m or --'),
        ("use_backend = l if { path -m }", "match by this method: found nothing, expected one after -m"),
        ("use_backend = l if { path -m bg x }", 'match by this method: found "bg", expected one of str, beg, end, sub, dir, dom, reg, int, len, ip, found, bool; did you mean "beg"?'),
        ("use_backend = l if { path -m found x }", 'compare with this: found "x", expected no value: path is asked for alone here'),
        ("use_backend = l if { path_reg a( }", 'use this regular expression: found "a(", expected one that Python\'s `re` can read (missing ), unter'),
        ("use_backend = l if { hdr x }", 'use this sample fetch: found "hdr", expected hdr(NAME)'),
        ("use_backend = l if { hdr(a:b) x }", 'use this header: found "a:b", expected the name of a header field'),
        ("use_backend = l if { hdr(a,0) x }", 'use this occurrence: found "0", expected a number, 1 for the first, -1 for the last'),
        ("use_backend = l if { path(a) x }", 'use this sample fetch: found "path(a)", expected path without an argument'),
        ("use_backend = l if { path,lower x }", 'use this converter: found "lower", expected path alone: converters do not go here'),
        ("use_backend = l if { src 10.0.0.0/33 }", 'use this network: found "10.0.0.0/33", expected ADDRESS or ADDRESS/BITS, numeric'),
        ("use_backend = l if { src host.example }", 'use this network: found "host.example", expected ADDRESS or ADDRESS/BITS, numeric'),
        ("use_backend = l if { src_port http }", 'compare with this number: found "http", expected a number or a range, as in 80 or 8000:8080'),
        ("use_backend = l if { src_port 5:1 }", 'compare with this range: found "5:1", expected the lower number first'),
        ("use_backend = l if { src_port gt }", 'compare with this number: found "gt", expected a number or a range after it'),
        ("use_backend = l if { src_port gt 1:2 }", 'compare with this range: found "1:2", expected one number after eq, ge, gt, le or lt'),
        ("use_backend = l if { src_port -m beg 1 }", 'match by this method: found "beg", expected int, bool or found for src_port'),
        ("use_backend = l if { status 200 }", 'ask for this here: found "status", expected a criterion that is known once a request has been read'),
        ("use_backend = l if { req.ssl_sni a }", 'ask for this here: found "req.ssl_sni", expected a criterion that is known once a request has been'),
        ("use_backend = l if { be_name a }", 'ask for this here: found "be_name", expected a criterion that is known once a request has been read'),
        ("use_backend = %[hdr(host)]", 'use this backend: found "%[hdr(host)]", expected a name without variables'),
        ("use_backend = m if api", 'use this backend: found "m", expected the name of a [backend] or [listen] section'),
        ("acl x = pth /x", 'use this criterion: found "pth", expected one that this version has; did you mean "path"?'),
        ("tcp-request = conection reject", 'use this rule: found "conection", expected connection accept, connection reject or inspect-delay; did you mean "connection"?'),
        ("tcp-request = connection", "use this action: found nothing, expected accept or reject"),
        ("tcp-request = connection drop", 'use this action: found "drop", expected accept or reject'),
        ("tcp-request = connection reject if api", 'ask for this here: found "api (path_beg)", expected a criterion that is known before a byte has b'),
        ("tcp-request = content reject if api", 'use this rule: found "content reject", expected tcp-request connection, or use_backend'),
        ("tcp-request = inspect-delay", 'read this delay: found "inspect-delay", expected inspect-delay TIME'),
        ("tcp-request = inspect-delay 5x", 'use this time: found "5x", expected a whole number with us, ms, s, m, h or d'),
        ("http-request = denny if api", 'use this action: found "denny", expected one of allow, deny, set-header, add-header, del-header, redirect, return, use-service; did you mean "deny"?'),
        ("http-request = deny deny_status 444", 'use this status: found "444", expected one of 200, 400, 401'),
        ("http-request = deny status 700", 'use this status: found "700", expected a number from 200 to 599'),
        ("http-request = deny status 404 deny_status 404", 'use this word: found "deny_status", expected one status in a line'),
        ("http-request = return deny_status 404", 'use this word: found "deny_status", expected one of status'),
        ("http-request = return string x", 'answer like this: found "string", expected a content-type, too'),
        ("http-request = return string", 'use this word: found "string", expected a value after it'),
        ("http-request = return content-type a/b string x file y", 'use this word: found "file", expected one payload in a line'),
        ("http-request = return content-type a/b file x", 'use this file: found "x", expected an absolute path, beginning with /'),
        ("http-request = return hdr a", 'use this word: found "hdr", expected a value after it'),
        ("http-request = set-header X-A", 'change a header like this: found "set-header X-A", expected set-header NAME VALUE'),
        ("http-request = set-header X-A a b", 'use this word: found "b", expected if or unless: a value that has blanks stands in quotes'),
        ("http-request = set-header X(A a", 'use this header: found "X(A", expected the name of a header field'),
        ("http-request = set-header X-A a\\nb", 'use this value: found "a\\nb", expected text without control characters'),
        ("http-request = set-header Content-Length 3", 'change this header: found "Content-Length", expected one that does not say how'),
        ("http-request = del-header", 'change a header like this: found "del-header", expected del-header NAME'),
        ("http-request = del-header X- -m beg", 'use this word: found "-m", expected the whole name of a header'),
        ("http-request = redirect /x", 'use this word: found "/x", expected location, prefix, scheme or code'),
        ("http-request = redirect", "redirect like this: found nothing, expected location TARGET, prefix TARGET or scheme TARGET"),
        ("http-request = redirect location /x code 300", 'redirect with this code: found "300", expected 301, 302, 303, 307 or 308'),
        ("http-request = redirect location /x prefix /y", 'redirect like this: found "prefix", expected one of location, prefix and scheme'),
        ("http-request = redirect location /x drop-query", 'use this word: found "drop-query", expected location, prefix, scheme or code; this version does not'),
        ("http-request = deny if { res.hdr(x) y }", 'ask for this here: found "res.hdr", expected a criterion that is known once a request'),
        ('http-request = set-header A "b', "read this quoting: found \"\"b\", expected a closing \", or \\\" for the sign"),
        ("errorfile = 503", 'read this error page: found "503", expected STATUS FILE, one a line'),
        ("errorfile = 999 /x", 'use this status: found "999", expected one of 200, 400'),
        ("errorfile = 503 /nonexistent", 'use this file: found "/nonexistent", expected one that can be read (No such file or directory)'),
        ("errorfile = 503 /", 'use this file: found "/", expected one that can be read (found a directory, expected a regular file)'),
        ("errorfile = 503 x.http", 'use this file: found "x.http", expected an absolute path, beginning with /'),
        ("cookie = a;b insert", 'use this cookie: found "a;b", expected the name of a cookie'),
        ("cookie = A", 'use a cookie like this: found "A", expected one of insert, rewrite and prefix'),
        ("cookie = A insert prefix", 'use a cookie like this: found "A insert prefix", expected one of insert, rewrite and prefix'),
        ("cookie = A insrt", 'use this word: found "insrt", expected one of insert, rewrite, prefix'),
        ("cookie = A rewrite indirect", 'combine rewrite with this: found "indirect", expected insert or prefix with it'),
        ("cookie = A rewrite preserve", 'use this word: found "preserve", expected insert or indirect with it'),
        ("cookie = A insert maxidle 3s", 'use this word: found "maxidle", expected a word that this version has'),
        ("cookie = A insert domain", 'use this word: found "domain", expected domain VALUE, without a semicolon'),
        ("hash-type = consistnt", 'hash like this: found "consistnt", expected map-based or consistent; did you mean "consistent"?'),
        ("hash-type = consistent sdm", 'hash by this function: found "sdm", expected one of sdbm, djb2, wt6, crc32, none; did you mean'),
        ("http-reuse = sometimes", 'reuse connections like this: found "sometimes", expected never, safe, aggressive or always'),
        ("option forwardfor = xcept 10.0.0.0/8", 'use this word: found "xcept", expected except NETWORK, header NAME or if-none; did you mean "except"?'),
        ("option forwardfor = except 10.0.0/x", 'use this network: found "10.0.0/x", expected ADDRESS or ADDRESS/BITS, numeric'),
        ("option httpchk = GET", 'check this URI: found "GET", expected one that begins with /'),
        ("option httpchk = get /", 'check by this method: found "get", expected a method, as in GET'),
        ("option httpchk = GET / HTTP/1.1\\r\\nHost:\\ a", 'check by this version: found "HTTP/1.1\\r\\nHost: a", expected HTTP/1.0 or HTTP/1.1; headers'),
        ("http-check = xpect status 200", 'check like this: found "xpect", expected send or expect; did you mean "expect"?'),
        ("http-check = expect status 2xx", 'expect this status: found "2xx", expected numbers and ranges, as in 200-399,404'),
        ("http-check = expect rstatus 2(", 'use this regular expression: found "2("'),
        ("http-check = expect string a b", 'expect this: found "string a b", expected string and one value; with blanks it stands in quotes'),
        ("http-check = expect hdr X Y", 'expect this header: found "X Y", expected hdr name NAME, or hdr name NAME value VALUE'),
        ("http-check = send method GET", 'use this word: found "method", expected meth, uri, ver, hdr or body; did you mean "meth"?'),
        ("http-check = send uri /a\n  send uri /b", 'check like this: found "send uri /b", expected one send in a section'),
        ("use_backend = l if" + " api" * 4096, "read this line: found 4098 words, expected at most 4096"),
        ("http-check = send hdr A", 'use this word: found "hdr", expected a value after it'),
        ("http-check = send hdr A %[src]", 'use this value: found "%[src]", expected text without variables in a check'),
        ("rate-limit sessions = x", 'use this number: found "x", expected a number from 0 to 2147483647'),
        ("default-server = chek", 'use this word: found "chek", expected a word that belongs here; did you mean "check"?'),
    ],
)  # fmt: skip
def test_line(line: str, message: str) -> None:
    assert told(line).startswith(message)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            "use_backend = l if api",
            'ask for this here: found "api (path_beg)", expected a criterion that is known where `mode = tcp` does not '
            "read requests",
        ),
        ("use_backend = l if METH_GET", 'ask for this here: found "METH_GET (method)", expected a criterion that is'),
    ],
)
def test_line_in_tcp_mode(line: str, message: str) -> None:
    assert told(line, "tcp").startswith(message)


def test_acl_lines() -> None:
    assert problems_of(HEAD.format(mode="http") + "acl x = path /x\n   pth /y\n   path\nacl a/b = path /x\n") == [
        '1.conf:8: [listen l] acl x: cannot use this criterion: found "pth", expected one that this version has; did '
        'you mean "path"?',
        '1.conf:9: [listen l] acl x: cannot compare with nothing: found "path", expected values after it, or path -m '
        "found",
        '1.conf:10: [listen l] acl a/b: cannot name a acl like this: found "a/b", expected letters, digits and . _ : - '
        "only",
    ]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("acl x path /x", '`acl x = path /x`'),
        ("acl = x path /x", '`acl x = path /x`'),
        ("acl x", "`acl x = CRITERION VALUE...`"),
        ("acl", "`acl NAME = CRITERION VALUE...`"),
    ],
)  # fmt: skip
def test_acl_in_another_notation(line: str, message: str) -> None:
    (problem,) = problems_of(HEAD.format(mode="http") + line + "\n")
    assert problem.startswith("1.conf:7: [listen l] acl: cannot read this acl: found ")
    assert problem.endswith(f"expected {message}")


def test_a_broken_acl_is_told_once() -> None:
    (problem,) = problems_of(HEAD.format(mode="http") + "acl x = pth /x\nhttp-request = deny if x\n  deny if !x api\n")
    assert problem.startswith("1.conf:7: [listen l] acl x:")


def test_several_lines_are_told_each() -> None:
    problems = problems_of(HEAD.format(mode="http") + "http-request = deny if a\n  deny\n  dny\n  set-header a\n")
    assert [problem.split(" ")[0] for problem in problems] == ["1.conf:7:", "1.conf:9:", "1.conf:10:"]


def test_modes_that_do_not_fit() -> None:
    assert problems_of(
        "[defaults]\ndefault_backend = t\n[frontend f]\nbind = :1\nmode = http\nuse_backend = t if { path /x }\n"
        "[frontend g]\nbind = :2\nmode = http\n[frontend h]\nbind = :3\ndefault_backend = w\n"
        "[backend t]\nserver s = 192.0.2.1:1\n[backend w]\nmode = http\nserver s = 192.0.2.1:1\n"
    ) == [
        "1.conf:3: [frontend f]: cannot use [backend t] with `mode = tcp`: expected `mode = http` as in [frontend f]",
        "1.conf:6: [frontend f] use_backend: cannot use [backend t] with `mode = tcp`: expected `mode = http` as in "
        "[frontend f]",
        "1.conf:7: [frontend g]: cannot use [backend t] with `mode = tcp`: expected `mode = http` as in [frontend g]",
        "1.conf:12: [frontend h] default_backend: cannot use [backend w] with `mode = http`: expected `mode = tcp` as "
        "in [frontend h]",
    ]


def test_a_frontend_may_have_rules_alone() -> None:
    (problem,) = problems_of("[frontend f]\nbind = :1\nuse_backend = b if TRUE\n[frontend g]\nbind = :2\n[backend b]\n")
    assert problem.startswith("1.conf:4: [frontend g]: cannot pass connections on: found no default_backend")


@pytest.mark.parametrize("name", ["acl x", "use_backend", "tcp-request", "http-request", "http-response"])
def test_rules_are_not_for_defaults(name: str) -> None:
    (problem,) = problems_of(f"[defaults]\n{name} = deny\n[listen l]\nbind = :1\nserver s = /run/x\n")
    assert problem.startswith(f"1.conf:2: [defaults] {name}: cannot use this option in a [defaults] section")


def test_pages_that_are_no_answers(tmp_path: Path) -> None:
    page = tmp_path / "x"
    for text, why in (
        ("<html>", "there is no empty line behind its head"),
        ("<html>\n\n", "it does not begin with a line such as HTTP/1.1 503 Service Unavailable"),
        ("HTTP/1.1 503 No\r\nContent-Length: 7\r\n\r\nno", "its Content-Length does not tell the 2 bytes of its body"),
    ):
        page.write_bytes(text.encode())
        assert f"use this as the answer 503: {why} ({page})" in told(f"errorfile = 503 {page}")
    page.write_bytes(b"x" * 65537)
    assert "expected one that can be read (found 65537 bytes, expected at most 65536)" in told(
        f"errorfile = 503 {page}"
    )
