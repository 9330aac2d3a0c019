"""What goes into a machine: archives of files that belong to root, and hitlessd as its Debian package installs it."""

from __future__ import annotations

import io
import tarfile
import time
from pathlib import Path

__all__ = ["INSTALL_COMMANDS", "add_hitlessd", "add_text", "owned_by_root", "owned_source"]

INSTALLED_SCRIPT = "#!/usr/bin/python3\nimport sys\n\nfrom hitlessd.{module} import main\n\nsys.exit(main())\n"

INSTALLED_UNITS = {
    ".catalog": "usr/lib/systemd/catalog/{name}",
    ".service": "usr/lib/systemd/system/{name}",
    ".socket": "usr/lib/systemd/system/{name}",
    ".sysusers": "usr/lib/sysusers.d/{stem}.conf",
    ".tmpfiles": "usr/lib/tmpfiles.d/{stem}.conf",
}
"""Where a file in units/ goes, by its suffix. What has another suffix is documentation."""

INSTALL_COMMANDS = (
    ("mkdir", "-p", "/etc/hitlessd/conf.d"),
    ("python3", "-m", "compileall", "-q", "/usr/lib/python3/dist-packages/hitlessd"),
    ("systemd-sysusers", "hitlessd.conf"),
    ("systemd-tmpfiles", "--create", "hitlessd.conf"),
    ("journalctl", "--update-catalog"),
    ("systemctl", "daemon-reload"),
)
"""What the Debian package does when its files are there."""


def add_hitlessd(archive: tarfile.TarFile, tree: Path, configuration: str) -> None:
    """Add what the Debian package contains, from a source tree, and the configuration."""
    archive.add(tree / "hitlessd", "usr/lib/python3/dist-packages/hitlessd", filter=owned_source)
    for unit in sorted((tree / "units").iterdir()):
        if place := INSTALLED_UNITS.get(unit.suffix):
            archive.add(unit, place.format(name=unit.name, stem=unit.stem), filter=owned_by_root)
    add_text(archive, "/usr/bin/hitlessd", INSTALLED_SCRIPT.format(module="cli"), 0o755)
    add_text(archive, "/usr/bin/hitlessctl", INSTALLED_SCRIPT.format(module="ctl"), 0o755)
    add_text(archive, "/etc/hitlessd/hitlessd.conf", configuration)


def add_text(archive: tarfile.TarFile, inside: str, text: str, mode: int = 0o644) -> None:
    member = tarfile.TarInfo(inside.lstrip("/"))
    content = text.encode()
    member.size, member.mode, member.mtime = len(content), mode, int(time.time())
    archive.addfile(member, io.BytesIO(content))


def owned_by_root(member: tarfile.TarInfo) -> tarfile.TarInfo:
    member.uid = member.gid = 0
    member.uname = member.gname = "root"
    return member


def owned_source(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
    """A tarfile filter: what belongs to a source tree, and to root."""
    return None if Path(member.name).name == "__pycache__" else owned_by_root(member)
