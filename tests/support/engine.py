"""The engine of the load generator: an epoll loop, the schedule of connections, and what all connections share."""

import heapq
import itertools
import json
import os
import random
import select
import socket
import sys
import time
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from errno import EAGAIN, EINPROGRESS
from typing import Any, Final

from tests.support import exchange as wire
from tests.support.processes import Address, parse_address
from tests.support.tally import Tally, failure_of

MODES: Final = ("connect", "keepalive", "idle", "stream", "bulk", "http")

MIXES: Final = ("plain", "all")

_BY_REQUEST: Final = ("keepalive", "http")
"""Modes whose `total` are requests, not connections."""

CLOSES: Final = {
    "server": (wire.CLOSE_SERVER,),
    "client": (wire.CLOSE_CLIENT,),
    "half": (wire.CLOSE_HALF,),
    "plain": (wire.CLOSE_PLAIN,),
    "mixed": (wire.CLOSE_SERVER, wire.CLOSE_CLIENT, wire.CLOSE_SERVER, wire.CLOSE_CLIENT, wire.CLOSE_HALF),
}

DIRECTIONS: Final = {"down": wire.DOWN, "up": wire.UP, "both": wire.BOTH}

GONE: Final = select.EPOLLRDHUP | select.EPOLLHUP | select.EPOLLERR

_EDGE: Final = select.EPOLLIN | select.EPOLLRDHUP | select.EPOLLET
_BURST: Final = 32
"""Connections that are started between two looks at the answers when there are many to start."""
_OPENING_RATE: Final = 2000.0
"""Connections a second at which the modes idle and stream open theirs."""
_IP_BIND_ADDRESS_NO_PORT: Final = 24
_NEVER: Final = float("inf")


@dataclass(frozen=True)
class Settings:
    """What a run does. Times in seconds, sizes in bytes."""

    targets: Sequence[str]
    """HOST:PORT, [HOST]:PORT, /path or abns@name; connections go to them in turn."""
    mode: str = "connect"
    rate: float = 0.0
    """New connections a second (connect, idle, stream). 0 in connect: another one as soon as one is done."""
    total: int = 0
    """Connections (connect), requests (keepalive, http) or transfers (bulk) until the end; 0: until stopped."""
    clients: int = 64
    """Connections at a time, if there is no rate; in the modes idle and stream: all of them."""
    requests: int = 0
    """keepalive, http: requests on a connection until it is replaced by a new one; 0: no limit."""
    pipeline: int = 1
    """http: requests of a connection that wait for their answers at a time."""
    mix: str = "plain"
    """http: which requests, see http_clients.KINDS."""
    interval: float | None = None
    """Pause between the requests of a connection (keepalive, http, by default 0) or the pieces of a stream (0.02)."""
    body: tuple[int, int] = (16, 2048)
    """Least and greatest size of the body of a request, or of a piece of a stream."""
    close: str = "mixed"
    """Who closes first, see CLOSES."""
    delay: float = 0.0
    """How long the server shall wait before it answers, to the millisecond."""
    size: int = 1 << 20
    """Of a transfer (bulk)."""
    direction: str = "down"
    timeout: float = 10.0
    """For everything between connect() and the end; for one request (keepalive); for a silence (stream, bulk)."""
    max_open: int = 15000
    """Connections at a time with a rate: a start that would exceed it is late."""
    seed: int = 0
    """Of sizes and ids; 0: another one each time."""
    sources: Sequence[str] = ()
    """IPv4 addresses to connect from, in turn."""
    progress: float = 0.0
    """Between two events that tell how far the run is; 0: none."""

    def __post_init__(self) -> None:
        low, high = self.body
        for wrong, what in (
            (not self.targets, "no target"),
            (self.mode not in MODES, f"unknown mode {self.mode!r}"),
            (self.close not in CLOSES, f"unknown close {self.close!r}"),
            (self.direction not in DIRECTIONS, f"unknown direction {self.direction!r}"),
            (self.mix not in MIXES, f"unknown mix {self.mix!r}"),
            (self.pipeline < 1, "no requests at a time"),
            (not 0 <= low <= high <= wire.CYCLE, f"bodies of {low} to {high} bytes"),
            (self.mode == "stream" and low < 1, "pieces of a stream of no bytes"),
            (self.clients < 1, "no clients"),
        ):
            if wrong:
                raise ValueError(f"cannot make load: {what}")


class Target:
    """Where connections go."""

    __slots__ = ("address", "family", "name")

    def __init__(self, name: str) -> None:
        self.name = name
        self.family: int
        self.address: Address
        self.family, self.address = parse_address(name)


class Client:
    """One connection. Subclasses say what happens on it; each ends by exactly one call of done() or fail()."""

    __slots__ = ("began", "deadline", "engine", "fd", "ident", "over", "sock", "target", "unsent", "watched")

    def __init__(self, engine: "Engine", target: Target) -> None:
        self.engine = engine
        self.target = target
        self.ident = 0
        self.unsent: memoryview | None = None
        self.watched = 0  # the events that epoll is asked for
        self.over = False
        self.fd = -1
        self.began = time.monotonic()
        self.deadline = self.began + engine.settings.timeout

    def connect(self) -> None:
        """Connect and send at once: over loopback the connection is there when connect() returns."""
        engine, target = self.engine, self.target
        try:
            self.sock = socket.socket(target.family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        except OSError as error:
            engine.tally.fail("local", f"{target.name}: {error}")
            return
        self.fd = self.sock.fileno()
        engine.clients[self.fd] = self
        self._attempt()

    def _attempt(self) -> None:
        if self.over:
            return
        engine, sock, target = self.engine, self.sock, self.target
        try:
            if engine.sources is not None and target.family == socket.AF_INET:
                sock.setsockopt(socket.IPPROTO_IP, _IP_BIND_ADDRESS_NO_PORT, 1)
                sock.bind((next(engine.sources), 0))
            error = sock.connect_ex(target.address)
            if error == EAGAIN and target.family == socket.AF_UNIX:
                # The backlog is full: what a blocking connect() would wait for.
                engine.later(0.001, self._attempt)
                return
            if error and error != EINPROGRESS:
                raise OSError(error, os.strerror(error))
            self.opening()
            if not self.over:
                self.watched = _EDGE if self.unsent is None else _EDGE | select.EPOLLOUT
                engine.epoll.register(self.fd, self.watched)
        except OSError as error:
            self.broken(error)

    def opening(self) -> None:
        """Send what begins the conversation. May raise OSError."""
        raise NotImplementedError

    def ready(self, mask: int) -> None:
        """Something happened to the socket. May raise OSError."""
        raise NotImplementedError

    def finish(self) -> None:
        """The run is to end: begin nothing more. May raise OSError."""

    def send(self, data: bytes | memoryview) -> bool:
        """Send; what does not go out now waits in `unsent`. Whether everything went out."""
        try:
            sent = self.sock.send(data)
        except BlockingIOError:
            sent = 0
        self.engine.tally.bytes_out += sent
        if sent == len(data):
            self.unsent = None
            return True
        self.unsent = memoryview(data)[sent:]
        self.watch_room()
        return False

    def watch_room(self) -> None:
        """Ask to be told when there is room to send."""
        if self.watched == _EDGE:
            self.watched = _EDGE | select.EPOLLOUT
            self.engine.epoll.modify(self.fd, self.watched)

    def expire(self) -> None:
        """The deadline is over."""
        self.fail("timeout", f"after {time.monotonic() - self.began:.3f} s, {self.state()}")

    def broken(self, error: OSError) -> None:
        self.fail(failure_of(error), f"{error.strerror}, {self.state()}")

    def state(self) -> str:
        """Where it stands, for the person who reads the error."""
        return ""

    def done(self) -> None:
        self._leave()
        self.engine.tally.done += 1

    def fail(self, kind: str, detail: str) -> None:
        if not self.over:
            self.engine.tally.fail(kind, f"{self.target.name} #{self.ident & 0xFFFFFFFF}: {detail}")
            self._leave()

    def _leave(self) -> None:
        self.over = True
        del self.engine.clients[self.fd]
        self.sock.close()


class Engine:
    """Runs one load. `client` makes the connections."""

    def __init__(self, settings: Settings, client: Callable[["Engine", Target], Client]) -> None:
        self.settings = settings
        self.tally = Tally()
        self.epoll = select.epoll()
        self.clients: dict[int, Client] = {}
        self.finishing = False
        self.ready_count = 0
        seed = settings.seed or int.from_bytes(os.urandom(4), "little") | 1
        self.seed = seed
        dice = random.Random(seed)
        self.sizes = array("I", (dice.randint(*settings.body) for _ in range(4096)))
        """Sizes of bodies, by the id's lowest 12 bits."""
        self.closes = CLOSES[settings.close]
        self.sources = itertools.cycle(settings.sources) if settings.sources else None
        self.delay = round(settings.delay * 1000)
        self.interval = (
            settings.interval if settings.interval is not None else 0.02 if settings.mode == "stream" else 0.0
        )
        self.cycle = -1  # a memfd with the cycle, for transfers
        self._client = client
        self._targets = itertools.cycle([Target(name) for name in settings.targets])
        self._ident = (seed & 0xFFFFFFFF) << 32
        self._timers: list[tuple[float, int, Callable[[], None]]] = []
        self._sequence = itertools.count()
        self._budget = settings.total if settings.mode in _BY_REQUEST and settings.total else -1
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._stops = 0
        self._all_ready = False
        population = settings.mode in ("idle", "stream")
        self._rate = settings.rate or (_OPENING_RATE if population else 0.0)
        if settings.mode not in ("connect", "idle", "stream"):
            self._rate = 0.0
        self._launches = (
            settings.clients if population else -1 if settings.mode in _BY_REQUEST else settings.total or -1
        )
        self._most = settings.max_open if self._rate and not population else settings.clients

    def new_ident(self) -> int:
        """An id that no other request has."""
        self._ident += 1
        return self._ident

    def take_request(self) -> bool:
        """keepalive, http: whether one more request is to be sent."""
        if self.finishing or not self._budget:
            return False
        self._budget -= 1
        return True

    def later(self, seconds: float, action: Callable[[], None]) -> None:
        heapq.heappush(self._timers, (time.monotonic() + seconds, next(self._sequence), action))

    def one_ready(self) -> None:
        """idle, stream: one more connection has had its first answer."""
        self.ready_count += 1

    def say(self, event: str, **more: Any) -> None:
        """Tell whoever watches."""
        print(json.dumps({"event": event, **more}), file=sys.stderr, flush=True)

    def stop(self) -> None:
        """End in order; a second call ends at once. For signal handlers and other threads."""
        self._stops += 1
        self.wake()

    def wake(self) -> None:
        """Have the loop look around; nothing when it is over, as a signal may come at any time."""
        if self._wake >= 0:
            os.eventfd_write(self._wake, 1)

    def run(self, until_eof: bool = False) -> dict[str, Any]:
        """Run to the end, or until stop() or the end of standard input, and return the result. Once."""
        self.epoll.register(self._wake, select.EPOLLIN)
        if until_eof:
            self.epoll.register(0, select.EPOLLIN)
        self.tally.began = time.monotonic()
        self.say("started", pid=os.getpid(), seed=self.seed)
        before = os.times()
        self._loop()
        elapsed = time.monotonic() - self.tally.began
        unfinished = len(self.clients)
        for client in list(self.clients.values()):
            client.sock.close()
        self.epoll.close()
        wake, self._wake = self._wake, -1
        os.close(wake)
        if self.cycle >= 0:
            os.close(self.cycle)
        times = os.times()
        return {
            "mode": self.settings.mode,
            "targets": list(self.settings.targets),
            "seed": self.seed,
            "complete": self._exhausted() and not unfinished,
            "unfinished": unfinished,
            **self.tally.result(elapsed),
            "cpu": {
                "user": round(times.user - before.user, 3),
                "system": round(times.system - before.system, 3),
            },
        }

    def _exhausted(self) -> bool:
        """Nothing more is to be begun."""
        return self._budget == 0 or self.tally.started == self._launches

    def _loop(self) -> None:
        settings, tally, clients, timers, poll = self.settings, self.tally, self.clients, self._timers, self.epoll.poll
        sweep_every = min(0.25, settings.timeout / 4)
        next_sweep = tally.began + sweep_every
        next_progress = tally.began + settings.progress if settings.progress else _NEVER
        while True:
            next_start = self._start_due()
            if not clients and (self.finishing or self._exhausted()):
                break
            wake = min(next_start, next_sweep, next_progress, timers[0][0] if timers else _NEVER)
            for fd, mask in poll(max(0.0, wake - time.monotonic()), 256):
                client = clients.get(fd)
                if client is not None:
                    try:
                        client.ready(mask)
                    except OSError as error:
                        client.broken(error)
                elif fd == self._wake or fd == 0:
                    self._interrupted(fd)
            if self._stops > 1:
                break
            now = time.monotonic()
            while timers and timers[0][0] <= now:
                heapq.heappop(timers)[2]()
            if now >= next_sweep:
                next_sweep = now + sweep_every
                for client in list(clients.values()):
                    if client.deadline < now:
                        client.expire()
            if not self._all_ready and self.ready_count == self._launches:
                self._all_ready = True
                self.say("ready", open=len(clients))
            if now >= next_progress:
                next_progress = now + settings.progress
                self.say("progress", **tally.progress(len(clients)))
        if settings.progress:
            self.say("progress", **tally.progress(len(clients)))

    def _interrupted(self, fd: int) -> None:
        if fd == 0:
            if os.read(0, 4096):
                return
            self.epoll.unregister(0)
            self._stops += 1
        else:
            os.eventfd_read(self._wake)
        if not self.finishing:
            self.finishing = True
            for client in list(self.clients.values()):
                try:
                    client.finish()
                except OSError as error:
                    client.broken(error)

    def _start_due(self) -> float:
        """Start the connections whose time has come. Returns when to come again."""
        if self.finishing or self._exhausted():
            return _NEVER
        tally, clients = self.tally, self.clients
        room = min(_BURST, self._most - len(clients))
        if self._launches >= 0:
            room = min(room, self._launches - tally.started)
        if not self._rate:
            for _ in range(room):
                self._launch()
            return 0.0 if len(clients) < self._most else _NEVER
        now = time.monotonic()
        began, rate = tally.began, self._rate
        due = int((now - began) * rate) + 1 - tally.started
        if due > 0:
            tally.lag = max(tally.lag, now - began - tally.started / rate)
            for _ in range(min(due, room)):
                self._launch()
        if room <= 0:
            return _NEVER
        return began + tally.started / rate

    def _launch(self) -> None:
        self.tally.started += 1
        self._client(self, next(self._targets)).connect()
