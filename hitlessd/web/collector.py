"""The metrics of the process, and of reloads: what `show info` says under HAProxy's names, and what is ours alone."""

from __future__ import annotations

import platform
import time
from collections.abc import Iterable, Iterator

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from hitlessd.runtime.control import RELOAD_BUCKETS, Control
from hitlessd.runtime.descriptions import describe
from hitlessd.runtime.info import info_fields
from hitlessd.table import PROCESS, Column, totals

__all__ = ["process_text"]

#: Fields of `show info` under the names of HAProxy's exporter; those that end in `_total` are counters.
_PROCESS = {
    "Nbthread": "nbthread",
    "Nbproc": "nbproc",
    "Process_num": "relative_process_id",
    "Uptime_sec": "uptime_seconds",
    "PoolFailed": "pool_failures_total",
    "Ulimit-n": "max_fds",
    "Maxsock": "max_sockets",
    "Maxconn": "max_connections",
    "Hard_maxconn": "hard_max_connections",
    "CurrConns": "current_connections",
    "CumConns": "connections_total",
    "CumReq": "requests_total",
    "MaxSslConns": "max_ssl_connections",
    "CurrSslConns": "current_ssl_connections",
    "CumSslConns": "ssl_connections_total",
    "ConnRate": "current_connection_rate",
    "ConnRateLimit": "limit_connection_rate",
    "MaxConnRate": "max_connection_rate",
    "SessRate": "current_session_rate",
    "SessRateLimit": "limit_session_rate",
    "MaxSessRate": "max_session_rate",
    "SslRate": "current_ssl_rate",
    "SslRateLimit": "limit_ssl_rate",
    "MaxSslRate": "max_ssl_rate",
    "SslFrontendKeyRate": "current_frontend_ssl_key_rate",
    "SslFrontendMaxKeyRate": "max_frontend_ssl_key_rate",
    "SslFrontendSessionReuse_pct": "frontend_ssl_reuse",
    "SslBackendKeyRate": "current_backend_ssl_key_rate",
    "SslBackendMaxKeyRate": "max_backend_ssl_key_rate",
    "SslCacheLookups": "ssl_cache_lookups_total",
    "SslCacheMisses": "ssl_cache_misses_total",
    "CompressBpsIn": "http_comp_bytes_in_total",
    "CompressBpsOut": "http_comp_bytes_out_total",
    "CompressBpsRateLim": "limit_http_comp",
    "Tasks": "current_tasks",
    "Run_queue": "current_run_queue",
    "Idle_pct": "idle_time_percent",
    "Stopping": "stopping",
    "Jobs": "jobs",
    "Unstoppable Jobs": "unstoppable_jobs",
    "Listeners": "listeners",
    "ActivePeers": "active_peers",
    "ConnectedPeers": "connected_peers",
    "DroppedLogs": "dropped_logs_total",
    "BusyPolling": "busy_polling_enabled",
    "TotalBytesOut": "bytes_out_total",
    "TotalSplicdedBytesOut": "spliced_bytes_out_total",
    "BytesOutRate": "bytes_out_rate",
    "CumRecvLogs": "recv_logs_total",
    "Memmax_bytes": "max_memory_bytes",
    "Start_time_sec": "start_time_seconds",
}


class _Process(Collector):
    """A custom collector: asks when it is asked, and keeps nothing."""

    def __init__(self, control: Control) -> None:
        self._control = control

    def collect(self) -> Iterable[Metric]:
        yield from _mirrored(self._control)
        yield from _ours(self._control)


def process_text(control: Control) -> str:
    """All of it, as Prometheus reads it."""
    registry = CollectorRegistry()
    registry.register(_Process(control))
    return generate_latest(registry).decode()


def _mirrored(control: Control) -> Iterator[Metric]:
    for field, value in info_fields(control, time.monotonic()):
        if field in _PROCESS and isinstance(value, int | float):
            name = f"hitlessd_process_{_PROCESS[field]}"
            counts = name.endswith("_total")
            yield (CounterMetricFamily if counts else GaugeMetricFamily)(name, describe(field), value)
    build = GaugeMetricFamily("hitlessd_process_build_info", "version of hitlessd, as a label", labels=["version"])
    build.add_metric([control.version], 1)
    yield build


def _ours(control: Control) -> Iterator[Metric]:
    yield GaugeMetricFamily("hitlessd_generation", "number of the generation that serves", control.generation)
    draining = sum(info.role == "draining" for info in control.generations())
    yield GaugeMetricFamily("hitlessd_generations_draining", "older generations that still serve somebody", draining)
    yield from _reloads(control)
    counted = totals(control.tables(), PROCESS)
    for name, column, text in (
        ("connections_moved", Column.MOVED, "connections that went over to a successor"),
        ("connections_kept", Column.KEPT, "connections that stayed with an old generation when others moved"),
        ("connections_lost", Column.LOST, "connections that were lost by a handover, or with their worker"),
        ("connections_resumed", Column.RESUMED, "connections that went on after the death of their worker"),
        ("worker_deaths", Column.DEATHS, "workers that died"),
    ):
        yield CounterMetricFamily(f"hitlessd_{name}", text, counted[column])
    text = "connections that outlive the death of their worker, now"
    yield GaugeMetricFamily("hitlessd_connections_parked", text, counted[Column.PARKED])
    text = "1 while a stored configuration is served because the file is invalid"
    yield GaugeMetricFamily("hitlessd_configuration_stored", text, int(control.warm))
    python = platform.python_version()
    build = GaugeMetricFamily("hitlessd_build_info", "what runs, as labels", labels=["version", "python_version"])
    build.add_metric([control.version, python], 1)
    yield build


def _reloads(control: Control) -> Iterator[Metric]:
    reloads = CounterMetricFamily("hitlessd_reloads", "reloads that have ended, by result", labels=["result"])
    for result, number in zip(("success", "failure"), control.reloads, strict=True):
        reloads.add_metric([result], number)
    yield reloads
    if last := control.last_reload:
        text = "whether the latest reload was done"
        yield GaugeMetricFamily("hitlessd_last_reload_successful", text, int(last.ok))
        text = "when the latest reload ended, in seconds since 1970"
        yield GaugeMetricFamily("hitlessd_last_reload_timestamp_seconds", text, last.at)
    text = "how long reloads took, by phase; total is the whole"
    durations = HistogramMetricFamily("hitlessd_reload_duration_seconds", text, labels=["phase"])
    bounds = [*(str(bound) for bound in RELOAD_BUCKETS), "+Inf"]
    for phase, (counts, seconds) in control.reload_histogram.items():
        durations.add_metric([phase], list(zip(bounds, counts, strict=True)), seconds)
    yield durations
