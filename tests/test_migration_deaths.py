"""Whoever dies or stops while connections move: what was not claimed goes on, and the log numbers what is lost."""

from __future__ import annotations

import contextlib
import os
import re
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.accepting import generations_accepting
from tests.support.daemon import Daemon
from tests.support.echo import Echo, exchange
from tests.support.nobody import nobody
from tests.support.processes import free_port, poll_until, stopped
from tests.support.visitors import Conversation, listen

COUNT = 300  # three batches
#: After each batch: the old worker has sent it; the new one has claimed it; the new one has answered.
PLACES = [
    f"{place}-{number}"
    for place in ("emigration.batch", "immigration.claim", "immigration.batch")
    for number in (1, 2, 3)
]


def _alive(conversations: list[Conversation]) -> int:
    alive = 0
    for conversation in conversations:
        with contextlib.suppress(OSError, AssertionError):
            conversation.say()
            alive += 1
    return alive


def _lost(daemon: Daemon) -> int:
    return sum(int(number) for number in re.findall(r"\blost=(\d+)", daemon.log))


SIGNALS = pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP], ids=lambda number: number.name)


@SIGNALS
@pytest.mark.parametrize("place", PLACES)
def test_a_worker_that_dies_or_stops(place: str, number: signal.Signals, tmp_path: Path) -> None:
    """Nothing is parked, so that whatever goes on does so because of how it moves."""
    port = free_port()
    with (
        Echo() as echo,
        Daemon(tmp_path, listen(port, server=echo.port), workers=1, more="crash-proof = off") as daemon,
        contextlib.ExitStack() as stack,
    ):
        held = [stack.enter_context(Conversation(port)) for _ in range(COUNT)]
        assert _alive(held) == COUNT
        old = daemon.pid
        daemon.fault(place, number)
        result = daemon.reload()
        assert result.returncode == 0, result.stderr
        assert not daemon.faults.exists(), "the fault did not strike"
        # A worker that was stopped is found out and killed.
        poll_until(lambda: "was killed by SIGKILL" in daemon.log, 20, "the worker is dead")
        poll_until(lambda: len(generations_accepting(daemon.processes(), port)) == 1, 20, "one accepting generation")
        alive = _alive(held)
        poll_until(lambda: alive + _lost(daemon) == COUNT, 10, "an account of the lost")
        # All had left the old worker after the third batch; what the new one did not answer for is still the old one's.
        assert (alive == COUNT) is (place in ("emigration.batch-3", "immigration.claim-1"))
        assert (alive == 0) is (place == "immigration.batch-3")
        if place.startswith("immigration") and alive:
            # What the dead one had not claimed is served where it was.
            daemon.wait_log("stay with the old generation")
            assert old in daemon.processes() and "old workers" in daemon.ask("show proc")
        assert generations_accepting(daemon.processes(), port) == {daemon.pid}
        assert exchange(port) == b"hello"
        again = daemon.reload()
        assert again.returncode == 0, again.stderr
        assert _alive(held) >= alive


@SIGNALS
def test_what_a_dead_receiver_has_parked_is_not_taken_back(number: signal.Signals, tmp_path: Path) -> None:
    """Its heir has it: two processes would serve one connection."""
    port = free_port()
    with (
        Echo() as echo,
        Daemon(tmp_path, listen(port, server=echo.port), workers=1, more="park-after = 0") as daemon,
        contextlib.ExitStack() as stack,
    ):
        held = [stack.enter_context(Conversation(port)) for _ in range(20)]
        assert _alive(held) == 20
        poll_until(lambda: daemon.info()["CurrParked"] == "20", 10, "all are parked")
        daemon.fault("parking.batch-1", number)
        result = daemon.reload()
        assert result.returncode == 0, result.stderr
        poll_until(lambda: daemon.info()["CumResumed"] == "20", 20, "the heir has them")
        poll_until(lambda: len(daemon.processes()) == 2, 20, "the old generation has left")
        assert daemon.info()["CurrConns"] == "20"
        assert _alive(held) == 20 and _lost(daemon) == 0


@SIGNALS
@pytest.mark.parametrize("place", ["predecessor.migrate", "predecessor.move", "successor.migrate", "successor.move"])
def test_a_main_process_that_dies_or_stops(place: str, number: signal.Signals, tmp_path: Path) -> None:
    """Without systemd: the other side goes on, with what it has. Who has stopped is given up and killed."""
    port = free_port()
    with (
        Echo() as echo,
        Daemon(tmp_path, listen(port, server=echo.port), workers=1, more="reload-timeout = 2s") as daemon,
        contextlib.ExitStack() as stack,
    ):
        held = [stack.enter_context(Conversation(port)) for _ in range(20)]
        assert _alive(held) == 20
        old = daemon.pid
        daemon.fault(place, number)
        daemon.reload()
        assert not daemon.faults.exists(), "the fault did not strike"
        poll_until(lambda: len(generations_accepting(daemon.processes(), port)) == 1, 15, "one accepting generation")
        assert (daemon.pid == old) is place.startswith("successor")
        alive = _alive(held)
        if place == "successor.migrate":
            assert alive == 20
        poll_until(lambda: alive + _lost(daemon) == 20, 15, "an account of the lost")
        assert daemon.reload().returncode == 0
        assert exchange(port) == b"hello"


def test_a_move_that_outlasts_the_handover_loses_nobody(tmp_path: Path) -> None:
    """The report that comes late is not taken for that of a successor that has failed."""
    port = free_port()
    with (
        Echo() as echo,
        Daemon(tmp_path, listen(port, server=echo.port), workers=1, more="reload-timeout = 2s") as daemon,
        contextlib.ExitStack() as stack,
    ):
        held = [stack.enter_context(Conversation(port)) for _ in range(COUNT)]
        assert _alive(held) == COUNT
        daemon.fault("emigration.batch-2", signal.SIGSTOP)
        result = daemon.reload()
        assert result.returncode == 0, result.stderr
        (sleeper,) = stopped(daemon.processes())
        os.kill(sleeper, signal.SIGCONT)
        poll_until(lambda: len(daemon.processes()) == 2, 20, "the old generation has left")
        assert _alive(held) == COUNT
        assert _lost(daemon) == 0


def test_a_limit_that_is_too_low_is_found_out_before_anything_moves(tmp_path: Path) -> None:
    port = free_port()
    with (
        Echo() as echo,
        Daemon(tmp_path, listen(port, server=echo.port)) as daemon,
        contextlib.ExitStack() as stack,
    ):
        held = [stack.enter_context(Conversation(port)) for _ in range(200)]
        assert _alive(held) == 200
        before = daemon.pid
        # The successor inherits it; the workers that serve have what they have.
        resource.prlimit(before, resource.RLIMIT_NOFILE, (600, 600))
        text = daemon.file.read_text()
        daemon.write(text.replace("workers = 2", "workers = 1").replace("maxconn = 2000", "maxconn = 0"))
        result = daemon.reload()
        assert result.returncode == 1
        assert "cannot take over 200 connections: 1 workers need" in result.stderr
        assert daemon.pid == before
        assert _alive(held) == 200


#: Sends descriptors to itself until told to end.
HOARDER = """
import array, socket, sys
one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [0] * 250))]
for _ in range(6):
    one.sendmsg([b"x"], rights)
print("full", flush=True)
sys.stdin.read()
"""


def test_a_reload_that_may_pass_no_descriptors_is_refused_and_changes_nothing() -> None:
    """Others of its user have as many on their way as the daemon's limit allows."""
    port = free_port()
    with (
        Echo() as echo,
        nobody(1024) as user,
        Daemon(user.directory, listen(port, server=echo.port), workers=8, wrapper=user.wrapper) as daemon,
        contextlib.ExitStack() as stack,
    ):
        held = [stack.enter_context(Conversation(port)) for _ in range(20)]
        assert _alive(held) == 20
        before = daemon.pid
        hoarder = [sys.executable, "-c", HOARDER]
        with subprocess.Popen(
            hoarder, stdin=subprocess.PIPE, stdout=subprocess.PIPE, user=user.uid, cwd="/"
        ) as process:
            assert process.stdout and process.stdout.readline() == b"full\n"
            for _ in range(5):
                result = daemon.reload()
                assert result.returncode == 1 and "cannot send to the other side: Too many references" in result.stderr
            process.communicate()
        assert daemon.pid == before and len(daemon.processes()) == 9
        assert _alive(held) == 20
        assert daemon.reload().returncode == 0
        assert _alive(held) == 20
