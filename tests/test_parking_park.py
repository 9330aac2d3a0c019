"""The book and the queue: what is written comes back, rubbish is refused; sockets that others hold can be ended."""

from __future__ import annotations

import fcntl
import os
import socket
import struct
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hitlessd.errors import PeerError
from hitlessd.main.parks import settle
from hitlessd.parking import book as book_module
from hitlessd.parking.book import BLOCK, Book, SlotState, mark_of
from hitlessd.parking.park import PARTS, ROOM, Kind, Park, Record, farewell, reset
from tests.support.descriptors import memfd, no_leak
from tests.support.processes import poll_until, wait_readable
from tests.support.relay import listen, make_park


@pytest.fixture
def park() -> Iterator[Park]:
    with no_leak():
        made = make_park(slots=10)
        yield made
        made.close()


def _again(park: Park) -> Park:
    """What another process makes of it."""
    return Park.adopt(park.name, {part: os.dup(fd) for part, fd in park.parts().items()})


def test_a_slot_comes_back_as_it_was_written(park: Park) -> None:
    park.book.write(3, SlotState.LIVE, (1 << 64) - 1, b'{"a":1}', (5, 6))
    park.book.account(3, 1 << 40, 7)
    heir = _again(park)
    book = heir.book
    assert [slot for slot, state in enumerate(book.states()) if state] == [3]
    assert book.numbers()[3] == book.number(3) == (1 << 64) - 1
    assert (book.text(3), book.accounted(3), book.state(3)) == (b'{"a":1}', (1 << 40, 7), SlotState.LIVE)
    assert 0 <= book.age(3) < 60
    assert (book.held(), book.empty()) == (1, False)
    book.set_state(3, SlotState.FREE)
    assert park.book.empty()
    heir.close()


def test_shifts_have_a_sign_and_can_be_changed(park: Park) -> None:
    up, down = mark_of(3, False), mark_of(3, True)
    park.book.write(3, SlotState.LIVE, 7, b"{}", (0, 0), (-107, 28))
    assert (park.book.shift_of(up), park.book.shift_of(down)) == (-107, 28)
    park.book.shift(down, -1)
    heir = _again(park)
    assert (heir.book.shift_of(up), heir.book.shift_of(down)) == (-107, -1)
    heir.close()
    park.book.write(3, SlotState.LIVE, 8, b"{}", (0, 0))
    assert (park.book.shift_of(up), park.book.shift_of(down)) == (0, 0)


def test_a_block_may_begin_before_the_stream(park: Park) -> None:
    assert park.book.keep(mark_of(1, False), -15, b"PROXY UNKNOWN\r\n")
    assert park.book.kept() == {mark_of(1, False): (-15, b"PROXY UNKNOWN\r\n")}


def test_notes_are_only_added(park: Park) -> None:
    assert park.book.add_note({"lane": ["a", "b", "größe\n"]})
    assert park.book.add_note({"more": 1})
    heir = _again(park)
    assert heir.book.notes() == [{"lane": ["a", "b", "größe\n"]}, {"more": 1}]
    heir.close()
    big = {"x": "y" * (1 << 20)}
    assert [park.book.add_note(big) for _ in range(17)] == [True] * 15 + [False] * 2
    assert len(park.book.notes()) == 17


def test_blocks_keep_bytes_until_they_are_released(park: Park) -> None:
    kept = [park.book.keep(mark_of(n, False), n, bytes([n]) * (n + 1)) for n in range(20)]
    assert all(kept)
    assert [kept_one is None for kept_one in (park.book.keep(9, 0, b"x"), park.book.keep(9, 0, bytes(BLOCK + 1)))] == [
        True,
        True,
    ]
    heir = _again(park)
    assert heir.book.kept() == {mark_of(n, False): (n, bytes([n]) * (n + 1)) for n in range(20)}
    heir.close()
    assert kept[7]
    kept[7][1].release()
    park.book.release(kept[7][0])
    assert mark_of(7, False) not in park.book.kept()
    found = park.book.keep(mark_of(7, True), 99, b"new")
    assert found and found[0] == kept[7][0]
    for each in (*kept, found):
        assert each
        each[1].release()


def test_a_block_beyond_the_first_ones_gives_its_memory_back() -> None:
    big = make_park(slots=100)
    kept = [big.book.keep(2, 0, bytes([1]) * BLOCK) for _ in range(100)]
    used = os.fstat(big.book.fd).st_blocks
    for each in kept:
        assert each
        each[1].release()
        big.book.release(each[0])
    assert used - os.fstat(big.book.fd).st_blocks >= 30 * BLOCK // 512
    big.close()


def test_marks_name_each_direction_of_each_slot() -> None:
    marks = [mark_of(slot, server) for slot in range(1000) for server in (False, True)]
    assert len(set(marks)) == 2000 and 0 not in marks


def test_a_later_version_may_have_more_of_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as later:
        later.setattr(book_module, "_SLOT_WORDS", 11)
        later.setattr(book_module, "_TEXT", 1280)
        later.setattr(book_module, "PIPES", 700)
        theirs = Park.create("9-0", 20, 9)
        theirs.book.write(19, SlotState.FROZEN, 77, b"x" * 1000, (1, 2))
    ours = _again(theirs)
    assert (ours.book.slots, ours.book.text(19), ours.book.number(19)) == (20, b"x" * 1000, 77)
    assert len(ours.book.owners()) == 700
    ours.close()
    theirs.close()


def _scribble(fd: int, word: int, value: int) -> int:
    os.pwrite(fd, struct.pack("=Q", value), word * 8)
    return fd


def _book_fd() -> int:
    book = Book.create(10, 1)
    fd = os.dup(book.fd)
    book.close()
    return fd


@pytest.mark.parametrize(
    "word_and_value",
    [(0, 0), (1, 2), (2, 1000), (2, 1 << 60), (3, 1), (3, 1 << 63), (4, 0), (6, 1 << 50), (7, 3), (8, (1 << 64) - 1)],
)
def test_a_book_that_makes_no_sense_is_refused(word_and_value: tuple[int, int]) -> None:
    with no_leak(), pytest.raises(PeerError, match="cannot use a book of parked connections"):
        Book.attach(_scribble(_book_fd(), *word_and_value))


def test_an_unsealed_file_is_refused() -> None:
    fd = _book_fd()
    copy = memfd(os.pread(fd, 1 << 20, 0))
    os.close(fd)
    with no_leak(), pytest.raises(PeerError, match="not a sealed one"):
        Book.attach(copy)


def test_a_book_cannot_shrink_under_its_reader(park: Park) -> None:
    assert fcntl.fcntl(park.book.fd, fcntl.F_GET_SEALS) & fcntl.F_SEAL_SHRINK
    with pytest.raises(PermissionError):
        os.ftruncate(park.book.fd, 4096)


# --- the queue


def _loud(complaint: str) -> None:
    raise AssertionError(complaint)


def _pairs(count: int) -> list[socket.socket]:
    return [sock for _ in range(count) for sock in socket.socketpair()]


def test_messages_can_be_read_again_and_again_and_dropped_from_the_front(park: Park) -> None:
    socks = _pairs(ROOM // 2 + 3)
    full = [Record(Kind.BOTH, number, number + 1) for number in range(ROOM // 2)]
    park.send(full, [sock.fileno() for sock in socks[:ROOM]])
    park.send(
        [Record(Kind.CLIENT, 7, 1), Record(Kind.PIPE, 8, 2), Record(Kind.BOTH, (1 << 64) - 1, (1 << 23))],
        [sock.fileno() for sock in socks[ROOM : ROOM + 5]],
    )
    names = [os.fstat(sock.fileno()).st_ino for sock in socks]
    heir = _again(park)
    for _ in range(2):
        (at, first), (later, second) = heir.messages(_loud)
        assert first == full
        assert [record.number for record in second] == [7, 8, (1 << 64) - 1]
        for place, wanted in ((later, names[ROOM : ROOM + 5]), (at, names[:ROOM])):
            fds = heir.peek(place)
            assert [os.fstat(fd).st_ino for fd in fds] == wanted
            for fd in fds:
                os.close(fd)
    park.drop()
    ((at, left),) = heir.messages(_loud)
    assert at == 0 and left == second
    park.drop()
    assert heir.messages(_loud) == []
    heir.close()
    for sock in socks:
        sock.close()


def test_what_is_dropped_is_closed(park: Park) -> None:
    ours, theirs = socket.socketpair()
    park.send([Record(Kind.CLIENT, 1, 1)], [theirs.fileno()])
    theirs.close()
    ours.setblocking(False)
    with pytest.raises(BlockingIOError):
        ours.recv(1)
    park.drop()
    wait_readable(ours, 10, "the end")
    assert ours.recv(1) == b""
    ours.close()


@given(st.binary(min_size=1, max_size=4000))
def test_a_message_that_makes_no_sense_is_left_out_and_stays(data: bytes) -> None:
    park = make_park(slots=1)
    park.writer.send(data)
    park.send([Record(Kind.CLIENT, 7, 1)], [0])
    complaints: list[str] = []
    found = park.messages(complaints.append)
    assert found[-1] == (len(data), [Record(Kind.CLIENT, 7, 1)])  # what stands behind it can be read
    sound = len(data) % 12 == 0 and len(data) <= 12 * ROOM and all(1 <= kind <= 3 for kind in data[8::12])
    assert (len(found), len(complaints)) == ((2, 0) if sound else (1, 1))
    assert park.reader.recv(1) == data[:1]
    park.close()


def test_a_park_with_a_part_missing_or_wrong_is_refused(park: Park) -> None:
    with no_leak():
        for wrong in PARTS:
            parts = {part: os.dup(fd) for part, fd in park.parts().items()}
            os.close(parts.pop(wrong))
            with pytest.raises(PeerError, match="a part is missing"):
                Park.adopt("x", parts)
            parts = {part: os.dup(fd) for part, fd in park.parts().items()}
            os.close(parts[wrong])
            parts[wrong] = memfd(b"rubbish")
            with pytest.raises(PeerError):
                Park.adopt("x", parts)


# --- ends


def _connected() -> tuple[socket.socket, socket.socket]:
    listener = listen()
    client = socket.create_connection(listener.getsockname())
    listener.setblocking(True)
    served, _ = listener.accept()
    listener.close()
    client.settimeout(10)
    return client, served


def _end(client: socket.socket) -> object:
    try:
        return client.recv(100)
    except ConnectionResetError:
        return "reset"


def _reset(client: socket.socket) -> bool:
    try:
        client.send(b"x")
    except (ConnectionResetError, BrokenPipeError):
        return True
    return False


@pytest.mark.parametrize(
    ("unread", "linger", "expected"),
    [(False, False, b""), (True, False, "reset"), (False, True, "reset")],
)
def test_a_farewell_is_seen_as_close_would_be_whoever_holds_the_socket(
    unread: bool, linger: bool, expected: object
) -> None:
    client, served = _connected()
    duplicate = served.dup()
    if unread:
        client.sendall(b"x")
        wait_readable(served, 10, "the byte")
    if linger:
        served.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    farewell(served)
    served.close()
    assert _end(client) == expected
    with client, duplicate:
        farewell(duplicate)  # again does no harm


def test_a_farewell_lets_the_peer_have_what_was_written() -> None:
    client, served = _connected()
    served.sendall(b"last words")
    with served.dup(), client:
        farewell(served)
        served.close()
        assert client.recv(100) == b"last words"
        assert client.recv(1) == b""


def test_whoever_sends_after_a_farewell_is_reset() -> None:
    client, served = _connected()
    with served.dup(), client:
        farewell(served)
        served.close()
        assert client.recv(1) == b""
        wait_readable(client, 10, "the end")
        client.sendall(b"x")
        poll_until(lambda: _reset(client), 10, "a reset")


def test_a_reset_is_one_whoever_holds_the_socket() -> None:
    client, served = _connected()
    with served.dup(), client:
        reset(served)
        served.close()
        assert _end(client) == "reset"


def test_unix_sockets_end_as_well() -> None:
    for end in (farewell, reset):
        one, other = socket.socketpair()
        with one, other.dup():
            end(other)
            other.close()
            assert one.recv(1) == b""


# --- who counts


def _quiet(_severity: str, message: str, /, **_fields: object) -> None:
    raise AssertionError(message)


def _put(park: Park, slot: int, number: int, state: SlotState, queued: bool = True) -> None:
    park.book.write(slot, state, number, b"{}", (0, 0))
    if queued:
        one, other = socket.socketpair()
        with one, other:
            park.send([Record(Kind.BOTH, number, slot)], [one.fileno(), other.fileno()])


def _left(parks: list[Park]) -> list[tuple[str, int]]:
    return [(park.name, slot) for park in parks for slot, state in enumerate(park.book.states()) if state]


def test_of_two_parks_the_youngest_counts_that_has_the_descriptors() -> None:
    parks = [make_park(name) for name in ("2-0", "1-9", "10-0")]
    _put(parks[0], 0, 100, SlotState.LIVE)
    _put(parks[1], 0, 100, SlotState.LIVE)
    _put(parks[2], 5, 100, SlotState.LIVE, queued=False)  # its worker died before it could send them
    _put(parks[1], 1, 101, SlotState.LIVE)
    _put(parks[2], 1, 101, SlotState.LIVE)
    _put(parks[1], 2, 102, SlotState.FROZEN)
    settle(parks, _quiet)
    assert _left(parks) == [("2-0", 0), ("1-9", 2), ("10-0", 1)]
    for park in parks:
        park.close()


def test_who_has_arrived_counts_and_not_who_is_on_the_way() -> None:
    old, new = make_park("1-0"), make_park("2-0")
    _put(old, 0, 100, SlotState.MOVING)
    _put(new, 7, 100, SlotState.LIVE)
    _put(old, 1, 101, SlotState.MOVING)
    _put(old, 2, 101, SlotState.LIVE)  # it came back
    _put(old, 3, 102, SlotState.MOVING)
    _put(old, 4, 103, SlotState.ENDING)
    settle([old, new], _quiet)
    assert _left([old, new]) == [("1-0", 2), ("1-0", 3), ("1-0", 4), ("2-0", 7)]
    old.close()
    new.close()
