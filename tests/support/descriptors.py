"""Descriptors of this process: counting them, and making ones that can be told apart."""

from __future__ import annotations

import contextlib
import gc
import os
from collections.abc import Iterator


def open_descriptors() -> dict[int, str]:
    """What this process has open: number and link."""
    found: dict[int, str] = {}
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            found[int(name)] = os.readlink(f"/proc/self/fd/{name}")
    return {fd: link for fd, link in found.items() if not link.startswith("/proc/")}


@contextlib.contextmanager
def no_leak() -> Iterator[None]:
    """Fail if a descriptor is open at the end that was not at the beginning; what earlier tests left may go."""
    before = open_descriptors()
    yield
    if _new(before):
        gc.collect()  # it takes long, so only now
    assert _new(before) == {}


def _new(before: dict[int, str]) -> dict[int, str]:
    return {fd: link for fd, link in open_descriptors().items() if before.get(fd) != link}


def is_open(fd: int) -> bool:
    """Whether the number means an open file."""
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


def identity(fd: int) -> tuple[int, int]:
    """What two descriptors of one file have in common."""
    status = os.fstat(fd)
    return status.st_dev, status.st_ino


def memfd(data: bytes = b"") -> int:
    """An anonymous file of its own."""
    fd = os.memfd_create("test", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.write(fd, data)
    return fd
