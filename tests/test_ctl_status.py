"""hitlessctl status, show stat and reload -v: what people and programs get to see."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from hitlessd import ctl
from hitlessd.changes import Change, Item
from hitlessd.ctl.summary import summarize, text
from hitlessd.ctl.timeline import latest, timeline
from hitlessd.runtime.control import GenerationInfo, ReloadOutcome
from tests.support.answering import answering
from tests.support.processes import python_module
from tests.support.terminals import Terminal
from tests.test_runtime_harness import Harness

PHASES = (("start", 0.1), ("configuration", 0.02), ("prepare", 0.05), ("move", 0.03))
DONE = ReloadOutcome(9, True, "generation 8 serves", 0.2, 1.0, 8, 12, 3, 1, 2, 1, 0, PHASES)


@pytest.fixture
def harness(tmp_path: Path) -> Iterator[Harness]:
    harness = Harness(tmp_path)
    yield harness
    harness.close()


@pytest.fixture(autouse=True)
def _no_default_socket(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HITLESSD_SOCKET", raising=False)


def test_status(harness: Harness, capsys: pytest.CaptureFixture[str]) -> None:
    path, control = harness.listen(), harness.control
    control.info.append(
        GenerationInfo(6, 4000, "draining", 90.0, 1, [(4001, 2)], "1.2.2", 5, "2: option migrate is off")
    )
    now = time.time()
    control.history = [
        ReloadOutcome(8, True, "generation 7 serves", 0.2, now - 7200, 7, 12, 3, 1),
        ReloadOutcome(9, False, "f:1: bad\nf:2: worse", 0.25, now - 61),
    ]
    control.last_reload = control.history[-1]
    item = Item("server-weight", "pg", "a")
    control.changes.items[item] = Change(item, 7, 1)
    with harness.running():
        assert ctl.main(["-s", path, "status"]) == 0
    shown = capsys.readouterr().out
    head, _, table = shown.partition("\n\n")
    said = [" ".join(line.split()) for line in head.splitlines()]
    assert said[0].startswith("hitlessd: 1.2.3, generation 7, pid 4711, up 0d 0h00m")
    assert said[1:4] == ["configuration: the file", "listeners: 2, shared by 2 workers", "servers: 5 of 7 in use"]
    assert [line.partition(" for")[0] for line in said[4:6]] == ["pg/c MAINT", "empty/dis MAINT"]
    assert said[6:8] == [
        "sessions: 0 now, 0 in all, 5/s (most: 9/s), 0 parked",
        "draining: generation 6 (pid 4000, 2 sessions; 2: option migrate is off)",
    ]
    assert said[8] == "reloads: 6 done, 0 refused"
    assert said[9].startswith("number 9, refused after 250 ms, 1 min ago (") and said[9].endswith("): f:1: bad")
    assert said[10].startswith("number 8, done after 200 ms, 2 h ago") and "12 moved, 3 kept, 1 lost" in said[10]
    assert said[11] == "changed: server weight pg/a: 7 (configured: 1)"
    assert said[13:] == ["f:1: bad", "f:2: worse"]
    lines = table.splitlines()
    assert lines[0].split() == ["PROXY", "NAME", "MODE", "STATUS", "NOW", "TOTAL", "REQUESTS"]
    assert lines[2].split() == ["pg", "a", "tcp", "no", "check", "0", "0"]


def test_status_for_programs(harness: Harness, capsys: pytest.CaptureFixture[str]) -> None:
    path = harness.listen()
    harness.control.history = [DONE]
    harness.control.warm, harness.control.config_error = True, "f:1: bad"
    with harness.running():
        assert ctl.main(["-s", path, "status", "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert (record["generation"], record["pid"], record["configuration"]) == (7, 4711, "last good")
    assert record["errors"][-1].strip() == "f:1: bad"
    assert record["servers"]["total"] == 7 and record["servers"]["out"][0]["server"] == "c"
    assert record["reloads"]["last"][0]["phases"][0] == ["start", 0.1]
    assert record["proxies"][0]["name"] == "FRONTEND"


def test_status_of_a_daemon_that_tells_less() -> None:
    names = "# pxname,svname,status,type,mode,scur,stot,req_tot,last_chk,"
    answers = {
        "show info": "Generation: 3\nCurrConns: 1\nConfigState: stored\nLastReload: 4 failure\n"
        "LastReload_time_sec: 100\nLastReload_duration_ms: 250",
        "show stat": "\n".join(
            (names, "web,FRONTEND,OPEN,0,http,1,2,30,,", 'web,s,DOWN,2,http,1,29,29,"Layer4, refused",',
             "web,BACKEND,DOWN,1,http,1,29,30,,", "t,FRONTEND,OPEN,0,tcp,0,1,0,,")
        ),
        "show errors": "Permission denied\n",
        "show reloads json": "Unknown command. Please enter one of the following commands only:\n",
    }  # fmt: skip
    said = text(summarize(answers), 160.0)
    assert "the last good one; the file is invalid" in said
    assert "number 4, refused after 250 ms, 1 min ago" in said
    assert "web/s DOWN: Layer4, refused\n" in said
    assert "requests:      30 in all, 0/s\n" in said
    assert "Permission" not in said and "Unknown" not in said
    rows = [line.split() for line in said.partition("\n\n")[2].splitlines()]
    assert rows[1:] == [
        ["web", "FRONTEND", "http", "OPEN", "1", "2", "30"],
        ["web", "s", "http", "DOWN", "1", "29", "29"],
        ["web", "BACKEND", "http", "DOWN", "1", "29", "30"],
        ["t", "FRONTEND", "tcp", "OPEN", "0", "1"],
    ]


def test_without_rich_the_text_is_plain(tmp_path: Path) -> None:
    """As where python3-rich is not installed; `top` names the package."""
    (tmp_path / "rich").mkdir()
    (tmp_path / "rich" / "__init__.py").write_text("raise ImportError('not here')\n")
    environment = {"PYTHONPATH": f"{tmp_path}:{os.getcwd()}"}
    answers = {"show info": "Generation: 3\n", "show stat": "# pxname,svname,status,type,\na,b,UP,2,\n"}
    with answering(tmp_path / "s", answers):
        expected = {"status": (0, "generation 3"), "show stat": (0, "a,b,UP,2,"), "top": (1, "python3-rich is not")}
        for words, (status, shown) in expected.items():
            command = python_module("hitlessd.ctl", "-s", tmp_path / "s", *words.split())
            with Terminal(command, environment) as terminal:
                assert terminal.ended() == status
                assert shown in terminal.text and "\x1b" not in terminal.raw.decode()


@pytest.mark.parametrize("colour", [True, False])
def test_on_a_terminal_there_are_tables_and_colours(harness: Harness, colour: bool) -> None:
    path = harness.listen()
    environment = {"HITLESSD_SOCKET": path, **({} if colour else {"NO_COLOR": "1"})}
    with harness.running():
        for words in (["status"], ["show", "stat"]):
            with Terminal(python_module("hitlessd.ctl", *words), environment, 100, 50) as terminal:
                assert terminal.ended() == 0
                assert "FRONTEND" in terminal.text and "PROXY" in terminal.text
                assert (b"\x1b[31m" in terminal.raw) == colour


def test_the_timeline_of_a_reload() -> None:
    outcome = {"ok": True, "duration": 0.2, "phases": PHASES, "moved": 12, "kept": 3, "lost": 1, "taken": 2, "bound": 1}
    assert timeline(outcome).splitlines() == [
        "start            100.0 ms  ##########..........  the new process starts",
        "configuration     20.0 ms  ..........##........  it reads the configuration",
        "prepare           50.0 ms  ............#####...  it opens listeners and forks workers",
        "move              30.0 ms  .................###  connections move",
        "total            200.0 ms",
        "connections: 12 moved, 3 kept, 1 lost",
        "listeners:   2 taken, 1 bound, 0 closed",
    ]
    refused = timeline({**outcome, "ok": False, "phases": PHASES[:2], "duration": 0.12}, 100, True).splitlines()
    assert "█" in refused[0] and refused[1].endswith("it failed here") and "\x1b[31m" in refused[1]
    assert timeline({"ok": False, "phases": [1, 2]}) == "total              0.0 ms"
    assert len(refused) == 4 and refused[3] == "connections: 1 lost"


def test_the_latest_of_a_history_in_any_form() -> None:
    assert latest('[{"number": 3}, {"number": 4}]') == {"number": 4}
    assert latest('{"number": 3}\n{"number": 2}\n') == {"number": 3}
    for rubbish in ("", "Unknown command", "[[1]]", '"x"', "7"):
        assert latest(rubbish) == {}


@pytest.mark.parametrize("ok", [True, False])
def test_reload_tells_what_came_of_it(ok: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    history = json.dumps([{"number": 8, "ok": True}, {"number": 9, "ok": ok, "duration": 0.2, "phases": PHASES}])
    answers = {"reload": f"Success={int(ok)}\n--\nf:1: what\n", "show reloads json": history, "show info": "Pid: 1\n"}
    with answering(tmp_path / "s", answers) as server:
        assert ctl.main(["-s", str(tmp_path / "s"), "reload"]) == (not ok)
        assert server.asked == ["show info", "reload"]
        assert capsys.readouterr().out == ""
        assert ctl.main(["-s", str(tmp_path / "s"), "reload", "-v"]) == (not ok)
        captured = capsys.readouterr()
        assert "total            200.0 ms" in captured.out and ("it failed here" in captured.out) != ok
        assert (captured.err == "cannot reload: f:1: what\n") != ok
        assert ctl.main(["-s", str(tmp_path / "s"), "reload", "--json"]) == (not ok)
    record = json.loads(capsys.readouterr().out)
    assert (record["number"], record["ok"], record["reason"], record["phases"][0][0]) == (9, ok, "f:1: what", "start")
