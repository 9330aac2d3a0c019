"""How many connections the limit on open files allows, found out before anything moves."""

from __future__ import annotations

import resource
from dataclasses import dataclass

from hitlessd.errors import SystemRefused
from hitlessd.model import Config

__all__ = ["Limits", "plan", "raise_soft_limit"]

#: In each process: standard streams, epoll, channels, journal, runtime clients, a handover's sockets.
_RESERVE = 128
#: For splicing: pooled pipes of a worker.
_PIPES = 256
#: More than anyone asks of one machine without saying so.
_DEFAULT_MAXCONN = 20_000


@dataclass(frozen=True, slots=True)
class Limits:
    """Connections in all, connections a worker, and the descriptors a process may have."""

    maxconn: int
    share: int
    nofile: int


def raise_soft_limit() -> int:
    """Raise the soft limit on open files to the hard one (getrlimit(2)) and return it."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


def plan(config: Config, workers: int, listeners: int, nofile: int, arriving: int = 0) -> Limits:
    """Divide what the configuration wants by what there is; `arriving` connections come from a predecessor. Raises
    SystemRefused when it does not fit."""
    # Main serves no connections, but holds the listeners and, during a handover, as many that it gives or replaces.
    main = _RESERVE + 2 * listeners
    if nofile < main:
        raise SystemRefused(
            f"cannot serve {listeners} listeners: handing them over needs {main} descriptors,"
            f" the limit on open files is {nofile}; raise it (LimitNOFILE= in the unit)"
        )
    fixed = _RESERVE + _PIPES + listeners
    room = (nofile - fixed) // 2
    wanted = config.global_.maxconn
    if room < 1 or (wanted and -(-wanted // workers) > room):
        need = fixed + 2 * max(1, -(-wanted // workers))
        whom = f"maxconn {wanted}" if wanted else "anybody"
        less = f" or set maxconn to {room * workers} or less" if room > 0 else ""
        raise SystemRefused(
            f"cannot serve {whom}: {workers} workers with {listeners} listeners need {need} descriptors each,"
            f" the limit on open files is {nofile}; raise it (LimitNOFILE= in the unit){less}"
        )
    if arriving > room * workers:
        need = fixed + 2 * -(-arriving // workers)
        raise SystemRefused(
            f"cannot take over {arriving} connections: {workers} workers need {need} descriptors each for them,"
            f" the limit on open files is {nofile}; raise it (LimitNOFILE= in the unit), or the number of workers"
        )
    maxconn = wanted or min(_DEFAULT_MAXCONN, room * workers)
    return Limits(maxconn, -(-maxconn // workers), nofile)
