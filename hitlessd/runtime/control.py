"""What the runtime API needs from the process that it belongs to: a protocol, and the records that pass through it."""

from __future__ import annotations

import socket
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, Protocol

from hitlessd.changes import Change, Changes
from hitlessd.dataclass import dataclass
from hitlessd.model import Config, StatsSocket
from hitlessd.table import RowKey, Table

__all__ = ["RELOAD_BUCKETS", "Control", "Credentials", "GenerationInfo", "LoopLike", "ReloadOutcome", "TimerLike"]

#: Upper bounds, in seconds, of the buckets in which phases of reloads are counted; one without a bound follows them.
RELOAD_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)


class Credentials(NamedTuple):
    """Who is at the other end of a unix socket, as of its connect(2) (SO_PEERCRED, unix(7))."""

    pid: int
    uid: int
    gid: int


@dataclass(frozen=True, slots=True)
class GenerationInfo:
    """One generation as `show proc` lists it."""

    generation: int
    pid: int  # of its main process
    role: Literal["current", "draining"]
    uptime: float  # seconds
    reloads: int  # current: completed since the first start; draining: survived
    workers: Sequence[tuple[int, int]]  # (pid, sessions now)
    version: str
    moved: int = 0  # connections that came from it, or for the current one: from its predecessor
    note: str = ""  # why it still drains


@dataclass(frozen=True, slots=True)
class ReloadOutcome:
    """How a reload ended."""

    number: int  # counted from 1 over all generations, failures included
    ok: bool
    reason: str = ""  # what a person wants to read: the errors, or a summary of the success; may have several lines
    duration: float = 0.0  # seconds, from the request to the outcome
    at: float = 0.0  # CLOCK_REALTIME seconds when it ended
    generation: int = 0  # that it brought up; of a refused one: that serves on
    moved: int = 0  # connections that went over
    kept: int = 0  # that stayed with the old generation
    lost: int = 0
    taken: int = 0  # listeners: inherited, bound anew, closed
    bound: int = 0
    closed: int = 0
    phases: tuple[tuple[str, float], ...] = ()  # what took how many seconds, in order


class Control(Protocol):
    """The main process as the runtime API sees it. Everything is called in the loop's thread and must not block."""

    @property
    def config(self) -> Config: ...
    @property
    def version(self) -> str: ...
    @property
    def pid(self) -> int: ...
    @property
    def generation(self) -> int: ...
    @property
    def started(self) -> float:
        """When this generation began, on the loop's clock."""
        ...

    @property
    def started_at(self) -> float:
        """The same, CLOCK_REALTIME seconds."""
        ...

    @property
    def last_reload(self) -> ReloadOutcome | None:
        """The latest reload that ended, refused ones included, whichever generation it began in."""
        ...

    @property
    def reloads(self) -> tuple[int, int]:
        """Reloads since the first start: completed, refused."""
        ...

    @property
    def history(self) -> Sequence[ReloadOutcome]:
        """The latest reloads that ended, the oldest first, whichever generation they began in."""
        ...

    @property
    def reload_histogram(self) -> Mapping[str, tuple[Sequence[int], float]]:
        """Of the reloads that were done since the first start: by phase, how many took at most as long as each of
        RELOAD_BUCKETS and how many there were in all, and the seconds that they took together. The phase "total" is
        the whole. Never goes back.
        """
        ...

    @property
    def configured(self) -> Config:
        """What the files say; `config` is that with what operators have changed since, see changes.py."""
        ...

    @property
    def changes(self) -> Changes:
        """What operators have changed."""
        ...

    def administer(self, change: Change, done: Callable[[str], object]) -> None:
        """Change something at run time. `done`, called once and maybe at once, gets "" when every worker has it, or the
        reason why it is refused, one line for a person.
        """
        ...

    def force_health(
        self, backend: str, server: str, how: Literal["up", "stopping", "down"], done: Callable[[str], object]
    ) -> None:
        """Say how a server is, until a check says otherwise. `done` as for administer()."""
        ...

    def may_check(self, backend: str, server: str) -> bool:
        """Whether that server has a health check, switched on or not."""
        ...

    @property
    def most_connections(self) -> int:
        """What the global limit may be set to at most."""
        ...

    def shut_frontend(self, name: str, done: Callable[[str], object]) -> None:
        """Close a frontend's listeners until the next reload. `done` as for administer()."""
        ...

    def clear_counters(self, everything: bool, done: Callable[[str], object]) -> None:
        """Forget the most there ever was at once or in a second; or `everything` that was counted. `done` as for
        administer()."""
        ...

    @property
    def startup_logs(self) -> str:
        """Warnings of the running configuration, one a line."""
        ...

    @property
    def warm(self) -> bool:
        """True while the stored configuration is served because the file was found invalid at the start."""
        ...

    @property
    def config_error(self) -> str:
        """Why the file is not what runs; empty when it is."""
        ...

    @property
    def stopping(self) -> bool:
        """True once no new connections are accepted any more."""
        ...

    @property
    def listeners(self) -> int:
        """How many listening sockets the frontends have."""
        ...

    @property
    def maxconn(self) -> int:
        """The global limit in force, 0 for none."""
        ...

    def tables(self) -> Sequence[Table]:
        """Ours first, then those of generations that still drain. Not kept beyond the call that asked."""
        ...

    def generations(self) -> Sequence[GenerationInfo]:
        """The current one first, then the draining ones, the youngest first."""
        ...

    def rates(self, key: RowKey) -> tuple[int, int]:
        """Sessions in the last full second, and the most there ever were in one."""
        ...

    def request_rates(self, key: RowKey) -> tuple[int, int]:
        """The same of a frontend's HTTP requests."""
        ...

    def trend(self, key: RowKey) -> Sequence[int]:
        """Sessions of the process, a frontend or a backend in each five seconds of the latest five minutes, the oldest
        first; of a frontend in HTTP mode requests.
        """
        ...

    @property
    def secret(self) -> bytes:
        """Known to this service's generations only, and the same in all of them, as long as none is started afresh."""
        ...

    def request_reload(self, done: Callable[[ReloadOutcome], None]) -> int:
        """Begin a reload, or join the next one if the running one has already read its configuration.

        Returns the number of the reload that will answer (ReloadOutcome.number). `done` is called exactly once, later,
        never before this returns. It may be called for a client that has gone or was exported: that does no harm.
        """
        ...

    def resume_reload(self, number: int, done: Callable[[ReloadOutcome], None]) -> int:
        """As request_reload, for a caller that another generation promised the outcome of reload `number`.

        If that is the reload that brought this generation up, or one that has ended, `done` gets its outcome once it is
        final; otherwise (it had not read its configuration yet) a new one is requested. The same promises hold.
        """
        ...

    def sessions(self, after: int, only: int, done: Callable[[dict[str, Any]], object]) -> None:
        """A page of all generations' connections by number, those behind `after`, or the `only` one (0: all).

        `done`, called once and later, gets {"sessions": serial forms, "more": whether there are others behind them}.
        """
        ...

    def shut_down(self, only: int, server: Sequence[str], done: Callable[[dict[str, Any]], object]) -> None:
        """End the connection of that number, or with 0 those of a server, given as backend and name.

        `done`, called once and later, gets {"closed": how many}.
        """
        ...

    def getsocks(
        self, sock: socket.socket, stats: StatsSocket, credentials: Credentials | None, already: bytes
    ) -> None:
        """Answer HAProxy's `_getsocks` on `sock`, which is non-blocking, registered nowhere, and the callee's to close.

        The stats socket is known to have `expose-fd listeners`. `already` is what the client sent after the line.
        """
        ...

    def takeover(
        self, sock: socket.socket, rest: bytes, stats: StatsSocket, credentials: Credentials, already: bytes
    ) -> None:
        """Begin the `_takeover` exchange on `sock`, on the same terms as getsocks.

        `rest` is the remainder of the line, without `_takeover`, surrounding spaces and the newline. The peer is known
        to be root or of our own uid.
        """
        ...


class TimerLike(Protocol):
    def cancel(self) -> None: ...


class LoopLike(Protocol):
    """The event loop; events are epoll's (epoll_ctl(2)), level-triggered."""

    def time(self) -> float: ...
    def add(self, fd: int, events: int, callback: Callable[[int], object]) -> None: ...
    def modify(self, fd: int, events: int) -> None: ...
    def remove(self, fd: int) -> None: ...
    def call_later(self, seconds: float, callback: Callable[[], object]) -> TimerLike: ...
