"""Runs in a machine, see inside.py: reloads while packets come late, overtake each other, and get lost.

    python3 vm-tests/netem.py

The kernel does it (tc-netem(8)), on all links of clients, hitlessd and a server. Prints how the crowd fared.
"""

from __future__ import annotations

import socket
import subprocess
import sys
import time

from inside import CONFIGURATION, PATIENCE, UNIT, configure, do, info, output, wait_served
from wires import BALANCER, SERVERS, SWITCH, switch

from tests.support.crowd import Population
from tests.support.processes import ROOT

IDLE, PINGPONG, RELOADS = 10, 5, 10
BAD = "netem delay 20ms 5ms loss 2%"
ECHO = f"python3 -m tests.support.backend --listen {SERVERS[0]}:9003"


def shell(script: str) -> None:
    do("sh", "-c", script)


def crowd() -> None:
    """In the clients' namespace."""
    target = f"{BALANCER}:8001"
    with Population(target, idle=IDLE, pingpong=PINGPONG, timeout=PATIENCE) as crowd:
        wait_served(0, IDLE + PINGPONG)
        before, took = int(info()["CumConns"]), []
        for _ in range(RELOADS):
            began = time.monotonic()
            do("systemctl", "reload", UNIT)
            took.append(time.monotonic() - began)
            with socket.create_connection((BALANCER, 8001), PATIENCE) as young:
                young.settimeout(PATIENCE)
                young.shutdown(socket.SHUT_WR)
                assert young.recv(1) == b""
        crowd.verify(PATIENCE)
        report = crowd.flawless()
        told = info()
        assert int(told["CumConns"]) - before == RELOADS, told
        assert (told["CumLost"], told["Generations"]) == ("0", "1"), told
    gaps = {kind: f"{found['gap_ms']['max']:.0f} ms" for kind, found in report["kinds"].items() if found["done"]}
    print(f"{RELOADS} reloads, {sorted(took)[RELOADS // 2]:.1f} s each: all live, longest gaps {gaps}")


def main() -> None:
    if sys.argv[1:] == ["crowd"]:
        return crowd()
    with switch(shell):
        for netns in ("", "-n clients", "-n one"):
            link = netns.rpartition(" ")[2] or SWITCH
            shell(f"tc {netns} qdisc add dev {link} root {BAD}")
        text = CONFIGURATION.replace("127.0.0.1:8001", f"{BALANCER}:8001")
        configure(text.replace("127.0.0.1:9003", f"{SERVERS[0]}:9003"))
        inside = ("ip", "netns", "exec")
        with subprocess.Popen([*inside, "one", *ECHO.split()], cwd=ROOT, stdout=subprocess.PIPE) as server:
            try:
                assert server.stdout is not None and server.stdout.readline()
                done = subprocess.run([*inside, "clients", sys.executable, *sys.argv, "crowd"], timeout=10 * PATIENCE)
                counted = output("tc", "-s", "qdisc", "show", "dev", SWITCH)
            finally:
                server.kill()
    dropped = int(counted.partition("dropped ")[2].partition(",")[0])
    assert done.returncode == 0 and dropped, counted
    print(f"hitlessd's link alone has lost {dropped} packets")
    configure(CONFIGURATION)


if __name__ == "__main__":
    main()
