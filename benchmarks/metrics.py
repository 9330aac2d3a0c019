"""What a scrape costs: `python -m benchmarks.metrics [--compare]`.

500 servers in 10 backends, and one more with a client that asks again and again over one connection. Scrapes come once
a second, as often as anybody would; CPU is that of main's only thread, by its schedstat. `--compare` also has
prometheus_client write the same samples.
"""

import argparse
import contextlib
import http.client
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks.http import nginx_server
from tests.support.daemon import Daemon
from tests.support.processes import free_port

SERVERS, BACKENDS = 500, 10
LIMIT_MS = 100.0


def configuration(port: int, server: int) -> str:
    """A frontend in use, and many servers beside it."""
    text = f"[listen used]\nmode = http\nbind = 127.0.0.1:{port}\nserver s = 127.0.0.1:{server}\n"
    for backend in range(BACKENDS):
        text += f"[backend b{backend}]\nmode = http\noption httpchk =\n"
        each = SERVERS // BACKENDS
        text += "".join(f"server s{n} = 127.0.0.1:9 check inter 3600s\n" for n in range(each))
    return text


def cpu_ms(pid: int) -> float:
    """CPU time that a process has had; proc(5), schedstat."""
    return int(Path(f"/proc/{pid}/schedstat").read_text().split()[0]) / 1e6


class Client(threading.Thread):
    """Asks over one connection, and notes how long each answer took."""

    def __init__(self, port: int) -> None:
        super().__init__()
        self.port = port
        self.stopped = threading.Event()
        self.took: list[float] = []

    def run(self) -> None:
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)) as client:
            while not self.stopped.is_set():
                began = time.perf_counter()
                client.request("GET", "/")
                client.getresponse().read()
                self.took.append((time.perf_counter() - began) * 1000)

    def stop(self) -> Sequence[float]:
        self.stopped.set()
        self.join()
        return self.took


@contextlib.contextmanager
def asked(port: int) -> Iterator[Client]:
    client = Client(port)
    client.start()
    try:
        yield client
    finally:
        client.stop()


def percentile(values: Sequence[float], share: float) -> float:
    return sorted(values)[int(len(values) * share)]


def latency(port: int, seconds: float, metrics: int) -> str:
    """What a request takes while nobody scrapes (metrics 0), or somebody does."""
    with asked(port) as client:
        for _ in range(int(seconds)):
            began = time.monotonic()
            if metrics:
                scrape(metrics)
            time.sleep(max(0.0, 1 - (time.monotonic() - began)))
        took = client.stop()
    return f"p50 {percentile(took, 0.5):.2f} ms, p99 {percentile(took, 0.99):.2f} ms of {len(took)} requests"


def scrape(port: int) -> bytes:
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=10)) as client:
        client.request("GET", "/metrics")
        return client.getresponse().read()


def compare(text: bytes) -> float:
    """Milliseconds of CPU that prometheus_client needs to write the same samples."""
    from prometheus_client import CollectorRegistry, generate_latest
    from prometheus_client.core import Metric
    from prometheus_client.parser import text_string_to_metric_families
    from prometheus_client.registry import Collector

    families: list[Metric] = list(text_string_to_metric_families(text.decode()))  # type: ignore[no-untyped-call]

    class Again(Collector):
        def collect(self) -> list[Metric]:
            return families

    registry = CollectorRegistry()
    registry.register(Again())
    began = time.thread_time()
    generate_latest(registry)
    return (time.thread_time() - began) * 1000


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--compare", action="store_true", help="also time prometheus_client")
    parser.add_argument("--seconds", type=int, default=10, help="of each measurement of requests")
    options = parser.parse_args()
    front, metrics = free_port(), free_port()
    with tempfile.TemporaryDirectory() as directory, nginx_server(Path(directory) / "nginx") as (server, _):
        more = f"metrics bind = 127.0.0.1:{metrics}"
        with Daemon(Path(directory), configuration(front, server), more=more) as daemon:
            print("first scrape, with its imports: ", end="")
            before = cpu_ms(daemon.pid)
            text = scrape(metrics)
            print(f"{cpu_ms(daemon.pid) - before:.0f} ms CPU of main")
            costs = []
            for _ in range(10):
                before = cpu_ms(daemon.pid)
                text = scrape(metrics)
                costs.append(cpu_ms(daemon.pid) - before)
            cost = statistics.median(costs)
            samples = sum(not line.startswith(b"#") for line in text.splitlines())
            print(f"scrape of {SERVERS} servers: {cost:.0f} ms CPU of main (limit {LIMIT_MS:.0f}), {samples} samples,"
                  f" {len(text) / 1e6:.1f} MB")  # fmt: skip
            if options.compare:
                print(f"prometheus_client, writing alone: {compare(text):.0f} ms")
            print(f"requests, no scrapes: {latency(front, options.seconds, 0)}")
            print(f"requests, a scrape a second: {latency(front, options.seconds, metrics)}")
    return int(cost > LIMIT_MS)


if __name__ == "__main__":
    raise SystemExit(main())
