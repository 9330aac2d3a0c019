"""The time of a reload when nothing else is going on, by phase, and of a start."""

from __future__ import annotations

import contextlib
import json
import shutil
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks.measure import reload_times
from benchmarks.proxies import Haproxy, Hitlessd, Proxy, haproxy_version, interpreter
from benchmarks.sections import Section
from benchmarks.targets import RELOAD_MS
from tests.support.backend import Backend
from tests.support.processes import ROOT, Process, free_ports
from tests.support.visitors import Conversation

__all__ = ["Reloads"]

_ACTIVATE = shutil.which("systemd-socket-activate")
_NAMES = {
    "haproxy": "haproxy -x -sf",
    "hitlessd": "hitlessctl reload",
    "runtime socket": "  without hitlessctl's own start",
}


class Reloads:
    """The sections `reload` and `start`. `tell` is told what is going on."""

    def __init__(self, directory: Path, quick: bool, workers: int, tell: Callable[[str], None]) -> None:
        self._directory = directory
        self._count = 5 if quick else 20
        self._workers = workers
        self._tell = tell

    def _proxies(self, name: str, servers: Sequence[int], binds: int) -> list[Proxy]:
        kinds: list[type[Proxy]] = [Haproxy, Hitlessd] if haproxy_version() else [Hitlessd]
        return [
            kind(self._directory / f"{name}-{kind.name}", free_ports(binds), servers, workers=self._workers)
            for kind in kinds
        ]

    def reload(self) -> Section:
        """10 listeners, 10 servers."""
        note = f"10 binds, 10 servers, workers or threads: {self._workers}, {self._count} times, in turn"
        section = Section("reload", note)
        with contextlib.ExitStack() as stack:
            proxies = self._proxies("reload", free_ports(10), 10)
            for proxy in proxies:
                stack.enter_context(proxy)
            times = reload_times(proxies, self._count, self._tell)
            told = json.loads(proxies[-1].ask("show reloads json"))
        for name, each in times.items():
            if name == "hitlessd":
                section.aim(f"{_NAMES[name]}, median", each.median * 1000, RELOAD_MS, " ms")
            else:
                section.tell(f"{_NAMES[name]}, median", f"{each.median * 1000:.1f} ms")
            section.tell("  longest", f"{each.longest * 1000:.1f} ms")
        phases = phase_medians(told if isinstance(told, list) else next(iter(told.values())))
        for phase, seconds in phases.items():
            section.tell(f"  phase {phase}", f"{seconds * 1000:.1f} ms")
        section.figures = {name: each.values for name, each in times.items()} | {"phases": phases}
        return section

    def start(self) -> Section:
        """From exec to the first answer through the proxy."""
        section = Section("start", f"10 binds, 10 servers, from exec to the first answer; {self._count} times, medians")
        with Backend(["127.0.0.1:0"] * 10, mode="echo") as backend:
            proxies = self._proxies("start", backend.ports, 10)
            found: dict[str, list[float]] = {}
            for number in range(self._count):
                for proxy in proxies:
                    self._tell(f"start {number + 1} of {self._count}: {proxy.name}")
                    found.setdefault(proxy.name, []).append(_until_answer(proxy))
                if _ACTIVATE and isinstance(proxies[-1], Hitlessd):
                    found.setdefault("activated", []).append(_activated(proxies[-1]))
        for name, values in found.items():
            label = "hitlessd, socket-activated: a client's connect to its answer" if name == "activated" else name
            section.tell(label, f"{statistics.median(values) * 1000:.1f} ms")
            section.tell("  longest", f"{max(values) * 1000:.1f} ms")
        section.figures = dict(found)
        return section


def phase_medians(outcomes: Sequence[dict[str, object]]) -> dict[str, float]:
    """Seconds of each phase of the reloads that were done, medians, in their order."""
    found: dict[str, list[float]] = {}
    for outcome in outcomes:
        phases = outcome.get("phases")
        if outcome.get("ok") and isinstance(phases, list):
            for name, seconds in phases:
                found.setdefault(name, []).append(seconds)
    return {name: statistics.median(values) for name, values in found.items()}


def _answered(port: int, patience: float) -> bool:
    try:
        with Conversation(port) as caller:
            caller.sock.settimeout(patience)
            caller.say()
    except (OSError, AssertionError):
        return False
    return True


def _until_answer(proxy: Proxy) -> float:
    """Start, and stop again."""
    proxy.directory.mkdir(parents=True, exist_ok=True)
    proxy.write()
    proxy.prepare()
    began = time.monotonic()
    try:
        proxy.launch()
        while not _answered(proxy.listen[0], 10):
            if time.monotonic() > began + 15:
                raise RuntimeError(f"cannot start {proxy.name}: {proxy.log}")
            time.sleep(0.001)
        return time.monotonic() - began
    finally:
        proxy.stop()


def _activated(proxy: Hitlessd) -> float:
    """A client that comes first: from its connect to its answer."""
    assert _ACTIVATE
    proxy.prepare()
    listen = [word for port in proxy.listen for word in ("-l", f"127.0.0.1:{port}")]
    environment = [word for name in proxy.environment for word in ("-E", name)]
    command = [_ACTIVATE, *listen, *environment, interpreter(), *proxy.command()[1:]]
    try:
        with Process(proxy.wrapped(command), env=proxy.environment, cwd=ROOT) as process:
            process.stderr.wait(lambda line: f":{proxy.listen[-1]}" in line, 10, "listeners")
            began = time.monotonic()
            if not _answered(proxy.listen[0], 10):
                raise RuntimeError(f"cannot activate hitlessd: {process.stderr.text}")
            return time.monotonic() - began
    finally:
        proxy.stop()
