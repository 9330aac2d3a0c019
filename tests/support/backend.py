"""The load generator's backend as a program and as an object for tests.

`python -m tests.support.backend --listen 127.0.0.1:0 --listen /run/b.sock` prints a line of JSON with the addresses it
got on stdout, and another with its counters when SIGTERM, or with --until-eof the end of its standard input, stops it.
SIGUSR1 prints a line with the counters of that moment.
"""

import argparse
import json
import os
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self

from tests.support.processes import (
    ROOT,
    Deadline,
    Process,
    as_deadline,
    pin,
    poll_until,
    python_module,
    raise_descriptor_limit,
)
from tests.support.server import FAULTS, MODES, Server

__all__ = ["Backend", "BackendThread", "Server", "main"]


class Backend:
    """A backend in a process of its own, from start() or the beginning of a `with` block on.

    The arguments are those of Server; `cpu` keeps it on one CPU.
    """

    module = "tests.support.backend"
    """The program; of a subclass another one, which speaks as this one does."""

    def __init__(
        self,
        listen: Sequence[str] = ("127.0.0.1:0",),
        *,
        mode: str = "exchange",
        tags: Sequence[int] = (),
        fault: str | None = None,
        fault_every: int = 1,
        cpu: int | None = None,
    ) -> None:
        self._options = ["--mode", mode, "--fault-every", str(fault_every), "--until-eof"]
        for address in listen:
            self._options += ["--listen", address]
        for tag in tags:
            self._options += ["--tag", str(tag)]
        if fault is not None:
            self._options += ["--fault", fault]
        if cpu is not None:
            self._options += ["--cpu", str(cpu)]
        self._process: Process | None = None
        self._asked = 0
        self.addresses: list[str] = []
        self.stats: dict[str, Any] = {}
        """The counters at the end, see Counters, and `open`: connections that stop() had to cut off."""

    @property
    def process(self) -> Process:
        if self._process is None:
            raise RuntimeError("the backend is not started")
        return self._process

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def address(self) -> str:
        """The first address, as HOST:PORT, path or abns@name."""
        return self.addresses[0]

    @property
    def port(self) -> int:
        """The port of the first address."""
        return int(self.address.rpartition(":")[2])

    @property
    def ports(self) -> list[int]:
        return [int(address.rpartition(":")[2]) for address in self.addresses]

    def start(self, deadline: float | Deadline = 10.0) -> Self:
        """Returns when it listens."""
        command = python_module(self.module, *self._options)
        self._process = Process(command, cwd=ROOT, stdin=subprocess.PIPE)
        try:
            self.addresses = self._process.stdout.wait(json.loads, deadline, "the backend's addresses")["listen"]
        except (AssertionError, EOFError) as error:
            self._process.stop()
            raise RuntimeError(f"cannot start the backend: {self._process.stderr.text}") from error
        self._asked = 1
        return self

    def counters(self, deadline: float | Deadline = 10.0) -> dict[str, Any]:
        """The counters now, and `open`: connections that are open."""
        self.process.signal(signal.SIGUSR1)
        self._asked += 1
        answer: dict[str, Any] = self.process.stdout.wait(json.loads, deadline, "counters", start=self._asked - 1)
        return answer

    def wait_closed(self, deadline: float | Deadline = 10.0) -> dict[str, Any]:
        """The counters when no connection is open any more; the last end comes after the client is done."""
        limit = as_deadline(deadline)

        def closed() -> dict[str, Any] | None:
            counters = self.counters(limit)
            return None if counters["open"] else counters

        found = poll_until(closed, limit, "the end of all connections to the backend")
        assert found is not None
        return found

    def stop(self, deadline: float | Deadline = 10.0) -> dict[str, Any]:
        """End it. Returns the last counters, which stay in `stats`."""
        if self._process is not None:
            process, self._process = self._process, None
            status = process.stop(deadline)
            lines = process.stdout.join()
            if status != 0:
                raise RuntimeError(f"the backend ended with {status}: {process.stderr.text}")
            self.stats = json.loads(lines[-1])
        return self.stats

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


class BackendThread:
    """A Server in a thread of this process: `with BackendThread(Server()) as server: server.addresses`."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self._thread = threading.Thread(target=server.run, daemon=True, name="backend")

    def __enter__(self) -> Server:
        self._thread.start()
        return self.server

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.server.stop()
        self._thread.join()
        self.server.close()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.support.backend", description=__doc__)
    parser.add_argument(
        "--listen", action="append", metavar="ADDRESS", help="HOST:PORT, [HOST]:PORT, /path or abns@name"
    )
    parser.add_argument(
        "--tag", action="append", type=int, default=[], help="a number for each listener, in its answers"
    )
    parser.add_argument("--mode", choices=MODES, default="exchange")
    parser.add_argument("--fault", choices=FAULTS, help="misbehave")
    parser.add_argument("--fault-every", type=int, default=1, metavar="N", help="only at every Nth request")
    parser.add_argument("--cpu", type=int, help="run on this CPU")
    parser.add_argument("--until-eof", action="store_true", help="stop when standard input ends")
    return parser


def _print(line: dict[str, Any]) -> None:
    print(json.dumps(line), flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a backend; returns its exit status."""
    options = _parser().parse_args(argv)
    raise_descriptor_limit()
    pin(options.cpu)
    try:
        server = Server(
            options.listen or ["127.0.0.1:0"],
            mode=options.mode,
            tags=options.tag,
            fault=options.fault,
            fault_every=options.fault_every,
        )
    except (OSError, ValueError) as error:
        print(f"cannot listen: {error}", file=sys.stderr)
        return 1

    def counters() -> dict[str, int]:
        return server.counters.as_dict() | {"open": server.open}

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: server.stop())
    signal.signal(signal.SIGUSR1, lambda *_: _print(counters()))
    if options.until_eof:
        threading.Thread(target=_stop_at_eof, args=(server,), daemon=True).start()
    _print({"listen": server.addresses, "pid": os.getpid()})
    server.run()
    _print(counters())
    server.close()
    return 0


def _stop_at_eof(server: Server) -> None:
    poller = select.poll()
    poller.register(0, select.POLLIN)
    while poller.poll() and os.read(0, 4096):
        pass
    server.stop()


if __name__ == "__main__":
    sys.exit(main())
