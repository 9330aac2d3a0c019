"""CPU time and memory of processes, as /proc tells it."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from tests.support.processes import TICKS, stat_fields

__all__ = ["Usage", "machine_cpu", "usage_of"]


class Usage(NamedTuple):
    """CPU seconds. `total` is exact where the kernel counts nanoseconds; of the parts only the ratio counts."""

    total: float
    user: float
    system: float

    def __sub__(self, other: Usage) -> Usage:
        return Usage(self.total - other.total, self.user - other.user, self.system - other.system)

    @property
    def kernel_share(self) -> float:
        """0 to 1."""
        parts = self.user + self.system
        return self.system / parts if parts > 0 else 0.0


def usage_of(pids: Sequence[int]) -> Usage:
    """All threads of all these processes, and those children that they have waited for."""
    total = user = system = 0.0
    for pid in pids:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            own_user, own_system, child_user, child_system = (int(word) / TICKS for word in stat_fields(pid)[11:15])
            exact = _exact(pid)
            total += (own_user + own_system if exact is None else exact) + child_user + child_system
            user += own_user + child_user
            system += own_system + child_system
    return Usage(total, user, system)


def _exact(pid: int) -> float | None:
    """By the scheduler's clock; None where the kernel does not tell (proc(5), schedstat)."""
    total = 0
    for thread in Path(f"/proc/{pid}/task").iterdir():
        try:
            total += int((thread / "schedstat").read_text().split()[0])
        except (FileNotFoundError, ProcessLookupError):
            return None
    return total / 1e9


def machine_cpu() -> float:
    """CPU seconds that all processes of the machine have used, other machines on the same hardware included (steal)."""
    fields = [int(field) for field in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
    user, nice, system, _idle, _iowait, irq, softirq, steal = fields
    return (user + nice + system + irq + softirq + steal) / TICKS
