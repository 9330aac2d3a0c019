"""Worker processes: accept, balance, relay. `run` is where main's fork continues."""

from hitlessd.worker.loop import run
from hitlessd.worker.setup import WorkerSetup

__all__ = ["WorkerSetup", "run"]
