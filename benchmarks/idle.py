"""Thousands of idle connections: the memory of each, and what a connection costs beside them."""

from __future__ import annotations

import contextlib
import re
import resource
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final

from benchmarks.figures import Comparison, Sample, Work
from benchmarks.measure import LOAD_CPU, PROXY_CPU, compare, run_work
from benchmarks.proxies import Haproxy, Hitlessd, Proxy, haproxy_version
from benchmarks.sections import Section
from benchmarks.targets import IDLE_MEMORY
from benchmarks.tcp import small_works
from tests.support.backend import Backend
from tests.support.load import Load
from tests.support.processes import free_port

__all__ = ["Idle", "most_idle"]

_WANTED: Final = 10_000
_SPARE: Final = 400
_TIMEOUT: Final = 60.0


def most_idle(limit: int, wanted: int = _WANTED) -> int:
    """Connections that a process may hold under a limit of `limit` descriptors, with two for each."""
    return max(100, min(wanted, (limit // 2 - 2 * _SPARE) // 100 * 100))


class _Patient(Proxy):
    """Keeps idle connections, and as many as are asked for."""

    maxconn = _WANTED

    def text(self, listen: Sequence[int], servers: Sequence[int]) -> str:
        text = super().text(listen, servers)
        text = re.sub(r"maxconn( = | )4000", rf"maxconn\g<1>{self.maxconn + _SPARE}", text)
        return re.sub(r"timeout (client|server)( = | )1m", r"timeout \1\g<2>10m", text)


class PatientHaproxy(_Patient, Haproxy):
    """haproxy, more patient."""


class PatientHitlessd(_Patient, Hitlessd):
    """hitlessd, more patient."""


def kernel_memory() -> int:
    """Bytes that the kernel's own objects take on the whole machine: /proc/meminfo, Slab."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("Slab:"))


class Idle:
    """The section `idle`. `tell` is told what is going on."""

    def __init__(self, directory: Path, quick: bool, rounds: int, tell: Callable[[str], None]) -> None:
        self._directory = directory
        self._quick = quick
        self._rounds = rounds
        self._tell = tell
        self._clients = most_idle(resource.getrlimit(resource.RLIMIT_NOFILE)[1], 2000 if quick else _WANTED)

    def sections(self) -> Iterator[Section | Comparison]:
        """Memory; then what a connection and a request cost beside them all."""
        section = Section("idle connections", f"{self._clients:,}, mode tcp; memory a connection")
        kinds: list[type[PatientHaproxy | PatientHitlessd]] = [PatientHaproxy] if haproxy_version() else []
        own: dict[str, float] = {}
        with contextlib.ExitStack() as stack:
            proxies: list[Proxy] = []
            before: dict[str, int] = {}
            loads: list[Load] = []
            backends: dict[str, Backend] = {}
            for kind in (*kinds, PatientHitlessd):
                # A backend and a load generator each: they have limits of their own.
                backend = stack.enter_context(Backend(cpu=LOAD_CPU))
                proxy = kind(self._directory / f"idle-{kind.name}", [free_port()], [backend.port], cpu=PROXY_CPU)
                proxy.maxconn, backends[proxy.name] = self._clients, backend
                proxies.append(stack.enter_context(proxy))
                before[proxy.name], slab = proxy.memory(), kernel_memory()
                self._tell(f"opening {self._clients:,} idle connections: {proxy.name}")
                load = Load(
                    proxy.targets, mode="idle", clients=self._clients, timeout=_TIMEOUT, cpu=LOAD_CPU, progress=0
                )
                loads.append(stack.enter_context(load))
                load.wait_ready(2 * _TIMEOUT)
                grown = (kernel_memory() - slab) / self._clients
                section.tell(f"{proxy.name}: kernel, for both connections and all four ends", f"{grown:,.0f} B")
                section.figures[f"{proxy.name}, kernel"] = grown
            works = small_works(True)

            def run(work: Work, proxy: Proxy) -> Sample:
                return run_work(work, proxy, backends[proxy.name])

            found = compare(works, proxies, run, self._rounds, self._tell)
            for each in proxies:
                own[each.name] = (each.memory() - before[each.name]) / self._clients
                section.tell(f"{each.name}: its processes, private", f"{own[each.name]:,.0f} B")
            results = [load.stop(2 * _TIMEOUT) for load in loads]
        section.figures |= {"clients": self._clients, "private": own}
        if "haproxy" in own:
            section.aim("hitlessd / haproxy", own["hitlessd"] / own["haproxy"], IDLE_MEMORY, " x")
        section.aim("idle connections that failed", sum(x["failed"] + x["unfinished"] for x in results), 0)
        yield section
        for work in works:
            comparison = Comparison(work, found[work.name], beside=f"beside {self._clients:,} idle")
            comparison.count_failures()
            yield comparison
