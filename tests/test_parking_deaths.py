"""Whoever dies, and whatever lies in the store: parked connections go on, or are lost by number and with a reason."""

from __future__ import annotations

import contextlib
import os
import random
import re
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.backend import Backend
from tests.support.crowd import Population
from tests.support.echo import Echo, exchange
from tests.support.pairs import WAYS, dead_meanwhile, replace
from tests.support.places import places
from tests.support.processes import ROOT, Process, alive, free_port, poll_until, python_module
from tests.support.restartable import Restartable
from tests.support.visitors import Conversation, listen

COUNT = 300  # three batches
AT_ONCE = "park-after = 0"


@contextlib.contextmanager
def held(
    directory: Path, more: str = AT_ONCE, *, workers: int = 1, count: int = COUNT
) -> Iterator[tuple[Restartable, list[Conversation], int]]:
    """Connections that have spoken and are parked."""
    port = free_port()
    with (
        Echo() as echo,
        Restartable(directory, listen(port, server=echo.port), workers=workers, more=more) as service,
        contextlib.ExitStack() as stack,
    ):
        every = [stack.enter_context(Conversation(port)) for _ in range(count)]
        for each in every:
            each.say(b"hello")
        service.wait_number("CurrParked", count)
        yield service, every, port


def living(conversations: list[Conversation]) -> int:
    alive = 0
    for conversation in conversations:
        with contextlib.suppress(ConnectionError, AssertionError):
            conversation.say()
            alive += 1
    return alive


def lost(service: Restartable) -> int:
    return sum(int(number) for number in re.findall(r"\blost=(\d+)", service.log))


def balanced(service: Restartable, conversations: list[Conversation]) -> int:
    """How many live, when the log, the counter and the clients agree on how many do not."""
    alive = living(conversations)
    service.wait(lambda: alive + lost(service) == len(conversations), 10, f"{alive} live, an account of the rest")
    service.wait_number("CumLost", len(conversations) - alive)
    return alive


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("place", [f"{what}-{number}" for what in ("batch", "claim") for number in (1, 2, 3)])
def test_whoever_resumes_dies(place: str, way: str, tmp_path: Path) -> None:
    with held(tmp_path) as (service, every, port):
        service.daemon.fault(f"resumption.{place}", signal.SIGKILL)
        replace(service, way)
        poll_until(lambda: not service.daemon.faults.exists(), 10, "the fault strikes")
        service.wait(lambda: "was killed by SIGKILL" in service.log, 10, "the death is noticed")
        service.wait_number("CurrParked", COUNT, 20)
        assert balanced(service, every) == COUNT
        assert exchange(port) == b"hello"


def test_whoever_resumes_dies_and_dies_and_dies(tmp_path: Path) -> None:
    """In each batch of each attempt in turn, and main as well."""
    with held(tmp_path, workers=2) as (service, every, _):
        for number, what in enumerate(("batch-1", "claim-2", "batch-2", "claim-1")):
            service.daemon.fault(f"resumption.{what}", signal.SIGKILL)
            replace(service, WAYS[number % 3])
            poll_until(lambda: not service.daemon.faults.exists(), 10, "the fault strikes")
            service.crash()
            service.wait_number("CurrParked", COUNT, 20)
        assert balanced(service, every) == COUNT


@pytest.mark.parametrize("number", [1, 2])
def test_whoever_parks_dies(number: int, tmp_path: Path) -> None:
    """What had been parked by then goes on, the rest is lost, and counted."""
    port = free_port()
    with (
        Echo() as echo,
        Restartable(tmp_path, listen(port, server=echo.port), workers=1, more="park-after = 3s") as service,
        contextlib.ExitStack() as stack,
    ):
        service.daemon.fault(f"parking.batch-{number}", signal.SIGKILL)
        every = [stack.enter_context(Conversation(port)) for _ in range(COUNT)]
        for each in every:
            each.say(b"hello")
        poll_until(lambda: not service.daemon.faults.exists(), 10, "the fault strikes")
        service.wait(lambda: "was killed by SIGKILL" in service.log, 10, "the death is noticed")
        assert 0 < balanced(service, every) < COUNT
        assert exchange(port) == b"hello"


def _reload_with(service: Restartable, place: str) -> None:
    """A reload in which somebody dies, and what systemd makes of it."""
    service.daemon.fault(place, signal.SIGKILL)
    with Process(python_module("hitlessd.ctl", "-s", service.daemon.socket, "reload"), cwd=ROOT) as reload:
        poll_until(lambda: not service.daemon.faults.exists(), 10, "the fault strikes")
        poll_until(lambda: not reload.running or not alive(service.main), 30, "an outcome")
        if not alive(service.main):
            # systemd kills the rest, and starts it again.
            service.crash()


SENDS = [f"{what}-{number}" for what in ("emigration.batch", "immigration.batch") for number in (1, 2)]


@pytest.mark.parametrize("place", [*SENDS, *places()])
def test_whoever_dies_in_a_reload(place: str, tmp_path: Path) -> None:
    """And then main is killed: whatever has moved by then, and wherever to, comes back, once."""
    with held(tmp_path) as (service, every, port):
        _reload_with(service, place)
        service.wait_number("CurrParked", COUNT, 20)
        assert balanced(service, every) == COUNT
        service.crash()
        service.wait_number("CurrParked", COUNT, 20)
        assert balanced(service, every) == COUNT
        assert exchange(port) == b"hello"


@pytest.mark.parametrize("number", [1, 2])
def test_whoever_dies_with_what_it_has_just_claimed(number: int, tmp_path: Path) -> None:
    """Only those of one batch may be lost, and they are counted."""
    with held(tmp_path) as (service, every, _):
        _reload_with(service, f"immigration.claim-{number}")
        alive = service.wait(lambda: service.number("CurrParked"), 10, "some are parked")
        assert balanced(service, every) >= COUNT - 126, alive
        before = living(every)
        service.crash()
        service.wait_number("CurrParked", before, 20)
        assert balanced(service, every) == before


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_main_dies_while_a_crowd_moves(seed: int, tmp_path: Path) -> None:
    """At a random moment of a reload, over and over."""
    port, dice, pause = free_port(), random.Random(seed), threading.Event()
    with (
        Backend() as backend,
        Restartable(tmp_path, listen(port, server=backend.port), more=AT_ONCE) as service,
        Population(f"127.0.0.1:{port}", idle=150, pingpong=50, bulk=20) as crowd,
    ):
        service.wait_number("CurrParked", 220)
        for _ in range(8):
            with Process(python_module("hitlessd.ctl", "-s", service.daemon.socket, "reload"), cwd=ROOT):
                pause.wait(dice.uniform(0.1, 0.35))
                service.crash()
            service.wait(lambda: service.number("CurrParked") + len(crowd.lost) >= 220, 20, "all are parked, or lost")
        crowd.verify()
        report = crowd.stop()
        assert report["corrupt"] == 0, report["lost"][:5]
        assert report["broken"] == lost(service), (report["lost"][:5], service.log)
        assert report["broken"] == 0, service.log


@pytest.mark.parametrize("seed", [1, 2])
def test_workers_die_while_a_crowd_moves(seed: int, tmp_path: Path) -> None:
    """Those of either generation; then main dies as well."""
    port, dice, pause = free_port(), random.Random(seed), threading.Event()
    with (
        Backend() as backend,
        Restartable(tmp_path, listen(port, server=backend.port), more=AT_ONCE) as service,
        Population(f"127.0.0.1:{port}", idle=150, pingpong=50, bulk=20) as crowd,
    ):
        service.wait_number("CurrParked", 220)
        for _ in range(6):
            with Process(python_module("hitlessd.ctl", "-s", service.daemon.socket, "reload"), cwd=ROOT) as reload:
                pause.wait(dice.uniform(0.1, 0.35))
                with contextlib.suppress(ProcessLookupError, IndexError):
                    os.kill(dice.choice(service.workers()), signal.SIGKILL)
                reload.wait(30)
            if dice.random() < 0.5:
                service.crash()
            service.wait(lambda: service.number("CurrParked") + len(crowd.lost) >= 220, 20, "all are parked, or lost")
        crowd.verify()
        report = crowd.stop()
        assert report["corrupt"] == 0, report["lost"][:5]
        assert report["broken"] == lost(service), (report["lost"][:5], service.log)
        assert report["broken"] == 0, service.log


def test_a_crowd_passes_through_kills_at_random(tmp_path: Path) -> None:
    port, dice, pause = free_port(), random.Random(11), threading.Event()
    with (
        Backend() as backend,
        Restartable(tmp_path, listen(port, server=backend.port), more=AT_ONCE) as service,
        Population(f"127.0.0.1:{port}", idle=40, pingpong=30, bulk=8) as crowd,
    ):
        service.wait_number("CurrParked", 78)
        for _ in range(12):
            pause.wait(dice.uniform(0, 0.3))
            way = dice.choice(WAYS)
            if way == "worker":
                with contextlib.suppress(ProcessLookupError, IndexError):
                    os.kill(dice.choice(service.workers()), signal.SIGKILL)
            else:
                replace(service, way)
        service.wait_number("CurrParked", 78, 20)
        crowd.verify()
        report = crowd.flawless()
        assert lost(service) == 0
        assert report["kinds"]["bulk"]["done"] == 8
        counters = backend.wait_closed()
        assert (counters["corrupt"], counters["reset"], counters["short"]) == (0, 0, 0)


# What lies in the store


def _entries(service: Restartable, end: str) -> list[int]:
    """Copies of the descriptors of that end of a park."""
    found = []
    for fd, name in service.manager.passed():
        if name.startswith("hitlessd.park-") and name.endswith(end):
            found.append(fd)
        else:
            os.close(fd)
    assert found
    return found


def _say(*data: bytes, fds: int = 0) -> Callable[[int], None]:
    """Say something into one end of a park, with so many descriptors of something else."""

    def spoil(fd: int) -> None:
        with socket.socket(fileno=os.dup(fd)) as sock, open(os.devnull, "rb") as null:
            for message in data:
                socket.send_fds(sock, [message], [null.fileno()] * fds)

    return spoil


def _overwrite(fd: int) -> None:
    size = os.fstat(fd).st_size
    os.pwrite(fd, random.Random(4).randbytes(min(size, 1 << 20)), 0)


def _shorten(fd: int) -> None:
    # It may be sealed against it.
    with contextlib.suppress(PermissionError):
        os.ftruncate(fd, 100)


RUBBISH = {
    "garbage at the end of the queue": ("-in", _say(b"\xff" * 100, os.urandom(4096))),
    "garbage from the other end": ("-out", _say(b"\xff" * 100, os.urandom(4096))),
    "an empty message": ("-in", _say(b"")),
    "descriptors of something else": ("-in", _say(os.urandom(1000), fds=3)),
    "a book that was overwritten": ("-book", _overwrite),
    "a short book": ("-book", _shorten),
}


@pytest.mark.parametrize("kind", RUBBISH)
def test_rubbish_in_a_park_costs_a_line_and_what_it_concerns(kind: str, tmp_path: Path) -> None:
    end, spoil = RUBBISH[kind]
    with held(tmp_path, count=20) as (service, every, port):
        with dead_meanwhile(service):
            for fd in _entries(service, end):
                spoil(fd)
                os.close(fd)
        assert exchange(port) == b"hello"
        alive = balanced(service, every)
        complaints = re.findall(r" (?:err|warning): (.*)", service.log)
        # What is wrong, and how many are lost by it.
        assert len(complaints) <= 1 if alive == len(every) else len(complaints) in (1, 2), complaints
        assert service.daemon.reload().returncode == 0
        with Conversation(port) as another:
            another.say()
            service.wait(lambda: service.number("CurrParked") == service.number("CurrConns") > 0, 10, "all are parked")
            replace(service, "crash")
            another.say()


@pytest.mark.parametrize("end", ["-in", "-out", "-book"])
def test_a_park_of_which_a_part_is_missing(end: str, tmp_path: Path) -> None:
    with held(tmp_path, count=20) as (service, every, port):
        service.kill()
        for name in {name for name in service.manager.names if name.startswith("hitlessd.park-")}:
            if name.endswith(end):
                with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
                    sock.sendto(f"FDSTOREREMOVE=1\nFDNAME={name}".encode(), service.manager.address)
        service.manager.settle()
        service.start()
        assert exchange(port) == b"hello"
        assert living(every) == 0
        service.wait(lambda: len(re.findall(r" (?:err|warning): ", service.log)) >= 1, 10, "a line")
        assert service.daemon.reload().returncode == 0
        # What is left of it does not stay in the store.
        service.crash()
        service.manager.settle()
        parts = [name for name in service.manager.names if name.startswith("hitlessd.park-")]
        assert len(parts) == 3, parts


def test_a_full_store_costs_what_is_parked_and_nothing_else(tmp_path: Path) -> None:
    port = free_port()
    with (
        Echo() as echo,
        Restartable(tmp_path, listen(port, server=echo.port), workers=1, more=AT_ONCE, store=4) as service,
        Conversation(port) as conversation,
    ):
        conversation.say()
        assert service.daemon.reload().returncode == 0
        conversation.say()
        assert len(service.manager.names) <= 4
        service.wait(lambda: "FileDescriptorStoreMax" in service.log, 10, "it is told")
        service.crash()
        assert exchange(port) == b"hello"


def test_a_table_is_in_the_store_before_the_one_it_takes_the_totals_from_leaves(tmp_path: Path) -> None:
    """Whoever is killed between the two is the last who knew the totals."""
    with held(tmp_path, count=3) as (service, _, _):
        for end in (service.crash, service.restart, service.crash):
            end()
        service.manager.settle()
        tables = [move for move in service.manager.moves if ".table-" in move]
        wanted = ["+ table-1", "+ table-2", "- table-1", "+ table-3", "- table-2", "+ table-4", "- table-3"]
        assert [move.replace("hitlessd.", "") for move in tables] == wanted


def kinds(service: Restartable) -> list[str]:
    """What lies in the store; a state that was stored again has one number more."""
    service.manager.settle()
    return sorted(re.sub(r"state-N-N", "state-N", re.sub(r"\d+", "N", name)) for name in service.manager.names)


def test_the_store_does_not_grow(tmp_path: Path) -> None:
    with held(tmp_path, workers=2, count=20) as (service, every, _):
        before = kinds(service)
        for way in WAYS * 3:
            replace(service, way)
            service.wait_number("CurrParked", 20)
        assert service.daemon.reload().returncode == 0

        poll_until(lambda: kinds(service) == before, 15, f"as many entries as before: {before}")
        assert balanced(service, every) == 20
