"""Who accepts on a port, told by the kernel: whose epoll set has its listening socket (proc(5), fdinfo)."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable
from pathlib import Path

_LISTEN = "0A"


def listening_sockets() -> dict[int, set[str]]:
    """The inodes of the TCP sockets that listen, by port."""
    found: dict[int, set[str]] = {}
    for table in ("tcp", "tcp6"):
        with open(f"/proc/net/{table}") as lines:
            next(lines)
            for line in lines:
                fields = line.split()
                if fields[3] != _LISTEN:
                    break  # these come first, and of others there may be tens of thousands
                found.setdefault(int(fields[1].rpartition(":")[2], 16), set()).add(fields[9])
    return found


def listening(port: int) -> bool:
    """Whether a socket listens on the port, accepted from or not."""
    return port in listening_sockets()


def accepting(pids: Iterable[int], port: int) -> set[int]:
    """Those of the processes that wait for connections on the port; the listener may outlast the last of them."""
    inodes = listening_sockets().get(port, set())
    return {pid for pid in pids if _watches(pid, inodes)}


def _watches(pid: int, inodes: set[str]) -> bool:
    with contextlib.suppress(OSError):
        for fd in os.listdir(f"/proc/{pid}/fd"):
            with contextlib.suppress(OSError):
                if os.readlink(f"/proc/{pid}/fd/{fd}") != "anon_inode:[eventpoll]":
                    continue
                for line in Path(f"/proc/{pid}/fdinfo/{fd}").read_text().splitlines():
                    # A connection that was closed since says nothing about the listener behind it.
                    with contextlib.suppress(OSError):
                        if line.startswith("tfd:"):
                            target = os.readlink(f"/proc/{pid}/fd/{line.split()[1]}")
                            if target.removeprefix("socket:[").removesuffix("]") in inodes:
                                return True
    return False


def parent(pid: int) -> int:
    """The parent of a process; of a worker that is the main process of its generation."""
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def generations_accepting(pids: Iterable[int], port: int) -> set[int]:
    """The main processes whose workers accept on the port."""
    mains = set()
    for pid in accepting(pids, port):
        with contextlib.suppress(OSError):
            mains.add(parent(pid))
    return mains
