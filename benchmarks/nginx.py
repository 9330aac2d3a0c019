"""Debian's nginx, as a proxy for HTTP and for TCP, and as the server behind the proxies."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from benchmarks.proxies import Proxy
from tests.support.processes import Process, descendants, free_port, poll_until

__all__ = ["BODIES", "Nginx", "NginxStream", "has_stream", "nginx_server"]

_NGINX: Final = shutil.which("nginx", path="/usr/sbin:/usr/bin") or "/usr/sbin/nginx"
_STREAM: Final = Path("/usr/lib/nginx/modules/ngx_stream_module.so")

BODIES: Final = {"/": 256, "/16k": 16 << 10, "/1m": 1 << 20}
"""What nginx_server() has, and how long it is."""


class Nginx(Proxy):
    """One worker process, mode http."""

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
        return _http(self.directory, upstream, f"{binds} {location}", log)

    def command(self) -> list[str]:
        return _command(self.file)

    def _serves(self) -> bool:
        return _listens(self.listen[0])

    def processes(self) -> list[int]:
        # It writes its title over the environment that would show our mark.
        return descendants(self._process.pid) if self._process else []

    def reload(self) -> float:
        raise RuntimeError("cannot time a reload of nginx: it does not tell when it is done")


class NginxStream(Nginx):
    """The same for TCP, by the module `stream`."""

    def text(self, listen: Sequence[int], servers: Sequence[int]) -> str:
        binds = " ".join(f"listen 127.0.0.1:{port} backlog=4096;" for port in listen)
        lines = " ".join(f"server 127.0.0.1:{port};" for port in servers)
        times = "proxy_connect_timeout 5s; proxy_timeout 1m;"
        return (
            f"load_module {_STREAM};\n{_general(self.directory)}"
            f"stream {{ upstream servers {{ {lines} }}\nserver {{ {binds} {times} proxy_pass servers; }} }}\n"
        )


def has_stream() -> bool:
    """Whether there is an nginx that can do TCP."""
    return _STREAM.exists() and Path(_NGINX).exists()


def _general(directory: Path) -> str:
    user = "user root;" if os.geteuid() == 0 else ""
    return (
        f"daemon off; {user} worker_processes 1; pid {directory}/nginx.pid; error_log stderr error;\n"
        "events { worker_connections 4096; }\n"
    )


def _http(directory: Path, before: str, server: str, log: str = "off") -> str:
    """A configuration for a process of its own: nothing outside `directory`; `log` is its access log."""
    names = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
    paths = " ".join(f"{name}_temp_path {directory}/{name};" for name in names)
    return (
        f"{_general(directory)}http {{ access_log {log}; keepalive_requests 100000000; {paths}\n"
        f"{before}\nserver {{ {server} }} }}\n"
    )


def _command(file: Path) -> list[str]:
    return [_NGINX, "-e", "stderr", "-c", str(file)]


def _listens(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
        return True
    return False


@contextlib.contextmanager
def nginx_server(directory: Path, cpu: int | None = None) -> Iterator[tuple[int, Process]]:
    """An nginx that answers with 256 bytes, and with as many as BODIES says under those paths; its port."""
    directory.mkdir(parents=True, exist_ok=True)
    port, file = free_port(), directory / "server.conf"
    for name, size in BODIES.items():
        if name != "/":
            (directory / name[1:]).write_bytes(b"x" * size)
    answers = f'location / {{ return 200 "{"x" * BODIES["/"]}"; }}' + "".join(
        f" location = {name} {{ root {directory}; }}" for name in BODIES if name != "/"
    )
    server = f"listen 127.0.0.1:{port} backlog=4096; default_type text/plain; sendfile on; {answers}"
    file.write_text(_http(directory, "", server))
    pinned = cpu is not None and cpu in os.sched_getaffinity(0)
    with Process([*(("taskset", "-c", str(cpu)) if pinned else ()), *_command(file)]) as process:
        poll_until(lambda: _listens(port), 15, f"nginx serves: {process.stderr.text}")
        yield port, process
