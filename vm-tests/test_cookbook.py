"""What docs/cookbook.md tells people to do with systemd, done under load."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from machine import Machine
from service import LOADED, PORT, UNIT, Load, Service, configuration

Record = Callable[[str, object], None]

PATIENCE = 60.0
RATE = 200
HAPROXY = f"""\
global
  user haproxy
  group haproxy
  stats socket /run/haproxy/admin.sock mode 660 level admin expose-fd listeners
defaults
  mode tcp
  timeout connect 5s
  timeout client 1m
  timeout server 1m
listen t
  bind 127.0.0.1:{PORT}
  server s 127.0.0.1:{LOADED}
"""
#: As `systemctl edit` would write them.
START = """\
[Service]
ExecStart=
ExecStart=/usr/bin/hitlessd -f /etc/hitlessd/hitlessd.conf -x /run/haproxy/admin.sock
SupplementaryGroups=haproxy
"""
FINISH = """\
[Service]
KillSignal=SIGUSR1
TimeoutStopSec=1h
"""


@pytest.fixture(scope="module")
def text() -> str:
    return configuration(backend=LOADED)


@pytest.fixture(scope="module")
def installed(installed: Machine) -> Machine:
    """With haproxy beside it."""
    installed.write("/etc/haproxy/haproxy.cfg", HAPROXY)
    installed.run("systemctl", "unmask", "haproxy.service")
    return installed


@pytest.fixture
def service(service: Service) -> Iterator[Service]:
    yield service
    service.machine.run("systemctl", "stop", "haproxy.service", check=False)


def accepting(service: Service, load: Load, more: int) -> None:
    """Wait until hitlessd has served so many more."""
    wanted = service.connections() + more
    service.machine.wait_until(lambda: service.connections() >= wanted, PATIENCE, "hitlessd serves the load")


def test_changing_over_from_haproxy_refuses_nobody(service: Service, record_property: Record) -> None:
    machine, run = service.machine, service.machine.run
    run("systemctl", "start", "haproxy.service")
    with Load(machine, RATE) as load:
        listener = service.listener()
        service.drop_in(START)
        service.drop_in(FINISH, "haproxy.service")
        service.start()
        accepting(service, load, 1)
        run("systemctl", "stop", "haproxy.service")
        assert machine.property("haproxy.service", "ActiveState") == "inactive"
        accepting(service, load, RATE)
        run("rm", "-r", f"/run/systemd/system/{UNIT}.d")
        run("systemctl", "daemon-reload")
        assert service.reload().returncode == 0
        run("systemctl", "restart", UNIT)
        accepting(service, load, RATE)
        report = load.stop()
    assert service.listener() == listener != ""
    record_property("connections", f"{report['done']}, failed {report['failed']}")
    assert (report["failed"], report["unfinished"]) == (0, 0), report["errors"]


def test_stopping_for_good_leaves_nothing(service: Service) -> None:
    """docs/operations.md: nobody comes back for a client, and systemd keeps nothing."""
    run = service.machine.run
    service.start()
    assert service.stored > 0
    run("systemctl", "disable", "--now", "hitlessd.service", "hitlessd.socket")
    assert not service.active()
    assert (service.listener(), service.stored) == ("", 0)


def test_finishing_serves_to_the_end_and_stays_away(service: Service) -> None:
    machine, run = service.machine, service.machine.run
    service.start()
    cursor = machine.journal_cursor()
    run("systemctl", "kill", "--kill-whom=main", "--signal=USR1", UNIT)
    machine.wait_until(lambda: machine.property(UNIT, "ActiveState") == "inactive", PATIENCE, "it has ended")
    assert (service.listener(), service.stored) == ("", 0)
    told = [str(entry.get("MESSAGE")) for entry in machine.journal(since_cursor=cursor)]
    assert any("Deactivated successfully" in line for line in told)
    assert not any("Scheduled restart" in line for line in told)
