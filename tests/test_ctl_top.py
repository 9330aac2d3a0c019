"""hitlessctl top on a real terminal: what keys do, and that the terminal is given back whatever happens."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import termios
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from hitlessd.ctl.board import Board, clean
from hitlessd.ctl.terminal import keys_of
from tests.support.answering import Answering, answering
from tests.support.daemon import Daemon
from tests.support.echo import Echo, exchange
from tests.support.processes import free_port, python_module
from tests.support.terminals import Terminal
from tests.support.visitors import listen

_NAMES = "# pxname,svname,qcur,scur,stot,bin,bout,status,weight,type,mode,req_tot,check_status,last_chk,"
_INFO = "Version: 1.2.3\nGeneration: 7\nUptime: 0d 0h00m59s\nCurrConns: 5\nSessRate: 2\n"


def stat(*rows: str) -> str:
    return "\n".join((_NAMES, *rows)) + "\n"


def server(name: str, sessions: int, status: str = "UP", proxy: str = "web", total: int = 0) -> str:
    return f"{proxy},{name},0,{sessions},{total},0,0,{status},1,2,tcp,0,L4OK,,"


SOME = stat("web,FRONTEND,0,5,9,0,0,OPEN,,0,tcp,0,,,", server("a", 1), server("b", 4), server("c", 0, "DOWN"),
            "web,BACKEND,0,5,9,0,0,UP,2,1,tcp,0,,,")  # fmt: skip


# What keys mean


def board(*keys: str) -> tuple[Board, list[str]]:
    made = Board()
    made.update(_INFO, SOME, 0.0)
    sent = [command for key in keys for command in made.key(key)]
    return made, sent


@pytest.mark.parametrize(
    ("keys", "sent", "message"),
    [
        (["j", "d", "y"], ["set server web/a state drain"], "set server web/a state drain ..."),
        (["down", "down", "m", "y"], ["set server web/b state maint"], "set server web/b state maint ..."),
        (["j", "j", "j", "k", "e", "y"], ["set server web/b state ready"], "set server web/b state ready ..."),
        (["j", "w", "4", "2", "enter", "y"], ["set server web/a weight 42"], "set server web/a weight 42 ..."),
        (["j", "w", "4", "backspace", "9", "enter", "n"], [], "nothing was changed"),
        (["j", "w", "escape", "y"], [], ""),
        (["j", "w", "257", "enter"], [], "cannot set the weight: found '', expected a number from 0 to 256"),
        (["j", "d", "n"], [], "nothing was changed"),
        (["j", "d", "enter"], [], "nothing was changed"),
        (["j", "d", "escape", "y"], [], ""),
        (["d", "y"], [], ""),
        (["end", "d"], [], "cannot change that: choose a server"),
        (["page down", "home", "d"], [], "cannot change that: choose a server"),
        (["/", "d", "y"], [], ""),
    ],
)
def test_what_is_sent(keys: list[str], sent: list[str], message: str) -> None:
    made, commands = board(*keys)
    assert (commands, made.message) == (sent, message)


def test_sorting_and_filtering_keep_the_choice() -> None:
    made, _ = board("j", "j")
    assert made.chosen == ("web", "b")
    made.key("s")
    assert (made.sort, [line.name for line in made.visible()]) == ("sessions", ["FRONTEND", "BACKEND", "b", "a", "c"])
    for _ in range(3):
        made.key("s")
    assert (made.sort, made.visible()[0].name, made.chosen) == ("status", "c", ("web", "b"))
    for key in ("/", "B", "/", "c", "backspace"):
        made.key(key)
    assert made.prompt == "filter: B/"
    made.key("backspace")
    made.key("enter")
    assert ([line.name for line in made.visible()], made.asking) == (["c", "FRONTEND", "a", "b", "BACKEND"], "")
    made.key("/")
    made.key("z")
    assert [line.name for line in made.visible()] == []
    made.key("escape")
    assert made.pattern == "" and len(made.visible()) == 5
    made.key("q")
    assert made.over


def test_rates_are_of_the_time_between_two_answers() -> None:
    made = Board()
    made.update(_INFO, stat(server("a", 1, total=100)), 10.0)
    assert made.lines[0].rate == 0
    made.update(_INFO, stat(server("a", 1, total=130)), 12.0)
    assert made.lines[0].rate == 15
    made.update(_INFO, stat(server("a", 1, total=3)), 13.0)  # cleared
    assert made.lines[0].rate == 0


def test_who_waits_for_a_yes_is_not_taken_for_another() -> None:
    made, _ = board("j", "w")
    made.update(_INFO, stat(server("z", 1)), 1.0)
    assert made.chosen == ("web", "z")
    for key in ("5", "enter"):
        made.key(key)
    assert made.prompt == "set server web/a weight 5? (y/n)"
    assert made.key("y") == ["set server web/a weight 5"]


def test_keys() -> None:
    assert keys_of("j\x1b[A\x1bOB\x1b[5~q\r\x7f\x1b") == [
        "j",
        "up",
        "down",
        "page up",
        "q",
        "enter",
        "backspace",
        "escape",
    ]
    assert keys_of("\x1b[1;5Ad\x00ü") == ["d", "ü"]
    assert clean("a\x1b[31mb\n") == "a?[31mb?"


# On a terminal


@contextlib.contextmanager
def shown(
    tmp_path: Path,
    answers: dict[str, str] | None = None,
    columns: int = 80,
    lines: int = 24,
    within: Sequence[str] = (),
) -> Iterator[tuple[Terminal, Answering]]:
    given = {"show info": _INFO, "show stat": SOME, **(answers or {})}
    command = [*within, *map(str, python_module("hitlessd.ctl", "-s", tmp_path / "s", "top"))]
    with answering(tmp_path / "s", given) as api, Terminal(command, columns=columns, lines=lines) as terminal:
        terminal.shows("q quit")
        yield terminal, api


def is_restored(terminal: Terminal) -> bool:
    """The main screen, a cursor, and line editing are back."""
    same = termios.tcgetattr(terminal.terminal) == terminal.settings
    return same and terminal.raw.rstrip().endswith(b"\x1b[?25h\x1b[?1049l")


def last_line_begins(with_: str) -> Callable[[str], bool]:
    return lambda text: text.splitlines()[-1].startswith(with_)


def test_a_screen_of_80_by_24(tmp_path: Path) -> None:
    many = stat(*[server(f"s{number}", number) for number in range(40)])
    with shown(tmp_path, {"show stat": many}) as (terminal, _):
        lines = terminal.lines
        assert lines[0].startswith("hitlessd 1.2.3  generation 7  up 0d 0h00m59s  sessions 5  2/s")
        assert lines[1] == "40 of 40 rows, sorted by configuration"
        assert lines[2].split() == ["PROXY", "NAME", "STATUS", "WGHT", "NOW", "QUEUE", "RATE/s", "IN/s", "OUT/s"]
        assert lines[3].split()[:5] == ["web", "s0", "UP", "1", "0"]
        assert lines[21].split()[1] == "s18" and lines[22] == ""
        assert all(len(line) <= 80 for line in lines)
        terminal.press("\x1b[F")  # end
        terminal.shows("s39")
        terminal.resize(120, 10)
        # What was the last line is it still when the first ones are new.
        terminal.until(lambda text: "CHECK" in text and terminal.raw.endswith(b"\x1b[J"), "the new size")
        assert "q quit" in terminal.lines[-1]
        assert len(terminal.lines) == 10 and terminal.lines[7].split()[1] == "s39"
        for columns, height in ((20, 3), (3, 1), (80, 24)):
            terminal.resize(columns, height)
            terminal.until(last_line_begins("arrows"[: columns - 1]), "a size for nobody")
        terminal.press("q")
        assert terminal.ended() == 0 and is_restored(terminal)


def test_a_confirmed_change_is_sent_and_its_answer_shown(tmp_path: Path) -> None:
    refusal = {"set server web/b weight 7": "Backend is using a static LB algorithm.\n"}
    with shown(tmp_path, refusal) as (terminal, api):
        terminal.press("jd")
        terminal.shows("set server web/a state drain? (y/n)")
        api.answers["show stat"] = SOME.replace("web,a,0,1,0,0,0,UP", "web,a,0,1,0,0,0,DRAIN")
        terminal.press("y")
        terminal.until(lambda text: "drain: done" in text and "DRAIN" in text, "that it is done, and seen at once")
        terminal.press("jw7\r")
        terminal.shows("set server web/b weight 7? (y/n)")
        terminal.press("y")
        terminal.shows("set server web/b weight 7: Backend is using a static LB algorithm.")
        terminal.press("m")
        terminal.shows("web/b state maint? (y/n)")
        terminal.press("n")
        terminal.shows("nothing was changed")
        assert api.commands() == ["set server web/a state drain", "set server web/b weight 7"]
        terminal.press("q")
        assert terminal.ended() == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT], ids=lambda number: number.name)
def test_a_signal_gives_the_terminal_back(number: signal.Signals, tmp_path: Path) -> None:
    with shown(tmp_path) as (terminal, _):
        os.kill(terminal.pid, number)
        assert terminal.ended() == 128 + number
        assert is_restored(terminal)
        assert terminal.raw.count(b"\x1b[?1049l") == 1


def test_stopped_and_continued(tmp_path: Path) -> None:
    # A job of a shell, without which nobody would continue it: the kernel stops no orphans (setpgid(2)).
    shell = ("bash", "-mc", '"$@"; echo "the shell again"; read -r; fg', "bash")
    with shown(tmp_path, within=shell) as (terminal, api):
        api.answers["show stat"] = "nonsense"  # closes without what was asked for
        api.answers["show info"] = _INFO.replace("Generation: 7", "Generation: 8")
        terminal.shows("generation 8")
        api.answers["show stat"] = SOME
        terminal.shows("5 of 5 rows")
        terminal.press("\x1a")  # ^Z
        terminal.until(lambda _text: b"the shell again" in terminal.raw, "it has stopped")
        assert b"\x1b[?1049l" in terminal.raw.partition(b"the shell again")[0], "the terminal is given back"
        terminal.press("\n")
        terminal.until(lambda _text: terminal.raw.count(b"\x1b[?1049h") == 2, "the screen comes back")
        terminal.press("q")
        assert terminal.ended() == 0 and is_restored(terminal)


def test_no_terminal_and_nobody_there(tmp_path: Path) -> None:
    command = python_module("hitlessd.ctl", "-s", tmp_path / "missing", "top")
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=30, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "cannot show a live table: this is no terminal; next step: hitlessctl status\n"
    with Terminal(command) as terminal:
        assert terminal.ended() == 3
        assert "cannot reach hitlessd at" in terminal.text.replace("\n", "") and b"\x1b[?1049h" not in terminal.raw


def test_a_reload_in_the_middle(tmp_path: Path) -> None:
    port, added = free_port(), free_port()
    with (
        Echo() as echo,
        Daemon(tmp_path, listen(port, server=echo.port), workers=1) as daemon,
        Terminal(python_module("hitlessd.ctl", "-s", daemon.socket, "top")) as terminal,
    ):
        terminal.shows("generation 1 ")
        terminal.press("/t/s\r")
        terminal.shows("filter: t/s")
        assert exchange(port) == b"hello"
        daemon.write(daemon.text(listen(port, server=echo.port) + listen(added, server=echo.port, name="u")))
        assert daemon.reload().returncode == 0
        terminal.shows("generation 2 ")
        # The filter is still on, over the new rows.
        terminal.shows("1 of 6 rows, sorted by configuration, filter: t/s")
        assert "no answer" not in terminal.text
        daemon.end_all()
        terminal.shows("no answer for")
        terminal.press("q")
        assert terminal.ended() == 0


def test_a_server_is_drained_weighed_and_enabled(tmp_path: Path) -> None:
    with (
        Daemon(tmp_path, listen(free_port(), server=free_port()), workers=1) as daemon,
        Terminal(python_module("hitlessd.ctl", "-s", daemon.socket, "top")) as terminal,
    ):
        terminal.shows("q quit")
        terminal.press("jd")
        terminal.shows("set server t/s state drain? (y/n)")
        terminal.press("y")
        terminal.until(lambda text: "state drain: done" in text and text.count("DRAIN") == 1, "that it drains")
        terminal.press("w7\r")
        terminal.shows("set server t/s weight 7? (y/n)")
        terminal.press("y")
        terminal.shows("weight 7: done")
        status = daemon.ctl("status").stdout
        assert "t/s DRAIN" in status and "server weight t/s: 7 (configured: 1)" in status
        terminal.press("e")
        terminal.shows("set server t/s state ready? (y/n)")
        terminal.press("y")
        terminal.until(lambda text: "state ready: done" in text and "DRAIN" not in text, "that it is enabled")
        assert daemon.ask("get weight t/s").startswith("7 ")
        terminal.press("q")
        assert terminal.ended() == 0
