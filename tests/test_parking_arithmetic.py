"""What a dead process had taken and not passed on is found exactly, or the connection does not go on."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hitlessd.parking.arithmetic import Buffers, Fate, Hole, fate, rest
from hitlessd.parking.counters import CLOSED, Counters

_ESTABLISHED, _FIN_WAIT, _CLOSE_WAIT, _LAST_ACK = 1, 5, 8, 9
_OVER = -1  # CLOSED, in order


def _counters(consumed: int = 0, written: int = 0, state: int = _ESTABLISHED) -> Counters:
    ended, shut = state in (_CLOSE_WAIT, _LAST_ACK, _OVER), state in (_FIN_WAIT, _LAST_ACK, _OVER)
    return Counters(CLOSED if state == _OVER else state, consumed, written, ended, shut, 0.0)


class _Relay:
    """One direction of a relay, instruction by instruction; `crash()` is what its heir finds after any of them."""

    def __init__(self, stream: bytes, size: int, taken: int = 0, added: int = 0) -> None:
        """`taken` of the stream's first bytes are not passed on, and `added` bytes go first."""
        self.stream = stream
        self.consumed = taken
        self.shift = added - taken
        self.written = added
        self.scratch = bytearray(size)
        self.label: int | None = None
        self.kept: tuple[int, bytes] | None = None
        self.pipe = b""

    def steps(self, read: int, sent: int, flushes: list[int], spliced: int, drained: int) -> None:
        """A recv of `read` bytes of which `sent` go out, what is left in some flushes, then a splice."""
        read = min(read, len(self.scratch), len(self.stream) - self.consumed)
        self.label = self.consumed
        self._check()
        data = self.stream[self.consumed : self.consumed + read]
        self.scratch[:read] = data
        self.consumed += read
        self._check()
        sent = min(sent, read)
        self.written += sent
        self._check()
        if sent < read:
            self.kept = (self.consumed - (read - sent), data[sent:])
            self._check()
            self.scratch[:] = b"\xff" * len(self.scratch)  # somebody else's
            self.label = None
            self._check()
            left = read - sent
            for step in [*flushes, left]:
                step = min(step, left)
                self.written += step
                left -= step
                self._check()
            self.kept = None
        self._check()
        piped = self.stream[self.consumed : self.consumed + spliced]
        self.consumed += len(piped)
        self.pipe += piped
        self._check()
        for step in (drained, len(self.pipe)):
            out, self.pipe = self.pipe[:step], self.pipe[step:]
            self.written += len(out)
            self._check()

    def _check(self) -> None:
        """Crash here: what is ahead, and then what is in the pipe, is all that is missing, and nothing else."""
        buffers = Buffers(len(self.pipe), self.kept, self.label, bytes(self.scratch))
        ahead = rest(_counters(consumed=self.consumed), _counters(written=self.written), buffers, self.shift)
        assert ahead + self.pipe == self.stream[self.written - self.shift : self.consumed]


@given(
    st.lists(
        st.tuples(
            st.integers(0, 40), st.integers(0, 40), st.lists(st.integers(0, 20), max_size=3),
            st.integers(0, 50), st.integers(0, 50),
        ),
        max_size=8,
    ),
    st.sampled_from([0, 28, 107]),
    st.sampled_from([0, 16, 107]),
)  # fmt: skip
def test_after_any_instruction_the_heir_finds_every_byte_once(
    rounds: list[tuple[int, int, list[int], int, int]], taken: int, added: int
) -> None:
    relay = _Relay(bytes(i % 251 for i in range(1000)), 32, taken, added)
    for each in rounds:
        relay.steps(*each)


def _rest(missing: int, buffers: Buffers, state: int = _ESTABLISHED) -> bytes:
    return rest(_counters(consumed=100), _counters(written=100 - missing, state=state), buffers)


@pytest.mark.parametrize(
    ("missing", "buffers"),
    [
        (-1, Buffers()),  # more went out than came in
        (5, Buffers()),  # nowhere
        (5, Buffers(piped=6)),  # too much
        (5, Buffers(piped=4)),  # too little
        (5, Buffers(kept=(96, b"1234"))),  # too short
        (5, Buffers(kept=(95, b"123456"))),  # of another moment
        (5, Buffers(label=94, scratch=b"12345")),  # longer than the scratch
        (5, Buffers(label=96, scratch=b"12345")),  # begins too late
        (5, Buffers(piped=3, label=95, scratch=b"12345")),  # nobody reads into it while a pipe has bytes
    ],
)
def test_whatever_does_not_add_up_is_a_hole(missing: int, buffers: Buffers) -> None:
    with pytest.raises(Hole):
        _rest(missing, buffers)


def test_what_was_added_may_itself_be_what_is_missing() -> None:
    """A block with more than came from the stream begins before the stream does."""
    added = b"PROXY UNKNOWN\r\n"
    source, buffers = _counters(consumed=3), Buffers(kept=(3 - len(added), added))
    assert rest(source, _counters(written=5), buffers, len(added) - 3) == added[5:]
    with pytest.raises(Hole):
        rest(source, _counters(written=len(added) + 1), buffers, len(added) - 3)
    with pytest.raises(Hole):
        rest(source, _counters(written=5), buffers)


def test_the_tail_counts_wherever_it_lies() -> None:
    assert _rest(0, Buffers(kept=(0, b"old"), label=3, scratch=b"old")) == b""
    assert _rest(2, Buffers(kept=(95, b"12345"))) == b"45"
    assert _rest(2, Buffers(label=95, scratch=b"12345 and what was there before")) == b"45"
    assert _rest(5, Buffers(piped=3, kept=(90, b"1234567"))) == b"67"


def test_nothing_may_be_left_behind_an_end_that_was_passed_on() -> None:
    assert _rest(0, Buffers(), _FIN_WAIT) == b""
    with pytest.raises(Hole):
        _rest(2, Buffers(kept=(98, b"45")), _FIN_WAIT)


@pytest.mark.parametrize(
    ("client", "server", "expected"),
    [
        (_ESTABLISHED, _ESTABLISHED, Fate.GOES_ON),
        (_CLOSE_WAIT, _ESTABLISHED, Fate.GOES_ON),  # the FIN is still to be passed on
        (_CLOSE_WAIT, _FIN_WAIT, Fate.GOES_ON),
        (_FIN_WAIT, _CLOSE_WAIT, Fate.GOES_ON),
        (_LAST_ACK, _LAST_ACK, Fate.GOES_ON),
        (_FIN_WAIT, _ESTABLISHED, Fate.ENDING),
        (_FIN_WAIT, _FIN_WAIT, Fate.ENDING),
        (CLOSED, CLOSED, Fate.ENDING),
        (CLOSED, _ESTABLISHED, Fate.CUT),
        (_FIN_WAIT, CLOSED, Fate.CUT),
        (_OVER, _CLOSE_WAIT, Fate.GOES_ON),  # the last it said may be still to be passed on
        (_LAST_ACK, _OVER, Fate.GOES_ON),
        (_OVER, _ESTABLISHED, Fate.ENDING),
        (_OVER, CLOSED, Fate.ENDING),
        (_OVER, _OVER, Fate.ENDING),
    ],
)
def test_the_states_of_both_sockets_decide(client: int, server: int, expected: Fate) -> None:
    assert fate(_counters(state=client), _counters(state=server)) is expected
