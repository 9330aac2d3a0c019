"""Promise 2, one accepting generation: whichever side dies or stops in whichever state of a handover."""

from __future__ import annotations

import contextlib
import os
import signal
from pathlib import Path

import pytest

from tests.support.accepting import generations_accepting
from tests.support.daemon import Daemon
from tests.support.echo import Echo, exchange
from tests.support.places import places
from tests.support.processes import free_port, poll_until


def test_the_tables_name_theplaces() -> None:
    assert places() == [
        "predecessor.hello",
        "predecessor.offer",
        "predecessor.accept",
        "predecessor.stop",
        "predecessor.commit",
        "predecessor.migrate",
        "predecessor.move",
        "predecessor.done",
        "successor.hello",
        "successor.offer",
        "successor.accept",
        "successor.commit",
        "successor.migrate",
        "successor.move",
    ]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP], ids=lambda number: number.name)
@pytest.mark.parametrize("place", places())
def test_exactly_one_generation_accepts_afterwards(place: str, number: signal.Signals, tmp_path: Path) -> None:
    port = free_port()
    with (
        Echo() as echo,
        Daemon(
            tmp_path,
            f"[listen t]\nbind = 127.0.0.1:{port}\nserver s = 127.0.0.1:{echo.port}\n",
            workers=1,
            more="reload-timeout = 3s",
        ) as daemon,
    ):
        before = daemon.pid
        daemon.fault(place, number)
        result = daemon.reload()
        assert not daemon.faults.exists(), "the fault did not strike"

        # The successor wins if it was the predecessor that failed, and the other way round.
        survivor_is_new = place.startswith("predecessor")
        assert result.returncode == (0 if survivor_is_new else 1), result.stderr

        # Whoever was given up on is dead, not asleep: waking everybody changes nothing.
        for pid in daemon.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
        # Its workers die with whoever was killed, but not in the same moment.
        main = daemon.pid
        poll_until(lambda: generations_accepting(daemon.processes(), port) == {main}, 10, "one accepting generation")
        assert (main != before) is survivor_is_new
        assert daemon.pid == main
        assert exchange(port) == b"hello"
        if number is signal.SIGKILL or place != "predecessor.done":
            # A stopped predecessor that was done drains on when it is continued, which is right.
            poll_until(lambda: len(daemon.processes()) == 2, 10, "one main process and its worker")

        again = daemon.reload()
        assert again.returncode == 0, again.stderr
        assert daemon.pid != main
        assert exchange(port) == b"hello"
        poll_until(lambda: generations_accepting(daemon.processes(), port) == {daemon.pid}, 10, "the newest accepts")
