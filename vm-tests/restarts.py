"""Runs in a machine, as root, with hitlessd installed and not running: a crowd outlives it, again and again.

    python3 vm-tests/restarts.py

The crowd checks every byte. Prints what it reports.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tests.support.backend import Backend
from tests.support.crowd import Population
from tests.support.processes import poll_until

IDLE, PINGPONG, TIMES = 30, 10, 3
UNIT = "hitlessd.service"
CONFIGURATION = """\
[global]
stats socket = /run/hitlessd/hitlessd.sock mode 600 level admin
workers = 2
[defaults]
mode = tcp
timeout connect = 20s
timeout client = 5m
timeout server = 5m
[listen crowd]
bind = 127.0.0.1:8001
server s = 127.0.0.1:9003
"""
PATIENCE = 60.0
"""Seconds; nothing is fast where QEMU computes every instruction."""


def output(*argv: str) -> str:
    return subprocess.run(argv, capture_output=True, text=True, timeout=PATIENCE).stdout


def main_pid() -> int:
    return int(output("systemctl", "show", "--property=MainPID", "--value", UNIT))


def serves(old: int) -> bool:
    """Whether another main process than `old` answers and has parked all."""
    info = dict(line.split(": ", 1) for line in output("hitlessctl", "show", "info").splitlines() if ": " in line)
    new = info.get("Pid", "0")
    return int(new) != old and info.get("CurrParked") == str(IDLE + PINGPONG) and int(new) == main_pid()


def main() -> None:
    subprocess.run(["systemctl", "start", UNIT], check=True, timeout=PATIENCE)
    with (
        Backend(["127.0.0.1:9003"]),
        Population("127.0.0.1:8001", idle=IDLE, pingpong=PINGPONG, timeout=PATIENCE) as crowd,
    ):
        poll_until(lambda: serves(0), PATIENCE, "all are parked")
        for number in range(2 * TIMES):
            old = main_pid()
            if number % 2:
                os.kill(old, signal.SIGKILL)
            else:
                subprocess.run(["systemctl", "restart", UNIT], check=True, timeout=PATIENCE)
            poll_until(lambda: serves(old), PATIENCE, "it is back, with all")  # noqa: B023
            crowd.verify(PATIENCE)
        report = crowd.flawless()
    done = {kind: found["done"] for kind, found in report["kinds"].items() if found["done"]}
    assert done == {"idle": IDLE, "pingpong": PINGPONG}, report
    assert "\nCumLost: 0\n" in output("hitlessctl", "show", "info")
    assert output("systemctl", "show", "--property=Result", "--value", UNIT) == "success\n"
    gaps = {kind: f"{report['kinds'][kind]['gap_ms']['max']:.0f} ms" for kind in done}
    print(f"{TIMES} restarts and {TIMES} SIGKILLs of main: all of {done} live, longest gaps {gaps}")


if __name__ == "__main__":
    main()
