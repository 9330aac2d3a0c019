"""What operators change at run time: kept beside the configuration, applied to it, and dropped where it has moved on.

A change remembers what the configuration said of the item when it was made. It survives reloads, restarts and crashes
as long as the configuration still says that; once somebody edits the item there, the file counts again. No I/O.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal, NamedTuple

from hitlessd.dataclass import dataclass, field

__all__ = ["Change", "Changes", "Item", "Kind", "described"]

#: What can be changed, and what its value is.
Kind = Literal[
    "server-state",  # "ready", "drain" or "maint"
    "server-weight",  # 0..256
    "server-address",  # an address as in the configuration: HOST:PORT, [HOST]:PORT or a path
    "server-maxconn",  # 0: no limit
    "server-check",  # whether it is checked
    "server-added",  # the words behind its name, as in a `server` line
    "server-deleted",  # True
    "frontend-state",  # "on" or "off"
    "frontend-maxconn",
    "global-maxconn",
]


class Item(NamedTuple):
    """What a change is about; what does not apply is empty."""

    kind: Kind
    proxy: str = ""
    server: str = ""


@dataclass(frozen=True, slots=True)
class Change:
    """An item's new value. `before` is what the configuration says of it, filled in by whoever applies the change."""

    item: Item
    value: Any
    before: Any = None


@dataclass(slots=True)
class Changes:
    """All that are in force, in the order in which they were made."""

    items: dict[Item, Change] = field(default_factory=dict)

    def export(self) -> list[list[Any]]:
        """As JSON has it."""
        return [[*change.item, change.value, change.before] for change in self.items.values()]

    @classmethod
    def load(cls, record: Iterable[Any]) -> Changes:
        """Raises TypeError, ValueError for what no generation of ours has written."""
        found = cls()
        for kind, proxy, server, value, before in record:
            item = Item(kind, str(proxy), str(server))
            found.items[item] = Change(item, value, before)
        return found

    def of(self, proxy: str, server: str = "") -> Mapping[Kind, Change]:
        """Those about one proxy or server, by kind."""
        return {
            item.kind: change for item, change in self.items.items() if (item.proxy, item.server) == (proxy, server)
        }


_NAMES: dict[str, str] = {
    "server-state": "state",
    "server-weight": "weight",
    "server-address": "address",
    "server-maxconn": "maxconn",
    "server-check": "health check",
    "frontend-state": "state",
    "frontend-maxconn": "maxconn",
    "global-maxconn": "maxconn",
}


def described(item: Item) -> str:
    """An item in words, for a log: "weight of server b/s"."""
    name = _NAMES.get(item.kind, "")
    if item.server:
        server = f"server {item.proxy}/{item.server}"
        return f"{name} of {server}" if name else server
    return f"{name} of frontend {item.proxy}" if item.proxy else name
