"""What a server is now, by what main has last written into the shared table and by the configuration."""

from __future__ import annotations

from collections.abc import Sequence

from hitlessd import health
from hitlessd.dataclass import dataclass
from hitlessd.model import Backend, Server
from hitlessd.table import Health, HealthRecord, RowKey, ServerState, Table

__all__ = ["ServerNow", "configured_now", "server_now"]

_UNCHECKED = HealthRecord()


@dataclass(frozen=True, slots=True)
class ServerNow:
    """A server's state."""

    admin: ServerState
    weight: int
    since: int  # CLOCK_REALTIME seconds of the latest change, 0 when there never was one
    backup: bool
    health: HealthRecord = _UNCHECKED
    text: str = ""  # of the latest check

    @property
    def up(self) -> bool:
        """Not found down by checks."""
        return self.health.health != Health.DOWN

    @property
    def usable(self) -> bool:
        """Whether balancing may choose it."""
        stays = self.up and self.health.health != Health.STOPPING
        return self.admin is ServerState.READY and self.weight > 0 and stays

    def status(self, server: Server) -> str:
        """HAProxy's words; maintenance goes before what checks say, and that before draining."""
        if self.admin is ServerState.MAINT:
            return "MAINT"
        if self.health.health == Health.STOPPING:
            return "NOLB"  # an operator's word
        if server.check is None and not self.up:
            return "DOWN"  # likewise
        if server.check is None:
            return "DRAIN" if self.admin is ServerState.DRAIN else "no check"
        text = health.status(server.check, self.health.counter, self.up)
        return text.replace("UP", "DRAIN") if self.up and self.admin is ServerState.DRAIN else text


def configured_now(server: Server) -> ServerNow:
    """What the configuration says of a server that main has not written of yet."""
    admin = ServerState.MAINT if server.disabled else ServerState.DRAIN if server.drain else ServerState.READY
    return ServerNow(admin, server.weight, 0, server.backup)


def server_now(server: Server, backend: Backend, tables: Sequence[Table]) -> ServerNow:
    """What main last wrote of a server, into the first table; what the configuration says before it did."""
    table = tables[0] if tables else None
    row = table.index.get(RowKey("server", backend.name, server.name)) if table else None
    if table is None or row is None or not table.since(row):
        return configured_now(server)
    record = table.health(row)
    since = max(table.since(row), record.since)
    text = table.check_text(row) if server.check else ""
    return ServerNow(table.state(row), table.weight(row), since, server.backup, record, text)
