"""What forms of the page change, and whom they are believed."""

from __future__ import annotations

import http.client
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any
from urllib.parse import urlencode

import pytest

from hitlessd.changes import Change, Item
from hitlessd.model import StatsPage
from hitlessd.web.message import Feed, Grant, Reply, Request, Waiting
from hitlessd.web.page import access, responder
from tests.support.accepting import listening
from tests.support.fronts import HAPROXY
from tests.support.processes import Process, free_port, poll_until
from tests.support.showcase import control_of, showcase_control
from tests.test_runtime_harness import FakeControl

PAGE = StatsPage(uri="/stats")
BROWSER = {"host": "lb1:8080", "origin": "http://lb1:8080", "sec-fetch-site": "same-origin"}


@pytest.fixture
def control() -> Iterator[FakeControl]:
    with showcase_control() as found:
        yield found


def token(page: StatsPage = PAGE, user: str = "") -> str:
    return access.token(b"secret", user, page)


def post(
    control: FakeControl, form: dict[str, Any], headers: dict[str, str] | None = None, admin: bool = True,
    page: StatsPage = PAGE, suffix: str = "",
) -> Reply:  # fmt: skip
    """What a form is answered."""
    body = urlencode(form, doseq=True).encode()
    request = Request("POST", page.uri + suffix, tuple((headers or {}).items()), body)
    answer = responder(control)(request, Grant("page", page, "www", admin))
    if isinstance(answer, Waiting):
        replies: list[Reply] = []
        answer.begin(replies.append)
        [answer] = replies
    assert isinstance(answer, Reply)
    return answer


def where(reply: Reply) -> str:
    return dict(reply.headers).get("Location", "")


# -- what is changed ---------------------------------------------------------------------------------------------------

WISHES = {
    "ready/app/app2": Change(Item("server-state", "app", "app2"), "ready"),
    "drain/app/app2": Change(Item("server-state", "app", "app2"), "drain"),
    "maint/postgres/primary": Change(Item("server-state", "postgres", "primary"), "maint"),
    "weight/app/app1": Change(Item("server-weight", "app", "app1"), 20),
    "off/www": Change(Item("frontend-state", "www"), "off"),
    "on/postgres": Change(Item("frontend-state", "postgres"), "on"),
}


@pytest.mark.parametrize("do", WISHES)
def test_a_button_asks_and_a_confirmation_does(control: FakeControl, do: str) -> None:
    asked = post(control, {"do": do, "token": token()}, BROWSER)
    assert asked.status == 200
    assert control.administered == []
    text = asked.body.decode()
    assert f'name="do" value="{do}"' in text
    assert f'name="token" value="{token()}"' in text
    sure = {"do": do, "token": token(), "sure": "1", "value": "20"}
    assert where(post(control, sure, BROWSER, suffix=";up;st=ERRP")) == "/stats;up;st=DONE"
    assert control.administered == [WISHES[do]]


def test_the_script_gets_words(control: FakeControl) -> None:
    script = {**BROWSER, "accept": "application/json"}
    form = {"do": "drain/app/app1", "token": token(), "sure": "1"}
    reply = post(control, form, script)
    assert (reply.status, json.loads(reply.body)) == (200, {"ok": True, "text": "app/app1: now drain"})
    control.refusal = "cannot drain app/app1: a reload is under way"
    reply = post(control, form, script)
    assert (reply.status, json.loads(reply.body)) == (409, {"ok": False, "text": control.refusal})
    assert control.refusal in post(control, form, BROWSER).body.decode()


def test_a_question_tells_what_will_come_of_it(control: FakeControl) -> None:
    def asked(do: str) -> str:
        return post(control, {"do": do, "token": token()}, BROWSER).body.decode()

    assert "Its 12 sessions go on" in asked("drain/app/app1")
    assert "will be refused" not in asked("drain/app/app1")
    assert "the last server of postgres" in asked("maint/postgres/primary")
    assert "the last server" not in asked("ready/postgres/primary")
    assert 'value="1"' in asked("weight/app/app1")


@pytest.mark.parametrize("value", ["257", "-1", "", "1.5", "٣", "99999999999999999999", "a"])
def test_weights_have_limits(control: FakeControl, value: str) -> None:
    reply = post(control, {"do": "weight/app/app1", "value": value, "sure": "1", "token": token()}, BROWSER)
    assert reply.status == 400
    assert "cannot set the weight" in reply.body.decode()
    assert control.administered == []


@pytest.mark.parametrize(
    "do",
    ["drain/app/nobody", "drain/nobody/app1", "off/app", "drain/app", "kill/app/app1", "", "drain/app/app1/x", "off/"],
)
def test_only_what_is_there_can_be_changed(control: FakeControl, do: str) -> None:
    reply = post(control, {"do": do, "sure": "1", "token": token()}, BROWSER)
    assert reply.status == 400
    assert "cannot" in reply.body.decode()
    assert control.administered == []


def test_names_may_be_anything() -> None:
    with control_of("a/b?=%&c", proxy="p/q") as (control, _):
        page = responder(control)(Request("GET", "/stats"), Grant("page", PAGE, "", True))
        assert isinstance(page, Reply)
        do = "drain/p%2Fq/a%2Fb%3F%3D%25%26c"
        assert f'value="{do}"'.encode() in page.body
        assert where(post(control, {"do": do, "sure": "1", "token": token()}, BROWSER)) == "/stats;st=DONE"
        assert control.administered == [Change(Item("server-state", "p/q", "a/b?=%&c"), "drain")]


def test_what_a_page_does_not_show_it_does_not_change(control: FakeControl) -> None:
    page = replace(PAGE, scope=("postgres",))
    form = {"do": "drain/app/app1", "sure": "1", "token": token(page)}
    assert post(control, form, BROWSER, page=page).status == 400
    assert where(post(control, {"b": "app", "s": "app1", "action": "drain"}, page=page)) == "/stats;st=ERRP"
    assert control.administered == []


# -- who is believed ---------------------------------------------------------------------------------------------------

FORGED = {
    "no token": ({}, BROWSER),
    "another token": ({"token": "0" * 32}, BROWSER),
    "a token that is none": ({"token": "\u0661"}, BROWSER),
    "another site": ({"token": "ours"}, {**BROWSER, "sec-fetch-site": "cross-site"}),
    "a sister": ({"token": "ours"}, {**BROWSER, "sec-fetch-site": "same-site"}),
    "another origin": ({"token": "ours"}, {"host": "lb1:8080", "origin": "http://evil.example"}),
    "another port": ({"token": "ours"}, {"host": "lb1:8080", "origin": "http://lb1:8081"}),
    "no origin to speak of": ({"token": "ours"}, {"host": "lb1:8080", "origin": "null"}),
    "another page": ({"token": "ours"}, {"host": "lb1:8080", "referer": "http://evil.example/lb1:8080"}),
    "no token, old browser": ({}, {"host": "lb1:8080", "referer": "http://lb1:8080/stats"}),
}


@pytest.mark.parametrize("way", FORGED)
@pytest.mark.parametrize(
    "form",
    [{"do": "drain/app/app1", "sure": "1"}, {"b": "app", "s": "app1", "action": "drain"}],
    ids=["ours", "haproxy's"],
)
def test_other_sites_cannot_change_anything(control: FakeControl, way: str, form: dict[str, str]) -> None:
    more, headers = FORGED[way]
    if more.get("token") == "ours":
        more = {"token": token()}
    reply = post(control, {**form, **more}, headers)
    assert reply.status == 403, way
    assert "cannot change anything" in reply.body.decode()
    assert control.administered == []


def test_a_token_is_its_users_and_outlives_reloads(control: FakeControl) -> None:
    page = replace(PAGE, auth=(("ann", "a"), ("bob", "b")))
    headers = {**BROWSER, "authorization": "Basic YW5uOmE="}  # ann
    form = {"do": "drain/app/app1", "sure": "1"}
    assert post(control, {**form, "token": token(page, "bob")}, headers, page=page).status == 403
    assert control.administered == []
    # Each post() has a responder of its own, as each generation has.
    assert post(control, {**form, "token": token(page, "ann")}, headers, page=page).status == 303
    feed = responder(control)(Request("GET", "/stats;events", tuple(headers.items())), Grant("page", page, "www", True))
    assert isinstance(feed, Feed)
    assert token(page, "ann") in feed.next()


def test_nobody_without_stats_admin(control: FakeControl) -> None:
    ours = {"do": "drain/app/app1", "sure": "1", "token": token()}
    assert post(control, ours, BROWSER, admin=False).status == 403
    assert where(post(control, {"b": "app", "s": "app1", "action": "drain"}, admin=False)) == "/stats;st=DENY"
    assert control.administered == []


# -- HAProxy's forms ---------------------------------------------------------------------------------------------------

FORMS: dict[str, dict[str, Any]] = {
    "one": {"s": "app1", "b": "app", "action": "drain"},
    "several": {"s": ["app1", "app2"], "b": "app", "action": "maint"},
    "an unknown one among them": {"s": ["app1", "x"], "b": "app", "action": "ready"},
    "an unknown one": {"s": "x", "b": "app", "action": "ready"},
    "by number": {"s": "app1", "b": "#2", "action": "ready"},
    "by a wrong number": {"s": "app1", "b": "#9", "action": "ready"},
    "by a number that is none": {"s": "app1", "b": "#app", "action": "ready"},
    "old words": {"s": "app1", "b": "app", "action": "disable"},
    "old words back": {"s": "app1", "b": "app", "action": "enable"},
    "no checks": {"s": "app1", "b": "app", "action": "dhlth"},
    "checks": {"s": "app1", "b": "app", "action": "ehlth"},
    "sessions": {"s": "app1", "b": "app", "action": "shutdown"},
    "unknown backend": {"s": "app1", "b": "y", "action": "drain"},
    "unknown action": {"s": "app1", "b": "app", "action": "dance"},
    "no action": {"s": "app1", "b": "app"},
    "no backend": {"s": "app1", "action": "drain"},
    "no server": {"b": "app", "action": "drain"},
}


@pytest.fixture(scope="module")
def haproxy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    port = free_port()
    file = tmp_path_factory.mktemp("haproxy") / "haproxy.cfg"
    file.write_text(
        "global\n nbthread 1\ndefaults\n mode http\n timeout connect 1s\n timeout client 20s\n timeout server 20s\n"
        f"frontend www\n bind 127.0.0.1:{port}\n stats enable\n stats uri /stats\n stats admin if TRUE\n"
        "backend app\n server app1 127.0.0.1:1 check\n server app2 127.0.0.1:1 check\n"
    )
    with Process([HAPROXY, "-db", "-f", str(file)]) as process:

        def serves() -> bool:
            assert process.running, process.stderr.text
            return listening(port)

        poll_until(serves, 10, "haproxy serves")
        yield port


@pytest.mark.parametrize("name", FORMS)
def test_haproxys_forms_are_answered_as_haproxy_does(name: str, haproxy: int) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", haproxy, timeout=10)
    try:
        connection.request("POST", "/stats", urlencode(FORMS[name], doseq=True))
        theirs = connection.getresponse()
    finally:
        connection.close()
    with control_of("app1", "app2") as (control, _):
        ours = post(control, FORMS[name])
    assert (ours.status, where(ours)) == (theirs.status, theirs.headers["location"])


def test_haproxys_forms_change_what_they_say(control: FakeControl) -> None:
    def state(server: str, value: str) -> Change:
        return Change(Item("server-state", "app", server), value)

    expected = {
        "one": [state("app1", "drain")],
        "several": [state("app1", "maint"), state("app2", "maint")],
        "an unknown one among them": [state("app1", "ready")],
        "no checks": [Change(Item("server-check", "app", "app1"), False)],
        "sessions": [],
    }
    for name, changes in expected.items():
        control.administered.clear()
        post(control, FORMS[name])
        assert control.administered == changes, name
    control.forms = [{"number": 1, "server": "app1"}, {"number": 2, "server": "other"}]
    assert where(post(control, FORMS["sessions"])) == "/stats;st=DONE"


def test_what_is_refused_is_told_as_haproxy_tells_errors(control: FakeControl) -> None:
    control.refusal = "cannot: no"
    assert where(post(control, FORMS["one"])) == "/stats;st=ERRP"
    assert where(post(control, FORMS["several"])) == "/stats;st=ERRP"
    assert len(control.administered) == 3


def test_too_much_is_refused(control: FakeControl) -> None:
    assert where(post(control, {"s": "a" * 40000})) == "/stats;st=EXCD"
    assert post(control, {"s": [""] * 2000}).status == 400


def test_many_changes_give_others_their_turn(control: FakeControl) -> None:
    form = {"b": "app", "s": ["app1", "app2"], "action": "drain"}
    turns: list[Callable[[], object]] = []
    request = Request("POST", PAGE.uri, (), urlencode(form, doseq=True).encode())
    answer = responder(control, turns.append)(request, Grant("page", PAGE, "www", True))
    assert isinstance(answer, Waiting)
    replies: list[Reply] = []
    answer.begin(replies.append)
    for done in (1, 2):
        assert len(control.administered) == done and not replies
        turns.pop()()
    assert where(replies[0]) == "/stats;st=DONE"
    assert turns == []
