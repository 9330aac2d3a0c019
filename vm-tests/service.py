"""hitlessd as a service of a booted machine: configured, started, reloaded, asked, and broken on purpose."""

from __future__ import annotations

import contextlib
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from machine import Machine, Process

from hitlessd.main.spare import NAME as SPARE

TREE = Path(__file__).resolve().parent.parent
UNIT = "hitlessd.service"
SOCKET = "hitlessd.socket"
PORT = 8001
BACKEND = 9001
LOADED = 9002
FAULTS = "/run/hitlessd/faults"

CONFIGURATION = """\
[global]
stats socket = /run/hitlessd/hitlessd.sock mode 600 expose-fd listeners level admin
workers = 2
maxconn = 3000
reload-timeout = {reload_timeout}
[defaults]
mode = tcp
timeout connect = 5s
timeout client = 1m
timeout server = 1m
[listen t]
bind = {bind}
server s = 127.0.0.1:{backend}
"""
CONNECT = """\
import socket, sys
with socket.create_connection(("127.0.0.1", int(sys.argv[1])), 20) as sock:
    sock.sendall(b"hello")
    sock.shutdown(socket.SHUT_WR)
    sock.settimeout(20)
    answer = b""
    while data := sock.recv(4096):
        answer += data
print(answer.decode())
"""
ECHO = """\
import socket, threading
listener = socket.create_server(("127.0.0.1", %d), backlog=4096)
print("ready", flush=True)
def serve(sock):
    try:
        with sock:
            while data := sock.recv(65536):
                sock.sendall(data)
    except OSError:
        pass
while True:
    threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()
"""


def configuration(bind: str = f"127.0.0.1:{PORT}", reload_timeout: str = "30s", backend: int = BACKEND) -> str:
    return CONFIGURATION.format(bind=bind, reload_timeout=reload_timeout, backend=backend)


class Service:
    """The unit in a machine. Nothing is started by itself; stop() leaves the machine as it was found."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine

    def configure(self, text: str) -> None:
        self.machine.write("/etc/hitlessd/hitlessd.conf", text)

    def drop_in(self, text: str, unit: str = UNIT) -> None:
        """Override settings of a unit until stop()."""
        self.machine.write(f"/run/systemd/system/{unit}.d/test.conf", text)
        self.machine.run("systemctl", "daemon-reload")

    def start(self, unit: str = UNIT) -> None:
        self.machine.run("systemctl", "start", unit)

    def stop(self) -> None:
        run = self.machine.run
        run("systemctl", "stop", SOCKET, UNIT, check=False)
        run("systemctl", "reset-failed", SOCKET, UNIT, check=False)
        run("rm", "-rf", f"/run/systemd/system/{UNIT}.d", f"/run/systemd/system/{SOCKET}.d", "/run/hitlessd")
        run("systemctl", "daemon-reload")

    def reload(self) -> subprocess.CompletedProcess[str]:
        return self.machine.run("systemctl", "reload", UNIT, check=False, timeout=120)

    @property
    def main_pid(self) -> int:
        return int(self.machine.property(UNIT, "MainPID"))

    @property
    def restarts(self) -> int:
        return int(self.machine.property(UNIT, "NRestarts"))

    @property
    def status(self) -> str:
        return self.machine.property(UNIT, "StatusText")

    def active(self) -> bool:
        return self.machine.property(UNIT, "ActiveState") == "active"

    @property
    def stored(self) -> int:
        return int(self.machine.property(UNIT, "NFileDescriptorStore"))

    def ask(self, command: str) -> str:
        return self.machine.run("hitlessctl", *command.split()).stdout

    def info(self) -> dict[str, str]:
        return dict(line.split(": ", 1) for line in self.ask("show info").splitlines() if ": " in line)

    def connections(self) -> int:
        """Connections ever, as the main process counts them; 0 while nobody answers."""
        answer = self.machine.run("hitlessctl", "show", "info", check=False).stdout
        counts = [line.split()[1] for line in answer.splitlines() if line.startswith("CumConns:")]
        return int(counts[0]) if counts else 0

    def connect(self, port: int = PORT) -> str:
        """One connection: what an echo answers to "hello"."""
        return self.machine.run("python3", "-c", CONNECT, str(port)).stdout.strip()

    def serving(self) -> bool:
        """Whether the main process that systemd knows is the one that answers, and traffic flows."""
        result = self.machine.run("hitlessctl", "show", "info", check=False)
        return result.returncode == 0 and f"\nPid: {self.main_pid}\n" in result.stdout and self.connect() == "hello"

    def listener(self, port: int = PORT) -> str:
        """The inode of the listening socket: the same number means that it was never closed."""
        for line in self.machine.read("/proc/net/tcp").splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and int(fields[1].rpartition(":")[2], 16) == port:
                return fields[9]
        return ""

    def mains(self) -> list[int]:
        """Main processes of the service, of whatever generation: those of its processes that have none as parent, but
        for the one that waits to be the next."""
        shown = self.machine.run("ps", "-u", "hitlessd", "-o", "pid=,ppid=,comm=,args=", check=False).stdout
        rows = [line.split(None, 3) for line in shown.splitlines()]
        pids = {row[0] for row in rows if "hitlessd" in row[3] and row[2] != SPARE}
        return sorted(int(row[0]) for row in rows if row[0] in pids and row[1] not in pids)

    def fault(self, place: str, number: str) -> None:
        """Have the next process that enters that state of a handover raise the signal for itself, once."""
        self.machine.write(FAULTS, f"{place} {number}\n")
        self.machine.run("chown", "hitlessd", FAULTS)

    def complaints(self, cursor: str) -> list[str]:
        """What the journal holds at warning and above, of the unit and of systemd about it."""
        entries: list[dict[str, Any]] = self.machine.journal(since_cursor=cursor)
        return [
            str(entry.get("MESSAGE"))
            for entry in entries
            if int(entry.get("PRIORITY", 6)) <= 4
            and (entry.get("_SYSTEMD_UNIT") == UNIT or entry.get("UNIT") == UNIT or "not our child" in str(entry))
        ]


@contextlib.contextmanager
def backend(machine: Machine, port: int = BACKEND) -> Iterator[Process]:
    """An echo server inside the machine."""
    with machine.start("python3", "-c", ECHO % port) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        try:
            yield process
        finally:
            process.kill()


class Load:
    """Checked connections at a rate, from inside the machine to `port`, until stop(); the server checks them, too."""

    def __init__(self, machine: Machine, rate: int, *more: str, port: int = PORT) -> None:
        self._machine = machine
        pace = f"--rate {round(rate / machine.pace)} --timeout {10 * machine.pace:g}"
        self._options = f"--target 127.0.0.1:{port} {pace} --json --progress 60 {' '.join(more)}"

    def __enter__(self) -> Load:
        self._machine.push(TREE / "tests" / "__init__.py", "/opt/load/tests/__init__.py")
        self._machine.push(TREE / "tests" / "support", "/opt/load/tests/support")
        self._server = self._start(f"backend --listen 127.0.0.1:{LOADED}")
        assert self._server.stdout is not None
        assert self._server.stdout.readline()
        self._client = self._start(f"load {self._options}")
        return self

    def __exit__(self, *_: object) -> None:
        for process in (self._client, self._server):
            process.kill()
            process.communicate()

    def stop(self) -> dict[str, Any]:
        """End the load in order; what it counted."""
        self._client.terminate()
        stdout, stderr = self._client.communicate(timeout=60 * self._machine.patience)
        assert stdout, stderr
        report: dict[str, Any] = json.loads(stdout.splitlines()[-1])
        return report

    def _start(self, what: str) -> Process:
        return self._machine.start("sh", "-c", f"cd /opt/load && exec python3 -m tests.support.{what}")
