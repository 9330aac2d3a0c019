"""The counters of a message's body."""

from __future__ import annotations

import pytest

from hitlessd.http.body import ENDLESS, Body
from hitlessd.http.grammar import CHUNKED, CLOSE, LENGTH, NONE, Refused


def test_no_body_is_done_at_once() -> None:
    body = Body(NONE)
    assert body.done and body.raw == 0 and body.take(b"next") == 0


def test_a_length_is_counted_down() -> None:
    body = Body(LENGTH, 10)
    assert body.take(b"12345") == 5
    assert (body.done, body.raw, body.payload) == (False, 5, 5)
    body.skip(3)
    assert body.raw == 2
    assert body.take(memoryview(b"12GET")) == 2
    assert (body.done, body.payload) == (True, 10)
    assert body.take(b"GET") == 0


def test_a_length_may_end_unseen() -> None:
    body = Body(LENGTH, 10)
    body.skip(10)
    assert body.done
    assert Body(LENGTH, 0).done


def test_until_close_everything_belongs_to_it() -> None:
    body = Body(CLOSE)
    assert body.take(b"12345") == 5 and body.raw == ENDLESS
    body.skip(1 << 40)
    assert not body.done and body.payload == 5 + (1 << 40)


def test_chunks_let_their_data_pass_unseen() -> None:
    body = Body(CHUNKED)
    assert body.raw == 0
    assert body.take(b"10\r\n0123") == 8
    assert body.raw == 12
    body.skip(12)
    assert body.raw == 0
    assert body.take(b"\r\n0\r\n\r\nGET") == 7
    assert (body.done, body.payload) == (True, 16)
    assert body.take(b"GET") == 0


def test_the_end_may_come_with_trailers() -> None:
    body = Body(CHUNKED)
    data = b"3\r\nabc\r\n0\r\nServer-Timing: x\r\nX: y\r\n\r\nGET"
    assert body.take(data) == len(data) - 3
    assert body.done


def test_it_moves_at_any_byte() -> None:
    data = b'3;a="b;\\"c";d=e;f\r\nabc\r\n00a\r\n0123456789\r\n0;x\r\nX-Y: z\r\nA: b\r\n\r\n'
    body = Body(CHUNKED)
    for at in range(len(data)):
        assert not body.done
        assert body.take(data[at : at + 1]) == 1
        words = body.words()
        assert all(0 <= word < 1 << 64 for word in words)
        moved = Body.of(words)
        assert moved.words() == words and moved.done == body.done
        body = moved
    assert body.done and body.payload == 13
    for kind, length in ((NONE, 0), (LENGTH, 0), (LENGTH, 7), (CLOSE, 0)):
        one = Body(kind, length)
        assert (Body.of(one.words()).words(), Body.of(one.words()).done) == (one.words(), one.done)


def test_much_may_come_at_once() -> None:
    body = Body(CHUNKED)
    data = b"a\r\n0123456789\r\n" * 5000 + b"0\r\n\r\n"
    assert body.take(memoryview(data)) == len(data)
    assert body.done and body.payload == 50_000


def test_what_was_refused_says_why() -> None:
    with pytest.raises(Refused) as caught:
        Body(CHUNKED).take(b"5 \r\n")
    assert (caught.value.status, caught.value.reason) == (400, "a chunk's size is malformed")
    with pytest.raises(Refused) as caught:
        Body(CHUNKED).take(b"0\r\nX: " + b"y" * 9000)
    assert caught.value.status == 431
