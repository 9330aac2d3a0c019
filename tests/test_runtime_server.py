"""The runtime API's server: hostile clients, limits, time-outs, exchanges that are handed over, clients that move."""

from __future__ import annotations

import gc
import json
import os
import resource
import socket
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hitlessd.errors import PeerError
from hitlessd.model import Global
from hitlessd.runtime import server as server_module
from hitlessd.runtime.client import EXPORT_CLIENTS, EXPORT_LIMIT, LINE_LIMIT
from hitlessd.runtime.control import Credentials
from tests.test_runtime_harness import Clock, Harness

CLIENTS = Global().stats_maxconn
TOO_LONG = f"cannot read the command: longer than {LINE_LIMIT} bytes\n\n".encode()


@pytest.fixture
def harness(tmp_path: Path) -> Iterator[Harness]:
    harness = Harness(tmp_path)
    yield harness
    harness.close()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def timed(tmp_path: Path, clock: Clock) -> Iterator[Harness]:
    """A harness whose time moves only when the test says so."""
    harness = Harness(tmp_path, clock)
    yield harness
    harness.close()


@pytest.fixture
def strangers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Peers are ordinary users."""
    monkeypatch.setattr("hitlessd.runtime.server.is_privileged", lambda _credentials: False)
    monkeypatch.setattr("hitlessd.runtime.client.is_privileged", lambda _credentials: False)


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def descriptors_left() -> bool:
    try:
        os.close(os.dup(0))
    except OSError:
        return False
    return True


def peak_memory() -> int:
    """Bytes of resident memory, the most there ever were."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


# Hostile input


def test_64_megabytes_without_a_newline_are_refused_early(harness: Harness) -> None:
    path = harness.listen()
    flood = bytes(64 << 20)
    before = peak_memory()
    with harness.connect(path) as peer:
        sent = peer.send_all(flood)
        assert sent < 4 << 20
        assert peer.read_all() == TOO_LONG
    assert peak_memory() - before < 8 << 20
    assert "longer than 16384 bytes" in harness.logged[0][1]


def test_64_megabytes_of_commands_are_answered_in_bounded_memory(harness: Harness) -> None:
    path = harness.listen()
    line = b"show version\n" * 4096
    flood = line * ((64 << 20) // len(line) // 16)
    before = peak_memory()
    with harness.connect(path) as peer:
        peer.sock.sendall(b"prompt\n")
        peer.read_until(b"> ")
        view, sent, turns = memoryview(flood), 0, 0
        while sent < len(flood) and turns < 100:
            turns += 1
            try:
                sent += peer.sock.send(view[sent : sent + 65536])
            except BlockingIOError:
                harness.turn()
        assert sent < 2 << 20  # nobody reads the answers, so nobody reads the commands
    assert peak_memory() - before < 8 << 20


@pytest.mark.parametrize("end", [LINE_LIMIT - 1, LINE_LIMIT])
def test_longest_line(harness: Harness, end: int) -> None:
    path = harness.listen()
    answer = harness.ask(path, b"show version".ljust(end) + b"\n")
    assert answer == (b"1.2.3\n\n" if end < LINE_LIMIT else TOO_LONG)


def test_garbage(harness: Harness) -> None:
    path = harness.listen()
    garbage = bytes(range(256)) * 32
    with harness.connect(path) as peer:
        peer.send_all(garbage)
        peer.sock.shutdown(socket.SHUT_WR)
        assert peer.read_all().startswith(b"Unknown command")
    assert harness.ask(path, bytes(1000) + b"\n").startswith(b"Unknown command")
    assert harness.ask(path, b"\n" * 8000).count(b"Unknown command") == 8000
    assert harness.ask(path, b"show version\0;reload\n") == b"1.2.3\n\n"
    assert harness.control.waiting == []


def test_thousand_connections(harness: Harness) -> None:
    path = harness.listen()
    before = descriptors()
    peers = []
    for _ in range(1000):
        peer = socket.socket(socket.AF_UNIX)
        peer.setblocking(False)
        try:
            peer.connect(path)
        except BlockingIOError:
            harness.settle()
            peer.connect(path)
        peers.append(peer)
    harness.settle()
    harness.settle()
    assert descriptors() - before - len(peers) == server_module.PRIVILEGED_CLIENTS
    assert harness.ask(path, b"show version\n") == b"1.2.3\n\n"
    for peer in peers:
        peer.close()
    harness.until(lambda: descriptors() <= before, "all connections closed")
    assert len(harness.logged) <= 5


def test_the_number_of_ordinary_clients_is_configured(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hitlessd.runtime.server.is_privileged", lambda _credentials: False)
    config = harness.control.config
    harness.control.config = replace(config, global_=replace(config.global_, stats_maxconn=3))
    path = harness.listen()
    peers = [harness.connect(path) for _ in range(4)]
    harness.until(lambda: peers[0].closed, "the one that is idle longest is dropped")
    assert not any(peer.readable for peer in peers[1:])
    for peer in peers:
        peer.sock.close()


def test_no_more_clients_move_than_a_frame_has_room_for(harness: Harness) -> None:
    path = harness.listen()
    peers = [harness.connect(path) for _ in range(EXPORT_CLIENTS + 20)]
    for peer in peers:
        peer.sock.sendall(b"prompt\n")
    for peer in peers:
        peer.read_until(b"> ")
    peers[0].sock.sendall(b"reload\n")
    harness.until(lambda: harness.control.waiting, "the reload")
    exported = harness.server.export_clients()
    assert len(exported) == EXPORT_CLIENTS
    assert exported[0][1]["reload"] == 8
    assert "there are too many" in harness.logged[0][1]
    for sock, state in exported:
        harness.server.import_client(sock, state)
    harness.control.end_reload(True, "")
    assert peers[0].read_until(b"> ").startswith(b"Success=1")
    for peer in peers:
        peer.sock.close()


def test_vanished_clients_leave_nothing(harness: Harness) -> None:
    path = harness.listen()
    before = descriptors()
    for data in (b"", b"show", b"show info\n", b"reload\n", b"prompt\nreload\nshow info\n"):
        with harness.connect(path) as peer:
            peer.sock.sendall(data)
        harness.settle()
        assert descriptors() == before
    assert len(harness.control.waiting) == 1  # an answer that cannot be sent ends the session, before the other reload
    harness.control.end_reload(True, "nobody listens")
    with harness.connect(path) as peer:
        peer.sock.sendall(b"reload\n")
        harness.until(lambda: harness.control.waiting, "the reload")
    harness.until(lambda: descriptors() <= before, "the waiting client's connection closed")


def test_client_that_never_reads_blocks_nobody(timed: Harness, clock: Clock) -> None:
    path = timed.listen()
    with timed.connect(path) as deaf:
        deaf.sock.sendall(b"prompt\n" + b"help\n" * 2000)
        timed.settle()
        assert timed.ask(path, b"show version\n") == b"1.2.3\n\n"
        clock.now += 9.9
        timed.settle()
        assert timed.logged == []
        clock.now += 0.2
        timed.settle()
        assert "it does not read its answer" in timed.logged[0][1]
        assert f"(pid {os.getpid()}, uid {os.getuid()})" in timed.logged[0][1]
        deaf.read_all()


def test_unread_answers_are_limited(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "UNREAD_LIMIT", 1 << 20)
    path = harness.listen()
    harness.control.startup_logs = "x" * (700 << 10)
    with harness.connect(path) as first, harness.connect(path) as second:
        first.sock.sendall(b"show startup-logs\n")
        harness.settle()
        harness.control.startup_logs = "y" * (900 << 10)
        second.sock.sendall(b"show startup-logs\n")
        harness.until(lambda: harness.logged, "the drop")
        assert "it does not read, and" in harness.logged[0][1]
        assert first.read_all() == b"x" * (700 << 10) + b"\n\n"
        assert len(second.read_all()) < 900 << 10


def test_pipelined_commands_wait_for_the_reader(harness: Harness) -> None:
    path = harness.listen()
    harness.control.startup_logs = "z" * 300_000
    with harness.connect(path) as peer:
        peer.sock.sendall(b"show startup-logs;" * 20 + b"show version\n")
        harness.settle()
        answer = peer.read_all()
    assert answer == (b"z" * 300_000 + b"\n\n") * 20 + b"1.2.3\n\n"


# Time and places


def test_idle_clients_are_dropped(timed: Harness, clock: Clock) -> None:
    path = timed.listen()
    with timed.connect(path) as idle, timed.connect(path) as busy, timed.connect(path) as patient:
        patient.sock.sendall(b"prompt;set timeout cli 1m\n")
        busy.sock.sendall(b"prompt\n")
        patient.read_until(b"> ")
        busy.read_until(b"> ")
        clock.now += 6
        busy.sock.sendall(b"show version\n")
        busy.read_until(b"> ")
        clock.now += 6
        assert idle.read_all() == b""
        busy.sock.sendall(b"show version\n")
        busy.read_until(b"> ")
        clock.now += 11
        assert busy.read_all() == b""
        patient.sock.sendall(b"show version\n")
        patient.read_until(b"> ")
        patient.sock.sendall(b"set timeout cli 2\n")
        patient.read_until(b"> ")
        clock.now += 2
        assert patient.read_all() == b""


def test_no_time_out_while_a_reload_is_awaited(timed: Harness, clock: Clock) -> None:
    path = timed.listen()
    with timed.connect(path) as peer:
        peer.sock.sendall(b"prompt;reload\n")
        timed.until(lambda: timed.control.waiting, "the reload")
        clock.now += 1000
        timed.settle()
        timed.control.end_reload(True, "at last")
        peer.read_until(b"Success=1\n--\nat last\n\n> ")
        clock.now += 9
        timed.settle()
        assert not peer.readable
        clock.now += 2
        assert peer.read_all() == b""


@pytest.mark.usefixtures("strangers")
def test_idle_clients_give_way_to_new_ones(timed: Harness, clock: Clock) -> None:
    path = timed.listen()
    peers = []
    for _ in range(CLIENTS):
        peers.append(timed.connect(path))
        clock.now += 0.1
        timed.settle()
    assert timed.ask(path, b"show version\n") == b"1.2.3\n\n"
    assert peers[0].read_all() == b""
    timed.settle()
    assert not any(peer.readable for peer in peers[1:])
    for peer in peers:
        peer.sock.close()


@pytest.mark.usefixtures("strangers")
def test_waiting_clients_are_not_dropped_for_new_ones(harness: Harness) -> None:
    path = harness.listen()
    peers = [harness.connect(path) for _ in range(CLIENTS)]
    for peer in peers:
        peer.sock.sendall(b"reload\n")
    harness.until(lambda: len(harness.control.waiting) == len(peers), "the reloads")
    with harness.connect(path) as late:
        assert late.read_all() == b""
    assert "too many clients" in harness.logged[0][1]
    harness.control.end_reload(True, "")
    for peer in peers:
        assert peer.read_all() == b"Success=1\n--\n\n"
        peer.sock.close()


def test_ordinary_clients_do_not_lock_out_the_operator(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    path = harness.listen("admin")
    with monkeypatch.context() as context:
        context.setattr("hitlessd.runtime.server.is_privileged", lambda _credentials: False)
        strangers = [harness.connect(path) for _ in range(CLIENTS)]
        for peer in strangers:
            peer.sock.sendall(b"reload\n")
        harness.until(lambda: len(harness.control.waiting) == len(strangers), "the reloads")
    with harness.connect(path) as operator:
        operator.sock.sendall(b"reload\n")
        harness.until(lambda: len(harness.control.waiting) == len(strangers) + 1, "the operator's reload")
        harness.control.end_reload(True, "")
        assert operator.read_all() == b"Success=1\n--\n\n"
    for peer in strangers:
        peer.sock.close()


def test_short_of_descriptors(harness: Harness) -> None:
    path = harness.listen()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    idle = harness.connect(path)
    harness.settle()
    waiting = harness.connect(path)
    resource.setrlimit(resource.RLIMIT_NOFILE, (waiting.sock.fileno() + 1, hard))
    spare = []
    try:
        while descriptors_left():
            spare.append(os.dup(0))
        harness.turn()
        assert harness.logged == [("warning", "cannot accept on the runtime API: Too many open files")]
        assert idle.read_all() == b""
        waiting.sock.sendall(b"show version\n")
        assert waiting.read_all() == b"1.2.3\n\n"
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for fd in spare:
            os.close(fd)
        idle.sock.close()
        waiting.sock.close()


# Listeners


def test_removed_listener_keeps_its_clients(harness: Harness) -> None:
    path = harness.listen()
    with harness.connect(path) as peer, harness.connect(path) as late:
        harness.until(lambda: True, "")
        peer.sock.sendall(b"prompt\n")
        peer.read_until(b"> ")
        (sock,) = harness._sockets
        harness.server.remove_listener(sock)
        harness.server.remove_listener(sock)
        peer.sock.sendall(b"show version\n")
        assert peer.read_until(b"> ") == b"1.2.3\n\n> "
        late.sock.close()


def test_tcp(harness: Harness) -> None:
    address = harness.listen_tcp("operator")
    assert harness.ask(address, b"show version;reload\n") == b"1.2.3\n\nPermission denied\n\n"
    assert harness.ask(address, b"_getsocks\n") == b""
    assert harness.ask(address, b"_takeover 1\n").startswith(b"cannot take over: the stats socket ipv4@127.0.0.1:")
    assert harness.control.given == []


# Exchanges that carry descriptors


@pytest.mark.parametrize("split", [False, True])
def test_getsocks_gets_the_socket_and_what_followed(harness: Harness, split: bool) -> None:
    path = harness.listen("user", expose=True)
    with harness.connect(path) as peer:
        for part in [b"_get", b"socks\n\1\2\3"] if split else [b"_getsocks\n\1\2\3"]:
            peer.sock.sendall(part)
            harness.settle()
        ((verb, sock, stats, credentials, already),) = harness.control.given
        assert (verb, already, stats.expose_fd_listeners) == ("getsocks", b"\1\2\3", True)
        assert credentials == Credentials(os.getpid(), os.getuid(), os.getgid())
        assert not sock.getblocking()
        peer.sock.sendall(b"ack")
        harness.settle()
        assert sock.recv(10) == b"ack"  # registered nowhere
        sock.send(b"answer")
        peer.read_until(b"answer")


def test_getsocks_needs_expose_fd_listeners(harness: Harness) -> None:
    assert harness.ask(harness.listen("admin", expose=False), b"_getsocks\n") == b""
    assert harness.control.given == []


def test_getsocks_must_come_first(harness: Harness) -> None:
    answer = harness.ask(harness.listen(), b"show version\n_getsocks\n")
    assert answer.startswith(b"1.2.3\n\nUnknown command")


def test_takeover_gets_the_socket_and_the_line(harness: Harness) -> None:
    path = harness.listen("user")
    with harness.connect(path) as peer:
        peer.sock.sendall(b'_takeover {"version": 1; "x"}\nmore')
        harness.until(lambda: harness.control.given, "the takeover")
        ((verb, _, rest, stats, credentials, already),) = harness.control.given
        assert (verb, rest, already) == ("takeover", b'{"version": 1; "x"}', b"more")
        assert stats.level == "user" and credentials.pid == os.getpid()


def test_takeover_needs_expose_fd_listeners(harness: Harness) -> None:
    path = harness.listen("admin", expose=False)
    refusal = f"cannot take over: the stats socket unix@{path} lacks 'expose-fd listeners'\n"
    assert harness.ask(path, b"_takeover 1\n") == refusal.encode()
    assert harness.logged[0][0] == "warning"


@pytest.mark.usefixtures("strangers")
def test_takeover_is_for_root_and_our_own_uid(harness: Harness) -> None:
    refusal = f"cannot take over: only root and uid {os.geteuid()} may, this is uid {os.getuid()}\n"
    assert harness.ask(harness.listen(), b"_takeover 1\n") == refusal.encode()
    assert harness.control.given == []


# Moving to a successor


def move(old: Harness, new: Harness) -> list[dict[str, Any]]:
    """What a handover does with the clients."""
    exported = old.server.export_clients()
    states = json.loads(json.dumps([state for _, state in exported]))
    for (sock, _), state in zip(exported, states, strict=True):
        moved = socket.socket(fileno=os.dup(sock.fileno()))
        sock.close()
        new.server.import_client(moved, state)
    return list(states)


@pytest.fixture
def successor(tmp_path: Path) -> Iterator[Harness]:
    (tmp_path / "successor").mkdir()
    harness = Harness(tmp_path / "successor")
    harness.control.version = "2.0.0"
    yield harness
    harness.close()


def test_prompt_moves(harness: Harness, successor: Harness) -> None:
    path = harness.listen()
    with harness.connect(path) as peer:
        peer.sock.sendall(b"prompt;operator;set timeout cli 77\nshow ver")
        peer.read_until(b"\n> \n> \n> ")
        (state,) = move(harness, successor)
        assert (state["level"], state["timeout"], state["prompt"], state["reload"]) == ("operator", 77.0, True, None)
        peer.harness = successor
        peer.sock.sendall(b"sion;reload\n")
        assert peer.read_until(b"denied\n\n> ") == b"2.0.0\n\n> Permission denied\n\n> "


def test_waiting_caller_is_answered_by_the_successor(harness: Harness, successor: Harness) -> None:
    path = harness.listen("user")
    with harness.connect(path) as peer:
        peer.sock.sendall(b"reload;show version\n")
        harness.until(lambda: harness.control.waiting, "the reload")
        peer.sock.shutdown(socket.SHUT_WR)
        harness.settle()
        move(harness, successor)
        assert successor.control.resumed == [8]
        harness.control.end_reload(False, "must not arrive")
        peer.harness = successor
        successor.settle()
        assert not peer.readable
        successor.control.end_reload(True, "generation 8 serves")
        assert peer.read_all() == b"Success=1\n--\ngeneration 8 serves\n\n2.0.0\n\n"


def test_silent_client_moves_and_may_still_take_over(harness: Harness, successor: Harness) -> None:
    path = harness.listen()
    with harness.connect(path) as peer:
        harness.settle()
        move(harness, successor)
        peer.sock.sendall(b"_getsocks\n")
        successor.until(lambda: successor.control.given, "the exchange")
        assert successor.control.given[0][2].address.path == path


def test_unread_answer_moves(harness: Harness, successor: Harness) -> None:
    path = harness.listen()
    harness.control.startup_logs = "".join(f"{number:07}\n" for number in range(30_000))
    with harness.connect(path) as peer:
        peer.sock.sendall(b"show startup-logs\n")
        harness.settle()
        (client,) = harness.server._clients
        assert client.output
        while len(client.output) > EXPORT_LIMIT:
            peer.received += peer.sock.recv(4096)
            harness.settle()
        (state,) = move(harness, successor)
        assert len(state["output"]) > 1000
        peer.harness = successor
        assert peer.read_all() == harness.control.startup_logs.encode() + b"\n"


def test_client_with_too_much_unread_is_dropped_at_the_handover(harness: Harness, successor: Harness) -> None:
    path = harness.listen()
    harness.control.startup_logs = "x" * (1 << 20)
    with harness.connect(path) as peer:
        peer.sock.sendall(b"show startup-logs\n")
        harness.settle()
        assert move(harness, successor) == []
        assert "a successor takes over" in harness.logged[0][1]
        peer.read_all()


def test_clients_come_back_when_the_handover_fails(harness: Harness) -> None:
    path = harness.listen()
    with harness.connect(path) as peer:
        peer.sock.sendall(b"prompt\n")
        peer.read_until(b"> ")
        move(harness, harness)
        peer.sock.sendall(b"show version\n")
        peer.read_until(b"1.2.3\n\n> ")


@pytest.mark.parametrize(
    "change",
    [
        {"format": 2},
        {"level": "root"},
        {"socket_level": None},
        {"timeout": 0},
        {"timeout": "nan"},
        {"address": 7},
        {"input": "!"},
        {"input": "QUFB" * 10000},
        {"output": "QUFB" * 40000},
        {"commands": 1},
        {"reload": "x"},
        {"idle": {}},
    ],
)
def test_unsound_state_is_refused(harness: Harness, successor: Harness, change: dict[str, Any]) -> None:
    path = harness.listen()
    with harness.connect(path) as peer:
        harness.settle()
        ((sock, state),) = harness.server.export_clients()
        with pytest.raises(PeerError, match=r"^cannot take over a runtime API client: "):
            successor.server.import_client(sock, {**state, **change})
        assert peer.read_all() == b""


def test_close_sends_what_it_can(harness: Harness) -> None:
    path = harness.listen()
    with harness.connect(path) as peer:
        peer.sock.sendall(b"prompt\nshow version\n")
        peer.read_until(b"1.2.3\n\n> ")
        harness.server.close()
        assert peer.read_all() == b""
    gc.collect()


def test_what_moves_is_bounded(harness: Harness) -> None:
    path = harness.listen()
    harness.control.startup_logs = "x" * (EXPORT_LIMIT - 10_000)
    peers = [harness.connect(path) for _ in range(60)]
    callers = [harness.connect(path) for _ in range(5)]
    for peer in peers:
        peer.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
        peer.sock.sendall(b"prompt\n" + b"show startup-logs;" * 900 + b"\n")
    for caller in callers:
        caller.sock.sendall(b"reload\n")
    harness.until(lambda: len(harness.control.waiting) == len(callers), "the reloads")
    exported = harness.server.export_clients()
    states = [state for _, state in exported]
    assert len(json.dumps(states)) < 4 << 20
    assert [state["reload"] for state in states[:5]] == [8] * 5
    assert bool(harness.logged) == (len(states) < len(peers) + len(callers))
    for sock, _ in exported:
        sock.close()
    for peer in (*peers, *callers):
        peer.sock.close()
