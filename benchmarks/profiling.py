"""`python -m benchmarks --profile WORK`: where a proxy's time goes: its system calls a unit, and a flame graph of ours.

strace counts and perturbs: its counts are exact, its times are not. The flame graph is py-spy's, or without it what
perf saw, as text.
"""

from __future__ import annotations

import contextlib
import functools
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

from benchmarks.figures import Sample, Work
from benchmarks.http import HttpHaproxy, HttpHitlessd, http_works, run_wrk, write_script
from benchmarks.measure import LOAD_CPU, PROXY_CPU, run_work
from benchmarks.nginx import nginx_server
from benchmarks.proxies import Haproxy, Hitlessd, Proxy, haproxy_version
from benchmarks.tcp import bulk_works, small_works
from benchmarks.terminal import Terminal, pad
from tests.support.backend import Backend
from tests.support.processes import Process, free_port, poll_until

__all__ = ["WORKS", "calls_of", "profile"]

WORKS: Final = ("tcp-single", "tcp-kept", "bulk", "http-single", "http-kept")
_PYSPY: Final = Path(sys.executable).with_name("py-spy")
_LINE: Final = re.compile(r"^\s*[\d.]+\s+[\d.]+\s+\d+\s+(\d+)\s+(?:\d+\s+)?([a-z]\w+)$", re.MULTILINE)


def calls_of(text: str) -> dict[str, int]:
    """Calls by name from what `strace -c` has written."""
    return {name: int(count) for count, name in _LINE.findall(text) if name != "total"}


@contextlib.contextmanager
def _set_up(work: str, directory: Path) -> Iterator[tuple[Work, list[Proxy], Callable[[Work, Proxy], Sample]]]:
    kinds: tuple[type[Haproxy], type[Hitlessd]]
    with contextlib.ExitStack() as stack:
        run: Callable[[Work, Proxy], Sample]
        if work.startswith("http"):
            port, server = stack.enter_context(nginx_server(directory / "server", LOAD_CPU))
            run = functools.partial(run_wrk, server=server, script=write_script(directory))
            kinds, chosen = (HttpHaproxy, HttpHitlessd), http_works(1, True)[work == "http-single"]
        else:
            backend = stack.enter_context(Backend(cpu=LOAD_CPU))
            port, run = backend.port, functools.partial(run_work, backend=backend)
            small = small_works(True)
            kinds = (Haproxy, Hitlessd)
            chosen = bulk_works(True)[0] if work == "bulk" else small[work == "tcp-kept"]
        proxies: list[Proxy] = [
            kind(directory / kind.name, [free_port()], [port], cpu=PROXY_CPU)
            for kind in (kinds if haproxy_version() else kinds[1:])
        ]
        for proxy in proxies:
            stack.enter_context(proxy)
        yield chosen, proxies, run


def profile(work: str, directory: Path, results: Path, out: Terminal) -> None:
    """Profile one of WORKS; writes files to `results`. RuntimeError if strace is missing or refused."""
    strace = shutil.which("strace")
    if strace is None:
        raise RuntimeError("cannot count system calls: there is no strace")
    results.mkdir(parents=True, exist_ok=True)
    with _set_up(work, directory) as (chosen, proxies, run):
        found = {}
        for proxy in proxies:
            run(chosen, proxy)  # the first time is slower
            counts = results / f"{work}-{proxy.name}.strace"
            targets = [word for pid in proxy.processes() for word in ("-p", str(pid))]
            with Process([strace, "-f", "-c", "-o", str(counts), *targets]) as tracer:
                for pid in proxy.processes():
                    poll_until(lambda pid=pid: _traced(pid) or not tracer.running, 10, "strace is attached")  # type: ignore[misc]
                if not tracer.running:
                    raise RuntimeError(f"cannot count system calls: {tracer.stderr.text}")
                sample = run(chosen, proxy)
                tracer.stop(first=signal.SIGINT)
            found[proxy.name] = {name: count / sample.units for name, count in calls_of(counts.read_text()).items()}
        _show(out, work, chosen, found)
        ours = proxies[-1]
        worker = ours.processes()[-1]
        file = _flames(work, worker, results, lambda: [run(chosen, ours) for _ in range(4)])
    out.line(f"  {file or 'no flame graph: there is neither py-spy nor perf'}; counts in {results}/{work}-*.strace")


def _traced(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return "\nTracerPid:\t0\n" not in Path(f"/proc/{pid}/status").read_text()
    return True


def _flames(work: str, pid: int, results: Path, traffic: Callable[[], object]) -> Path | None:
    """Sample a process during traffic; the file with what was seen."""
    if _PYSPY.exists():
        file = results / f"{work}-hitlessd.svg"
        command = [str(_PYSPY), "record", "-f", "flamegraph", "--native", "-r", "400", "-d", "3600"]
        with Process([*command, "-o", str(file), "-p", str(pid)]) as sampler:
            with contextlib.suppress(AssertionError, EOFError):
                sampler.stderr.wait(lambda line: "Sampling" in line, 10, "py-spy is attached")
            traffic()
            sampler.stop(20, signal.SIGINT)
        if file.exists():
            return file
    perf = shutil.which("perf")
    if perf is None:
        return None
    data, file = results / f"{work}-hitlessd.perf", results / f"{work}-hitlessd.txt"
    with Process([perf, "record", "-q", "-g", "-e", "cpu-clock", "-o", str(data), "-p", str(pid)]) as sampler:
        traffic()
        sampler.stop(20, signal.SIGINT)
    with file.open("w") as output:
        command = [perf, "report", "-i", str(data), "--no-children", "--stdio", "-g", "none"]
        subprocess.run(command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.DEVNULL, check=False)
    return file


def _show(out: Terminal, title: str, work: Work, found: Mapping[str, Mapping[str, float]]) -> None:
    out.line()
    out.line(f"  {out.paint(title, 'bold', 'cyan')}  {out.paint(f'system calls a {work.unit}, by strace', 'dim')}")
    names: Sequence[str] = list(found)
    out.line(out.paint("    " + pad("", 20) + "".join(pad(name, 12, right=True) for name in names), "dim"))
    calls = sorted({call for each in found.values() for call in each}, key=lambda c: -found[names[-1]].get(c, 0.0))
    for call in [*calls, "all"]:
        values = [sum(found[name].values()) if call == "all" else found[name].get(call, 0.0) for name in names]
        if max(values) >= 0.005:
            out.line("    " + pad(call, 20) + "".join(f"{value:12.2f}" for value in values))
    out.line()
