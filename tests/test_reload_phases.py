"""What the history says of each reload: phases, listeners, connections; and that it survives what it tells of."""

from __future__ import annotations

import json
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from hitlessd.handover.phases import PHASES, Phases
from hitlessd.handover.states import State
from hitlessd.loop import Loop
from hitlessd.main.reloads import Reloads
from hitlessd.runtime.control import RELOAD_BUCKETS, ReloadOutcome
from tests.support.daemon import Daemon
from tests.support.echo import Echo
from tests.support.processes import free_port, poll_until, wait_gone
from tests.support.restartable import Restartable
from tests.support.visitors import conversations, listen


def history(daemon: Daemon) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(daemon.ask("show reloads json"))
    return found


def names(outcome: Mapping[str, Any]) -> list[str]:
    assert all(seconds >= 0 for _, seconds in outcome["phases"])
    return [name for name, _ in outcome["phases"]]


# Without processes


class _Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_phases_have_no_gaps() -> None:
    clock = _Clock()
    phases = Phases(clock)
    clock.now = 101.0
    phases.end("configuration")
    clock.now = 103.0
    phases.end("prepare")
    assert phases.all(99.5) == (("start", 0.5), ("configuration", 1.0), ("prepare", 2.0))
    assert phases.all() == phases.all("nonsense") == (("configuration", 1.0), ("prepare", 2.0))
    assert phases.all(200.0)[0] == ("start", 0.0)  # by hand, the successor asks before it is noticed


@pytest.mark.parametrize(
    ("started", "expected"),
    [
        (103.0, (("start", 3.0), ("configuration", 2.0))),
        (99.0, (("start", 5.0),)),  # before it was asked for
        (106.0, (("start", 5.0),)),  # in the future
        (None, (("start", 5.0),)),
        ("x", (("start", 5.0),)),
        (float("nan"), (("start", 5.0),)),
    ],
)
def test_the_predecessor_believes_what_can_be(started: object, expected: tuple[tuple[str, float], ...]) -> None:
    clock = _Clock()
    phases = Phases(clock, 100.0)
    clock.now = 105.0
    phases.leave(State.HELLO, started)
    assert phases.all() == expected
    phases.leave(State.DONE, None)
    assert phases.all() == expected


def test_completed_reloads_are_counted_in_buckets() -> None:
    one, two = (Reloads(Loop(lambda *_: None), lambda _number: None) for _ in range(2))
    one.note(ReloadOutcome(1, True, duration=0.2, phases=(("start", 0.1), ("move", 0.0004))))
    one.note(ReloadOutcome(2, False, duration=9.0, phases=(("start", 9.0),)))
    two.restore(json.loads(json.dumps(one.export())))
    two.note(ReloadOutcome(3, True, duration=100.0, phases=(("start", 0.11),)))
    counts, total = two.histogram["start"]
    assert dict(zip((*RELOAD_BUCKETS, "all"), counts, strict=True)) == {
        bound: (0 if bound < 0.1 else 1 if bound == 0.1 else 2) for bound in RELOAD_BUCKETS
    } | {"all": 2}
    assert total == pytest.approx(0.21)
    assert two.histogram["move"] == ([1] * 16, 0.0004)
    assert two.histogram["total"][0][-2:] == [1, 2] and set(two.histogram) == {"start", "move", "total"}
    assert [outcome.number for outcome in two.history] == [1, 2, 3]


@pytest.mark.parametrize(
    "record",
    [
        None,
        [],
        {"bounds": [1.0], "phases": {"start": [[1, 2], 1.0]}},
        {"bounds": RELOAD_BUCKETS, "phases": {"start": [[1, 2], 1.0]}},
        {"bounds": RELOAD_BUCKETS, "phases": {"start": [[-1] * 16, 1.0]}},
        {"bounds": RELOAD_BUCKETS, "phases": {"start": [["x"] * 16, 1.0]}},
        {"bounds": RELOAD_BUCKETS, "phases": {"start": [[1] * 16, float("inf")]}},
        {"bounds": RELOAD_BUCKETS, "phases": 5},
    ],
)
def test_a_histogram_that_makes_no_sense_begins_anew(record: object) -> None:
    reloads = Reloads(Loop(lambda *_: None), lambda _number: None)
    reloads.restore({"number": 4, "histogram": record})
    assert (reloads.histogram, reloads.number) == ({}, 4)


def test_what_is_known_late_is_added() -> None:
    kept: list[int] = []
    reloads = Reloads(Loop(lambda *_: None), lambda _number: None, lambda: kept.append(reloads.number))
    reloads.note(ReloadOutcome(1, True))
    reloads.note(ReloadOutcome(2, True))
    reloads.amend(1, moved=7)
    reloads.amend(9, moved=8)
    assert [outcome.moved for outcome in reloads.history] == [7, 0] and len(kept) == 1


# With processes


def test_a_reload_tells_what_took_how_long(tmp_path: Path) -> None:
    port, added = free_port(), free_port()
    with (
        Echo() as echo,
        Daemon(tmp_path, listen(port, server=echo.port)) as daemon,
        conversations(port, port, port) as visitors,
    ):
        daemon.write(daemon.text(listen(port, added, server=echo.port)))
        done = daemon.ctl("reload", "-v")
        assert done.returncode == 0
        (outcome,) = history(daemon)
        assert names(outcome) == list(PHASES)
        # What is between the phases is next to nothing; `began` and the end are measured in two processes.
        assert 0 <= outcome["duration"] - sum(seconds for _, seconds in outcome["phases"]) < outcome["duration"] / 2
        counts = {name: outcome[name] for name in ("generation", "moved", "kept", "lost", "taken", "bound", "closed")}
        assert counts == {"generation": 2, "moved": 3, "kept": 0, "lost": 0, "taken": 1, "bound": 1, "closed": 0}
        shown = done.stdout.splitlines()
        assert [line.split()[0] for line in shown[1:]] == [*PHASES, "total", "connections:", "listeners:"]
        assert shown[-2:] == ["connections: 3 moved, 0 kept, 0 lost", "listeners:   1 taken, 1 bound, 0 closed"]
        assert json.loads(daemon.ctl("reload", "--json").stdout)["generation"] == 3
        for each in visitors:
            each.finish()


def test_a_refused_reload_tells_how_far_it_came(tmp_path: Path) -> None:
    port = free_port()
    with Echo() as echo, Daemon(tmp_path, listen(port, server=echo.port), workers=1) as daemon:
        good = daemon.text(listen(port, server=echo.port))
        daemon.write(good + "[nonsense]\n")
        assert daemon.reload().returncode == 1
        daemon.write(daemon.text(listen(port, server=echo.port) + "[listen u]\nbind = 192.0.2.1:80\n"))
        refused = daemon.ctl("reload", "-v")
        assert refused.returncode == 1 and "it failed here" in refused.stdout
        daemon.write(good)
        daemon.fault("successor.accept", signal.SIGKILL)
        assert daemon.reload().returncode == 1
        daemon.fault("successor.move", signal.SIGKILL)
        assert daemon.reload().returncode == 1
        told = history(daemon)
        assert [names(outcome) for outcome in told] == [
            ["start", "configuration"],
            ["start", "configuration", "prepare"],
            ["start", "configuration", "prepare", "accept"],
            ["start", "configuration", "prepare", "accept", "stop", "commit", "migrate"],
        ]
        assert [outcome["generation"] for outcome in told] == [1] * 4 and not any(outcome["ok"] for outcome in told)
        assert "nonsense" in told[0]["reason"] and "192.0.2.1" in told[1]["reason"]
        assert told[2]["reason"] == "the successor went away when it was to accept"
        assert told[3]["reason"] == "the successor went away when it was to take connections over"


def test_a_silent_successor_is_told_of(tmp_path: Path) -> None:
    port = free_port()
    text = listen(port, server=free_port())
    with Daemon(tmp_path, text, workers=1, more="reload-timeout = 3s\n") as daemon:
        daemon.fault("successor.offer", signal.SIGSTOP)
        assert daemon.reload().returncode == 1
        (outcome,) = history(daemon)
        assert outcome["reason"] == "the successor did not answer within 3 s while it prepared"
        assert names(outcome) == ["start", "configuration", "prepare"]
        assert dict(outcome["phases"])["prepare"] >= 2.9


@pytest.mark.parametrize("crash", [False, True])
def test_the_history_survives_a_restart_and_a_crash(crash: bool, tmp_path: Path) -> None:
    port = free_port()
    with Restartable(tmp_path, listen(port, server=free_port()), workers=1) as service:
        daemon = service.daemon
        good = daemon.text(listen(port, server=free_port()))
        assert daemon.reload().returncode == 0
        daemon.write(good + "[nonsense]\n")
        assert daemon.reload().returncode == 1
        daemon.write(good)
        told = history(daemon)
        (service.crash if crash else service.restart)()
        assert history(daemon) == told and [outcome["number"] for outcome in told] == [1, 2]
        assert daemon.reload().returncode == 0
        # The numbers go on after a refused one, too, and nothing is left in the store of what came before.
        assert [outcome["number"] for outcome in history(daemon)] == [1, 2, 3]

        def states() -> list[str]:
            service.manager.settle()
            return [name for name in service.manager.names if name.startswith("hitlessd.state-")]

        poll_until(lambda: len(states()) == 1, 10, "one state in the store")


def test_a_takeover_by_hand_is_in_the_history(tmp_path: Path) -> None:
    port = free_port()
    text = listen(port, server=free_port())
    with Daemon(tmp_path, text, workers=1) as old:
        main = old.pid
        with Daemon(tmp_path, text, workers=1, name="new", arguments=("-x", str(old.socket))) as new:
            wait_gone(main)
            (outcome,) = history(new)
            assert (outcome["ok"], outcome["generation"], outcome["taken"], names(outcome)) == (
                True,
                2,
                1,
                list(PHASES),
            )


def test_a_predecessor_that_dies_is_followed_all_the_same(tmp_path: Path) -> None:
    port = free_port()
    with Daemon(tmp_path, listen(port, server=free_port()), workers=1) as daemon:
        main = daemon.pid
        daemon.fault("predecessor.stop", signal.SIGKILL)
        # Who has called for it hears from the next generation.
        assert daemon.ctl("reload", "-v").returncode == 0
        assert daemon.pid != main
        (outcome,) = history(daemon)
        assert (outcome["ok"], outcome["generation"]) == (True, 2)
        assert names(outcome) == ["start", "configuration", "prepare", "accept"]
