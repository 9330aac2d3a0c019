"""The measurements: what a proxy costs under traffic, in turn with the others, and how long its reload takes."""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Callable, Sequence
from typing import Any, Final

from benchmarks.figures import GIGABYTE, Sample, Series, Target, Times, Work
from benchmarks.proxies import Hitlessd, Proxy
from benchmarks.usage import Usage, machine_cpu, usage_of
from tests.support.backend import Backend
from tests.support.load import Load

__all__ = [
    "GIGABYTE", "LOAD_CPU", "PROXY_CPU", "Meter", "Sample", "Series", "Target", "Times", "Work",
    "children_cpu", "compare", "machine_cpu", "reload_times", "run_work",
]  # fmt: skip

PROXY_CPU: Final = 0
LOAD_CPU: Final = 1


class Meter:
    """CPU seconds of a proxy, of the servers behind it, and of the whole machine, from its making on."""

    def __init__(self, proxy: Proxy, servers: Sequence[int]) -> None:
        self._proxy, self._servers = proxy, servers
        self._since = time.monotonic()
        self._began = self._look()

    def _look(self) -> tuple[Usage, Usage, float]:
        return self._proxy.usage(), usage_of(self._servers), machine_cpu()

    def sample(self, units: float, elapsed: float, load: float, failed: int) -> Sample:
        """What was done until now; `load` is the CPU of the load generator."""
        (proxy, servers, machine), (proxy_before, servers_before, machine_before) = self._look(), self._began
        used = proxy - proxy_before
        load += (servers - servers_before).total
        # The load generator's start and end are part of the time for which the machine was looked at.
        share = elapsed / max(elapsed, time.monotonic() - self._since)
        others = max(0.0, machine - machine_before - used.total - load) * share
        return Sample(units, elapsed, used.total, load, others, failed, used.kernel_share)


def run_work(work: Work, proxy: Proxy, backend: Backend) -> Sample:
    """One run of one work of the load generator of the tests, which looks at every byte."""
    meter = Meter(proxy, [backend.pid])
    with Load(proxy.targets[0], cpu=LOAD_CPU, progress=0, **work.settings) as load:
        result: dict[str, Any] = load.result(600)
    load_cpu = result["cpu"]["user"] + result["cpu"]["system"]
    return meter.sample(work.units(result), result["elapsed"], load_cpu, result["failed"] + result["unfinished"])


def children_cpu() -> float:
    """CPU seconds of those of our children that have been waited for."""
    times = os.times()
    return times.children_user + times.children_system


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
