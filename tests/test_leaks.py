"""Row 11: a hundred reloads leave nothing behind, neither descriptors nor memory nor processes."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from tests.support.daemon import Daemon
from tests.support.echo import Echo, exchange
from tests.support.processes import free_port, poll_until
from tests.support.visitors import listen


def _descriptors(pid: int) -> list[str]:
    """What the open descriptors of a process are, by kind."""
    kinds = []
    for fd in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(OSError):
            kinds.append(os.readlink(f"/proc/{pid}/fd/{fd}").partition(":")[0])
    return sorted(kinds)


def _memory(pid: int) -> int:
    """Kilobytes that are this process's alone, which those of its file mappings and the like are not."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private_"))


def test_row_11_a_hundred_reloads_leave_nothing_behind(tmp_path: Path) -> None:
    ports = [free_port() for _ in range(3)]
    path = tmp_path / "front.sock"
    body = f"[listen t]\nbind = unix@{path}\nserver s = unix@{path}.none\n"
    with (
        Echo() as echo,
        Daemon(tmp_path, listen(*ports, server=echo.port) + body.replace("t]", "u]"), workers=1) as daemon,
    ):

        def held() -> list[list[str]]:
            """The descriptors of main and its worker, when nobody else is left."""
            poll_until(lambda: len(daemon.processes()) == 2, 10, "one generation")
            # Main has seen the end of the others, too.
            poll_until(lambda: daemon.info()["Generations"] == "1", 10, "one generation in the books")
            return [_descriptors(pid) for pid in daemon.processes()]

        def reload_until(generation: int) -> None:
            while int(daemon.info()["Generation"]) < generation:
                assert exchange(ports[0]) == b"hello"
                assert daemon.ask("reload").startswith("Success=1")

        # What a start leaves out, the spare imports a second later, for all who come behind it. It must not make the
        # difference between one generation and another that was looked at earlier in its life.
        reload_until(9)
        poll_until(lambda: int(daemon.info()["Uptime_sec"]) > 1, 15, "a start is over")
        reload_until(10)
        # The connection of the last visitor may still be on its way out.
        poll_until(lambda: held() == held(), 10, "rest")
        before, memory = held(), _memory(daemon.pid)
        files = sorted(os.listdir(tmp_path))
        for generation in (30, 100):
            reload_until(generation)
            poll_until(lambda: held() == before, 10, f"the descriptors {before}")
        # What a generation knows of those before it must not grow with their number; the rest is the allocator's.
        grown = _memory(daemon.pid) - memory
        assert grown < 512, f"{grown} KiB more than at generation 10"
        assert sorted(os.listdir(tmp_path)) == files
        assert daemon.info()["CumConns"] == "99"
