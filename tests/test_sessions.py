"""`show sess` and `shutdown session`, over all generations, beside a real haproxy's."""

from __future__ import annotations

import contextlib
import re
import socket
from pathlib import Path

import pytest

from hitlessd.main.sessions import merge
from hitlessd.runtime.sess import human_time, session_line, session_number
from tests.support.backend import Backend
from tests.support.daemon import Daemon
from tests.support.echo import Echo
from tests.support.http_backend import HttpBackend
from tests.support.load import Load
from tests.support.processes import Process, free_port, poll_until
from tests.support.visitors import Conversation, listen

_FIELD = re.compile(r"(\w+)=(\[[^]]*\]|\S*)")


def sessions(text: str) -> dict[str, dict[str, str]]:
    """Fields by id."""
    found = {}
    for line in text.splitlines():
        if line:
            number, _, rest = line.partition(": ")
            assert number not in found, f"{number} is listed twice"
            found[number] = dict(_FIELD.findall(re.sub(r"(r[qp])\[", r"\1=[", rest)))
    return found


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(None, ""), (0, "0s"), (0.9, "0s"), (59, "59s"), (60, "1m"), (90, "1m30s"), (3661, "1h1m"), (90061, "1d1h")],
)
def test_times_are_written_as_haproxy_writes_them(seconds: float | None, text: str) -> None:
    assert human_time(seconds) == text


def test_numbers() -> None:
    assert [session_number(text) for text in ("0x10", "10", "0X0f", "foo", "", "-1", "1_0")] == [16, 16, 15, 0, 0, 0, 0]
    # No message between main and workers can say more than some thousand digits.
    assert [session_number("0x" + "f" * digits) for digits in (16, 17, 4000)] == [(1 << 64) - 1, 0, 0]


def test_a_form_of_another_version_is_no_problem() -> None:
    assert session_line({}).startswith("0x0: proto=unix_stream src=unix:1 fe= be=<NONE> srv=<none> ")


def test_pages_are_merged_up_to_where_all_are_complete() -> None:
    def page(numbers: list[int], more: bool) -> dict[str, object]:
        return {"sessions": [{"number": n} for n in numbers], "more": more}

    merged = merge([page([1, 4, 9], True), page([2, 12], False), None, page([3, 7], True)])
    assert [form["number"] for form in merged["sessions"]] == [1, 2, 3, 4, 7]
    assert merged["more"]
    assert not merge([page([1], False), page([], False)])["more"]


def _haproxy(directory: Path, port: int, server: int) -> tuple[Process, str]:
    path = directory / "haproxy.sock"
    file = directory / "haproxy.cfg"
    file.write_text(
        f"global\n stats socket {path} mode 600 level admin\ndefaults\n mode tcp\n timeout connect 5s\n"
        f" timeout client 1m\n timeout server 1m\nlisten t\n bind 127.0.0.1:{port}\n server s 127.0.0.1:{server}\n"
    )
    return Process(["haproxy", "-db", "-f", str(file)]), str(path)


def _ask(path: str, command: str) -> str:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(20)
        sock.connect(path)
        sock.sendall(command.encode() + b"\n")
        answer = b""
        while chunk := sock.recv(65536):
            answer += chunk
    return answer.decode()


def test_the_answers_are_those_of_haproxy(tmp_path: Path) -> None:
    ports = free_port(), free_port()
    with Echo() as echo, Daemon(tmp_path, listen(ports[0], server=echo.port)) as daemon:
        haproxy, path = _haproxy(tmp_path, ports[1], echo.port)
        try:
            poll_until(lambda: Path(path).exists(), 15, "haproxy")
            with Conversation(ports[0]) as one, Conversation(ports[1]) as other:
                one.say()
                other.say()
                ours = sessions(daemon.ask("show sess"))
                theirs = {n: f for n, f in sessions(_ask(path, "show sess")).items() if f["fe"] == "t"}
                (number, mine), (their_number, fields) = *ours.items(), *theirs.items()
                assert list(mine) == list(fields)
                for name in ("proto", "fe", "be", "srv", "ts", "epoch", "age", "rc", "c_exp"):
                    assert mine[name] == fields[name], name
                assert mine["src"].startswith("127.0.0.1:") and mine["scb"].startswith("[8,1h,fd=")
                for command in ("shutdown session", "shutdown session 0x12", "shutdown sessions server t",
                                "shutdown sessions server t/x", "shutdown session foo", "show sess 0x1"):  # fmt: skip
                    assert daemon.ask(command) == _ask(path, command), command
                told = daemon.ask(f"show sess {number}")
                assert told.startswith(f"{number}: [") and "frontend=t " in told and "server=s " in told
                assert f"source={mine['src']}" in told
                for where, name in ((str(daemon.socket), number), (path, their_number)):
                    assert _ask(where, f"shutdown session {name}") == "\n"
                assert one.closed() and other.closed()
        finally:
            haproxy.stop()


def test_every_generation_is_listed_and_can_be_told_to_end_a_connection(tmp_path: Path) -> None:
    port = free_port()
    with (
        Echo() as echo,
        Daemon(tmp_path, listen(port, server=echo.port, migrate=False)) as daemon,
        contextlib.ExitStack() as stack,
    ):
        held: list[Conversation] = []
        for _ in range(3):
            held += [stack.enter_context(Conversation(port)) for _ in range(5)]
            for each in held:
                each.say()
            assert len(sessions(daemon.ask("show sess"))) == len(held)
            assert daemon.reload().returncode == 0
        listed = sessions(daemon.ask("show sess"))
        assert len(listed) == 15
        for conversation in held:
            source = f"127.0.0.1:{conversation.sock.getsockname()[1]}"
            (number,) = [number for number, fields in listed.items() if fields["src"] == source]
            assert daemon.ask(f"shutdown session {number}") == "\n"
            assert conversation.closed()
        assert sessions(daemon.ask("show sess")) == {}
        poll_until(lambda: len(daemon.processes()) == 3, 15, "nobody drains")


def test_a_connection_keeps_its_number_and_its_names(tmp_path: Path) -> None:
    port = free_port()
    with (
        Echo() as echo,
        Daemon(tmp_path, listen(port, server=echo.port), workers=1) as daemon,
        Conversation(port) as held,
    ):
        held.say()
        before = sessions(daemon.ask("show sess"))
        daemon.write(daemon.text(listen(free_port(), server=echo.port, name="other")))
        for _ in range(3):
            assert daemon.reload().returncode == 0
            held.say()
            after = sessions(daemon.ask("show sess"))
            assert list(after) == list(before)
            (fields,) = after.values()
            assert (fields["fe"], fields["be"], fields["srv"]) == ("t", "t", "s")
        assert daemon.ask("shutdown sessions server t/s") == "\n"
        assert held.closed()


def test_requests_are_listed_and_can_be_ended(tmp_path: Path) -> None:
    port = free_port()
    with (
        HttpBackend() as backend,
        Daemon(
            tmp_path,
            f"[listen t]\nmode = http\noption httplog\nbind = 127.0.0.1:{port}\nserver s = {backend.addresses[0]}\n",
        ) as daemon,
        socket.create_connection(("127.0.0.1", port)) as client,
    ):
        client.settimeout(20)

        def ends(text: str, has: str = "") -> str:
            """The one line there is, once it ends like this, and has that in it."""

            def found() -> str:
                lines = daemon.ask("show sess").splitlines()
                return next((line for line in lines if line.endswith(text) and has in line), "")

            return poll_until(found, 15, text)

        assert " be=<NONE> srv=<none> " in ends(" c_exp= req=-")
        client.sendall(b"GET /?delay=60000 HTTP/1.1\r\nHost: a\r\n\r\n")
        line = ends(' req="GET /?delay=60000 HTTP/1.1"', "scb=[8,1h,fd=")
        assert " be=t srv=s " in line
        told = daemon.ask(f"show sess {line.partition(':')[0]}")
        assert "  request=GET /?delay=60000 HTTP/1.1 status=-1 exchanges=1 reused=0\n" in told
        assert daemon.ask("shutdown sessions server t/s") == "\n"
        assert client.recv(100) == b""
        assert " KH-- " in daemon.wait_log('"GET /?delay=60000 HTTP/1.1"')


def test_thousands_are_listed_once_and_to_one_who_reads_slowly(tmp_path: Path) -> None:
    port = free_port()
    body = f"[listen t]\nbind = 127.0.0.1:{port}\n"
    with (
        Backend(["127.0.0.1:0"]) as backend,
        Daemon(tmp_path, body + f"server s = {backend.address}\n") as daemon,
        Load(f"127.0.0.1:{port}", mode="idle", clients=1500) as load,
    ):
        load.wait_ready(60)
        with socket.socket(socket.AF_UNIX) as slow:
            slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            slow.connect(str(daemon.socket))
            slow.sendall(b"show sess\n")
            assert len(sessions(daemon.ask("show sess"))) == 1500
            # One who leaves in the midst of it does no harm.
            with socket.socket(socket.AF_UNIX) as gone:
                gone.connect(str(daemon.socket))
                gone.sendall(b"show sess\n")
                assert gone.recv(10)
            text = b""
            while chunk := slow.recv(5000):
                text += chunk
            assert len(sessions(text.decode())) == 1500
        with socket.socket(socket.AF_UNIX) as cut:
            cut.settimeout(30)
            cut.connect(str(daemon.socket))
            cut.sendall(b"show sess\n")
            assert cut.recv(10)
            assert daemon.reload().returncode == 0
            while cut.recv(65536):
                pass  # it ends, and does not hang
        assert load.stop()["failed"] == 0


def test_levels(tmp_path: Path) -> None:
    port = free_port()
    with Echo() as echo, Daemon(tmp_path, listen(port, server=echo.port), workers=1) as daemon:
        assert daemon.ask("operator; shutdown session 0x1") == "\nPermission denied\n\n"
        assert daemon.ask("user; show sess") == "\nPermission denied\n\n"
