"""Health of a whole daemon: who is known to be down gets nothing, whatever happens to the daemon; HAProxy agrees."""

from __future__ import annotations

import contextlib
import csv
import io
import os
import re
import shutil
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hitlessd.config import parse
from hitlessd.health import Result
from hitlessd.model import SourceFile
from tests.support.daemon import Daemon
from tests.support.echo import exchange
from tests.support.processes import ROOT, free_port, free_ports, poll_until
from tests.support.restartable import Restartable
from tests.support.sick import OK, SICK, Sick
from tests.support.visitors import Conversation, Visitors

HTTP = "option httpchk = GET /health\n"


def listen(port: int, *servers: str, more: str = HTTP) -> str:
    lines = "".join(f"server {each}\n" for each in servers)
    return f"[listen l]\nbind = 127.0.0.1:{port}\ntimeout check = 10s\n{more}{lines}"


def stat(daemon: Daemon) -> dict[str, dict[str, str]]:
    """The rows of `show stat` by SERVER, or PROXY/SERVER where it is not l's."""
    return rows(daemon.ask("show stat"))


def rows(text: str) -> dict[str, dict[str, str]]:
    found = csv.DictReader(io.StringIO(text.removeprefix("# ")))
    return {row["svname"] if row["pxname"] == "l" else f"{row['pxname']}/{row['svname']}": row for row in found}


def wait_status(daemon: Daemon, server: str, status: str) -> None:
    poll_until(lambda: stat(daemon)[server]["status"] == status, 15, f"{server} is {status}")


def test_50_reloads_and_a_server_that_is_down_gets_nothing(tmp_path: Path) -> None:
    port = free_port()
    with Sick() as good, Sick(SICK) as bad:
        servers = (f"good = 127.0.0.1:{good.port} check inter 50", f"bad = 127.0.0.1:{bad.port} check inter 50")
        with Daemon(tmp_path, listen(port, *servers)) as daemon:
            wait_status(daemon, "bad", "DOWN")
            before = bad.requests
            since = int(stat(daemon)["bad"]["lastchg"])
            with Visitors(port, 4) as visitors:
                for _ in range(50):
                    assert daemon.reload().returncode == 0
            assert visitors.served > 50
            assert bad.requests == before
            row = stat(daemon)["bad"]
            assert (row["status"], row["chkfail"], row["chkdown"]) == ("DOWN", "1", "1")
            assert int(row["lastchg"]) >= since and int(row["downtime"]) >= int(row["lastchg"])
            assert daemon.log.count("Server l/bad is DOWN") == 1
            # It is still checked, and comes back.
            bad.answer = OK
            wait_status(daemon, "bad", "UP")
            poll_until(lambda: exchange(port) and bad.requests > before, 10, "it serves again")


def test_neither_after_a_crash_of_main_nor_after_a_restart(tmp_path: Path) -> None:
    port = free_port()
    with Sick() as good, Sick(SICK) as bad:
        # A first check that comes late cannot be what keeps it away.
        servers = (f"good = 127.0.0.1:{good.port} check inter 50", f"bad = 127.0.0.1:{bad.port} check inter 50")
        slow = tuple(each.replace("inter 50", "inter 1h") for each in servers)
        with Restartable(tmp_path, listen(port, *servers)) as service:
            wait_status(service.daemon, "bad", "DOWN")
            service.daemon.write(service.daemon.text(listen(port, *slow)))
            assert service.daemon.reload().returncode == 0
            before = bad.requests
            for again in (service.crash, service.restart, service.crash):
                again()
                for _ in range(20):
                    assert exchange(port) == b"hello"
                assert bad.requests == before
                assert stat(service.daemon)["bad"]["status"].startswith("DOWN")
            index = 0
            service.kill_worker(index)
            for _ in range(20):
                assert exchange(port) == b"hello"
            assert bad.requests == before


def test_another_address_is_another_server(tmp_path: Path) -> None:
    port = free_port()
    with (
        Sick(SICK) as bad,
        Sick() as good,
        Daemon(tmp_path, listen(port, f"a = 127.0.0.1:{bad.port} check inter 1h")) as daemon,
    ):
        wait_status(daemon, "a", "DOWN")
        assert exchange_or_nothing(port) == b""
        daemon.write(daemon.text(listen(port, f"a = 127.0.0.1:{good.port} check inter 1h")))
        assert daemon.reload().returncode == 0
        assert exchange(port) == b"hello"
        # Without a check it counts as up, as it does with HAProxy.
        daemon.write(daemon.text(listen(port, f"a = 127.0.0.1:{bad.port}")))
        assert daemon.reload().returncode == 0
        assert exchange(port) == b"hello"
        assert stat(daemon)["a"]["status"] == "no check"


def test_sessions_of_a_server_marked_down_are_closed(tmp_path: Path) -> None:
    port = free_port()
    with Sick() as sick, Sick() as other:
        more = "on-marked-down shutdown-sessions"
        servers = (f"a = 127.0.0.1:{sick.port} check inter 50 {more}", f"b = 127.0.0.1:{other.port} check inter 50")
        with Daemon(tmp_path, listen(port, *servers)) as daemon:
            wait_status(daemon, "a", "UP")
            with contextlib.ExitStack() as stack:
                talks = [stack.enter_context(Conversation(port)) for _ in range(8)]
                for talk in talks:
                    talk.say()
                held = sick.requests
                assert 0 < held < 8
                sick.answer = SICK
                wait_status(daemon, "a", "DOWN")
                ended = 0
                for talk in talks:
                    try:
                        talk.say()
                    except (AssertionError, OSError):
                        ended += 1
                assert ended == held


def test_failures_to_connect_mark_down_at_once(tmp_path: Path) -> None:
    """The checks, which go elsewhere, pass all the time; the tenth error in a row is enough, over all workers."""
    port, nobody = free_ports(2)
    more = "observe layer4 error-limit 10 on-error mark-down"
    with Sick() as checked, Sick() as good:
        servers = (
            f"a = 127.0.0.1:{nobody} check inter 1h port {checked.port} {more}",
            f"b = 127.0.0.1:{good.port} backup",
        )
        with Daemon(tmp_path, listen(port, *servers, more="retries = 0\n")) as daemon:
            wait_status(daemon, "a", "UP")
            failed = 0
            while failed < 40 and exchange_or_nothing(port) == b"":
                failed += 1
            assert 10 <= failed < 40
            line = daemon.wait_log("Server l/a is DOWN")
            text = "Detected 10 consecutive errors, last one was: L4 unsuccessful connection"
            assert (
                f'reason: Health analyze, info: "{text}". 0 active and 1 backup servers left. Running on backup.'
                in line
            )
            row = stat(daemon)["a"]
            assert (row["check_status"], row["last_chk"]) == ("HANA", text)
            # Ten more may have failed before the workers knew.
            assert 1 <= int(row["hanafail"]) <= failed // 10
            assert exchange(port) == b"hello"


def exchange_or_nothing(port: int) -> bytes:
    try:
        return exchange(port)
    except OSError:
        return b""


def test_what_the_documentation_shows_is_valid() -> None:
    text = (ROOT / "docs" / "health-checks.md").read_text()
    (block,) = re.findall(r"```ini\n(.*?)```", text, re.S)
    (backend,) = parse(
        [SourceFile("docs", f"{block}[frontend f]\nmode = http\nbind = 127.0.0.1:1\ndefault_backend = app\n")]
    ).backends
    assert backend.http_check and all(server.check for server in backend.servers)
    assert all(f"`{result.name}`" in text for result in Result)


# HAProxy beside

SAME = [
    "status",
    "weight",
    "act",
    "bck",
    "chkfail",
    "chkdown",
    "check_status",
    "check_desc",
    "check_rise",
    "check_fall",
    "check_health",
]
LATEST = ("check_code", "last_chk")  # which HAProxy forgets when the next check begins
HAPROXY = """\
global
    stats socket {directory}/haproxy.sock level admin
defaults
    mode tcp
    timeout connect 5s
    timeout client 1m
    timeout server 1m
{body}
"""


@contextlib.contextmanager
def haproxy(directory: Path, body: str) -> Iterator[Callable[[], dict[str, dict[str, str]]]]:
    """A haproxy; what it yields asks for its rows."""
    program = shutil.which("haproxy", path="/usr/sbin:" + os.environ["PATH"])
    assert program
    file = directory / "haproxy.cfg"
    file.write_text(HAPROXY.format(directory=directory, body=body))

    def ask() -> dict[str, dict[str, str]]:
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(15)
            sock.connect(str(directory / "haproxy.sock"))
            sock.sendall(b"show stat\n")
            answer = b""
            while data := sock.recv(65536):
                answer += data
        return rows(answer.decode())

    with subprocess.Popen(
        [program, "-db", "-f", str(file)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        try:
            poll_until((directory / "haproxy.sock").exists, 15, "haproxy serves")
            yield ask
        finally:
            process.send_signal(signal.SIGTERM)


PROXIES = {
    "httpchk": ("option httpchk GET /health",),
    "string": ("option httpchk GET /health", "http-check expect string goodbye"),
    "rstring": ("option httpchk GET /health", "http-check expect rstring h.llo"),
    "unwanted": ("option httpchk GET /health", "http-check expect ! string hello"),
    "statuses": ("option httpchk GET /health", "http-check expect status 500-599,204"),
    "rstatus": ("option httpchk GET /health", "http-check expect ! rstatus ^5"),
    "header": ("option httpchk GET /health", 'http-check expect hdr name x-state value "better"'),
    "tcp": (),
}


def translated(lines: tuple[str, ...]) -> str:
    """HAProxy's lines in our format: `http-check` may stand once, with one thing a line."""
    text = ""
    for line in lines:
        for word in ("option httpchk", "http-check"):
            if line.startswith(word):
                text += f"{word} = {line.removeprefix(word).strip()}\n"
                break
    return text


def test_haproxy_says_the_same_of_the_same_servers(tmp_path: Path) -> None:
    with (
        Sick() as good,
        Sick(SICK) as sick,
        Sick(b"garbage\r\n\r\n") as garbage,
        Sick(b"") as closes,
        Sick(None) as silent,
        Sick(reset=True) as resets,
    ):
        nobody = free_port()
        # Seldom, and with time to answer: a check that one of the two has lost would be a difference.
        ports = {
            "good": good.port,
            "sick": sick.port,
            "garbage": garbage.port,
            "closes": closes.port,
            "silent": silent.port,
            "resets": resets.port,
            "nobody": nobody,
        }
        servers = {name: f"127.0.0.1:{port} check inter 1s" for name, port in ports.items()}
        servers["backup"] = f"127.0.0.1:{nobody} check inter 1s backup"
        servers["unchecked"] = f"127.0.0.1:{good.port}"
        servers["maintained"] = f"127.0.0.1:{good.port} check inter 1s disabled"
        servers["weightless"] = f"127.0.0.1:{good.port} check inter 1s weight 0"
        servers["fallen"] = f"127.0.0.1:{nobody} check inter 1s rise 4 fall 5"
        theirs = ours = ""
        for proxy, lines in PROXIES.items():
            theirs += f"backend {proxy}\n    timeout check 3s\n" + "".join(f"    {line}\n" for line in lines)
            theirs += "".join(f"    server {name} {text}\n" for name, text in servers.items())
            ours += f"[backend {proxy}]\ntimeout check = 3s\n{translated(lines)}"
            ours += "".join(f"server {name} = {text}\n" for name, text in servers.items())
        front = f"[frontend f]\nbind = 127.0.0.1:{free_port()}\ndefault_backend = tcp\n"
        with haproxy(tmp_path, theirs) as ask, Daemon(tmp_path, front + ours) as daemon:
            names = [f"{proxy}/{server}" for proxy in PROXIES for server in [*servers, "BACKEND"]]

            def picture(found: dict[str, dict[str, str]]) -> dict[str, dict[str, str]]:
                texts = {name: {column: found[name][column] for column in (*SAME, *LATEST)} for name in names}
                for each in texts.values():
                    if each["check_status"].startswith("* "):
                        each.update(dict.fromkeys(LATEST, "?"), check_status=each["check_status"][2:])
                return texts

            def settled() -> bool:
                """Both have seen each server at least up to the end of its scale."""
                return all(
                    row[f"{proxy}/silent"]["check_status"].removeprefix("* ") in ("L7TOUT", "L4OK")
                    and row[f"{proxy}/good"]["check_health"] in ("0", "4")
                    and row[f"{proxy}/weightless"]["check_health"] in ("0", "4")
                    for row in (ask(), stat(daemon))
                    for proxy in PROXIES
                )

            poll_until(settled, 30, "both have checked all")
            theirs_now, ours_now = picture(ask()), picture(stat(daemon))
            for name in names:
                if theirs_now[name]["last_chk"] == "?":
                    theirs_now[name].update({column: ours_now[name][column] for column in LATEST})
                assert ours_now[name] == theirs_now[name], name


@pytest.mark.parametrize("count", [1000])
def test_a_thousand_checked_servers_do_not_keep_main_from_its_work(tmp_path: Path, count: int) -> None:
    port = free_port()
    with Sick() as good:
        servers = tuple(f"s{number} = 127.0.0.1:{good.port} check inter 1s" for number in range(count))
        with Daemon(tmp_path, listen(port, *servers, more="")) as daemon:
            poll_until(lambda: all(row["status"] == "UP" for row in checked(daemon)), 30, "all are checked")
            assert daemon.reload().returncode == 0
            assert all(row["status"] == "UP" and row["check_status"] == "L4OK" for row in checked(daemon))
            assert exchange(port) == b"hello"


def checked(daemon: Daemon) -> list[dict[str, str]]:
    return [row for name, row in stat(daemon).items() if name.startswith("s")]
