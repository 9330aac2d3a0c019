"""What main hands to a worker process at its fork; data only."""

from __future__ import annotations

import socket
from collections.abc import Sequence

from hitlessd.accesslog import AccessLog
from hitlessd.dataclass import dataclass
from hitlessd.log import Logger
from hitlessd.model import Bind, Config
from hitlessd.parking.park import Park
from hitlessd.table import PROCESS, Column, Table

__all__ = ["WorkerSetup"]


@dataclass(frozen=True)
class WorkerSetup:
    """Everything a worker needs. It owns its end of the channel and its copies of the listeners; nothing else."""

    index: int  # 0..workers-1: our slot in the table
    config: Config
    listeners: Sequence[tuple[str, Bind, socket.socket]]  # frontend name, bind, listening socket shared with others
    table: Table
    channel: socket.socket  # AF_UNIX SOCK_SEQPACKET, non-blocking
    wake: Sequence[int]  # one eventfd a worker; wake[index] is ours
    log: Logger
    maxconn: int  # this worker's share of the global limit, 0 for none
    generation: int
    park: Park | None = None  # where connections lie that outlive this worker
    park_limit: int = 0  # descriptors that may lie there
    exact: bool = False  # the kernel's TCP counters add up
    access: AccessLog | None = None  # where access logs go; None: to `log`

    @property
    def first_number(self) -> int:
        """Of this worker's connections: unlike any of another worker's or generation's, even of one that died in our
        place. 18 bits for the generation, 6 for the index (at most 64 workers), 40 for those counted so far."""
        counted = self.table.slot(self.index)[self.table.index[PROCESS] * self.table.columns + Column.STOT]
        return (self.generation & 0x3FFFF) << 46 | self.index << 40 | counted + 1
