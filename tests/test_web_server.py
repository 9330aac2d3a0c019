"""Main's web server: what it answers, what it refuses, and whom it drops; one test for each promise."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator

import pytest

from hitlessd.errors import PeerError
from hitlessd.model import StatsPage
from hitlessd.web.exchange import BODY_LIMIT
from hitlessd.web.feeds import FEEDS
from hitlessd.web.message import Grant, Reply
from hitlessd.web.server import CLIENTS
from tests.support.web_server import Browser, Clock, WebHarness

GET = b"GET %b HTTP/1.1\r\nHost: h\r\n\r\n"


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def web(clock: Clock) -> Iterator[WebHarness]:
    with WebHarness(clock).open() as harness:
        yield harness


@pytest.fixture
def browser(web: WebHarness) -> Iterator[Browser]:
    with web.connect() as browser:
        yield browser


# --- exchanges


def test_a_connection_is_kept_for_the_next_request(browser: Browser) -> None:
    for number in range(3):
        status, fields, body = browser.get(f"/echo?{number}")
        assert (status, body) == (200, f"GET /echo?{number} ".encode())
        assert fields["x-a"] == "b" and "connection" not in fields
        assert fields["date"].endswith(" GMT")
    assert not browser.over


def test_requests_sent_at_once_are_answered_in_order(browser: Browser, web: WebHarness) -> None:
    browser.send(b"".join(GET % b"/echo?%d" % number for number in range(40)))
    assert [browser.response()[2] for _ in range(40)] == [b"GET /echo?%d " % number for number in range(40)]


def test_http_10_ends_unless_asked_to_go_on(web: WebHarness) -> None:
    with web.connect() as plain, web.connect() as kept:
        plain.send(b"GET /echo HTTP/1.0\r\n\r\n")
        assert plain.response()[1]["connection"] == "close"
        assert plain.over
        kept.send(b"GET /echo HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
        assert kept.response()[1]["connection"] == "keep-alive"
        assert not kept.over


def test_close_is_obeyed(browser: Browser) -> None:
    assert browser.get("/echo", "Connection: close\r\n")[1]["connection"] == "close"
    assert browser.over


def test_head_is_get_without_the_body(browser: Browser, web: WebHarness) -> None:
    status, fields, body = browser.get("/echo", method="HEAD")
    assert (status, fields["content-length"], body) == (200, str(len("GET /echo ")), b"")
    assert browser.get("/echo")[2] == b"GET /echo "


def test_bodies_arrive_whole(browser: Browser) -> None:
    text = b"POST /echo HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\n\r\nhello"
    for at in range(len(text)):
        browser.send(text[at : at + 1])
    assert browser.response()[2] == b"POST /echo hello"
    head = b"POST /echo HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n"
    for piece in (head, b"3;a=b\r\nhel\r", b"\n2\r\nlo\r\n0\r\nX: y\r", b"\n\r\n"):
        browser.send(piece)
    assert browser.response()[2] == b"POST /echo hello"


def test_who_waits_for_100_gets_it(browser: Browser) -> None:
    browser.send(b"POST /echo HTTP/1.1\r\nHost: h\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n")
    assert browser.wait(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
    browser.send(b"ok")
    assert browser.response()[2] == b"POST /echo ok"


def test_a_client_that_has_sent_all_still_hears_the_answer(browser: Browser) -> None:
    browser.send(GET % b"/echo")
    browser.sock.shutdown(socket.SHUT_WR)
    assert browser.response()[2] == b"GET /echo "
    assert browser.over


def test_an_absolute_target_is_its_path(browser: Browser) -> None:
    browser.send(b"GET http://h/echo?a HTTP/1.1\r\nHost: h\r\n\r\n")
    assert browser.response()[2] == b"GET /echo?a "


def test_an_answer_may_come_later(browser: Browser, web: WebHarness) -> None:
    browser.send(GET % b"/later" + GET % b"/echo")
    assert browser.read() == b""
    web.site.waiting[0](Reply(200, b"at last"))
    web.site.waiting[0](Reply(200, b"twice"))
    assert [browser.response()[2] for _ in range(2)] == [b"at last", b"GET /echo "]


# --- refusals


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"GET /none HTTP/1.1\r\nHost: h\r\n\r\n", 404),
        (b"DELETE /echo HTTP/1.1\r\nHost: h\r\n\r\n", 405),
        (b"GET /echo HTTP/1.1\r\n\r\n", 400),
        (b"nonsense\r\n\r\n", 400),
        (b"GET /echo HTTP/2.0\r\nHost: h\r\n\r\n", 505),
        (b"POST /echo HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n" % (BODY_LIMIT + 1), 413),
        (b"POST /echo HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: gzip\r\n\r\n", 501),
        (
            b"POST /echo HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n1ffff\r\n" + b"x" * 70000,
            413,
        ),
        (b"GET /echo HTTP/1.1\r\nHost: h\r\nX: " + b"x" * 17000 + b"\r\n\r\n", 431),
        (b"GET /fail HTTP/1.1\r\nHost: h\r\n\r\n", 500),
    ],
    ids=lambda value: str(value) if isinstance(value, int) else None,
)
def test_what_cannot_be_answered_is_refused(browser: Browser, web: WebHarness, request_: bytes, status: int) -> None:
    browser.send(request_)
    found, _, body = browser.response()
    assert found == status and body.startswith(b"cannot ")


def test_a_refused_method_is_told_which_there_are(browser: Browser) -> None:
    assert browser.get("/echo", method="PUT")[1]["allow"] == "GET, HEAD, POST"
    assert browser.get("/echo")[0] == 200


def test_a_responder_that_fails_is_logged_and_costs_nobody_else(browser: Browser, web: WebHarness) -> None:
    assert browser.get("/fail")[0] == 500
    assert web.logged == [("err", "cannot answer /fail: RuntimeError: broken")]
    assert browser.get("/echo")[0] == 200


# --- patience


def test_a_request_has_ten_seconds(browser: Browser, web: WebHarness, clock: Clock) -> None:
    browser.send(b"GET /echo HT")
    clock.now += 9.9
    browser.send(b"TP/1.1\r\n")
    assert not browser.over
    clock.now += 0.1
    assert browser.response()[0] == 408
    assert browser.over


def test_a_client_that_never_asks_has_ten_seconds(browser: Browser, clock: Clock) -> None:
    clock.now += 9.9
    assert not browser.over
    clock.now += 0.1
    assert browser.left() == b""


def test_an_idle_client_has_a_minute(browser: Browser, clock: Clock) -> None:
    browser.get("/echo")
    clock.now += 59.9
    assert not browser.over
    clock.now += 0.1
    assert browser.left() == b""


def test_an_answer_that_does_not_come_is_a_503(browser: Browser, web: WebHarness, clock: Clock) -> None:
    browser.send(GET % b"/later")
    clock.now += 30
    assert browser.response()[0] == 503
    web.site.waiting[0](Reply(200, b"too late"))
    assert browser.over and browser.received == b""


def test_who_does_not_read_is_dropped(browser: Browser, web: WebHarness, clock: Clock) -> None:
    browser.send(GET % b"/big")
    web.settle()
    clock.now += 10
    web.settle()
    assert web.logged == [("notice", f"dropping a web client {browser.sock.getsockname()[0]}:"
                                     f"{browser.sock.getsockname()[1]}: it does not read its answer")]  # fmt: skip
    web.until(lambda: browser.over, "the end")
    assert len(browser.received) < len(web.site.body)


def test_who_reads_slowly_gets_it_all(browser: Browser, web: WebHarness) -> None:
    assert browser.get("/big")[2] == web.site.body


def test_who_is_refused_in_the_midst_of_sending_reads_why(browser: Browser, web: WebHarness, clock: Clock) -> None:
    browser.send(b"POST /echo HTTP/1.1\r\nHost: h\r\nContent-Length: 99999\r\n\r\n")
    browser.send(b"x" * 50000)
    assert browser.response()[0] == 413
    browser.send(b"x" * 10000)  # no reset
    assert browser.over
    before = len(os.listdir("/proc/self/fd"))
    clock.now += 2
    web.settle()
    assert len(os.listdir("/proc/self/fd")) == before - 1


# --- crowds


def test_idle_clients_make_room_and_busy_ones_do_not(web: WebHarness, clock: Clock) -> None:
    idle = web.connect()
    idle.get("/echo")
    others = []
    for _ in range(CLIENTS - 1):
        clock.now += 0.01
        others.append(web.connect().send(GET % b"/later"))
    with web.connect() as newcomer:
        assert newcomer.get("/echo")[0] == 200
        assert idle.over
        newcomer.send(GET % b"/later")
        with web.connect() as one_too_many:
            assert one_too_many.over
            assert not newcomer.over
    assert any("too many clients" in message for _, message in web.logged)
    for each in (idle, *others):
        each.sock.close()


def test_feeds_leave_room_for_others(web: WebHarness) -> None:
    fed = [web.connect().send(GET % b"/feed") for _ in range(FEEDS)]
    with web.connect() as one_more:
        assert one_more.get("/feed")[0] == 503
        assert one_more.get("/echo")[0] == 200
    for each in fed:
        each.sock.close()


# --- feeds


def test_a_feed_is_events_in_chunks(browser: Browser, web: WebHarness, clock: Clock) -> None:
    web.site.events = ["data: one\n\n"]
    browser.send(GET % b"/feed")
    head = browser.wait(b"\r\n\r\n").decode()
    assert "content-type: text/event-stream" in head and "transfer-encoding: chunked" in head
    assert browser.wait(b"\n\n\r\n") == b"b\r\ndata: one\n\n\r\n"
    web.site.events = ["data: two\n\n"]
    clock.now += 1
    assert browser.wait(b"\n\n\r\n") == b"b\r\ndata: two\n\n\r\n"


def test_a_silent_feed_comments(browser: Browser, web: WebHarness, clock: Clock) -> None:
    browser.send(GET % b"/feed")
    browser.wait(b"\r\n\r\n")
    for _ in range(14):
        clock.now += 1
        web.settle()
    assert browser.read() == b""
    clock.now += 1
    assert browser.wait(b"\n\n\r\n") == b"3\r\n:\n\n\r\n"


def test_a_feed_of_http_10_has_no_chunks(browser: Browser, web: WebHarness) -> None:
    web.site.events = ["data: one\n\n"]
    browser.send(b"GET /feed HTTP/1.0\r\n\r\n")
    assert "chunked" not in browser.wait(b"\r\n\r\n").decode()
    assert browser.wait(b"\n\n") == b"data: one\n\n"


def test_a_feed_that_is_not_read_gets_nothing_new_and_ends(browser: Browser, web: WebHarness, clock: Clock) -> None:
    web.site.events = ["data: " + "x" * (32 << 20) + "\n\n", "data: never\n\n"]
    browser.send(GET % b"/feed")
    for _ in range(9):
        clock.now += 1
        web.settle()
    assert web.site.events == ["data: never\n\n"]
    clock.now += 1
    web.settle()
    assert any("does not read" in message for _, message in web.logged)


def test_a_feed_ends_with_its_client(browser: Browser, web: WebHarness, clock: Clock) -> None:
    browser.send(GET % b"/feed")
    browser.wait(b"\r\n\r\n")
    browser.sock.close()
    web.settle()
    web.site.events = ["data: for nobody\n\n"]
    clock.now += 5
    web.settle()
    assert web.site.events


# --- passed on by workers


def test_a_passed_client_is_answered_once(web: WebHarness) -> None:
    page = StatsPage()
    grant = Grant("page", page, "www", admin=True, peer="192.0.2.1:5")
    with web.passed(b"POST /echo HTTP/1.1\r\nHost: h\r\nContent-Length: 4\r\n\r\nwo", grant) as client:
        client.send(b"rd")
        status, fields, body = client.response()
        assert (status, fields["connection"], body) == (200, "close", b"POST /echo word")
        assert client.over
    assert web.site.grants == [grant]


def test_the_end_of_a_passed_client_reaches_it_whoever_else_has_its_socket(web: WebHarness) -> None:
    ours, theirs = socket.socketpair()
    with theirs.dup(), Browser(web, ours) as client:  # the duplicate of a park
        web.server.adopt(theirs, GET % b"/echo", Grant("page", StatsPage(), "www"))
        client.response()
        assert client.over


# --- handover


def test_idle_clients_go_to_the_successor(browser: Browser, web: WebHarness, clock: Clock) -> None:
    browser.get("/echo?1")
    clock.now += 30
    web.succeed()
    assert browser.get("/echo?2")[2] == b"GET /echo?2 "
    clock.now += 59
    web.succeed()
    assert not browser.over
    clock.now += 1
    assert browser.over


def test_a_request_that_has_begun_goes_on(browser: Browser, web: WebHarness) -> None:
    text = b"POST /echo HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\n\r\nhello"
    for at in range(len(text)):
        browser.send(text[at : at + 1])
        web.succeed()
    assert browser.response()[2] == b"POST /echo hello"


def test_an_answer_that_is_being_read_goes_on(browser: Browser, web: WebHarness) -> None:
    browser.send(GET % b"/big")
    web.succeed()
    assert browser.response()[2] == web.site.body
    assert len(web.site.requests) == 1
    assert browser.get("/echo")[0] == 200


def test_who_waits_for_an_answer_gets_it_from_the_successor(browser: Browser, web: WebHarness) -> None:
    browser.send(GET % b"/later")
    web.succeed()
    assert [request.target for request in web.site.requests] == ["/later", "/later"]
    web.site.waiting[0](Reply(200, b"from the dead"))
    web.site.waiting[1](Reply(200, b"at last"))
    assert browser.response()[2] == b"at last"


def test_a_feed_goes_on_without_a_reconnect(web: WebHarness, clock: Clock) -> None:
    web.pages["www"] = StatsPage(uri="/new")
    grant = Grant("page", StatsPage(uri="/old"), "www", True, "192.0.2.1:5")
    with web.passed(GET % b"/feed", grant) as client:
        client.wait(b"\r\n\r\n")
        for number in range(3):
            web.site.events = [f"data: {number}\n\n"]
            web.succeed()
            assert client.wait(b"\n\n\r\n") == b"9\r\ndata: %d\n\n\r\n" % number
        assert web.site.grants[-1] == Grant("page", web.pages["www"], "www", True, "192.0.2.1:5")


def test_a_handover_that_fails_gives_them_back(browser: Browser, web: WebHarness) -> None:
    browser.send(GET % b"/big")
    states = web.server.export_clients(252)
    for fd, state in states:
        web.server.import_client(fd, state)
    assert browser.response()[2] == web.site.body


def test_who_does_not_fit_is_dropped_idle_ones_first(web: WebHarness) -> None:
    with web.connect() as idle, web.connect() as waiting:
        idle.get("/echo")
        waiting.send(GET % b"/later")
        states = web.server.export_clients(2)
        assert idle.over
        assert [state["asked"]["target"] for _, state in states] == ["/later"]
        web.server.import_client(*states[0])
        web.site.waiting[-1](Reply(200, b"at last"))
        assert waiting.response()[2] == b"at last"


# --- leaving


def test_who_leaves_lets_answers_be_read_and_sends_others_away(web: WebHarness, clock: Clock) -> None:
    idle, reading, waiting, fed, begun = (web.connect() for _ in range(5))
    idle.get("/echo")
    reading.send(GET % b"/big")
    waiting.send(GET % b"/later")
    fed.send(GET % b"/feed")
    clock.now += 1
    begun.sock.sendall(GET % b"/echo")
    web.server.leave()
    busy = [web.server.busy]
    web.site.waiting[0](Reply(200, b"at last"))
    for each, body in ((reading, web.site.body), (waiting, b"at last"), (begun, b"GET /echo ")):
        assert each.response()[2] == body
        assert each.over
    for each in (idle, fed):
        assert each.over
    assert [*busy, web.server.busy] == [True, False]
    for each in (idle, reading, waiting, fed, begun):
        each.sock.close()


def test_who_connects_and_says_nothing_keeps_nobody_up(web: WebHarness, clock: Clock) -> None:
    with web.connect():
        web.server.leave()
        busy = [web.server.busy]
        clock.now += 0.1
        assert [*busy, web.server.busy] == [True, False]


def test_a_state_that_makes_no_sense_is_refused(web: WebHarness) -> None:
    ours, theirs = socket.socketpair()
    with ours, pytest.raises(PeerError, match="cannot take over a web client"):
        web.server.import_client(theirs.detach(), {"kind": "web", "format": 99})
    with pytest.raises(PeerError, match="cannot take over a web client"):
        web.server.import_client(999, {"kind": "web-output"})
