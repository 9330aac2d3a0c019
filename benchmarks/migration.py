"""What a reload costs those who are connected: gaps, time, memory, throughput, and what is left of older generations.

Each part returns a Section: rows for a table, targets, and figures for a program. The processes of proxy, load
generator and backend share all CPUs. Sizes of memory are proportional set sizes.
"""

import contextlib
import itertools
import re
import resource
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from benchmarks.moves import PATIENCE, PROCESSES, WORKERS, Balancer, Master, Reload, pss, settle
from benchmarks.proxies import Hitlessd, Proxy
from benchmarks.sections import Section, show
from benchmarks.targets import MOVED_S
from tests.support.backend import Backend
from tests.support.load import Load
from tests.support.processes import free_ports
from tests.support.visitors import Conversation

__all__ = ["Migration", "Section", "most_idle", "moved", "show"]

_TIMEOUT: Final = 60.0
_MIB: Final = 1 << 20

GAP_MS: Final = 100.0
GONE_S: Final = 1.0
MEMORY: Final = 1.1
THROUGHPUT: Final = 0.7


def most_idle(hard: int) -> int:
    """Connections that a limit of `hard` descriptors a process allows.

    A worker needs two for each, and may get far more than its share while they move; the load generator and the
    backend need one for each.
    """
    return max(100, min(30_000, hard // 2) // 100 * 100)


class Migration:
    """The parts of the benchmark. `tell` is told what is going on."""

    def __init__(self, directory: Path, quick: bool, rate: float, haproxy: bool, tell: Callable[[str], None]) -> None:
        self._directory = directory
        self._quick = quick
        self._rate = rate
        self._haproxy = haproxy
        self._tell = tell
        self._numbers = itertools.count()

    def sections(self) -> Iterator[Section]:
        """One part after the other."""
        for part in (self.flows, self.idle, self.generations, self.transfers, self.arrivals):
            yield part()

    def _balancer(self, servers: Sequence[int], listen: int = 1, maxconn: int = 4000) -> Balancer:
        return Balancer(self._directory / f"migrate{next(self._numbers)}", free_ports(listen), servers, maxconn)

    def _count(self, full: int, quick: int) -> int:
        return quick if self._quick else full

    def flows(self) -> Section:
        """Bytes that flow all the time, through reloads and without them."""
        streams, reloads = self._count(1000, 300), self._count(50, 10)
        section = Section("streams", f"{streams:,} connections, bytes both ways all the time, {reloads} reloads")
        gaps, seconds, moves = {}, 0.0, []
        for name in ("reloading", "left alone"):
            self._tell(f"{section.title}: {name}")
            with Backend() as backend, self._balancer([backend.port]) as proxy:
                with Load(proxy.targets, mode="stream", clients=streams, interval=0.25, timeout=_TIMEOUT) as load:
                    load.wait_ready(_TIMEOUT)
                    began = time.monotonic()
                    if name == "reloading":
                        moves = [proxy.move() for _ in range(reloads)]
                        seconds = time.monotonic() - began
                    else:
                        _pass(load, seconds)
                    result = load.stop(2 * _TIMEOUT)
                counters = backend.counters()
            section.problems += result["errors"][:3]
            broken = result["failed"] + result["unfinished"] - result["failures"]["corrupt"]
            corrupt = result["failures"]["corrupt"] + counters["corrupt"]
            section.aim(f"broken, {name}", broken, 0)
            section.aim(f"corrupt, {name}", corrupt, 0)
            gaps[name] = result["gap_ms"]
            section.figures[name] = {"result": result, "backend": counters}
        for name, gap in gaps.items():
            section.tell(f"longest wait for owed bytes, {name}", f"{gap['max']:.0f} ms")
            section.tell("  median of the longest of each connection", f"{gap['p50']:.0f} ms")
        section.aim(
            "longest gap more than without reloads", gaps["reloading"]["max"] - gaps["left alone"]["max"], GAP_MS, " ms"
        )
        _leaving(section, moves)
        return section

    def idle(self) -> Section:
        """As many idle connections as fit: time and memory."""
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        clients, last = self._count(most_idle(hard), min(2000, most_idle(hard))), self._count(20, 6)
        section = Section("idle", f"{clients:,} idle connections ({hard:,} descriptors a process), {WORKERS} workers")
        moves: list[Reload] = []
        memory: dict[int, int] = {}
        with (
            Backend(["127.0.0.1:0"] * 2) as backend,
            self._balancer(backend.ports, listen=2, maxconn=clients + 100) as proxy,
            Load(proxy.targets, mode="idle", clients=clients, timeout=_TIMEOUT) as load,
        ):
            self._tell(f"opening {clients:,} idle connections")
            load.wait_ready(2 * _TIMEOUT)
            memory[1] = pss(proxy.processes())
            for generation in range(2, last + 1):
                self._tell(f"{clients:,} idle connections: reload {generation - 1}")
                moves.append(proxy.move())
                if generation in (2, last):
                    memory[generation] = pss(proxy.processes())
            log = proxy.log
            self._tell(f"asking {clients:,} idle connections")
            result = load.stop(4 * _TIMEOUT)
        section.problems += result["errors"][:3]
        section.aim("lost", result["failed"] + result["unfinished"], 0)
        times = moved(log)
        if times:
            section.tell("time of the move, median", f"{sorted(times)[len(times) // 2] * 1000:.0f} ms")
        longest = max(times, default=max(move.seconds + move.leaving for move in moves))
        section.aim("time of the move for 10,000 connections, longest", longest * 10_000 / clients, MOVED_S, " s")
        section.tell("reload until its answer, longest", f"{max(move.seconds for move in moves) * 1000:.0f} ms")
        _leaving(section, moves)
        for generation, size in memory.items():
            section.tell(f"memory of generation {generation}", f"{size / _MIB:.1f} MiB")
        section.aim("memory of generation 2 / 1", memory[2] / memory[1], MEMORY, " x")
        section.aim(f"memory of generation {last} / 2", memory[last] / memory[2], MEMORY, " x")
        section.figures = {
            "clients": clients,
            "moves": [vars(move) for move in moves],
            "times": times,
            "memory": memory,
            "result": result,
        }
        return section

    def generations(self) -> Section:
        """Long-lived connections in every generation: what is left of the older ones."""
        reloads, each = self._count(20, 6), 10
        section = Section("generations", f"{reloads} reloads, {each} long-lived connections opened in each generation")
        with Backend(mode="echo") as backend:
            proxies: list[Proxy] = [self._balancer([backend.port])]
            if self._haproxy:
                directory = self._directory / f"migrate{next(self._numbers)}"
                proxies.append(Master(directory, free_ports(1), [backend.port], workers=WORKERS))
            for proxy in proxies:
                with proxy, contextlib.ExitStack() as stack:
                    before = proxy.processes()
                    first, callers = pss(before), []
                    for number in range(reloads):
                        self._tell(f"{proxy.name}: reload {number + 1} of {reloads}")
                        for _ in range(each):
                            callers.append(stack.enter_context(Conversation(proxy.listen[0])))
                            callers[-1].say()
                        proxy.reload()
                    settle(proxy, len(before))
                    pids = proxy.processes()
                    size, lost = pss(pids), sum(not _answers(caller) for caller in callers)
                ours = isinstance(proxy, Hitlessd)
                if ours:
                    section.aim(f"{proxy.name}: processes afterwards ({len(before)} at first)", len(pids), len(before))
                else:
                    section.tell(f"{proxy.name}: processes afterwards ({len(before)} at first)", str(len(pids)))
                section.tell(f"{proxy.name}: memory afterwards ({first / _MIB:.1f} at first)", f"{size / _MIB:.1f} MiB")
                if ours:
                    section.aim(f"{proxy.name}: connections lost of {len(callers)}", lost, 0)
                else:
                    section.tell(f"{proxy.name}: connections lost of {len(callers)}", str(lost))
                section.figures[proxy.name] = {"processes": len(pids), "pss": size, "pss_before": first, "lost": lost}
        return section

    def transfers(self) -> Section:
        """Four downloads and four uploads at a time: every byte, and how fast."""
        size, reloads, pause = self._count(256, 64) * _MIB, self._count(20, 5), 0.5
        note = f"4 downloads and 4 uploads of {size // _MIB} MiB at a time, {reloads} reloads"
        section = Section("transfers", note)
        rates: dict[str, float] = {}
        moves: list[Reload] = []
        with Backend() as backend, self._balancer([backend.port]) as proxy, contextlib.ExitStack() as stack:
            loads = [
                stack.enter_context(
                    Load(proxy.targets, mode="bulk", direction=direction, clients=4, size=size, timeout=_TIMEOUT)
                )
                for direction in ("down", "up")
            ]
            for name in ("left alone", "reloading", "left alone again"):
                self._tell(f"{section.title}: {name}")
                marks = [_pass(load, 0.3) for load in loads]
                for _ in range(reloads):
                    began = time.monotonic()
                    if name == "reloading":
                        moves.append(proxy.move())
                    _pass(loads[0], pause - (time.monotonic() - began))
                rates[name] = sum(_rate(mark, _pass(load, 0.2)) for mark, load in zip(marks, loads, strict=True))
            results = [load.stop(4 * _TIMEOUT) for load in loads]
            counters = backend.counters()
        section.problems += [error for result in results for error in result["errors"][:3]]
        section.tell("transfers in all", str(sum(result["done"] for result in results)))
        section.aim("broken or altered", sum(x["failed"] + x["unfinished"] for x in results) + counters["corrupt"], 0)
        for name, rate in rates.items():
            section.tell(f"throughput, {name}", f"{rate / _MIB:,.0f} MiB/s")
        alone = (rates["left alone"] + rates["left alone again"]) / 2
        section.aim("throughput while reloading / without", rates["reloading"] / alone, THROUGHPUT, " x", at_most=False)
        _leaving(section, moves)
        section.figures = {"rates": rates, "results": results, "moves": [vars(move) for move in moves]}
        return section

    def arrivals(self) -> Section:
        """New connections and old ones while one reload follows the other."""
        total, streams = int(self._rate * self._count(20, 4)), 200
        note = f"{total:,} connections at {self._rate:,.0f}/s, {streams} that stay, one reload after the other"
        section = Section("arrivals", note)
        self._tell(f"{section.title}: {note}")
        reloads = 0
        with (
            Backend() as backend,
            self._balancer([backend.port]) as proxy,
            Load(proxy.targets, mode="stream", clients=streams, interval=0.25, timeout=_TIMEOUT) as old,
        ):
            old.wait_ready(_TIMEOUT)
            with Load(proxy.targets, rate=self._rate, total=total, timeout=_TIMEOUT) as new:
                began = time.monotonic()
                while new.running:
                    proxy.reload()
                    reloads += 1
                seconds = time.monotonic() - began
                arrived = new.result(_TIMEOUT)
            stayed = old.stop(2 * _TIMEOUT)
            settle(proxy, PROCESSES)
            left = len(proxy.processes())
        section.problems += arrived["errors"][:3] + stayed["errors"][:3]
        section.aim("new connections that failed", arrived["failed"] + arrived["unfinished"], 0)
        section.aim("old connections that failed", stayed["failed"] + stayed["unfinished"], 0)
        section.tell("new connections a second", f"{arrived['rate']:,.0f}")
        section.tell("their latency, 99th percentile", f"{arrived['latency_ms']['p99']:.0f} ms")
        section.tell("their latency, longest", f"{arrived['latency_ms']['max']:.0f} ms")
        section.tell("reloads a second", f"{reloads / seconds:.1f}")
        section.aim("processes afterwards", left, PROCESSES)
        section.figures = {"new": arrived, "old": stayed, "reloads": reloads}
        return section


def moved(log: str) -> list[float]:
    """How long each move took, in seconds, from the log."""
    return [int(found) / 1000 for found in re.findall(r" done: .* connections moved in (\d+) ms", log)]


def _leaving(section: Section, moves: Sequence[Reload]) -> None:
    section.aim("old generation gone after the answer, longest", max(move.leaving for move in moves), GONE_S, " s")
    if left := sum(bool(move.left) for move in moves):
        section.problems.append(
            f"after {left} of {len(moves)} reloads, older processes stayed, for {PATIENCE:g} s at least once"
        )


def _pass(load: Load, seconds: float) -> dict[str, Any]:
    """Let that much time pass for the load; returns the progress event then."""
    now = load.progress.get("t", 0.0)
    return load.wait_for(
        lambda event: event["event"] == "progress" and event["t"] > now + seconds, seconds + _TIMEOUT, "time passes"
    )


def _rate(before: dict[str, Any], after: dict[str, Any]) -> float:
    """Bytes a second between two progress events."""
    return float((after["bytes"] - before["bytes"]) / (after["t"] - before["t"]))


def _answers(caller: Conversation) -> bool:
    try:
        caller.say()
    except (OSError, AssertionError):
        return False
    return True
