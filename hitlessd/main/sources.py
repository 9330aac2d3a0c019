"""Whether the files that a process was made of are still those: the program's, its interpreter's and its libraries'."""

from __future__ import annotations

import os
import sys
import time

__all__ = ["Sources", "started"]

_START_TIME = 19  # of /proc/PID/stat, counted behind the name: in clock ticks since the machine was booted (proc(5))
_Mark = tuple[int, int, int, int]


class Sources:
    """The files of all modules that this process has imported, as they are now."""

    def __init__(self, since: int) -> None:
        """`since`: when the process began that has read the first of them, as started() says."""
        self._since = since
        self._marks: dict[str, _Mark | None] = {}
        self._doubtful = ""
        self.note()

    def note(self) -> None:
        """More may have been imported."""
        files = {sys.executable, *(getattr(module, "__file__", None) for module in list(sys.modules.values()))}
        for file in files:
            if file is not None and file not in self._marks:
                mark = self._marks[file] = _mark(file)
                # A file that is younger than the process may not be the one that was read.
                if mark is None or mark[3] > self._since:
                    self._doubtful = file

    def changed(self) -> str:
        """A file that is not what it was, or may not be; "" if there is none."""
        if self._doubtful:
            return self._doubtful
        for file, mark in self._marks.items():
            if _mark(file) != mark:
                return file
        return _replaced_library()


def _mark(file: str) -> _Mark | None:
    try:
        found = os.stat(file)
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_size, found.st_ctime_ns


def started() -> int:
    """When this process was, in nanoseconds of the wall clock."""
    with open("/proc/self/stat") as file:
        ticks = int(file.read().rpartition(")")[2].split()[_START_TIME])
    age = time.clock_gettime_ns(time.CLOCK_BOOTTIME) - ticks * (10**9 // os.sysconf("SC_CLK_TCK"))
    return time.time_ns() - age


def _replaced_library() -> str:
    """A file whose code is in memory, and which has no name any more (proc(5), /proc/PID/maps)."""
    with open("/proc/self/maps", errors="surrogateescape") as file:
        for line in file:
            if line.endswith(" (deleted)\n"):
                _, permissions, _, _, _, path = line.split(maxsplit=5)
                if "x" in permissions and not path.startswith("/memfd:"):
                    return path.removesuffix(" (deleted)\n")
    return ""
