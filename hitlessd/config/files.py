"""Reading configuration files: the only module here that touches the file system. What the text means is not its
concern."""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence

from hitlessd.errors import ConfigError, reason_of
from hitlessd.model import SourceFile, Where

from .problems import Enough, Problems

__all__ = ["SIZE_LIMIT", "gather", "read_attachment", "read_files"]

#: Bytes of one file. A thousand listeners and two thousand servers take about 100 kB; what is ten times as long is a
#: mistake.
SIZE_LIMIT = 1 << 20

_KINDS = (
    (stat.S_ISDIR, "a directory"),
    (stat.S_ISFIFO, "a named pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a character device"),
    (stat.S_ISBLK, "a block device"),
)


class _Unreadable(ValueError):
    """Why a file cannot be read, and at which line (0: as a whole)."""

    def __init__(self, why: str, line: int = 0) -> None:
        super().__init__(why)
        self.line = line


def read_files(paths: Sequence[str]) -> tuple[SourceFile, ...]:
    """Read files, and directories as drop-in directories (their *.conf in the order of their names; hidden ones do not
    count).

    Raises ConfigError with every file that cannot be read: missing, forbidden, not a regular file, longer than
    SIZE_LIMIT, or not UTF-8. Never blocks on a named pipe or a device.
    """
    problems = Problems()
    files: tuple[SourceFile, ...] = ()
    try:
        files = gather(paths, problems)
    except Enough:
        pass
    if problems:
        raise ConfigError(problems.errors())
    return files


def gather(paths: Sequence[str], problems: Problems) -> tuple[SourceFile, ...]:
    """As read_files, but leaves the unreadable ones out and tells `problems` about them."""
    files: list[SourceFile] = []
    seen: dict[tuple[int, int], str] = {}
    for path in paths:
        problems.begin(path)
        try:
            names = _expand(path)
        except (OSError, ValueError) as error:
            problems.add(Where(path, 0), f"cannot read: {reason_of(error)}")
            continue
        for name in names:
            problems.begin(name)
            try:
                text, identity = _read(name)
            except (OSError, ValueError) as error:
                problems.add(Where(name, getattr(error, "line", 0)), f"cannot read: {reason_of(error)}")
                continue
            if identity in seen:
                problems.add(
                    Where(name, 0), f"cannot read the same file twice: it was read already as {seen[identity]}"
                )
                continue
            seen[identity] = name
            files.append(SourceFile(name, text))
    return tuple(files)


def read_attachment(path: str, limit: int) -> bytes:
    """The bytes of a regular file. Raises OSError or ValueError, whose text says why."""
    return _read_bytes(path, limit)[0]


def _expand(path: str) -> list[str]:
    if not stat.S_ISDIR(os.stat(path).st_mode):
        return [path]
    names = sorted(name for name in os.listdir(path) if name.endswith(".conf") and not name.startswith("."))
    return [os.path.join(path, name) for name in names]


def _read(path: str) -> tuple[str, tuple[int, int]]:
    data, identity = _read_bytes(path, SIZE_LIMIT)
    return _decode(data), identity


def _read_bytes(path: str, limit: int) -> tuple[bytes, tuple[int, int]]:
    _check_kind(os.stat(path).st_mode)  # opening a device can already have an effect
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    try:
        status = os.fstat(descriptor)
        _check_kind(status.st_mode)  # the name may mean another file by now
        if status.st_size > limit:
            raise _Unreadable(f"found {status.st_size} bytes, expected at most {limit}")
        data = bytearray()
        while chunk := os.read(descriptor, limit + 1 - len(data)):
            data += chunk
            if len(data) > limit:  # grew meanwhile, or is one of /proc's, whose size is 0
                raise _Unreadable(f"found more than {limit} bytes, expected at most that")
    finally:
        os.close(descriptor)
    return bytes(data), (status.st_dev, status.st_ino)


def _check_kind(mode: int) -> None:
    for is_kind, name in _KINDS:
        if is_kind(mode):
            raise _Unreadable(f"found {name}, expected a regular file")


def _decode(data: bytes) -> str:
    if data.startswith(b"\xef\xbb\xbf"):  # a byte order mark, as editors on Windows write it
        data = data[3:]
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        column = error.start - (data.rfind(b"\n", 0, error.start) + 1) + 1
        byte = data[error.start]
        raise _Unreadable(
            f"found byte 0x{byte:02x} as the line's byte {column}, expected text in UTF-8", line
        ) from None
