"""What an idle connection takes of a proxy's memory."""

import contextlib
import itertools
import socket
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks.nginx import nginx_server
from benchmarks.proxies import Hitlessd
from benchmarks.shapes import ShapedHaproxy, ShapedHitlessd, shaped
from tests.support.backend import Backend
from tests.support.load import Load
from tests.support.processes import poll_until

__all__ = ["Footprint"]

_TIMEOUT = 120.0
_SETTLED = 3
_REQUEST = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"


class Footprint:
    """Weighs a proxy with `count` idle connections. What the kernel needs for sockets is not in it."""

    def __init__(self, directory: Path, count: int, tell: Callable[[str], None]) -> None:
        self._directory = directory
        self._count = count
        self._tell = tell
        self._numbers = itertools.count()

    def of(self, kind: type[ShapedHitlessd | ShapedHaproxy], mode: str, crash_proof: bool) -> float:
        """Bytes that each adds; in HTTP mode of a client between two requests."""
        self._tell(f"memory: {kind.name}, {mode}, {self._count:,} connections")
        with contextlib.ExitStack() as stack:
            directory = self._directory / f"footprint{next(self._numbers)}"
            if mode == "http":
                port, _ = stack.enter_context(nginx_server(directory / "nginx"))
            else:
                port = stack.enter_context(Backend()).port
            proxy = shaped(kind, directory, port, mode=mode, maxconn=self._count + 200, crash_proof=crash_proof)
            stack.enter_context(proxy)
            # What comes with the first connections, as buffers and code, is not theirs.
            with contextlib.closing(Clients(proxy.listen[0])) as few:
                few.ask(64) if mode == "http" else few.connect(64)
                if isinstance(proxy, Hitlessd):
                    # Nor what all its processes import when the start is over.
                    poll_until(lambda: int(proxy.info()["Uptime_sec"]) >= _SETTLED, 30, "the start is over")
                before = weight(proxy.processes())
            if mode == "http":
                clients = stack.enter_context(contextlib.closing(Clients(proxy.listen[0])))
                clients.ask(self._count)
            else:
                load = Load(proxy.targets, mode="idle", clients=self._count, max_open=self._count, timeout=_TIMEOUT)
                stack.enter_context(load).wait_ready(_TIMEOUT)
            if isinstance(proxy, Hitlessd) and crash_proof:
                poll_until(lambda: int(proxy.info()["CurrParked"]) >= self._count, 30, "all connections parked")
            else:
                time.sleep(1.0)
            return (weight(proxy.processes()) - before) / self._count


def weight(pids: Sequence[int]) -> int:
    """Bytes of anonymous and shared memory that these processes take, what they share, as the book of parked
    connections, divided among them; not of files, which depend on who else has them mapped (proc_pid_smaps(5))."""
    total = 0
    for pid in pids:
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
                if line.startswith(("Pss_Anon:", "Pss_Shmem:")):
                    total += int(line.split()[1]) * 1024
    return total


class Clients:
    """Connections without a protocol, or that have had one answer."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._open: list[socket.socket] = []

    def connect(self, count: int) -> None:
        for _ in range(count):
            self._open.append(socket.create_connection(("127.0.0.1", self._port), 10))

    def ask(self, count: int) -> None:
        """Have each ask once."""
        for _ in range(count):
            sock = socket.create_connection(("127.0.0.1", self._port), 10)
            self._open.append(sock)
            sock.sendall(_REQUEST)
            answer = b""
            while len(answer.partition(b"\r\n\r\n")[2]) < 256:
                piece = sock.recv(4096)
                if not piece:
                    raise RuntimeError(f"no answer but {answer!r}")
                answer += piece

    def close(self) -> None:
        for sock in self._open:
            sock.close()
