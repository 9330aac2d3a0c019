"""The programs that are compared, as processes: started, reloaded, timed, and ended with all their generations."""

import compileall
import contextlib
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from benchmarks.usage import Usage, usage_of
from benchmarks.user import ordinary_user
from hitlessd.main.spare import NAME
from tests.support.processes import ROOT, Process, alive, end, poll_until

HAPROXY: Final = shutil.which("haproxy", path="/usr/sbin:/usr/local/sbin:/usr/bin") or "/usr/sbin/haproxy"
_MARK: Final = "HITLESSD_BENCHMARK"
_SCRIPTS: Final = ROOT / "debian" / "bin"
"""What the package installs below /usr/bin."""


class Proxy:
    """A proxy in front of servers, with all the processes that came of it.

    Its processes carry a mark in their environment, since a reload leaves the original one behind. If it can be, they
    belong to an ordinary user whom nobody else is.
    """

    name: str

    def __init__(
        self,
        directory: Path,
        listen: Sequence[int],
        servers: Sequence[int],
        *,
        workers: int = 1,
        cpu: int | None = None,
    ) -> None:
        """Ports of 127.0.0.1 to listen on and to connect to."""
        self.directory = directory
        self.listen = list(listen)
        self.servers = list(servers)
        self.workers = workers
        self.socket = directory / "proxy.sock"
        self.file = directory / "proxy.conf"
        self.pidfile = directory / "proxy.pid"
        self._cpu = cpu
        self.user = ordinary_user()
        self._mark = secrets.token_hex(8)
        # As installed packages are, with byte code kept: a reload starts a Python.
        self._env = {**os.environ, _MARK: self._mark, "PYTHONPATH": str(ROOT)}
        self._env.pop("PYTHONDONTWRITEBYTECODE", None)
        self._process: Process | None = None

    @property
    def targets(self) -> list[str]:
        return [f"127.0.0.1:{port}" for port in self.listen]

    @property
    def environment(self) -> dict[str, str]:
        """That of its processes, with the mark by which they are found."""
        return dict(self._env)

    @property
    def log(self) -> str:
        return self._process.stderr.text if self._process else ""

    def write(self, listen: Sequence[int] | None = None, servers: Sequence[int] | None = None) -> None:
        """Write the configuration, by default as it was; atomically, since a reload may be reading it."""
        temporary = self.file.with_suffix(".new")
        temporary.write_text(
            self.text(self.listen if listen is None else listen, self.servers if servers is None else servers)
        )
        temporary.rename(self.file)

    def text(self, listen: Sequence[int], servers: Sequence[int]) -> str:
        raise NotImplementedError

    def command(self) -> list[str]:
        """What starts it in the foreground."""
        raise NotImplementedError

    def reload(self) -> float:
        """Reload and return how long it took, in seconds; RuntimeError if it failed."""
        raise NotImplementedError

    def prepare(self) -> None:
        """What has to be there before the process starts."""
        self.user.own(self.directory)

    def wrapped(self, command: Sequence[str]) -> list[str]:
        """The command as its user, and on its CPU from the first instruction on."""
        pinned = self._cpu is not None and self._cpu in os.sched_getaffinity(0)
        return [*(("taskset", "-c", str(self._cpu)) if pinned else ()), *self.user.wrapper, *command]

    def launch(self) -> None:
        """Start the process, and wait for nothing."""
        self._process = Process(self.wrapped(self.command()), env=self._env, cwd=ROOT)

    def start(self) -> None:
        """Returns when it serves."""
        self.directory.mkdir(parents=True, exist_ok=True)
        self.write()
        self.prepare()
        self.launch()
        try:
            poll_until(self._serves, 15, f"{self.name} serves")
        except AssertionError as error:
            self.stop()
            raise RuntimeError(f"cannot start {self.name}: {self.log}") from error

    def _serves(self) -> bool:
        if self._process is None or not self._process.running:
            raise AssertionError(f"{self.name} ended")
        with contextlib.suppress(OSError):
            return "Pid:" in self.ask("show info")
        return False

    def ask(self, command: str, timeout: float = 60.0) -> str:
        """A command of the runtime API, and the whole answer."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
            sock.settimeout(timeout)
            sock.connect(str(self.socket))
            sock.sendall(command.encode() + b"\n")
            answer = b""
            while piece := sock.recv(65536):
                answer += piece
        return answer.decode()

    def info(self) -> dict[str, str]:
        """`show info`."""
        return dict(line.split(": ", 1) for line in self.ask("show info").splitlines() if ": " in line)

    def processes(self) -> list[int]:
        """All that came of it, the oldest first."""
        mark = f"{_MARK}={self._mark}".encode()
        found = []
        for entry in os.listdir("/proc"):
            if entry.isdigit():
                with contextlib.suppress(OSError):
                    if mark in Path(f"/proc/{entry}/environ").read_bytes().split(b"\0") and alive(int(entry)):
                        found.append(int(entry))
        return sorted(found)

    def usage(self) -> Usage:
        """CPU time of all its processes."""
        return usage_of(self.processes())

    def cpu_used(self) -> float:
        """User and system time of all its processes, in seconds."""
        return self.usage().total

    def memory(self) -> int:
        """Resident bytes of all its processes that are not shared with others."""
        total = 0
        for pid in self.processes():
            with contextlib.suppress(OSError):
                for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
                    if line.startswith("Private_"):
                        total += int(line.split()[1]) * 1024
        return total

    def stop(self) -> None:
        """End all its processes, each by its pid."""
        for number in (signal.SIGTERM, signal.SIGKILL, signal.SIGKILL):
            pids = self.processes()
            for pid in pids:
                end(pid, 5, number)
            if not pids:
                break
        if self._process is not None:
            self._process.stop()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _run(self, command: Sequence[str | Path]) -> float:
        began = time.monotonic()
        done = subprocess.run(
            [str(part) for part in command],
            env=self._env,
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            check=False,
        )
        elapsed = time.monotonic() - began
        if done.returncode != 0:
            raise RuntimeError(f"{self.name}: reload failed: {done.stderr.decode(errors='replace').strip()}")
        return elapsed


def interpreter() -> str:
    """The Python that runs hitlessd: not that of a virtual environment, as the installed program has none.

    That of the environment if its packages are not those of the system, which hitlessd needs.
    """
    system = "/usr/bin/python3"
    if os.path.exists(system) and os.path.realpath(system) == os.path.realpath(sys.executable):
        return system
    return sys.executable


class Hitlessd(Proxy):
    """hitlessd from this tree, reloaded with hitlessctl."""

    name = "hitlessd"
    moved = 0  # connections that the last reload has moved

    def text(self, listen: Sequence[int], servers: Sequence[int]) -> str:
        binds = "\n       ".join(f"127.0.0.1:{port}" for port in listen)
        lines = "\n".join(f"server s{index} = 127.0.0.1:{port}" for index, port in enumerate(servers, 1))
        return (
            f"[global]\nstats socket = {self.socket} mode 600 expose-fd listeners level admin\n"
            f"workers = {self.workers}\nmaxconn = 4000\n\n"
            "[defaults]\nmode = tcp\ntimeout connect = 5s\ntimeout client = 1m\ntimeout server = 1m\n\n"
            f"[listen t]\nbind = {binds}\n{lines}\n"
        )

    def prepare(self) -> None:
        # Its user cannot keep byte code in this tree, and a reload starts a Python.
        compileall.compile_dir(ROOT / "hitlessd", quiet=2)
        super().prepare()

    def command(self) -> list[str]:
        return [interpreter(), str(_SCRIPTS / "hitlessd"), "-f", str(self.file), "-p", str(self.pidfile)]

    def spares(self) -> list[int]:
        """Of its processes, those that wait to be successors."""
        return [pid for pid in self.processes() if Path(f"/proc/{pid}/comm").read_text().strip() == NAME]

    def reload(self) -> float:
        """By `hitlessctl reload`, until it returns."""
        return self._run([interpreter(), _SCRIPTS / "hitlessctl", "-s", self.socket, "reload"])

    def reload_directly(self) -> float:
        """The same without the start of hitlessctl: the command on the runtime socket, until its answer.

        `moved` then says how many connections came over.
        """
        before = self.info()["Generation"]
        began = time.monotonic()
        answer = self.ask("reload")
        elapsed = time.monotonic() - began
        if self.info()["Generation"] == before:
            raise RuntimeError(f"{self.name}: reload failed: {answer}")
        told = re.search(r"(\d+) connections moved", answer)
        self.moved = int(told[1]) if told else 0
        return elapsed


class Haproxy(Proxy):
    """Debian's haproxy with one thread, reloaded by hand with -x and -sf."""

    name = "haproxy"

    def __init__(
        self,
        directory: Path,
        listen: Sequence[int],
        servers: Sequence[int],
        *,
        workers: int = 1,
        cpu: int | None = None,
        splice: bool = False,
    ) -> None:
        super().__init__(directory, listen, servers, workers=workers, cpu=cpu)
        self._splice = splice

    def text(self, listen: Sequence[int], servers: Sequence[int]) -> str:
        binds = "\n".join(f"    bind 127.0.0.1:{port}" for port in listen)
        lines = "\n".join(f"    server s{index} 127.0.0.1:{port}" for index, port in enumerate(servers, 1))
        splice = "    option splice-auto\n" if self._splice else ""
        return (
            f"global\n    stats socket {self.socket} mode 600 expose-fd listeners level admin\n"
            f"    nbthread {self.workers}\n    maxconn 4000\n    pidfile {self.pidfile}\n\n"
            f"defaults\n    mode tcp\n{splice}    timeout connect 5s\n    timeout client 1m\n    timeout server 1m\n\n"
            f"listen t\n{binds}\n{lines}\n"
        )

    def command(self) -> list[str]:
        return [HAPROXY, "-f", str(self.file), "-db"]

    def reload(self) -> float:
        """By a new haproxy that takes the listeners over and goes into the background when it serves."""
        pid = self.info()["Pid"]
        return self._run([*self.user.wrapper, HAPROXY, "-D", "-f", self.file, "-x", self.socket, "-sf", pid])


def haproxy_version() -> str:
    """Such as 2.6.12, or nothing if there is no haproxy."""
    try:
        text = subprocess.run([HAPROXY, "-v"], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return ""
    return text.split()[2].split("-")[0]
