"""A runtime API of the tests' own: gives what it was told to each command, and remembers them all."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

__all__ = ["Answering", "answering"]


class Answering:
    """`answers` by command; one that is missing is answered by an empty line. Assignments are seen at once."""

    def __init__(self, path: Path, answers: dict[str, str]) -> None:
        self.path = path
        self.answers = answers
        self.asked: list[str] = []
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen(16)

    def commands(self) -> list[str]:
        """Those that change something."""
        return [command for command in list(self.asked) if not command.startswith("show ")]

    def serve(self) -> None:
        while True:
            sock, _ = self._listener.accept()
            with contextlib.suppress(OSError):
                sock.settimeout(10)
                data = b""
                while not data.endswith(b"\n"):
                    piece = sock.recv(65536)
                    if not piece:
                        break
                    data += piece
                if data == b"end\n":
                    sock.close()
                    break
                for command in data.decode().strip().split(";"):
                    self.asked.append(command)
                    sock.sendall((self.answers.get(command, "").rstrip("\n") + "\n\n").lstrip("\n").encode() or b"\n")
            sock.close()

    def close(self) -> None:
        self._listener.close()
        self.path.unlink(missing_ok=True)


@contextlib.contextmanager
def answering(path: Path, answers: dict[str, str]) -> Iterator[Answering]:
    """Serve in a thread."""
    server = Answering(path, answers)
    thread = threading.Thread(target=server.serve)
    thread.start()
    try:
        yield server
    finally:
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(str(path))
            sock.sendall(b"end\n")
        thread.join(10)
        server.close()
