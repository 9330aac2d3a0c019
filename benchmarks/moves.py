"""Proxies whose established connections matter: reloaded, timed until the old generation is gone, and weighed."""

import contextlib
import os
import re
import select
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from benchmarks.proxies import HAPROXY, Haproxy, Hitlessd, Proxy
from tests.support.processes import alive, poll_until

WORKERS: Final = 2
PROCESSES: Final = 2 + WORKERS
"""Of a balancer that has nothing to drain: its main process, the spare, and workers."""
PATIENCE: Final = 20.0
"""Seconds after which an older generation is taken for one that stays."""


class Balancer(Hitlessd):
    """hitlessd for as many connections as are asked for, and patient ones."""

    def __init__(self, directory: Path, listen: Sequence[int], servers: Sequence[int], maxconn: int = 4000) -> None:
        super().__init__(directory, listen, servers, workers=WORKERS)
        self._maxconn = maxconn
        self._patience = PATIENCE

    def text(self, listen: Sequence[int], servers: Sequence[int]) -> str:
        text = super().text(listen, servers).replace("maxconn = 4000", f"maxconn = {self._maxconn}")
        return re.sub(r"timeout (client|server) = \w+", r"timeout \1 = 10m", text)

    def move(self) -> "Reload":
        """Reload, and wait until the older generations' processes are gone."""
        spares = self.spares()
        older = [pid for pid in self.processes() if pid not in spares]
        with _watching(older) as gone:
            began = time.monotonic()
            answer = self.ask("reload")
            replied = time.monotonic()
            if "Success=1" not in answer:
                raise RuntimeError(f"{self.name}: reload failed: {answer}")
            gone.wait(self._patience)
            ended = time.monotonic()
        left = sum(alive(pid) for pid in older)
        if left:
            self._patience = 0.2  # once is enough to know
        return Reload(replied - began, ended - replied, left)


class Master(Haproxy):
    """Debian's haproxy as its unit runs it: a master, one worker a generation, reloaded with SIGUSR2."""

    name = "haproxy -W"

    def text(self, listen: Sequence[int], servers: Sequence[int]) -> str:
        return re.sub(r"timeout (client|server) \w+", r"timeout \1 10m", super().text(listen, servers))

    def command(self) -> list[str]:
        return [HAPROXY, "-W", "-f", str(self.file)]

    def reload(self) -> float:
        """Until the new worker answers."""
        process = self._process
        assert process is not None
        # While it starts, and while it executes itself again, it ignores the signal.
        poll_until(lambda: _catches(process.pid, signal.SIGUSR2), 15, "a master that can be reloaded")
        before, began = self._worker(), time.monotonic()
        process.signal(signal.SIGUSR2)
        poll_until(lambda: self._worker() not in ("", before), 15, "a new worker")
        return time.monotonic() - began

    def _worker(self) -> str:
        with contextlib.suppress(OSError):
            return self.info().get("Pid", "")
        return ""


def _catches(pid: int, number: int) -> bool:
    """Whether the process has a handler for the signal (proc_pid_status(5))."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    caught = next(int(line.split()[1], 16) for line in lines if line.startswith("SigCgt:"))
    return bool(caught & 1 << (number - 1))


@dataclass(frozen=True)
class Reload:
    """Seconds until the answer, seconds from there until nothing was left of the old generation, and what was left."""

    seconds: float
    leaving: float
    left: int


class _Watch:
    """Waits for the end of processes that are not our children."""

    def __init__(self, pids: Sequence[int]) -> None:
        self.fds = []
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                self.fds.append(os.pidfd_open(pid))

    def wait(self, seconds: float) -> None:
        """Return when all have ended, or the time is over."""
        limit, poller, left = time.monotonic() + seconds, select.poll(), len(self.fds)
        for fd in self.fds:
            poller.register(fd, select.POLLIN)
        while left and (rest := limit - time.monotonic()) > 0:
            for fd, _ in poller.poll(rest * 1000):
                poller.unregister(fd)
                left -= 1


@contextlib.contextmanager
def _watching(pids: Sequence[int]) -> Iterator[_Watch]:
    watch = _Watch(pids)
    try:
        yield watch
    finally:
        for fd in watch.fds:
            os.close(fd)


def pss(pids: Sequence[int]) -> int:
    """Bytes that these processes take, what they share divided among them (proc_pid_smaps_rollup(5))."""
    total = 0
    for pid in pids:
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
                if line.startswith("Pss:"):
                    total += int(line.split()[1]) * 1024
    return total


def settle(proxy: Proxy, expected: int, seconds: float = 3.0) -> None:
    """Give older generations the time that they are allowed, and more."""
    waiting, limit = threading.Event(), time.monotonic() + seconds
    while len(proxy.processes()) > expected and time.monotonic() < limit:
        waiting.wait(0.05)
