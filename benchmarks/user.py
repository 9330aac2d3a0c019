"""An ordinary user for each proxy, as the shipped unit has one: root is exempt from some of the kernel's limits.

Each proxy gets a user whom nobody else is, so that what the kernel counts by user (pages in pipes, descriptors on their
way) is not shared with the others.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import resource
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.support.processes import ROOT

__all__ = ["User", "apply_unit_limit", "ordinary_user", "unit_limit"]

_UNIT: Final = ROOT / "units" / "hitlessd.service"
_FIRST: Final = 2_000_000
_SERIAL: Final = itertools.count()
_NEEDED: Final = (0, 1, 6, 7, 19)
"""CAP_CHOWN, CAP_DAC_OVERRIDE, CAP_SETGID, CAP_SETUID, CAP_SYS_PTRACE: to become somebody else, and to look at them."""


@dataclass(frozen=True)
class User:
    """Runs commands as somebody without privileges; `uid` None: as we are."""

    uid: int | None = None

    @property
    def wrapper(self) -> list[str]:
        """What comes before a command; it keeps the process, and so its pid."""
        if self.uid is None:
            return []
        who = [f"--reuid={self.uid}", f"--regid={self.uid}", "--clear-groups"]
        return ["setpriv", *who, "--bounding-set=-all", "--inh-caps=-all", "--no-new-privs"]

    def own(self, directory: Path) -> None:
        """Give it the directory with all that is in it, and a way there."""
        if self.uid is None:
            return
        for path in (directory, *directory.rglob("*")):
            os.chown(path, self.uid, self.uid, follow_symlinks=False)
        temporary = Path(tempfile.gettempdir()).resolve()
        for parent in directory.resolve().parents:
            if temporary in parent.parents:
                parent.chmod(parent.stat().st_mode | 0o011)


def ordinary_user() -> User:
    """Another one each time, if we are root and such a user can run this tree; else we ourselves."""
    if os.geteuid() != 0 or not _capable():
        return User()
    # So must be the Python that runs it: one below /root cannot be.
    python = Path(os.path.realpath(sys.executable))
    if not all(path.stat().st_mode & 0o5 == 0o5 for path in (ROOT, *ROOT.parents, python, *python.parents)):
        return User()
    return User(_FIRST + os.getpid() * 64 + next(_SERIAL))


def _capable() -> bool:
    lines = Path("/proc/self/status").read_text().splitlines()
    held = next(int(line.split()[1], 16) for line in lines if line.startswith("CapEff:"))
    return all(held >> number & 1 for number in _NEEDED)


def unit_limit(text: str) -> int:
    """LimitNOFILE= of a unit; ValueError if it says none."""
    found = re.search(r"^LimitNOFILE=(\d+)$", text, re.MULTILINE)
    if found is None:
        raise ValueError("cannot read the unit: no LimitNOFILE=")
    return int(found[1])


def apply_unit_limit() -> tuple[int, int]:
    """Set our own limit on open files, which all processes inherit, to that of the shipped unit, or as near as we may.

    Returns the limit, and that of the unit.
    """
    wanted = unit_limit(_UNIT.read_text())
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, wanted))
    limit = min(hard, wanted) if resource.getrlimit(resource.RLIMIT_NOFILE)[1] != wanted else wanted
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
    return limit, wanted
