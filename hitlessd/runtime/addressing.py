"""`@6 show info`: asking one generation, in the words of HAProxy's master CLI (management guide, 9.4).

`@N` names a generation, `@!PID` the one that has this process, `@master` or `@` all of them together, as without a
prefix. A prefix alone counts for the commands that follow.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from typing import Any, cast

from hitlessd.runtime.command import Call, Command
from hitlessd.runtime.control import Control, GenerationInfo
from hitlessd.table import RowKey, Table

__all__ = ["aim", "find", "narrowed"]


def aim(prefix: str, control: Control) -> int | None:
    """The generation that a prefix names, 0 for all; None if there is no such one."""
    if prefix in ("@", "@master"):
        return 0
    match = re.fullmatch(r"@(!?)([0-9]{1,18})", prefix)
    if not match:
        return None
    number = int(match[2])
    for info in control.generations():
        if number in ((info.pid, *(pid for pid, _ in info.workers)) if match[1] else (info.generation,)):
            return info.generation
    return None


def find(generation: int, control: Control) -> GenerationInfo | None:
    """What is known of a generation that lives."""
    return next((info for info in control.generations() if info.generation == generation), None)


def narrowed(call: Call, command: Command, info: GenerationInfo) -> str:
    """Have the call ask that generation only. Why not, if it cannot."""
    if command.scope == "generation":
        call.control = cast(Control, _One(call.control, info, call.monotonic))
    elif command.scope == "all" and info.role != "current":
        words = " ".join(command.words)
        return f"cannot ask generation {info.generation} for '{words}': it drains, ask the current one\n"
    return ""


class _One:
    """A Control that knows of one generation only; the rest is as it was."""

    def __init__(self, control: Control, info: GenerationInfo, monotonic: float) -> None:
        self._control = control
        self._info = info
        self.pid, self.generation, self.version = info.pid, info.generation, info.version
        self._current = info.role == "current"
        self.started = control.started if self._current else monotonic - info.uptime
        self.started_at = control.started_at if self._current else time.time() - info.uptime
        self.stopping = control.stopping or not self._current
        self.listeners = control.listeners if self._current else 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._control, name)

    def tables(self) -> Sequence[Table]:
        return [table for table in self._control.tables() if table.generation == self.generation]

    def generations(self) -> Sequence[GenerationInfo]:
        return [self._info]

    def rates(self, key: RowKey) -> tuple[int, int]:
        # One that drains gets nobody new.
        return self._control.rates(key) if self._current else (0, 0)

    def request_rates(self, key: RowKey) -> tuple[int, int]:
        return self._control.request_rates(key) if self._current else (0, 0)

    def sessions(self, after: int, only: int, done: Callable[[dict[str, Any]], object]) -> None:
        def came(page: dict[str, Any]) -> None:
            forms = page["sessions"]
            ours = [form for form in forms if form.get("generation") == self.generation]
            if not ours and forms and page.get("more"):
                self._control.sessions(int(forms[-1]["number"]), only, came)
            else:
                # Where to go on is said by the last form; what lies behind it is asked for again, and left out again.
                done({**page, "sessions": ours})

        self._control.sessions(after, only, came)
