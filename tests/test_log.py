"""Log lines: to the journal or a stream, above a threshold, and never an exception."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from hitlessd.events import Event
from hitlessd.log import SEVERITIES, Log
from hitlessd.model import LogTarget, Severity
from tests.support.processes import ROOT

_LINE = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3} hitlessd\[\d+\] generation 3 (\w+): (.*)")


def test_a_line_says_who_and_what_with_its_fields(capsys: pytest.CaptureFixture[str]) -> None:
    Log(LogTarget("stderr"), 3)("notice", "something %s happened", event=Event.BUG, pid=7, reason="so")
    found = _LINE.fullmatch(capsys.readouterr().err.rstrip("\n"))
    assert found
    assert found.groups() == ("notice", "something %s happened | pid=7 reason=so")


@pytest.mark.parametrize("level", SEVERITIES)
def test_the_threshold(level: Severity, capsys: pytest.CaptureFixture[str]) -> None:
    log = Log(LogTarget("stdout", level), 3)
    for severity in SEVERITIES:
        log(severity, "x")
    found = [line.group(1) for line in map(_LINE.fullmatch, capsys.readouterr().out.splitlines()) if line]
    assert found == list(SEVERITIES[: SEVERITIES.index(level) + 1])


def test_the_generation_may_change(capsys: pytest.CaptureFixture[str]) -> None:
    log = Log(LogTarget("stderr"))
    log.generation = 3
    log("info", "x")
    assert " generation 3 info: x" in capsys.readouterr().err


def test_a_name_that_is_not_utf8_comes_out(capsys: pytest.CaptureFixture[str]) -> None:
    Log(LogTarget("stderr"), 3)("info", "cannot read größe\udcff", file="\udcfe")
    assert capsys.readouterr().err.endswith("cannot read größe\\udcff | file=\\udcfe\n")


def test_a_closed_stream_does_not_raise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with open(tmp_path / "log", "w") as stream:
        monkeypatch.setattr(sys, "stderr", stream)
        log = Log(LogTarget("stderr"))
        log("info", "first")
    log("info", "second")
    assert "first" in (tmp_path / "log").read_text()


def test_a_full_disk_does_not_raise(monkeypatch: pytest.MonkeyPatch) -> None:
    with open("/dev/full", "w", buffering=1) as stream, open(os.devnull, "w") as elsewhere:
        monkeypatch.setattr(sys, "stderr", stream)
        Log(LogTarget("stderr"))("info", "x")
        monkeypatch.undo()
        os.dup2(elsewhere.fileno(), stream.fileno())  # what is buffered has to go somewhere


@pytest.mark.parametrize("redirection", ["2>&-", ">&- 2>&-"])
def test_descriptors_that_were_closed_at_the_start_do_not_raise(redirection: str) -> None:
    script = (
        "from hitlessd.log import Log; from hitlessd.model import LogTarget\n"
        "for target in ('stderr', 'stdout', 'auto'): Log(LogTarget(target))('info', 'x')"
    )
    argv = ["/bin/sh", "-c", f'exec "$0" -c "$1" {redirection}', sys.executable, script]
    assert subprocess.run(argv, cwd=ROOT, timeout=20, check=False).returncode == 0


_SENT = """
import os, socket, sys
from hitlessd.events import Event
from hitlessd.log import Log
from hitlessd.model import LogTarget

status = os.fstat(2)
target, stream, path = sys.argv[1:]
os.environ["JOURNAL_STREAM"] = {"ours": f"{status.st_dev}:{status.st_ino}", "another": "1:2"}.get(stream, stream)
journald = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
journald.bind(path)
Log(LogTarget(target), 3, journal=path)("err", "words", event=Event.BUG, pid=4, reason="\\udcff")
try:
    print(journald.recv(65536).decode(), end="")
except BlockingIOError:
    pass
"""
_ENTRY = rf"""MESSAGE=words
PRIORITY=3
SYSLOG_IDENTIFIER=hitlessd
HITLESSD_GENERATION=3
MESSAGE_ID={Event.BUG.message_id}
HITLESSD_PID=4
HITLESSD_REASON=\udcff
"""


@pytest.mark.parametrize(
    ("target", "stream", "journal"),
    [
        ("auto", "ours", True),
        ("auto", "another", False),
        ("auto", "", False),
        ("auto", "x:y", False),
        ("journal", "another", True),
        ("stderr", "ours", False),
    ],
)
def test_the_journal_is_recognised_by_its_stream(tmp_path: Path, target: str, stream: str, journal: bool) -> None:
    """$JOURNAL_STREAM, systemd.exec(5)."""
    argv = [sys.executable, "-c", _SENT, target, stream, str(tmp_path / "journal")]
    done = subprocess.run(argv, cwd=ROOT, timeout=20, check=True, capture_output=True, text=True)
    assert done.stdout == (_ENTRY if journal else "")
    assert bool(done.stderr) is not journal


def test_a_pipe_that_nobody_reads_costs_lines_and_not_time(monkeypatch: pytest.MonkeyPatch) -> None:
    reader, writer = os.pipe()
    with open(reader, "rb") as pipe, open(writer, "w", encoding="utf-8") as stream:
        monkeypatch.setattr(sys, "stderr", stream)
        log = Log(LogTarget("stderr"))
        for number in range(2000):
            log("info", f"line {number} {'x' * 100}")
        os.set_blocking(reader, False)
        while pipe.read(1 << 20):
            pass
        log("info", "after")
        last = pipe.read(1 << 20)
        assert last is not None
        text = last.decode()
    assert "lines are lost: nobody reads" in text
    assert text.endswith("after\n")


def test_an_access_log_line_has_the_head_of_a_message_but_json_stands_alone(capsys: pytest.CaptureFixture[str]) -> None:
    log = Log(LogTarget("stdout"), 3)
    log.access("a line")
    log.access("{}", True)
    first, second = capsys.readouterr().out.splitlines()
    found = _LINE.fullmatch(first)
    assert found and found.groups() == ("info", "a line")
    assert second == "{}"


def test_an_access_log_below_the_threshold(capsys: pytest.CaptureFixture[str]) -> None:
    Log(LogTarget("stdout", "notice"), 3).access("a line")
    assert capsys.readouterr().out == ""
