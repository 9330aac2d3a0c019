"""Connections that outlive a restart, a crash and the death of a worker: in whatever state they are, byte for byte."""

from __future__ import annotations

import contextlib
import os
import random
import re
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.pairs import WAYS, Servers, come_back, dead_meanwhile, ended, hear, replace, reset
from tests.support.processes import free_port
from tests.support.restartable import Restartable
from tests.support.visitors import listen

AT_ONCE = "park-after = 0"
MEGABYTE = 1 << 20

ways = pytest.mark.parametrize("way", WAYS)


@contextlib.contextmanager
def serving(
    directory: Path, more: str = AT_ONCE, *, workers: int = 1, binds: tuple[str, ...] = ()
) -> Iterator[tuple[Restartable, Servers, int]]:
    port = free_port()
    with (
        Servers() as servers,
        Restartable(directory, listen(port, *binds, server=servers.port), workers=workers, more=more) as service,
    ):
        yield service, servers, port


@ways
def test_idle_ones_and_ones_that_talk(way: str, tmp_path: Path) -> None:
    with serving(tmp_path, workers=2) as (service, servers, port):
        pairs = [servers.pair(port) for _ in range(20)]
        for _ in range(3):
            come_back(service, way, 20)
            for pair in pairs[:10]:
                pair.say()
        for pair in pairs:
            pair.say(b"at last")
        assert service.number("CumLost") == 0
        assert service.number("CumResumed") == 60


@ways
@pytest.mark.parametrize("first", ["client", "server"])
def test_half_closed_ones(way: str, first: str, tmp_path: Path) -> None:
    with serving(tmp_path) as (service, servers, port):
        pair = servers.pair(port)
        service.wait_number("CurrParked", 1)
        one, other = (pair.client, pair.server) if first == "client" else (pair.server, pair.client)
        one.sendall(b"the last")
        one.shutdown(socket.SHUT_WR)
        assert hear(other, 9) == b"the last"
        for number in range(3):
            come_back(service, way, 1)
            other.sendall(b"%d" % number)
            assert hear(one, 1) == b"%d" % number
        other.close()
        assert ended(one) == "end"
        service.wait_number("CurrConns", 0)
        assert service.number("CumLost") == 0


@pytest.mark.parametrize("first", ["client", "server"])
def test_an_end_that_comes_while_nobody_serves(first: str, tmp_path: Path) -> None:
    with serving(tmp_path) as (service, servers, port):
        pair = servers.pair(port)
        service.wait_number("CurrParked", 1)
        one, other = (pair.client, pair.server) if first == "client" else (pair.server, pair.client)
        with dead_meanwhile(service):
            one.sendall(b"the last")
            one.shutdown(socket.SHUT_WR)
            other.sendall(b"meanwhile")
        assert hear(other, 9) == b"the last"
        assert hear(one, 9) == b"meanwhile"
        other.close()
        assert ended(one) == "end"
        service.wait_number("CurrConns", 0)
        assert service.number("CumLost") == 0


@pytest.mark.parametrize("first", ["client", "server"])
def test_both_ends_while_nobody_serves(first: str, tmp_path: Path) -> None:
    """What was said before is delivered, or the connection is reset: never an orderly end without it."""
    with serving(tmp_path) as (service, servers, port):
        pair = servers.pair(port)
        service.wait_number("CurrParked", 1)
        one, other = (pair.client, pair.server) if first == "client" else (pair.server, pair.client)
        with dead_meanwhile(service):
            one.sendall(b"the last")
            one.shutdown(socket.SHUT_WR)
            other.sendall(b"meanwhile")
            other.shutdown(socket.SHUT_WR)
        for sock, text in ((other, b"the last"), (one, b"meanwhile")):
            assert hear(sock, 20) == text
        service.wait_number("CurrConns", 0)


@ways
@pytest.mark.parametrize("sender", ["client", "server"])
def test_urgent_bytes(way: str, sender: str, tmp_path: Path) -> None:
    """Forwarded in line; or, where the counters do not tell, the connection is reset."""
    with serving(tmp_path) as (service, servers, port):
        pair = servers.pair(port)
        service.wait_number("CurrParked", 1)
        one, other = (pair.client, pair.server) if sender == "client" else (pair.server, pair.client)
        other.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, 1)
        one.sendall(b"before")
        one.send(b"!", socket.MSG_OOB)
        one.sendall(b"after")
        assert hear(other, 12) == b"before!after"
        come_back(service, way, 1)
        one.send(b"?", socket.MSG_OOB)
        one.sendall(b"again")
        assert hear(other, 6) == b"?again"
        pair.say()


@pytest.mark.parametrize("sender", ["client", "server"])
def test_an_urgent_byte_that_comes_while_nobody_serves(sender: str, tmp_path: Path) -> None:
    with serving(tmp_path) as (service, servers, port):
        pair = servers.pair(port)
        service.wait_number("CurrParked", 1)
        one, other = (pair.client, pair.server) if sender == "client" else (pair.server, pair.client)
        other.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, 1)
        with dead_meanwhile(service):
            one.sendall(b"before")
            one.send(b"!", socket.MSG_OOB)
            one.sendall(b"after")
        assert hear(other, 12) == b"before!after"
        pair.say()


@ways
def test_single_bytes_never_end(way: str, tmp_path: Path) -> None:
    """One at a time, as fast as they go, across many deaths."""
    data = random.Random(1).randbytes(40_000)
    with serving(tmp_path, workers=2) as (service, servers, port):
        pair = servers.pair(port)
        pair.client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        service.wait_number("CurrParked", 1)
        stop = threading.Event()
        sent = bytearray()

        def send() -> None:
            for number in range(len(data)):
                if stop.wait(0.0002):
                    break
                pair.client.sendall(data[number : number + 1])
                sent.append(data[number])
            pair.client.shutdown(socket.SHUT_WR)

        thread = threading.Thread(target=send)
        thread.start()
        try:
            for _ in range(5):
                come_back(service, way, 1)
        finally:
            stop.set()
            thread.join()
        assert hear(pair.server, len(data)) == bytes(sent)
        assert service.number("CumLost") == 0


@ways
@pytest.mark.parametrize("sender", ["client", "server"])
def test_megabytes_that_nobody_reads(way: str, sender: str, tmp_path: Path) -> None:
    """Segments as large as they can be, until pipes and buffers are full; they wait through many deaths."""
    data = random.Random(2).randbytes(4 * MEGABYTE)
    with serving(tmp_path) as (service, servers, port):
        pair = servers.pair(port)
        one, other = (pair.client, pair.server) if sender == "client" else (pair.server, pair.client)
        service.wait_number("CurrParked", 1)
        sent: list[int] = []

        def send() -> None:
            for _ in range(16):
                for start in range(0, len(data), MEGABYTE):
                    one.sendall(data[start : start + MEGABYTE])
                    sent.append(MEGABYTE)
            one.shutdown(socket.SHUT_WR)

        one.settimeout(60)
        thread = threading.Thread(target=send)
        thread.start()
        for round_ in range(16):
            if round_ % 4 == 0:
                come_back(service, way, 1)
            assert hear(other, len(data)) == data, round_
        thread.join()
        assert ended(other) == "end"
        assert service.number("CumLost") == 0


@ways
def test_a_flow_that_never_stops(way: str, tmp_path: Path) -> None:
    """Who dies has some of it in its hands."""
    block = random.Random(3).randbytes(MEGABYTE)
    with serving(tmp_path) as (service, servers, port):
        pair = servers.pair(port)
        service.wait_number("CurrParked", 1)
        stop, sent, heard = threading.Event(), [0], [0]
        wrong: list[str] = []

        def send() -> None:
            while not stop.is_set():
                at = sent[0] % MEGABYTE
                sent[0] += pair.client.send(block[at : at + 50_000])
            pair.client.shutdown(socket.SHUT_WR)

        def receive() -> None:
            while piece := pair.server.recv(70_000):
                at = heard[0] % MEGABYTE
                if (block + block)[at : at + len(piece)] != piece:
                    wrong.append(f"at {heard[0]}")
                    return
                heard[0] += len(piece)

        threads = [threading.Thread(target=send), threading.Thread(target=receive)]
        for thread in threads:
            thread.start()
        try:
            for _ in range(8):
                before = heard[0]
                come_back(service, way, 1)
                service.wait(lambda: heard[0] > before + MEGABYTE or wrong, 20, "it flows")  # noqa: B023
        finally:
            stop.set()
            for thread in threads:
                thread.join(30)
        assert (wrong, heard[0]) == ([], sent[0])
        assert service.number("CumLost") == 0


@pytest.mark.parametrize("who", ["client", "server"])
def test_a_peer_that_resets_while_nobody_serves(who: str, tmp_path: Path) -> None:
    with serving(tmp_path) as (service, servers, port):
        pair, bystander = servers.pair(port), servers.pair(port)
        service.wait_number("CurrParked", 2)
        one, other = (pair.client, pair.server) if who == "client" else (pair.server, pair.client)
        with dead_meanwhile(service):
            reset(one)
        assert ended(other) in ("reset", "end")
        bystander.say()
        service.wait_number("CurrConns", 1)
        service.wait_number("CurrParked", 1)
        come_back(service, "crash", 1)
        bystander.say()


def test_a_young_one_is_closed_by_a_crash_and_survives_a_restart(tmp_path: Path) -> None:
    with serving(tmp_path, "park-after = 1h") as (service, servers, port):
        pair = servers.pair(port)
        assert service.number("CurrParked") == 0
        service.restart()
        pair.say()
        assert service.number("CurrParked") <= 1
        for way, lost in (("worker", 2), ("crash", 3)):
            young = servers.pair(port)
            replace(service, way)
            assert ended(young.client) and ended(young.server)
            service.wait_number("CumLost", lost)
        service.wait(lambda: len(re.findall(r"\blost=(\d+)", service.log)) >= 2, 10, "both are told of")
        assert re.findall(r"\blost=(\d+)", service.log) == ["2", "1"]
        assert exchange_through(servers, port)


def exchange_through(servers: Servers, port: int) -> bool:
    """Whether a new connection is served."""
    servers.pair(port).say()
    return True


@ways
def test_without_crash_proof_only_a_restart_parks(way: str, tmp_path: Path) -> None:
    with serving(tmp_path, f"{AT_ONCE}\ncrash-proof = off") as (service, servers, port):
        pair = servers.pair(port)
        replace(service, way)
        if way == "restart":
            pair.say()
            service.wait_number("CumResumed", 1)
        else:
            assert ended(pair.client) and ended(pair.server)
            service.wait_number("CumLost", 1)
        assert exchange_through(servers, port)


@ways
def test_clients_on_unix_sockets(way: str, tmp_path: Path) -> None:
    """The kernel counts nothing for them: whoever is not continued is reset or closed, and everybody else goes on."""
    path = str(tmp_path / "c.sock")
    with serving(tmp_path, binds=(f"unix@{path} mode 666",)) as (service, servers, port):
        local, remote = servers.pair(path), servers.pair(port)
        service.wait(lambda: service.number("CurrParked") >= 1, 10, "one is parked")
        replace(service, way)
        remote.say()
        # Silence would be a time-out, and fail.
        with contextlib.suppress(AssertionError, ConnectionError):
            local.say()
        local.close()
        servers.pair(path).say()


def test_stop_closes_all_and_the_next_start_resumes_nothing(tmp_path: Path) -> None:
    with serving(tmp_path) as (service, servers, port):
        pair = servers.pair(port)
        service.wait_number("CurrParked", 1)
        service.stop()
        assert ended(pair.client) in ("end", "reset")
        assert ended(pair.server) in ("end", "reset")
        service.start()
        assert (service.number("CumResumed"), service.number("CurrConns")) == (0, 0)
        assert exchange_through(servers, port)


def test_park_timeout_closes_what_nobody_resumed_in_time(tmp_path: Path) -> None:
    with serving(tmp_path, f"{AT_ONCE}\npark-timeout = 6s") as (service, servers, port):
        pair = servers.pair(port)
        come_back(service, "crash", 1)
        pair.say()
        service.kill()
        assert not threading.Event().wait(7)  # nobody serves
        service.start()
        assert (ended(pair.client), ended(pair.server)) == ("reset", "reset")
        service.wait_number("CumLost", 1)
        service.wait(lambda: "park-timeout" in service.log, 10, "the reason")
        assert exchange_through(servers, port)


def test_half_a_megabyte_in_every_buffer_when_main_dies_again_and_again(tmp_path: Path) -> None:
    """Killed as soon as it has come up, whatever it has resumed by then."""
    with serving(tmp_path, workers=2) as (service, servers, port):
        pairs = [servers.pair(port) for _ in range(30)]
        service.wait_number("CurrParked", 30)
        texts = [os.urandom(100_000) for _ in pairs]
        for pair, text in zip(pairs, texts, strict=True):
            pair.client.sendall(text)
        for _ in range(10):
            service.crash()
        for pair, text in zip(pairs, texts, strict=True):
            assert hear(pair.server, len(text)) == text
            pair.say()
        assert service.number("CumLost") == 0


def test_a_service_that_has_nobody_comes_back_with_nobody(tmp_path: Path) -> None:
    with serving(tmp_path) as (service, servers, port):
        service.crash()
        assert service.number("CumResumed") == 0
        assert exchange_through(servers, port)
