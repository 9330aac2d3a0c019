"""What parking is tried with in a machine: a checked crowd, kills at random moments, a bad wire, and the accounts."""

from __future__ import annotations

import contextlib
import json
import math
import os
import queue
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from machine import Machine, Process
from service import PORT, TREE, UNIT, Service

CROWDED = 9003
"""The port of the crowd's server."""
PATIENCE = 40.0


class Program:
    """A module of tests/support in a machine, whose lines are read as they come."""

    def __init__(self, machine: Machine, what: str, netns: str = "") -> None:
        push_support(machine)
        within = f"ip netns exec {netns} " if netns else ""
        self.what = what
        self.patience = machine.patience
        self.process: Process = machine.start(
            "sh", "-c", f"cd /opt/load && ulimit -n $(ulimit -Hn) && exec {within}python3 -m tests.support.{what}"
        )
        self.said: queue.SimpleQueue[str] = queue.SimpleQueue()
        self.ended = threading.Event()
        self.output: list[str] = []
        self._threads = [threading.Thread(target=self._read_errors), threading.Thread(target=self._read)]
        for thread in self._threads:
            thread.start()

    def hear(self, wanted: Callable[[str], bool], deadline: float = PATIENCE) -> str:
        """The next line on stderr that is wanted."""
        deadline *= self.patience
        end = time.monotonic() + deadline
        while True:
            try:
                line = self.said.get(timeout=max(0.0, end - time.monotonic()))
            except queue.Empty:
                raise TimeoutError(f"not within {deadline:g} s: a line of {self.what}") from None
            assert line, f"{self.what} has ended: {self.output[-5:]}"
            if wanted(line):
                return line

    def stop(self, deadline: float = PATIENCE) -> str:
        """Its last line on stdout, after SIGTERM."""
        deadline *= self.patience
        self.process.send_signal(signal.SIGTERM)
        if not self.ended.wait(deadline):
            raise TimeoutError(f"not within {deadline:g} s: the end of {self.what}")
        for thread in self._threads:
            thread.join()
        assert self.output, f"{self.what} said nothing"
        return self.output[-1]

    def close(self) -> None:
        self.process.kill()
        for thread in self._threads:
            thread.join()
        with self.process:
            pass

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.output.append(line)
        self.ended.set()

    def _read_errors(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.note(line)
            self.said.put(line)
        self.said.put("")

    def note(self, line: str) -> None:
        """A line on stderr, in the order in which they come."""


class _CrowdProgram(Program):
    def __init__(self, machine: Machine, what: str, netns: str) -> None:
        self.lost: list[dict[str, Any]] = []
        super().__init__(machine, what, netns)

    def note(self, line: str) -> None:
        if line.startswith('{"event": "lost"'):
            self.lost.append(json.loads(line))


class Crowd:
    """A crowd (tests/support/crowd.py) and its server, from the beginning of a with-block on; then all are connected.

    On a slow machine there are fewer. `netns` and `server_netns` are network namespaces for the one and the other.
    """

    def __init__(
        self,
        machine: Machine,
        *,
        idle: int = 0,
        pingpong: int = 0,
        bulk: int = 0,
        target: str = f"127.0.0.1:{PORT}",
        listen: str = f"127.0.0.1:{CROWDED}",
        netns: str = "",
        server_netns: str = "",
        options: str = "",
    ) -> None:
        self.machine = machine
        # No kind may be missing. Bulk ones take all that there is, and a worker must find time to answer pings.
        idle, pingpong = math.ceil(idle / machine.pace), math.ceil(pingpong / machine.pace)
        bulk = math.ceil(bulk / machine.pace**2)
        self.size = idle + pingpong + bulk
        timeout = f"--timeout {20 * machine.pace:g}"
        self._crowd = f"crowd --target {target} --idle {idle} --pingpong {pingpong} --bulk {bulk} {timeout} {options}"
        self._listen = listen
        self._netns = netns, server_netns

    def __enter__(self) -> Crowd:
        with contextlib.ExitStack() as stack:
            self._server = Program(self.machine, f"backend --listen {self._listen}", self._netns[1])
            stack.callback(self._server.close)
            self.machine.wait_until(lambda: self._server.output, PATIENCE, "the crowd's server listens")
            self._program = _CrowdProgram(self.machine, self._crowd, self._netns[0])
            stack.callback(self._program.close)
            self._program.hear(lambda line: '"event": "ready"' in line)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @property
    def lost(self) -> list[dict[str, Any]]:
        """Who is lost so far, and why."""
        return list(self._program.lost)

    def rest(self, seconds: float) -> None:
        """Let it talk for so long, or until it has ended."""
        self._program.ended.wait(seconds)

    def verify(self) -> None:
        """Have all idle ones exchange something; returns when all have, or are lost."""
        self._program.process.send_signal(signal.SIGUSR1)
        self._program.hear(lambda line: '"event": "verified"' in line)

    def stop(self) -> dict[str, Any]:
        """Have all verify and end; what became of them, and what the server makes of it under "server"."""
        report: dict[str, Any] = json.loads(self._program.stop(60))
        report["server"] = json.loads(self._server.stop())
        return report


def push_support(machine: Machine) -> None:
    """Copy the support modules of the tests."""
    machine.push(TREE / "tests" / "__init__.py", "/opt/load/tests/__init__.py")
    machine.push(TREE / "tests" / "support", "/opt/load/tests/support")


@dataclass
class Account:
    """What the journal says about connections that came back and that did not, from a cursor on."""

    resumed: list[int] = field(default_factory=list)
    took: list[str] = field(default_factory=list)
    lost: int = 0
    reasons: list[str] = field(default_factory=list)
    killed: Counter[str] = field(default_factory=Counter)

    @classmethod
    def read(cls, machine: Machine, cursor: str) -> Account:
        account = cls()
        for entry in machine.journal(UNIT, cursor):
            message = str(entry.get("MESSAGE"))
            if "HITLESSD_RESUMED" in entry:
                account.resumed.append(int(entry["HITLESSD_RESUMED"]))
                account.took.append(message)
            if "HITLESSD_LOST" in entry:
                account.lost += int(entry["HITLESSD_LOST"])
                account.reasons.append(message)
            if "was killed by" in message:
                account.killed[message.split("was killed by ")[1].split(";")[0].strip()] += 1
        return account


class Killer:
    """Kills processes of the unit, at moments that a seed decides."""

    def __init__(self, machine: Machine, seed: int) -> None:
        self.machine = machine
        self.dice = random.Random(seed)
        self.kills = 0

    def processes(self) -> tuple[int, list[int]]:
        """The main process, 0 if there is none, and its workers, by the pids that the machine's kill() takes."""
        return self.machine.processes(UNIT)

    def kill(self, what: str, number: signal.Signals = signal.SIGKILL) -> int:
        """Kill the main process or a worker, as soon as there is one."""

        def victim() -> int:
            main, workers = self.processes()
            return main if what == "main" else self.dice.choice(workers) if workers else 0

        pid = self.machine.wait_until(victim, 20, f"a process to kill: {what}")
        self.kills += self.machine.kill(pid, number)
        return pid

    def delay(self) -> float:
        """Seconds until the next kill: often so few that what the last one has begun is not finished."""
        return self.dice.uniform(0.0, 0.15) if self.dice.random() < 0.4 else self.dice.uniform(0.15, 0.9)


@contextlib.contextmanager
def hog(machine: Machine, count: int) -> Iterator[None]:
    """So many descriptors in flight, sent by a process of the daemon's user: they count against all that it sends."""
    program = HOG.format(count=count)
    with machine.start("sh", "-c", 'ulimit -n $(ulimit -Hn); exec "$@"', "sh", *AS_DAEMON, program) as process:
        assert process.stdout is not None and process.stderr is not None
        assert process.stdout.readline() == "ready\n", process.stderr.read()
        try:
            yield
        finally:
            process.kill()


AS_DAEMON = ("setpriv", "--reuid=hitlessd", "--regid=hitlessd", "--clear-groups", "python3", "-c")
HOG = """\
import array, os, select, socket
left, held = {count}, []
fd = os.open("/dev/null", os.O_RDONLY)
while left:
    ends = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    held.append(ends)
    for _ in range(8):
        some = min(left, 250)
        if some:
            ends[0].sendmsg([b"x"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [fd] * some))])
            left -= some
print("ready", flush=True)
select.select([], [], [])
"""


@contextlib.contextmanager
def bad_wires(machine: Machine, options: str) -> Iterator[list[Program]]:
    """Two namespaces behind wires that lose: clients (10.9.1.1, ours is .2) and servers (10.9.2.2, ours is .1)."""
    with contextlib.ExitStack() as stack:
        wires = []
        for netns, near, far, here, there in (
            ("clients", "near1", "far1", "10.9.1.2", "10.9.1.1"),
            ("servers", "near2", "far2", "10.9.2.1", "10.9.2.2"),
        ):
            wire = Program(machine, f"lossy {near} {far} {options}")
            stack.callback(wire.close)
            machine.wait_until(lambda wire=wire: wire.output, PATIENCE, "a wire")  # type: ignore[misc]
            machine.run("ip", "netns", "add", netns)
            stack.callback(machine.run, "ip", "netns", "delete", netns)
            machine.run("ip", "link", "set", far, "netns", netns)
            inside = ("ip", "netns", "exec", netns)
            for prefix, name, address, peer in (((), near, here, there), (inside, far, there, here)):
                machine.run(*prefix, "ip", "address", "add", address, "peer", peer, "dev", name)
                machine.run(*prefix, "ip", "link", "set", name, "up", "mtu", "1500")
            machine.run(*inside, "ip", "link", "set", "lo", "up")
            wires.append(wire)
        yield wires


def parked(service: Service) -> int:
    """Connections that are parked now; -1 while nobody answers."""
    answer = service.machine.run("hitlessctl", "show", "info", check=False).stdout
    return next((int(line.split()[1]) for line in answer.splitlines() if line.startswith("CurrParked:")), -1)


def cpu_of_pid_1(machine: Machine) -> float:
    """User and system time of the machine's PID 1, in seconds."""
    fields = machine.read("/proc/1/stat").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
