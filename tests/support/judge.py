"""A real haproxy between a client and servers that the test plays itself: what it does, we compare ourselves with."""

from __future__ import annotations

import select
import signal
import socket
from collections.abc import Sequence
from pathlib import Path

from tests.support.processes import Deadline, Process, free_ports, poll_until

__all__ = ["Judge", "field_values"]

_CONFIG = """\
global
    log {log} local0
defaults
    mode {mode}
    log global
    timeout connect 5s
    timeout client 20s
    timeout server 20s
listen l
    bind 127.0.0.1:{port}
{lines}
"""


def field_values(head: bytes, name: bytes) -> list[bytes]:
    """The values of a field, by its lower-case name."""
    lines = head.partition(b"\r\n\r\n")[0].split(b"\r\n")[1:]
    return [value.strip(b" \t") for key, _, value in (line.partition(b":") for line in lines) if key.lower() == name]


class Judge:
    """A running haproxy; `lines` are of its one section, `servers` the options of s1, s2, ... in it."""

    def __init__(self, directory: Path, lines: Sequence[str], servers: Sequence[str], mode: str = "http") -> None:
        self.listeners = [socket.create_server(("127.0.0.1", 0), backlog=100) for _ in servers]
        (self.port,) = free_ports(1)
        self._log = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._log.bind(str(directory / "log"))
        self._log.settimeout(20)
        text = [*lines]
        for number, (listener, options) in enumerate(zip(self.listeners, servers, strict=True), 1):
            text.append(f"server s{number} 127.0.0.1:{listener.getsockname()[1]} {options}")
        file = directory / "haproxy.cfg"
        body = "".join(f"    {line}\n" for line in text)
        file.write_text(_CONFIG.format(log=directory / "log", mode=mode, port=self.port, lines=body))
        self.process = Process(["/usr/sbin/haproxy", "-db", "-q", "-f", file])

        def serves() -> bool:
            assert self.process.running, self.process.stderr.text
            with socket.socket() as probe:
                return probe.connect_ex(("127.0.0.1", self.port)) == 0

        try:
            poll_until(serves, 20, "haproxy serves")
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Judge:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self.process.stop(first=signal.SIGKILL)
        for sock in (*self.listeners, self._log):
            sock.close()

    def ask(self, request: bytes, answer: bytes, source: str = "127.0.0.1") -> tuple[int, bytes, bytes]:
        """The number of the server that a request came to, from 0, the head that it saw, and what the client got."""
        with socket.create_connection(("127.0.0.1", self.port), 20, (source, 0)) as client:
            client.sendall(request)
            number, seen = self._serve(answer)
            got = b""
            while chunk := client.recv(65536):
                got += chunk
        return number, seen, got

    def visit(self, source: str) -> int:
        """In mode tcp: the number of the server that a client of that address is connected to."""
        with socket.create_connection(("127.0.0.1", self.port), 20, (source, 0)) as client:
            client.sendall(b"x\r\n\r\n")
            return self._serve(b"y")[0]

    def _serve(self, answer: bytes) -> tuple[int, bytes]:
        deadline = Deadline(20)
        while True:
            ready, _, _ = select.select(self.listeners, [], [], 20)
            deadline.check("a connection from haproxy")
            if not ready:
                continue
            sock, _ = ready[0].accept()
            with sock:
                sock.settimeout(20)
                seen = b""
                while b"\r\n\r\n" not in seen and (chunk := sock.recv(65536)):
                    seen += chunk
                if not seen:
                    continue  # of a probe
                sock.sendall(answer)
                return self.listeners.index(ready[0]), seen

    def logged(self) -> str:
        """The next line of its log, without what syslog puts before it."""
        while True:
            line = self._log.recv(65536).decode()
            message = line.partition("]: ")[2].strip()
            if "-- 0" not in message:
                return message
