"""The main process as the runtime API, metrics and the page see it: what they may ask, and which part answers."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from hitlessd import __version__
from hitlessd.changes import Change, Changes
from hitlessd.loop import Loop
from hitlessd.main import status
from hitlessd.main.administration import Administration
from hitlessd.main.arrival import Arrival
from hitlessd.main.office import Office
from hitlessd.main.reloads import Reloads
from hitlessd.main.sessions import Sessions
from hitlessd.main.standing import Forced
from hitlessd.main.succession import Succession
from hitlessd.main.trends import Trends
from hitlessd.model import Config, StatsSocket
from hitlessd.runtime.control import Credentials, GenerationInfo, ReloadOutcome
from hitlessd.table import Column, RowKey, Table

__all__ = ["Facade"]


class Facade:
    """A runtime.control.Control. It answers from the office on; the parts without a value here come with that."""

    loop: Loop
    started: float
    _reloads: Reloads
    _succession: Succession
    _sessions: Sessions
    _administration: Administration

    def __init__(self) -> None:
        self.version = __version__
        self.pid = os.getpid()
        self.started_at = time.time()
        self.secret = os.urandom(32)
        self._office: Office | None = None
        self._arrival: Arrival | None = None
        self._rates = status.Rates()
        self._request_rates = status.Rates(Column.REQ_TOT, ("frontend",))
        self._trends = Trends()

    @property
    def _serving(self) -> Office:
        assert self._office, "the runtime API is served from the office on"
        return self._office

    @property
    def config(self) -> Config:
        return self._serving.config

    @property
    def generation(self) -> int:
        return self._serving.generation

    @property
    def warm(self) -> bool:
        return bool(self._serving.config_error)

    @property
    def config_error(self) -> str:
        return self._serving.config_error

    @property
    def stopping(self) -> bool:
        return self._serving.stopping

    @property
    def last_reload(self) -> ReloadOutcome | None:
        return self._reloads.last

    @property
    def reloads(self) -> tuple[int, int]:
        return self._reloads.completed, self._reloads.refused

    @property
    def history(self) -> Sequence[ReloadOutcome]:
        return self._reloads.history

    @property
    def reload_histogram(self) -> Mapping[str, tuple[Sequence[int], float]]:
        return self._reloads.histogram

    @property
    def configured(self) -> Config:
        return self._administration.configured

    @property
    def changes(self) -> Changes:
        return self._administration.changes

    def administer(self, change: Change, done: Callable[[str], object]) -> None:
        self._administration.administer(change, done)

    def force_health(self, backend: str, server: str, how: Forced, done: Callable[[str], object]) -> None:
        self._administration.force_health(backend, server, how, done)

    def may_check(self, backend: str, server: str) -> bool:
        return self._administration.may_check(backend, server)

    @property
    def most_connections(self) -> int:
        return self._serving.equipment.planned.maxconn

    def shut_frontend(self, name: str, done: Callable[[str], object]) -> None:
        self._administration.shut_frontend(name, done)

    def clear_counters(self, everything: bool, done: Callable[[str], object]) -> None:
        for rates in (self._rates, self._request_rates):
            rates.clear()
        self._administration.clear_counters(everything, done)

    @property
    def startup_logs(self) -> str:
        return "\n".join(self._serving.config.warnings)

    @property
    def listeners(self) -> int:
        return sum(listener.open for _, listener in self._serving.equipment.listeners)

    @property
    def maxconn(self) -> int:
        return self._serving.equipment.limits.maxconn

    def tables(self) -> Sequence[Table]:
        return self._serving.tables()

    def generations(self) -> Sequence[GenerationInfo]:
        return status.generations(self, self._serving.equipment, self._serving.ancestors, self._arrival)

    def rates(self, key: RowKey) -> tuple[int, int]:
        return self._rates.of(key)

    def request_rates(self, key: RowKey) -> tuple[int, int]:
        return self._request_rates.of(key)

    def trend(self, key: RowKey) -> Sequence[int]:
        return self._trends.of(key)

    def request_reload(self, done: Callable[[ReloadOutcome], None]) -> int:
        return self._reloads.request(done)

    def resume_reload(self, number: int, done: Callable[[ReloadOutcome], None]) -> int:
        return self._reloads.resume(number, done)

    def sessions(self, after: int, only: int, done: Callable[[dict[str, Any]], object]) -> None:
        self._sessions.page(after, only, done)

    def shut_down(self, only: int, server: Sequence[str], done: Callable[[dict[str, Any]], object]) -> None:
        self._sessions.shut_down(only, server, done)

    def getsocks(
        self, sock: socket.socket, stats: StatsSocket, credentials: Credentials | None, already: bytes
    ) -> None:
        self._succession.give(sock, credentials)

    def takeover(
        self, sock: socket.socket, rest: bytes, stats: StatsSocket, credentials: Credentials, already: bytes
    ) -> None:
        self._succession.takeover(sock, credentials, already)
