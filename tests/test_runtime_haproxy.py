"""The runtime API beside a real haproxy of the same configuration: headers, framing and columns must be the same."""

from __future__ import annotations

import re
import select
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hitlessd.model import Level
from tests.support.processes import free_ports
from tests.test_runtime_harness import PATIENCE, Harness

CONFIG = """\
global
    stats socket {directory}/haproxy-user.sock mode 600 level user
    stats socket {directory}/haproxy-operator.sock mode 600 level operator
    stats socket {directory}/haproxy-admin.sock mode 600 level admin
    maxconn 100
defaults
    mode tcp
    timeout connect 1s
    timeout client 1s
    timeout server 1s
listen pg
    bind 127.0.0.1:{ports[0]}
    balance leastconn
    server a 127.0.0.1:18433
    server b 127.0.0.1:18434 backup weight 5
    server c 127.0.0.1:18434 disabled maxconn 10
frontend www
    bind 127.0.0.1:{ports[1]}
    maxconn 50
    default_backend app
backend app
    balance roundrobin
    server x 127.0.0.1:18435
    server q unix@/run/q.sock
    server six [::1]:18436
backend empty
    balance source
    server dis 127.0.0.1:18435 disabled
"""

#: Columns that haproxy fills and we have nothing for: averages and maxima of times, the automatic fullconn,
#: and what is for its own exporter.
_UNKNOWN = (
    "qtime ctime ttime qtime_max ctime_max ttime_max need_conn_est "
    "agg_server_status agg_server_check_status agg_check_status cache_lookups cache_hits"
)
UNKNOWN = frozenset(_UNKNOWN.split())
SAME = "pxname svname status weight act bck pid iid sid type mode algo addr qlimit uweight -"
IMPORTANT = "Version Pid Uptime_sec Maxconn CurrConns CumConns SessRate node Stopping Listeners Start_time_sec"


def ask(path: str, data: bytes) -> bytes:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(PATIENCE)
        sock.connect(path)
        sock.sendall(data)
        sock.shutdown(socket.SHUT_WR)
        received = b""
        while more := sock.recv(1 << 16):
            received += more
        return received


def wait_for(path: str, process: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        assert process.poll() is None, "haproxy has ended"
        try:
            ask(path, b"")
            return
        except OSError:
            select.select([], [], [], 0.01)
    raise AssertionError("haproxy does not serve its socket")


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where a haproxy with the harness's sample configuration has its sockets."""
    directory = tmp_path_factory.mktemp("haproxy")
    config = directory / "haproxy.cfg"
    config.write_text(CONFIG.format(directory=directory, ports=free_ports(2)))
    master = directory / "haproxy-master.sock"
    command = ["/usr/sbin/haproxy", "-W", "-S", f"{master},level,admin", "-f", str(config)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for name in ("master", "admin"):
            wait_for(str(directory / f"haproxy-{name}.sock"), process)
        yield directory
    finally:
        process.terminate()
        process.wait(PATIENCE)


@pytest.fixture
def harness(tmp_path: Path) -> Iterator[Harness]:
    harness = Harness(tmp_path)
    yield harness
    harness.close()


@pytest.fixture
def both(directory: Path, harness: Harness, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[bytes, bytes]]:
    """Ask both; (haproxy's answer, ours)."""
    monkeypatch.setattr("hitlessd.runtime.server.is_privileged", lambda _credentials: False)
    paths: dict[Level, str] = {}

    def ask_both(data: bytes, level: Level = "admin") -> tuple[bytes, bytes]:
        path = paths.setdefault(level, "") or harness.listen(level)
        paths[level] = path
        return ask(str(directory / f"haproxy-{level}.sock"), data), harness.ask(path, data)

    return ask_both


def without_version(answer: bytes) -> bytes:
    return re.sub(rb"(?m)^(?:> )?(\d+\.\d+\.\d+\S*)$", b"VERSION", answer)


@pytest.mark.parametrize(
    "data",
    [
        b"show version\n",
        b"show version",
        b"",
        b"  show \t version  \r\n",
        b"show version trailing words\n",
        b"show version;show version\n",
        b"show version\nshow version\n",
        b"show version\nshow",
        b"show version;quit;show version\n",
        b"quit now\n",
        b"show vers\\ion\n",
        b"show version \\; foo\n",
        b"show version\0foo\n",
        b"prompt\n",
        b"prompt\nshow version\n",
        b"prompt;show version\n",
        b"prompt;prompt;show version\n",
        b"prompt\nshow version\nprompt\nshow version\n",
        b"prompt\nshow version;quit\n",
        b"prompt\nquit\n",
        b"show version;prompt\n",
        b"show cli level\n",
        b"show cli level;operator;show cli level;user;show cli level;operator;show cli level\n",
        b"set timeout cli 20\n",
        b"set timeout cli 20;show version\n",
        b"set timeout cli\n",
        b"set timeout cli x\n",
        b"set timeout cli 0\n",
        b"set timeout cli 1.5\n",
        b"set timeout cli 5m\n",
        b"set timeout foo 20\n",
        b"set timeout\n",
        b"help show cli\n",
        b"help quit\n",
        b"help show version\n",
        b"show cli foo\n",
        b"show versio\n",
        b"show\\ version\n",
        b"show stat domain dns\n",
        b"show stat domain\n",
        b"show stat nope 4 1\n",
        b"show stat -2 4 1\n",
        b"show stat 0 4 1\n",
    ],
)
def test_same_bytes(both: Callable[..., tuple[bytes, bytes]], data: bytes) -> None:
    theirs, ours = both(data)
    assert without_version(ours) == without_version(theirs)


@pytest.mark.parametrize("level", ["user", "operator"])
@pytest.mark.parametrize(
    "data", [b"show errors\n", b"show startup-logs\n", b"operator\n", b"user\n", b"show cli level\n"]
)
def test_same_permissions(both: Callable[..., tuple[bytes, bytes]], data: bytes, level: Level) -> None:
    theirs, ours = (answer == b"Permission denied\n\n" for answer in both(data, level))
    assert ours == theirs


def test_same_form_of_errors(both: Callable[..., tuple[bytes, bytes]]) -> None:
    form = rb"Total events captured on \[\d\d/[A-Z][a-z][a-z]/\d{4}:\d\d:\d\d:\d\d\.\d{3}\] : 0\n\n"
    for answer in both(b"show errors\n"):
        assert re.fullmatch(form, answer)


def test_same_form_of_help(both: Callable[..., tuple[bytes, bytes]]) -> None:
    theirs, ours = (answer.split(b"\n") for answer in both(b"help\n"))
    assert ours[0] == theirs[0] and ours[-5:] == theirs[-5:]
    texts = {line.partition(b": ")[0].strip(): line for line in theirs}
    for line in ours:
        usage = line.partition(b": ")[0].strip()
        if usage in texts and not usage.startswith((b"show proc", b"show errors", b"show startup-logs")):
            assert line == texts[usage]


@pytest.mark.parametrize("command", [b"\n", b";\n", b"show version;\n"])
def test_same_heading_for_nothing(both: Callable[..., tuple[bytes, bytes]], command: bytes) -> None:
    theirs, ours = (without_version(answer).partition(b"only:\n")[0] for answer in both(command))
    assert ours == theirs


def test_same_form_of_sockets(both: Callable[..., tuple[bytes, bytes]], harness: Harness) -> None:
    theirs, ours = (answer.decode().splitlines() for answer in both(b"show cli sockets\n"))
    assert ours[0] == theirs[0]
    assert ours[1] == f"unix@{harness.directory}/admin.sock admin all"
    assert re.fullmatch(r"unix@/\S+/haproxy-user\.sock user all", theirs[1])


def test_show_stat_has_the_same_header_and_rows(both: Callable[..., tuple[bytes, bytes]]) -> None:
    theirs, ours = (answer.decode().splitlines() for answer in both(b"show stat\n", "operator"))
    assert ours[0] == theirs[0]
    assert len(ours) == len(theirs)
    names = ours[0].removeprefix("# ").split(",")
    for mine, real in zip(ours[1:-1], theirs[1:-1], strict=True):
        my_row, real_row = (dict(zip(names, line.split(","), strict=True)) for line in (mine, real))
        assert {name: my_row[name] for name in SAME.split()} == {name: real_row[name] for name in SAME.split()}
        filled, known = ({name for name in names if row[name] != ""} for row in (my_row, real_row))
        if real_row["type"] == "1":
            known.discard("slim")
        assert filled == known - UNKNOWN, real_row["svname"]


@pytest.mark.parametrize("arguments", ["2 4 -1", "pg 2 -1", "2 7 2", "-1 4 1", "app -1 -1", "pg 4 999", "2 4 foo"])
def test_show_stat_selects_the_same_rows(both: Callable[..., tuple[bytes, bytes]], arguments: str) -> None:
    theirs, ours = (
        [line.split(",")[:2] for line in answer.decode().splitlines()]
        for answer in both(f"show stat {arguments}\n".encode())
    )
    assert ours == theirs


@pytest.mark.parametrize("option", ["no-maint", "up"])
def test_show_stat_hides_the_same_rows(both: Callable[..., tuple[bytes, bytes]], option: str) -> None:
    theirs, ours = (
        [[line.split(",")[at] for at in (0, 1, 17)] for line in answer.decode().splitlines() if line]
        for answer in both(f"show stat {option}\n".encode())
    )
    assert ours == theirs


def test_show_info_has_haproxys_fields_in_order(both: Callable[..., tuple[bytes, bytes]]) -> None:
    theirs, ours = (
        [line.split(": ")[0] for line in answer.decode().splitlines() if line] for answer in both(b"show info\n")
    )
    common = [name for name in ours if name in theirs]
    assert common == [name for name in theirs if name in ours]
    # Our own come last, but for what haproxy has where it was built with zlib.
    assert [name for name in ours if "Zlib" not in name][: len(common)] == common
    assert set(IMPORTANT.split()) <= set(common)


def test_show_proc_has_the_masters_columns(directory: Path, harness: Harness) -> None:
    theirs = ask(str(directory / "haproxy-master.sock"), b"show proc\n").decode().splitlines()
    ours = harness.ask(harness.listen(), b"show proc\n").decode().splitlines()
    assert ours[0].startswith(theirs[0].rstrip())
    assert [line for line in ours if line.startswith("# ")] == [line for line in theirs if line.startswith("# ")]
    form = r"\d+ +master +\d+ \[failed: \d+\] +\d+d\d\dh\d\dm\d\ds +\S+"
    assert re.match(form, theirs[1]) and re.match(form, ours[1])
    columns = [[match.start() for match in re.finditer(r"\S+", line)][:5] for line in (theirs[3], ours[3])]
    assert columns[0] == columns[1]


@pytest.mark.parametrize(
    "command",
    [
        *("show env", "show env HOME", "show errors", "show sess", "show startup-logs"),
        *("show activity", "show backend", "show cli level", "show cli sockets", "show info", "show info json"),
        *("show schema json", "show servers conn", "show servers state", "show stat", "show stat typed"),
        "show version",
    ],
)
@pytest.mark.parametrize("level", ["user", "operator"])
def test_the_same_levels(both: Callable[..., tuple[bytes, bytes]], command: str, level: Level) -> None:
    denied = [b"Permission denied" in answer for answer in both(command.encode() + b"\n", level)]
    assert denied[0] == denied[1]


@pytest.mark.parametrize(
    "command", ["show env HITLESSD_NO_SUCH_VARIABLE", "show errors nope", "show servers state nope", "show backend"]
)
def test_the_same_words(both: Callable[..., tuple[bytes, bytes]], command: str) -> None:
    theirs, ours = both(command.encode() + b"\n")
    assert ours == theirs


def test_the_environment_is_told_alike(
    both: Callable[..., tuple[bytes, bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs, ours = both(b"show env PATH\n")
    assert ours == theirs and ours.startswith(b"PATH=")
    monkeypatch.setenv("HITLESSD_TEST_LINES", "one\n\ntwo")
    assert both(b"show env HITLESSD_TEST_LINES\n")[1] == b"HITLESSD_TEST_LINES=one\\n\\ntwo\n\n"


def test_activity_has_the_same_form(both: Callable[..., tuple[bytes, bytes]]) -> None:
    for answer in both(b"show activity\n"):
        first, second, *lines = answer.decode().splitlines()
        assert re.fullmatch(r"thread_id: 1 \(1\.\.\d+\)|thread_id: \d+ \(1\.\.\d+\)", first)
        assert re.fullmatch(r"date_now: \d+\.\d{6}", second)
        totals = [re.fullmatch(r"(\w+): (\d+)(?: \[((?: \d+)+) \])?", line) for line in lines if line]
        assert all(totals)
        assert "accepted" in [each[1] for each in totals if each]
