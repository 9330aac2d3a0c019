"""The proxy under test in HTTP mode, by its name: hitlessd, or haproxy to see what can be expected of anybody.

with front("hitlessd", tmp_path, backend.addresses, [("option forwardfor", "")]) as proxy:
    Load(proxy.address, mode="http")
    proxy.reload()
"""

from __future__ import annotations

import contextlib
import csv
import os
import shutil
import socket
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.support.daemon import Daemon
from tests.support.processes import Process, end, free_port, poll_until
from tests.support.restartable import Restartable

__all__ = ["UNDER_TEST", "Front", "front"]

UNDER_TEST = os.environ.get("UNDER_TEST", "hitlessd")
"""haproxy keeps no connection through a reload and none of the promises about restarts; the rest it passes."""

HAPROXY = shutil.which("haproxy", path="/usr/sbin:/usr/bin") or "/usr/sbin/haproxy"

Option = tuple[str, str]

TIMES: Sequence[Option] = (("timeout connect", "5s"), ("timeout client", "20s"), ("timeout server", "20s"))


class Front:
    """A proxy of one listener and some servers."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.address = f"127.0.0.1:{port}"

    def reload(self) -> None:
        """Returns when it is done; AssertionError if it failed."""
        raise NotImplementedError

    def restart(self) -> None:
        """What `systemctl restart` does."""
        raise NotImplementedError

    def workers(self) -> list[int]:
        """The processes that the traffic passes."""
        raise NotImplementedError

    def ask(self, command: str) -> str:
        """A command of the runtime API, and the whole answer."""
        raise NotImplementedError

    def info(self) -> dict[str, str]:
        """`show info`."""
        return dict(line.split(": ", 1) for line in self.ask("show info").splitlines() if ": " in line)

    def statuses(self) -> dict[str, str]:
        """The status of every server, such as UP or DOWN 1/2, by its name."""
        rows = csv.DictReader(self.ask("show stat").removeprefix("# ").splitlines())
        return {row["svname"]: row["status"] for row in rows if row["svname"] not in ("FRONTEND", "BACKEND")}

    @property
    def connections(self) -> int:
        """Clients that are connected."""
        return int(self.info()["CurrConns"])

    def memory(self) -> int:
        """Resident bytes of its workers."""
        pages = sum(int(Path(f"/proc/{pid}/statm").read_text().split()[1]) for pid in self.workers())
        return pages * os.sysconf("SC_PAGE_SIZE")


class _Hitlessd(Front):
    def __init__(self, port: int, service: Restartable) -> None:
        super().__init__(port)
        self.service = service

    @property
    def daemon(self) -> Daemon:
        return self.service.daemon

    def reload(self) -> None:
        result = self.daemon.reload()
        assert result.returncode == 0, result.stderr

    def restart(self) -> None:
        self.service.restart()

    def workers(self) -> list[int]:
        return self.service.workers()

    def ask(self, command: str) -> str:
        return self.daemon.ask(command)


class _Haproxy(Front):
    def __init__(self, port: int, directory: Path, text: str) -> None:
        super().__init__(port)
        self._file = directory / "haproxy.cfg"
        self._socket = directory / "haproxy.sock"
        self._file.write_text(f"global\nstats socket {self._socket} level admin expose-fd listeners\n{text}")
        self.processes: list[Process] = []

    def start(self, *more: str) -> None:
        """Another process, which takes over from the one before it."""
        process = Process([HAPROXY, "-db", "-f", str(self._file), *more])
        self.processes.append(process)

        def serves() -> bool:
            assert process.running, process.stderr.text
            with contextlib.suppress(OSError):
                return self.info()["Pid"] == str(process.pid)
            return False

        poll_until(serves, 10, "haproxy serves")

    def reload(self) -> None:
        self.start("-x", str(self._socket), "-sf", str(self.processes[-1].pid))

    def restart(self) -> None:
        self.processes[-1].stop()
        self.start()

    def workers(self) -> list[int]:
        return [self.processes[-1].pid]

    def ask(self, command: str) -> str:
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(str(self._socket))
            sock.sendall(command.encode() + b"\n")
            answer = b""
            while piece := sock.recv(65536):
                answer += piece
        return answer.decode()


def _section(kind: str, head: str, options: Sequence[Option]) -> str:
    if kind == "haproxy":
        return f"{head}\n" + "".join(f"    {name} {value}\n" for name, value in options)
    return f"[{head}]\n" + "".join(f"{name} = {value}\n" for name, value in options)


@contextlib.contextmanager
def front(
    directory: Path,
    servers: Sequence[str],
    options: Sequence[Option] = (),
    *,
    maxconn: int = 2000,
    workers: int = 2,
    kind: str = UNDER_TEST,
) -> Iterator[Front]:
    """A proxy that serves; `options` are words of a listen section in mode http and their values."""
    port = free_port()
    given = {name for name, _ in options}
    lines = [("mode", "http"), *(each for each in TIMES if each[0] not in given), *options]
    lines += [("bind", f"127.0.0.1:{port}")]
    lines += [(f"server s{index}", address) for index, address in enumerate(servers, 1)]
    if kind == "haproxy":
        head = f"    nbthread {workers}\n    maxconn {maxconn}\n"
        proxy = _Haproxy(port, directory, head + _section(kind, "listen web", lines))
        try:
            proxy.start()
            yield proxy
        finally:
            for process in proxy.processes:
                end(process.pid)
                process.stop()
        return
    with Restartable(directory, _section(kind, "listen web", lines), workers=workers) as service:
        if maxconn != 2000:
            service.daemon.write(service.daemon.file.read_text().replace("maxconn = 2000", f"maxconn = {maxconn}"))
            service.restart()
        yield _Hitlessd(port, service)
