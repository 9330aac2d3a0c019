"""The load generator as a program and as an object for tests: checks every byte, counts every failure by its kind.

`python -m tests.support.load --target 127.0.0.1:8080 --rate 2500 --total 25000 --json` prints one JSON object on stdout
when it has ended; SIGTERM ends it in order (what is under way is finished), a second SIGTERM at once. Events are lines
of JSON on stderr: "started", "ready" (all connections of the modes idle and stream have had an answer), "progress". The
exit status is 0 if nothing failed. The backend that it needs is tests.support.backend.
"""

import argparse
import json
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any

from tests.support.clients import CLIENTS
from tests.support.engine import CLOSES, DIRECTIONS, MIXES, MODES, Engine, Settings
from tests.support.processes import ROOT, Deadline, Process, as_deadline, pin, python_module, raise_descriptor_limit
from tests.support.tally import FAILURES

__all__ = ["FAILURES", "Load", "Settings", "main"]

Result = dict[str, Any]

_PLAIN = [
    "mode",
    "rate",
    "total",
    "clients",
    "requests",
    "pipeline",
    "mix",
    "close",
    "delay",
    "size",
    "direction",
    "timeout",
    "max_open",
    "seed",
    "progress",
]  # settings whose option is spelt alike


class Load:
    """A load generator in a process of its own, from start() or the beginning of a `with` block on.

    `targets` is one address or several; the other arguments are those of Settings. `cpu` keeps it on one CPU.
    """

    def __init__(
        self, targets: str | Sequence[str], *, cpu: int | None = None, progress: float = 0.1, **settings: Any
    ) -> None:
        names = [targets] if isinstance(targets, str) else list(targets)
        self.settings = Settings(targets=names, progress=progress, **settings)
        self._cpu = cpu
        self._process: Process | None = None
        self._result: Result | None = None

    @property
    def process(self) -> Process:
        if self._process is None:
            raise RuntimeError("the load is not started")
        return self._process

    def start(self, deadline: float | Deadline = 10.0) -> "Load":
        """Returns when it is about to make the first connection."""
        command = python_module("tests.support.load", "--json", "--until-eof", *_arguments(self.settings))
        if self._cpu is not None:
            command += ["--cpu", str(self._cpu)]
        self._process = Process(command, cwd=ROOT, stdin=subprocess.PIPE)
        try:
            self.wait_event("started", deadline)
        except BaseException:
            self.kill()
            raise
        return self

    def wait_event(self, event: str, deadline: float | Deadline = 10.0) -> dict[str, Any]:
        """The first event of that name. EOFError if the load ends without."""
        return self.wait_for(lambda found: found["event"] == event, deadline, event)

    def wait_ready(self, deadline: float | Deadline = 10.0) -> dict[str, Any]:
        """Modes idle and stream: all connections are open and have had an answer through to the server."""
        return self.wait_event("ready", deadline)

    def wait_done(self, count: int, deadline: float | Deadline = 10.0) -> dict[str, Any]:
        """At least `count` connections (or transfers) are done, or failed."""
        return self.wait_for(
            lambda found: found.get("done", 0) + found.get("failed", 0) >= count, deadline, f"{count} done"
        )

    def wait_requests(self, count: int, deadline: float | Deadline = 10.0) -> dict[str, Any]:
        """At least `count` right answers, or anything failed."""
        return self.wait_for(
            lambda found: found.get("requests", 0) >= count or found.get("failed", 0) > 0, deadline, f"{count} answers"
        )

    def wait_for(
        self, wanted: Callable[[dict[str, Any]], bool], deadline: float | Deadline = 10.0, what: str = "event"
    ) -> dict[str, Any]:
        """The first event that `wanted` likes; also one that has already been."""

        def find(line: str) -> dict[str, Any] | None:
            if not line.startswith("{"):
                return None
            found: dict[str, Any] = json.loads(line)
            return found if wanted(found) else None

        return self.process.stderr.wait(find, deadline, f"load: {what}")

    @property
    def progress(self) -> dict[str, Any]:
        """The newest progress event; empty if there was none yet."""
        for line in reversed(list(self.process.stderr)):
            if line.startswith('{"event": "progress"'):
                found: dict[str, Any] = json.loads(line)
                return found
        return {}

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.running

    def finish(self) -> None:
        """Ask it to end in order: idle connections ask once more, streams are drained, nothing new is begun."""
        self.process.signal(signal.SIGTERM)

    def result(self, deadline: float | Deadline = 120.0) -> Result:
        """Wait until it has ended by itself and return the result. RuntimeError if it crashed."""
        if self._result is None:
            limit = as_deadline(deadline)
            process = self.process
            process.wait(limit)
            lines = process.stdout.join(limit)
            errors = process.stderr.join(limit)
            self.kill()
            if not lines:
                raise RuntimeError("the load generator crashed:\n" + "\n".join(errors[-30:]))
            self._result = json.loads(lines[-1])
        return self._result

    def stop(self, deadline: float | Deadline = 60.0) -> Result:
        """End it in order and return the result."""
        if self.running:
            self.finish()
        return self.result(deadline)

    def kill(self) -> None:
        """End it at once; for when the result does not matter."""
        if self._process is not None:
            process, self._process = self._process, None
            process.stop(0.0, signal.SIGKILL)
            process.stdout.join()
            process.stderr.join()

    def __enter__(self) -> "Load":
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()


def _arguments(settings: Settings) -> list[str]:
    arguments = [f"--target={target}" for target in settings.targets]
    arguments += [f"--source={source}" for source in settings.sources]
    arguments += [f"--body={settings.body[0]}:{settings.body[1]}"]
    if settings.interval is not None:
        arguments += [f"--interval={settings.interval}"]
    for name in _PLAIN:
        arguments.append(f"--{name.replace('_', '-')}={getattr(settings, name)}")
    return arguments


def _body(text: str) -> tuple[int, int]:
    low, _, high = text.partition(":")
    return int(low), int(high or low)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tests.support.load", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add(
        "--target",
        action="append",
        required=True,
        metavar="ADDRESS",
        help="HOST:PORT, [HOST]:PORT, /path, abns@name; may be repeated",
    )
    add("--mode", choices=MODES, default="connect")
    add("--rate", type=float, default=0.0, help="new connections a second (without: closed loop of --clients)")
    add("--total", type=int, default=0, help="connections, requests or transfers until the end (0: until stopped)")
    add(
        "--clients", type=int, default=64, help="connections at a time without --rate; all of them with idle and stream"
    )
    add(
        "--requests",
        type=int,
        default=0,
        help="keepalive, http: requests on a connection before it is replaced (0: no limit)",
    )
    add("--pipeline", type=int, default=1, help="http: requests at a time on a connection")
    add("--mix", choices=MIXES, default="plain", help="http: which requests")
    add("--interval", type=float, help="seconds between requests (keepalive) or pieces (stream)")
    add("--body", type=_body, default=(16, 2048), metavar="MIN:MAX", help="bytes in a request or piece")
    add("--close", choices=sorted(CLOSES), default="mixed", help="who closes first")
    add("--delay", type=float, default=0.0, help="seconds the server shall wait before it answers")
    add("--size", type=int, default=1 << 20, help="bytes in a transfer (bulk)")
    add("--direction", choices=sorted(DIRECTIONS), default="down", help="of a transfer (bulk)")
    add("--timeout", type=float, default=10.0, help="seconds after which a connection without an answer has failed")
    add("--max-open", type=int, default=15000)
    add("--seed", type=int, default=0)
    add(
        "--source", action="append", default=[], metavar="ADDRESS", help="IPv4 address to connect from; may be repeated"
    )
    add("--progress", type=float, default=0.0, metavar="SECONDS", help="tell on stderr how far it is")
    add("--cpu", type=int, help="run on this CPU")
    add("--until-eof", action="store_true", help="also stop when standard input ends")
    add("--json", action="store_true", help="print the result as JSON")
    return parser


def _summary(result: Result) -> str:
    latency = result["latency_ms"]
    failures = ", ".join(f"{count} {kind}" for kind, count in result["failures"].items() if count) or "none"
    lines = [
        f"{result['mode']}: {result['done']} done of {result['started']} begun in {result['elapsed']:.2f} s"
        f" ({result['rate']:.0f}/s), {result['requests']} answers ({result['request_rate']:.0f}/s)",
        f"failures: {failures}",
        "latency ms: p50 {p50:.2f}  p99 {p99:.2f}  p99.9 {p999:.2f}  max {max:.2f}".format(**latency),
    ]
    return "\n".join(lines + result["errors"])


def main(argv: Sequence[str] | None = None) -> int:
    """Run a load; returns 0 if nothing failed, 1 if something did, 2 if the arguments make no sense."""
    options = vars(_parser().parse_args(argv))
    as_json, until_eof, cpu = (options.pop(name) for name in ("json", "until_eof", "cpu"))
    options["targets"], options["sources"] = options.pop("target"), options.pop("source")
    raise_descriptor_limit()
    pin(cpu)
    try:
        settings = Settings(**options)
        engine = Engine(settings, CLIENTS[settings.mode])
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: engine.stop())
    result = engine.run(until_eof)
    print(json.dumps(result) if as_json else _summary(result), flush=True)
    return 1 if result["failed"] or result["unfinished"] else 0


if __name__ == "__main__":
    sys.exit(main())
