"""What the programs have in common that run in a machine, as root, where the Debian package is installed and running.

They configure the service, and leave it running. Nothing is fast where QEMU computes every instruction.
"""

from __future__ import annotations

import contextlib
import csv
import socket
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tests.support.processes import poll_until

UNIT = "hitlessd.service"
PATIENCE = 60.0
"""Seconds."""
CONFIGURATION = """\
[global]
stats socket = /run/hitlessd/hitlessd.sock mode 600 level admin
workers = 2
reload-timeout = 2m
[defaults]
mode = tcp
timeout connect = 20s
timeout client = 5m
timeout server = 5m
[frontend web]
mode = http
bind = sd@http
http-request = return status 200 content-type text/plain string hello
[listen crowd]
bind = 127.0.0.1:8001
server s = 127.0.0.1:9003
"""
"""Takes the socket that the package enables."""
FILE = Path("/etc/hitlessd/hitlessd.conf")


def output(*argv: str) -> str:
    return subprocess.run(argv, capture_output=True, text=True, timeout=2 * PATIENCE).stdout


def do(*argv: str) -> None:
    """A command that must succeed."""
    done = subprocess.run(argv, capture_output=True, text=True, timeout=2 * PATIENCE)
    assert done.returncode == 0, (argv, done.stdout, done.stderr, journal()[-10:])


def configure(text: str) -> None:
    FILE.write_text(text)
    do("systemctl", "reload", UNIT)


def shown(name: str) -> str:
    """A property of the unit."""
    return output("systemctl", "show", f"--property={name}", "--value", UNIT).strip()


def main_pid() -> int:
    return int(shown("MainPID"))


def workers() -> list[int]:
    return [int(pid) for pid in output("pgrep", "-P", str(main_pid())).split()]


def ask(command: str) -> str:
    """The runtime API's answer, "" when there is none. hitlessctl is a Python more to start, a second or two here."""
    said = b""
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(PATIENCE)
        sock.connect("/run/hitlessd/hitlessd.sock")
        sock.sendall(command.encode() + b"\n")
        while data := sock.recv(65536):
            said += data
    return said.decode()


def info() -> dict[str, str]:
    """`show info`; empty while nobody answers."""
    return dict(line.split(": ", 1) for line in ask("show info").splitlines() if ": " in line)


def stat() -> dict[tuple[str, str], dict[str, str]]:
    """`show stat`, by proxy and server."""
    rows = csv.DictReader(ask("show stat").removeprefix("# ").splitlines())
    return {(row["pxname"], row["svname"]): row for row in rows}


def serves(old: int, parked: int) -> bool:
    """Whether another main process than `old` answers and has parked so many."""
    told = info()
    new = int(told.get("Pid", "0"))
    return new != old and told.get("CurrParked") == str(parked) and new == main_pid()


def wait_served(old: int, parked: int, patience: float = PATIENCE) -> None:
    poll_until(lambda: serves(old, parked), patience, f"another than {old} serves, with {parked} parked", 0.1)


def journal() -> list[str]:
    """All messages of this boot."""
    output("journalctl", "--sync")
    return output("journalctl", "--boot", "--output=cat", "--no-pager").splitlines()
