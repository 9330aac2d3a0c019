"""How long new connections take at half load, left alone and while reloads come four a second.

The rate is half of what the load generator gets through the slowest proxy in a closed loop; all take turns at the same
rate. Here nothing is pinned: a reload's own CPU is part of what is measured.
"""

from __future__ import annotations

import contextlib
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.figures import Ratio, ratio_of
from benchmarks.proxies import Haproxy, Hitlessd, Proxy, haproxy_version
from benchmarks.sections import Section
from benchmarks.targets import LATENCY, RELOADS_A_SECOND
from tests.support.backend import Backend
from tests.support.load import Load
from tests.support.processes import free_ports

__all__ = ["Latency", "Loaded", "under_load"]

_PERCENTILES = ("p50", "p99", "p999", "max")


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


def under_load(proxy: Proxy, rate: float, total: int, reloads: float) -> Loaded:
    """Load at a constant rate, and so many reloads a second: 0 for none, infinity for one after the other."""
    count, problems = 0, []
    stop = threading.Event()

    def reload_all_the_time() -> None:
        nonlocal count
        began = time.monotonic()
        while not stop.is_set():
            try:
                proxy.reload()
            except (RuntimeError, OSError) as error:
                problems.append(str(error))
                stop.wait(0.1)
            else:
                count += not stop.is_set()
            stop.wait(max(0.0, began + (count + len(problems)) / reloads - time.monotonic()))

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


@dataclass
class _Found:
    """All runs of one proxy, round by round."""

    alone: list[Loaded] = field(default_factory=list)
    reloading: list[Loaded] = field(default_factory=list)

    def ratio(self) -> Ratio:
        """p99.9 while it is reloaded, to p99.9 left alone."""
        return ratio_of(*([run.result["latency_ms"]["p999"] for run in runs] for runs in (self.reloading, self.alone)))


class Latency:
    """The section `latency`. `rate` 0: half load. `tell` is told what is going on."""

    def __init__(
        self, directory: Path, quick: bool, rounds: int, rate: float, workers: int, tell: Callable[[str], None]
    ) -> None:
        self._directory = directory
        self._rounds = min(rounds, 3)
        self._seconds = 2.0 if quick else 4.0
        self._rate = rate
        self._workers = workers
        self._tell = tell

    def sections(self) -> Iterator[Section]:
        """One part."""
        with Backend() as backend, contextlib.ExitStack() as stack:
            proxies: list[Proxy] = []
            for kind in (Haproxy, Hitlessd) if haproxy_version() else (Hitlessd,):
                directory = self._directory / f"latency-{kind.name}"
                proxies.append(kind(directory, free_ports(2), [backend.port], workers=self._workers))
                stack.enter_context(proxies[-1])
            rate = self._rate or min(self._closed_loop(proxy) for proxy in proxies) / 2
            found = {proxy.name: _Found() for proxy in proxies}
            for number in range(self._rounds):
                for proxy in proxies if number % 2 == 0 else reversed(proxies):
                    self._tell(f"round {number + 1} of {self._rounds}: latency at {rate:,.0f}/s, {proxy.name}")
                    total = int(rate * self._seconds)
                    found[proxy.name].alone.append(under_load(proxy, rate, total, 0))
                    found[proxy.name].reloading.append(under_load(proxy, rate, total, RELOADS_A_SECOND))
            self._tell("one reload after the other")
            storm = under_load(proxies[-1], rate, int(rate * self._seconds), float("inf"))
        yield self._section(rate, found, storm)

    def _closed_loop(self, proxy: Proxy) -> float:
        self._tell(f"what is full load: {proxy.name}")
        with Load(proxy.targets, mode="connect", clients=64, total=5000, progress=0, body=(16, 2048)) as load:
            return float(load.result(60)["rate"])

    def _section(self, rate: float, found: dict[str, _Found], storm: Loaded) -> Section:
        what = "half load" if not self._rate else "as asked for"
        section = Section(
            "latency of new connections",
            f"{rate:,.0f}/s ({what}), {self._rounds} rounds of {self._seconds:g} s; {self._workers} workers or threads",
        )
        for name, each in found.items():
            for label, runs in (("left alone", each.alone), (f"{RELOADS_A_SECOND:g} reloads/s", each.reloading)):
                medians = [statistics.median(run.result["latency_ms"][key] for run in runs) for key in _PERCENTILES]
                text = " / ".join(f"{value:.1f}" for value in medians)
                section.tell(f"{name}, {label}: p50 / p99 / p99.9 / max, ms", text)
            ratio = each.ratio()
            if name == "hitlessd":
                section.aim_ratio("p99.9 during reloads / without", ratio, LATENCY)
            else:
                section.tell(f"{name}: p99.9 during reloads / without", f"{ratio.median:.2f} x")
        ours = [*found["hitlessd"].alone, *found["hitlessd"].reloading, storm]
        section.aim("connections that failed", sum(run.failed for run in ours), 0)
        section.aim("reloads that failed", sum(len(run.problems) for run in ours), 0)
        # A reload that is still under way when the load ends does not count.
        paced = statistics.median(run.reload_rate for run in found["hitlessd"].reloading)
        section.aim("reloads a second", paced, RELOADS_A_SECOND - 1 / self._seconds, at_most=False)
        section.tell("one reload after the other: reloads a second", f"{storm.reload_rate:.1f}")
        section.tell(
            "  p99.9, max of new connections, ms", "{p999:.1f}, {max:.1f}".format(**storm.result["latency_ms"])
        )
        for each in found.values():
            for run in (*each.alone, *each.reloading):
                section.problems += run.problems[:1] + run.result["errors"][:1]
        section.figures = {
            name: {key: [vars(run) for run in runs] for key, runs in vars(each).items()} for name, each in found.items()
        } | {"rate": rate, "storm": vars(storm)}
        return section
