"""What a load run counts: exchanges, failures by kind, and how long things took. No I/O."""

import errno
import time
from array import array
from collections.abc import Sequence
from typing import Any, Final

from tests.support.exchange import unpack_tag

FAILURES: Final = ("refused", "reset", "timeout", "short", "corrupt", "wrong", "status", "local")
"""refused: nobody listens. reset: the connection was reset. timeout: no complete answer and orderly end in time.
short: the other side closed too early. corrupt: a byte is not what it has to be, there is one too many, or the server
says that of the request. wrong: the answer to another request. status: not the server's own answer (HTTP). local: this
machine had no port, descriptor or route."""

_BY_ERRNO: Final = {
    errno.ECONNREFUSED: "refused",
    errno.ENOENT: "refused",
    errno.ECONNRESET: "reset",
    errno.EPIPE: "reset",
    errno.ECONNABORTED: "reset",
    errno.ETIMEDOUT: "timeout",
}

_KEPT_ERRORS: Final = 20


def failure_of(error: OSError) -> str:
    """The kind of failure an error of the operating system is."""
    return _BY_ERRNO.get(error.errno or 0, "local")


def percentiles(values: Sequence[float], scale: float = 1000.0) -> dict[str, float]:
    """p50, p90, p99, p999, max and mean of seconds, in milliseconds; all 0 without values."""
    ordered = sorted(values)
    if not ordered:
        return dict.fromkeys(("p50", "p90", "p99", "p999", "max", "mean"), 0.0)
    last = len(ordered) - 1
    found = {
        name: ordered[min(last, int(share * len(ordered)))]
        for name, share in (("p50", 0.5), ("p90", 0.9), ("p99", 0.99), ("p999", 0.999))
    }
    found["max"] = ordered[-1]
    found["mean"] = sum(ordered) / len(ordered)
    return {name: round(value * scale, 3) for name, value in found.items()}


class Tally:
    """Counters of one run. A "unit" is what the mode counts: a connection, a request, a transfer or a stream."""

    def __init__(self) -> None:
        self.began = time.monotonic()
        self.started = 0  # units
        self.done = 0  # units that went well to their end
        self.requests = 0  # answers that were right
        self.failures = dict.fromkeys(FAILURES, 0)
        self.errors: list[str] = []
        self.tags: dict[bytes, int] = {}  # answers by the tag of the server
        self.names: dict[bytes, int] = {}  # the same, of HTTP servers
        self.hung_up = 0  # HTTP connections that were closed between two requests, without a word before
        self.told_to_close = 0  # HTTP connections that ended because an answer said so
        self.latencies = array(
            "d"
        )  # seconds from the attempt to connect, or from the request, to the last byte of the answer
        self.gaps = array("d")  # the longest silence of every stream, seconds
        self.lag = 0.0  # the most that a start was late, seconds
        self.bytes_in = self.bytes_out = 0
        self._shown = 0  # latencies that the last progress line covered

    @property
    def failed(self) -> int:
        return sum(self.failures.values())

    def count(self, tag: bytes) -> bool:
        """Count an answer by the server that gave it. False if this is no tag."""
        if tag not in self.tags:
            if unpack_tag(tag) is None:
                return False
            self.tags[tag] = 0
        self.tags[tag] += 1
        return True

    def fail(self, kind: str, detail: str) -> None:
        self.failures[kind] += 1
        if len(self.errors) < _KEPT_ERRORS:
            self.errors.append(f"{time.monotonic() - self.began:.3f}s {kind}: {detail}")

    def by_server(self) -> dict[str, int]:
        """Answers by the number of the server that gave them."""
        names = {name.decode(): count for name, count in self.names.items()}
        return names | {str(unpack_tag(tag)): count for tag, count in self.tags.items()}

    def progress(self, open_now: int) -> dict[str, Any]:
        """A line for whoever watches; latencies are those since the line before."""
        recent = self.latencies[self._shown :]
        self._shown = len(self.latencies)
        return {
            "t": round(time.monotonic() - self.began, 3),
            "started": self.started,
            "done": self.done,
            "requests": self.requests,
            "failed": self.failed,
            "open": open_now,
            "bytes": self.bytes_in + self.bytes_out,
            "latency_ms": percentiles(recent),
            "tags": self.by_server(),
        }

    def result(self, elapsed: float) -> dict[str, Any]:
        """Everything, as it is printed at the end."""
        return {
            "started": self.started,
            "done": self.done,
            "requests": self.requests,
            "hung_up": self.hung_up,
            "told_to_close": self.told_to_close,
            "failed": self.failed,
            "failures": dict(self.failures),
            "errors": self.errors,
            "elapsed": round(elapsed, 4),
            "rate": round(self.done / elapsed, 1) if elapsed else 0.0,
            "request_rate": round(self.requests / elapsed, 1) if elapsed else 0.0,
            "bytes_in": self.bytes_in,
            "bytes_out": self.bytes_out,
            "latency_ms": percentiles(self.latencies),
            "lag_ms": round(self.lag * 1000, 3),
            "gap_ms": percentiles(self.gaps),
            "tags": self.by_server(),
        }
