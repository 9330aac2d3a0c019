"""One worker and two: what they get through, and what it costs. The proxies float over all CPUs."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from pathlib import Path

from benchmarks.figures import Comparison, Sample, Work
from benchmarks.http import HttpHaproxy, HttpHitlessd, http_works, run_wrk, write_script
from benchmarks.measure import LOAD_CPU, compare, run_work
from benchmarks.nginx import nginx_server
from benchmarks.proxies import Haproxy, Hitlessd, Proxy, haproxy_version
from benchmarks.tcp import small_works
from tests.support.backend import Backend
from tests.support.processes import free_port

__all__ = ["Workers"]


class Workers:
    """The section `workers`. `tell` is told what is going on."""

    def __init__(self, directory: Path, quick: bool, rounds: int, tell: Callable[[str], None]) -> None:
        self._directory = directory
        self._quick = quick
        self._rounds = min(rounds, 3)
        self._tell = tell

    def sections(self) -> Iterator[Comparison]:
        """TCP with one request a connection, HTTP on kept connections."""
        with Backend(cpu=LOAD_CPU) as backend, contextlib.ExitStack() as stack:
            work = small_works(self._quick)[0]
            proxies = self._proxies(stack, (Haproxy, Hitlessd), backend.port)
            run = functools.partial(run_work, backend=backend)
            yield self._compare(work, proxies, run)
        with contextlib.ExitStack() as stack:
            port, server = stack.enter_context(nginx_server(self._directory / "workers-server", LOAD_CPU))
            script = write_script(self._directory / "workers-server")
            work = http_works(1, True)[0]
            proxies = self._proxies(stack, (HttpHaproxy, HttpHitlessd), port)
            yield self._compare(work, proxies, functools.partial(run_wrk, server=server, script=script))

    def _proxies(
        self, stack: contextlib.ExitStack, kinds: tuple[type[Haproxy], type[Hitlessd]], port: int
    ) -> list[Proxy]:
        found: list[Proxy] = []
        for kind in kinds if haproxy_version() else kinds[1:]:
            for count in (1, 2):
                directory = self._directory / f"workers-{kind.__name__}-{count}"
                proxy: Proxy = kind(directory, [free_port()], [port], workers=count)
                proxy.name = kind.name if count == 1 else f"{kind.name}, {count} workers"
                found.append(stack.enter_context(proxy))
        return found

    def _compare(self, work: Work, proxies: list[Proxy], run: Callable[[Work, Proxy], Sample]) -> Comparison:
        found = compare([work], proxies, run, self._rounds, self._tell)
        comparison = Comparison(work, found[work.name], beside="workers or threads")
        comparison.count_failures()
        return comparison
