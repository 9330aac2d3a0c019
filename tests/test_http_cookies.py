"""Stickiness by cookies: the same bytes and letters as a real haproxy's, case by case and at random."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hitlessd.http.cookies import Edit, cacheable, from_client, from_server
from hitlessd.model import Cookie
from tests.support.judge import Judge, field_values

#: Of s1, s2, ...; two share a cookie, of which the first is disabled, one is disabled, one has none.
IDENTS = ["a", "b", "c", "d", "d", ""]
DISABLED = {2, 3}
SERVERS: dict[bytes, list[int]] = {b"a": [0], b"b": [1], b"c": [2], b"d": [3, 4]}

MODES = [
    "insert",
    "insert indirect",
    "insert nocache",
    "insert indirect nocache postonly",
    "insert preserve",
    "insert indirect preserve",
    "insert httponly secure domain .example.org domain b.test attr SameSite=Lax attr X",
    "rewrite",
    "prefix",
    "prefix indirect",
]


def cookie_of(words: str) -> Cookie:
    """The model of a line's words."""
    mode, *rest = words.split()
    flags = ("indirect", "nocache", "httponly", "secure", "postonly", "preserve")
    pairs = list(pairwise(rest))
    return Cookie(
        "SRV",
        mode,  # type: ignore[arg-type]
        domains=tuple(value for word, value in pairs if word == "domain"),
        attributes=tuple(value for word, value in pairs if word == "attr"),
        **{word: True for word in rest if word in flags},
    )


@dataclass
class Response:
    status: int
    fields: list[tuple[bytes, bytes]]

    def values(self, name: bytes) -> list[bytes]:
        return [value for key, value in self.fields if key.lower() == name]


def apply(fields: list[tuple[bytes, bytes]], edits: tuple[Edit, ...]) -> list[tuple[bytes, bytes]]:
    """As the HTTP connection does it."""
    places: dict[bytes, list[int]] = {}
    for place, (name, _) in enumerate(fields):
        places.setdefault(name.lower(), []).append(place)
    result: list[tuple[bytes, bytes] | None] = list(fields)
    for edit in edits:
        if edit.op == "add":
            result.append((edit.name, edit.value))
            continue
        place = places[edit.name.lower()][edit.nth]
        result[place] = (fields[place][0], edit.value) if edit.op == "replace" else None
    return [field for field in result if field is not None]


def values(fields: list[tuple[bytes, bytes]], name: bytes) -> list[bytes]:
    """Without spaces around equal signs, which haproxy removes even where it changes nothing else."""
    return [re.sub(rb"[ \t]*=[ \t]*", b"=", value) for key, value in fields if key.lower() == name]


def check(judge: Judge, cookie: Cookie, method: bytes, cookies: list[bytes], response: Response) -> None:
    """Everything that haproxy does with this exchange, we do too."""
    asked = [(b"Cookie", value) for value in cookies]
    lines = b"".join(b"Cookie: %s\r\n" % value for value in cookies)
    request = b"%s / HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n%sConnection: close\r\n\r\n" % (method, lines)
    fields = b"".join(b"%s: %s\r\n" % field for field in response.fields)
    answer = b"HTTP/1.1 %d X\r\n%sConnection: close\r\n\r\n" % (response.status, fields)
    number, seen, got = judge.ask(request, answer)
    letters = judge.logged()

    presented = from_client(cookie, cookies, SERVERS, lambda server: server not in DISABLED)
    if presented.server is not None:
        assert presented.server == number
    assert values(apply(asked, presented.edits), b"cookie") == field_values(seen, b"cookie")
    stays = presented.server is not None
    answered = from_server(cookie, method, response, IDENTS[number], stays=stays, dated=presented.dated)
    passed = apply(response.fields, answered.edits)
    for name in (b"set-cookie", b"cache-control"):
        assert values(passed, name) == field_values(got, name)
    assert letters == f"--{presented.letter}{answered.letter}"


@pytest.fixture(scope="module", params=MODES)
def judged(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Judge, Cookie]]:
    """A haproxy for each mode, and the same mode as ours."""
    servers = []
    for number, ident in enumerate(IDENTS):
        servers.append((f"cookie {ident} " if ident else "") + ("disabled" if number in DISABLED else ""))
    lines = [f"cookie SRV {request.param}", 'log-format "%tsc"', "option dontlognull", "option http-server-close"]
    with Judge(tmp_path_factory.mktemp("haproxy"), lines, servers) as judge:
        yield judge, cookie_of(request.param)


CLIENT = [
    [],
    [b"SRV=a"],
    [b"SRV=b; x=1"],
    [b"x=1; SRV=a"],
    [b"x=1; SRV=a; y=2"],
    [b"x=1;SRV=a;y=2"],
    [b"x=1;  SRV=a  ;  y=2"],
    [b"x=1, SRV=a, y=2"],
    [b"SRV=nobody"],
    [b"SRV="],
    [b"SRV"],
    [b"SRV=c"],
    [b"SRV=d"],
    [b"SRV=c; SRV=nobody"],
    [b"SRV=c; SRV=a"],
    [b"SRV=a; SRV=b"],
    [b"SRV=nobody; SRV=b"],
    [b"SRV=a", b"x=1"],
    [b"x=1", b"SRV=b", b"SRV=a; y=2"],
    [b"SRV=a~tail; x=1"],
    [b"x=1; SRV=a~tail"],
    [b"SRV=~tail"],
    [b"SRV=nobody~"],
    [b"SRV=a|"],
    [b"SRV=a|abcd"],
    [b"SRV=a|AAAAB"],
    [b"SRV=a|AAAA-"],
    [b"SRV=a|AAAAB|AAAAB; x=1"],
    [b'x="a; SRV=b"; SRV=a'],
    [b'x="\\"; SRV=b'],
    [b"$Version=1; SRV=a; $Path=/; y=2"],
    [b"$Version=1; SRV=a; $Path=/"],
    [b"x; SRV=a; y"],
    [b"xSRV=a; SRVx=b"],
    [b"srv=a"],
    [b"SRV=a;"],
    [b";SRV=a"],
    [b"x=1; SRV=a; SRV=b; y=2; SRV=a"],
]


@pytest.mark.parametrize("cookies", CLIENT, ids=repr)
def test_what_a_client_presents(judged: tuple[Judge, Cookie], cookies: list[bytes]) -> None:
    judge, cookie = judged
    check(judge, cookie, b"GET", cookies, Response(200, [(b"Content-Length", b"0")]))


SERVER = [
    [b"SRV=x"],
    [b"SRV=x; path=/; HttpOnly"],
    [b"SRV = x ; path=/"],
    [b"SRV="],
    [b"SRV"],
    [b"other=1", b"SRV=x,y; Path=/"],
    [b'SRV="a;b"; Path=/'],
    [b"SRV=x", b"SRV=y"],
    [b"SRVX=1; SRV=2"],
]


@pytest.mark.parametrize("asked", [[], [b"SRV=a"], [b"SRV=a~b"]], ids=repr)
@pytest.mark.parametrize("set_cookies", SERVER, ids=repr)
def test_what_a_server_sets(judged: tuple[Judge, Cookie], set_cookies: list[bytes], asked: list[bytes]) -> None:
    judge, cookie = judged
    fields = [(b"Content-Length", b"0"), *((b"Set-Cookie", value) for value in set_cookies)]
    check(judge, cookie, b"GET", asked, Response(200, fields))


@pytest.mark.parametrize("method", [b"GET", b"HEAD", b"POST", b"OPTIONS", b"PUT"])
@pytest.mark.parametrize("status", [200, 204, 302, 304, 404, 500])
def test_methods_and_states(judged: tuple[Judge, Cookie], method: bytes, status: int) -> None:
    judge, cookie = judged
    check(judge, cookie, method, [], Response(status, [(b"ETag", b'"1"')]))


_token = st.sampled_from([b"SRV", b"a", b"b", b"c", b"d", b"x", b"$P", b"~", b"t"])
_glue = st.sampled_from([b"=", b"=", b"; ", b";", b";", b", ", b"~", b'"'])


def _fields(first: bytes = b"") -> st.SearchStrategy[bytes]:
    rest = st.lists(st.tuples(_glue, _token).map(b"".join), max_size=9).map(b"".join)
    return st.tuples(st.just(first), _token, rest).map(b"".join)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cookies=st.lists(_fields(), max_size=3), replies=st.lists(_fields(b"SRV="), max_size=2), data=st.data())
def test_at_random(
    judged: tuple[Judge, Cookie], cookies: list[bytes], replies: list[bytes], data: st.DataObject
) -> None:
    judge, cookie = judged
    fields = [(b"Content-Length", b"0"), *((b"Set-Cookie", value) for value in replies)]
    method = data.draw(st.sampled_from([b"GET", b"POST"]))
    check(judge, cookie, method, cookies, Response(200, fields))


CACHING = [
    *[[(b"ETag", b"x"), (b"Cache-Control", value)] for value in (b"public", b"private", b"no-store", b"no-cache")],
    *[
        [(b"ETag", b"x"), (b"Cache-Control", value)]
        for value in (b"max-age=0", b"max-age=3", b"s-maxage=0", b"PRIVATE")
    ],
    [(b"Cache-Control", b"max-age=3")],
    [(b"Cache-Control", b"x, max-age=0, s-maxage=4")],
    [(b"Cache-Control", b"public")],
    [(b"Cache-Control", b"public, private")],
    [(b"ETag", b"x"), (b"Cache-Control", b"private"), (b"Cache-Control", b"public")],
    [(b"ETag", b"x"), (b"Cache-Control", b'no-cache="set-cookie"')],
    [(b"Expires", b"0")],
    [(b"Last-Modified", b"0")],
    [(b"ETag", b"x"), (b"Pragma", b"no-cache")],
    [(b"ETag", b"x"), (b"Pragma", b"x, no-cache")],
    [(b"ETag", b"x"), (b"Pragma", b"no-cache"), (b"Cache-Control", b"public")],
    [(b"X", b"y")],
]


@pytest.mark.parametrize("fields", CACHING, ids=repr)
def test_what_a_cache_might_store(judged: tuple[Judge, Cookie], fields: list[tuple[bytes, bytes]]) -> None:
    judge, cookie = judged
    check(judge, cookie, b"GET", [], Response(200, [(b"Content-Length", b"0"), *fields]))


def test_no_cache_stores_what_changes_something() -> None:
    response = Response(200, [(b"ETag", b"x")])
    assert cacheable(b"GET", response)
    assert not cacheable(b"POST", response)


@given(st.lists(st.binary(max_size=30), max_size=3))
def test_any_bytes_are_read(fields: list[bytes]) -> None:
    for words in MODES:
        cookie = cookie_of(words)
        presented = from_client(cookie, fields, SERVERS, lambda server: server not in DISABLED)
        assert all(edit.nth < len(fields) for edit in presented.edits)
        from_server(cookie, b"GET", Response(200, [(b"Set-Cookie", value) for value in fields]), "a")
