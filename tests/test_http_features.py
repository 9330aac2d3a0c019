"""Every option of HTTP mode through the real relay, beside a haproxy that is configured and asked the same.

Pair.ask() compares answers (names of fields in lower case, as haproxy writes all of them; Connection by what it means)
and what the servers got. Where the two differ on purpose, a test says so and why.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.beside import Pair, Side, beside
from tests.support.origin import Seen


def get(path: str = "/", *fields: str, method: str = "GET", version: str = "1.1", host: str = "h") -> bytes:
    lines = [f"{method} {path} HTTP/{version}", *([f"Host: {host}"] if host else []), *fields, "", ""]
    return "\r\n".join(lines).encode()


def post(body: bytes, path: str = "/", *fields: str) -> bytes:
    return get(path, f"Content-Length: {len(body)}", *fields, method="POST") + body


PLAIN = "[listen web]\nbind = $web\nserver a = $a\n"


def listen(*lines: str) -> str:
    return "[listen web]\nbind = $web\nserver a = $a\n" + "\n".join(lines)


# -- routing -----------------------------------------------------------------------------------------------------------


def test_use_backend(tmp_path: Path) -> None:
    text = """
[frontend web]
bind = $web
acl static = path_beg /static/
             path_end .css
acl shop = hdr(host) -i shop.example.net
acl writes = method POST PUT
acl other = src 127.0.0.2
use_backend = b if static !writes
              c if shop or other
              d if { path_reg ^/v[0-9]+/ }
default_backend = a
[backend a]
server a = $a
[backend b]
server b = $b
[backend c]
server c = $c
[backend d]
server d = $d
"""
    with beside(tmp_path, text) as pair:
        for request, source, wanted in [
            (get("/"), 1, b"a"),
            (get("/static/x"), 1, b"b"),
            (get("/x.css?y=z"), 1, b"b"),
            (get("/static"), 1, b"a"),
            (post(b"abc", "/static/x"), 1, b"a"),
            (get("/", host="SHOP.example.net"), 1, b"c"),
            (get("/", host="shop.example.net.evil"), 1, b"a"),
            (get("/"), 2, b"c"),
            (get("/v12/x"), 1, b"d"),
            (get("/v/x"), 1, b"a"),
            (get("http://shop.example.net/static/", host="shop.example.net"), 1, b"b"),
        ]:
            reply = pair.ask(request, source=f"127.0.0.{source}")
            assert reply.status == 200 and reply.values(b"x-origin") == [wanted], request
        with pair.ours.client() as client:  # each request of a connection by itself
            assert [client.ask(get(path)).body[:1] for path in ("/", "/x.css", "/v1/", "/")] == [b"a", b"b", b"d", b"a"]


def test_nowhere(tmp_path: Path) -> None:
    """Neither a use_backend that holds nor a default_backend."""
    text = "[frontend web]\nbind = $web\nuse_backend = a if { path /a }\n[backend a]\nserver a = $a\n"
    with beside(tmp_path, text) as pair:
        assert pair.ask(get("/a")).status == 200
        assert pair.ask(get("/b")).status == 503
        pair.agree_on_logs(2)


# -- rules -------------------------------------------------------------------------------------------------------------


def test_headers_of_requests(tmp_path: Path) -> None:
    text = listen(
        "http-request = set-header X-Real-IP %[src]",
        "               add-header X-Via one",
        '               add-header X-Via "two %HM %HP"',
        "               del-header X-Secret",
        "               set-header Host inner.example.net if { hdr(host) -i outer.example.net }",
        "               set-header X-Seen %[req.hdr(x-via)]",
    )
    with beside(tmp_path, text) as pair:
        pair.ask(
            get("/p?q", "X-Real-IP: 1.2.3.4", "X-Secret: s", "x-secret: t", "X-Via: zero", host="outer.example.net")
        )
        seen = pair.seen()
        assert seen.values(b"x-real-ip") == [b"127.0.0.1"] and not seen.values(b"x-secret")
        assert seen.values(b"x-via") == [b"zero", b"one", b"two GET /p"]
        assert seen.values(b"host") == [b"inner.example.net"] and seen.values(b"x-seen") == [b"two GET /p"]


def test_headers_of_responses(tmp_path: Path) -> None:
    text = listen(
        "http-response = del-header Server",
        "                set-header X-Frame-Options DENY",
        "                add-header X-Status %[status] if { status 200:299 }",
        "                deny if { res.hdr(x-origin) -m found } { status 500 }",
    )
    with beside(tmp_path, text) as pair:
        reply = pair.ask(get())
        assert not reply.values(b"server") and reply.values(b"x-status") == [b"200"]
        assert reply.values(b"x-frame-options") == [b"DENY"]
        assert not pair.ask(get("/status/404")).values(b"x-status")
        assert pair.ask(get("/status/500")).status == 502
        pair.agree_on_logs(3)


def test_answers_by_rule(tmp_path: Path) -> None:
    text = listen(
        "http-request = allow if { path /admin/hello }",
        "               deny if { path_beg /admin }",
        "               deny deny_status 429 if { path /slow }",
        "               redirect location /new code 301 if { path /old }",
        "               redirect prefix http://other.example.net if { path_beg /moved }",
        "               redirect scheme https code 308 if { path_beg /login }",
        '               return status 200 content-type text/plain string "User-agent: *" if { path /robots.txt }',
        '               return status 404 content-type text/html lf-string "no %HP" hdr X-A "%[src]" if { path /gone }',
        "               return status 204 if { path /ping }",
    )
    with beside(tmp_path, text) as pair:
        for path, status in [
            ("/admin/hello", 200),
            ("/admin", 403),
            ("/slow", 429),
            ("/old?x=y", 301),
            ("/moved/a?x=y", 302),
            ("/login?x", 308),
            ("/robots.txt", 200),
            ("/gone", 404),
        ]:
            for method in ("GET", "HEAD"):
                assert pair.ask(get(path, method=method)).status == status
        assert pair.ask(get("/moved/a?x=y")).values(b"location") == [b"http://other.example.net/moved/a?x=y"]
        assert pair.ask(get("/login?x")).values(b"location") == [b"https://h/login?x"]
        assert pair.ask(post(b"body", "/admin")).status == 403
        # haproxy says `content-length: 0` with 204, which RFC 9110, 8.6 forbids a server to send
        assert pair.ours.ask(get("/ping")).status == 204
        for side in pair:
            with side.client() as client:  # such answers do not end a connection
                statuses = [client.ask(get(path)).status for path in ("/admin", "/old", "/gone", "/")]
                assert statuses == [403, 301, 404, 200]


# -- options -----------------------------------------------------------------------------------------------------------


def test_forwardfor(tmp_path: Path) -> None:
    text = """
[frontend web]
bind = $web
       $except
option forwardfor = except 127.0.0.2
default_backend = a
[frontend named]
bind = $named
option forwardfor = header X-Client if-none
default_backend = plain
[backend a]
option forwardfor
server a = $a
[backend plain]
server b = $b
"""
    with beside(tmp_path, text) as pair:
        pair.ask(get("/", "X-Forwarded-For: 10.0.0.1"))
        assert pair.seen().values(b"x-forwarded-for") == [b"10.0.0.1", b"127.0.0.1"]
        pair.ask(get("/"), source="127.0.0.2")
        assert pair.seen().values(b"x-forwarded-for") == []
        pair.ask(get("/"), "named")
        assert pair.seen("b").values(b"x-client") == [b"127.0.0.1"]
        pair.ask(get("/", "x-client: me"), "named")
        assert pair.seen("b").values(b"x-client") == [b"me"]


def test_httpclose(tmp_path: Path) -> None:
    with beside(tmp_path, listen("option httpclose")) as pair:
        for side in pair:
            for _ in range(2):
                with side.client() as client:
                    assert not client.ask(get()).goes_on
                    assert client.rest() == b""
            assert side.origins["a"].connections == 2
            assert side.origins["a"].seen[-1].values(b"connection") == [b"close"]
        pair.agree()


def test_errorfile_outlives_its_file(tmp_path: Path) -> None:
    page = b"HTTP/1.1 503 Sorry\r\nContent-Type: text/plain\r\nX-Page: own\r\n\r\nback soon\n"
    file = tmp_path / "503.http"
    file.write_bytes(page)
    text = listen(
        f"errorfile = 503 {file}", "           403 /dev/null", "http-request = deny if { path /no }", "retries = 0"
    )
    with beside(tmp_path, text) as pair:
        for side in pair:
            side.origins["a"].stop()
        reply = pair.ask(get())
        assert reply.status == 503 and reply.body == b"back soon\n" and reply.values(b"x-page") == [b"own"]
        for side in pair:
            with side.client() as client:
                assert client.send(get("/no")).rest() == b""
        file.unlink()
        assert pair.ours.service is not None
        pair.ours.service.restart()
        assert pair.ask(get()).body == b"back soon\n"


def test_cookie_insert(tmp_path: Path) -> None:
    text = """
[listen web]
bind = $web
balance = roundrobin
cookie = SRV insert indirect nocache httponly
retries = 1
option redispatch
server a = $a cookie one
server b = $b cookie two
"""
    with beside(tmp_path, text) as pair:
        assert pair.ask(get()).values(b"set-cookie") == [b"SRV=one; path=/; HttpOnly"]
        for _ in range(3):
            reply = pair.ask(get("/", "Cookie: x=y; SRV=two; z=1"))
            assert reply.values(b"x-origin") == [b"b"] and not reply.values(b"set-cookie")
            assert pair.seen("b").values(b"cookie") == [b"x=y; z=1"]
        # without its server
        for side in pair:
            side.origins["b"].stop()
        reply = pair.ask(get("/", "Cookie: SRV=two"))
        assert reply.values(b"set-cookie") == [b"SRV=one; path=/; HttpOnly"]
        logs = pair.agree_on_logs(5)
        assert [log["tsc"] for log in logs] == ["--NI", "--VN", "--VN", "--VN", "--DI"]
        assert logs[-1]["rc"] == "+1"


@pytest.mark.parametrize(
    ("mode", "asked", "passed", "told"),
    [("rewrite", "SRV=two", "SRV=two", "SRV=two; path=/"), ("prefix", "SRV=two~app", "SRV=app", "SRV=two~own; path=/")],
)
def test_cookie_of_the_server(tmp_path: Path, mode: str, asked: str, passed: str, told: str) -> None:
    text = f"""
[listen web]
bind = $web
cookie = SRV {mode}
server a = $a cookie one
server b = $b cookie two
"""
    with beside(tmp_path, text) as pair:
        assert pair.ask(get("/cookie")).values(b"set-cookie")[0].startswith(b"SRV=one")
        assert pair.ask(get("/cookie", f"Cookie: {asked}")).values(b"set-cookie") == [told.encode()]
        assert pair.seen("b").values(b"cookie") == [passed.encode()]
        pair.agree_on_logs(2)


@pytest.mark.parametrize(("reuse", "connections"), [("never", 4), ("safe", 3), ("aggressive", 2), ("always", 1)])
def test_http_reuse(tmp_path: Path, reuse: str, connections: int) -> None:
    """Three clients, one after the other, the second with two requests."""
    with beside(tmp_path, listen(f"http-reuse = {reuse}")) as pair:
        for side in pair:
            for requests in (1, 2, 1):
                with side.client() as client:
                    for _ in range(requests):
                        assert client.ask(get()).status == 200
            # With `never` haproxy still keeps a connection for the client that it served.
            expected = 3 if reuse == "never" and not side.ours else connections
            assert side.origins["a"].connections == expected, side.kind
        pair.agree()


@pytest.mark.parametrize("balance", ["uri", "hdr(X-Key)", "static-rr", "source", "uri whole", "url"])
def test_balance(tmp_path: Path, balance: str) -> None:
    balance = balance.replace("url", "uri len 3 depth 2")
    text = f"""
[listen web]
bind = $web
balance = {balance}
server a = $a
server b = $b weight 2
server c = $c
"""
    with beside(tmp_path, text) as pair:
        for number in range(20):
            pair.ask(get(f"/{number % 7}/{number}?x={number}", f"X-Key: {number % 5}"))


def test_queue(tmp_path: Path) -> None:
    text = """
[listen web]
bind = $web
timeout queue = 1s
server a = $a maxconn 1
"""
    with beside(tmp_path, text) as pair:
        for side in pair:
            with side.client() as busy, side.client() as waits:
                busy.send(get("/hang"))
                side.origins["a"].wait(1)
                assert waits.ask(get("/1")).status == 503
                with side.client() as served:
                    served.send(get("/2"))
                    side.origins["a"].release()
                    assert busy.receive().status == 200 and served.receive().status == 200
                assert waits.ask(get("/3")).status == 200  # who was told so is not forgotten, and may try again
        pair.agree()
        for side in pair:
            logs = {log["r"]: log for log in side.logs(4)}
            late = logs["GET /1 HTTP/1.1"]
            assert (late["tsc"], late["ST"], late["s"]) == ("sQ--", "503", "<NOSRV>")
            assert int(late["Tw"]) >= 1000 and int(late["bq"]) + int(late["sq"]) >= 1
            assert logs["GET /2 HTTP/1.1"]["tsc"] == logs["GET /3 HTTP/1.1"]["tsc"] == "----"


def test_retries(tmp_path: Path) -> None:
    text = """
[listen web]
bind = $web
retries = 2
server a = $a
[listen again]
bind = $again
retries = 2
option redispatch
balance = static-rr
server a = $a
server b = $b
"""
    with beside(tmp_path, text, defaults=_quick("connect = 500ms")) as pair:
        for side in pair:
            side.origins["a"].stop()
        assert pair.ask(get()).status == 503
        replies = [pair.ask(post(b"x"), "again") for _ in range(2)]
        assert [reply.values(b"x-origin") for reply in replies] == [[b"b"], [b"b"]]
        logs = pair.agree_on_logs(3, "b", "s", "ST", "tsc")
        assert (logs[0]["tsc"], logs[0]["rc"]) == ("SC--", "2")
        # Which of the two comes first is everybody's own affair.
        assert all(log["rc"] in ("0", "+1") and log["s"] == "b" for side in pair for log in side.logs(3)[1:])


def _quick(*timeouts: str) -> str:
    """Defaults with some short timeouts."""
    values = {"connect": "2s", "client": "20s", "server": "20s"}
    values |= dict(each.split(" = ") for each in timeouts)
    lines = [f"timeout {name} = {value}" for name, value in values.items()]
    return "[defaults]\nmode = http\noption httplog\n" + "\n".join(lines)


def test_timeouts_of_clients(tmp_path: Path) -> None:
    defaults = _quick("http-request = 1s", "http-keep-alive = 100ms", "client = 1500ms")
    with beside(tmp_path, PLAIN, defaults=defaults) as pair:
        for side in pair:
            with side.client() as client:
                client.send(b"GET / HTTP/1.1\r\nHost:")
                assert client.receive().status == 408 and client.rest() == b""
            with side.client() as client:
                assert client.ask(get()).status == 200
                assert client.rest() == b""  # nobody is told anything between two requests
        logs = pair.agree_on_logs(2, "ST", "tsc", "b", "s", "r")
        assert [(log["ST"], log["tsc"]) for log in logs] == [("408", "cR--"), ("200", "----")]
        # A body that does not come: haproxy waits for its server, says 504 and blames that one.
        with pair.ours.client() as client:
            client.send(post(b"1234567890")[:-5])
            assert client.receive(b"POST").status == 408 and client.rest() == b""
        assert pair.ours.logs(3)[2]["tsc"] == "cH--"


def test_timeout_of_the_server(tmp_path: Path) -> None:
    with beside(tmp_path, PLAIN, defaults=_quick("server = 1s")) as pair:
        assert pair.ask(get("/hang")).status == 504
        for side in pair:
            reply = side.ask(get("/halt"))
            assert reply.status == 200 and not reply.whole and len(reply.body) == 5
        logs = pair.agree_on_logs(2, "b", "s", "ST", "tsc")
        assert [log["tsc"] for log in logs] == ["sH--", "sD--"]


@pytest.mark.parametrize("option", ["option abortonclose", "no option abortonclose"])
def test_abortonclose(tmp_path: Path, option: str) -> None:
    with beside(tmp_path, f"[listen web]\nbind = $web\n{option}\nserver a = $a maxconn 1\n") as pair:
        for side in pair:
            with side.client() as busy, side.client() as leaves:
                busy.send(get("/hang"))
                side.origins["a"].wait(1)
                leaves.send(get("/left"))
                leaves.sock.shutdown(1)
                if option.startswith("no"):
                    side.origins["a"].release()
                    assert leaves.receive().status == 200
                else:
                    # haproxy says 503 if FIN came later than the request; who has left gets nothing from us
                    assert leaves.rest() == b"" or not side.ours
                    side.origins["a"].release()
                assert busy.receive().status == 200
        assert len(pair.ours.origins["a"].seen) == 1 + option.startswith("no")
        pair.agree()


# -- PROXY protocol ----------------------------------------------------------------------------------------------------


def test_proxy_protocol(tmp_path: Path) -> None:
    text = """
[listen web]
bind = $web accept-proxy
option forwardfor
http-request = set-header X-Dst %[dst]:%[dst_port]
server a = $a send-proxy
[listen two]
bind = $two accept-proxy
server b = $b send-proxy-v2
"""
    with beside(tmp_path, text) as pair:
        header = b"PROXY TCP4 192.0.2.1 192.0.2.2 1111 80\r\n"
        for side in pair:
            with side.client() as client:
                client.send(header)
                assert client.ask(get()).status == client.ask(get("/2")).status == 200
            with side.client("two") as client:
                assert client.send(header).ask(get()).status == 200
        pair.agree()
        for name in "ab":
            ours, theirs = (side.origins[name].seen for side in pair)
            assert ours[0].proxy == theirs[0].proxy != b""
        seen = pair.seen()
        assert seen.proxy == header[:-2]  # a connection of its own for each, since the header belongs to its client
        assert seen.values(b"x-forwarded-for") == [b"192.0.2.1"] and seen.values(b"x-dst") == [b"192.0.2.2:80"]
        for side in pair:
            with side.client() as client:
                assert client.send(get()).rest() == b""  # no header: nobody who is to be served


# -- what clients do ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "request_",
    [
        get(method="HEAD"),
        get("/chunked"),
        get("/chunked", method="HEAD"),
        get("/close"),
        get("/quit"),
        get("/old"),
        get("/interim"),
        get("/big"),
        get("/status/204"),
        get("/status/304"),
        get("/status/404"),
        get("/status/500"),
        get(method="OPTIONS", path="*"),
        get(method="DELETE"),
        get(method="PURGE"),
        get("/", "Connection: close"),
        get("/", "Connection: keep-alive", "Keep-Alive: 5", "X-Other: 2"),
        get("/", "TE: trailers, gzip", "Connection: TE"),
        get("/a/../b//c/%41?x=%20&y"),
        get("http://h:8080/abs?x", host="h:8080"),
        post(b"0123456789"),
        post(b""),
        get("/", "Transfer-Encoding: chunked", method="POST") + b"5\r\n01234\r\n0\r\n\r\n",
        get("/", version="1.0", host=""),
        get("/", "Connection: keep-alive", version="1.0"),
        get("/close", version="1.0"),
        get("/", "Cookie: a=b", "Cookie: c=d", "X: 1", "X: 2"),
    ],
    ids=range(27),
)
def test_messages(both: Pair, request_: bytes) -> None:
    both.forget()  # others have used the pair, in any order, and not always both of it
    both.ask(request_)


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    with beside(tmp_path_factory.mktemp("both"), PLAIN) as pair:
        yield pair


def test_fields_keep_their_case_and_order(both: Pair) -> None:
    """haproxy writes all names in lower case; nobody may care (RFC 9110, 5.1), but some do."""
    request = get("/", "ACCEPT: a", "x-B: 1", "Accept: c", "etag: d")
    reply = both.ours.ask(request)
    assert both.seen().head == request
    assert [name for name, _ in reply.fields] == [b"Server", b"X-Origin", b"Content-Length"]


def test_http_1_0(both: Pair) -> None:
    """As ab(1): it wants `Connection: keep-alive` in the answer, or the end of the connection."""
    for side in both:
        with side.client() as client:
            for _ in range(2):
                reply = client.ask(get("/", "Connection: Keep-Alive", version="1.0"))
                assert reply.values(b"connection") == [b"keep-alive"]
            assert client.ask(get("/", version="1.0")).status == 200
            assert client.rest() == b""


def test_expect(both: Pair) -> None:
    for side in both:
        with side.client() as client:
            body = post(b"0123456789", "/", "Expect: 100-continue")
            client.send(body[:-10])
            assert client.hear(12) == b"HTTP/1.1 100"
            client.send(body[-10:])
            while client.hear(1) != b"\n" or client.hear(2) != b"\r\n":
                pass
            assert client.receive().status == 200
            assert side.origins["a"].seen[-1].body == b"0123456789"


def test_pipeline(both: Pair) -> None:
    for side in both:
        with side.client() as client:
            client.send(b"".join(get(f"/status/{200 + number}") for number in (0, 1, 2, 3)))
            assert [client.receive().status for _ in range(4)] == [200, 201, 202, 203]


def test_upgrade_and_connect(tmp_path: Path) -> None:
    with beside(tmp_path, PLAIN) as pair:
        upgrade = get("/switch", "Connection: Upgrade", "Upgrade: echo")
        for request, status in ((upgrade, 101), (get("h:8443", method="CONNECT", host="h:8443"), 200)):
            for side in pair:
                with side.client() as client:
                    reply = client.ask(request)
                    assert reply.status == status
                    if status == 101:
                        assert reply.values(b"upgrade") == [b"echo"]
                        assert reply.values(b"connection")[0].lower() == b"upgrade"
                    for text in (b"hello", b"again"):
                        assert client.send(text).hear(5) == text
                    client.sock.shutdown(1)
                    assert client.rest() == b""
        pair.agree()
        pair.agree_on_logs(2, "ST", "tsc", "r", "s")


def test_what_the_standard_says_and_haproxy_does_not(both: Pair) -> None:
    def passed(request: bytes) -> list[Seen]:
        for side in both:
            assert side.ask(request).status == 200
        return [side.origins["a"].seen[-1] for side in both]

    # RFC 9110, 7.6.1: what Connection names is meant for us only
    seen = passed(get("/", "Connection: X-Mine", "X-Mine: 1"))
    assert [each.values(b"x-mine") for each in seen] == [[], [b"1"]]
    # haproxy takes the default port out of Host and of the target; nothing asks it to
    seen = passed(get("http://h:80/x", host="h:80"))
    assert [each.line for each in seen] == [b"GET http://h:80/x HTTP/1.1", b"GET http://h/x HTTP/1.1"]
    assert [each.values(b"host") for each in seen] == [[b"h:80"], [b"h"]]


def say(side: Side, request: bytes) -> bytes:
    with side.client() as client:
        return client.send(request).rest()


@pytest.mark.parametrize(
    "request_",
    [
        get("/", "Content-Length: 1", "Content-Length: 2"),
        get("/", "A : b"),
        get("/", "Content-Length: -1"),
        get("/", "Content-Length: 5x"),
        get("/", "Host: b"),
        b"GET / HTTP/1.1\r\nHost: a\r\nA\r\n\r\n",
        b"G\0T / HTTP/1.1\r\nHost: a\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
        get("/\xe9"),
    ],
    ids=range(9),
)
def test_refusals(both: Pair, request_: bytes) -> None:
    """What is none of HTTP, or could be read in two ways, gets 400 from both, byte for byte the same."""
    answer = say(both.ours, request_)
    assert answer == say(both.theirs, request_)
    assert answer.startswith(b"HTTP/1.1 400 ")


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"GET  / HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        (get("/", host=""), 400),
        (get("/", "X: a\r\n b"), 400),
        (get("/", "X: a\nY: b"), 400),
        (get("/", "Transfer-Encoding: chunked", "Content-Length: 3", method="POST") + b"0\r\n\r\n", 400),
        (get("/", version="2.0"), 505),
        (get("/", "X: " + "a" * 20000), 431),
        (get("/", "Transfer-Encoding: gzip", method="POST"), 501),
    ],
    ids=range(8),
)
def test_refusals_of_our_own(both: Pair, request_: bytes, status: int) -> None:
    """haproxy 2.6 passes the first six on, and says 400 to the others."""
    before = len(both.ours.origins["a"].seen)
    assert say(both.ours, request_).startswith(b"HTTP/1.1 %d " % status)
    assert len(both.ours.origins["a"].seen) == before
    reply = both.theirs.ask(request_)
    assert reply.status == (200 if status in (400, 505) else 400)


@pytest.mark.parametrize("path", ["/drop", "/garbage"])
def test_no_response(both: Pair, path: str) -> None:
    """A kept connection may have been closed just then: such a request is tried anew, on a fresh one, and fails."""
    for method in ("GET", "POST"):
        replies = [side.ask(get(path, "Content-Length: 0", method=method)) for side in both]
        assert [reply.status for reply in replies] == [502, 502]
        assert replies[0].body == replies[1].body


def test_response_that_is_cut(both: Pair) -> None:
    for side in both:
        reply = side.ask(get("/cut"))
        assert reply.status == 200 and not reply.whole


def test_restart_between_requests(tmp_path: Path) -> None:
    """A kept connection, of the client and to the server, outlives a reload and a restart."""
    with beside(tmp_path, PLAIN) as pair:
        side = pair.ours
        assert side.service is not None
        with side.client() as client:
            assert client.ask(get()).status == 200
            assert side.service.daemon.reload().returncode == 0
            assert client.ask(get()).status == 200
            side.service.restart()
            assert client.ask(get()).status == 200
