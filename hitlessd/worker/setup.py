"""What main hands to a worker process at its fork; data only."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from dataclasses import dataclass

from hitlessd.log import Logger
from hitlessd.model import Bind, Config
from hitlessd.table import Table

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
