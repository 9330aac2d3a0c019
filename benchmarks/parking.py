"""What it costs that connections outlive a crash: hitlessd with `crash-proof = on` beside itself with `off`.

Both run at the same time on the same CPU, under a service manager of the tests' that keeps their descriptors, and take
turns in short rounds; a ratio is the median of the rounds' own ratios, so that what else the machine does meets both. A
second one with `off` takes part: how far two of the same differ says which differences mean nothing.
CPU is that of all their processes, to the nanosecond (/proc/PID/schedstat); PID 1's own is for the vm-tests to measure.
"""

import contextlib
import os
import resource
import selectors
import signal
import socket
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Final, NamedTuple

from benchmarks.figures import GIGABYTE, Target, Work
from benchmarks.measure import LOAD_CPU, PROXY_CPU, run_work
from benchmarks.moves import pss
from benchmarks.proxies import Hitlessd
from benchmarks.sections import Section
from benchmarks.tcp import single
from benchmarks.usage import machine_cpu
from tests.support import exchange as wire
from tests.support.backend import Backend
from tests.support.load import Load
from tests.support.manager import Keeper
from tests.support.processes import Process, end, free_ports, pin, poll_until, python_module, stat_fields

# Our own aims, of what `on` may cost beside `off`.
SHORT: Final = 1.02
KEPT: Final = 1.03
BULK: Final = 1.03

_TIMEOUT: Final = 60.0
_PARK_AFTER: Final = 1.0
_AGEING: Final = 12.0
"""park-after where many connections have to be there before the first is parked."""
_LEAD: Final = 0.5
"""Seconds before the first is parked, from which on a worker's CPU counts as that of parking."""
_CLIENTS: Final = 64
_TAKERS: Final = 4
_SIZE: Final = 64 << 20
_STARTS: Final = 5
"""Times that the proxies are started anew in the comparison."""
_MOST: Final = 10_000
_DYING: Final = 5_000
_PIPES: Final = 256
"""Of the descriptors that may be parked, those that hitlessd keeps for pipes."""


class Kept(Hitlessd):
    """hitlessd as a service whose descriptors are kept, and that may be killed."""

    def __init__(
        self,
        directory: Path,
        listen: Sequence[int],
        servers: Sequence[int],
        *,
        crash_proof: bool,
        park_after: float = _PARK_AFTER,
        maxconn: int = 4000,
        cpu: int | None = PROXY_CPU,
    ) -> None:
        super().__init__(directory, listen, servers, cpu=cpu)
        self.name = "on" if crash_proof else "off"
        self._settings = (
            f"maxconn = {maxconn}\ncrash-proof = {self.name}\npark-after = {round(park_after * 1000)}ms\n"
            "park-timeout = 10m"
        )
        directory.mkdir(parents=True, exist_ok=True)
        self._manager = Keeper(str(directory / "manager.sock"))
        self._env |= self._manager.environment

    def text(self, listen: Sequence[int], servers: Sequence[int]) -> str:
        text = super().text(listen, servers).replace("maxconn = 4000", self._settings)
        return text.replace("timeout client = 1m", "timeout client = 10m").replace("server = 1m", "server = 10m")

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def workers_now(self) -> list[int]:
        """The worker processes."""
        return [pid for pid in self.processes() if pid != self.pid]

    def cpu_used(self) -> float:
        return sum(cpu_of(self.processes()).values())

    def number(self, name: str) -> int:
        """A number of `show info`."""
        return int(self.info()[name])

    def wait_number(self, name: str, wanted: int, every: float = 0.01) -> None:
        poll_until(lambda: self.number(name) == wanted, _TIMEOUT, f"{name}: {wanted}", every)

    def end_main(self) -> None:
        """SIGTERM, and what systemd does to the rest of the unit; returns when all are dead."""
        assert self._process is not None
        self._process.stop(_TIMEOUT)
        for pid in self.processes():
            end(pid, 5, signal.SIGKILL)
        self._manager.settle()

    def come_back(self) -> None:
        """Start with what is stored; does not wait."""
        passed = self._manager.passed()
        try:
            names = [f"{fd}={name}" for fd, name in passed]
            command = python_module("tests.support.passing", *names, "--", *self.command())
            self._process = Process(
                self.wrapped(command),
                env=self._env,
                cwd=Path(__file__).parent.parent,
                pass_fds=[fd for fd, _ in passed],
            )
        finally:
            for fd, _ in passed:
                os.close(fd)

    def resumed(self, wanted: int) -> bool:
        """Whether the main process that runs now says so; a question may wait in the store's socket for it."""
        with contextlib.suppress(OSError):
            info = self.info()
            return info.get("Pid") == str(self.pid) and int(info["CumResumed"]) >= wanted
        return False

    def start(self) -> None:
        self._manager.__enter__()
        super().start()
        self._check_cpu()

    def _check_cpu(self) -> None:
        """Beside the load generator, all comes in large batches, and costs half."""
        if self._cpu is None or (os.cpu_count() or 1) <= self._cpu:
            return
        astray = [pid for pid in self.processes() if os.sched_getaffinity(pid) != {self._cpu}]
        if astray:
            raise RuntimeError(f"{self.name}: processes {astray} are not kept on CPU {self._cpu}")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            super().__exit__(kind, error, trace)
        finally:
            self._manager.__exit__(kind, error, trace)


def cpu_of(pids: Sequence[int]) -> dict[int, float]:
    """CPU seconds of processes of one thread each, by pid; those that have ended are left out."""
    found = {}
    for pid in pids:
        with contextlib.suppress(OSError):
            found[pid] = int(Path(f"/proc/{pid}/schedstat").read_text().split()[0]) / 1e9
    return found


def spent(before: Mapping[int, float], after: Mapping[int, float]) -> float:
    """CPU seconds between two cpu_of(); a process that was not there before has spent all that it has."""
    return sum(used - before.get(pid, 0.0) for pid, used in after.items())


def most_parked(limit: int, wanted: int) -> int:
    """Connections that one worker parks, `wanted` at most, when `limit` is that of open files: a third of it is for
    what is parked, two descriptors a connection."""
    return max(100, min(wanted, (limit // 3 - _PIPES) // 2) // 100 * 100)


class Spread(NamedTuple):
    """The median of some figures, their quartiles, and two standard errors of the median.

    The error takes the rounds for independent; those of one start are not quite, so it is rather more.
    """

    median: float
    low: float
    high: float
    error: float


def spread_of(values: Sequence[float], others: Sequence[float]) -> Spread:
    """Of the rounds' own ratios."""
    ratios = [value / other for value, other in zip(values, others, strict=True)]
    if len(ratios) < 2:
        return Spread(ratios[0], ratios[0], ratios[0], float("inf"))
    low, median, high = statistics.quantiles(ratios, n=4, method="inclusive")
    # Of a normal distribution: the quartiles are 1.35 deviations apart, the median's error is 1.25 of the mean's.
    return Spread(median, low, high, 2 * 1.25 * (high - low) / 1.35 / len(ratios) ** 0.5)


@dataclass
class Pairs:
    """CPU seconds a unit, one figure a round: with it, without, and without in a process like the other."""

    on: list[float] = field(default_factory=list)
    off: list[float] = field(default_factory=list)
    again: list[float] = field(default_factory=list)

    @property
    def ratio(self) -> Spread:
        """on / off"""
        return spread_of(self.on, self.off)

    @property
    def noise(self) -> Spread:
        """off / off: what no difference looks like."""
        return spread_of(self.again, self.off)

    def as_dict(self) -> dict[str, Any]:
        return {**vars(self), "ratio": self.ratio._asdict(), "noise": self.noise._asdict()}


class Look(NamedTuple):
    """What was seen at one moment: the clock, the workers' CPU seconds, connections that are parked."""

    at: float
    cpu: float
    parked: int


def parking_cpu(looks: Sequence[Look], total: int) -> float:
    """CPU seconds from _LEAD before the first connection was parked until all were."""
    first = next(look.at for look in looks if look.parked)
    begin = max((look for look in looks if look.at <= first - _LEAD), default=looks[0], key=lambda look: look.at)
    last = next(look for look in looks if look.parked >= total)
    return last.cpu - begin.cpu


class _Kind(NamedTuple):
    """A kind of traffic: the unit that is shown, how many of it a second is, and the aim."""

    name: str
    unit: str
    scale: float
    limit: float


class Crowd:
    """Connections that stay, and talk when they are told to, so that they are as old as anybody likes."""

    def __init__(self, port: int, count: int) -> None:
        self.socks = []
        self._ident = 0
        for _ in range(count):
            self.socks.append(socket.create_connection(("127.0.0.1", port), _TIMEOUT))

    def ask(self, rounds: int, size: int = 256) -> int:
        """Everyone sends a request, and gets its answer, so many times; returns how many."""
        want = wire.ANSWER_SIZE + size
        for _ in range(rounds):
            self._ident += 1
            place = wire.position(self._ident)
            text = wire.pack_request(wire.EXCHANGE, wire.CLOSE_CLIENT, 0, size, self._ident)
            text += wire.ASKED[place : place + size]
            for sock in self.socks:
                sock.sendall(text)
            for sock in self.socks:
                answer = sock.recv(want, socket.MSG_WAITALL)
                if len(answer) != want or answer[wire.ANSWER_SIZE :] != wire.ANSWERED[place : place + size]:
                    raise RuntimeError("a request on an old connection was not answered")
        return rounds * len(self.socks)

    def fetch(self, size: int) -> int:
        """Everyone asks for so many bytes at once; returns how many came."""
        self._ident += 1
        left: dict[socket.socket, int] = {}
        with selectors.DefaultSelector() as selector:
            for sock in self.socks:
                sock.sendall(wire.pack_request(wire.DOWN, wire.CLOSE_CLIENT, 0, size, self._ident))
                left[sock] = wire.ANSWER_SIZE + size
                selector.register(sock, selectors.EVENT_READ, sock)
            while left:
                for key, _ in selector.select(_TIMEOUT):
                    sock = key.data
                    # Nobody looks at them: they are counted and thrown away.
                    got = sock.recv_into(_BUFFER, min(left[sock], 1 << 20), socket.MSG_TRUNC)
                    if not got:
                        raise RuntimeError("a transfer on an old connection was cut off")
                    left[sock] -= got
                    if not left[sock]:
                        selector.unregister(sock)
                        del left[sock]
        return size * len(self.socks)

    def close(self) -> None:
        for sock in self.socks:
            sock.close()


_BUFFER: Final = bytearray(1 << 20)


@contextlib.contextmanager
def _on_load_cpu() -> Iterator[None]:
    """What we do ourselves must not take the proxies' CPU."""
    before = os.sched_getaffinity(0)
    pin(LOAD_CPU)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


class Parking:
    """The parts of the benchmark. `tell` is told what is going on."""

    def __init__(self, directory: Path, quick: bool, rounds: int, tell: Callable[[str], None]) -> None:
        self._directory = directory
        self._quick = quick
        self._rounds = rounds
        self._tell = tell
        self._numbers = 0
        self._limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]

    def sections(self) -> Iterator[Section]:
        """One part after the other."""
        yield self.costs()
        yield self.idle()
        yield self.deaths()

    def _kept(self, backend: Backend, crash_proof: bool, **more: Any) -> Kept:
        self._numbers += 1
        directory = self._directory / f"parking{self._numbers}"
        return Kept(directory, free_ports(1), [backend.port], crash_proof=crash_proof, **more)

    # -- traffic -----------------------------------------------------------------------------------------------------

    def costs(self) -> Section:
        """CPU of a short connection, of a request on an old connection, and of a gigabyte."""
        section = Section(
            "crash-proof, traffic", f"CPU, on beside off; {self._rounds} rounds, medians; the targets are our own aims"
        )
        part = 4 if self._quick else 1
        short = single(4000 // part)
        began, busy = time.monotonic(), machine_cpu()
        kinds = [
            _Kind("one request a connection", "µs", 1e6, SHORT),
            _Kind("request on an old connection", "µs", 1e6, KEPT),
            _Kind("GB on old connections", "ms", 1e3, BULK),
        ]
        found = {kind.name: Pairs() for kind in kinds}
        starts = min(_STARTS, self._rounds)
        for start in range(starts):
            rounds = range(start, self._rounds, starts)
            self._start_and_compare(short, part, len(rounds), list(found.values()), section, f"start {start + 1}")
        for name, unit, scale, limit in kinds:
            pairs = found[name]
            on, off = (statistics.median(values) * scale for values in (pairs.on, pairs.off))
            section.tell(f"{name}: on, off", f"{on:.1f}, {off:.1f} {unit}")
            target = Target(f"{section.title}: {name}, on / off", pairs.ratio.median, limit, " x")
            section.rows.append(("  on / off", f"{pairs.ratio.median:.3f} x", target))
            section.tell("  half of the rounds lie between", f"{pairs.ratio.low:.3f}, {pairs.ratio.high:.3f}")
            noise = pairs.noise
            if noise.error > limit - 1:
                section.problems.append(f"{name}: undecided, two of the same differ too much (+-{noise.error:.3f})")
            section.tell("  noise: off / off, and half", f"{noise.median:.3f}, {noise.low:.3f} to {noise.high:.3f}")
        elapsed = time.monotonic() - began
        section.tell("CPUs busy on the whole machine meanwhile", f"{(machine_cpu() - busy) / elapsed:.2f}")
        section.figures = {name: pairs.as_dict() for name, pairs in found.items()}
        return section

    def _start_and_compare(
        self, short: Work, part: int, rounds: int, found: Sequence[Pairs], section: Section, told: str
    ) -> None:
        """Some rounds with new processes: two of the same program differ for as long as they live."""
        with Backend(cpu=LOAD_CPU) as backend, contextlib.ExitStack() as stack:
            contenders = [stack.enter_context(self._kept(backend, value)) for value in (True, False, False)]
            # Only now: what a process may not use itself, it cannot give to those that it starts.
            stack.enter_context(_on_load_cpu())
            talkers = [Crowd(each.listen[0], _CLIENTS) for each in contenders]
            takers = [Crowd(each.listen[0], _TAKERS) for each in contenders]
            for crowd in (*talkers, *takers):
                stack.callback(crowd.close)
                crowd.ask(1)
            self._tell(f"{told}: letting connections become old")
            contenders[0].wait_number("CurrParked", _CLIENTS + _TAKERS)

            def connect(place: int) -> float:
                sample = run_work(short, contenders[place], backend)
                if sample.failed:
                    section.problems.append(f"{contenders[place].name}: {sample.failed} short connections failed")
                return sample.units

            def talk(place: int) -> float:
                return talkers[place].ask(160 // part)

            def take(place: int) -> float:
                return takers[place].fetch(_SIZE // part) / GIGABYTE

            works_ = (connect, talk, take)
            for work in works_:
                for place in range(len(contenders)):
                    work(place)  # the first time is slower
            for number in range(rounds):
                order = [0, 1, 2] if number % 2 == 0 else [2, 1, 0]
                for work, pairs in zip(works_, found, strict=True):
                    self._tell(f"{told}: round {number + 1} of {rounds}")
                    for place in order:
                        before = contenders[place].cpu_used()
                        units = work(place)
                        cost = (contenders[place].cpu_used() - before) / units
                        (pairs.on, pairs.off, pairs.again)[place].append(cost)
            unparked = _CLIENTS + _TAKERS - contenders[0].number("CurrParked")
        if unparked:
            section.problems.append(f"{unparked} old connections were not parked")

    # -- idle connections --------------------------------------------------------------------------------------------

    def idle(self) -> Section:
        """CPU to park a connection, and memory that one takes."""
        clients = most_parked(self._limit, 1000 if self._quick else _MOST)
        section = Section("crash-proof, idle", f"{clients:,} connections ({self._limit:,} descriptors a process)")
        sizes: dict[str, float] = {}
        costs: list[float] = []
        for crash_proof in (True, False):
            for _ in range(3 if crash_proof else 1):
                with (
                    Backend(cpu=LOAD_CPU) as backend,
                    self._kept(backend, crash_proof, park_after=_AGEING, maxconn=clients + 100) as proxy,
                ):
                    before = pss(proxy.processes())
                    self._tell(f"{clients:,} idle connections: {proxy.name}")
                    load = Load(proxy.targets, mode="idle", clients=clients, timeout=_TIMEOUT, cpu=LOAD_CPU, progress=0)
                    with load:
                        load.wait_ready(2 * _TIMEOUT)
                        if crash_proof:
                            costs.append(self._parking(proxy, clients) / clients)
                        sizes[proxy.name] = (pss(proxy.processes()) - before) / clients
                        result = load.stop(2 * _TIMEOUT)
                section.problems += result["errors"][:3]
        section.tell("CPU to park one, µs", f"{statistics.median(costs) * 1e6:.1f}")
        section.tell("  longest of three", f"{max(costs) * 1e6:.1f}")
        section.tell("memory a connection, on", f"{sizes['on']:,.0f} B")
        section.tell("memory a connection, off", f"{sizes['off']:,.0f} B")
        section.tell("  on / off", f"{sizes['on'] / sizes['off']:.2f} x")
        section.figures = {"clients": clients, "park_cpu_seconds": costs, "memory": sizes}
        return section

    def _parking(self, proxy: Kept, clients: int) -> float:
        """CPU seconds of the workers to park them all."""
        workers, looks = proxy.workers_now(), []
        if proxy.number("CurrParked"):
            raise RuntimeError("opening the connections took longer than park-after")

        def parked() -> bool:
            count = proxy.number("CurrParked")
            looks.append(Look(time.monotonic(), sum(cpu_of(workers).values()), count))
            return count >= clients

        poll_until(parked, 2 * _TIMEOUT, "all are parked", 0.02)
        return parking_cpu(looks, clients)

    # -- deaths ------------------------------------------------------------------------------------------------------

    def deaths(self) -> Section:
        """Time and CPU until all idle connections go on elsewhere."""
        clients = most_parked(self._limit, 1000 if self._quick else _DYING)
        times = 2 if self._quick else 5
        section = Section("crash-proof, deaths", f"{clients:,} idle connections, {times} times each, medians")
        killed, restarted = [], []
        with (
            Backend(cpu=LOAD_CPU) as backend,
            self._kept(backend, True, maxconn=clients + 100, cpu=PROXY_CPU) as proxy,
            Load(proxy.targets, mode="idle", clients=clients, timeout=_TIMEOUT, cpu=LOAD_CPU, progress=0) as load,
        ):
            load.wait_ready(2 * _TIMEOUT)
            for number in range(times):
                self._tell(f"{clients:,} idle connections: death {number + 1} of {times}")
                proxy.wait_number("CurrParked", clients)
                killed.append(self._kill(proxy, clients))
                self._tell(f"{clients:,} idle connections: restart {number + 1} of {times}")
                proxy.wait_number("CurrParked", clients)
                restarted.append(self._restart(proxy, clients))
            log = proxy.log
            result = load.stop(4 * _TIMEOUT)
        section.problems += result["errors"][:3]
        section.aim("lost", result["failed"] + result["unfinished"], 0)
        for name, found in (("worker killed", killed), ("restart", restarted)):
            section.tell(f"{name}: until all go on", f"{statistics.median(t for t, _ in found) * 1000:.0f} ms")
            section.tell("  longest", f"{max(t for t, _ in found) * 1000:.0f} ms")
            section.tell("  CPU", f"{statistics.median(c for _, c in found) * 1000:.0f} ms")
            section.tell("  CPU a connection", f"{statistics.median(c for _, c in found) / clients * 1e6:.1f} µs")
        section.figures = {
            "clients": clients,
            "worker killed": killed,
            "restart": restarted,
            "result": result,
            "log": log,
        }
        return section

    def _kill(self, proxy: Kept, clients: int) -> tuple[float, float]:
        """Kill the worker: seconds until all are resumed, and CPU seconds of main and heirs until then."""
        resumed, before = proxy.number("CumResumed"), cpu_of([proxy.pid])
        (worker,) = proxy.workers_now()
        began = time.monotonic()
        os.kill(worker, signal.SIGKILL)
        poll_until(lambda: proxy.resumed(resumed + clients), _TIMEOUT, "all are resumed", 0.002)
        elapsed = time.monotonic() - began
        return elapsed, spent(before, cpu_of([pid for pid in proxy.processes() if pid != worker]))

    def _restart(self, proxy: Kept, clients: int) -> tuple[float, float]:
        """SIGTERM and start: the same, with the CPU of those who leave, and of a Python's start."""
        resumed, before, reaped = proxy.number("CumResumed"), proxy.cpu_used(), _of_children()
        dead = sum(int(field) for field in stat_fields(proxy.pid)[13:15]) / os.sysconf("SC_CLK_TCK")
        began = time.monotonic()
        proxy.end_main()
        leaving = max(0.0, _of_children() - reaped - before - dead)
        proxy.come_back()
        poll_until(lambda: proxy.resumed(resumed + clients), _TIMEOUT, "all are resumed", 0.002)
        elapsed = time.monotonic() - began
        return elapsed, leaving + proxy.cpu_used()


def _of_children() -> float:
    """CPU seconds of those of our children that have been waited for, and of theirs."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
