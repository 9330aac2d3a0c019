"""The harness itself: what a service manager keeps, and that a daemon under it dies and comes back as under systemd."""

from __future__ import annotations

import os
import socket
from pathlib import Path

from tests.support.descriptors import no_leak
from tests.support.echo import Echo, exchange
from tests.support.manager import Keeper
from tests.support.processes import alive, free_port
from tests.support.restartable import Restartable
from tests.support.visitors import Conversation, listen


def _say(keeper: Keeper, text: str, *fds: int) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.connect(keeper.address)
        socket.send_fds(sock, [text.encode()], list(fds))


def test_the_manager_keeps_names_and_drops_what_does_not_fit(tmp_path: Path) -> None:
    with no_leak(), Keeper(str(tmp_path / "m"), limit=3) as keeper:
        ends = [os.pipe() for _ in range(2)]
        _say(keeper, "FDSTORE=1\nFDNAME=a\nFDPOLL=0", *ends[0])
        _say(keeper, "FDSTORE=1\nFDNAME=b", ends[0][0])  # is there already
        _say(keeper, "READY=1\nSTATUS=well")
        _say(keeper, "FDSTORE=1\nFDNAME=b", *ends[1])
        keeper.settle()
        assert keeper.names == ["a", "a", "b"]
        assert (keeper.lines, keeper.status) == (["READY=1", "STATUS=well"], "well")
        _say(keeper, "BARRIER=1", ends[1][1])
        _say(keeper, "FDSTOREREMOVE=1\nFDNAME=a")
        keeper.settle()
        assert keeper.names == ["b"]
        keeper.drop()
        assert keeper.passed() == []
        for fd in (*ends[0], *ends[1]):
            os.close(fd)


def test_it_dies_and_comes_back_with_its_listener(tmp_path: Path) -> None:
    port = free_port()
    with Echo() as echo, Restartable(tmp_path, listen(port, server=echo.port)) as service:
        assert exchange(port) == b"hello"
        first, stored = service.pid, sorted(service.manager.names)
        assert any(name.startswith("hitlessd.listener-") for name in stored)
        service.kill()
        assert not alive(first) and service.daemon.processes() == []
        with Conversation(port) as waiting:  # in the backlog
            waiting.sock.sendall(b"hello")
            service.start()
            waiting.hear(b"hello")
        assert service.pid != first
        service.restart()
        assert exchange(port) == b"hello"
        assert service.manager.status.startswith("generation ")
        worker = service.kill_worker()
        service.wait(lambda: len(service.workers()) == 2 and worker not in service.workers(), 10, "a new worker")
        assert service.daemon.reload().returncode == 0
        service.crash()
        assert exchange(port) == b"hello"
        service.stop()
        assert service.manager.names == []
        service.start()
        assert service.number("Generation") == 1
        assert exchange(port) == b"hello"
