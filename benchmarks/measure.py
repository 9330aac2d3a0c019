"""The measurements: what a proxy costs under traffic, how long its reload takes, and what a reload does to traffic."""

import itertools
import statistics
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from benchmarks.proxies import Hitlessd, Proxy
from tests.support.backend import Backend
from tests.support.load import Load
from tests.support.processes import TICKS, cpu_seconds

PROXY_CPU: Final = 0
LOAD_CPU: Final = 1
GIGABYTE: Final = 1e9


@dataclass(frozen=True)
class Work:
    """One kind of traffic. `settings` go to the load generator; `units` makes the number of units out of its result."""

    name: str
    unit: str
    scale: float
    """From CPU seconds a unit to what is shown."""
    shown: str
    rate_shown: str
    settings: dict[str, Any]
    units: Callable[[dict[str, Any]], float]


def works(quick: bool) -> list[Work]:
    """What is compared. A quick run does a fifth."""
    part = 5 if quick else 1
    size = 64 << 20
    return [
        Work(
            "one request a connection", "connection", 1e6, "µs CPU", "/s",
            {"mode": "connect", "total": 20000 // part, "clients": 64, "close": "plain", "body": (64, 1024)},
            lambda result: float(result["done"]),
        ),
        Work(
            "request on a kept connection", "request", 1e6, "µs CPU", "/s",
            {"mode": "keepalive", "total": 60000 // part, "clients": 64, "body": (64, 1024)},
            lambda result: float(result["requests"]),
        ),
        Work(
            "bulk, 64 MiB down", "GB", 1.0, "s CPU", "GB/s",
            {"mode": "bulk", "direction": "down", "size": size, "total": 32 // part, "clients": 8, "timeout": 60},
            lambda result: result["done"] * size / GIGABYTE,
        ),
    ]  # fmt: skip


@dataclass
class Sample:
    """One run of one work through one proxy."""

    units: float
    elapsed: float
    cpu: float
    load_cpu: float
    others: float
    """CPU seconds that everything else on the machine used meanwhile."""
    failed: int

    @property
    def cost(self) -> float:
        """CPU seconds of the proxy a unit."""
        return self.cpu / self.units if self.units else float("inf")

    @property
    def rate(self) -> float:
        """Units a second."""
        return self.units / self.elapsed


@dataclass
class Series:
    """All runs of one work through one proxy; medians."""

    samples: list[Sample] = field(default_factory=list)

    def median(self, what: Callable[[Sample], float]) -> float:
        return statistics.median(what(sample) for sample in self.samples)

    @property
    def cost(self) -> float:
        return self.median(lambda sample: sample.cost)

    @property
    def rate(self) -> float:
        return self.median(lambda sample: sample.rate)

    @property
    def busy(self) -> float:
        """Share of its CPU that the proxy used."""
        return self.median(lambda sample: sample.cpu / sample.elapsed)

    @property
    def load_busy(self) -> float:
        """Share of their CPU that load generator and backend used."""
        return self.median(lambda sample: sample.load_cpu / sample.elapsed)

    @property
    def others_busy(self) -> float:
        """CPUs' worth of time that everything else on the machine used."""
        return self.median(lambda sample: sample.others / sample.elapsed)

    @property
    def failed(self) -> int:
        return sum(sample.failed for sample in self.samples)


def machine_cpu() -> float:
    """CPU seconds that all processes of the machine have used, other machines on the same hardware included (steal)."""
    fields = [int(field) for field in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
    user, nice, system, _idle, _iowait, irq, softirq, steal = fields
    return (user + nice + system + irq + softirq + steal) / TICKS


def run_work(work: Work, proxy: Proxy, backend: Backend) -> Sample:
    """One run."""
    cpu, backend_cpu, machine = proxy.cpu_used(), cpu_seconds(backend.pid), machine_cpu()
    with Load(proxy.targets[0], cpu=LOAD_CPU, progress=0, **work.settings) as load:
        result = load.result(600)
    cpu, backend_cpu = proxy.cpu_used() - cpu, cpu_seconds(backend.pid) - backend_cpu
    load_cpu = result["cpu"]["user"] + result["cpu"]["system"] + backend_cpu
    others = max(0.0, machine_cpu() - machine - cpu - load_cpu)
    return Sample(work.units(result), result["elapsed"], cpu, load_cpu, others, result["failed"] + result["unfinished"])


def compare(
    kinds: Sequence[Work],
    proxies: Sequence[Proxy],
    run: Callable[[Work, Proxy], Sample],
    rounds: int,
    tell: Callable[[str], None],
) -> dict[str, dict[str, Series]]:
    """Every work through every proxy, `rounds` times, the proxies in turn and each time in the other order."""
    found = {work.name: {proxy.name: Series() for proxy in proxies} for work in kinds}
    for number in range(rounds):
        order = list(proxies) if number % 2 == 0 else list(reversed(proxies))
        for work, proxy in itertools.product(kinds, order):
            tell(f"round {number + 1} of {rounds}: {work.name}, {proxy.name}")
            found[work.name][proxy.name].samples.append(run(work, proxy))
    return found


@dataclass
class Times:
    """How long something took each time, in seconds."""

    values: list[float]

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    @property
    def longest(self) -> float:
        return max(self.values)


def reload_times(proxies: Sequence[Proxy], count: int, tell: Callable[[str], None]) -> dict[str, Times]:
    """`count` reloads of each proxy, in turn. hitlessd's also without hitlessctl, as "reload"."""
    found: dict[str, list[float]] = {}
    for number in range(count):
        for proxy in proxies:
            tell(f"reload {number + 1} of {count}: {proxy.name}")
            found.setdefault(proxy.name, []).append(proxy.reload())
            if isinstance(proxy, Hitlessd):
                found.setdefault("runtime socket", []).append(proxy.reload_directly())
    return {name: Times(values) for name, values in found.items()}


@dataclass
class Loaded:
    """A run of load, with or without reloads meanwhile."""

    result: dict[str, Any]
    reloads: int
    problems: list[str]

    @property
    def reload_rate(self) -> float:
        """Reloads a second."""
        return self.reloads / float(self.result["elapsed"])

    @property
    def failed(self) -> int:
        """Connections that went wrong in any way."""
        return int(self.result["failed"] + self.result["unfinished"])


def under_load(proxy: Proxy, rate: float, total: int, reloads: bool) -> Loaded:
    """Load at a constant rate, and if `reloads`, one reload after the other until it ends."""
    count, problems = 0, []
    stop = threading.Event()

    def reload_all_the_time() -> None:
        nonlocal count
        while not stop.is_set():
            try:
                proxy.reload()
            except (RuntimeError, OSError) as error:
                problems.append(str(error))
                stop.wait(0.1)
            else:
                count += not stop.is_set()

    thread = threading.Thread(target=reload_all_the_time, name="reloads")
    with Load(proxy.targets, rate=rate, total=total, progress=0, timeout=20) as load:
        if reloads:
            thread.start()
        try:
            result = load.result(total / rate * 4 + 60)
        finally:
            stop.set()
            if reloads:
                thread.join()
    return Loaded(result, count, problems)


def settle(proxy: Proxy, seconds: float = 5.0) -> None:
    """Wait until a proxy that was reloaded has no older generation left."""
    end = time.monotonic() + seconds
    expected = 1 if not isinstance(proxy, Hitlessd) else 1 + proxy.workers
    waiting = threading.Event()
    while len(proxy.processes()) > expected and time.monotonic() < end:
        waiting.wait(0.05)
