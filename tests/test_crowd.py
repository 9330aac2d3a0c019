"""The crowd itself: through reloads nobody is lost, and it tells who is lost, when and why."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from tests.support.backend import Backend
from tests.support.crowd import Population
from tests.support.daemon import Daemon
from tests.support.processes import free_port, poll_until
from tests.support.visitors import listen


def test_a_crowd_passes_through_reloads(tmp_path: Path) -> None:
    port = free_port()
    with (
        Backend() as backend,
        Daemon(tmp_path, listen(port, server=backend.port)) as daemon,
        Population(f"127.0.0.1:{port}", idle=50, pingpong=30, bulk=6) as crowd,
    ):
        for _ in range(3):
            assert daemon.reload().returncode == 0
            crowd.verify()
        report = crowd.flawless()
        assert {kind: found["done"] for kind, found in report["kinds"].items()} == {
            "idle": 50,
            "pingpong": 30,
            "bulk": 6,
        }
        assert backend.wait_closed()["clean"] == 86


def test_a_crowd_tells_who_was_cut_off(tmp_path: Path) -> None:
    port = free_port()
    with (
        Backend() as backend,
        Daemon(tmp_path, listen(port, server=backend.port)) as daemon,
        Population(f"127.0.0.1:{port}", idle=5, pingpong=5, bulk=5) as crowd,
    ):
        # There is nobody who could bring them back.
        os.kill(daemon.pid, signal.SIGKILL)
        poll_until(lambda: len(crowd.lost) == 15, 20, "all are lost")
        report = crowd.stop()
        assert (report["broken"], report["corrupt"]) == (15, 0)
        assert {each["reason"] for each in report["lost"]} <= {"reset", "short"}


@pytest.mark.parametrize("fault", ["corrupt", "excess", "wrong"])
def test_a_crowd_sees_wrong_bytes(fault: str) -> None:
    with Backend(fault=fault, fault_every=10) as backend, Population(backend.address, idle=40, pingpong=20) as crowd:
        crowd.verify()
        report = crowd.stop()
        assert report["corrupt"] > 0
