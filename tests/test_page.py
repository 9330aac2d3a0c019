"""The statistics page: who gets it, what is in it, and that nothing in it is what its makers did not write."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from hitlessd.model import StatsPage
from hitlessd.runtime.stat import StatFilter, show_stat
from hitlessd.web.message import Feed, Grant, Reply, Request, Responder
from hitlessd.web.page import responder
from tests.support.showcase import HOSTILE, control_of, showcase_control
from tests.test_runtime_harness import FakeControl

PAGE = StatsPage(uri="/stats", node="lb1")


@pytest.fixture
def control() -> Iterator[FakeControl]:
    with showcase_control() as found:
        yield found


@pytest.fixture
def ask(control: FakeControl) -> Callable[..., Reply]:
    respond = responder(control)

    def asked(suffix: str = "", page: StatsPage = PAGE, admin: bool = False, target: str = "", **headers: str) -> Reply:
        fields = tuple((name.replace("_", "-"), value) for name, value in headers.items())
        request = Request("GET", target or page.uri + suffix, fields)
        answer = respond(request, Grant("page", page, "www", admin))
        assert isinstance(answer, Reply)
        return answer

    return asked


def basic(name: str, password: str) -> str:
    return "Basic " + base64.b64encode(f"{name}:{password}".encode()).decode()


class _Reader(HTMLParser):
    """Elements with their attributes, and the text outside of script and style."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self._inside = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self._inside = tag

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside not in ("script", "style"):
            self.text += data

    def rows(self) -> dict[str, dict[str, str | None]]:
        return {str(attrs["id"]): attrs for tag, attrs in self.elements if tag == "tr" and "id" in attrs}


def read(reply: Reply) -> _Reader:
    return _Reader(reply.body.decode())


def headers(reply: Reply) -> dict[str, str]:
    return dict(reply.headers)


# -- who gets it -------------------------------------------------------------------------------------------------------


def test_only_under_its_uri(ask: Callable[..., Reply], control: FakeControl) -> None:
    assert ask().status == 200
    assert ask(target="http://lb1/stats;up").status == 200
    for elsewhere in ("/elsewhere", "/", "*", "http://lb1/elsewhere", "http://lb1"):
        assert ask(target=elsewhere).status == 404
    answer = responder(control)(Request("GET", "/stats"), Grant("page"))
    assert isinstance(answer, Reply) and answer.status == 404


@pytest.mark.parametrize("suffix", ["", ";csv", ";json", ";up", ";events"])
def test_a_password_is_asked_for_everywhere(suffix: str, ask: Callable[..., Reply], control: FakeControl) -> None:
    page = replace(PAGE, auth=(("ann", "secret"), ("bob", "pässword")), realm='the "inner" circle')
    for given in (
        "",
        "Basic",
        "Basic !!",
        "Bearer x",
        basic("ann", "pässword"),
        basic("ann", ""),
        basic("eve", "secret"),
    ):
        reply = ask(suffix, page, authorization=given)
        assert reply.status == 401, given
        assert headers(reply)["WWW-Authenticate"] == 'Basic realm="the \\"inner\\" circle"'
        assert b"app1" not in reply.body
    request = Request("GET", page.uri + suffix, (("authorization", basic("bob", "pässword")),))
    answer = responder(control)(request, Grant("page", page))
    assert isinstance(answer, Feed) if suffix == ";events" else isinstance(answer, Reply) and answer.status == 200


# -- what is in it -----------------------------------------------------------------------------------------------------


def test_everything_is_there_without_scripts(ask: Callable[..., Reply]) -> None:
    page = read(ask())
    assert list(page.rows()) == [
        *("www/FRONTEND", "app/app1", "app/app2", "app/app3", "app/app4", "app/BACKEND"),
        *("postgres/FRONTEND", "postgres/primary", "postgres/replica", "postgres/BACKEND"),
        *("images/cdn", "images/BACKEND"),
    ]
    for said in (
        *("lb1", "hitlessd 1.2.3", "1 of 7 servers is down", "DOWN", "UP 2/3", "MAINT", "DRAIN", "no check"),
        *("Layer7 wrong status: 503 Service Unavailable", "Reload 8 was refused", "reload 7 worked", "1 lost"),
        *("start 100 ms", "1 change at run time", "state drain, configured ready", "option migrate is off", "912k"),
    ):
        assert said in page.text, said


def test_csv_is_what_show_stat_says(ask: Callable[..., Reply], control: FakeControl) -> None:
    now = time.time()
    for suffix, wanted in {
        ";csv": StatFilter(),
        ";csv;norefresh": StatFilter(),
        ";csv;up": StatFilter(hide_down=True),
        ";no-maint;csv": StatFilter(hide_maint=True),
    }.items():
        reply = ask(suffix)
        assert reply.content_type == "text/plain; charset=utf-8"
        # Ages may have gone on by a second.
        expected = [show_stat(control, wanted, now + late) for late in (0, 1)]
        assert reply.body.decode() in expected, suffix


def test_the_other_forms_are_there_as_well(ask: Callable[..., Reply]) -> None:
    reply = ask(";json")
    assert reply.content_type == "application/json"
    assert len(json.loads(reply.body)) == 12
    assert b".pxname.1:KNS:str:www\n" in ask(";typed").body


def test_options_hide_what_they_say(ask: Callable[..., Reply]) -> None:
    hidden = {
        suffix: [name for name, attrs in read(ask(suffix)).rows().items() if "hidden" in attrs]
        for suffix in ("", ";up", ";no-maint", ";no-maint;norefresh")
    }
    assert hidden == {
        "": [],
        ";up": ["app/app2", "app/app4"],
        ";no-maint": ["app/app4"],
        ";no-maint;norefresh": ["app/app4"],
    }


def test_browsers_without_scripts_load_it_again(ask: Callable[..., Reply]) -> None:
    page = replace(PAGE, refresh=5.0)
    again = b'<noscript><meta http-equiv="refresh" content="5"></noscript>'
    assert again in ask(page=page).body
    assert again not in ask(";norefresh", page).body
    assert b"http-equiv" not in ask().body


def test_scope_is_all_that_is_told(ask: Callable[..., Reply], control: FakeControl) -> None:
    page = replace(PAGE, scope=(".", "images"))
    for text in (ask(page=page).body.decode(), ask(";csv", page).body.decode(), ask(";json", page).body.decode()):
        assert "images" in text
        assert "www" in text  # the page's own proxy
        assert "postgres" not in text
        assert "app1" not in text
    feed = responder(control)(Request("GET", "/stats;events"), Grant("page", page, "www"))
    assert isinstance(feed, Feed)
    told = feed.next()
    assert "503" not in told
    assert "hitlessd.conf" not in told  # errors of the configuration may be about anything
    assert "hitlessd.conf" in ask().body.decode()


def test_it_is_called_what_the_configuration_says(ask: Callable[..., Reply]) -> None:
    def called(**more: str) -> list[str]:
        text = ask(page=StatsPage(uri="/stats", **more)).body.decode()  # type: ignore[arg-type]
        return re.findall(r"<(?:h1|span class=\"about\")>(.*?)</", text)

    assert called() == ["hitlessd", "version 1.2.3"]
    assert called(node="lb1") == ["lb1", "hitlessd 1.2.3"]
    assert called(description="Shop") == ["Shop", "hitlessd 1.2.3"]
    assert called(node="lb1", description="Shop") == ["lb1", "Shop", "hitlessd 1.2.3"]


def test_the_version_may_be_hidden(ask: Callable[..., Reply]) -> None:
    assert b"1.2.3" not in ask(page=replace(PAGE, hide_version=True)).body


def test_buttons_are_for_those_who_may(ask: Callable[..., Reply]) -> None:
    for admin in (False, True):
        elements = read(ask(admin=admin)).elements
        buttons = [attrs["value"] for tag, attrs in elements if tag == "button"]
        assert ("drain/app/app2" in buttons) is admin
        assert ("off/www" in buttons) is admin
        assert any(attrs.get("name") == "token" for _, attrs in elements) is admin
        assert (b"10.0.0.1:8001" in ask(admin=admin).body) is admin


def test_a_good_day(control: FakeControl, ask: Callable[..., Reply]) -> None:
    with control_of("app1", "app2") as (well, _):
        answer = responder(well)(Request("GET", "/stats"), Grant("page", PAGE))
        assert isinstance(answer, Reply)
        text = read(answer).text
    assert "All 2 servers are in rotation" in text
    assert "There was none yet" in text
    assert "at run time" not in text


def test_the_stored_configuration_is_told(control: FakeControl, ask: Callable[..., Reply]) -> None:
    control.warm, control.config_error = True, "/etc/h.conf:1: cannot read this"
    text = read(ask()).text
    assert "The last good configuration is served" in text
    assert "/etc/h.conf:1: cannot read this" in text


# -- what must not be --------------------------------------------------------------------------------------------------


def test_policies_allow_what_is_in_it_and_no_more(ask: Callable[..., Reply]) -> None:
    for reply in (ask(), ask(";csv"), ask(target="/x"), ask(page=replace(PAGE, auth=(("a", "b"),)))):
        found = headers(reply)
        policy = dict(part.strip().split(" ", 1) for part in found["Content-Security-Policy"].split(";"))
        assert policy["default-src"] == "'none'"
        assert policy["frame-ancestors"] == "'none'"
        assert "unsafe" not in found["Content-Security-Policy"]
        assert found["X-Content-Type-Options"] == "nosniff"
        assert found["X-Frame-Options"] == "DENY"
        assert found["Referrer-Policy"] == "same-origin"
        assert found["Cache-Control"] == "no-store"
    text = ask(admin=True).body.decode()
    for name in ("script", "style"):
        [inside] = re.findall(f"<{name}>(.*?)</{name}>", text, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(inside.encode()).digest()).decode()
        assert policy[f"{name}-src"] == f"'sha256-{digest}'"
    for tag, attrs in read(ask(admin=True)).elements:
        assert not any(attr == "style" or attr.startswith("on") for attr in attrs), (tag, attrs)
        assert not str(attrs.get("src", attrs.get("href", "/"))).startswith(("http", "//")), (tag, attrs)


def test_nobodys_text_is_markup(control: FakeControl) -> None:
    with control_of(HOSTILE, proxy=HOSTILE, text=HOSTILE) as (hostile, _):
        hostile.history += [replace(control.history[-1], reason=HOSTILE, phases=((HOSTILE, 0.1),))]
        hostile.last_reload = hostile.history[-1]
        hostile.info = [replace(control.info[0], note=HOSTILE, version=HOSTILE)]
        hostile.warm, hostile.config_error, hostile.version = True, HOSTILE, HOSTILE
        change = replace(next(iter(control.changes.items.values())), value=HOSTILE, before=HOSTILE)
        change = replace(change, item=change.item._replace(proxy=HOSTILE, server=HOSTILE))
        hostile.changes.items[change.item] = change
        page = StatsPage(uri='/"><script>', node=HOSTILE, description=HOSTILE)
        respond: Responder = responder(hostile)
        answer = respond(Request("GET", page.uri + ';up"><script>'), Grant("page", page, "www", True))
        question = respond(
            Request("POST", page.uri, (), b"do=drain/%253Cscript%253Ealert%25281%2529%253C%252Fscript%253E/x"),
            Grant("page", page, "www", True),
        )
        feed = respond(Request("GET", page.uri + ";events"), Grant("page", page, "www", True))
    assert isinstance(answer, Reply) and isinstance(question, Reply) and isinstance(feed, Feed)
    found = read(answer)
    assert [tag for tag, _ in found.elements].count("script") == 1
    assert "alert(1)" in found.text
    assert "\u202e" not in answer.body.decode()
    assert [tag for tag, _ in read(question).elements].count("script") == 1
    assert "cannot change <script>alert(1)</script>: there" in read(question).text
