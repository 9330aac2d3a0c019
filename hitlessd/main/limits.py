"""How many connections the limit on open files allows, found out before anything moves; and how many of them can be
parked, which nothing depends on but their survival."""

from __future__ import annotations

import resource

from hitlessd.dataclass import dataclass, replace
from hitlessd.errors import SystemRefused
from hitlessd.model import Config

__all__ = ["Limits", "lowered", "plan", "raise_soft_limit", "store_entries", "store_problem"]

#: In each process: standard streams, epoll, channels, journal, runtime clients, a handover's sockets.
_RESERVE = 128
#: For splicing: pooled pipes of a worker, 128 of two descriptors each (worker/pipes.py).
_PIPES = 256
#: The kernel sends no descriptor at all for a user who has more in flight than the sender's soft limit on open files
#: (ETOOMANYREFS, unix(7)). A third may be parked: a reload parks every connection a second time before the first
#: copies go, and whatever else is handed over at that moment needs room, too.
_PARKED_SHARE = 3
#: A park is a pair of sockets and a memfd.
_PARK_ENTRIES = 3
#: Of main for a worker: the channel, a pidfd, an eventfd, and its park.
_EACH_WORKER = 3 + _PARK_ENTRIES
#: More than anyone asks of one machine without saying so.
_DEFAULT_MAXCONN = 20_000


@dataclass(frozen=True, slots=True)
class Limits:
    """Connections in all, connections a worker, the descriptors that a process may have, and those that a worker may
    have parked; the limit on open files with which all connections can be served and parked, and what to tell the
    operator when the present one is too low to park them all, or ""."""

    maxconn: int
    share: int
    nofile: int
    parked: int
    needed: int
    shortage: str


def raise_soft_limit() -> int:
    """Raise the soft limit on open files to the hard one (getrlimit(2)) and return it."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


def plan(config: Config, workers: int, listeners: int, nofile: int, arriving: int = 0) -> Limits:
    """Divide what the configuration wants by what there is; `arriving` connections come from a predecessor. Raises
    SystemRefused when it does not fit."""
    # Main serves no connections, but holds the listeners and what it needs for its workers and, during a handover, as
    # many that it gives or replaces.
    main = _RESERVE + 2 * (listeners + _EACH_WORKER * workers)
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
    share = -(-maxconn // workers)
    parked = nofile // _PARKED_SHARE // workers
    needed = max(main, fixed + 2 * share, _PARKED_SHARE * workers * (2 * share + _PIPES))
    return Limits(maxconn, share, nofile, parked, needed, _shortage(maxconn, workers, nofile, parked, needed))


def lowered(limits: Limits, maxconn: int, workers: int) -> Limits:
    """With another maxconn, which is not more than what plan() has allowed; 0: what that was."""
    allowed = min(maxconn, limits.maxconn) if maxconn else limits.maxconn
    return replace(limits, maxconn=allowed, share=-(-allowed // workers))


def _shortage(maxconn: int, workers: int, nofile: int, parked: int, needed: int) -> str:
    fit = workers * max(0, (parked - _PIPES) // 2)
    if fit >= maxconn:
        return ""
    less = f" or set maxconn to {fit} or less" if fit else ""  # maxconn 0 would mean no limit
    return (
        f"cannot be sure to park more than {fit} of maxconn {maxconn} connections: they and the workers' pipes may take"
        f" a third of the limit on open files, which is {nofile}; raise it to {needed} (LimitNOFILE= in the unit){less}"
    )


def store_entries(listeners: int, runtime: int, workers: int) -> int:
    """How many entries of systemd's descriptor store a reload may take for a moment: what the old generation and the
    new one need. `listeners` are those that we bind ourselves, `runtime` those of the runtime API and of
    metrics.

    A reload that changes every address has the old and the new listeners in the store. An older generation that keeps
    its connections (`no option migrate`) needs more.
    """
    table = state = changes = 1
    return 2 * (listeners + runtime + table + state + changes + _PARK_ENTRIES * workers)


def store_problem(entries: int, maximum: int) -> str:
    """What to tell the operator when the store takes `maximum` entries ($FDSTORE, sd_listen_fds(3)) and `entries` may
    be needed; "" when they fit."""
    if entries <= maximum:
        return ""
    return (
        f"cannot be sure to keep everything over a restart: systemd stores {maximum} descriptors, and a reload may take"
        f" {entries}; raise it to {entries} (FileDescriptorStoreMax= in the unit)"
    )
