"""The HTTP servers (http_server.py) as a program and as an object for tests.

`python -m tests.support.http_backend --listen 127.0.0.1:0 --listen 127.0.0.1:0` prints a line of JSON with its
addresses, and another with its books at SIGUSR1 and at the end (SIGTERM, or with --until-eof that of standard input).
What is posted to /report is told on stderr, a line {"event": "report", "body": ...} each.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tests.support.backend import Backend
from tests.support.http_server import HttpServer
from tests.support.processes import Deadline, pin, raise_descriptor_limit

__all__ = ["HttpBackend", "main"]


class HttpBackend(Backend):
    """HTTP servers in a process of their own, from the beginning of a `with` block on.

    `pages`: a directory whose files are served by their names. `keep_alive`, in seconds, and `requests` limit a
    connection; the servers of the numbers in `sick`, from 1, fail their checks. The books: http_server.Books.
    """

    module = "tests.support.http_backend"

    def __init__(
        self,
        servers: int | Sequence[str] = 1,
        *,
        pages: Path | None = None,
        keep_alive: float = 0.0,
        requests: int = 0,
        sick: Sequence[int] = (),
        cpu: int | None = None,
    ) -> None:
        super().__init__([])
        listen = ["127.0.0.1:0"] * servers if isinstance(servers, int) else servers
        self._options = ["--until-eof", f"--keep-alive={keep_alive}", f"--requests={requests}"]
        self._options += [f"--listen={address}" for address in listen]
        self._options += [f"--sick={tag}" for tag in sick]
        self._options += [f"--pages={pages}"] if pages is not None else []
        self._options += [f"--cpu={cpu}"] if cpu is not None else []

    def wait_report(
        self, wanted: Callable[[dict[str, Any]], bool] = lambda found: True, deadline: float | Deadline = 20.0
    ) -> dict[str, Any]:
        """The first body, JSON, posted to /report that is wanted."""

        def find(line: str) -> dict[str, Any] | None:
            if not line.startswith('{"event": "report"'):
                return None
            body: dict[str, Any] = json.loads(json.loads(line)["body"])
            return body if wanted(body) else None

        return self.process.stderr.wait(find, deadline, "a report")

    def spotless(self) -> dict[str, Any]:
        """The books, if they say that nothing was served twice, altered or cut off."""
        books = self.counters()
        wrong = {name: books[name] for name in ("duplicates", "corrupt", "malformed", "short")}
        assert not any(wrong.values()), (wrong, books["problems"])
        assert books["unique"] == books["requests"]
        return books


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.support.http_backend", description=__doc__)
    add = parser.add_argument
    add("--listen", action="append", metavar="HOST:PORT")
    add("--pages", type=Path, metavar="DIR", help="files to serve")
    add("--keep-alive", type=float, default=0.0, metavar="SECONDS", help="close idle connections (0: never)")
    add("--requests", type=int, default=0, metavar="N", help="close a connection after so many (0: never)")
    add("--sick", type=int, action="append", default=[], metavar="TAG", help="a server that fails its checks")
    add("--cpu", type=int, help="run on this CPU")
    add("--until-eof", action="store_true", help="stop when standard input ends")
    return parser


def _say(line: dict[str, Any], file: Any = None) -> None:
    print(json.dumps(line), file=file or sys.stdout, flush=True)


async def _serve(options: argparse.Namespace) -> int:
    pages = {f"/{path.name}": path.read_bytes() for path in options.pages.iterdir()} if options.pages else {}
    server = HttpServer(
        pages=pages,
        report=lambda body: _say({"event": "report", "body": body.decode()}, sys.stderr),
        keep_alive=options.keep_alive,
        requests=options.requests,
        sick=options.sick,
    )
    try:
        await server.listen(options.listen or ["127.0.0.1:0"])
    except OSError as error:
        print(f"cannot listen: {error}", file=sys.stderr)
        return 1
    loop = asyncio.get_running_loop()
    over = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, over.set)
    loop.add_signal_handler(signal.SIGUSR1, lambda: _say(server.books.as_dict()))
    if options.until_eof:
        loop.add_reader(0, lambda: None if os.read(0, 4096) else over.set())
    _say({"listen": server.addresses, "pid": os.getpid()})
    await over.wait()
    _say(server.books.as_dict())
    server.close()
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run the servers; returns the exit status."""
    options = _parser().parse_args(argv)
    raise_descriptor_limit()
    pin(options.cpu)
    return asyncio.run(_serve(options))


if __name__ == "__main__":
    sys.exit(main())
