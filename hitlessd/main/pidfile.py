"""The file of `-p`: whoever is the main process has its pid there."""

from __future__ import annotations

import errno
import os

from hitlessd.errors import SystemRefused
from hitlessd.events import Event
from hitlessd.log import Logger

__all__ = ["Pidfile"]


class Pidfile:
    """Does nothing where no path was given."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._temporary = f"{path}.{os.getpid()}.tmp"

    def check(self) -> None:
        """Refuse what cannot be written before anything moves. Raises SystemRefused."""
        if not self._path:
            return
        try:
            if os.path.isdir(self._path):
                raise IsADirectoryError(errno.EISDIR, "it is a directory")
            os.close(os.open(self._temporary, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644))
            os.unlink(self._temporary)
        except OSError as error:
            raise SystemRefused(f"cannot write the pidfile {self._path}: {error.strerror}") from None

    def write(self, log: Logger) -> None:
        """Replace it at once, so that no reader sees half a number."""
        if not self._path:
            return
        try:
            with open(self._temporary, "w", encoding="ascii") as file:
                file.write(f"{os.getpid()}\n")
            os.rename(self._temporary, self._path)
        except OSError as error:
            log("err", f"cannot write {self._path}: {error.strerror}", event=Event.FILE_FAILED)

    def remove(self) -> None:
        """Unless it names somebody else by now."""
        if not self._path:
            return
        try:
            with open(self._path, encoding="ascii") as file:
                ours = file.read().strip() == str(os.getpid())
            if ours:
                os.unlink(self._path)
        except (OSError, ValueError):
            return
