"""Clients for reload tests, all checked: one that talks over a connection that stays, and one that comes again."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from types import TracebackType

from tests.support.echo import exchange
from tests.support.processes import poll_until

_TIMEOUT = 15.0


class Conversation:
    """A connection through the balancer to an Echo. `address` is a port of 127.0.0.1, or what connect() takes."""

    def __init__(self, address: int | str | tuple[str, int]) -> None:
        if isinstance(address, int):
            address = ("127.0.0.1", address)
        family = socket.AF_UNIX if isinstance(address, str) else socket.AF_INET
        if isinstance(address, tuple) and ":" in address[0]:
            family = socket.AF_INET6
        self.sock = socket.socket(family, socket.SOCK_STREAM)
        self.sock.settimeout(_TIMEOUT)
        try:
            self.sock.connect(address)
        except BaseException:
            self.sock.close()
            raise

    def __enter__(self) -> Conversation:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.sock.close()

    def say(self, text: bytes = b"still there?") -> None:
        """Send a text and demand it back."""
        self.sock.sendall(text)
        self.hear(text)

    def hear(self, text: bytes) -> None:
        """Demand this text."""
        answer = b""
        while len(answer) < len(text):
            piece = self.sock.recv(len(text) - len(answer))
            assert piece, f"closed after {answer!r}"
            answer += piece
        assert answer == text

    def finish(self, text: bytes = b"goodbye") -> None:
        """Half-close after a last text, and demand it back and an orderly end."""
        self.sock.sendall(text)
        self.sock.shutdown(socket.SHUT_WR)
        self.hear(text)
        assert self.sock.recv(1) == b""
        self.sock.close()

    def closed(self) -> bool:
        """Wait until the other side closes; False if it sends something instead."""
        try:
            return not self.sock.recv(1)
        except ConnectionResetError:
            return True


@contextlib.contextmanager
def conversations(*addresses: int | str | tuple[str, int]) -> Iterator[list[Conversation]]:
    """One conversation a given address, begun: each has been answered once."""
    with contextlib.ExitStack() as stack:
        every = [stack.enter_context(Conversation(address)) for address in addresses]
        for each in every:
            each.say(b"hello")
        yield every


class Visitors:
    """Short connections to a port, one after the other in a few threads, as long as the `with` block lasts.

    Every one has to be served: the end of the block raises the first failure.
    """

    def __init__(self, port: int, threads: int = 2) -> None:
        self.port = port
        self.served = 0
        self.failures: list[str] = []
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._threads = [threading.Thread(target=self._visit, daemon=True) for _ in range(threads)]

    def __enter__(self) -> Visitors:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
        if error is None:
            assert not self.failures, f"{len(self.failures)} of {self.served} connections failed: {self.failures[0]}"
            assert self.served

    def stop(self) -> None:
        """Let nobody come any more, and wait for those who are there."""
        self._stop.set()
        for thread in self._threads:
            thread.join(2 * _TIMEOUT)

    def more(self, count: int = 20) -> None:
        """Wait until that many more have been served."""
        enough = self.served + count
        poll_until(lambda: self.served >= enough or self.failures, _TIMEOUT, f"{count} more connections")

    def _visit(self) -> None:
        while not self._stop.is_set():
            try:
                answer = exchange(self.port, b"visitor", _TIMEOUT)
                failure = "" if answer == b"visitor" else f"answered {answer!r}"
            except OSError as error:
                failure = f"{type(error).__name__}: {error}"
            with self._lock:
                self.served += 1
                if failure:
                    self.failures.append(failure)
            # Leaves the processors to those who are tested.
            self._stop.wait(0.002)


def listen(*binds: object, server: int, name: str = "t", migrate: bool = True) -> str:
    """A section of the configuration; a bind that is a number is a port of 127.0.0.1, and so is the server. Without
    `migrate` an old generation stays as long as somebody is connected."""
    lines = [f"127.0.0.1:{bind}" if isinstance(bind, int) else str(bind) for bind in binds]
    return (
        f"[listen {name}]\nbind = "
        + "\n  ".join(lines)
        + f"\nserver s = 127.0.0.1:{server}\n"
        + ("" if migrate else "no option migrate\n")
    )
