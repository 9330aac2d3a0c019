"""Workers under test: in this process, turn by turn and on a clock of one's own, or forked as main would."""

from __future__ import annotations

import contextlib
import json
import os
import select
import socket
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from hitlessd import channel, worker
from hitlessd.model import Backend, Balance, Bind, Config, Frontend, Global, InetAddress, Server, Timeouts, UnixAddress
from hitlessd.parking.park import PARTS, Park
from hitlessd.table import PROCESS, Column, RowKey, ServerState, Table, row_keys
from hitlessd.worker.loop import Worker
from hitlessd.worker.setup import WorkerSetup
from tests.support.processes import Deadline, wait_readable

__all__ = [
    "Clock",
    "Farm",
    "Forked",
    "Lab",
    "Peer",
    "drain",
    "gauges",
    "listen",
    "make_config",
    "make_park",
    "migrate",
    "take_over",
]

Address = InetAddress | UnixAddress


class Clock:
    """Time that passes only when told to, or real time as long as `real` is set."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def listen(address: tuple[str, int] | str = ("127.0.0.1", 0), backlog: int = 1024) -> socket.socket:
    """A listener as listeners.py opens it."""
    if isinstance(address, str):
        sock = socket.socket(socket.AF_UNIX)
    else:
        sock = socket.socket(socket.AF_INET6 if ":" in address[0] else socket.AF_INET)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, 1)
    sock.bind(address)
    sock.listen(backlog)
    sock.setblocking(False)
    return sock


def address_of(sock: socket.socket) -> Address:
    """Where a listener listens, as the model writes it."""
    name = sock.getsockname()
    if isinstance(name, tuple):
        return InetAddress(name[0], name[1])
    return UnixAddress(name.decode() if isinstance(name, bytes) else name)


def make_config(
    servers: Sequence[Server],
    *,
    balance: Balance = "roundrobin",
    timeouts: Timeouts | None = None,
    retries: int = 0,
    redispatch: bool = False,
    maxconn: int = 0,
    tcplog: bool = True,
    dontlognull: bool = False,
    **general: Any,
) -> Config:
    """One frontend "www" and one backend "app"."""
    times = timeouts or Timeouts()
    frontend = Frontend(
        "www",
        2,
        (Bind(InetAddress("127.0.0.1", 0)),),
        "app",
        times,
        maxconn=maxconn,
        tcplog=tcplog,
        dontlognull=dontlognull,
    )
    backend = Backend("app", 3, tuple(servers), balance, times, retries, redispatch)
    return Config(Global(**general), frontends=(frontend,), backends=(backend,))


def make_table(config: Config, workers: int = 1, generation: int = 1) -> Table:
    """A table as main makes it, with the servers' states from the configuration."""
    table = Table.create(row_keys(config), workers, generation)
    for backend in config.backends:
        for server in backend.servers:
            state = ServerState.MAINT if server.disabled else ServerState.READY
            table.set_state(table.index[RowKey("server", backend.name, server.name)], state, server.weight, 0)
    return table


def gauges(table: Table) -> dict[str, int]:
    """All that says "now" and is not zero; empty when nobody is connected or waits."""
    return {
        f"{key.kind} {key.proxy} {key.server} {column.name}": table.value(row, column)
        for row, key in enumerate(table.keys)
        for column in (Column.SCUR, Column.QCUR)
        if table.value(row, column)
    }


def drain(sock: socket.socket) -> bytes:
    """What can be read without waiting; b"" at once at the end of the stream too."""
    data = b""
    with contextlib.suppress(BlockingIOError):
        while chunk := sock.recv(1 << 20):
            data += chunk
    return data


class Peer:
    """A non-blocking socket of a test, client or server side."""

    def __init__(self, sock: socket.socket, blocking: bool = False) -> None:
        sock.setblocking(blocking)
        self.sock = sock
        self.got = b""
        self.eof = False
        self.error: OSError | None = None

    def read(self) -> bytes:
        """Collect what is there; returns all so far."""
        try:
            while not self.eof and (chunk := self.sock.recv(1 << 20)):
                self.got += chunk
            self.eof = True
        except BlockingIOError:
            pass
        except OSError as error:
            self.error = error
            self.eof = True
        return self.got

    def send(self, data: bytes | memoryview) -> int:
        """As much as goes without waiting."""
        try:
            return self.sock.send(data)
        except BlockingIOError:
            return 0

    def close(self) -> None:
        self.sock.close()


@dataclass
class Farm:
    """The listeners of servers that a test plays itself."""

    count: int = 1
    listeners: list[socket.socket] = field(default_factory=list)
    peers: list[Peer] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.listeners += [listen() for _ in range(self.count - len(self.listeners))]

    def server(self, number: int, **options: Any) -> Server:
        address = address_of(self.listeners[number])
        assert isinstance(address, (InetAddress, UnixAddress))
        return Server(f"s{number + 1}", address, number + 1, **options)

    def servers(self, **options: Any) -> list[Server]:
        return [self.server(number, **options) for number in range(len(self.listeners))]

    def accept(self, number: int = 0) -> Peer | None:
        """The next connection of a server, if there is one."""
        try:
            peer = Peer(self.listeners[number].accept()[0])
        except BlockingIOError:
            return None
        self.peers.append(peer)
        return peer

    def close(self) -> None:
        for peer in self.peers:
            peer.close()
        for sock in self.listeners:
            sock.close()


class Lab:
    """A Worker in this process. `until(condition)` turns its loop until the condition holds."""

    def __init__(
        self,
        config: Config,
        *,
        clock: Clock | None = None,
        listener: socket.socket | None = None,
        table: Table | None = None,
        index: int = 0,
        wake: Sequence[int] | None = None,
        maxconn: int = 0,
        accept: bool = True,
        park: Park | None = None,
        park_limit: int = 10_000,
    ) -> None:
        self.clock = clock or Clock()
        self.park = park
        self.config = config
        self.own_table = table is None
        self.table = table or make_table(config)
        self.listener = listener or listen()
        self.own_listener = listener is None
        self.address = self.listener.getsockname()
        self.main, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        theirs.setblocking(False)
        self.main.setblocking(False)
        self._channel = theirs
        self.own_wake = wake is None
        self.wake = list(wake or [os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC) for _ in range(self.table.workers)])
        self.clients: list[Peer] = []
        self.lines: list[str] = []
        self.logged: list[tuple[str, str]] = []
        self.worker = Worker(
            WorkerSetup(
                index=index,
                config=config,
                listeners=[(config.frontends[0].name, config.frontends[0].binds[0], self.listener.dup())],
                table=self.table,
                channel=theirs,
                wake=self.wake,
                log=self._log,
                maxconn=maxconn,
                generation=self.table.generation,
                park=park,
                park_limit=park_limit,
                exact=True,
            ),
            self.clock,
        )
        if accept:
            self.order("accept")

    def _log(self, severity: str, message: str, /, **fields: object) -> None:
        self.logged.append((severity, message))
        if severity == "info":
            self.lines.append(message)

    def __enter__(self) -> Lab:
        return self

    def __exit__(self, *_: object) -> None:
        for peer in self.clients:
            peer.close()
        self.worker.close()
        if self.park:
            self.park.close()
        self.main.close()
        self._channel.close()
        if self.own_wake:
            for fd in self.wake:
                os.close(fd)
        if self.own_listener:
            self.listener.close()
        if self.own_table:
            self.table.close()

    def connect(self) -> Peer:
        """A client."""
        peer = Peer(socket.socket(self.listener.family), blocking=True)
        self.clients.append(peer)
        peer.sock.connect(self.address)
        peer.sock.setblocking(False)
        return peer

    def turn(self) -> int:
        return self.worker.turn(0)

    def until(self, condition: Callable[[], Any], what: str = "condition", seconds: float = 20.0) -> Any:
        """Turn until the condition is true, and return what it gave. The loop waits for events in short steps."""
        deadline = Deadline(seconds)
        while not (value := condition()):
            deadline.check(f"{what}; log: {self.logged[-3:]}")
            self.worker.turn(0.005)
        return value

    def settle(self) -> None:
        """Turn until nothing happens any more."""
        while self.worker.turn(0.01) or self.worker.ready:
            pass

    def pass_time(self, seconds: float) -> None:
        """Let the clock go on and what is due happen."""
        self.clock.now += seconds
        self.turn()

    def order(self, do: str, fds: Sequence[int] = (), **more: object) -> dict[str, Any]:
        """Give an order over the channel and return the answer."""
        channel.send(self.main, {"do": do, **more}, fds)
        while True:
            self.turn()
            try:
                answer = channel.receive(self.main)
            except BlockingIOError:
                continue
            assert answer is not None
            if answer.get("did") == do:
                return answer

    def value(self, kind: str, column: Column) -> int:
        """A counter: kind is process, frontend, backend or the name of a server."""
        keys = {"process": PROCESS, "frontend": RowKey("frontend", "www"), "backend": RowKey("backend", "app")}
        return self.table.value(self.table.index[keys.get(kind, RowKey("server", "app", kind))], column)

    def die(self) -> None:
        """As after SIGKILL: its descriptors are closed, and only what is parked goes on. Nothing of it may be used."""
        worker = self.worker
        # Ways of a move, too, are held by who handles their events.
        for handler in worker.handlers.values():
            for owner in (getattr(handler, "__self__", None), *(getattr(handler, "__defaults__", None) or ())):
                for sock in (getattr(owner, "sock", None), getattr(owner, "_sock", None)):
                    if isinstance(sock, socket.SocketType):
                        sock.close()
        worker.handlers.clear()
        for sock in (*worker.closing, self._channel):
            sock.close()
        for conn in worker.connections:
            for side in (conn.client, conn.server):
                if side is not None:
                    side.sock.close()
                    side.out = None
                    if side.pipe is not None:
                        side.pipe.close()
        for frontend in worker.frontends.values():
            for listener in frontend.listeners:
                listener.sock.close()
            frontend.listeners.clear()
        worker.connections.clear()
        worker.epoll.close()
        worker.epoll = select.epoll()

    def pair(self, farm: Farm, number: int = 0) -> tuple[Peer, Peer]:
        """A client and its server, connected through the worker."""
        client = self.connect()
        server = self.until(lambda: farm.accept(number), "a connection to the server")
        self.until(lambda: all(c.state == "established" for c in self.worker.connections), "established")
        return client, server


def make_park(name: str = "1-0", slots: int = 1000, generation: int = 1) -> Park:
    """An empty park."""
    return Park.create(name, slots, generation)


def take_over(dead: Lab, heir: Lab, cold: bool = False) -> dict[str, Any]:
    """Have a worker go on with what another one, which is dead, had parked; its report."""
    assert dead.park
    parts = dead.park.parts()
    return heir.order("resume-parked", [parts[part] for part in PARTS], name=dead.park.name, cold=cold)


def migrate(
    old: Lab, new: Lab, ways: int = 1, between: Callable[[], object] = lambda: None, together: int = 0
) -> dict[str, Any]:
    """Have all connections of one move to the other, as at a reload; the report. `between` is called at every turn.
    `together`: the ways of all workers."""
    pairs = [socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET) for _ in range(ways)]
    channel.send(new.main, {"do": "adopt"}, [far.fileno() for _, far in pairs])
    channel.send(old.main, {"do": "migrate", "ways": together}, [near.fileno() for near, _ in pairs])
    for pair in pairs:
        for sock in pair:
            sock.close()
    deadline = Deadline(20)
    report: dict[str, Any] | None = None
    while report is None or new.worker.arrivals:
        deadline.check("a migration")
        for lab in (old, new):
            lab.turn()
            between()
        with contextlib.suppress(BlockingIOError):
            answer = channel.receive(old.main)
            if answer and answer["did"] == "migrate":
                report = answer
    while True:
        try:
            channel.receive(new.main)  # that it has adopted the ways
        except BlockingIOError:
            return {name: report[name] for name in ("moved", "kept", "lost")}


class Forked:
    """A worker as a child process, logging its lines as JSON into a pipe."""

    def __init__(
        self,
        config: Config,
        listeners: Sequence[socket.socket],
        table: Table,
        index: int = 0,
        wake: Sequence[int] | None = None,
        maxconn: int = 0,
        cpu: int | None = None,
    ) -> None:
        self.main, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        theirs.setblocking(False)
        self.own_wake = wake is None
        self.wake = list(wake or [os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC) for _ in range(table.workers)])
        self._log, log_end = os.pipe()
        self.pid = os.fork()
        if not self.pid:
            try:
                self.main.close()
                if cpu is not None:
                    os.sched_setaffinity(0, {cpu})

                def log(severity: str, message: str, /, **fields: object) -> None:
                    os.write(log_end, json.dumps([severity, message]).encode() + b"\n")

                name = config.frontends[0].name
                bind = config.frontends[0].binds[0]
                worker.run(
                    WorkerSetup(
                        index,
                        config,
                        [(name, bind, sock) for sock in listeners],
                        table,
                        theirs,
                        self.wake,
                        log,
                        maxconn,
                        table.generation,
                    )
                )
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(3)
        theirs.close()
        os.close(log_end)
        self._pidfd = os.pidfd_open(self.pid)
        self.status: int | None = None

    def order(self, do: str, **more: object) -> dict[str, Any]:
        """Give an order and wait for the answer."""
        channel.send(self.main, {"do": do, **more})
        while True:
            wait_readable(self.main, 20.0, f"answer to {do}")
            answer = channel.receive(self.main)
            assert answer is not None, f"the worker ended instead of answering {do}"
            if answer.get("did") == do:
                return answer

    def tell(self, do: str) -> None:
        channel.send(self.main, {"do": do})

    def wait(self, seconds: float = 20.0) -> int:
        """Its exit status."""
        if self.status is None:
            wait_readable(self._pidfd, seconds, "end of the worker")
            self.status = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return self.status

    def log(self) -> list[tuple[str, str]]:
        """All that it logged, once it has ended."""
        data = b""
        while chunk := os.read(self._log, 65536):
            data += chunk
        return [(severity, message) for severity, message in map(json.loads, data.splitlines())]

    def __enter__(self) -> Forked:
        return self

    def __exit__(self, *_: object) -> None:
        self.main.close()
        if self.status is None:
            if not select.select([self._pidfd], [], [], 10)[0]:
                os.kill(self.pid, 9)
            self.wait()
        os.close(self._pidfd)
        os.close(self._log)
        if self.own_wake:
            for fd in self.wake:
                os.close(fd)


@contextlib.contextmanager
def farm(count: int = 1) -> Iterator[Farm]:
    """Listeners of `count` servers."""
    made = Farm(count)
    try:
        yield made
    finally:
        made.close()
