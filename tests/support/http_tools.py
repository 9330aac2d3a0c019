"""Other people's load generators, run against a proxy under test: wrk, h2load and slowhttptest."""

from __future__ import annotations

import json
import re
import signal
from dataclasses import dataclass
from pathlib import Path

from tests.support.processes import Deadline, Process

__all__ = ["Wrk", "h2load", "slowhttptest"]

#: Every request has a number of its own. The result is a line of JSON.
_WRK = """\
local threads = 0
function setup(thread)
    thread:set("place", threads)
    threads = threads + 1
end
function init(arguments)
    number = (%(first)d + place) * 100000000
end
function request()
    number = number + 1
    return wrk.format("GET", string.format("/?id=%%d&size=%(size)d", number))
end
function done(summary, latency, requests)
    local e = summary.errors
    io.write(string.format('{"requests": %%d, "connect": %%d, "read": %%d, ', summary.requests, e.connect, e.read))
    io.write(string.format('"write": %%d, "status": %%d, "timeout": %%d}\\n', e.write, e.status, e.timeout))
end
"""


@dataclass(frozen=True)
class WrkResult:
    """What wrk counted: answers and errors."""

    requests: int
    connect: int
    read: int
    write: int
    status: int
    timeout: int

    @property
    def failed(self) -> int:
        return self.connect + self.read + self.write + self.status + self.timeout


class Wrk:
    """wrk, from the beginning of a `with` block on, until finish(), but for so many seconds at most; with `close`, one
    request a connection."""

    def __init__(
        self, directory: Path, address: str, seconds: int, *, clients: int = 32, close: bool = False, size: int = 200
    ) -> None:
        script = directory / "numbers.lua"
        # Numbers of two threads, and of two runs, are a hundred million apart.
        script.write_text(_WRK % {"first": 1000 * (1 + close), "size": size})
        command = ["wrk", "-t2", f"-c{clients}", f"-d{seconds}s", "--timeout", "10s", "-s", str(script)]
        command += ["-H", "Connection: close"] if close else []
        self._command = [*command, f"http://{address}/"]
        self._seconds = seconds

    def __enter__(self) -> Wrk:
        self.process = Process(self._command)
        return self

    def __exit__(self, *_: object) -> None:
        self.process.stop()

    @property
    def running(self) -> bool:
        return self.process.running

    def finish(self) -> None:
        """Have it end, and tell its result."""
        self.process.signal(signal.SIGINT)

    def result(self) -> WrkResult:
        """When it has ended."""
        limit = Deadline(self._seconds + 30)
        self.process.wait(limit)
        lines = self.process.stdout.join(limit)
        assert lines and lines[-1].startswith("{"), (lines, self.process.stderr.text)
        return WrkResult(**json.loads(lines[-1]))


@dataclass(frozen=True)
class H2loadResult:
    """What h2load counted."""

    total: int
    succeeded: int
    failed: int
    """Answers with a bad status, connections that broke, and requests without an answer in time."""
    text: str


def h2load(process: Process, deadline: float = 120.0) -> H2loadResult:
    """The result of an h2load, when it has ended."""
    limit = Deadline(deadline)
    process.wait(limit)
    text = "\n".join(process.stdout.join(limit))
    found = re.search(r"requests: (\d+) total, .* (\d+) succeeded, (\d+) failed, (\d+) errored, (\d+) timeout", text)
    assert found is not None, (text, process.stderr.text)
    total, succeeded, *wrong = map(int, found.groups())
    return H2loadResult(total, succeeded, sum(wrong), text)


def slowhttptest(address: str, mode: str, connections: int, rate: int, seconds: int, interval: int = 5) -> Process:
    """A slowhttptest: `H` for slow heads, `B` for slow bodies, `X` for slow reading. To be stopped by its pid."""
    command = ["slowhttptest", "-" + mode, "-c", str(connections), "-r", str(rate), "-l", str(seconds)]
    command += ["-i", str(interval), "-p", "5", "-u", f"http://{address}/?size=200000"]
    if mode == "B":
        command += ["-s", "8192", "-t", "POST"]
    if mode == "X":
        # A small window, read a few bytes at a time.
        command += ["-w", "512", "-y", "1024", "-n", str(interval), "-z", "32", "-k", "3"]
    return Process(command)
