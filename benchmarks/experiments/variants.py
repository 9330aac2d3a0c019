"""Variants of hitlessd side by side: another interpreter, other flags, an environment, another tree.

Each serves the same traffic in turn, with haproxy among them; what counts is CPU a unit, as a ratio to the first
variant of the same round, since a machine that others use is about as slow for all of a round.
"""

import contextlib
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from benchmarks import measure
from benchmarks.http import HttpHaproxy, HttpHitlessd, nginx_server
from benchmarks.measure import LOAD_CPU, PROXY_CPU, Sample, Series, Work
from benchmarks.proxies import Haproxy, Hitlessd, Proxy, haproxy_version
from tests.support.backend import Backend
from tests.support.processes import ROOT, free_port

__all__ = ["WORKS", "Variant", "compare", "copy_tree", "table", "tcp_works"]

WORKS: Final = ("connect", "keepalive", "http", "single")
"""TCP with one request a connection, and kept; HTTP kept, and with one request a connection. All as shipped."""

_TCP: Final = {
    "connect": {"mode": "connect", "total": 8000, "clients": 64, "close": "plain", "body": (64, 1024)},
    "keepalive": {"mode": "keepalive", "total": 30000, "clients": 64, "body": (64, 1024)},
    "bulk": {"mode": "bulk", "direction": "down", "size": 64 << 20, "total": 10, "clients": 8, "timeout": 60},
}
_HTTP: Final[dict[str, list[str]]] = {"http": [], "single": ["-H", "Connection: close"]}
_SCRIPT: Final = "function done(s) io.write(string.format('{\"requests\": %d}\\n', s.requests)) end\n"
_SECONDS: Final = 1
_TIMEOUT: Final = 60


@dataclass(frozen=True)
class Variant:
    """How hitlessd is run."""

    name: str
    python: tuple[str, ...] = (sys.executable,)
    """The interpreter and its flags."""
    tree: Path = ROOT
    """Where the package lies."""
    environment: Mapping[str, str] = field(default_factory=dict)
    before: tuple[str, ...] = ()
    """A command that runs the rest of its arguments."""
    replace: tuple[tuple[str, str], ...] = ()
    """Changes of the configuration's text."""

    def command(self, proxy: Proxy) -> list[str]:
        words = [f"{name}={value}" for name, value in self.environment.items()]
        program = [*self.before, *self.python, "-m", "hitlessd", "-f", str(proxy.file), "-p", str(proxy.pidfile)]
        return ["env", "-C", str(self.tree), *words, *program]

    def edited(self, text: str) -> str:
        for old, new in self.replace:
            text = text.replace(old, new)
        return text


class _Tcp(Hitlessd):
    variant: Variant

    def command(self) -> list[str]:
        return self.variant.command(self)

    def text(self, listen: Sequence[int], servers: Sequence[int]) -> str:
        return self.variant.edited(super().text(listen, servers))


class _Http(_Tcp, HttpHitlessd):
    """The same in HTTP mode."""


def tcp_works(names: Sequence[str] = WORKS) -> list[Work]:
    """Those of `names` that are TCP."""
    return [Work(name, "", 1e6, "", "", _TCP[name], _units) for name in names if name in _TCP]


def copy_tree(directory: Path) -> Path:
    """A copy of the package in `directory`, to be changed."""
    subprocess.run(["cp", "-r", str(ROOT / "hitlessd"), str(directory)], check=True)
    return directory


def _proxies(variants: Sequence[Variant], directory: Path, kind: type[_Tcp] | type[_Http], port: int) -> list[Proxy]:
    found: list[Proxy] = []
    if haproxy_version():
        other = Haproxy if kind is _Tcp else HttpHaproxy
        found.append(other(directory / f"{kind.__name__}-haproxy", [free_port()], [port], cpu=PROXY_CPU))
    for number, variant in enumerate(variants):
        proxy = kind(directory / f"{kind.__name__}-{number}", [free_port()], [port], cpu=PROXY_CPU)
        proxy.name, proxy.variant = variant.name, variant
        found.append(proxy)
    return found


def _wrk(work: Work, proxy: Proxy, script: Path) -> Sample:
    """One wrk, to its end."""
    command = ["taskset", "-c", str(LOAD_CPU), "wrk", "-t1", "-c64", f"-d{_SECONDS}s", "-s", str(script)]
    cpu = proxy.cpu_used()
    text = subprocess.run(
        [*command, *_HTTP[work.name], f"http://{proxy.targets[0]}/"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=True,
        timeout=_TIMEOUT,
    ).stdout
    cpu = proxy.cpu_used() - cpu
    failed = int("Socket errors" in text or "Non-2xx" in text)
    return Sample(json.loads(text.splitlines()[-1])["requests"], _SECONDS, cpu, 0.0, 0.0, failed)


def compare(variants: Sequence[Variant], rounds: int, works: Sequence[str] = WORKS) -> dict[str, dict[str, Series]]:
    """By work, by name of a variant or "haproxy": what a unit cost, `rounds` times."""
    found: dict[str, dict[str, Series]] = {}
    with contextlib.ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        tcp = tcp_works(works)
        if tcp:
            backend = stack.enter_context(Backend(cpu=LOAD_CPU))
            port = int(backend.addresses[0].rpartition(":")[2])
            with _running(_proxies(variants, directory, _Tcp, port)) as proxies:
                found |= measure.compare(tcp, proxies, lambda w, p: measure.run_work(w, p, backend), rounds, _quiet)
        http = [Work(name, "", 1e6, "", "", {}, _units) for name in works if name in _HTTP]
        if http:
            script = directory / "done.lua"
            script.write_text(_SCRIPT)
            port, _server = stack.enter_context(nginx_server(directory / "server", LOAD_CPU))
            with _running(_proxies(variants, directory, _Http, port)) as proxies:
                found |= measure.compare(http, proxies, lambda w, p: _wrk(w, p, script), rounds, _quiet)
    return found


@contextlib.contextmanager
def _running(proxies: list[Proxy]) -> Iterator[list[Proxy]]:
    with contextlib.ExitStack() as stack:
        for proxy in proxies:
            stack.enter_context(proxy)
        yield proxies


def _units(result: dict[str, float]) -> float:
    return float(result.get("requests") or result["done"])


def _quiet(text: str) -> None:
    """Nobody wants to hear of each run."""


def table(found: dict[str, dict[str, Series]], reference: str) -> str:
    """Microseconds of CPU a unit, the ratio to the reference (median and quartiles of the rounds), and to haproxy."""
    lines = []
    for work, series in found.items():
        lines.append(f"{work:10} {'µs':>8} {'to ' + reference:>18} {'(quartiles)':>15} {'to haproxy':>11}  failed")
        for name, each in series.items():
            ratios = _ratios(each, series[reference])
            low, middle, high = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else ratios * 3
            other = statistics.median(_ratios(each, series["haproxy"])) if "haproxy" in series else float("nan")
            spread = f"({low:.3f}-{high:.3f})"
            lines.append(f"  {name:20} {each.cost * 1e6:6.1f} {middle:10.3f} {spread:>15} {other:11.3f}  {each.failed}")
    return "\n".join(lines)


def _ratios(one: Series, other: Series) -> list[float]:
    return [a.cost / b.cost for a, b in zip(one.samples, other.samples, strict=True)]
