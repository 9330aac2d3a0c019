"""`@N` on a real hitlessd: what a generation that drains still has, and what the current one has."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from pathlib import Path

from tests.support.daemon import Daemon
from tests.support.echo import Echo
from tests.support.processes import free_port


@contextlib.contextmanager
def _talk(port: int) -> Iterator[socket.socket]:
    """A connection over which a word has gone there and back."""
    with socket.create_connection(("127.0.0.1", port), 10) as sock:
        sock.sendall(b"word")
        assert sock.recv(4) == b"word"
        yield sock


def _info(daemon: Daemon, prefix: str) -> dict[str, str]:
    return dict(line.split(": ", 1) for line in daemon.ask(f"{prefix} show info").splitlines() if ": " in line)


def test_each_generation_tells_its_own(tmp_path: Path) -> None:
    port = free_port()
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(Echo())
        body = f"[listen t]\nbind = 127.0.0.1:{port}\noption migrate = off\nserver s = 127.0.0.1:{server.port}\n"
        daemon = stack.enter_context(Daemon(tmp_path, body, workers=1))
        old = int(daemon.info()["Pid"])
        for _ in range(2):
            stack.enter_context(_talk(port))
        assert daemon.reload().returncode == 0
        stack.enter_context(_talk(port))
        both, first, second = (_info(daemon, prefix) for prefix in ("@", "@1", "@2"))
        assert [each["CurrConns"] for each in (both, first, second)] == ["3", "2", "1"]
        assert first["Pid"] == str(old) and second["Pid"] == both["Pid"] == str(daemon.pid) != first["Pid"]
        assert (first["Stopping"], second["Stopping"]) == ("1", "0")
        assert [daemon.ask(f"{prefix} show sess").count(" fe=t ") for prefix in ("@", f"@!{old}", "@2")] == [3, 2, 1]
        stat = daemon.ask("@1 show stat t 1 -1").splitlines()[1].split(",")
        assert stat[4] == "2"
        assert "cannot ask generation 1 for 'reload'" in daemon.ask("@1 reload")
        assert "# old workers" in daemon.ask("show proc") and "# old workers" not in daemon.ask("@2 show proc")


def test_a_prompt_stays_with_its_generation_over_a_reload(tmp_path: Path) -> None:
    port = free_port()
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(Echo())
        body = f"[listen t]\nbind = 127.0.0.1:{port}\noption migrate = off\nserver s = 127.0.0.1:{server.port}\n"
        daemon = stack.enter_context(Daemon(tmp_path, body, workers=1))
        stack.enter_context(_talk(port))
        client = stack.enter_context(socket.socket(socket.AF_UNIX))
        client.settimeout(20)
        client.connect(str(daemon.socket))
        told = stack.enter_context(client.makefile("rb"))
        client.sendall(b"prompt\n@1\nshow cli level\n")
        assert [told.readline() for _ in range(4)] == [b"\n", b"> \n", b"1> admin\n", b"\n"]
        assert daemon.reload().returncode == 0
        client.sendall(b"show info\n")
        lines = iter(told.readline, b"\n")
        assert {b"Generation: 1\n", b"CurrConns: 1\n", b"Stopping: 1\n"} <= set(lines)
