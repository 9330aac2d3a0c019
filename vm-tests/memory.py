"""Runs in a machine, see inside.py: the unit has less memory than it wants (MemoryMax=), and a crowd lives on.

    python3 vm-tests/memory.py

The kernel kills whom it judges worst; we tell it who that is, by oom_score_adj, first a worker and then main. Prints
what the journal said.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path

from inside import CONFIGURATION, PATIENCE, configure, info, journal, main_pid, shown, wait_served, workers

from tests.support.backend import Backend
from tests.support.crowd import Population
from tests.support.processes import poll_until

IDLE, PINGPONG = 30, 10
CGROUP = Path("/sys/fs/cgroup/system.slice/hitlessd.service")


def private(pid: int) -> int:
    """Bytes of memory that nobody shares with that process."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) << 10 for line in lines if line.startswith("Private_Dirty"))


def run_out(victim: int) -> None:
    """Have so little that only the victim's death makes it suffice, for a moment."""
    Path(f"/proc/{victim}/oom_score_adj").write_text("1000")
    counted = dict(line.split() for line in (CGROUP / "memory.stat").read_text().splitlines())
    # Without swap nothing of this can go elsewhere.
    limit = sum(int(counted[name]) for name in ("anon", "shmem", "kernel", "sock")) - private(victim) // 4
    # What systemd does with MemoryMax=, but that it is over as soon as it has worked.
    (CGROUP / "memory.max").write_text(str(limit))
    (CGROUP / "memory.max").write_text("max")


def said(*wanted: str) -> str:
    """The line of the journal that has all of these words, once it is there."""

    def found() -> str:
        return next((line for line in journal() if all(word in line for word in wanted)), "")

    return poll_until(found, PATIENCE, f"{wanted} in the journal", 0.5)


def main() -> None:
    configure(CONFIGURATION)
    everybody = IDLE + PINGPONG
    with (
        Backend(["127.0.0.1:9003"]),
        Population("127.0.0.1:8001", idle=IDLE, pingpong=PINGPONG, timeout=PATIENCE) as crowd,
    ):
        wait_served(0, everybody)
        boss, restarts, before = main_pid(), shown("NRestarts"), workers()
        # Main would have a replacement within that moment, and too little for it.
        os.kill(boss, signal.SIGSTOP)
        run_out(before[0])
        os.kill(boss, signal.SIGCONT)
        poll_until(lambda: len(workers()) == 2 and before[0] not in workers(), PATIENCE, "it is replaced")
        wait_served(0, everybody)
        crowd.verify(PATIENCE)
        assert (main_pid(), shown("NRestarts"), shown("ActiveState")) == (boss, restarts, "active")
        assert before[1] in workers()
        for wanted in (
            ("Memory cgroup out of memory: Killed process", str(before[0])),
            ("hitlessd.service", "killed by the OOM killer"),
            (f"(pid {before[0]}) was killed by SIGKILL", "are parked"),
        ):
            print(said(*wanted))
        run_out(boss)
        wait_served(boss, everybody)
        crowd.verify(PATIENCE)
        crowd.flawless()
        print(said("Memory cgroup out of memory: Killed process", str(boss)))
    assert info()["CumLost"] == "0"
    assert int(shown("NRestarts")) == int(restarts) + 1
    print(f"all of {everybody} live")


if __name__ == "__main__":
    main()
