"""The images that the machines boot from: for each suite a Debian root directory, made with mmdebstrap.

Beside each lies a disk with the same files, for QEMU, which also wants the suite's own kernel (kernel.py).

    python vm-tests/image.py            make what is missing (idempotent; root; about a minute a suite)
    python vm-tests/image.py --rebuild  make all anew, for the archive's latest packages

An image lies outside the tree, in ${XDG_CACHE_HOME:-/var/cache}/hitlessd-vm/NAME-KEY, where KEY is a hash of all that
is in its recipe, so that a changed recipe makes a new image. It appears by rename, complete or not at all, and nothing
ever writes to it again. The mirror is the one this machine's apt uses.
"""

import argparse
import contextlib
import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

__all__ = ["SUITES", "ImageError", "build", "disk_path", "image_path"]

SUITES = {"debian-12": "bookworm", "debian-13": "trixie"}
"""The archive's suite for each machine name."""

PACKAGES = (
    "curl",
    "dbus",
    "haproxy",
    "iproute2",
    "linux-image-cloud-amd64",
    "openssh-client",
    "openssh-server",
    "postgresql",
    "procps",
    "python3",
    "python3-hypothesis",
    "python3-prometheus-client",
    "python3-pytest",
    "python3-rich",
    "python3-systemd",
    "redis-server",
    "redis-tools",
    "systemd",
    "systemd-sysv",
)

# Masked: servers because the tests that want them start them; the rest because no test wants a login or a maintenance
# job, and each makes the boot longer and the journal less repeatable.
MASKED = (
    "apt-daily-upgrade.timer",
    "apt-daily.timer",
    "console-getty.service",
    "dpkg-db-backup.timer",
    "e2scrub_all.timer",
    "e2scrub_reap.service",
    "fstrim.timer",
    "getty@.service",
    "haproxy.service",
    "postgresql.service",
    "redis-server.service",
    "ssh.service",
    "systemd-pstore.service",
)

FILES = {
    # In memory, since nothing outlives a boot; without a rate limit, so that a test sees every line.
    "etc/systemd/journald.conf.d/50-test.conf": "[Journal]\nStorage=volatile\nRateLimitIntervalSec=0\n",
    # Debian's installer writes it, not a package.
    "etc/hosts": "127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n",
    # Empty: the container's own id counts, and the boot is not taken for a first one, which would apply presets.
    "etc/machine-id": "",
    # Present: /usr is not newer than these, so the boot need not rebuild the linker cache and the journal's catalog.
    "etc/.updated": "",
    "var/.updated": "",
    # Only where the kernel's command line wants it: root's shell on the second serial line. It begins with the files
    # that the second disk brings.
    "etc/systemd/system/serial-shell.service": """\
[Unit]
After=multi-user.target
[Service]
Environment=HOME=/root LANG=C.UTF-8 TERM=dumb SYSTEMD_PAGER= PS1= PS2=
ExecStart=/bin/sh -euc 'stty raw -echo; tar --extract --file=/dev/vdb --directory=/; echo ready; exec sh'
StandardInput=tty
StandardOutput=tty
StandardError=tty
TTYPath=/dev/ttyS1
LimitNOFILE=524288
""",
}

LINKS = {"etc/systemd/system/default.target": "/usr/lib/systemd/system/multi-user.target"} | {
    f"etc/systemd/system/{unit}": "/dev/null" for unit in MASKED
}

MMDEBSTRAP_OPTIONS = (
    "--mode=root",
    "--variant=minbase",
    "--dpkgopt=path-exclude=/usr/share/doc/*",
    "--dpkgopt=path-exclude=/usr/share/locale/*",
    "--dpkgopt=path-exclude=/usr/share/man/*",
    f"--include={','.join(PACKAGES)}",
)

# No journal: a disk is thrown away after each boot. With what a test may write.
MKE2FS_OPTIONS = ("-q", "-t", "ext4", "-O", "^has_journal", "-m", "0")
DISK_SIZE = "2G"

# What of the host's apt configuration says how to reach the mirror.
APT_ACQUIRE_OPTIONS = ("http", "https", "ftp", "check-valid-until", "check-date", "forceipv4", "forceipv6", "retries")


class ImageError(Exception):
    """An image is missing or cannot be made."""


def cache_directory() -> Path:
    """Where images lie. Not below a home directory by default: they are made by root and belong to the machine."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "/var/cache") / "hitlessd-vm"


def image_path(name: str) -> Path:
    """The root directory of the image for `name`, a key of SUITES; it exists if the image has been made."""
    if name not in SUITES:
        raise ImageError(f"cannot find an image: no suite is called {name!r}, only {', '.join(SUITES)}")
    options = (MMDEBSTRAP_OPTIONS, MKE2FS_OPTIONS, DISK_SIZE)
    recipe = repr((SUITES[name], PACKAGES, options, sorted(FILES.items()), sorted(LINKS.items())))
    return cache_directory() / f"{name}-{hashlib.sha256(recipe.encode()).hexdigest()[:12]}"


def disk_path(name: str) -> Path:
    """The ext4 file system with the files of the image for `name`; it exists if the image does."""
    root = image_path(name)
    return root.with_name(f"{root.name}.ext4")


def build(name: str, *, rebuild: bool = False) -> Path:
    """Make the image for `name` unless it is there, and return its root directory.

    Several processes may do so at once: the later ones wait and find it made. `rebuild` makes it anew, which must not
    be done while a machine runs from it. Raises ImageError.
    """
    root = image_path(name)
    if os.geteuid() != 0:
        raise ImageError(f"cannot make the image {root}: only root can")
    with _locked(root):
        if root.is_dir() and not rebuild:
            return root
        # Beside the final place, so that the rename stays within one file system.
        with tempfile.TemporaryDirectory(prefix=f".{root.name}.", dir=root.parent) as scratch:
            new = Path(scratch) / "new"
            _bootstrap(SUITES[name], new)
            _settle(new)
            disk = Path(scratch) / "disk"
            _make_disk(new, disk)
            disk.rename(disk_path(name))
            # Last: who finds the directory finds the disk as well.
            if root.is_dir():
                root.rename(Path(scratch) / "old")
            new.rename(root)
    return root


@contextlib.contextmanager
def _locked(root: Path) -> Iterator[None]:
    """Hold the lock of one image, and clear away what a killed build of it has left."""
    root.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    with open(root.parent / f".{root.name}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for leftover in root.parent.glob(f".{root.name}.*"):
            if leftover.is_dir():
                shutil.rmtree(leftover)
        yield


def _bootstrap(suite: str, root: Path) -> None:
    command = ["mmdebstrap", *MMDEBSTRAP_OPTIONS]
    command += [f"--aptopt={line}" for line in _apt_options()]
    command += [suite, str(root), *_sources(suite)]
    # The environment goes along: it may hold the proxy or the certificate store that the mirror needs.
    result = _output(command, "install the packages mmdebstrap and debian-archive-keyring")
    if result.returncode:
        raise ImageError(f"cannot bootstrap {suite}: mmdebstrap exited with {result.returncode}:\n{result.stderr}")


def _settle(root: Path) -> None:
    """What turns a fresh installation into a machine that boots fast and alike each time."""
    for name, target in LINKS.items():
        link = root / name
        link.unlink(missing_ok=True)
        link.symlink_to(target)
    for name, text in FILES.items():
        file = root / name
        file.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        file.write_text(text)
        file.chmod(0o644)
    # The bootstrapping host's name and name servers are not the machine's.
    for name in ("etc/hostname", "etc/resolv.conf"):
        (root / name).unlink(missing_ok=True)


def _make_disk(root: Path, disk: Path) -> None:
    """A file system for QEMU with the files of a root directory; a sparse file."""
    command = ["/usr/sbin/mke2fs", *MKE2FS_OPTIONS, "-d", str(root), str(disk), DISK_SIZE]
    result = _output(command, "install the package e2fsprogs")
    if result.returncode:
        raise ImageError(f"cannot make {disk}: mke2fs exited with {result.returncode}:\n{result.stderr}")


def _sources(suite: str) -> list[str]:
    """Lines of a sources.list(5) for `suite`, from the Debian mirrors in this machine's own apt configuration."""
    result = _output(
        ["apt-get", "indextargets", "--format", "$(LABEL)\t$(REPO_URI)", "Created-By: Packages", "Component: main"],
        "run this on Debian",
    )
    if result.returncode:
        raise ImageError(f"cannot list this machine's package sources: {result.stderr.strip()}")
    mirrors: dict[str, str] = {}
    for line in result.stdout.splitlines():
        label, _, uri = line.partition("\t")
        mirrors.setdefault(label, uri.rstrip("/"))
    if "Debian" not in mirrors:
        raise ImageError("cannot find a Debian mirror in this machine's package sources: run `apt-get update` first")
    lines = [f"deb {mirrors['Debian']} {suite} main", f"deb {mirrors['Debian']} {suite}-updates main"]
    if "Debian-Security" in mirrors:
        lines.append(f"deb {mirrors['Debian-Security']} {suite}-security main")
    return lines


def _apt_options() -> list[str]:
    """Lines of an apt.conf(5): this machine's settings for downloads, a proxy for instance."""
    result = _output(["apt-config", "dump"], "run this on Debian")
    lines = []
    for line in result.stdout.splitlines():
        key, _, value = line.partition(" ")
        parts = key.lower().split("::")
        if parts[0] == "acquire" and len(parts) > 1 and parts[1] in APT_ACQUIRE_OPTIONS and value != '"";':
            lines.append(line)
    return lines


def _output(command: list[str], remedy: str) -> subprocess.CompletedProcess[str]:
    """Run a command and return what it said, or say how to get it."""
    environment = os.environ | {"LC_ALL": "C.UTF-8"}
    try:
        return subprocess.run(command, capture_output=True, env=environment, stdin=subprocess.DEVNULL, text=True)
    except FileNotFoundError as error:
        raise ImageError(f"cannot run {command[0]}: {error.strerror}; {remedy}") from error


def main() -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(description="Make the images that vm-tests boots.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"one of {', '.join(SUITES)} (default: all)")
    parser.add_argument("--rebuild", action="store_true", help="make images anew although they exist")
    arguments = parser.parse_args()
    for name in arguments.names or SUITES:
        begin = time.monotonic()
        try:
            root = build(name, rebuild=arguments.rebuild)
        except ImageError as error:
            print(f"image.py: {error}", file=sys.stderr)
            return 1
        print(f"{name}: {root} ({time.monotonic() - begin:.1f} s)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
