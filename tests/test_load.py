"""The load generator is what every promise is measured with: it must see every kind of failure, and only real ones."""

import json
import signal
import socket
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support import exchange as wire
from tests.support.backend import Backend, BackendThread, Server
from tests.support.clients import CLIENTS
from tests.support.engine import Engine, Settings
from tests.support.load import Load
from tests.support.processes import (
    ROOT,
    Deadline,
    DeadlineExpired,
    Process,
    alive,
    end,
    format_address,
    free_port,
    free_ports,
    parse_address,
    poll_until,
    python_module,
)
from tests.support.tally import FAILURES, percentiles


def run(targets: str | list[str], **settings: Any) -> dict[str, Any]:
    """A load to its natural end, in this process, with its own books checked."""
    settings["targets"] = [targets] if isinstance(targets, str) else targets
    engine = Engine(Settings(**settings), CLIENTS[settings.get("mode", "connect")])
    result = engine.run()
    assert result["started"] == result["done"] + result["failed"] + result["unfinished"]
    assert sum(result["failures"].values()) == result["failed"]
    return result


def only(**failures: int) -> dict[str, int]:
    return dict.fromkeys(FAILURES, 0) | failures


def patience(fault: str) -> float:
    """Seconds until a connection has timed out: few where that is what the test is about."""
    return 2.0 if fault == "stall" else 10.0


@pytest.fixture
def server() -> Iterator[Server]:
    with BackendThread(Server()) as server:
        yield server


def ask(server: Server) -> socket.socket:
    _, address = parse_address(server.addresses[0])
    assert isinstance(address, tuple)
    return socket.create_connection(address, timeout=5)


def receive_all(sock: socket.socket) -> bytes:
    received = b""
    while data := sock.recv(65536):
        received += data
    return received


def request(ident: int, size: int, close: int = wire.CLOSE_SERVER) -> bytes:
    place = wire.position(ident)
    return wire.pack_request(wire.EXCHANGE, close, 0, size, ident) + wire.ASKED[place : place + size]


class TestEveryFailureIsSeen:
    """A backend that misbehaves at every so many requests is caught each time, and the kind is right."""

    @pytest.mark.parametrize(
        ("fault", "kind"),
        [
            ("corrupt", "corrupt"),
            ("short", "short"),
            ("excess", "corrupt"),
            ("reset", "reset"),
            ("stall", "timeout"),
            ("wrong", "wrong"),
        ],
    )
    def test_in_one_of_seven_connections(self, fault: str, kind: str) -> None:
        # Seven and the five ways to close that take turns have no common divisor: each of them meets the fault.
        with BackendThread(Server(fault=fault, fault_every=7)) as server:
            result = run(server.addresses, total=105, clients=10, timeout=patience(fault))
        assert result["failures"] == only(**{kind: 15})
        assert result["done"] == 90
        assert len(result["errors"]) == 15
        assert all(kind in error for error in result["errors"])

    @pytest.mark.parametrize(
        ("fault", "kind"), [("corrupt", "corrupt"), ("short", "short"), ("reset", "reset"), ("stall", "timeout")]
    )
    def test_on_a_kept_connection(self, fault: str, kind: str) -> None:
        with BackendThread(Server(fault=fault, fault_every=50)) as server:
            result = run(server.addresses, mode="keepalive", total=200, clients=4, timeout=patience(fault))
        assert result["failures"] == only(**{kind: 4})
        assert result["requests"] == 196

    @pytest.mark.parametrize("fault", ["corrupt", "short", "reset", "stall"])
    def test_in_a_stream(self, fault: str) -> None:
        kind = {"stall": "timeout", "short": "corrupt"}.get(fault, fault)
        with (
            BackendThread(Server(fault=fault, fault_every=2)) as server,
            Load(server.addresses, mode="stream", clients=4, interval=0.005, timeout=patience(fault)) as load,
        ):
            load.wait_for(lambda event: event.get("failed", 0) == 2, what="both faulty streams")
            result = load.stop()
        assert result["failed"] == 2
        assert result["done"] == 2
        if fault == "short":  # one byte is missing: the next one is out of sequence, or the end comes instead
            assert result["failures"]["short"] + result["failures"]["corrupt"] == 2
        else:
            assert result["failures"] == only(**{kind: 2})

    @pytest.mark.parametrize(
        ("fault", "kind"),
        [("corrupt", "corrupt"), ("short", "short"), ("reset", "reset"), ("stall", "timeout"), ("wrong", "wrong")],
    )
    @pytest.mark.parametrize("direction", ["down", "up", "both"])
    def test_in_a_transfer(self, direction: str, fault: str, kind: str) -> None:
        if (fault, direction) == ("corrupt", "down") or (fault, direction) == ("corrupt", "up"):
            kind = "corrupt"
        with BackendThread(Server(fault=fault, fault_every=4)) as server:
            settings = {"mode": "bulk", "size": 200_000, "direction": direction}
            result = run(server.addresses, total=8, clients=2, timeout=patience(fault), **settings)
        assert result["failures"] == only(**{kind: 2})
        assert result["done"] == 6

    def test_nobody_listens(self, tmp_path: Path) -> None:
        targets = [
            f"127.0.0.1:{free_port()}",
            f"[::1]:{free_port('::1')}",
            str(tmp_path / "none"),
            "abns@nobody-listens",
        ]
        result = run(targets, total=40, clients=4)
        assert result["failures"] == only(refused=40)

    def test_nobody_accepts(self) -> None:
        """Connections in a listener's backlog are unanswered, not forgotten."""
        with socket.create_server(("127.0.0.1", 0), backlog=100) as listener:
            target = format_address(socket.AF_INET, listener.getsockname())
            result = run(target, total=20, clients=20, timeout=0.3)
        assert result["failures"] == only(timeout=20)

    def test_a_listener_closed_over_its_backlog(self) -> None:
        listener = socket.create_server(("127.0.0.1", 0), backlog=100)
        target = format_address(socket.AF_INET, listener.getsockname())
        with Load(target, mode="connect", total=20, clients=20, timeout=10) as load:
            load.wait_for(lambda event: event.get("open") == 20, what="all in the backlog")
            listener.close()
            result = load.result()
        assert result["failures"] == only(reset=20)

    def test_a_full_backlog(self, tmp_path: Path) -> None:
        """A unix listener that is slow is waited for, as a blocking connect() would; no longer than the timeout."""
        path = str(tmp_path / "slow")
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
            listener.bind(path)
            listener.listen(0)
            result = run(path, total=5, clients=5, timeout=0.3)
        assert result["failures"] == only(timeout=5)

    def test_the_server_dies_while_connections_are_idle(self) -> None:
        with Backend() as backend, Load(backend.addresses, mode="idle", clients=20) as load:
            load.wait_ready()
            backend.process.signal(signal.SIGKILL)
            result = load.result()
            with pytest.raises(RuntimeError, match="ended with -9"):
                backend.stop()
        assert result["failures"]["short"] + result["failures"]["reset"] == result["failed"] == 20

    def test_local_trouble_is_a_failure_too(self) -> None:
        result = run("127.0.0.1:1", total=3, clients=1, sources=["192.0.2.1"])
        assert result["failures"] == only(local=3)

    def test_the_exit_status_says_so(self, server: Server) -> None:
        for target, status in ((server.addresses[0], 0), (f"127.0.0.1:{free_port()}", 1)):
            with Process(python_module("tests.support.load", "--target", target, "--total", "5"), cwd=ROOT) as process:
                assert process.wait(10) == status
                assert "failures: " + ("5 refused" if status else "none") in process.stdout.join()


class TestTheServerChecksToo:
    def test_an_altered_request_is_reported_to_both(self, server: Server) -> None:
        data = bytearray(request(7, 100))
        data[60] ^= 1
        with ask(server) as sock:
            sock.sendall(data)
            answer = wire.unpack_answer(receive_all(sock))
        assert answer is not None and answer.status == wire.BAD_REQUEST
        poll_until(lambda: server.counters.corrupt == 1, what="the server has counted it")

    def test_what_is_no_request_is_refused(self, server: Server) -> None:
        with ask(server) as sock:
            sock.sendall(b"GET / HTTP/1.0\r\n\r\n" + bytes(100))
            sock.shutdown(socket.SHUT_WR)
            answer = wire.unpack_answer(receive_all(sock))
        assert answer is not None and answer.status == wire.BAD_REQUEST

    def test_a_request_cut_short_is_counted(self, server: Server) -> None:
        with ask(server) as sock:
            sock.sendall(request(7, 100)[:-1])
            sock.shutdown(socket.SHUT_WR)
            assert receive_all(sock) == b""
        poll_until(lambda: server.counters.short == 1, what="the server has counted it")

    def test_bytes_after_the_last_answer_are_counted(self, server: Server) -> None:
        with ask(server) as sock:
            sock.sendall(request(7, 100))
            assert len(receive_all(sock)) > 100
            sock.sendall(b"!")
            poll_until(lambda: server.counters.corrupt == 1, what="the server sees the byte")

    def test_a_stream_with_a_byte_missing_is_reported(self, server: Server) -> None:
        place = wire.position(9)
        with ask(server) as sock:
            sock.sendall(wire.pack_request(wire.STREAM, wire.CLOSE_CLIENT, 0, 0, 9) + wire.ASKED[place : place + 50])
            sock.sendall(wire.ASKED[place + 51 : place + 100])
            poll_until(lambda: server.counters.corrupt == 1, what="the server sees the gap")

    def test_a_connection_without_a_request_is_no_failure(self, server: Server) -> None:
        with ask(server) as sock:
            sock.shutdown(socket.SHUT_WR)
            assert receive_all(sock) == b""
        poll_until(lambda: server.counters.empty == 1, what="the server has counted it")
        assert server.counters.short == 0


class TestNothingFailsWithoutReason:
    @pytest.mark.parametrize("close", ["server", "client", "half", "plain", "mixed"])
    def test_every_way_to_close(self, server: Server, close: str) -> None:
        result = run(server.addresses, total=300, clients=20, close=close)
        assert result["failures"] == only()
        assert result["complete"]
        assert result["done"] == result["requests"] == 300
        poll_until(lambda: server.counters.clean == 300, what="the server has seen every end")
        assert server.counters.reset == server.counters.short == server.counters.corrupt == 0

    def test_every_kind_of_address(self, tmp_path: Path) -> None:
        listen = ["127.0.0.1:0", "[::1]:0", str(tmp_path / "socket"), f"abns@{tmp_path}"]
        with Backend(listen, tags=[11, 12, 13, 14]) as backend:
            result = run(backend.addresses, total=100, rate=1000)
            counters = backend.wait_closed()
        assert result["failures"] == only()
        assert result["tags"] == {"11": 25, "12": 25, "13": 25, "14": 25}
        assert counters["clean"] == counters["requests"] == 100
        assert not (tmp_path / "socket").exists()

    def test_bodies_larger_than_any_buffer(self, server: Server) -> None:
        result = run(server.addresses, total=20, clients=4, body=(900_000, 1 << 20))
        assert result["failures"] == only()

    def test_empty_bodies(self, server: Server) -> None:
        result = run(server.addresses, total=20, clients=4, body=(0, 0))
        assert result["failures"] == only()

    def test_kept_connections_are_replaced_after_so_many_requests(self, server: Server) -> None:
        result = run(server.addresses, mode="keepalive", total=100, clients=1, requests=10)
        assert (result["failures"], result["requests"], result["done"]) == (only(), 100, 10)

    @pytest.mark.parametrize("direction", ["down", "up", "both"])
    def test_transfers(self, server: Server, direction: str) -> None:
        result = run(server.addresses, mode="bulk", size=3_000_001, direction=direction, total=5, clients=2)
        assert result["failures"] == only()
        moved = 3_000_001 * 5
        assert (result["bytes_in"] >= moved) == (direction != "up")
        assert (result["bytes_out"] >= moved) == (direction != "down")

    def test_streams(self, server: Server) -> None:
        with Load(server.addresses, mode="stream", clients=10, interval=0.002) as load:
            load.wait_ready()
            load.wait_requests(1000)
            result = load.stop()
        assert (result["failures"], result["done"]) == (only(), 10)
        assert result["gap_ms"]["max"] > 0
        assert result["bytes_in"] - 10 * wire.ANSWER_SIZE == result["bytes_out"] - 10 * wire.REQUEST_SIZE

    def test_idle_connections_are_asked_again_at_the_end(self, server: Server) -> None:
        with Load(server.addresses, mode="idle", clients=50) as load:
            assert load.wait_ready()["open"] == 50
            assert server.counters.requests == 50
            result = load.stop()
        assert (result["failures"], result["done"], result["requests"]) == (only(), 50, 100)

    def test_a_delayed_answer_is_waited_for(self, server: Server) -> None:
        result = run(server.addresses, total=10, clients=10, delay=0.05)
        assert result["failures"] == only()
        assert result["latency_ms"]["p50"] >= 50


class TestControl:
    def test_the_end_in_order_finishes_what_is_under_way(self, server: Server) -> None:
        with Load(server.addresses, rate=500, delay=0.05) as load:
            load.wait_done(50)
            assert load.progress["done"] >= 50
            result = load.stop()
        assert result["failures"] == only()
        assert result["unfinished"] == 0
        assert result["done"] == result["started"] >= 50

    def test_a_second_signal_ends_at_once_and_counts_what_it_cut_off(self) -> None:
        with BackendThread(Server(mode="silent")) as server, Load(server.addresses, total=5, timeout=60) as load:
            load.wait_for(lambda event: event.get("open") == 5)

            def ended() -> bool:
                load.finish()
                return not load.running

            poll_until(ended, what="the end")
            result = load.result()
        assert (result["unfinished"], result["done"], result["failed"]) == (5, 0, 0)

    def test_it_ends_with_whoever_started_it(self, server: Server) -> None:
        command = python_module(
            "tests.support.load", "--target", server.addresses[0], "--rate=10", "--json", "--until-eof"
        )
        process = Process(command, cwd=ROOT, stdin=subprocess.PIPE)
        with process:
            process.stderr.wait(lambda line: "started" in line)
            assert process.popen.stdin is not None
            process.popen.stdin.close()
            assert process.wait(10) == 0
        assert json.loads(process.stdout.text)["failed"] == 0

    @pytest.mark.parametrize(
        "wrong",
        [
            {"mode": "none"},
            {"close": "never"},
            {"direction": "sideways"},
            {"body": (10, 5)},
            {"body": (0, 1 << 30)},
            {"clients": 0},
            {"targets": []},
        ],
    )
    def test_settings_without_sense_are_refused(self, wrong: dict[str, Any]) -> None:
        with pytest.raises(ValueError, match="cannot make load"):
            Settings(**({"targets": ["127.0.0.1:1"]} | wrong))

    def test_a_seed_repeats_the_sizes(self, server: Server) -> None:
        first, second, other = (run(server.addresses, total=50, clients=5, seed=seed) for seed in (5, 5, 6))
        assert first["bytes_out"] == second["bytes_out"] != other["bytes_out"]

    def test_a_backend_that_cannot_listen_says_so(self, server: Server) -> None:
        with pytest.raises(RuntimeError, match="cannot listen"):
            Backend(server.addresses).start()


class TestHelpers:
    def test_percentiles(self) -> None:
        found = percentiles([n / 1000 for n in range(1, 1001)])
        assert (found["p50"], found["p99"], found["p999"], found["max"]) == (501, 991, 1000, 1000)
        assert percentiles([])["max"] == 0

    def test_ports_differ_and_are_free(self) -> None:
        ports = free_ports(50)
        assert len(set(ports)) == 50
        for port in ports[:5]:
            socket.create_server(("127.0.0.1", port)).close()

    @pytest.mark.parametrize("text", ["127.0.0.1:80", "[::1]:80", "/run/a.sock", "abns@name"])
    def test_addresses_read_and_written(self, text: str) -> None:
        assert format_address(*parse_address(text)) == text

    @pytest.mark.parametrize("text", ["", "127.0.0.1", ":80", "host:http"])
    def test_what_is_no_address(self, text: str) -> None:
        with pytest.raises(ValueError, match="cannot read address"):
            parse_address(text)

    def test_deadlines(self) -> None:
        with pytest.raises(DeadlineExpired, match="a blue moon"):
            poll_until(lambda: False, 0.02, "a blue moon")
        assert Deadline(60).left > 59

    def test_a_process_that_ignores_the_signal_is_killed(self) -> None:
        code = "import signal; signal.signal(15, signal.SIG_IGN); print('x', flush=True); signal.pause()"
        with Process(["/usr/bin/python3", "-c", code]) as process:
            process.stdout.wait(bool)
            assert alive(process.pid)
            end(process.pid, 0.05)
            assert process.wait(5) == -signal.SIGKILL
        assert not alive(process.pid)


def test_the_backend_survives_a_client_that_resets_behind_its_answer() -> None:
    class Late(Server):
        """Its clients are gone when it is about to end their connection."""

        def _write(self, connection: Any, data: bytes | memoryview) -> bool:
            written = super()._write(connection, data)
            gone.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            gone.close()
            return written

    with BackendThread(Late()) as server:
        for _ in range(2):
            gone = ask(server)
            gone.sendall(request(1, 10))
            poll_until(lambda: gone.fileno() < 0, 10, "the client is gone")  # noqa: B023
        poll_until(lambda: server.counters.reset == 2, 10, "both are counted")
