"""TCP side by side with haproxy and nginx: CPU a connection, a request and a gigabyte."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from benchmarks.figures import GIGABYTE, Comparison, Work
from benchmarks.measure import LOAD_CPU, PROXY_CPU, compare, run_work
from benchmarks.nginx import NginxStream, has_stream
from benchmarks.proxies import Haproxy, Hitlessd, Proxy, haproxy_version
from benchmarks.targets import BULK, TCP_KEPT, TCP_SINGLE
from tests.support.backend import Backend
from tests.support.processes import free_port

__all__ = ["SETTINGS", "TcpComparison", "bulk_works", "single", "small_works"]

SETTINGS: Final = (
    "haproxy: mode tcp, nbthread 1, no log; `splice`: with option splice-auto",
    "hitlessd: mode tcp, workers 1, no log; counters, timeouts and crash-proof as shipped",
    "nginx: module stream, worker_processes 1, no log",
    "CPU is user and system time of all processes of a proxy; ratios are to haproxy as shipped",
)
"""How the contenders are set up, for the reader."""

_SIZE: Final = 64 << 20


def single(total: int) -> Work:
    """A connection for each request."""
    return Work(
        "one request a connection", "connection", 1e6, "µs CPU", "/s",
        {"mode": "connect", "total": total, "clients": 64, "close": "plain", "body": (64, 1024)},
        lambda result: float(result["done"]),
    )  # fmt: skip


def small_works(quick: bool) -> list[Work]:
    """Small requests."""
    part = 4 if quick else 1
    return [
        single(8000 // part),
        Work(
            "request on a kept connection", "request", 1e6, "µs CPU", "/s",
            {"mode": "keepalive", "total": 24000 // part, "clients": 64, "body": (64, 1024)},
            lambda result: float(result["requests"]),
        ),
    ]  # fmt: skip


def bulk_works(quick: bool) -> list[Work]:
    """Transfers of 64 MiB."""
    part = 2 if quick else 1

    def bulk(name: str, direction: str, total: int, clients: int, ways: int = 1, size: int = _SIZE) -> Work:
        settings: dict[str, Any] = {
            "mode": "bulk", "direction": direction, "size": size, "total": total, "clients": clients, "timeout": 60,
        }  # fmt: skip
        return Work(name, "GB", 1.0, "s CPU", "GB/s", settings, lambda result: result["done"] * ways * size / GIGABYTE)

    return [
        bulk("bulk, 64 MiB down", "down", 8 // part, 4),
        bulk("bulk, 64 MiB up", "up", 8 // part, 4),
        bulk("bulk, 64 MiB both ways", "both", 4 // part, 4, 2),
        bulk("bulk, 100 flows at once", "down", 100, 100, size=_SIZE // 8 // part),
    ]


class TcpComparison:
    """The sections `tcp` and `bulk` of the benchmark. `tell` is told what is going on."""

    def __init__(self, directory: Path, quick: bool, rounds: int, tell: Callable[[str], None]) -> None:
        self._directory = directory
        self._quick = quick
        self._rounds = rounds
        self._tell = tell

    def _contenders(self, port: int, splice: bool) -> list[Proxy]:
        kinds: list[tuple[str, Callable[..., Proxy]]] = []
        if haproxy_version():
            kinds.append(("haproxy", Haproxy))
            if splice:
                kinds.append(("haproxy, splice", functools.partial(Haproxy, splice=True)))
        if has_stream():
            kinds.append(("nginx", NginxStream))
        found = []
        for name, kind in [*kinds, ("hitlessd", Hitlessd)]:
            directory = self._directory / f"{'bulk' if splice else 'tcp'}-{name.replace(', ', '-')}"
            found.append(kind(directory, [free_port()], [port], cpu=PROXY_CPU))
            found[-1].name = name
        return found

    def small(self) -> Iterator[Comparison]:
        """Small requests, with and without keeping the connection."""
        yield from self._compare(small_works(self._quick), {"one request a connection": TCP_SINGLE}, TCP_KEPT, False)

    def bulk(self) -> Iterator[Comparison]:
        """Large transfers; ours is compared with a haproxy that does not splice unless it is told to."""
        yield from self._compare(bulk_works(self._quick), {}, BULK, True)

    def _compare(
        self, kinds: Sequence[Work], limits: dict[str, float], limit: float, splice: bool
    ) -> Iterator[Comparison]:
        with Backend(cpu=LOAD_CPU) as backend, contextlib.ExitStack() as stack:
            proxies = self._contenders(backend.port, splice)
            for proxy in proxies:
                stack.enter_context(proxy)
            run = functools.partial(run_work, backend=backend)
            found = compare(kinds, proxies, run, self._rounds, self._tell)
        for work in kinds:
            comparison = Comparison(work, found[work.name])
            comparison.aim("hitlessd", "haproxy", limits.get(work.name, limit))
            comparison.count_failures()
            yield comparison
