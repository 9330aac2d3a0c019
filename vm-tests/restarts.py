"""Runs in a machine, see inside.py: a crowd outlives restarts and deaths of main, again and again.

    python3 vm-tests/restarts.py

The crowd checks every byte. Prints what it reports.
"""

from __future__ import annotations

import os
import signal

from inside import CONFIGURATION, PATIENCE, configure, do, info, main_pid, shown, wait_served

from tests.support.backend import Backend
from tests.support.crowd import Population

IDLE, PINGPONG, TIMES = 30, 10, 2


def main() -> None:
    configure(CONFIGURATION)
    with (
        Backend(["127.0.0.1:9003"]),
        Population("127.0.0.1:8001", idle=IDLE, pingpong=PINGPONG, timeout=PATIENCE) as crowd,
    ):
        wait_served(0, IDLE + PINGPONG)
        for number in range(2 * TIMES):
            old = main_pid()
            if number % 2:
                os.kill(old, signal.SIGKILL)
            else:
                do("systemctl", "restart", "hitlessd.service")
            wait_served(old, IDLE + PINGPONG)
            crowd.verify(PATIENCE)
        report = crowd.flawless()
    done = {kind: found["done"] for kind, found in report["kinds"].items() if found["done"]}
    assert done == {"idle": IDLE, "pingpong": PINGPONG}, report
    assert info()["CumLost"] == "0"
    assert shown("Result") == "success"
    gaps = {kind: f"{report['kinds'][kind]['gap_ms']['max']:.0f} ms" for kind in done}
    print(f"{TIMES} restarts and {TIMES} SIGKILLs of main: all of {done} live, longest gaps {gaps}")


if __name__ == "__main__":
    main()
