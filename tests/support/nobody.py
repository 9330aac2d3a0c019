"""A user of one's own for a daemon: whoever may raise limits, as root may, is exempt from some of the kernel's."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.support.processes import ROOT

__all__ = ["Nobody", "nobody"]


@dataclass(frozen=True)
class Nobody:
    """`wrapper` is a command that runs another one as this user, under a hard limit on open files."""

    directory: Path
    wrapper: list[str]
    uid: int | None = None  # None: as we are


@contextlib.contextmanager
def nobody(limit: int) -> Iterator[Nobody]:
    """A user whom nobody else is, if we may choose one and it can read this tree; else we are it, unprivileged."""
    limited = ["prlimit", f"--nofile={limit}:{limit}"]
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        if os.getuid():
            yield Nobody(directory, limited)
        elif all(path.stat().st_mode & 0o5 == 0o5 for path in (ROOT, *ROOT.parents)):
            uid = 1_000_000 + os.getpid()
            os.chown(directory, uid, uid)
            directory.chmod(0o755)
            yield Nobody(directory, [*_as(uid), *limited], uid)
        else:
            yield Nobody(directory, ["setpriv", "--bounding-set=-sys_resource,-sys_admin", *limited])


def _as(uid: int) -> list[str]:
    return ["setpriv", f"--reuid={uid}", f"--regid={uid}", "--clear-groups"]
