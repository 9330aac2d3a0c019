"""hitlessctl: options, exit statuses, messages, and the outcome of a reload whatever happens to main meanwhile."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hitlessd import ctl
from hitlessd.runtime.control import ReloadOutcome
from tests.support.notify import NotifySocket
from tests.test_runtime_harness import PATIENCE, Harness

DONE, REFUSED, USAGE, UNREACHABLE = 0, 1, 2, 3


class Controlled(Harness):
    """A harness whose reloads end at once, as told."""

    outcome: ReloadOutcome | None = None

    def answer_reloads(self, ok: bool, reason: str) -> None:
        def request(done: Callable[[ReloadOutcome], None]) -> int:
            self.loop.call_soon(lambda: done(ReloadOutcome(8, ok, reason, 0.1, 1.0)))
            return 8

        self.control.request_reload = request  # type: ignore[method-assign]


@pytest.fixture
def harness(tmp_path: Path) -> Iterator[Controlled]:
    harness = Controlled(tmp_path)
    yield harness
    harness.close()


@pytest.fixture(autouse=True)
def _no_default_socket(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HITLESSD_SOCKET", raising=False)


@contextlib.contextmanager
def scripted(path: Path, *connections: Callable[[socket.socket], None]) -> Iterator[None]:
    """A server that handles one connection after the other as scripted, then has gone."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen(16)
        listener.settimeout(PATIENCE)

        def serve() -> None:
            for handle in connections:
                sock, _ = listener.accept()
                with sock:
                    sock.settimeout(PATIENCE)
                    handle(sock)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield
        finally:
            thread.join()
    path.unlink()


def line_of(sock: socket.socket) -> bytes:
    received = b""
    while not received.endswith(b"\n"):
        more = sock.recv(4096)
        assert more
        received += more
    return received


def info(generation: int, started: int, now: int, state: str = "file") -> bytes:
    return (
        f"Name: hitlessd\nGeneration: {generation}\nConfigState: {state}\n"
        f"Start_monotonic_usec: {started}\nNow_monotonic_usec: {now}\n\n"
    ).encode()


def vanish_after(*answers: bytes) -> Callable[[socket.socket], None]:
    """Read a line, send these answers, close."""

    def handle(sock: socket.socket) -> None:
        line_of(sock)
        with contextlib.suppress(BrokenPipeError):  # who asked may have waited long enough
            for answer in answers:
                sock.sendall(answer)

    return handle


# The command line


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "cannot do anything: no command, such as reload, status or show stat"),
        (["-x", "reload"], "cannot use -x: it is not an option"),
        (["-s"], "cannot use -s: it needs an argument"),
        (["reload", "now"], "cannot reload: found 'now', expected no argument"),
        (["status", "now"], "cannot status: found 'now', expected no argument"),
        (["reload", "--timeout"], "cannot use --timeout: it needs an argument"),
        (["reload", "--timeout", "soon"], "cannot use --timeout: found 'soon', expected a number of seconds above 0"),
        (["reload", "--timeout=0"], "cannot use --timeout: found '0', expected a number of seconds above 0"),
        (["-v", "show", "info"], "cannot use -v with show: it goes with reload only"),
        (["status", "--timeout=1"], "cannot use --timeout with status: it goes with reload only"),
        (["--json", "top"], "cannot use --json with top: it goes with reload and status and check and show only"),
        (["--jsno", "status"], "cannot use --jsno: it is not an option; did you mean --json?"),
        (["show info\nreload"], "cannot send the command: it must be one line"),
    ],
)
def test_usage(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert ctl.main(arguments) == USAGE
    captured = capsys.readouterr()
    assert captured.err.startswith(f"hitlessctl: {message}\nusage: hitlessctl ")
    assert captured.out == ""


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert ctl.main(["--help"]) == DONE
    assert capsys.readouterr().out.startswith("usage: hitlessctl ")


def test_socket_from_option_environment_or_default(
    harness: Controlled, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = harness.listen()
    host, port = harness.listen_tcp()
    abstract = socket.socket(socket.AF_UNIX)
    with harness.running():
        for where in (path, f"unix@{path}", f"ipv4@{host}:{port}"):
            assert ctl.main(["-s", where, "show", "version"]) == DONE
        monkeypatch.setenv("HITLESSD_SOCKET", path)
        assert ctl.main(["show", "version"]) == DONE
    assert capsys.readouterr().out == "1.2.3\n" * 4
    abstract.close()
    monkeypatch.delenv("HITLESSD_SOCKET")
    monkeypatch.setattr("hitlessd.ctl.commandline._DEFAULT", str(tmp_path / "default.sock"))
    assert ctl.main(["show", "version"]) == UNREACHABLE
    assert f"cannot reach hitlessd at {tmp_path}/default.sock: No such file" in capsys.readouterr().err


def test_unreachable_names_the_next_step(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    missing, dead = tmp_path / "missing", tmp_path / "dead"
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(dead))
    expected = {
        str(missing): "No such file or directory; next step: is it running (systemctl status hitlessd)",
        str(dead): "Connection refused; next step: nobody serves it any more; start hitlessd",
        str(tmp_path / ("x" * 200)): "AF_UNIX path too long",
        "ipv4@nowhere": "found 'nowhere', expected HOST:PORT after ipv4@",
        "ipv6@[::1]:x": "found '[::1]:x', expected HOST:PORT after ipv6@",
        "ipv4@\udcff:1": "not a host name",
        "127.0.0.1:9": "No such file or directory; next step: for an address write ipv4@127.0.0.1:9",
        str(tmp_path): "it is not a socket; next step: give -s the path of a `stats socket`",
        "": "no socket is named",
    }
    for where, why in expected.items():
        for words in (["show", "info"], ["status"]):
            assert ctl.main(["-s", where, *words]) == UNREACHABLE
            shown = where.encode("utf-8", "backslashreplace").decode()
            assert capsys.readouterr().err.startswith(f"cannot reach hitlessd at {shown}: {why}")


# Commands


def test_command_and_refusals(harness: Controlled, capsys: pytest.CaptureFixture[str]) -> None:
    path = harness.listen()
    harness.control.startup_logs = "zwölf\n"
    with harness.running():
        assert ctl.main(["-s", path, "show", "cli", "level"]) == DONE
        assert ctl.main(["-s", path, "show version;show startup-logs"]) == DONE
        assert ctl.main(["-s", path, "quit"]) == DONE
        assert ctl.main(["-s", path, "prompt"]) == DONE
        captured = capsys.readouterr()
        assert (captured.out, captured.err) == ("admin\n1.2.3\nzwölf\n", "")
        assert ctl.main(["-s", path, "show", "nonsense"]) == REFUSED
        assert ctl.main(["-s", path, "user;reload"]) == REFUSED
    captured = capsys.readouterr()
    assert captured.out == ""
    assert (
        captured.err.startswith("Unknown command, but")
        and "\nPermission denied\nnext step: run as root" in captured.err
    )


MADE = (
    "set weight app/x 5", "disable server app/x", "set server app/x addr 127.0.0.1 port 9", "clear counters all",
    "add server app/new 127.0.0.1:1", "enable frontend www", "@7 enable server app/x", "set maxconn server app/x 0",
    "set server app/x addr 127.0.0.1", "del server pg/c", "disable agent app/x", "set timeout cli 9",
)  # fmt: skip
NOT_MADE = (
    "set weight app/x 300", "set weight app/x 5x", "set weight app/x", "set server app/x foo", "enable health app/x",
    "enable agent app/x", "set maxconn frontend www -3", "set maxconn global 101", "disable frontend",
    "shutdown session", "add server app/x 127.0.0.1:1", "add server app/n 127.0.0.1:1 cookie c",
    "add server empty/n 127.0.0.1:1",
    "set server app/x addr 127.0.0.1 port x", "set server app/x fqdn x", "set server app/x check-port 1",
    "set server app/x addr", "del server app/x/y", "set timeout cli x", "@9 show info", "show servers state zz",
)  # fmt: skip


def test_a_change_that_is_not_made_is_a_failure(harness: Controlled, capsys: pytest.CaptureFixture[str]) -> None:
    path = harness.listen()
    with harness.running():
        for command in MADE:
            assert ctl.main(["-s", path, *command.split(" ")]) == DONE, command
            assert ctl.main(["-s", path, command]) == DONE, command
        assert capsys.readouterr().err == ""
        for command in NOT_MADE:
            assert ctl.main(["-s", path, *command.split(" ")]) == REFUSED, command
            assert ctl.main(["-s", path, command]) == REFUSED, command
            captured = capsys.readouterr()
            assert captured.out == "" and captured.err, command
        harness.control.refusal = "Only servers in maintenance mode can be deleted."
        assert ctl.main(["-s", path, "del", "server", "app/x"]) == REFUSED
    assert capsys.readouterr().err == harness.control.refusal + "\n"


def test_command_without_an_answer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "s"
    with scripted(path, vanish_after(), vanish_after(b"half an answer")):
        for _ in range(2):
            assert ctl.main(["-s", str(path), "show", "info"]) == UNREACHABLE
            assert "it closed the connection" in capsys.readouterr().err


# reload


@pytest.mark.parametrize("verbose", [True, False])
def test_reload_done(harness: Controlled, capsys: pytest.CaptureFixture[str], verbose: bool) -> None:
    path = harness.listen("user")
    harness.answer_reloads(True, "generation 8 serves\nWARNING")
    with harness.running():
        assert ctl.main(["-s", path, "reload", *(["-v"] if verbose else [])]) == DONE
    captured = capsys.readouterr()
    assert captured.out == ("generation 8 serves\nWARNING\n" if verbose else "")
    assert captured.err == ""


def test_a_wrong_word_is_told_what_it_may_mean(harness: Controlled, capsys: pytest.CaptureFixture[str]) -> None:
    path = harness.listen("user")
    with harness.running():
        assert ctl.main(["-s", path, "stauts"]) == REFUSED
        assert ctl.main(["-s", path, "set", "maxconn"]) == REFUSED
        assert ctl.main(["-s", path, "show", "stat", "--json"]) == DONE
    captured = capsys.readouterr()
    assert "\nnext step: did you mean hitlessctl status?\n" in captured.err
    assert captured.err.count("next step") == 1
    assert captured.out.startswith("[[{")


def test_reload_refused(harness: Controlled, capsys: pytest.CaptureFixture[str]) -> None:
    path = harness.listen("user")
    harness.answer_reloads(False, "/etc/x:1: [global] maxconn: bad\n/etc/x:2: worse")
    with harness.running():
        assert ctl.main(["-s", path, "reload"]) == REFUSED
    captured = capsys.readouterr()
    assert captured.err == "cannot reload: /etc/x:1: [global] maxconn: bad\n/etc/x:2: worse\n"
    assert captured.out == ""


def test_reload_forbidden(
    harness: Controlled, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hitlessd.runtime.server.is_privileged", lambda _credentials: False)
    path = harness.listen("operator")
    with harness.running():
        assert ctl.main(["-s", path, "reload"]) == REFUSED
    said = capsys.readouterr().err
    assert said.startswith(f"cannot reload: permission denied at {path}; next step: run as root ")


def test_reload_refused_among_other_commands(harness: Controlled, capsys: pytest.CaptureFixture[str]) -> None:
    path = harness.listen()
    harness.answer_reloads(False, "/etc/x:1: bad")
    with harness.running():
        assert ctl.main(["-s", path, "reload; show version"]) == REFUSED
    assert "/etc/x:1: bad" in capsys.readouterr().err


def test_reload_waits_no_longer_than_told(harness: Controlled, capsys: pytest.CaptureFixture[str]) -> None:
    path = harness.listen()
    with harness.running():
        assert ctl.main(["-s", path, "reload", "--timeout=0.05"]) == UNREACHABLE
    assert "did not answer within 0.05 s; next step: hitlessctl status" in capsys.readouterr().err


def test_reload_without_hitlessd(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert ctl.main(["-s", str(tmp_path / "none"), "reload"]) == UNREACHABLE
    assert "cannot reach hitlessd" in capsys.readouterr().err


def test_main_vanishes_and_its_successor_runs_the_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "s"
    with scripted(path, vanish_after(info(7, 1000, 5000)), vanish_after(info(8, 6000, 7000))):
        assert ctl.main(["-s", str(path), "reload", "-v"]) == DONE
    assert "generation 8 serves; it started after this call" in capsys.readouterr().out


def test_main_vanishes_and_its_successor_runs_the_stored_configuration(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "s"
    errors = b"Total events captured on [x] : 1\nstart: invalid\n  f:1: bad\n\n"
    with scripted(
        path, vanish_after(info(7, 1000, 5000)), vanish_after(info(8, 6000, 7000, "stored")), vanish_after(errors)
    ):
        assert ctl.main(["-s", str(path), "reload"]) == REFUSED
    error = capsys.readouterr().err
    assert error.startswith("cannot reload: generation 8 was started, but it runs the stored configuration")
    assert "f:1: bad" in error


def test_old_main_still_serves_for_a_while(tmp_path: Path) -> None:
    path = tmp_path / "s"
    old = vanish_after(info(7, 1000, 5000))
    with scripted(path, old, old, vanish_after(), old, vanish_after(info(8, 6000, 7000))):
        assert ctl.main(["-s", str(path), "reload"]) == DONE


def test_nobody_comes_back(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hitlessd.ctl.reload._RECONNECT", 0.05)
    path = tmp_path / "s"
    with scripted(path, vanish_after(info(7, 1000, 5000))):
        assert ctl.main(["-s", str(path), "reload"]) == UNREACHABLE
    assert capsys.readouterr().err.startswith("cannot learn how the reload ended: hitlessd closed the connection, and")


def test_systemd_learns_that_the_reload_of_a_dead_main_is_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with NotifySocket(tmp_path) as notify:
        path = tmp_path / "s"
        for name, value in notify.environment.items():
            monkeypatch.setenv(name, value)
        # By hand nobody waits for us.
        with scripted(path, vanish_after(info(7, 1000, 5000)), vanish_after(info(8, 6000, 7000))):
            assert ctl.main(["-s", str(path), "reload"]) == DONE
        # Nor where another unit runs us, with nobody but us to wait for.
        monkeypatch.setenv("SYSTEMD_EXEC_PID", str(os.getpid()))
        monkeypatch.setattr("hitlessd.ctl.reload._RECONNECT_IN_UNIT", 0.0)
        with scripted(path, vanish_after(info(7, 1000, 5000)), vanish_after(), vanish_after(info(8, 6000, 7000))):
            assert ctl.main(["-s", str(path), "reload"]) == DONE
        monkeypatch.setenv("MAINPID", str(os.getppid()))
        with scripted(path, vanish_after(info(7, 1000, 5000))):
            assert ctl.main(["-s", str(path), "reload"]) == UNREACHABLE
        notify.wait("READY=1", os.getpid(), 0)
        assert [each.lines for each in notify.datagrams] == [("READY=1",)]


def test_main_vanishes_before_it_says_anything(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "s"
    with scripted(path, vanish_after(), vanish_after(info(8, 6000, 7000))):
        assert ctl.main(["-s", str(path), "reload"]) == UNREACHABLE
    assert "generation 8 serves now; next step: hitlessctl reload" in capsys.readouterr().err


def test_main_vanishes_and_the_time_is_up(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "s"
    with scripted(path, vanish_after(info(7, 1000, 5000))):
        assert ctl.main(["-s", str(path), "reload", "--timeout", "0.2"]) == UNREACHABLE
    assert "did not answer within 0.2 s" in capsys.readouterr().err


# As a process


def test_module_runs_as_a_program(harness: Controlled) -> None:
    path = harness.listen()
    harness.answer_reloads(True, "")
    environment = {**os.environ, "HITLESSD_SOCKET": path}
    with harness.running():
        command = [sys.executable, "-m", "hitlessd.ctl"]
        done = subprocess.run([*command, "reload"], env=environment, capture_output=True, timeout=PATIENCE, check=False)
        assert (done.returncode, done.stdout, done.stderr) == (DONE, b"", b"")
        # A reader that has seen enough is no error.
        read, write = os.pipe()
        os.close(read)
        done = subprocess.run(
            [*command, "help"], env=environment, stdout=write, stderr=subprocess.PIPE, timeout=PATIENCE, check=False
        )
        os.close(write)
        assert (done.returncode, done.stderr) == (DONE, b"")
        # A disk that is full is one, and told; an output that is closed was not wanted.
        with open("/dev/full", "wb") as full:
            done = subprocess.run(
                [*command, "help"], env=environment, stdout=full, stderr=subprocess.PIPE, timeout=PATIENCE, check=False
            )
        assert (done.returncode, done.stderr) == (UNREACHABLE, b"cannot write the answer: No space left on device\n")
        shell = ["sh", "-c", 'exec "$@" >&-', "sh", *command, "help"]
        done = subprocess.run(shell, env=environment, stderr=subprocess.PIPE, timeout=PATIENCE, check=False)
        assert (done.returncode, done.stderr) == (DONE, b"")


@pytest.mark.parametrize("words", [["reload"], ["show", "info"], ["status"]])
def test_interrupted(words: list[str], tmp_path: Path) -> None:
    path = str(tmp_path / "silent.sock")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        listener.settimeout(PATIENCE)
        # Who runs the tests in the background has SIGINT ignored, which is inherited: give it back as a terminal would.
        command = ["env", "--default-signal=INT", sys.executable, "-m", "hitlessd.ctl", "-s", path, *words]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
            sock, _ = listener.accept()
            with sock:
                sock.settimeout(PATIENCE)
                line_of(sock)
                process.send_signal(signal.SIGINT)
                output, said = process.communicate(timeout=PATIENCE)
    assert (process.returncode, output) == (130, "")
    assert said == "cannot wait: interrupted" + "; the reload goes on" * (words == ["reload"]) + "\n"


def test_output_survives_a_poor_locale(harness: Controlled) -> None:
    path = harness.listen()
    harness.control.startup_logs = "zwölf"
    environment = {**os.environ, "PYTHONIOENCODING": "ascii", "HITLESSD_SOCKET": path}
    command = [sys.executable, "-m", "hitlessd.ctl", "show", "startup-logs"]
    with harness.running():
        done = subprocess.run(command, env=environment, capture_output=True, timeout=PATIENCE, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (DONE, b"zw\\xf6lf\n", b"")


def test_nothing_expensive_is_imported() -> None:
    code = "import sys, hitlessd.ctl.reload; print(*sorted(sys.modules))"
    loaded = subprocess.run(
        [sys.executable, "-S", "-c", code],
        cwd=Path(ctl.__file__).parents[2],
        capture_output=True,
        check=True,
        text=True,
    ).stdout.split()
    dear = {"argparse", "re", "json", "asyncio", "ssl", "logging", "csv", "typing", "dataclasses", "difflib", "rich"}
    dear |= {"socket", "enum", "collections", "functools"}
    assert not dear & set(loaded)
    assert [name for name in loaded if name.startswith("hitlessd")] == [
        "hitlessd",
        "hitlessd.ctl",
        "hitlessd.ctl.commandline",
        "hitlessd.ctl.connection",
        "hitlessd.ctl.output",
        "hitlessd.ctl.reload",
    ]
