"""Connections through a daemon of which the test holds both ends, and the three ways in which who serves them dies."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import struct
from collections.abc import Iterator
from types import TracebackType

from tests.support.processes import wait_gone
from tests.support.restartable import Restartable

TIMEOUT = 20.0
WAYS = ("restart", "crash", "worker")


class Pair:
    """What a client and a server say to each other is what arrives, and nothing else."""

    def __init__(self, client: socket.socket, server: socket.socket) -> None:
        self.client = client
        self.server = server
        for each in (client, server):
            each.settimeout(TIMEOUT)

    def say(self, text: bytes = b"still there?") -> None:
        """A text each way."""
        self.client.sendall(text)
        assert hear(self.server, len(text)) == text
        self.server.sendall(text[::-1])
        assert hear(self.client, len(text)) == text[::-1]

    def close(self) -> None:
        self.client.close()
        self.server.close()


class Servers:
    """A server for a daemon: its connections are taken one by one."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self._listener.settimeout(TIMEOUT)
        self.port: int = self._listener.getsockname()[1]
        self._stack = contextlib.ExitStack()

    def pair(self, address: int | str) -> Pair:
        """A connection to a port of 127.0.0.1, or to a unix path, that has reached us, and is established."""
        client = socket.socket(socket.AF_UNIX if isinstance(address, str) else socket.AF_INET)
        self._stack.callback(client.close)
        client.settimeout(TIMEOUT)
        client.connect(address if isinstance(address, str) else ("127.0.0.1", address))
        server, _ = self._listener.accept()
        self._stack.callback(server.close)
        pair = Pair(client, server)
        pair.say(b"hello")
        return pair

    def __enter__(self) -> Servers:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()
        self._listener.close()


def hear(sock: socket.socket, size: int) -> bytes:
    """So many bytes, fewer only at the end of the stream."""
    found = b""
    while len(found) < size:
        piece = sock.recv(min(1 << 20, size - len(found)))
        if not piece:
            break
        found += piece
    return found


def reset(sock: socket.socket) -> None:
    """Close with a reset (SO_LINGER, socket(7))."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def ended(sock: socket.socket) -> str:
    """How the other side ends it: "end" in order, or "reset". Fails if it says something instead."""
    try:
        said = sock.recv(1)
    except ConnectionError:
        return "reset"
    assert not said, said
    return "end"


def replace(service: Restartable, way: str) -> None:
    """What serves dies, in one of WAYS, and something else serves."""
    if way == "restart":
        service.restart()
    elif way == "crash":
        service.crash()
    else:
        dead = service.workers()
        for worker in dead:
            os.kill(worker, signal.SIGKILL)
        for worker in dead:
            wait_gone(worker)
        service.wait(lambda: len(set(service.workers()) - set(dead)) == len(dead), 10, "new workers")


def come_back(service: Restartable, way: str, count: int) -> None:
    """As replace(); returns when so many connections have come back, and are parked again."""
    service.wait_number("CurrParked", count)
    resumed = service.number("CumResumed")
    replace(service, way)
    service.wait_number("CumResumed", resumed + count)
    service.wait_number("CurrParked", count)


@contextlib.contextmanager
def dead_meanwhile(service: Restartable) -> Iterator[None]:
    """Nobody serves while the with-block lasts."""
    service.kill()
    yield
    service.start()
