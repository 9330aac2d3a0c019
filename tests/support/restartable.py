"""A real hitlessd under a service manager of the tests': killed, restarted, stopped, with a descriptor store between.

    with Restartable(tmp_path, listen(port, server=echo.port)) as service:
        service.kill_worker()
        service.kill()  # SIGKILL to the main process, and what systemd does to the rest of the unit
        service.start()
        service.restart()  # SIGTERM, and start

It does what PID 1 does with Type=notify, KillMode=mixed and Restart=no.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

from tests.support.daemon import Daemon
from tests.support.manager import Keeper
from tests.support.processes import Deadline, alive, end, poll_until, stat_fields, wait_gone

T = TypeVar("T")


class Restartable:
    """A service of one directory; the arguments are those of Daemon, `store` is FileDescriptorStoreMax=."""

    def __init__(
        self, directory: Path, body: str = "", *, store: int = 4096, env: Mapping[str, str] | None = None, **more: Any
    ) -> None:
        self.manager = Keeper(str(directory / "manager.sock"), store)
        self.daemon = Daemon(directory, body, env={**self.manager.environment, **(env or {})}, **more)
        self._told = 0  # lines that systemd heard before this start

    def start(self, deadline: float = 15.0) -> None:
        """Start with what is stored, and return when it serves; again if it is killed on the way, by a fault say."""
        limit = Deadline(deadline)
        while True:
            self.launch()
            if self._serving(limit):
                return
            self._bury()

    def launch(self) -> None:
        """Start with what is stored, without waiting."""
        passed = self.manager.passed()
        self._told = len(self.manager.lines)
        try:
            self.daemon.start(passed=passed)
        finally:
            for fd, _ in passed:
                os.close(fd)

    def kill(self, number: signal.Signals = signal.SIGKILL, deadline: float = 15.0) -> None:
        """End the main process by a signal; returns when all of the unit is dead and PID 1 knows what it said."""
        main = self.pid
        with contextlib.suppress(ProcessLookupError):
            os.kill(main, number)
        wait_gone(main, deadline)
        self._bury()

    def kill_worker(self, index: int = 0, number: signal.Signals = signal.SIGKILL) -> int:
        """Kill a worker, the oldest being 0, and wait until it is dead; returns its pid."""
        worker = self.workers()[index]
        os.kill(worker, number)
        wait_gone(worker)
        return worker

    def restart(self, deadline: float = 15.0) -> None:
        """What `systemctl restart` does."""
        self.kill(signal.SIGTERM, deadline)
        self.start(deadline)

    def crash(self, deadline: float = 15.0) -> None:
        """The main process is killed, and started again."""
        self.kill(signal.SIGKILL, deadline)
        self.start(deadline)

    def stop(self, deadline: float = 15.0) -> None:
        """What `systemctl stop` does: the store is emptied when all are dead."""
        self.kill(signal.SIGTERM, deadline)
        self.manager.drop()

    # What it is

    @property
    def pid(self) -> int:
        """The main process."""
        return self.daemon.pid

    @property
    def main(self) -> int:
        """What systemd takes for the main process: what it started, or whom MAINPID= has named since."""
        self.manager.settle()
        named = [line for line in self.manager.lines[self._told :] if line.startswith("MAINPID=")]
        return int(named[-1].removeprefix("MAINPID=")) if named else self.daemon.process.pid

    def workers(self) -> list[int]:
        """The workers of the main process, the oldest first."""
        main = self.pid
        found = []
        for pid in self.daemon.processes():
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                if int(stat_fields(pid)[1]) == main:
                    found.append(pid)
        return found

    @property
    def log(self) -> str:
        """Of all starts so far."""
        return self.daemon.log

    def info(self) -> dict[str, str]:
        return self.daemon.info()

    def number(self, name: str) -> int:
        """A number of `show info`."""
        return int(self.info()[name])

    def wait_number(self, name: str, wanted: int, deadline: float = 10.0) -> None:
        """Wait until a number of `show info` is that."""
        self.wait(lambda: self.number(name) == wanted, deadline, f"{name}: {wanted}")

    def wait(self, condition: Callable[[], T], deadline: float = 10.0, what: str = "condition") -> T:
        """Wait until a condition is true; the log tells why it is not."""
        return poll_until(condition, deadline, what)

    # Within

    def _serving(self, limit: Deadline) -> bool:
        """Wait until it serves; False if a signal killed it before."""

        def state() -> str:
            if not self.daemon.process.running:
                if self.daemon.process.wait() < 0:
                    return "dead"
                raise AssertionError(f"hitlessd ended with {self.daemon.process.wait()}:\n{self.log}")
            # Its runtime socket is in the store, so that a question may wait there for it.
            with contextlib.suppress(OSError):
                return "serving" if f"\nPid: {self.daemon.process.pid}\n" in self.daemon.ask("show info") else ""
            return ""

        return poll_until(state, limit, f"hitlessd serves:\n{self.log}") == "serving"

    def _bury(self) -> None:
        """Kill what is left of the unit, as KillMode=mixed does, and let the manager hear the last of it."""
        for _ in range(5):
            left = self.daemon.processes()
            for pid in left:
                end(pid, 5, signal.SIGKILL)
            if not left:
                break
        assert not any(alive(pid) for pid in left)
        self.daemon.process.stop()  # reaps it
        self.manager.settle()

    def __enter__(self) -> Restartable:
        self.manager.__enter__()
        try:
            self.start()
        except BaseException:
            print(f"--- log of hitlessd in {self.daemon.directory} ---\n{self.log}")
            self.daemon.end_all()
            self.manager.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.daemon.__exit__(kind, error, trace)
        finally:
            self.manager.__exit__(kind, error, trace)
