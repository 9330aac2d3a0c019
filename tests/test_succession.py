"""What a main process gives away of its own."""

from __future__ import annotations

import os
import resource
import socket
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any, cast

import pytest

from hitlessd.loop import Loop
from hitlessd.main.succession import Succession
from tests.support.descriptors import no_leak


@pytest.fixture
def listeners() -> Iterator[list[socket.socket]]:
    found = [socket.create_server(("127.0.0.1", 0)) for _ in range(4)]
    yield found
    for sock in found:
        sock.close()


def test_listeners_are_given_whole_or_not(listeners: list[socket.socket]) -> None:
    """Short of descriptors: whoever asked again and again would take the last ones away for good."""
    loop = Loop(lambda _what, _error: None)
    open_ = [(None, SimpleNamespace(sock=sock, listening=True, open=True)) for sock in listeners]
    office = cast(Any, SimpleNamespace(equipment=SimpleNamespace(listeners=open_)))
    logged: list[str] = []

    def log(_severity: str, message: str, /, **_fields: object) -> None:
        logged.append(message)

    nothing = cast(Any, None)
    succession = Succession(
        loop,
        log,
        *(nothing,) * 3,
        office,
        *(nothing,) * 5,
    )
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    with no_leak():
        one, other = socket.socketpair()
        with one:
            # Room for two copies of the four: the third number that is free is the first one forbidden.
            free = [os.dup(one.fileno()) for _ in range(3)]
            for descriptor in free:
                os.close(descriptor)
            resource.setrlimit(resource.RLIMIT_NOFILE, (free[2], before[1]))
            try:
                succession.give(other, None)
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, before)
            assert one.recv(1) == b""
    assert logged == ["cannot give listeners away, which were asked for: Too many open files"]
    loop.close()
