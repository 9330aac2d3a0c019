"""Framing of the takeover exchange, in memory and on real sockets."""

from __future__ import annotations

import array
import contextlib
import os
import socket
import struct
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hitlessd.descriptors import receive_with_descriptors
from hitlessd.errors import PeerError
from hitlessd.handover.stream import FrameStream
from hitlessd.handover.wire import MAGIC, MAX_FDS, MAX_TEXT, VERSION, FrameReader, Message, encode, speaks_with
from hitlessd.loop import Loop
from tests.support.descriptors import identity, is_open, memfd, no_leak
from tests.support.processes import Deadline

_TEXTS = st.dictionaries(st.text(max_size=8), st.text(max_size=30) | st.integers() | st.none(), max_size=4)


def _messages() -> st.SearchStrategy[list[tuple[dict[str, Any], int]]]:
    """Texts and numbers of descriptors."""
    return st.lists(st.tuples(_TEXTS.map(lambda text: {**text, "is": "test"}), st.integers(0, 3)), max_size=6)


@given(_messages(), st.data())
def test_any_split_gives_the_same_messages(sent: list[tuple[dict[str, Any], int]], data: st.DataObject) -> None:
    numbers = iter(range(1000, 2000))
    stream, due = b"", {}
    expected: list[Message] = []
    for text, count in sent:
        fds = [next(numbers) for _ in range(count)]
        due[len(stream)] = fds
        stream += encode(text, fds)
        expected.append(Message(text, fds))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=10)))
    reader, got = FrameReader(), []
    for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        # Descriptors come with the first byte of their frame.
        got += reader.feed(stream[start:end], [fd for at in range(start, end) for fd in due.get(at, ())])
    assert got == expected
    assert reader.feed(b"") == []


@given(st.binary(min_size=1, max_size=40))
def test_garbage_never_gives_a_message_nor_another_error(garbage: bytes) -> None:
    reader = FrameReader()
    try:
        messages = reader.feed(garbage)
    except PeerError:
        return
    assert messages == []
    assert MAGIC.startswith(garbage[:4])


@pytest.mark.parametrize("start", [b"G", b"\0", b"hlsX", b"hx"])
def test_garbage_is_told_at_the_first_wrong_byte(start: bytes) -> None:
    with pytest.raises(PeerError, match="not the takeover protocol"):
        FrameReader().feed(start)


def _head(length: int, count: int) -> bytes:
    return struct.pack("!4sII", MAGIC, length, count)


@pytest.mark.parametrize(("head", "why"), [(_head(MAX_TEXT + 1, 0), "too large"), (_head(2, MAX_FDS + 1), "too large")])
def test_limits_are_told_by_the_head_alone(head: bytes, why: str) -> None:
    with pytest.raises(PeerError, match=why):
        FrameReader().feed(head)


def test_the_largest_frame_passes() -> None:
    text = {"is": "x", "y": "z" * (MAX_TEXT - len('{"is":"x","y":""}'))}
    assert FrameReader().feed(encode(text, range(MAX_FDS)), range(MAX_FDS)) == [Message(text, list(range(MAX_FDS)))]
    with pytest.raises(ValueError, match="a frame holds"):
        encode({**text, "more": 1})
    with pytest.raises(ValueError, match="a frame holds"):
        encode({"is": "x"}, range(MAX_FDS + 1))


@pytest.mark.parametrize(
    "body", [b"{", b"[]", b"{}", b'{"is":1}', b"\xff", b"null", b"[" * 100_000, b'{"is":"x","y":' + b"1" * 5000 + b"}"]
)
def test_a_body_that_is_no_message_is_refused(body: bytes) -> None:
    reader = FrameReader()
    with pytest.raises(PeerError, match="cannot understand"):
        reader.feed(_head(len(body), 0) + body)


def test_lost_descriptors_are_told() -> None:
    with pytest.raises(PeerError, match="2 descriptors announced, 1 received"):
        FrameReader().feed(encode({"is": "x"}, [8, 9]), [8])


def test_more_descriptors_than_announced_are_not_the_next_frames() -> None:
    reader = FrameReader()
    assert len(reader.feed(encode({"is": "x"}), [8])) == 1
    with pytest.raises(PeerError, match="1 descriptors came, at most 0 were due"):
        reader.feed(b"")
    reader = FrameReader()
    with pytest.raises(PeerError, match="2 descriptors came, at most 1 were due"):
        reader.feed(encode({"is": "x"}, [1])[:-1], [8, 9])


def test_descriptors_cannot_pile_up_before_a_head_is_complete() -> None:
    reader = FrameReader()
    reader.feed(b"h", range(MAX_FDS))
    with pytest.raises(PeerError, match="were due"):
        reader.feed(b"l", [1])


def test_a_good_message_before_garbage_is_not_lost() -> None:
    reader = FrameReader()
    assert reader.feed(encode({"is": "x"}, [7]) + b"garbage", [7]) == [Message({"is": "x"}, [7])]
    for _ in range(2):
        with pytest.raises(PeerError):
            reader.feed(b"")


def test_close_leaks_nothing() -> None:
    with no_leak():
        reader = FrameReader()
        fds = [memfd(), memfd()]
        assert reader.feed(encode({"is": "x"}, fds)[:-1], fds) == []
        reader.close()
        reader.close()
        assert not any(map(is_open, fds))


def test_versions_that_we_speak_with() -> None:
    assert [speaks_with(v) for v in (VERSION - 2, VERSION - 1, VERSION, VERSION + 1, VERSION + 2)] == [
        False,
        True,
        True,
        True,
        False,
    ]
    assert not any(map(speaks_with, (None, "1", 1.5, [])))


class _Side:
    """A FrameStream that collects what happens to it."""

    def __init__(self, loop: Loop, sock: socket.socket) -> None:
        self.messages: list[Message] = []
        self.troubles: list[tuple[bool, str]] = []
        self.stream = FrameStream(loop, sock, self.messages.append, lambda lost, why: self.troubles.append((lost, why)))

    def close(self) -> None:
        self.stream.close()
        for message in self.messages:
            for fd in message.fds:
                os.close(fd)


class _Pair:
    """Two of them on one loop. Errors in callbacks end up in `reports`."""

    def __init__(self, buffer: int = 0) -> None:
        self.reports: list[BaseException] = []
        self.loop = Loop(lambda _what, error: self.reports.append(error))
        one, two = socket.socketpair()
        if buffer:
            one.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, buffer)
        self.one, self.two = _Side(self.loop, one), _Side(self.loop, two)

    def turn_until(self, side: _Side, messages: int = 0, troubles: int = 0) -> None:
        deadline = Deadline(10)
        while len(side.messages) < messages or len(side.troubles) < troubles:
            deadline.check("messages")
            self.loop.turn(deadline.left)
        assert not self.reports


@contextlib.contextmanager
def _pair(buffer: int = 0) -> Iterator[_Pair]:
    with no_leak():
        pair = _Pair(buffer)
        try:
            yield pair
        finally:
            pair.one.close()
            pair.two.close()
            pair.loop.close()


def test_big_messages_pass_a_full_socket_buffer_in_order() -> None:
    with _pair(4608) as pair:
        texts = [{"is": "big", "n": n, "body": "x" * (300_000 + n)} for n in range(4)]
        for text in texts:
            pair.one.stream.send(text)
        pair.turn_until(pair.two, 4)
        assert [message.text for message in pair.two.messages] == texts


def test_descriptors_on_the_first_byte_survive_partial_sends() -> None:
    with _pair(4608) as pair:
        fds = [memfd(b"%d" % n) for n in range(6)]
        for n in range(3):
            pair.one.stream.send({"is": "fds", "n": n, "body": "y" * 200_000}, fds[2 * n : 2 * n + 2])
            pair.one.stream.send({"is": "none", "n": n})
        pair.turn_until(pair.two, 6)
        got = [fd for message in pair.two.messages for fd in message.fds]
        assert [message.kind for message in pair.two.messages] == ["fds", "none"] * 3
        assert list(map(identity, got)) == list(map(identity, fds))
        assert not any(map(os.get_inheritable, got))
        for fd in fds:
            os.close(fd)


def test_as_many_descriptors_as_a_frame_holds_pass() -> None:
    with _pair() as pair:
        fd = memfd()
        pair.one.stream.send({"is": "fds"}, [fd] * MAX_FDS)
        os.close(fd)
        pair.turn_until(pair.two, 1)
        assert len(pair.two.messages[0].fds) == MAX_FDS


def test_a_peer_that_closes_is_lost_once() -> None:
    with _pair() as pair:
        pair.one.close()
        pair.turn_until(pair.two, troubles=1)
        pair.two.stream.send({"is": "late"})
        pair.loop.turn(0)
        assert pair.two.troubles == [(True, "the other side went away")]


def test_what_a_peer_said_before_it_closed_is_read_although_we_cannot_send() -> None:
    with _pair() as pair:
        pair.one.stream.send({"is": "refuse", "reason": "no"})
        pair.one.close()
        pair.two.stream.send({"is": "next"})
        assert pair.two.troubles == []  # never from within send()
        pair.turn_until(pair.two, 1, 1)
        assert pair.two.messages == [Message({"is": "refuse", "reason": "no"}, [])]
        assert [lost for lost, _ in pair.two.troubles] == [True]


def test_a_descriptor_that_cannot_be_sent_is_trouble() -> None:
    with _pair() as pair:
        fd = memfd()
        os.close(fd)
        pair.one.stream.send({"is": "x"}, [fd])
        assert pair.one.troubles == [(False, "cannot send to the other side: Bad file descriptor")]


def test_garbage_behind_a_good_message_is_told() -> None:
    with no_leak():
        loop = Loop(lambda _what, _error: None)
        raw, sock = socket.socketpair()
        side = _Side(loop, sock)
        fd = memfd()
        raw.sendmsg(
            [encode({"is": "good"}, [fd]) + b"GET / HTTP/1.0\r\n\r\n"],
            [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [fd]))],
        )
        os.close(fd)
        loop.turn(10)
        assert [message.kind for message in side.messages] == ["good"]
        assert side.troubles == [(False, "cannot understand the other side: this is not the takeover protocol")]
        assert raw.recv(1) == b""
        raw.close()
        side.close()
        loop.close()


def test_messages_after_close_are_dropped_with_their_descriptors() -> None:
    with no_leak():
        loop = Loop(lambda _what, _error: None)
        raw, sock = socket.socketpair()
        got: list[Message] = []

        def first(message: Message) -> None:
            got.append(message)
            stream.close()

        stream = FrameStream(loop, sock, first, lambda _lost, _why: None)
        fd = memfd()
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [fd]))]
        raw.sendmsg([encode({"is": "a"}) + encode({"is": "b"}, [fd])], rights)
        os.close(fd)
        loop.turn(10)
        assert [message.kind for message in got] == ["a"]
        raw.close()
        loop.close()


def test_bytes_that_somebody_else_has_read_come_first() -> None:
    with _pair() as pair:
        pair.two.stream.feed(b"")
        pair.two.stream.feed(encode({"is": "hello"}))
        pair.one.stream.send({"is": "next"})
        pair.turn_until(pair.two, 2)
        assert [message.kind for message in pair.two.messages] == ["hello", "next"]


def test_descriptors_that_the_kernel_drops_are_told_and_none_is_leaked() -> None:
    with no_leak():
        one, two = socket.socketpair()
        fd = memfd()
        one.sendmsg([b"x"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [fd] * 5))])
        with pytest.raises(PeerError, match="raise the limit on open files"):
            receive_with_descriptors(two, 10, 2)
        os.close(fd)
        one.close()
        two.close()


@settings(max_examples=25)
@given(st.lists(st.tuples(st.integers(0, 3000), st.integers(0, 2)), max_size=8), st.sampled_from([0, 4608]))
def test_any_sequence_arrives_over_a_socket(sizes: Sequence[tuple[int, int]], buffer: int) -> None:
    fd = memfd()
    with _pair(buffer) as pair:
        for size, count in sizes:
            pair.one.stream.send({"is": "x", "body": "b" * size}, [fd] * count)
        pair.turn_until(pair.two, len(sizes))
        assert [(len(m.text["body"]), len(m.fds)) for m in pair.two.messages] == list(sizes)
    os.close(fd)
