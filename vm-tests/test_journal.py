"""The journal of a real systemd: events by id, with fields, and explained by the catalog."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from machine import Machine
from service import TREE, UNIT, Service, backend, configuration

from hitlessd.events import Event

CHECKED = """\
[listen u]
bind = 127.0.0.1:8002
server s = 127.0.0.1:9
[backend app]
server dead = 127.0.0.1:9 check inter 100ms fall 1
"""


@pytest.fixture
def service(fresh_machine: Machine) -> Iterator[Service]:
    """On a machine whose journal has nothing else."""
    fresh_machine.install(TREE, configuration())
    with backend(fresh_machine):
        yield Service(fresh_machine)


def entries(service: Service, event: Event) -> list[dict[str, str]]:
    """What the journal finds by the id of an event."""
    return [entry for entry in service.machine.journal(UNIT) if entry.get("MESSAGE_ID") == event.message_id]


def wait_for(service: Service, event: Event) -> dict[str, str]:
    found = service.machine.wait_until(lambda: entries(service, event), 20, event.name)
    return found[-1]


def test_what_happens_is_found_and_explained(service: Service) -> None:
    machine = service.machine
    service.start()
    started = wait_for(service, Event.STARTED)
    assert started["HITLESSD_PID"] == str(service.main_pid)
    assert started["HITLESSD_WORKERS"] == "2"

    service.configure(configuration() + CHECKED)
    assert service.reload().returncode == 0
    done = wait_for(service, Event.RELOAD_DONE)
    assert (done["HITLESSD_RELOAD"], done["HITLESSD_GENERATION"]) == ("1", "2")
    assert wait_for(service, Event.LISTENER_ADDED)["HITLESSD_ADDRESS"] == "127.0.0.1:8002"
    down = wait_for(service, Event.SERVER_DOWN)
    assert (down["HITLESSD_BACKEND"], down["HITLESSD_SERVER"]) == ("app", "dead")
    assert wait_for(service, Event.BACKEND_DOWN)["PRIORITY"] == "0"

    service.configure("[global]\nworkers = many\n")
    assert service.reload().returncode != 0
    assert wait_for(service, Event.RELOAD_REFUSED)["HITLESSD_RELOAD"] == "2"
    assert any("hitlessd.conf:2" in refusal["MESSAGE"] for refusal in entries(service, Event.RELOAD_REFUSED))
    # The successor says it, too, but may be gone before journald has found out what unit it was of.
    every = [entry for entry in machine.journal() if entry.get("MESSAGE_ID") == Event.CONFIGURATION_INVALID.message_id]
    assert any("hitlessd.conf:2" in entry["MESSAGE"] for entry in every), every
    service.configure(configuration())

    worker = machine.run("pgrep", "--parent", str(service.main_pid)).stdout.split()[0]
    machine.run("kill", "-KILL", worker)
    assert wait_for(service, Event.WORKER_DIED)["HITLESSD_PID"] == worker
    assert service.connect() == "hello"

    machine.run("systemctl", "stop", UNIT)
    assert wait_for(service, Event.STOPPING)["HITLESSD_SESSIONS"] == "0"

    # By a field, as the page says.
    asked = machine.run("journalctl", "--no-pager", "-q", "-o", "cat", "-u", UNIT, "HITLESSD_SERVER=dead").stdout
    assert asked.splitlines() and all("app/dead" in line for line in asked.splitlines())

    explained = machine.run("journalctl", "--no-pager", "-x", "-u", UNIT).stdout
    for subject in (
        "hitlessd serves",
        "A reload is done",
        "A listener was opened",
        "Server app/dead is down",
        "Backend app has no server",
        "A reload was refused, and the old generation serves on",
        "The configuration cannot be used",
        "A worker has died",
        "hitlessd is being stopped",
    ):
        assert f"Subject: {subject}\n" in explained, subject
    assert f"(process {started['HITLESSD_PID']})" in explained
    assert re.findall(r"@[A-Z_]+@", explained) == []
