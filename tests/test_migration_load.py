"""Established connections move to the successor: under load, whoever is connected, the old generation is gone soon."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import pytest

from tests.support import exchange as wire
from tests.support.backend import Backend
from tests.support.daemon import Daemon
from tests.support.load import Load
from tests.support.nobody import nobody
from tests.support.processes import ROOT, Deadline, Process, descendants, free_port, poll_until, python_module
from tests.support.visitors import Conversation, conversations

#: Seconds after which something that should take a fraction of one counts as never.
_NEVER = 30.0
_TIMEOUT = 30.0
_MEGABYTE = 1 << 20


def _body(port: int, backend: Backend) -> str:
    return f"[listen t]\nbind = 127.0.0.1:{port}\nserver s = {backend.address}\n"


def _roomy(daemon: Daemon, body: str, workers: int = 2, maxconn: int = 8000) -> str:
    """The configuration for another number of workers, and of connections."""
    text = daemon.text(body).replace("maxconn = 2000", f"maxconn = {maxconn}")
    return text.replace("workers = 2", f"workers = {workers}")


def _reload(daemon: Daemon) -> None:
    result = daemon.reload()
    assert result.returncode == 0, result.stderr


def _alone(daemon: Daemon, workers: int) -> list[int] | None:
    """The processes of the newest generation, main first, if there are no others."""
    found = descendants(daemon.pid)
    return found if len(found) == 1 + workers and sorted(found) == daemon.processes() else None


def _settled(daemon: Daemon, workers: int = 2) -> list[int]:
    """Wait until one generation alone is left: its main process and its workers, with the books closed."""
    found = poll_until(lambda: _alone(daemon, workers), _NEVER, "one generation is left, main and its workers")
    poll_until(lambda: daemon.info()["Generations"] == "1", _NEVER, "one generation in the books")
    return found or []


def _ended(process: Process) -> bool:
    return not process.running


def _served(daemon: Daemon, current: int, total: int) -> None:
    """The counters, over all generations, are those of one daemon that was never reloaded."""
    info = daemon.info()
    assert (int(info["CurrConns"]), int(info["CumConns"])) == (current, total)


def _spotless(backend: Backend) -> None:
    """All connections have ended towards the servers as the clients meant it."""
    counters = backend.wait_closed(_NEVER)
    assert {name: counters[name] for name in ("corrupt", "reset", "short")} == {"corrupt": 0, "reset": 0, "short": 0}


def _flawless(load: Load, count: int) -> None:
    result = load.stop()
    assert result["failed"] == 0, result["errors"]
    assert (result["done"], result["unfinished"]) == (count, 0)


def _answers(load: Load, count: int = 1) -> None:
    """Wait for that many more answers."""
    load.wait_requests(load.progress.get("requests", 0) + count, _NEVER)


def test_bytes_that_flow_all_the_time_arrive_in_order_through_fifteen_reloads(tmp_path: Path) -> None:
    port, streams = free_port(), 300
    with (
        Backend() as backend,
        Daemon(tmp_path, _body(port, backend)) as daemon,
        Load(f"127.0.0.1:{port}", mode="stream", clients=streams, interval=0.1, timeout=_TIMEOUT) as load,
    ):
        load.wait_ready(_NEVER)
        for generation in range(2, 17):
            _reload(daemon)
            _settled(daemon)
            assert daemon.info()["Generation"] == str(generation)
            _served(daemon, streams, streams)
            _answers(load, streams)
        _flawless(load, streams)
        _spotless(backend)
        poll_until(lambda: daemon.info()["CurrConns"] == "0", _NEVER, "all ends counted")
        _served(daemon, 0, streams)


def test_three_thousand_idle_connections_move_and_leave_no_descriptor_behind(tmp_path: Path) -> None:
    port, clients = free_port(), 3000

    def descriptors(processes: Sequence[int]) -> tuple[int, int]:
        """Of main, and of all workers together: which of them has a connection is the kernel's choice."""
        main, *workers = (len(os.listdir(f"/proc/{pid}/fd")) for pid in processes)
        return main, sum(workers)

    with Backend() as backend, Daemon(tmp_path, _body(port, backend)) as daemon:
        daemon.write(_roomy(daemon, _body(port, backend)))
        _reload(daemon)
        _settled(daemon)
        with Load(f"127.0.0.1:{port}", mode="idle", clients=clients, timeout=_TIMEOUT) as load:
            load.wait_ready(_NEVER)
            main, workers = descriptors(_settled(daemon))
            assert workers > 2 * clients
            for _ in range(3):
                _reload(daemon)
                processes = _settled(daemon)
                now = descriptors(processes)
                # A runtime client of ours may still be on its way out; pipes are pooled.
                assert abs(now[0] - main) <= 4 and abs(now[1] - workers) <= 32, f"{now}, {(main, workers)} before"
                _served(daemon, clients, clients)
            _flawless(load, clients)
            _spotless(backend)


def test_twenty_generations_with_ten_connections_each_leave_one_generation(tmp_path: Path) -> None:
    port = free_port()
    with (
        Backend(mode="echo") as backend,
        Daemon(tmp_path, _body(port, backend)) as daemon,
        contextlib.ExitStack() as stack,
    ):
        every: list[Conversation] = []
        for _ in range(20):
            every += stack.enter_context(conversations(*[port] * 10))
            _reload(daemon)
        assert len(_settled(daemon)) == 3
        _served(daemon, 200, 200)
        for number, each in enumerate(every):
            each.say(b"%d is still here" % number)
        for each in every:
            each.finish()
        _spotless(backend)
        poll_until(lambda: daemon.info()["CurrConns"] == "0", _NEVER, "all ends counted")


class _Transfer:
    """A transfer of `size` bytes that goes on only as far as it is let; every byte is checked."""

    def __init__(self, port: int, kind: int, size: int) -> None:
        self.left = size
        self._ident = int.from_bytes(os.urandom(6), "little")
        self._place = wire.position(self._ident)
        self._down = kind == wire.DOWN
        self._sock = socket.socket()
        # Small, or the kernel would hold much of the transfer before it is asked for.
        self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF if self._down else socket.SO_SNDBUF, 1 << 16)
        self._sock.settimeout(_TIMEOUT)
        self._sock.connect(("127.0.0.1", port))
        self._sock.sendall(wire.pack_request(kind, wire.CLOSE_CLIENT, 0, size, self._ident))
        if self._down:
            self._answer(size)
        self._sock.setblocking(False)

    def _answer(self, length: int) -> None:
        head = b""
        while len(head) < wire.ANSWER_SIZE:
            piece = self._sock.recv(wire.ANSWER_SIZE - len(head))
            assert piece, "closed instead of an answer"
            head += piece
        found = wire.unpack_answer(head)
        assert found is not None
        assert (found.status, found.ident, found.length) == (wire.OK, self._ident, length)

    def move(self, most: int) -> int:
        """At most that many bytes further; returns how many it were."""
        most = min(most, self.left)
        if not most:
            return 0
        try:
            if self._down:
                data = self._sock.recv(most)
                assert data, f"closed with {self.left} bytes to come"
                assert wire.ANSWERED.startswith(data, self._place), f"altered, {self.left} bytes from the end"
                moved = len(data)
            else:
                moved = self._sock.send(memoryview(wire.ASKED)[self._place : self._place + most])
        except BlockingIOError:
            return 0
        self._place = (self._place + moved) & (wire.CYCLE - 1)
        self.left -= moved
        return moved

    def finish(self) -> None:
        """The rest, the answer, and an orderly end."""
        self._sock.setblocking(True)
        self._sock.settimeout(_TIMEOUT)
        while self.left:
            self.move(_MEGABYTE)
        if not self._down:
            self._answer(0)
        self._sock.shutdown(socket.SHUT_WR)
        assert self._sock.recv(1) == b""

    def close(self) -> None:
        self._sock.close()


def test_transfers_under_way_arrive_whole_and_keep_no_generation(tmp_path: Path) -> None:
    port, size, reloads = free_port(), 32 * _MEGABYTE, 5
    allowed = size // (reloads + 1)

    def going_on(transfers: Sequence[_Transfer], until: Callable[[], object]) -> None:
        """Let the transfers go on, each by no more than its share, until the condition is true."""
        shares = [allowed] * len(transfers)

        def step() -> object:
            for index, transfer in enumerate(transfers):
                shares[index] -= transfer.move(min(1 << 16, shares[index]))
            return until()

        poll_until(step, _NEVER, "the reload, and the end of the old generation", every=0.002)

    with (
        Backend() as backend,
        Daemon(tmp_path, _body(port, backend)) as daemon,
        contextlib.ExitStack() as stack,
        Load(f"127.0.0.1:{port}", mode="bulk", direction="down", clients=2, size=size, timeout=_TIMEOUT) as down,
        Load(f"127.0.0.1:{port}", mode="bulk", direction="up", clients=2, size=size, timeout=_TIMEOUT) as up,
    ):
        # Some as fast as they go, one after the other; some in no hurry, so that each of them sees every reload.
        down.wait_done(1, _NEVER)
        up.wait_done(1, _NEVER)
        slow = [_Transfer(port, kind, size) for kind in (wire.DOWN, wire.DOWN, wire.UP, wire.UP)]
        for transfer in slow:
            stack.callback(transfer.close)
        for _ in range(reloads):
            command = python_module("hitlessd.ctl", "-s", daemon.socket, "reload")
            with Process(command, cwd=ROOT) as reload:
                going_on(slow, partial(_ended, reload))
                assert reload.wait(_NEVER) == 0, reload.stderr.text
            going_on(slow, lambda: _alone(daemon, 2))
            assert all(transfer.left for transfer in slow)
        for transfer in slow:
            transfer.finish()
        for load in (down, up):
            result = load.stop()
            assert (result["failed"], result["unfinished"]) == (0, 0), result["errors"]
            assert result["bytes_in"] + result["bytes_out"] >= result["done"] * size
        _spotless(backend)
        _settled(daemon)


def test_new_connections_and_old_ones_through_reloads_without_a_pause(tmp_path: Path) -> None:
    port, streams, wanted = free_port(), 200, 12_500
    with (
        Backend() as backend,
        Daemon(tmp_path, _body(port, backend)) as daemon,
        Load(f"127.0.0.1:{port}", mode="stream", clients=streams, interval=0.2, timeout=_TIMEOUT) as old,
    ):
        old.wait_ready(_NEVER)
        with Load(f"127.0.0.1:{port}", rate=2500, timeout=_TIMEOUT) as new:
            limit, reloads = Deadline(6 * _NEVER), 0
            while reloads < 12 or new.progress.get("done", 0) < wanted:
                _reload(daemon)
                reloads += 1
                limit.check(f"{wanted} connections")
            result = new.stop()
        assert result["failed"] == 0, result["errors"]
        assert result["done"] >= wanted
        _settled(daemon)
        poll_until(lambda: daemon.info()["CurrConns"] == str(streams), _NEVER, "all ends counted")
        _served(daemon, streams, streams + result["done"])
        _flawless(old, streams)
        _spotless(backend)


@pytest.mark.parametrize("counts", [(2, 3, 1), (3, 1, 2)])
def test_more_or_fewer_workers_take_the_connections_over(counts: Sequence[int], tmp_path: Path) -> None:
    port, streams = free_port(), 200
    with (
        Backend() as backend,
        Daemon(tmp_path, _body(port, backend), workers=1) as daemon,
        Load(f"127.0.0.1:{port}", mode="stream", clients=streams, interval=0.1, timeout=_TIMEOUT) as load,
    ):
        load.wait_ready(_NEVER)
        text = daemon.text(_body(port, backend))
        for workers in (*counts, counts[0], 1):
            daemon.write(text.replace("workers = 1\n", f"workers = {workers}\n"))
            _reload(daemon)
            assert len(_settled(daemon, workers)) == 1 + workers
            _served(daemon, streams, streams)
            _answers(load, streams)
        _flawless(load, streams)
        _spotless(backend)


def test_many_workers_under_a_low_limit_send_no_more_than_the_kernel_lets_them() -> None:
    """Descriptors on their way count against the limit of whoever sends them, over all processes of its user."""
    port, clients, workers = free_port(), 2000, 8
    with (
        Backend() as backend,
        nobody(1024) as user,
        Daemon(user.directory, _body(port, backend), workers=workers, wrapper=user.wrapper) as daemon,
        Load(f"127.0.0.1:{port}", mode="idle", clients=clients, timeout=_TIMEOUT) as load,
    ):
        load.wait_ready(_NEVER)
        for _ in range(4):
            _reload(daemon)
            _settled(daemon, workers)
            _served(daemon, clients, clients)
        _flawless(load, clients)
        _spotless(backend)


def test_many_reloads_asked_for_at_once_move_everybody(tmp_path: Path) -> None:
    """Reloads from several sides while the connections are on their way: requests become one more reload."""
    port, streams = free_port(), 200
    with (
        Backend() as backend,
        Daemon(tmp_path, _body(port, backend)) as daemon,
        Load(f"127.0.0.1:{port}", mode="stream", clients=streams, interval=0.1, timeout=_TIMEOUT) as load,
    ):
        load.wait_ready(_NEVER)
        answers: list[str] = []

        def ask() -> None:
            answers.extend(daemon.ask("reload", _NEVER) for _ in range(4))

        threads = [threading.Thread(target=ask) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(4 * _NEVER)
        assert len(answers) == 12 and all(answer.startswith("Success=1") for answer in answers), answers
        _settled(daemon)
        _served(daemon, streams, streams)
        _answers(load, streams)
        _flawless(load, streams)
        _spotless(backend)
