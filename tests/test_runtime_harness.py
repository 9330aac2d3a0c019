"""For the runtime API's tests: a fake control object, a server on a real loop, clients that turn that loop."""

from __future__ import annotations

import contextlib
import select
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from hitlessd.changes import Change, Changes
from hitlessd.loop import READ, Loop
from hitlessd.model import (
    Backend,
    Bind,
    Config,
    Frontend,
    Global,
    InetAddress,
    Level,
    Server,
    StatsSocket,
    UnixAddress,
)
from hitlessd.runtime.control import Credentials, GenerationInfo, ReloadOutcome
from hitlessd.runtime.server import RuntimeServer
from hitlessd.table import RowKey, Table, row_keys

PATIENCE = 10.0  # seconds until a test gives up; never reached when all is well


def sample_config() -> Config:
    """One of everything, with HAProxy's iids for the same file."""
    host = "127.0.0.1"
    pg = (
        Server("a", InetAddress(host, 18433), 1),
        Server("b", InetAddress(host, 18434), 2, weight=5, backup=True),
        Server("c", InetAddress(host, 18434), 3, disabled=True, maxconn=10),
    )
    app = (
        Server("x", InetAddress(host, 18435), 1),
        Server("q", UnixAddress("/run/q.sock"), 2),
        Server("six", InetAddress("::1", 18436), 3),
    )
    return Config(
        Global(maxconn=100),
        (
            Frontend("pg", 2, (Bind(InetAddress(host, 0)),), "pg"),
            Frontend("www", 3, (Bind(InetAddress(host, 0)),), "app", maxconn=50),
        ),
        (
            Backend("pg", 2, pg, "leastconn"),
            Backend("app", 4, app),
            Backend("empty", 5, (Server("dis", InetAddress(host, 18435), 1, disabled=True),), "source"),
        ),
    )


class FakeControl:
    """A Control that remembers what it was asked for."""

    def __init__(self, loop: Loop) -> None:
        self.config = sample_config()
        self.version = "1.2.3"
        self.pid = 4711
        self.generation = 7
        self.started = loop.time() - 59.0
        self.started_at = time.time() - 59.0
        self.last_reload: ReloadOutcome | None = None
        self.reloads = (6, 0)
        self.history: list[ReloadOutcome] = []
        self.reload_histogram: dict[str, tuple[Sequence[int], float]] = {}
        self.changes = Changes()
        self.administered: list[Change] = []
        self.forced: list[tuple[str, str, str]] = []
        self.shut: list[str] = []
        self.cleared: list[bool] = []
        self.refusal = ""
        self.startup_logs = ""
        self.warm = False
        self.config_error = ""
        self.stopping = False
        self.listeners = 2
        self.maxconn = 100
        self.most_connections = 100
        self.table = Table.create(row_keys(self.config), 2, 7)
        self.others: list[Table] = []  # of generations that drain
        self.info = [GenerationInfo(7, 4711, "current", 59.0, 6, [(4712, 3), (4713, 4)], "1.2.3")]
        self.waiting: list[Callable[[ReloadOutcome], None]] = []
        self.resumed: list[int] = []
        self.given: list[tuple[Any, ...]] = []
        self.forms: list[dict[str, Any]] = []
        self.page_size, self.pages = 100, 0
        self.fail = False

    def tables(self) -> Sequence[Table]:
        return [self.table, *self.others]

    def generations(self) -> Sequence[GenerationInfo]:
        return self.info

    def rates(self, key: RowKey) -> tuple[int, int]:
        return (5, 9) if key.kind == "process" else (1, 2)

    def request_rates(self, key: RowKey) -> tuple[int, int]:
        return (3, 4)

    def trend(self, key: RowKey) -> Sequence[int]:
        return (0, 5, 10)

    @property
    def secret(self) -> bytes:
        return b"secret"

    @property
    def configured(self) -> Config:
        return self.config

    def administer(self, change: Change, done: Callable[[str], object]) -> None:
        self.administered.append(change)
        done(self.refusal)

    def force_health(self, backend: str, server: str, how: str, done: Callable[[str], object]) -> None:
        self.forced.append((backend, server, how))
        done(self.refusal)

    def may_check(self, backend: str, server: str) -> bool:
        return any(s.check for b in self.config.backends if b.name == backend for s in b.servers if s.name == server)

    def shut_frontend(self, name: str, done: Callable[[str], object]) -> None:
        self.shut.append(name)
        done(self.refusal)

    def clear_counters(self, everything: bool, done: Callable[[str], object]) -> None:
        self.cleared.append(everything)
        done(self.refusal)

    def request_reload(self, done: Callable[[ReloadOutcome], None]) -> int:
        if self.fail:
            raise RuntimeError("broken")
        self.waiting.append(done)
        return 8

    def resume_reload(self, number: int, done: Callable[[ReloadOutcome], None]) -> int:
        self.resumed.append(number)
        self.waiting.append(done)
        return number

    def sessions(self, after: int, only: int, done: Callable[[dict[str, Any]], object]) -> None:
        forms = [form for form in self.forms if (form["number"] == only if only else form["number"] > after)]
        self.pages += 1
        done({"sessions": forms[: self.page_size], "more": len(forms) > self.page_size})

    def shut_down(self, only: int, server: Sequence[str], done: Callable[[dict[str, Any]], object]) -> None:
        ended = [form for form in self.forms if form["number"] == only or (not only and form.get("server") in server)]
        done({"closed": len(ended)})

    def getsocks(
        self, sock: socket.socket, stats: StatsSocket, credentials: Credentials | None, already: bytes
    ) -> None:
        self.given.append(("getsocks", sock, stats, credentials, already))

    def takeover(
        self, sock: socket.socket, rest: bytes, stats: StatsSocket, credentials: Credentials, already: bytes
    ) -> None:
        self.given.append(("takeover", sock, rest, stats, credentials, already))

    def end_reload(self, ok: bool, reason: str) -> None:
        """Answer everybody who waits."""
        self.last_reload = ReloadOutcome(8, ok, reason, 0.1234, 1700000000.5)
        waiting, self.waiting = self.waiting, []
        for done in waiting:
            done(self.last_reload)


class Clock:
    """A clock that only moves when told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Harness:
    """A RuntimeServer with its loop, its control and its log."""

    def __init__(self, directory: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self.errors: list[str] = []
        self.logged: list[tuple[str, str]] = []
        self.loop = Loop(lambda what, error: self.errors.append(f"{what}: {error!r}"), clock)
        self.control = FakeControl(self.loop)
        self.directory = directory
        self.server = RuntimeServer(self.loop, self.control, self._log)
        self._sockets: list[socket.socket] = []

    def _log(self, severity: str, message: str, /, **_fields: object) -> None:
        self.logged.append((severity, message))

    def listen(self, level: Level = "admin", expose: bool = True, name: str = "") -> str:
        """A further stats socket; its path."""
        path = str(self.directory / f"{name or level}.sock")
        sock = socket.socket(socket.AF_UNIX)
        sock.bind(path)
        sock.listen(1024)
        sock.setblocking(False)
        self._sockets.append(sock)
        self.server.add_listener(StatsSocket(UnixAddress(path), level=level, expose_fd_listeners=expose), sock)
        return path

    def listen_tcp(self, level: Level = "admin") -> tuple[str, int]:
        sock = socket.create_server(("127.0.0.1", 0))
        sock.setblocking(False)
        self._sockets.append(sock)
        host, port = sock.getsockname()
        self.server.add_listener(StatsSocket(InetAddress(host, port), level=level), sock)
        return host, port

    def connect(self, address: str | tuple[str, int]) -> Peer:
        return Peer(self, address)

    def turn(self) -> None:
        self.loop.turn(0.01)

    def settle(self) -> None:
        """Turn the loop until nothing is ready any more."""
        for _ in range(20):
            self.loop.turn(0.0)

    def until(self, condition: Callable[[], object], what: str) -> None:
        """Turn the loop until the condition holds."""
        end = time.monotonic() + PATIENCE
        while not condition():
            assert time.monotonic() < end, f"not in time: {what}"
            self.turn()

    def ask(self, address: str | tuple[str, int], data: bytes) -> bytes:
        """What a client that sends this, half-closes and reads to the end, gets."""
        with self.connect(address) as peer:
            peer.sock.sendall(data)
            peer.sock.shutdown(socket.SHUT_WR)
            return peer.read_all()

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Turn the loop in a thread, for callers that block."""
        ours, theirs = socket.socketpair()
        stop = threading.Event()
        self.loop.add(theirs.fileno(), READ, lambda _events: stop.set())

        def run() -> None:
            while not stop.is_set():
                self.loop.turn()

        thread = threading.Thread(target=run)
        thread.start()
        try:
            yield
        finally:
            ours.send(b"x")
            thread.join()
            self.loop.remove(theirs.fileno())
            ours.close()
            theirs.close()

    def close(self) -> None:
        self.server.close()
        for sock in self._sockets:
            sock.close()
        for _, sock, *_rest in self.control.given:
            sock.close()
        self.loop.close()
        self.control.table.close()
        assert self.errors == []


class Peer:
    """A client that turns the harness's loop while it waits."""

    def __init__(self, harness: Harness, address: str | tuple[str, int]) -> None:
        self.harness = harness
        self.sock = socket.socket(socket.AF_UNIX if isinstance(address, str) else socket.AF_INET)
        self.sock.connect(address)
        self.sock.setblocking(False)
        self.received = b""
        self.ended = False

    def __enter__(self) -> Peer:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.sock.close()

    def _receive(self) -> None:
        while not self.ended:
            try:
                data = self.sock.recv(1 << 20)
            except BlockingIOError:
                return
            except ConnectionResetError:
                data = b""
            self.received += data
            self.ended = not data

    def _step(self) -> None:
        self.harness.turn()
        self._receive()

    def read_all(self) -> bytes:
        """Everything until the other side closes."""
        end = time.monotonic() + PATIENCE
        while not self.ended:
            assert time.monotonic() < end, f"the connection is not closed; so far {self.received[:200]!r}"
            self._step()
        return self.received

    def read_until(self, ending: bytes) -> bytes:
        """Everything until what was received ends like this."""
        end = time.monotonic() + PATIENCE
        while not self.received.endswith(ending):
            assert not self.ended and time.monotonic() < end, f"no {ending!r} in {self.received[-200:]!r}"
            self._step()
        received, self.received = self.received, b""
        return received

    def send_all(self, data: bytes) -> int:
        """Send as much as the other side takes before it closes; how much."""
        view, sent = memoryview(data), 0
        end = time.monotonic() + PATIENCE
        while sent < len(data):
            assert time.monotonic() < end
            try:
                sent += self.sock.send(view[sent : sent + (1 << 20)])
            except BlockingIOError:
                self.harness.turn()
            except (BrokenPipeError, ConnectionResetError):
                break
        return sent

    @property
    def closed(self) -> bool:
        """Whether the other side has closed, after what it has sent."""
        self._receive()
        return self.ended

    @property
    def readable(self) -> bool:
        return bool(select.select([self.sock], [], [], 0)[0])
