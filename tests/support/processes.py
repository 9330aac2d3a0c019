"""Deadlines, free ports, addresses and the control of child processes, for tests and benchmarks. Linux only."""

import contextlib
import itertools
import os
import select
import signal as signals
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, TypeVar

T = TypeVar("T")

_PORTS = itertools.count(int.from_bytes(os.urandom(4), "little"))  # where free_ports() goes on looking

ROOT = Path(__file__).resolve().parents[2]
"""The directory that contains `tests`."""

_TERM = signals.SIGTERM  # Process.signal() hides the module

TICKS = os.sysconf("SC_CLK_TCK")
"""Clock ticks a second in /proc/PID/stat."""

_PIPE = 1 << 16  # bytes that a pipe holds (pipe(7))

Address = tuple[str, int] | str | bytes
"""What socket.connect() takes: (host, port), a path, or an abstract name that begins with a NUL byte."""


class DeadlineExpired(AssertionError):
    """Something did not happen in time."""


class Deadline:
    """A point in time, `seconds` from now, by which something has to have happened."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._end = time.monotonic() + seconds

    @property
    def left(self) -> float:
        """Seconds left, never below 0."""
        return max(0.0, self._end - time.monotonic())

    @property
    def expired(self) -> bool:
        return time.monotonic() >= self._end

    def check(self, what: str) -> None:
        """Raise DeadlineExpired if the time is over."""
        if self.expired:
            raise DeadlineExpired(f"not within {self.seconds:g} s: {what}")


def as_deadline(value: float | Deadline) -> Deadline:
    """A deadline from one, or from seconds."""
    return value if isinstance(value, Deadline) else Deadline(value)


def poll_until(
    condition: Callable[[], T], deadline: float | Deadline = 10.0, what: str = "condition", every: float = 0.01
) -> T:
    """Call `condition` every `every` seconds until it returns something true, and return that; else DeadlineExpired.

    Wait for a descriptor or a process where there is one; this is for what cannot be waited for.
    """
    limit = as_deadline(deadline)
    while True:
        value = condition()
        if value:
            return value
        limit.check(what)
        select.select([], [], [], min(every, limit.left))


def wait_readable(file: int | IO[bytes] | socket.socket, deadline: float | Deadline = 10.0, what: str = "data") -> None:
    """Return as soon as `file` can be read (end of file counts); else DeadlineExpired."""
    limit = as_deadline(deadline)
    poller = select.poll()
    poller.register(file, select.POLLIN)
    if not poller.poll(limit.left * 1000):
        raise DeadlineExpired(f"not within {limit.seconds:g} s: {what}")


def free_port(host: str = "127.0.0.1", kind: socket.SocketKind = socket.SOCK_STREAM) -> int:
    """A port of `host` that was free a moment ago."""
    return free_ports(1, host, kind)[0]


def free_ports(count: int, host: str = "127.0.0.1", kind: socket.SocketKind = socket.SOCK_STREAM) -> list[int]:
    """`count` different ports of `host` that were free a moment ago.

    They are not ephemeral ports, so that no connection that is opened meanwhile takes one; and each of the test
    processes that run side by side has a part of them, so that no other takes one. What one call has found the next
    does not find again, though nobody listens there yet, until all the others have had their turn.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    low = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    first, span = (10000, low - 10000) if low > 12000 else (1024, 60000)
    parts = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    span //= parts
    first += span * (int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % parts)
    found: list[int] = []
    for place in itertools.islice(_PORTS, span):
        port = first + place * 7919 % span
        with socket.socket(family, kind) as probe:
            if kind == socket.SOCK_STREAM:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            with contextlib.suppress(OSError):
                probe.bind((host, port))
                found.append(port)
        if len(found) == count:
            return found
    raise OSError(f"cannot find {count} free ports on {host}: {len(found)} found")


def parse_address(text: str) -> tuple[socket.AddressFamily, Address]:
    """`HOST:PORT`, `[HOST]:PORT`, `/path`, `unix@/path` or `abns@name` as a family and what connect() takes.

    ValueError for anything else.
    """
    if text.startswith("abns@"):
        return socket.AF_UNIX, b"\0" + text[5:].encode()
    if text.startswith(("/", "unix@")):
        return socket.AF_UNIX, text.removeprefix("unix@")
    host, _, port = text.rpartition(":")
    if not port.isdigit() or not host:
        raise ValueError(
            f"cannot read address {text!r}: expected HOST:PORT, [HOST]:PORT, /path, unix@/path or abns@name"
        )
    if host.startswith("["):
        return socket.AF_INET6, (host.strip("[]"), int(port))
    return socket.AF_INET, (host, int(port))


def format_address(family: int, address: object) -> str:
    """The reverse of parse_address(), from what getsockname() gave."""
    if family == socket.AF_UNIX:
        if isinstance(address, bytes):
            return "abns@" + address[1:].decode(errors="backslashreplace") if address[:1] == b"\0" else address.decode()
        return str(address)
    assert isinstance(address, tuple)
    return f"[{address[0]}]:{address[1]}" if family == socket.AF_INET6 else f"{address[0]}:{address[1]}"


def raise_descriptor_limit() -> int:
    """Raise the soft limit of open files to the hard one; returns it."""
    import resource

    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


def pin(cpu: int | None) -> None:
    """Keep the calling process on one CPU. None, or a CPU that is not ours to use, changes nothing."""
    if cpu is not None and cpu in os.sched_getaffinity(0):
        os.sched_setaffinity(0, {cpu})


def stat_fields(pid: int) -> list[str]:
    """The fields of /proc/PID/stat from the third (state) on; FileNotFoundError or ProcessLookupError."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def cpu_seconds(pid: int) -> float:
    """User and system time of a process and of those of its children that it has waited for; 0 if it does not exist."""
    try:
        fields = stat_fields(pid)
    except (FileNotFoundError, ProcessLookupError):
        return 0.0
    return sum(int(field) for field in fields[11:15]) / TICKS


def alive(pid: int) -> bool:
    """Whether the process exists and is not a zombie."""
    try:
        return stat_fields(pid)[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def stopped(pids: Iterable[int]) -> list[int]:
    """Those of the processes that a signal has stopped; some may be gone since they were listed."""
    found = []
    for pid in pids:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            if stat_fields(pid)[0] == "T":
                found.append(pid)
    return found


def descendants(pid: int) -> list[int]:
    """The process and all below it, zombies left out."""
    below: dict[int, list[int]] = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                fields = stat_fields(int(entry))
                if fields[0] not in "ZX":
                    below.setdefault(int(fields[1]), []).append(int(entry))
    found = [pid] if alive(pid) else []
    queue = [pid]
    while queue:
        children = below.get(queue.pop(), [])
        found += children
        queue += children
    return found


def wait_gone(pid: int, deadline: float | Deadline = 10.0) -> None:
    """Wait until a process that need not be our child has ended; else DeadlineExpired."""
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        wait_readable(fd, deadline, f"end of process {pid}")
    finally:
        os.close(fd)


def end(pid: int, deadline: float | Deadline = 5.0, first: signals.Signals = signals.SIGTERM) -> None:
    """End a process that need not be our child: `first`, and SIGKILL if it is still there at the deadline."""
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        for number in (first, signals.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                signals.pidfd_send_signal(fd, number)
            with contextlib.suppress(DeadlineExpired):
                wait_readable(fd, deadline)
                return
    finally:
        os.close(fd)


class Lines:
    """Collects the lines of a pipe in a thread: the writer never blocks, readers wait for what they look for.

    Whoever looks finds all that was written before, whether or not the thread has had its turn: what a daemon logs
    before it answers is there when the answer is.
    """

    def __init__(self, pipe: IO[bytes]) -> None:
        self._pipe = pipe
        self._changed = threading.Condition()
        self._lines: list[str] = []
        self._rest = b""  # of a line that is not whole
        self._closed = False
        self._look = select.poll()
        self._look.register(pipe, select.POLLIN)
        self._thread = threading.Thread(target=self._read, daemon=True, name="lines")
        self._thread.start()

    def _read(self) -> None:
        poller = select.poll()
        poller.register(self._pipe, select.POLLIN)
        while not self._closed:
            poller.poll()
            with self._changed:
                self._collect()
        self._pipe.close()

    def _collect(self) -> None:
        """Take what is in the pipe now. The lock is held."""
        if self._closed or not self._look.poll(0):
            return
        data = os.read(self._pipe.fileno(), _PIPE)
        *lines, self._rest = (self._rest + data).split(b"\n")
        if not data:
            self._closed = True
            lines = [self._rest] if self._rest else []
        self._lines += [line.decode(errors="replace") for line in lines]
        self._changed.notify_all()

    def let_go(self) -> None:
        """Return when the pipe is closed, if all writers have closed it; at once if not.

        Or it would come to be closed while the next test counts its descriptors.
        """
        with self._changed:
            while not self._closed and self._look.poll(0):
                self._collect()
        if self._closed:
            self._thread.join(10)

    def __iter__(self) -> Iterator[str]:
        """What has come so far."""
        with self._changed:
            self._collect()
            return iter(list(self._lines))

    def __len__(self) -> int:
        with self._changed:
            self._collect()
            return len(self._lines)

    @property
    def text(self) -> str:
        """What has come so far, in one."""
        return "\n".join(self)

    def wait(
        self, wanted: Callable[[str], T | None], deadline: float | Deadline = 10.0, what: str = "line", start: int = 0
    ) -> T:
        """The first true thing that `wanted` makes of a line, from line number `start` on.

        DeadlineExpired if there is none in time, EOFError if the pipe ends without one.
        """
        limit = as_deadline(deadline)
        at = start
        with self._changed:
            while True:
                while at < len(self._lines):
                    value = wanted(self._lines[at])
                    at += 1
                    if value:
                        return value
                if self._closed:
                    raise EOFError(f"ended without: {what}\n" + "\n".join(self._lines[-20:]))
                if limit.expired:
                    raise DeadlineExpired(f"not within {limit.seconds:g} s: {what}\n" + "\n".join(self._lines[-20:]))
                self._changed.wait(limit.left)

    def join(self, deadline: float | Deadline = 10.0) -> list[str]:
        """All lines, when the writer has closed its end."""
        limit = as_deadline(deadline)
        self._thread.join(limit.left)
        limit.check("end of output")
        return list(self)


class Process:
    """A child process with its output collected by line; ends it, by pid, when the `with` block ends."""

    def __init__(
        self,
        argv: Sequence[str | Path],
        *,
        env: Mapping[str, str] | None = None,
        cwd: Path | str | None = None,
        cpu: int | None = None,
        stdin: int | None = subprocess.DEVNULL,
        pass_fds: Sequence[int] = (),
    ) -> None:
        self.argv = [str(argument) for argument in argv]
        self.popen = subprocess.Popen(
            self.argv,
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=None if env is None else dict(env),
            cwd=cwd,
            pass_fds=pass_fds,
        )
        if cpu is not None and cpu in os.sched_getaffinity(0):
            with contextlib.suppress(ProcessLookupError):
                os.sched_setaffinity(self.popen.pid, {cpu})
        assert self.popen.stdout and self.popen.stderr
        self.stdout = Lines(self.popen.stdout)
        self.stderr = Lines(self.popen.stderr)

    @property
    def pid(self) -> int:
        return self.popen.pid

    @property
    def running(self) -> bool:
        return self.popen.poll() is None

    def signal(self, number: int) -> None:
        """Send a signal if the process still runs."""
        self.popen.send_signal(number)

    def wait(self, deadline: float | Deadline = 10.0) -> int:
        """The exit status, negative for a signal; else DeadlineExpired."""
        limit = as_deadline(deadline)
        if self.popen.poll() is None:
            fd = os.pidfd_open(self.popen.pid)
            try:
                wait_readable(fd, limit, f"end of {' '.join(self.argv)}")
            finally:
                os.close(fd)
        return self.popen.wait()

    def stop(self, deadline: float | Deadline = 5.0, first: int = _TERM) -> int:
        """`first`, SIGKILL if it still runs at the deadline, and the exit status."""
        if self.running:
            self.signal(first)
            try:
                self.wait(deadline)
            except DeadlineExpired:
                self.popen.kill()
        if self.popen.stdin is not None and not self.popen.stdin.closed:
            self.popen.stdin.close()
        status = self.popen.wait()
        for lines in (self.stdout, self.stderr):
            lines.let_go()
        return status

    def __enter__(self) -> "Process":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


def python_module(module: str, *arguments: str | Path) -> list[str]:
    """The command that runs a module of this tree with this interpreter; to be run with `cwd=ROOT`."""
    return [sys.executable, "-m", module, *map(str, arguments)]
