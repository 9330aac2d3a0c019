"""A real Prometheus scrapes through reloads and a restart: no scrape fails, and no counter goes back."""

from __future__ import annotations

import contextlib
import json
import socket
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.support.echo import Echo
from tests.support.processes import Process, free_port, poll_until
from tests.support.restartable import Restartable

#: As many look at the same main, each at its own time. A time-out is as long as an interval at most.
JOBS, INTERVAL = 12, "5s"
RELOADS = 20


class Prometheus:
    """One of Debian's, with its data below `directory`."""

    def __init__(self, directory: Path, target: int) -> None:
        self.port = free_port()
        self._file = directory / "prometheus.yml"
        jobs = [
            {
                "job_name": f"job{number}",
                "params": {"job": [str(number)]},  # ignored, but it moves the job's time
                "static_configs": [{"targets": [f"127.0.0.1:{target}"]}],
            }
            for number in range(JOBS)
        ]
        config = {"global": {"scrape_interval": INTERVAL, "scrape_timeout": INTERVAL}, "scrape_configs": jobs}
        self._file.write_text(json.dumps(config))  # which is YAML
        self._data = directory / "data"

    @contextlib.contextmanager
    def running(self) -> Iterator[Prometheus]:
        command = [
            "/usr/bin/prometheus",
            f"--config.file={self._file}",
            f"--storage.tsdb.path={self._data}",
            f"--web.listen-address=127.0.0.1:{self.port}",
        ]
        with Process(command) as process:
            poll_until(self._ready, 30, f"Prometheus serves: {process.stderr.text}")
            yield self

    def _ready(self) -> bool:
        with contextlib.suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{self.port}/-/ready", timeout=5):
            return True
        return False

    def ask(self, query: str) -> list[dict[str, Any]]:
        """An instant query's result."""
        url = f"http://127.0.0.1:{self.port}/api/v1/query?" + urllib.parse.urlencode({"query": query})
        with urllib.request.urlopen(url, timeout=15) as response:
            answer = json.load(response)
        assert answer["status"] == "success", answer
        result: list[dict[str, Any]] = answer["data"]["result"]
        return result

    def values(self, query: str) -> list[float]:
        return [float(each["value"][1]) for each in self.ask(query)]


def _talk(port: int) -> None:
    with socket.create_connection(("127.0.0.1", port), 15) as client:
        client.sendall(b"hello")
        assert client.recv(5) == b"hello"


def test_a_prometheus_sees_neither_reloads_nor_a_restart(tmp_path: Path) -> None:
    port, metrics = free_port(), free_port()
    with Echo() as echo:
        body = f"[listen l]\nbind = 127.0.0.1:{port}\nserver s = 127.0.0.1:{echo.port}\n"
        with (
            Restartable(tmp_path, body, more=f"metrics bind = 127.0.0.1:{metrics}") as service,
            Prometheus(tmp_path, metrics).running() as prometheus,
        ):
            poll_until(lambda: prometheus.values("count(up)") == [JOBS], 30, "every job has begun")
            for number in range(RELOADS):
                if number == RELOADS // 2:
                    service.restart()
                assert service.daemon.ask("reload").startswith("Success=1")
                _talk(port)
            newest = service.number("Generation")
            assert newest == RELOADS + 2
            known = f"count(hitlessd_generation == {newest})"
            poll_until(lambda: prometheus.values(known) == [JOBS], 30, "every job has seen the last generation")

            assert prometheus.values("min(min_over_time(up[10m]))") == [1]
            assert sum(prometheus.values("count_over_time(up[10m])")) >= 2 * JOBS
            assert prometheus.values("count(max_over_time(scrape_samples_scraped[10m]) > 200)") == [JOBS]
            series = prometheus.ask('{__name__=~"hitlessd_.+_(total|bucket|count|sum)"}[10m]')
    assert len(series) > 50 * JOBS
    grown = set()
    for each in series:
        values = [float(value) for _, value in each["values"]]
        assert values == sorted(values), each["metric"]
        if values[-1] > values[0]:
            grown.add(each["metric"]["__name__"])
    assert {"hitlessd_reloads_total", "hitlessd_frontend_sessions_total", "hitlessd_process_bytes_out_total"} <= grown
