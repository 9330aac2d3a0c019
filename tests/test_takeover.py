"""Takeovers by hand, as with haproxy: `-x`, `-sf`, `-st`; and what becomes of those with peers that misbehave."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import struct
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hitlessd.handover.wire import MIGRATES, VERSION, encode
from tests.support.accepting import generations_accepting
from tests.support.daemon import Daemon
from tests.support.echo import Echo, exchange
from tests.support.notify import NotifySocket
from tests.support.processes import ROOT, Process, free_port, free_ports, poll_until, python_module, wait_gone
from tests.support.visitors import Conversation, Visitors, conversations, listen

# From one hitlessd to another


@pytest.mark.parametrize("option", ["-sf", "-st"])
@pytest.mark.parametrize("path", ["path", "abstract"])
def test_by_hand_like_haproxy(option: str, path: str, tmp_path: Path) -> None:
    """`hitlessd -f new.conf -p PIDFILE -x SOCKET -sf $(cat PIDFILE)` under connections."""
    port, added = free_port(), free_port()
    with Echo() as echo, Daemon(tmp_path, listen(port, server=echo.port)) as old:
        where = str(old.socket)
        if path == "abstract":
            where = f"abns@hitlessd-test-{os.getpid()}"
            text = old.text(listen(port, server=echo.port))
            old.write(text.replace("stats socket =", f"stats socket = {where} level admin expose-fd listeners\n  "))
            assert old.reload().returncode == 0
        main = old.pid
        new = Daemon(tmp_path, workers=1, name="new", arguments=("-x", where, option, str(main)))
        new.socket, new.pidfile = old.socket, old.pidfile
        new.write(new.text(listen(port, added, server=echo.port)))
        try:
            # With -st, too, nobody is sent away: whoever was connected has moved before the old one is terminated.
            with Visitors(port), conversations(*[port] * 10) as held:
                new.start()
                poll_until(lambda: new.pid != main, 15, "the new one is main")
                new.wait_serving()
                info = new.info()
                assert (int(info["Pid"]), int(info["Generation"])) == (new.pid, 3 if path == "abstract" else 2)
                assert exchange(added) == b"hello"
                assert generations_accepting([*old.processes(), *new.processes()], port) == {new.pid}
                for each in held:
                    each.say()
                    each.finish()
                poll_until(lambda: not old.processes(), 15, "the old one has gone")
                # Its own reloads forget where it came from.
                assert new.reload().returncode == 0
                command = Path(f"/proc/{new.pid}/cmdline").read_bytes().split(b"\0")
                assert not {b"-x", b"-sf", b"-st"} & set(command)
            assert exchange(port) == b"hello"
        finally:
            new.end_all()
        assert "Traceback" not in new.log


def test_finish_without_a_socket(tmp_path: Path) -> None:
    """`-sf` alone: the ports are different ones, the old one is told to finish once the new one serves."""
    port, other = free_port(), free_port()
    with (
        Echo() as echo,
        Daemon(tmp_path, listen(port, server=echo.port), workers=1) as old,
        Conversation(port) as held,
    ):
        held.say()
        main = old.pid
        with Daemon(tmp_path, listen(other, server=echo.port), workers=1, name="new", arguments=("-sf", str(main))):
            assert exchange(other) == b"hello"
            old.wait_log("finishing")
            held.finish()
            assert old.process.wait() == 0
            assert exchange(other) == b"hello"


def test_under_a_service_manager_it_has_to_be_allowed(tmp_path: Path) -> None:
    port = free_port()
    with (
        Echo() as echo,
        NotifySocket(tmp_path) as notify,
        Daemon(tmp_path, listen(port, server=echo.port), workers=1, env=notify.environment) as old,
    ):
        refused = Daemon(tmp_path, listen(port, server=echo.port), workers=1, name="new")
        refused.start("-x", str(old.socket))
        status, said = finished(refused)
        assert status == 1
        assert "use `systemctl reload`, or set `external-takeover = on`" in said
        old.write(old.text(listen(port, server=echo.port)).replace("[defaults]", "external-takeover = on\n[defaults]"))
        first = old.pid
        assert old.reload().returncode == 0
        # It says BARRIER=1, too, before it ends.
        wait_gone(first)
        notify.settle()
        main, start = old.pid, len(notify.datagrams)
        with Daemon(tmp_path, listen(port, server=echo.port), workers=1, name="new", arguments=("-x", str(old.socket))):
            wait_gone(main)
            assert exchange(port) == b"hello"
            # No word of another main process, which would not be in the unit.
            assert [each.names for each in notify.datagrams[start:]] == [("BARRIER",)]


# A predecessor that is none


def finished(successor: Daemon) -> tuple[int, str]:
    """The exit status and what was said, of one that must not start; nothing of it may be left."""
    status = successor.process.wait(30)
    said = successor.process.stderr.join()
    assert not successor.processes()
    left = sorted(path.name for path in successor.directory.iterdir() if path.name.startswith("new."))
    assert left == ["new.conf"]
    return status, "\n".join(said)


@contextlib.contextmanager
def server(path: Path, play: Callable[[socket.socket], None]) -> Iterator[None]:
    """Plays `play` for every connection to the path."""

    def serve() -> None:
        while True:
            try:
                sock, _ = listener.accept()
            except OSError:
                return
            with sock:
                sock.settimeout(30)
                try:
                    play(sock)
                except OSError:
                    continue

    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        try:
            yield
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join(10)


def asked(sock: socket.socket) -> bool:
    """Read the request; whether it is for `_getsocks`, which comes when `_takeover` is not understood."""
    request = sock.recv(4096)
    if request.startswith(b"_getsocks"):
        return True
    sock.sendall(b"Unknown command: '_takeover'\n\n")
    return False


def _garbage(sock: socket.socket) -> None:
    sock.recv(4096)
    sock.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
    sock.recv(4096)


def _stalls(sock: socket.socket) -> None:
    while sock.recv(4096):
        pass


def _stalls_later(sock: socket.socket) -> None:
    if asked(sock):
        sock.sendall(struct.pack("=i", 2))
        _stalls(sock)


def _closes(sock: socket.socket) -> None:
    sock.recv(4096)


def _closes_later(sock: socket.socket) -> None:
    if asked(sock):
        sock.sendall(struct.pack("=i", 2))


def _batch(count: int, announced: int, size: int = 6) -> Callable[[socket.socket], None]:
    """Sends `count` listeners where it announced another number; of 6 bytes a record, `size` a descriptor."""

    def play(sock: socket.socket) -> None:
        if not asked(sock):
            return
        sock.sendall(struct.pack("=i", announced))
        with socket.create_server(("127.0.0.1", 0)) as listener:
            fds = struct.pack(f"{count}i", *[listener.fileno()] * count)
            sock.sendmsg([bytes(size * count)], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, fds)])
            if size == 6:
                sock.recv(4)

    return play


def _says(data: bytes) -> Callable[[socket.socket], None]:
    def play(sock: socket.socket) -> None:
        sock.recv(4096)
        sock.sendall(data)
        _stalls(sock)

    return play


def _offers(**text: object) -> Callable[[socket.socket], None]:
    return _says(encode({"is": "offer", "version": VERSION, "records": [], "pid": os.getpid(), **text}))


@pytest.mark.parametrize(
    ("play", "reason"),
    [
        pytest.param(_garbage, "the other side announced 1347703880 of them", id="garbage"),
        pytest.param(_stalls, "no answer within 1 s", id="stalls"),
        pytest.param(_stalls_later, "no answer within 1 s", id="stalls-after-the-count"),
        pytest.param(_closes, "closed without an answer", id="closes"),
        pytest.param(_closes_later, "closed after 0 of 2 descriptors", id="closes-after-the-count"),
        pytest.param(_batch(3, 5), "closed after 3 of 5 descriptors", id="closes-amid-the-batches"),
        pytest.param(_batch(3, 2), "announced 2 descriptors and sent more", id="more-than-announced"),
        pytest.param(_batch(2, 2, 3), "closed after 2 of 2 descriptors", id="closes-amid-a-batch"),
        pytest.param(_says(b"hlsd" + b"\xff" * 100), "too large", id="huge-frame"),
        pytest.param(_says(encode({"is": "commit"})), "cannot handle 'commit' in state 'hello'", id="out-of-turn"),
        pytest.param(_says(encode({"is": "bogus"})), "cannot handle 'bogus' in state 'hello'", id="unknown"),
        pytest.param(_says(encode({"is": "refuse", "reason": "cannot go"})), "cannot go", id="refuses"),
        pytest.param(_says(encode({"is": "offer"})[:20]), "no answer within 1 s", id="stalls-amid-a-frame"),
        pytest.param(_offers(version=99), "it speaks version 99 of the protocol", id="another-version"),
        pytest.param(_offers(pid=4194303), "it says that it is process 4194303, and is process ", id="no-such-process"),
        pytest.param(_offers(pid=1), "it says that it is process 1, and is process ", id="another-process"),
        pytest.param(_offers(pid="x"), "it says that it is process x, and is process ", id="not-a-process"),
    ],
)
def test_a_predecessor_that_is_none_is_refused(
    play: Callable[[socket.socket], None], reason: str, tmp_path: Path
) -> None:
    with server(tmp_path / "old.sock", play):
        successor = Daemon(tmp_path, listen(free_port(), server=1), workers=1, name="new", more="reload-timeout = 1s")
        successor.start("-x", str(tmp_path / "old.sock"))
        status, said = finished(successor)
    assert status == 1
    assert len(said.splitlines()) == 1, said
    assert "alert: cannot " in said
    assert reason in said


@pytest.mark.parametrize(
    ("where", "reason"),
    [
        ("{}/none.sock", "there is no such socket"),
        ("{}/stale.sock", "nobody listens there"),
        ("{}/new.conf", "nobody listens there"),
        ("{}/" + "x" * 200, "path too long"),
        ("abns@hitlessd-test-none", "nobody listens there"),
    ],
)
def test_nobody_to_take_over_from(where: str, reason: str, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(tmp_path / "stale.sock"))
    successor = Daemon(tmp_path, listen(free_port(), server=1), workers=1, name="new", more="reload-timeout = 1s")
    successor.start("-x", where.format(tmp_path))
    status, said = finished(successor)
    assert status == 1
    assert len(said.splitlines()) == 1
    assert "alert: cannot take over from " in said
    assert reason in said


def test_a_predecessor_that_lies_about_listeners_does_not_get_its_way(tmp_path: Path) -> None:
    """What is passed is judged by what the kernel says of it; binds that got nothing are opened."""
    port = free_port()

    def play(sock: socket.socket) -> None:
        if not asked(sock):
            return
        sock.sendall(struct.pack("=i", 3))
        with (
            open(os.devnull, "rb") as file,
            socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagrams,
            socket.socket() as idle,
        ):
            fds = struct.pack("3i", file.fileno(), datagrams.fileno(), idle.fileno())
            sock.sendmsg([bytes(18)], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, fds)])
            sock.recv(4)

    with (
        Echo() as echo,
        server(tmp_path / "old.sock", play),
        Daemon(
            tmp_path,
            listen(port, server=echo.port),
            workers=1,
            name="new",
            arguments=("-x", str(tmp_path / "old.sock")),
        ) as successor,
    ):
        assert exchange(port) == b"hello"
        successor.wait_log("(0 taken, 1 bound)")


# A successor that misbehaves


@pytest.mark.parametrize(
    ("steps", "reason"),
    [
        ("hello=99 wait", "the successor speaks version 99 of the protocol"),
        ("hello accepting wait", "cannot handle 'accepting' in state 'offer'"),
        ("hello committed wait", "cannot handle 'committed' in state 'offer'"),
        ("hello hello wait", "this is not the takeover protocol"),
        ("hello bogus wait", "unknown message 'bogus'"),
        ("hello ready wait", "the successor has not taken all listeners"),
        ("hello all next wait", "the successor has them all"),
        ("hello all ready=[99] wait", "the successor names listeners that were not offered"),
        ('hello all ready="x" wait', "the successor names listeners that were not offered"),
        ("hello garbage wait", "this is not the takeover protocol"),
        ("hello all ready garbage wait", "this is not the takeover protocol"),
        ("hello all ready ready wait", "cannot handle 'ready' in state 'accept'"),
        ("hello all ready accepting accepting wait", "cannot handle 'accepting' in state 'commit'"),
        ("hello leave", "the successor went away while it prepared"),
        ("hello next leave", "the successor went away while it prepared"),
        ("hello all ready leave", "the successor went away when it was to accept"),
        ("hello all ready accepting leave", "the successor went away when it was to take over"),
        ("hello all refuse wait", "the peer does not want to"),
        ("hello all stall", "the successor did not answer within 3 s while it prepared"),
        ("hello all ready accepting stall", "the successor did not answer within 3 s when it was to take over"),
    ],
)
def test_a_successor_that_misbehaves_changes_nothing(
    steps: str, reason: str, serving: tuple[Daemon, int, Conversation]
) -> None:
    daemon, port, held = serving
    main, number = daemon.pid, int(daemon.info()["ReloadsRefused"])
    with Process(python_module("tests.support.peer", daemon.socket, *steps.split()), cwd=ROOT) as peer:
        peer.wait(20)
        poll_until(lambda: int(daemon.info()["ReloadsRefused"]) == number + 1, 10, "the refusal")
    assert daemon.pid == main
    assert reason in daemon.ask("show errors")
    held.say()
    assert exchange(port) == b"hello"
    assert generations_accepting(daemon.processes(), port) == {main}
    assert len(daemon.processes()) == 2


def test_a_successor_of_a_version_that_takes_no_connections_leaves_them_where_they_are(tmp_path: Path) -> None:
    port = free_port()
    with (
        Echo() as echo,
        Daemon(tmp_path, listen(port, server=echo.port), workers=1) as daemon,
        Conversation(port) as held,
    ):
        held.say()
        old = daemon.pid
        steps = f"hello={MIGRATES - 1} all ready=[0] accepting committed wait stall"
        with Process(python_module("tests.support.peer", daemon.socket, *steps.split()), cwd=ROOT) as peer:
            peer.stdout.wait(lambda line: line == "stalls")
            daemon.wait_log("0 connections moved, 1 to be drained")
            held.say()
            held.finish()
            wait_gone(old)
            peer.signal(signal.SIGKILL)


@pytest.fixture(scope="module")
def serving(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Daemon, int, Conversation]]:
    """One daemon for all who misbehave, with a connection that outlives them; reloads go on working afterwards."""
    port = free_port()
    directory = tmp_path_factory.mktemp("serving")
    with (
        Echo() as echo,
        Daemon(directory, listen(port, server=echo.port), workers=1, more="reload-timeout = 3s") as daemon,
        Conversation(port) as held,
    ):
        held.say()
        yield daemon, port, held
        assert daemon.reload().returncode == 0
        held.finish()
        assert exchange(port) == b"hello"


@pytest.mark.parametrize("level", ["admin", "user"])
def test_a_stranger_may_not_take_over(level: str) -> None:
    """Somebody whom the socket's mode lets in, but who is neither root nor the daemon's own user."""
    port = free_port()
    with tempfile.TemporaryDirectory() as name, Echo() as echo:
        directory = Path(name)
        directory.chmod(0o755)
        daemon = Daemon(directory, workers=1)
        text = daemon.text(listen(port, server=echo.port))
        daemon.write(text.replace("mode 600", "mode 666").replace("level admin", f"level {level}"))
        with daemon, Visitors(port):
            command = python_module("tests.support.peer", "--uid", "65534", daemon.socket, "hello")
            with Process(command, cwd=ROOT) as peer:
                peer.stdout.wait(lambda line: line.startswith("cannot take over: "))
                peer.stdout.wait(lambda line: line == "closed")
                peer.wait(20)
            assert daemon.info()["ReloadsRefused"] == "0"
            assert daemon.reload().returncode == 0


def test_only_one_takes_over_at_a_time(tmp_path: Path) -> None:
    port = free_port()
    with Echo() as echo, Daemon(tmp_path, listen(port, server=echo.port), workers=1) as daemon:
        with Process(python_module("tests.support.peer", daemon.socket, "hello", "stall"), cwd=ROOT) as first:
            first.stdout.wait(lambda line: line == "stalls")
            with Process(python_module("tests.support.peer", daemon.socket, "hello"), cwd=ROOT) as second:
                second.wait(20)
                assert second.stdout.join()[0] == "cannot take over: it is being reloaded or stopped; try again"
            # A reload that is asked for meanwhile waits, and is done when the other has gone.
            os.kill(daemon.pid, signal.SIGHUP)
            daemon.ask("show version")
            first.signal(signal.SIGKILL)
        daemon.wait_log("reload 2 done")
        assert exchange(port) == b"hello"


def test_takeover_by_hand_survives_more_listeners_than_a_batch(tmp_path: Path) -> None:
    ports = free_ports(300)
    with (
        Echo() as echo,
        Daemon(tmp_path, listen(*ports, server=echo.port), workers=1) as old,
        Conversation(ports[-1]) as held,
    ):
        held.say()
        arguments = ("-x", str(old.socket), "-sf", str(old.pid))
        with Daemon(tmp_path, listen(*ports, server=echo.port), workers=1, name="new", arguments=arguments) as new:
            new.wait_log("300 taken, 0 bound")
            held.finish()
            assert old.process.wait() == 0
            assert exchange(ports[150]) == b"hello"
