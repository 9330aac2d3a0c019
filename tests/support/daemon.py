"""A real hitlessd for tests: started from the tree, reloaded, asked, and ended with all its generations."""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import socket
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType

from hitlessd.main.spare import NAME
from tests.support.processes import (
    ROOT,
    Deadline,
    DeadlineExpired,
    Process,
    alive,
    end,
    poll_until,
    python_module,
    stopped,
)

_MARK = "HITLESSD_TEST_RUN"

BASE = """\
[global]
stats socket = {socket} mode 600 expose-fd listeners level admin
workers = {workers}
maxconn = 2000
{more}
[defaults]
mode = tcp
timeout connect = 5s
timeout client = 1m
timeout server = 1m
"""


class Daemon:
    """hitlessd with a configuration and a directory of its own. All its processes end with the `with` block."""

    def __init__(
        self,
        directory: Path,
        body: str = "",
        *,
        config: str | None = None,
        workers: int = 2,
        more: str = "",
        arguments: Sequence[str] = (),
        env: Mapping[str, str] | None = None,
        name: str = "h",
        wrapper: Sequence[str] = (),
    ) -> None:
        """`wrapper`: a command that becomes the daemon, as env(1) does."""
        self.directory = directory
        self.file = directory / f"{name}.conf"
        self.socket = directory / f"{name}.sock"
        self.pidfile = directory / f"{name}.pid"
        self.faults = directory / f"{name}.faults"
        self._workers = workers
        self._more = more
        self._mark = secrets.token_hex(8)
        self._env = {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            _MARK: self._mark,
            "HITLESSD_FAULTS": str(self.faults),
            **(env or {}),
        }
        # As an installed package is: without byte code each reload would compile everything again.
        self._env.pop("PYTHONDONTWRITEBYTECODE", None)
        self._arguments = list(arguments)
        self._earlier: list[str] = []  # logs of starts before this one
        self._wrapper = list(wrapper)
        self.write(config if config is not None else self.text(body))
        self.process: Process

    def text(self, body: str) -> str:
        """A whole configuration around these sections."""
        return BASE.format(socket=self.socket, workers=self._workers, more=self._more) + body

    def write(self, text: str | bytes) -> None:
        """Replace the configuration file, atomically: another reload may be reading it."""
        temporary = self.file.with_suffix(".new")
        temporary.write_bytes(text.encode() if isinstance(text, str) else text)
        temporary.rename(self.file)

    def start(self, *more: str, passed: Sequence[tuple[int, str]] = ()) -> Daemon:
        """Start, without waiting. `passed`: descriptors and names, as systemd passes them; they stay ours."""
        if self.started:
            self._earlier += self.process.stderr.join()
        command = python_module("hitlessd", "-f", self.file, "-p", self.pidfile, *self._arguments, *more)
        command = [*self._wrapper, *command]
        if passed:
            names = [f"{fd}={name}" for fd, name in passed]
            command = python_module("tests.support.passing", *names, "--", *command)
        self.process = Process(command, env=self._env, cwd=ROOT, pass_fds=[fd for fd, _ in passed])
        return self

    @property
    def started(self) -> bool:
        return hasattr(self, "process")

    def __enter__(self) -> Daemon:
        self.start()
        try:
            self.wait_serving()
        except BaseException:
            print(f"--- log of hitlessd in {self.directory} ---\n{self.log}")
            self.end_all()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        log = self.log
        self.end_all()
        if error is not None:
            print(f"--- log of hitlessd in {self.directory} ---\n{log}")
        else:
            assert "bug in hitlessd" not in log and "Traceback" not in log, log

    def end_all(self) -> None:
        """End every process of every generation, each by its pid."""
        with contextlib.suppress(OSError, ValueError):
            end(self.pid, 5)
        # Main processes first, or they would replace their workers.
        for _ in range(5):
            pids = [*self.processes(), *self.spares()]
            for pid in pids:
                end(pid, 5, signal.SIGKILL)
            if not pids:
                break
        self.process.stop()
        # Their readers close the pipes, which may be amid a test that counts descriptors else.
        with contextlib.suppress(DeadlineExpired):
            self.process.stdout.join(2)
            self.process.stderr.join(2)

    def processes(self) -> list[int]:
        """All processes that come from this daemon's start but spares, the oldest first."""
        return self._called(lambda name: name != NAME)

    def spares(self) -> list[int]:
        """Those that wait to be successors."""
        return self._called(lambda name: name == NAME)

    def _called(self, fits: Callable[[str], bool]) -> list[int]:
        mark = f"{_MARK}={self._mark}".encode()
        found = []
        for entry in os.listdir("/proc"):
            if entry.isdigit():
                with contextlib.suppress(OSError):
                    process = Path("/proc", entry)
                    if mark in (process / "environ").read_bytes() and alive(int(entry)):
                        command = (process / "cmdline").read_bytes()
                        ours = b"hitlessd" in command and b"hitlessd.ctl" not in command
                        if ours and fits((process / "comm").read_text().strip()):
                            found.append(int(entry))
        return sorted(found)

    @property
    def log(self) -> str:
        """Of all starts so far."""
        return "\n".join([*self._earlier, self.process.stderr.text])

    def wait_log(self, text: str, deadline: float = 10.0) -> str:
        """The first log line that contains `text`."""
        return self.process.stderr.wait(lambda line: line if text in line else None, deadline, text)

    @property
    def pid(self) -> int:
        return int(self.pidfile.read_text())

    def wait_serving(self, deadline: float = 15.0) -> None:
        def ready() -> bool:
            if not self.process.running and not self.processes():
                raise AssertionError(f"hitlessd ended with {self.process.popen.returncode}:\n{self.log}")
            with contextlib.suppress(OSError):
                return "Pid:" in self.ask("show info")
            return False

        poll_until(ready, deadline, "hitlessd serves")

    def ask(self, command: str, deadline: float = 20.0) -> str:
        """One command on the runtime socket, and the whole answer."""
        limit = Deadline(deadline)
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
            sock.settimeout(limit.left)
            sock.connect(str(self.socket))
            sock.sendall(command.encode() + b"\n")
            answer = b""
            while True:
                try:
                    piece = sock.recv(65536)
                except TimeoutError:
                    raise DeadlineExpired(f"no answer to {command!r} within {deadline:g} s") from None
                if not piece:
                    return answer.decode()
                answer += piece

    def info(self) -> dict[str, str]:
        """`show info` as a mapping."""
        return dict(line.split(": ", 1) for line in self.ask("show info").splitlines() if ": " in line)

    def ctl(self, *arguments: str, deadline: float = 60.0) -> subprocess.CompletedProcess[str]:
        """Run hitlessctl."""
        return subprocess.run(
            python_module("hitlessd.ctl", "-s", self.socket, *arguments),
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=deadline,
            check=False,
        )

    def reload(self) -> subprocess.CompletedProcess[str]:
        return self.ctl("reload")

    def fault(self, where: str, number: signal.Signals) -> None:
        """Have the next process that enters that state of a handover raise this signal for itself, once."""
        temporary = self.faults.with_suffix(".new")
        temporary.write_text(f"{where} {number.name}\n")
        temporary.rename(self.faults)

    def asleep(self) -> int:
        """The process that a fault has stopped, as soon as it has."""
        poll_until(lambda: not self.faults.exists(), 15, "the fault strikes")
        return poll_until(lambda: next(iter(stopped(self.processes())), 0), 15, "a stopped process")
