"""What a worker tells main about its connections, one by one."""

from __future__ import annotations

import itertools
import json
from typing import TYPE_CHECKING, Any

from hitlessd import channel
from hitlessd.worker.serial import to_serial

if TYPE_CHECKING:
    from hitlessd.worker.loop import Worker

__all__ = ["show"]

_MOST_SHOWN = 200


def show(worker: Worker, order: dict[str, Any]) -> dict[str, Any]:
    """As many serial forms as fit into one message, the oldest first."""
    shown: list[dict[str, Any]] = []
    room = channel.LONGEST - 1024
    for conn in itertools.islice(worker.connections, _MOST_SHOWN):
        form = to_serial(conn, data=False).as_dict()
        room -= len(json.dumps(form, separators=(",", ":"))) + 1
        if room < 0:
            break
        shown.append(form)
    return {"sessions": shown, "total": len(worker.connections)}
