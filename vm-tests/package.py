"""The Debian package, built from the tree as it is committed, or from what a test makes of that.

python vm-tests/package.py DIRECTORY    builds it there: hitlessd_VERSION_all.deb and the source package
"""

import fcntl
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

__all__ = ["Built", "build", "build_once", "with_version"]

TREE = Path(__file__).resolve().parent.parent
#: What a Python program that builds something else must not hand down.
_UNWANTED = ("MAKEFLAGS", "MFLAGS", "MAKELEVEL", "PYTHONPATH", "VIRTUAL_ENV", "DEB_BUILD_OPTIONS")

Change = Callable[[Path], object]


class Built(Protocol):
    """Gives the package of that name, made with these changes, whoever has built it."""

    def __call__(self, name: str, *changes: Change) -> Path: ...


def with_version(version: str) -> Change:
    """Make a tree another version."""

    def change(tree: Path) -> None:
        init = tree / "hitlessd" / "__init__.py"
        init.write_text(re.sub(r'__version__ = "[^"]+"', f'__version__ = "{version}"', init.read_text()))
        changelog = tree / "debian" / "changelog"
        changelog.write_text(re.sub(r"\(.+?\)", f"({version}-1)", changelog.read_text(), count=1))

    return change


def build(directory: Path, *changes: Change, tree: Path = TREE) -> Path:
    """Build what `tree` has committed, after these changes; returns the package. Raises CalledProcessError."""
    with tempfile.TemporaryDirectory(prefix="hitlessd-package-") as scratch:
        source = Path(scratch) / "hitlessd"
        source.mkdir()
        archive = subprocess.run(["git", "-C", str(tree), "archive", "HEAD"], check=True, capture_output=True).stdout
        subprocess.run(["tar", "-x", "-C", str(source)], input=archive, check=True)
        for change in changes:
            change(source)
        return _build(source, directory)


def build_once(directory: Path, name: str, *changes: Change) -> Path:
    """The package that build() leaves in `directory`/`name`: built by the first of all processes that ask for it."""
    place = directory / name
    place.mkdir(parents=True, exist_ok=True)
    with open(place / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        # Whole: of a build that failed nothing is copied.
        return next(place.glob("*.deb"), None) or build(place, *changes)


def _build(source: Path, directory: Path) -> Path:
    first = (source / "debian" / "changelog").read_text().splitlines()[0]
    version = first.partition("(")[2].partition(")")[0]
    upstream = version.rpartition("-")[0]
    parent = source.parent
    environment = {name: value for name, value in os.environ.items() if name not in _UNWANTED}
    environment |= {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8"}
    run = {"cwd": source, "env": environment, "check": True, "capture_output": True, "text": True}
    epoch = subprocess.run(["dpkg-parsechangelog", "-STimestamp"], **run).stdout.strip()  # type: ignore[call-overload]
    # The same bytes whenever and wherever it is made.
    orig = ["tar", "-c", "-J", "-f", str(parent / f"hitlessd_{upstream}.orig.tar.xz"), "--exclude=./debian"]
    orig += [
        "--sort=name",
        f"--mtime=@{epoch}",
        "--owner=0",
        "--group=0",
        "--numeric-owner",
        "--format=gnu",
        "--mode=u=rwX,go=rX",
    ]
    orig += [f"--transform=s,^\\.,hitlessd-{upstream},", "."]
    subprocess.run(orig, **run)  # type: ignore[call-overload]
    try:
        subprocess.run(["dpkg-buildpackage", "--unsigned-source", "--unsigned-changes"], **run)  # type: ignore[call-overload]
    except subprocess.CalledProcessError as error:
        print(error.stdout, error.stderr, file=sys.stderr)
        raise
    directory.mkdir(parents=True, exist_ok=True)
    for file in parent.glob(f"hitlessd_{upstream}*"):
        shutil.copy(file, directory)
    return directory / f"hitlessd_{version}_all.deb"


if __name__ == "__main__":
    print(build(Path(sys.argv[1])))
