"""Runs in a machine, see inside.py: the clock is set, hours forward and back, and nobody notices.

    python3 vm-tests/clocks.py

Prints how the crowd fared.
"""

from __future__ import annotations

import socket
import time

from inside import CONFIGURATION, PATIENCE, UNIT, configure, do, main_pid, stat, wait_served

from tests.support.backend import Backend
from tests.support.crowd import Population
from tests.support.processes import poll_until

IDLE, PINGPONG = 20, 10
JUMPS = (2, -2)
"""Hours: more than any time-out, and in all nothing."""
CHECKED = """\
[listen checked]
bind = 127.0.0.1:8002
rate-limit sessions = 1000
balance = roundrobin
default-server = check inter 1s fall 1 rise 1 slowstart 2s
server up = 127.0.0.1:9003
server down = 127.0.0.1:9004
"""


def is_up(name: str) -> bool:
    return stat()["checked", name]["status"].startswith("UP")


def connect(times: int) -> None:
    """Short connections through the balanced port; each must meet a server at once."""
    for _ in range(times):
        with socket.create_connection(("127.0.0.1", 8002), PATIENCE) as sock:
            sock.settimeout(PATIENCE)
            sock.shutdown(socket.SHUT_WR)
            assert sock.recv(1) == b""


def jump(hours: int) -> None:
    time.clock_settime(time.CLOCK_REALTIME, time.time() + hours * 3600)


def revive() -> None:
    """Somebody listens at the second server's port for a while."""
    with socket.create_server(("127.0.0.1", 9004), backlog=1000):
        poll_until(lambda: is_up("down"), PATIENCE, "checks find the second server", 0.2)
    poll_until(lambda: not is_up("down"), PATIENCE, "checks miss the second server", 0.2)


def main() -> None:
    with Backend(["127.0.0.1:9003"]):
        configure(CONFIGURATION + CHECKED)
        poll_until(lambda: is_up("up") and not is_up("down"), PATIENCE, "checks have begun", 0.2)
        with Population("127.0.0.1:8001", idle=IDLE, pingpong=PINGPONG, timeout=PATIENCE) as crowd:
            wait_served(0, IDLE + PINGPONG)
            for hours in JUMPS:
                jump(hours)
                # Before any check is made: what was known of the servers is.
                do("systemctl", "reload", UNIT)
                assert is_up("up") and not is_up("down"), (hours, stat())
                connect(10)
                revive()
                crowd.verify(PATIENCE)
                row = stat()["checked", "down"]
                assert 0 <= int(row["lastchg"]) < 3600, row
            old = main_pid()
            jump(2)
            do("systemctl", "restart", UNIT)
            assert is_up("up") and not is_up("down"), stat()
            wait_served(old, IDLE + PINGPONG)
            jump(-2)
            crowd.verify(PATIENCE)
            report = crowd.flawless()
    gaps = {kind: f"{found['gap_ms']['max']:.0f} ms" for kind, found in report["kinds"].items() if found["done"]}
    print(f"the clock was set {len(JUMPS) + 2} times: all live, longest gaps {gaps}")


if __name__ == "__main__":
    main()
