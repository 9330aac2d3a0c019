"""HTTP mode side by side with haproxy and nginx: CPU a request, with kept connections and with one request on each.

wrk asks, an nginx with a fixed answer serves; both share the CPU that the proxy does not have.
"""

import contextlib
import json
import os
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final

from benchmarks import measure
from benchmarks.measure import LOAD_CPU, PROXY_CPU, Sample, Series, Work
from benchmarks.proxies import Haproxy, Hitlessd, Proxy, haproxy_version
from benchmarks.report import Target
from tests.support.processes import Process, cpu_seconds, descendants, free_port, poll_until

__all__ = ["SETTINGS", "HttpComparison", "HttpHaproxy", "HttpHitlessd", "Nginx", "nginx_server"]

NGINX: Final = shutil.which("nginx", path="/usr/sbin:/usr/bin") or "/usr/sbin/nginx"

SETTINGS: Final = (
    "haproxy: mode http, nbthread 1; http-reuse safe, which is the default, or always; no log, or option httplog",
    "hitlessd: mode http, workers 1; http-reuse and log likewise; crash-proof as shipped",
    "nginx: worker_processes 1; keepalive 64 to the server, which is as http-reuse always; access_log off, or combined",
    "httplog: a line for each request by UDP to a socket that nobody reads",
    "wrk: 64 connections, one thread; the server is an nginx that answers 200 with 256 bytes",
    "CPU is user and system time of all processes of a proxy; ratios are to the haproxy with the same settings",
)
"""How the contenders are set up, for the reader."""

KEPT: Final = "HTTP, kept connection"
SINGLE: Final = "HTTP, one request a connection"
_LIMITS: Final = {KEPT: 1.25, SINGLE: 1.40}
"""CPU a request of hitlessd, of haproxy's."""
_NGINX_LIMIT: Final = 1.0

#: Errors of all kinds count as failures; the last line is for us.
_SCRIPT: Final = """\
function done(summary, latency, requests)
    local e = summary.errors
    io.write(string.format('{"requests": %d, "seconds": %f, "failed": %d}\\n', summary.requests,
        summary.duration / 1e6, e.connect + e.read + e.write + e.status + e.timeout))
end
"""

_TIMES: Final = ("timeout connect", "5s"), ("timeout client", "1m"), ("timeout server", "1m")


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


class Nginx(Proxy):
    """Debian's nginx with one worker process."""

    name = "nginx"
    log_port = 0

    def text(self, listen: Sequence[int], servers: Sequence[int]) -> str:
        binds = " ".join(f"listen 127.0.0.1:{port} backlog=4096;" for port in listen)
        lines = " ".join(f"server 127.0.0.1:{port};" for port in servers)
        location = (
            'location / { proxy_pass http://servers; proxy_http_version 1.1; proxy_set_header Connection ""; '
            "proxy_set_header Host $host; }"
        )
        upstream = f"upstream servers {{ {lines} keepalive 64; }}"
        log = f"syslog:server=127.0.0.1:{self.log_port} combined" if self.log_port else "off"
        return nginx_text(self.directory, upstream, f"{binds} {location}", log)

    def command(self) -> list[str]:
        return nginx_command(self.file)

    def _serves(self) -> bool:
        return _listens(self.listen[0])

    def processes(self) -> list[int]:
        # It writes its title over the environment that would show our mark.
        return descendants(self._process.pid) if self._process else []

    def reload(self) -> float:
        raise RuntimeError("cannot time a reload of nginx: it does not tell when it is done")


def nginx_text(directory: Path, before: str, server: str, log: str = "off") -> str:
    """A configuration for a process of its own: nothing outside `directory`; `log` is its access log."""
    names = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
    paths = " ".join(f"{name}_temp_path {directory}/{name};" for name in names)
    user = "user root;" if os.geteuid() == 0 else ""
    return (
        f"daemon off; {user} worker_processes 1; pid {directory}/nginx.pid; error_log stderr error;\n"
        "events { worker_connections 4096; }\n"
        f"http {{ access_log {log}; keepalive_requests 100000000; {paths}\n{before}\nserver {{ {server} }} }}\n"
    )


def nginx_command(file: Path) -> list[str]:
    return [NGINX, "-e", "stderr", "-c", str(file)]


def _listens(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
        return True
    return False


@contextlib.contextmanager
def nginx_server(directory: Path, cpu: int | None = None) -> Iterator[tuple[int, Process]]:
    """An nginx that answers every request with 256 bytes; its port."""
    directory.mkdir(parents=True, exist_ok=True)
    port, file = free_port(), directory / "server.conf"
    answer = f'default_type text/plain; location / {{ return 200 "{"x" * 256}"; }}'
    file.write_text(nginx_text(directory, "", f"listen 127.0.0.1:{port} backlog=4096; {answer}"))
    with Process(nginx_command(file), cpu=cpu) as process:
        poll_until(lambda: _listens(port), 15, f"nginx serves: {process.stderr.text}")
        if cpu is not None and cpu in os.sched_getaffinity(0):
            for pid in descendants(process.pid):
                os.sched_setaffinity(pid, {cpu})
        yield port, process


def _works(seconds: int) -> list[Work]:
    return [
        Work(
            name, "request", 1e6, "µs CPU", "/s", {"close": close, "seconds": seconds}, lambda found: found["requests"]
        )
        for name, close in ((KEPT, False), (SINGLE, True))
    ]


class HttpComparison:
    """The section `http` of the benchmark."""

    def __init__(self, directory: Path, quick: bool, rounds: int, tell: Callable[[str], None]) -> None:
        self._directory = directory / "http"
        self._directory.mkdir()
        self._script = self._directory / "done.lua"
        self._script.write_text(_SCRIPT)
        self._seconds = 1 if quick else 3
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

    def sections(self) -> Iterator[tuple[Work, dict[str, Series], list[Target]]]:
        """Each work with what it cost, and the targets."""
        kinds = _works(self._seconds)
        with contextlib.ExitStack() as stack:
            port, server = stack.enter_context(nginx_server(self._directory / "server", LOAD_CPU))
            sink = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
            sink.bind(("127.0.0.1", 0))
            proxies = self.contenders(port, sink.getsockname()[1])
            for proxy in proxies:
                stack.enter_context(proxy)
            found = measure.compare(
                kinds, proxies, lambda work, proxy: self._run(work, proxy, server), self._rounds, self._tell
            )
        for work in kinds:
            yield work, found[work.name], _targets(work.name, found[work.name])

    def _run(self, work: Work, proxy: Proxy, server: Process) -> Sample:
        """One wrk, to its end."""
        command = ["wrk", "-t1", "-c64", f"-d{work.settings['seconds']}s", "-s", str(self._script)]
        command += ["-H", "Connection: close"] if work.settings["close"] else []
        servers = descendants(server.pid)
        cpu, server_cpu, machine = proxy.cpu_used(), sum(map(cpu_seconds, servers)), measure.machine_cpu()
        before = os.times()
        done = subprocess.run(
            ["taskset", "-c", str(LOAD_CPU), *command, f"http://{proxy.targets[0]}/"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=True,
        )
        times = os.times()
        cpu, server_cpu = proxy.cpu_used() - cpu, sum(map(cpu_seconds, servers)) - server_cpu
        load_cpu = times.children_user + times.children_system - before.children_user - before.children_system
        load_cpu += server_cpu
        others = max(0.0, measure.machine_cpu() - machine - cpu - load_cpu)
        result = json.loads(done.stdout.splitlines()[-1])
        return Sample(work.units(result), result["seconds"], cpu, load_cpu, others, int(result["failed"]))


def _targets(name: str, series: dict[str, Series]) -> list[Target]:
    """What is aimed at. Like with like: nginx lets every request use a kept connection to the server."""
    found = []
    if "haproxy" in series:
        ratio = series["hitlessd"].cost / series["haproxy"].cost
        found.append(Target(f"{name}: hitlessd to haproxy", ratio, _LIMITS[name], " x"))
    if "nginx" in series:
        ours = series["hitlessd, always"] if name == SINGLE else series["hitlessd"]
        found.append(Target(f"{name}: hitlessd to nginx", ours.cost / series["nginx"].cost, _NGINX_LIMIT, " x"))
    failed = sum(each.failed for each in series.values())
    if failed:
        found.append(Target(f"{name}: failures", failed, 0, ""))
    return found
