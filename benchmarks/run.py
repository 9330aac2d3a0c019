"""Side by side with haproxy: CPU a connection, a request and a gigabyte; requests in HTTP mode, with nginx beside; the
time of a reload; reloads under load; what a reload costs those who are connected, with haproxy where it can be
compared; and what it costs to survive a crash.

Each proxy has CPU 0 to itself, load generator and backend share CPU 1; the proxies take turns, medians count. Absolute
figures hold for one run on one machine: compare the ratios.
"""

import argparse
import functools
import json
import os
import platform
import signal
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks import measure, report
from benchmarks.http import SETTINGS, HttpComparison
from benchmarks.measure import LOAD_CPU, PROXY_CPU, Loaded, Series
from benchmarks.migration import Migration, show
from benchmarks.parking import Parking
from benchmarks.proxies import Haproxy, Hitlessd, Proxy, haproxy_version
from benchmarks.report import Target
from benchmarks.terminal import Terminal
from hitlessd import __version__
from tests.support.backend import Backend
from tests.support.processes import free_ports, raise_descriptor_limit

SECTIONS = ("work", "http", "reload", "load", "migrate", "parking")

# The targets: CPU and reload time from what a user of haproxy would accept; see docs/ARCHITECTURE.md.
CPU_RATIO = {"one request a connection": 1.10, "bulk, 64 MiB down": 0.5}
RELOAD_MS = 250.0
RELOADS_A_SECOND = 4.0
LOAD_RATE = 2500.0


class Run:
    """One run of the benchmark: where it writes, what it found."""

    def __init__(self, options: argparse.Namespace, out: Terminal, directory: Path) -> None:
        self.options = options
        self.out = out
        self.directory = directory
        self.targets: list[Target] = []
        self.figures: dict[str, Any] = {}
        self.haproxy = haproxy_version()

    def tell(self, text: str) -> None:
        """What is going on, while it is going on."""
        self.out.draw([f"  {self.out.paint('…', 'yellow')} {text}"])

    def _proxies(
        self, kinds: Sequence[Callable[..., Proxy]], backend: Backend, cpu: int | None, **more: Any
    ) -> list[Proxy]:
        return [
            kind(self.directory / f"proxy{index}-{cpu}", free_ports(1), [backend.port], cpu=cpu, **more)
            for index, kind in enumerate(kinds)
        ]

    def work(self) -> None:
        """Traffic: what a unit of it costs."""
        kinds = measure.works(self.options.quick)
        with Backend(cpu=LOAD_CPU) as backend:
            contenders: list[Callable[..., Proxy]] = [Haproxy, Hitlessd] if self.haproxy else [Hitlessd]
            proxies = self._proxies(contenders, backend, PROXY_CPU)
            splicing = Haproxy(self.directory / "splicing", free_ports(1), [backend.port], cpu=PROXY_CPU, splice=True)
            splicing.name = "haproxy, splice"
            running: list[Proxy] = []
            try:
                for proxy in [*proxies, splicing] if self.haproxy else proxies:
                    proxy.start()
                    running.append(proxy)
                run = functools.partial(measure.run_work, backend=backend)
                found = measure.compare(kinds[:2], proxies, run, self.options.rounds, self.tell)
                found |= measure.compare(kinds[2:], running, run, self.options.rounds, self.tell)
            finally:
                for proxy in running:
                    proxy.stop()
        for work in kinds:
            series = found[work.name]
            self.figures.setdefault("work", {})[work.name] = report.work_figures(series)
            target = self._cpu_target(work.name, series)
            report.show_work(self.out, work, series, [target] if target else [])
            failed = sum(each.failed for each in series.values())
            if failed:
                self.targets.append(Target(f"{work.name}: failures", failed, 0, ""))

    def _cpu_target(self, name: str, series: dict[str, Series]) -> Target | None:
        if name not in CPU_RATIO or "haproxy" not in series:
            return None
        target = Target(f"CPU, {name}", series["hitlessd"].cost / series["haproxy"].cost, CPU_RATIO[name], " x")
        self.targets.append(target)
        return target

    def http(self) -> None:
        """Requests in HTTP mode: what one costs."""
        comparison = HttpComparison(self.directory, self.options.quick, self.options.rounds, self.tell)
        for work, series, targets in comparison.sections():
            self.figures.setdefault("http", {})[work.name] = report.work_figures(series)
            report.show_work(self.out, work, series, targets)
            self.targets += targets
        self.figures["http"]["settings"] = SETTINGS
        report.show_notes(self.out, SETTINGS)

    def reload(self) -> None:
        """The time of a reload, nothing else going on."""
        count = 5 if self.options.quick else 20
        proxies: list[Proxy] = []
        kinds: list[type[Proxy]] = [Haproxy, Hitlessd] if self.haproxy else [Hitlessd]
        try:
            for index, kind in enumerate(kinds):
                ports = free_ports(20)
                proxies.append(
                    kind(self.directory / f"reload{index}", ports[:10], ports[10:], workers=self.options.workers)
                )
                proxies[-1].start()
            times = measure.reload_times(proxies, count, self.tell)
        finally:
            for proxy in proxies:
                proxy.stop()
        target = Target("reload", times["hitlessd"].median * 1000, RELOAD_MS, " ms")
        self.targets.append(target)
        note = f"10 listeners, 10 servers, workers or threads: {self.options.workers}, {count} times"
        report.show_reloads(self.out, times, target, note)
        self.figures["reload"] = {name: each.values for name, each in times.items()}

    def load(self) -> None:
        """Reloads one after the other while connections arrive."""
        total = 5000 if self.options.quick else 25000
        runs: dict[str, Loaded] = {}
        with Backend() as backend:
            for kind in (Haproxy, Hitlessd) if self.haproxy else (Hitlessd,):
                for reloads in (False, True):
                    name = f"{kind.name}, {'reloading' if reloads else 'left alone'}"
                    self.tell(f"{total} connections: {name}")
                    ports = free_ports(2)
                    directory = self.directory / f"load-{kind.name}-{reloads}"
                    with kind(directory, ports, [backend.port], workers=self.options.workers) as proxy:
                        runs[name] = measure.under_load(proxy, self.options.rate, total, reloads)
        ours = runs["hitlessd, reloading"]
        targets = [
            Target("connections failed", ours.failed, 0, ""),
            Target("reloads failed", len(ours.problems), 0, ""),
            Target("reloads a second", ours.reload_rate, RELOADS_A_SECOND, "", at_most=False),
            # What the load generator can start in time is a hair less than asked for.
            Target("connections a second", ours.result["rate"], self.options.rate * 0.98, "", at_most=False),
        ]
        self.targets += targets
        note = f"{total:,} connections at {self.options.rate:,.0f}/s, workers or threads: {self.options.workers}"
        report.show_under_load(self.out, runs, targets, note)
        self.figures["load"] = {
            name: {
                "result": run.result,
                "reloads": run.reloads,
                "reloads_per_second": run.reload_rate,
                "problems": run.problems,
            }
            for name, run in runs.items()
        }

    def migrate(self) -> None:
        """What a reload costs those who are connected."""
        migration = Migration(self.directory, self.options.quick, self.options.rate, bool(self.haproxy), self.tell)
        for section in migration.sections():
            show(self.out, section)
            self.targets += section.targets
            self.figures.setdefault("migrate", {})[section.title] = section.figures

    def parking(self) -> None:
        """What it costs to survive a crash."""
        rounds = self.options.rounds if self.options.quick else 4 * self.options.rounds
        for section in Parking(self.directory, self.options.quick, rounds, self.tell).sections():
            show(self.out, section)
            self.targets += section.targets
            self.figures.setdefault("parking", {})[section.title] = section.figures


def _machine() -> dict[str, Any]:
    model = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if "model name" in line
        ),
        platform.machine(),
    )
    return {
        "cpu": model,
        "cpus": len(os.sched_getaffinity(0)),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "hitlessd": __version__,
        "haproxy": haproxy_version(),
        "load_average": os.getloadavg()[0],
    }


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    add = parser.add_argument
    add("sections", nargs="*", metavar="SECTION", help=f"which of {', '.join(SECTIONS)}; all by default")
    add("--quick", action="store_true", help="a fifth of the work, two rounds: for a look, not for a figure")
    add("--rounds", type=int, help="turns that each proxy has (5)")
    add("--rate", type=float, default=LOAD_RATE, help="connections a second for reloads under load (%(default)g)")
    add("--workers", type=int, default=1, help="workers or threads where reloads are measured (%(default)d)")
    add("--json", metavar="FILE", type=Path, help="write all figures there")
    add("--check", action="store_true", help="exit with 1 if a target is missed")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark; returns its exit status."""
    parser = _parser()
    options = parser.parse_args(argv)
    unknown = set(options.sections) - set(SECTIONS)
    if unknown:
        parser.error(f"unknown section {', '.join(sorted(unknown))}; there are {', '.join(SECTIONS)}")
    options.rounds = options.rounds or (2 if options.quick else 5)
    raise_descriptor_limit()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    out = Terminal()
    machine = _machine()
    facts = [
        f"{machine['cpu']}, {machine['cpus']} CPUs; Linux {machine['kernel']}; Python {machine['python']}",
    ]
    if options.sections != ["migrate"]:
        facts.append(
            f"proxy on CPU {PROXY_CPU}, load generator and backend on CPU {LOAD_CPU}; "
            f"{options.rounds} rounds in turn, medians"
        )
    if machine["load_average"] > 0.5:
        facts.append(f"the machine is busy (load average {machine['load_average']:.1f}): rates and times suffer")
    if not machine["haproxy"]:
        facts.append("there is no haproxy here to compare with")
    beside = f" beside haproxy {machine['haproxy']}" if machine["haproxy"] else ""
    report.show_header(out, f"hitlessd {machine['hitlessd']}{beside}", facts)
    with tempfile.TemporaryDirectory(prefix="hitlessd-bench-") as directory:
        run = Run(options, out, Path(directory))
        for section in options.sections or SECTIONS:
            getattr(run, section)()
    out.erase()
    report.show_verdict(out, run.targets)
    if options.json:
        figures = {"machine": machine, "targets": [target.as_dict() for target in run.targets], **run.figures}
        options.json.write_text(json.dumps(figures, indent=1) + "\n")
    return 1 if options.check and not all(target.met for target in run.targets) else 0


if __name__ == "__main__":
    sys.exit(main())
