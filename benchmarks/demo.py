"""The demonstration: a hitlessd under load is reloaded as fast as it can, and a scoreboard shows what came of it.

New connections arrive all the time, others stay open from beginning to end, and HTTP clients ask on connections that
they keep; the configuration changes with every reload (a listener comes and goes, servers are exchanged). Every byte of
every answer is checked. The exit status is 0 only if nothing was refused, reset, unanswered, cut short or altered, no
request was served twice, and no reload failed.
"""

import argparse
import signal
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from benchmarks.proxies import Hitlessd
from benchmarks.terminal import Terminal, bar, pad, sparkline
from hitlessd import __version__
from tests.support.backend import Backend
from tests.support.http_backend import HttpBackend
from tests.support.load import Load
from tests.support.processes import free_port, free_ports, raise_descriptor_limit

_WORDS = {
    "refused": "refused",
    "reset": "reset",
    "timeout": "unanswered",
    "short": "cut short",
    "corrupt": "altered",
    "wrong": "mixed up",
    "status": "declined",
    "local": "not sent",
}
_HTTP_PAUSE = 0.02
"""Seconds between two requests of an HTTP client."""


class Balancer(Hitlessd):
    """One that has a section in mode http as well, which stays as it is."""

    web = ""

    def text(self, listen: Sequence[int], servers: Sequence[int]) -> str:
        return super().text(listen, servers) + self.web

    def add_web(self, port: int, servers: Sequence[str]) -> None:
        lines = "".join(f"server w{index} = {address}\n" for index, address in enumerate(servers, 1))
        self.web = f"[listen web]\nmode = http\nbind = 127.0.0.1:{port}\n{lines}"


class Reloader:
    """Reloads a proxy in a thread, one reload after the other, each with the other of two configurations."""

    def __init__(self, proxy: Hitlessd, variants: Sequence[tuple[Sequence[int], Sequence[int]]], pause: float) -> None:
        self._proxy = proxy
        self._variants = variants
        self._pause = pause
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="reloader")
        self.times: list[float] = []
        self.moved = 0  # connections that went from one generation to the next, in all
        self.failures: list[str] = []
        self.variant = 0

    def _run(self) -> None:
        while not self._stop.wait(self._pause):
            following = (self.variant + 1) % len(self._variants)
            try:
                self._proxy.write(*self._variants[following])
                self.times.append(self._proxy.reload_directly())
                self.moved += self._proxy.moved
                self.variant = following
            except (OSError, RuntimeError, KeyError) as error:
                self.failures.append(str(error))

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Returns when the reload that is under way is done."""
        self._stop.set()
        if self._thread.ident is not None:
            self._thread.join()


class Show:
    """What one demonstration knows, and how it looks."""

    def __init__(self, options: argparse.Namespace, out: Terminal) -> None:
        self.options = options
        self.out = out
        self.rates: list[float] = []
        self.worst: list[float] = []
        self._seen: dict[str, Any] = {}
        self._last_line = 0.0

    def update(self, seconds: float, load: Load, streams: Load, web: Load, reloader: Reloader) -> None:
        """Draw the scoreboard, or without a terminal write a line each second."""
        now, flows, pages = load.progress, streams.progress, web.progress
        if not now or not flows or not pages:
            return
        if now["t"] != self._seen.get("t"):
            passed = now["t"] - self._seen.get("t", 0.0)
            if passed:
                self.rates.append((now["done"] - self._seen.get("done", 0)) / passed)
            if now["latency_ms"]["max"]:
                self.worst.append(now["latency_ms"]["max"])
            self._seen = now
        failed = now["failed"] + flows["failed"] + pages["failed"]
        if self.out.live:
            self.out.draw(self._board(seconds, now, flows, pages, reloader, failed))
        elif seconds - self._last_line >= 1.0:
            self._last_line = seconds
            self.out.line(
                f"  {seconds:5.1f} s  {now['done']:>7,} connections  {pages['requests']:>7,} HTTP requests"
                f"  {len(reloader.times):>4} reloads"
                f"  {failed:>3} failures  {flows['open']:>4} kept open  p99 {now['latency_ms']['p99']:6.1f} ms"
            )

    def _row(self, name: str, value: str, note: str = "") -> str:
        paint = self.out.paint
        return f"  {paint(pad(name, 14), 'dim')}{pad(paint(value, 'bold'), 12, right=True)}   {note}"

    def _verdict(self, count: int, what: str = "failures") -> str:
        return self._row(what, self.out.paint(f"{count:,}", "red" if count else "green", "bold"))

    def _board(
        self,
        seconds: float,
        now: Mapping[str, Any],
        flows: Mapping[str, Any],
        pages: Mapping[str, Any],
        reloader: Reloader,
        failed: int,
    ) -> list[str]:
        paint, times = self.out.paint, reloader.times
        width = min(44, self.out.width - 34)
        share = min(1.0, seconds / self.options.seconds)
        left = max(0.0, self.options.seconds - seconds)
        last = f"last {times[-1] * 1000:.0f} ms" if times else "none yet"
        answers = now["tags"]
        top = max(answers.values(), default=1)
        letter = "AB"[reloader.variant]
        lines = [
            "",
            f"  {paint(bar(share, width + 20), 'cyan')} {left:4.1f} s left",
            "",
            self._row("connections", f"{now['done']:,}", paint(sparkline(self.rates, width), "green"))
            + f" {self.rates[-1] if self.rates else 0:,.0f}/s",
            self._row("reloads", f"{len(times):,}", paint(sparkline(times, width), "magenta") + f" {last}"),
            self._row("slowest", f"{now['latency_ms']['max']:.1f} ms", paint(sparkline(self.worst, width), "yellow"))
            + f" p50 {now['latency_ms']['p50']:.1f} ms",
            self._row("HTTP requests", f"{pages['requests']:,}", f"on {pages['open']:,} kept connections"),
            self._row(
                "kept open", f"{flows['open']:,}", f"since the start, {flows['bytes'] / 1e6:,.1f} MB checked on them"
            ),
            self._row("moved", f"{reloader.moved:,}", "times a connection went on in the next generation"),
            self._verdict(failed),
            "",
            f"  configuration {paint(letter, 'bold')}   generation {len(times) + 1}",
        ]
        for tag in sorted(answers):
            lines.append(f"  server {tag}      {paint(bar(answers[tag] / top, width), 'blue')} {answers[tag]:,}")
        return lines

    def final(
        self,
        result: Mapping[str, Any],
        flows: Mapping[str, Any],
        pages: Mapping[str, Any],
        books: Mapping[str, Any],
        reloader: Reloader,
        processes: str,
    ) -> bool:
        """The last scoreboard. Whether nothing failed."""
        out, times = self.out, reloader.times
        out.erase()
        latency = result["latency_ms"]
        all_loads = (result, flows, pages)
        failures = {word: sum(each["failures"][kind] for each in all_loads) for kind, word in _WORDS.items()}
        failures["hung up"] = pages["hung_up"] + pages["told_to_close"]
        failures["served twice"] = books["duplicates"]
        failed = sum(failures.values()) + sum(each["unfinished"] for each in all_loads)
        out.line()
        out.line(
            self._row(
                "connections",
                f"{result['done']:,}",
                f"{result['rate']:,.0f} a second, {result['bytes_in'] / 1e6:,.0f} MB of answers, every byte checked",
            )
        )
        if times:
            rate = len(times) / result["elapsed"]
            median = statistics.median(times) * 1000
            note = f"{rate:.1f} a second, median {median:.0f} ms, longest {max(times) * 1000:.0f} ms"
        else:
            note = "not one was completed"
        out.line(self._row("reloads", f"{len(times):,}", note))
        web = (
            f"on {pages['done']:,} connections that were kept all the time, {pages['request_rate']:,.0f} a second, "
            f"p99 {pages['latency_ms']['p99']:.1f} ms"
        )
        out.line(self._row("HTTP requests", f"{pages['requests']:,}", web))
        kept = (
            f"of {flows['started']:,} were open all the time, {(flows['bytes_in'] + flows['bytes_out']) / 1e6:,.0f} MB"
        )
        out.line(
            self._row("kept open", f"{flows['done']:,}", f"{kept}, longest silence {flows['gap_ms']['max']:.0f} ms")
        )
        out.line(self._row("moved", f"{reloader.moved:,}", "times a connection went on in the next generation"))
        out.line(
            self._row(
                "latency",
                f"{latency['p50']:.1f} ms",
                "median; p99 {p99:.1f} ms, p99.9 {p999:.1f} ms, max {max:.1f} ms".format(**latency),
            )
        )
        out.line(self._row("processes", processes, "left of all generations"))
        *some, last = failures
        none = f"none {', '.join(some)} or {last}"
        out.line(
            self._verdict(failed) + (", ".join(f"{count} {word}" for word, count in failures.items() if count) or none)
        )
        out.line()
        for error in [*result["errors"], *flows["errors"], *pages["errors"], *books["problems"]][:5]:
            out.line("  " + out.paint(error, "red"))
        for problem in reloader.failures[:5]:
            out.line("  " + out.paint(f"reload failed: {problem}", "red"))
        good = not failed and not reloader.failures and bool(times) and result["done"] > 0 and pages["requests"] > 0
        if good:
            text = f"✔ {len(times)} reloads, and nobody noticed"
            out.line("  " + out.paint(text, "green", "bold"))
        else:
            what = [f"{failed} connections failed"] if failed else []
            what += [f"{len(reloader.failures)} reloads failed"] if reloader.failures else []
            out.line("  " + out.paint("✘ " + (" and ".join(what) or "nothing happened"), "red", "bold"))
        out.line()
        return good


def run(options: argparse.Namespace, out: Terminal, directory: Path) -> bool:
    """The demonstration; whether nothing failed."""
    over = threading.Event()

    def interrupted(number: int, frame: FrameType | None) -> None:
        over.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, interrupted)
    show = Show(options, out)
    first, second, third = listen = free_ports(3)
    with Backend(["127.0.0.1:0"] * 3, tags=[1, 2, 3]) as backend, HttpBackend(2) as web_backend:
        one, two, three = backend.ports
        variants = [([first, second], [one, two]), ([first, second, third], [two, three])]
        out.line()
        out.line("  " + out.paint(f"hitlessd {__version__}: reloaded under load, as fast as it can", "bold"))
        for letter, (binds, servers) in zip("AB", variants, strict=True):
            names = ", ".join(str(backend.ports.index(port) + 1) for port in servers)
            out.line(out.paint(f"  configuration {letter}: {len(binds)} listeners, servers {names}", "dim"))
        load_text = f"{options.rate:,.0f} new connections a second, {options.streams} that stay, {options.web} of HTTP"
        out.line(out.paint(f"  {load_text}; {options.workers} workers", "dim"))
        if not out.live:
            out.line()
        targets = [f"127.0.0.1:{port}" for port in listen[:2]]
        proxy = Balancer(directory, *variants[0], workers=options.workers)
        web_port = free_port()
        proxy.add_web(web_port, web_backend.addresses)
        with proxy:
            reloader = Reloader(proxy, variants, options.pause)
            with (
                Load(targets, mode="stream", clients=options.streams, interval=0.05, body=(32, 512)) as streams,
                Load(f"127.0.0.1:{web_port}", mode="http", clients=options.web, interval=_HTTP_PAUSE) as web,
                Load(targets, rate=options.rate) as load,
            ):
                try:
                    streams.wait_ready(20)
                    began = time.monotonic()
                    reloader.start()
                    while (passed := time.monotonic() - began) < options.seconds and all(
                        each.running for each in (load, streams, web)
                    ):
                        show.update(passed, load, streams, web, reloader)
                        if over.wait(0.1):
                            break
                finally:
                    reloader.stop()
                result, flows, pages = load.stop(), streams.stop(), web.stop()
                books = web_backend.counters()
            poll = threading.Event()
            deadline = time.monotonic() + 5
            while len(proxy.processes()) > 2 + options.workers and time.monotonic() < deadline:
                poll.wait(0.05)
            processes = f"{len(proxy.processes())}"
    return show.final(result, flows, pages, books, reloader, processes)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the demonstration; returns its exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.demo", description=__doc__)
    add = parser.add_argument
    add("--seconds", type=float, default=15.0, help="how long (%(default)g)")
    add("--rate", type=float, default=1200.0, help="new connections a second (%(default)g)")
    add("--streams", type=int, default=40, help="connections that stay open (%(default)d)")
    add("--web", type=int, default=20, help="HTTP clients, each with one connection (%(default)d)")
    add("--workers", type=int, default=2, help="workers of hitlessd (%(default)d)")
    add("--pause", type=float, default=0.02, help="seconds between two reloads (%(default)g)")
    options = parser.parse_args(argv)
    raise_descriptor_limit()
    with tempfile.TemporaryDirectory(prefix="hitlessd-demo-") as directory:
        return 0 if run(options, Terminal(), Path(directory)) else 1


if __name__ == "__main__":
    sys.exit(main())
