"""The files that a configuration attaches by name: error pages, and bodies of answers. Their text is kept with that of
the configuration, so that a start from what was kept needs none of them."""

from __future__ import annotations

from collections.abc import Iterable

from hitlessd.errors import reason_of
from hitlessd.model import SourceFile
from hitlessd.samples import Mistake

from .files import read_attachment

__all__ = ["SIZE_LIMIT", "Attached", "is_attached"]

#: Bytes of one. HAProxy's limit is its buffer of 16 KiB.
SIZE_LIMIT = 64 << 10
_MARK = "\0"


def is_attached(file: SourceFile) -> bool:
    return file.name.startswith(_MARK)


class Attached:
    """Reads each once, from what was kept if it is there, else from the file system."""

    def __init__(self, kept: Iterable[SourceFile] = ()) -> None:
        self._kept = {file.name: file for file in kept}
        self._used: dict[str, SourceFile] = {}

    @property
    def files(self) -> tuple[SourceFile, ...]:
        """What was read, as it is kept."""
        return tuple(self._used.values())

    def read(self, path: str) -> bytes:
        """The bytes of a file; none for /dev/null. Raises Mistake."""
        if path == "/dev/null":
            return b""
        if not path.startswith("/"):
            raise Mistake("use this file", path, "an absolute path, beginning with /")
        name = _MARK + path
        file = self._used.get(name) or self._kept.get(name)
        if file is None:
            try:
                data = read_attachment(path, SIZE_LIMIT)
            except (OSError, ValueError) as error:
                raise Mistake("use this file", path, f"one that can be read ({reason_of(error)})") from None
            file = SourceFile(name, data.decode("latin-1"))
        self._used[name] = file
        return file.text.encode("latin-1")
