"""HTTP mode side by side with haproxy and nginx: CPU a request, with kept connections and with one request on each.

wrk asks, an nginx with a fixed answer serves; both share the CPU that the proxy does not have.
"""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final

from benchmarks.figures import Comparison, Sample, Work
from benchmarks.measure import LOAD_CPU, PROXY_CPU, Meter, children_cpu, compare
from benchmarks.nginx import Nginx, nginx_server
from benchmarks.proxies import Haproxy, Hitlessd, Proxy, haproxy_version
from benchmarks.targets import HTTP_KEPT, HTTP_KEPT_NGINX, HTTP_SINGLE
from tests.support.processes import Process, descendants, free_port

__all__ = [
    "SETTINGS", "HttpComparison", "HttpHaproxy", "HttpHitlessd", "Nginx", "http_works", "nginx_server", "run_wrk",
    "write_script",
]  # fmt: skip

SETTINGS: Final = (
    "haproxy: mode http, nbthread 1; http-reuse safe, which is the default, or always; no log, or option httplog",
    "hitlessd: mode http, workers 1; http-reuse and log likewise; crash-proof as shipped",
    "nginx: worker_processes 1; keepalive 64 to the server, which is as http-reuse always; access_log off, or combined",
    "httplog: a line for each request by UDP to a socket that nobody reads",
    "wrk: 64 connections (16 for 1 MiB), one thread; the server is an nginx that answers 200 with 256 bytes or a file",
    "CPU is user and system time of all processes of a proxy; ratios are to the haproxy with the same settings",
)
"""How the contenders are set up, for the reader."""

KEPT: Final = "HTTP, kept connection"
SINGLE: Final = "HTTP, one request a connection"
_LIMITS: Final = {KEPT: HTTP_KEPT, SINGLE: HTTP_SINGLE}
"""CPU a request of hitlessd, of haproxy's."""

#: Errors of all kinds count as failures; the last line is for us.
_SCRIPT: Final = """\
function done(summary, latency, requests)
    local e = summary.errors
    io.write(string.format('{"requests": %d, "seconds": %f, "failed": %d}\\n', summary.requests,
        summary.duration / 1e6, e.connect + e.read + e.write + e.status + e.timeout))
end
"""


class HttpHitlessd(Hitlessd):
    """hitlessd in HTTP mode; `log_port`: that of a syslog server, or 0."""

    reuse = ""
    log_port = 0

    def text(self, listen: Sequence[int], servers: Sequence[int]) -> str:
        text = super().text(listen, servers).replace("mode = tcp", "mode = http")
        if self.reuse:
            text = text.replace("[listen t]\n", f"[listen t]\nhttp-reuse = {self.reuse}\n")
        if self.log_port:
            text = text.replace("[global]\n", f"[global]\nlog = 127.0.0.1:{self.log_port} local0\n")
            text = text.replace("[listen t]\n", "[listen t]\noption httplog =\n")
        return text


class HttpHaproxy(Haproxy):
    """haproxy in HTTP mode; `log_port`: that of a syslog server, or 0."""

    reuse = ""
    log_port = 0

    def text(self, listen: Sequence[int], servers: Sequence[int]) -> str:
        text = super().text(listen, servers).replace("mode tcp", "mode http")
        if self.reuse:
            text = text.replace("listen t\n", f"listen t\n    http-reuse {self.reuse}\n")
        if self.log_port:
            text = text.replace("global\n", f"global\n    log 127.0.0.1:{self.log_port} local0\n", 1)
            text = text.replace("listen t\n", "listen t\n    log global\n    option httplog\n")
        return text


def http_works(seconds: int, quick: bool) -> list[Work]:
    """Requests for bodies of several lengths on kept connections, and one request a connection."""
    sizes = [(KEPT, "/", False), (SINGLE, "/", True), ("HTTP, kept, 16 KiB", "/16k", False)]
    sizes += [] if quick else [("HTTP, kept, 1 MiB", "/1m", False)]
    return [
        Work(
            name, "request", 1e6, "µs CPU", "/s",
            {"close": close, "seconds": seconds, "path": path, "clients": 16 if path == "/1m" else 64},
            lambda found: found["requests"],
        )
        for name, path, close in sizes
    ]  # fmt: skip


class HttpComparison:
    """The section `http` of the benchmark."""

    def __init__(self, directory: Path, quick: bool, rounds: int, tell: Callable[[str], None]) -> None:
        self._directory = directory / "http"
        self._directory.mkdir()
        self._script = write_script(self._directory)
        self._quick = quick
        self._rounds = rounds
        self._tell = tell

    def contenders(self, port: int, log_port: int) -> list[Proxy]:
        """Those that can be had here; the first of each kind is as shipped, but that it logs nothing."""
        kinds: list[type[HttpHaproxy | HttpHitlessd | Nginx]] = [HttpHaproxy] if haproxy_version() else []
        kinds += [Nginx, HttpHitlessd]
        found: list[Proxy] = []
        for kind in kinds:
            for variant in ("", "always", "httplog"):
                if kind is Nginx and variant == "always":
                    continue
                name = f"{kind.name}, {variant}" if variant else kind.name
                proxy = kind(self._directory / name.replace(", ", "-"), [free_port()], [port], cpu=PROXY_CPU)
                proxy.name = name
                if variant == "httplog":
                    proxy.log_port = log_port
                elif not isinstance(proxy, Nginx):
                    proxy.reuse = variant
                found.append(proxy)
        return found

    def sections(self) -> Iterator[Comparison]:
        """Each work with what it cost, and the targets."""
        kinds = http_works(1, self._quick)
        with contextlib.ExitStack() as stack:
            port, server = stack.enter_context(nginx_server(self._directory / "server", LOAD_CPU))
            sink = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
            sink.bind(("127.0.0.1", 0))
            proxies = self.contenders(port, sink.getsockname()[1])
            for proxy in proxies:
                stack.enter_context(proxy)

            def run(work: Work, proxy: Proxy) -> Sample:
                return run_wrk(work, proxy, server, self._script)

            found = compare(kinds[:2], proxies, run, self._rounds, self._tell)
            plain = [proxy for proxy in proxies if "," not in proxy.name]
            found |= compare(kinds[2:], plain, run, self._rounds, self._tell)
        for work in kinds:
            comparison = Comparison(work, found[work.name])
            if work.name in _LIMITS:
                comparison.aim("hitlessd", "haproxy", _LIMITS[work.name])
            if work.name == KEPT:
                comparison.aim("hitlessd", "nginx", HTTP_KEPT_NGINX)
            comparison.count_failures()
            yield comparison


def write_script(directory: Path) -> Path:
    """What run_wrk() needs."""
    script = directory / "done.lua"
    script.write_text(_SCRIPT)
    return script


def run_wrk(work: Work, proxy: Proxy, server: Process, script: Path) -> Sample:
    """One wrk, to its end."""
    settings = work.settings
    command = ["wrk", "-t1", f"-c{settings['clients']}", f"-d{settings['seconds']}s", "-s", str(script)]
    command += ["-H", "Connection: close"] if settings["close"] else []
    meter, before = Meter(proxy, descendants(server.pid)), children_cpu()
    done = subprocess.run(
        ["taskset", "-c", str(LOAD_CPU), *command, f"http://{proxy.targets[0]}{settings['path']}"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=True,
    )
    result = json.loads(done.stdout.splitlines()[-1])
    return meter.sample(work.units(result), result["seconds"], children_cpu() - before, int(result["failed"]))
