"""hitlessctl check, and completion in the shells that people use."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from hitlessd import ctl
from hitlessd.config import parse
from hitlessd.ctl.check import differences
from hitlessd.model import SourceFile
from tests.support.answering import answering
from tests.support.daemon import Daemon
from tests.support.echo import Echo
from tests.support.processes import ROOT, free_port
from tests.support.terminals import Terminal
from tests.support.visitors import listen

COMPLETIONS = ROOT / "completions"


@pytest.fixture(autouse=True)
def _no_default_socket(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HITLESSD_SOCKET", raising=False)


def test_what_a_reload_would_change(tmp_path: Path) -> None:
    port, moved, added = free_port(), free_port(), free_port()
    with Echo() as echo:
        before = listen(port, server=echo.port) + listen(moved, server=echo.port, name="old")
        with Daemon(tmp_path, before, workers=1) as daemon:
            # Without a FILE it is the running daemon's own.
            same = daemon.ctl("check")
            assert (same.returncode, same.stderr) == (0, "")
            assert same.stdout == (
                f"Configuration is valid: {tmp_path}/h.conf\na reload would open, close, add and remove nothing\n"
            )
            after = listen(port, server=echo.port) + "server extra = 127.0.0.1:9\n"
            daemon.write(daemon.text(after + listen(added, server=echo.port, name="new")))
            done = daemon.ctl("check")
            assert (done.returncode, done.stderr) == (0, "")
            assert done.stdout.splitlines()[1:] == [
                "a reload would have these",
                f"  opened listener: 127.0.0.1:{added}",
                f"  closed listener: 127.0.0.1:{moved}",
                "  added frontend: new",
                "  removed frontend: old",
                "  added backend: new",
                "  removed backend: old",
                "  added servers: t/extra, new/s",
                "  removed server: old/s",
            ]
            record = json.loads(daemon.ctl("check", "--json", str(tmp_path / "h.conf")).stdout)
            assert record["valid"] and record["changes"]["servers"] == {
                "added": ["t/extra", "new/s"],
                "removed": ["old/s"],
            }
            # And it is what the reload then does.
            assert daemon.reload().returncode == 0
            assert json.loads(daemon.ctl("show", "reloads", "--json").stdout)[-1]["bound"] == 1
            assert "would open, close, add and remove nothing" in daemon.ctl("check").stdout


def test_invalid_is_refused_with_every_reason(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "bad.conf"
    file.write_text("[global]\nmaxcon = 7\n\n[listen t]\nbind = nowhere\n")
    for words in (["check", str(file)], ["check", "--json", str(file)]):
        assert ctl.main(["-s", str(tmp_path / "none"), *words]) == 1
    captured = capsys.readouterr()
    assert f"{file}:2: " in captured.err and "did you mean" in captured.err and f"{file}:5: " in captured.err
    record = json.loads(captured.out)
    assert not record["valid"] and record["errors"] == captured.err.splitlines()


def test_valid_where_nobody_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "good.conf"
    file.write_text("[listen t]\nbind = 127.0.0.1:8080\nserver s = 127.0.0.1:9\n")
    assert ctl.main(["-s", str(tmp_path / "none"), "check", str(file)]) == 0
    captured = capsys.readouterr()
    assert captured.out == f"Configuration is valid: {file}\n"
    assert "cannot say what a reload would change: cannot reach hitlessd at" in captured.err
    assert ctl.main(["-s", str(tmp_path / "none"), "check", "--json", str(file)]) == 0
    assert json.loads(capsys.readouterr().out)["changes"] is None


def test_a_listener_that_changes_its_frontend_stays_open() -> None:
    text = "[listen new]\nbind =\n  127.0.0.1:80\n  [::1]:81 interface lo\n"
    config = parse((SourceFile("f", text),))
    listeners = "# frontend address\nold 127.0.0.1:80\nold [::1]:81\n"
    assert differences(config, "# pxname,svname,type,\nold,FRONTEND,0,\n", listeners) == {
        "listeners": {"opened": ["[::1]:81 interface lo"], "closed": ["[::1]:81"]},
        "frontends": {"added": ["new"], "removed": ["old"]},
        "backends": {"added": ["new"], "removed": []},
        "servers": {"added": [], "removed": []},
    }


# Completion


@pytest.fixture
def places(tmp_path: Path) -> Iterator[dict[str, str]]:
    """An environment with a hitlessctl on its PATH that speaks to something with a few proxies."""
    rows = ("web,FRONTEND,0,", "web,a,2,", "web,a:1,2,", "web,BACKEND,1,", "db,s,2,", "db,BACKEND,1,")
    program = tmp_path / "bin" / "hitlessctl"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m hitlessd.ctl "$@"\n')
    program.chmod(0o755)
    (tmp_path / "some file").touch()
    with answering(tmp_path / "s", {"show stat": "\n".join(("# pxname,svname,type,", *rows))}):
        yield {
            **os.environ,
            "PATH": f"{program.parent}:{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            "HITLESSD_SOCKET": str(tmp_path / "s"),
            "HOME": str(tmp_path),
            "XDG_CONFIG_HOME": str(tmp_path),
        }


def _run(command: list[str], places: dict[str, str], nothing: int = 0) -> list[str]:
    """What a shell prints; `nothing` is its exit status when that is nothing."""
    done = subprocess.run(
        command, env=places, cwd=places["HOME"], capture_output=True, text=True, timeout=30, check=False
    )
    assert done.returncode == (0 if done.stdout else nothing), done.stderr
    return done.stdout.splitlines()


def in_bash(line: str, places: dict[str, str], framework: bool = False) -> list[str]:
    """What bash offers at the end of a line."""
    script = """
        [ -z "$2" ] || . /usr/share/bash-completion/bash_completion
        . "$1"
        COMP_LINE=$3 COMP_POINT=${#3}
        eval "COMP_WORDS=($3)"
        case $3 in *\\ ) COMP_WORDS+=("");; esac
        COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
        compopt() { :; }
        "_${COMP_WORDS[0]}"
        printf '%s\\n' "${COMPREPLY[@]}"
    """
    return _run(["bash", "-c", script, "-", str(COMPLETIONS / "hitlessctl.bash"), "1" * framework, line], places)


def in_fish(line: str, places: dict[str, str]) -> list[str]:
    script = f"source {COMPLETIONS}/hitlessctl.fish; complete -C $argv[1]"
    return [each.partition("\t")[0] for each in _run(["fish", "-c", script, line], places)]


def in_zsh(line: str, places: dict[str, str]) -> list[str]:
    """zsh completes in its editor only, so what _hitlessctl calls is put in its place."""
    script = """
        compadd() { shift; print -l -- "$@" }
        _files() { print :a-file }
        words=(${(Q)${(z)1}}); [[ $1 == *\\  ]] && words+=("")
        CURRENT=$#words PREFIX=$words[-1] service=$words[1]
        . "$0"
    """
    return _run(["zsh", "-f", "-c", script, str(COMPLETIONS / "_hitlessctl"), line], places, 1)


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("hitlessctl re", {"reload"}),
        ("hitlessctl reload --", {"--json", "--timeout"}),
        ("hitlessctl set ser", {"server"}),
        ("hitlessctl set server web/a", {"web/a", "web/a:1"}),
        ("hitlessctl set server db/s state ", {"ready", "drain", "maint"}),
        ("hitlessctl enable ", {"agent", "frontend", "health", "server"}),
        ("hitlessctl disable frontend ", {"web"}),
        ("hitlessctl show servers conn ", {"web", "db"}),
        ("hitlessctl nonsense ", set()),
    ],
)
def test_words_are_offered(line: str, offered: set[str], places: dict[str, str]) -> None:
    for shell in (in_bash, in_fish, in_zsh):
        assert {word for word in shell(line, places) if word} == offered, shell


def test_files_are_offered(places: dict[str, str]) -> None:
    assert "some file" in in_bash("hitlessctl check so", places)
    assert "some file" in in_bash("hitlessd -f so", places)
    assert any("some" in word for word in in_fish("hitlessctl check so", places))
    assert ":a-file" in in_zsh("hitlessctl -s ", places)
    assert {"-sf", "-st"} <= set(in_bash("hitlessd -s", places))
    assert {"-sf", "-st"} <= set(in_fish("hitlessd -s", places))


def test_bash_with_its_framework_completes_names_with_colons(places: dict[str, str]) -> None:
    assert shutil.which("bash")
    assert in_bash("hitlessctl set server web/", places, framework=True) == ["web/a", "web/a:1"]


def test_the_tab_key(places: dict[str, str]) -> None:
    """At the prompts of shells that were set up as a distribution does."""
    (Path(places["HOME"]) / "functions").mkdir()
    shutil.copy(COMPLETIONS / "_hitlessctl", Path(places["HOME"]) / "functions")
    for shell, setup in (
        (["bash", "--norc", "-i"], f". /usr/share/bash-completion/bash_completion; . {COMPLETIONS}/hitlessctl.bash"),
        (["zsh", "-f", "-i"], "fpath=($HOME/functions $fpath); autoload -U compinit; compinit -u -D"),
        (["fish", "--no-config", "-i"], f"source {COMPLETIONS}/hitlessctl.fish"),
    ):
        with Terminal(shell, places, 120, 24) as terminal:
            terminal.press(f"{setup}; echo re''ady\r")
            terminal.shows("\nready")
            terminal.press("hitlessctl set ser\tdb/\tsta\tdr\t")
            terminal.shows("hitlessctl set server db/s state drain")
            terminal.press("\x15exit\r")
            assert terminal.ended() == 0


def test_nobody_there_is_no_error(places: dict[str, str]) -> None:
    assert in_bash("hitlessctl -s /nowhere set server ", places) == [""]
