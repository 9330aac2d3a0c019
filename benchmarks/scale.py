"""Whether cost stays flat: of a connection beside thousands of idle ones, to one of thousands of servers, through one
of thousands of proxies; what an idle connection takes; how long a large configuration takes to be reloaded; what main
does all day.

As everywhere, the proxy has CPU 0, load generator and backend share CPU 1, contenders take turns, and CPU time counts.
`python -m benchmarks.scale` runs this section alone, or some of its parts.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import itertools
import json
import re
import resource
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from benchmarks.figures import Sample, Series, Target, Work, ratio_of
from benchmarks.footprint import Footprint
from benchmarks.measure import LOAD_CPU, PROXY_CPU, compare, run_work
from benchmarks.moves import settle
from benchmarks.nginx import nginx_server
from benchmarks.proxies import Hitlessd, Proxy, haproxy_version
from benchmarks.report import show_verdict
from benchmarks.sections import Section, show
from benchmarks.shapes import KINDS, shaped
from benchmarks.targets import FLAT, IDLE_MEMORY
from benchmarks.tcp import small_works
from benchmarks.terminal import Terminal
from benchmarks.user import apply_unit_limit
from tests.support.backend import Backend
from tests.support.load import Load
from tests.support.processes import cpu_seconds

PARTS: Final = ("open", "servers", "proxies", "http", "memory", "large", "idling")
_SIZES: Final = (1, 100, 2000)
_OPEN: Final = (100, 1000, 10_000, 30_000)
_ALGORITHMS: Final = ("roundrobin", "leastconn", "random", "source", "source, consistent")
_TIMEOUT: Final = 60.0


def openable(hard: int) -> list[int]:
    """Numbers of idle connections to measure beside: as far as one worker's descriptors go, of which each takes two."""
    most = (hard - 1000) // 2 // 100 * 100
    return sorted({min(count, most) for count in _OPEN})


class Scale:
    """The parts of the benchmark. `tell` is told what is going on."""

    def __init__(
        self,
        directory: Path,
        quick: bool,
        rounds: int,
        haproxy: bool,
        tell: Callable[[str], None],
        parts: Sequence[str] = PARTS,
    ) -> None:
        self._directory = directory
        self._quick = quick
        self._rounds = rounds
        self._kinds = KINDS if haproxy else KINDS[:1]
        self._tell = tell
        self._parts = parts
        self._numbers = itertools.count()

    def sections(self) -> Iterator[Section]:
        """One part after the other."""
        for part in self._parts:
            yield from getattr(self, part)()

    def _proxy(self, kind: Any, server: int, cpu: int | None = PROXY_CPU, **of: Any) -> Proxy:
        proxy = shaped(kind, self._directory / f"scale{next(self._numbers)}", server, cpu, **of)
        proxy.name = f"{kind.name}, {next(self._numbers)}"
        return proxy

    def _works(self) -> list[Work]:
        return small_works(self._quick)

    # -- CPU ---------------------------------------------------------------------------------------------------------

    def open(self) -> Iterator[Section]:
        """Beside idle connections."""
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        counts = openable(hard)
        section = Section("beside open connections", f"idle ones, one worker with {hard:,} descriptors")
        groups: dict[str, list[tuple[int, Proxy]]] = {}
        with Backend(cpu=LOAD_CPU) as active, contextlib.ExitStack() as stack:
            for kind, count in itertools.product(self._kinds, counts):
                self._tell(f"{section.title}: {kind.name}, opening {count:,}")
                idle = stack.enter_context(Backend(cpu=LOAD_CPU))
                proxy = stack.enter_context(self._proxy(kind, idle.port, maxconn=count + 200))
                load = Load(proxy.targets, mode="idle", clients=count, max_open=count, timeout=_TIMEOUT, cpu=LOAD_CPU)
                stack.enter_context(load).wait_ready(2 * _TIMEOUT)
                groups.setdefault(kind.name, []).append((count, proxy))
            time.sleep(2.0)  # until all are parked
            self._flat(section, self._works(), groups, functools.partial(run_work, backend=active))
        yield section

    def servers(self) -> Iterator[Section]:
        """With many servers in the backend."""
        for algorithm in _ALGORITHMS:
            balance, _, consistent = algorithm.partition(", ")
            section = Section(f"servers, {algorithm}", "in one backend")
            more = {"balance": balance, "consistent": bool(consistent)}
            with Backend(cpu=LOAD_CPU) as backend, contextlib.ExitStack() as stack:
                groups = self._sizes(stack, "servers", backend.port, **more)
                run = functools.partial(run_work, backend=backend)
                self._flat(section, self._works()[:1], groups, run)
            yield section

    def proxies(self) -> Iterator[Section]:
        """With many proxies, each of which gets some."""
        section = Section("proxies", "with a listener and a server each; 64 of them are used, or all")
        with Backend(cpu=LOAD_CPU) as backend, contextlib.ExitStack() as stack:
            groups = self._sizes(stack, "proxies", backend.port)
            self._flat(section, self._works(), groups, functools.partial(_run_spread, backend=backend))
        yield section

    def http(self) -> Iterator[Section]:
        """Many servers and many proxies in HTTP mode."""
        work = Work("kept connection", "request", 1e6, "µs CPU", "/s", {}, lambda found: found["requests"])
        for what in ("servers", "proxies"):
            section = Section(f"http, {what}", "roundrobin, wrk with 64 kept connections")
            with (
                nginx_server(self._directory / f"nginx-{what}", LOAD_CPU) as (port, _),
                contextlib.ExitStack() as stack,
            ):
                groups = self._sizes(stack, what, port, mode="http")
                self._flat(section, [work], groups, functools.partial(_run_wrk, seconds=1 if self._quick else 3))
            yield section

    def _sizes(
        self, stack: contextlib.ExitStack, what: str, port: int, **more: Any
    ) -> dict[str, list[tuple[int, Proxy]]]:
        groups: dict[str, list[tuple[int, Proxy]]] = {}
        for kind, size in itertools.product(self._kinds, _SIZES):
            proxy = stack.enter_context(self._proxy(kind, port, **{what: size}, **more))
            groups.setdefault(kind.name, []).append((size, proxy))
        return groups

    def _flat(
        self,
        section: Section,
        works: Sequence[Work],
        groups: dict[str, list[tuple[int, Proxy]]],
        run: Callable[[Work, Proxy], Sample],
    ) -> None:
        """Compare the sizes of each program, and say what that gives."""
        everyone = [proxy for group in groups.values() for _, proxy in group]
        found = compare(works, everyone, run, self._rounds, lambda text: self._tell(f"{section.title}: {text}"))
        for work, (name, group) in itertools.product(works, groups.items()):
            every = [found[work.name][proxy.name] for _, proxy in group]
            sizes = [size for size, _ in group]
            section.figures.setdefault(name, {})[work.name] = {
                str(size): [sample.cost for sample in series.samples] for size, series in zip(sizes, every, strict=True)
            }
            text = "  ".join(
                f"{size:,}: {series.cost * work.scale:.1f}" for size, series in zip(sizes, every, strict=True)
            )
            section.tell(f"{name}, {work.name}, {work.shown}", text)
            for size, series in list(zip(sizes, every, strict=True))[1:]:
                ratio = ratio_of(_costs(series), _costs(every[0]))
                label = f"  {name}, {work.name}, {size:,} to {sizes[0]:,}"
                if name == "hitlessd":
                    section.aim_ratio(label.strip(), ratio, FLAT)
                else:
                    section.tell(label.strip(), f"{ratio.median:.2f} x ({ratio.low:.2f}..{ratio.high:.2f})")
        failed = sum(series.failed for each in found.values() for series in each.values())
        if failed:
            section.aim("failures", failed, 0)

    # -- the rest ----------------------------------------------------------------------------------------------------

    def memory(self) -> Iterator[Section]:
        """What an idle connection takes."""
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        # All are to be parked, for which there is a third of the descriptors: two a connection, and pipes.
        count = 2000 if self._quick else min(openable(hard)[-1], hard // 7)
        section = Section("memory of an idle connection", f"{count:,} of them, proportional set size of all processes")
        footprint = Footprint(self._directory, count, self._tell)
        sizes: dict[str, dict[str, float]] = {}
        for kind in self._kinds:
            for mode in ("tcp", "http"):
                for crash_proof in (True, False) if kind is KINDS[0] else (True,):
                    name = f"{kind.name}{'' if crash_proof else ', not parked'}"
                    size = footprint.of(kind, mode, crash_proof)
                    sizes.setdefault(mode, {})[name] = size
                    section.tell(f"{mode}, {name}", f"{size:,.0f} bytes")
        for mode, each in sizes.items():
            if "haproxy" in each:
                section.aim(f"{mode}, hitlessd to haproxy", each["hitlessd"] / each["haproxy"], IDLE_MEMORY, " x")
        section.figures = sizes
        yield section

    def large(self) -> Iterator[Section]:
        """Start and reload of a large configuration."""
        for servers, binds in ((2000, 1), (1, 1000), (2000, 1000)):
            section = Section("large configuration", f"{servers:,} servers, {binds:,} binds, one worker or thread")
            for kind in self._kinds:
                self._tell(f"{section.title}: {kind.name}, {section.note}")
                proxy = self._proxy(kind, 9, None, servers=servers, binds=binds)
                began = time.monotonic()
                with proxy:
                    started = time.monotonic() - began
                    times = [_reload(proxy) for _ in range(4 if self._quick else 15)]
                    section.tell(f"{kind.name}, start", f"{started * 1000:.0f} ms")
                    section.tell(f"{kind.name}, reload, median", f"{statistics.median(times) * 1000:.0f} ms")
                    section.figures[kind.name] = {"start": started, "reload": times}
                    if isinstance(proxy, Hitlessd):
                        for phase, seconds in _phases(proxy).items():
                            section.tell(f"  {phase}, average", f"{seconds * 1000:.1f} ms")
                            section.figures[kind.name].setdefault("phases", {})[phase] = seconds
            yield section

    def idling(self) -> Iterator[Section]:
        """What goes on while nobody connects."""
        seconds = 10 if self._quick else 30
        section = Section("2,000 checked servers", f"a TCP check of each every 2 s, for {seconds} s; what answers cost")
        with Backend(mode="echo") as backend:
            for kind in self._kinds:
                self._tell(f"{section.title}: {kind.name}")
                with self._proxy(kind, backend.port, None, servers=2000, inter=2) as proxy:
                    time.sleep(2.5)  # the first round
                    before = proxy.cpu_used()
                    time.sleep(seconds)
                    share = (proxy.cpu_used() - before) / seconds
                    section.tell(f"{kind.name}, CPU", f"{share:.1%}")
                    section.tell(f"{kind.name}, a check", f"{share * 1e6 / 1000:.0f} µs CPU")
                    section.figures[kind.name] = {"share": share}
                    for command in ("show stat", "show info", "show servers state"):
                        cost = _cost(proxy, command)
                        section.tell(f"{kind.name}, {command}", f"{cost * 1000:.1f} ms CPU")
                        section.figures[kind.name][command] = cost
        yield section


def _costs(series: Series) -> list[float]:
    return [sample.cost for sample in series.samples]


def _reload(proxy: Proxy) -> float:
    elapsed = proxy.reload_directly() if isinstance(proxy, Hitlessd) else proxy.reload()
    settle(proxy, 1 + proxy.workers if isinstance(proxy, Hitlessd) else 1)
    return elapsed


def _phases(proxy: Hitlessd) -> dict[str, float]:
    """Seconds a reload, by phase, on average."""
    answer = json.loads(proxy.ask("show reloads json"))
    rows = answer if isinstance(answer, list) else answer.get("reloads", [])
    found: dict[str, list[float]] = {}
    for row in rows:
        for phase, seconds in row.get("phases", []):
            found.setdefault(phase, []).append(float(seconds))
    return {phase: statistics.fmean(values) for phase, values in found.items()}


def _cost(proxy: Proxy, command: str, times: int = 10) -> float:
    before = proxy.cpu_used()
    for _ in range(times):
        proxy.ask(command)
    return (proxy.cpu_used() - before) / times


def _run_spread(work: Work, proxy: Proxy, backend: Backend) -> Sample:
    """run_work() with connections to up to 64 of the listeners."""
    step = max(1, len(proxy.targets) // 64)
    targets = proxy.targets[::step][:64]
    cpu, backend_cpu = proxy.cpu_used(), cpu_seconds(backend.pid)
    with Load(targets, cpu=LOAD_CPU, progress=0, **work.settings) as load:
        result = load.result(600)
    cpu, backend_cpu = proxy.cpu_used() - cpu, cpu_seconds(backend.pid) - backend_cpu
    load_cpu = result["cpu"]["user"] + result["cpu"]["system"] + backend_cpu
    return Sample(work.units(result), result["elapsed"], cpu, load_cpu, 0.0, result["failed"] + result["unfinished"])


def _run_wrk(work: Work, proxy: Proxy, seconds: int) -> Sample:
    # One of many proxies is enough: what the others cost is asked.
    target = proxy.targets[len(proxy.targets) // 2]
    cpu = proxy.cpu_used()
    began = time.monotonic()
    command = ["taskset", "-c", str(LOAD_CPU), "wrk", "-t1", "-c64", f"-d{seconds}s", f"http://{target}/"]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=True)
    found = re.search(r"(\d+) requests in", done.stdout)
    errors = re.search(r"Non-2xx or 3xx responses: (\d+)", done.stdout)
    requests = int(found[1]) if found else 0
    return Sample(requests, time.monotonic() - began, proxy.cpu_used() - cpu, 0.0, 0.0, int(errors[1]) if errors else 0)


def main(argv: Sequence[str] | None = None) -> int:
    """Run this section alone; returns its exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scale", description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"which of {', '.join(PARTS)}; all by default")
    parser.add_argument("--quick", action="store_true", help="less work, two rounds: for a look, not for a figure")
    parser.add_argument("--rounds", type=int, help="turns that each contender has (5)")
    options = parser.parse_args(argv)
    unknown = set(options.parts) - set(PARTS)
    if unknown:
        parser.error(f"unknown part {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    apply_unit_limit()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    out = Terminal()
    targets: list[Target] = []
    with tempfile.TemporaryDirectory(prefix="hitlessd-scale-") as directory:
        rounds = options.rounds or (2 if options.quick else 5)
        scale = Scale(
            Path(directory),
            options.quick,
            rounds,
            bool(haproxy_version()),
            lambda text: out.draw([f"  {out.paint('…', 'yellow')} {text}"]),
            options.parts or PARTS,
        )
        for section in scale.sections():
            show(out, section)
            targets += section.targets
    out.erase()
    show_verdict(out, targets)
    return 0


if __name__ == "__main__":
    sys.exit(main())
