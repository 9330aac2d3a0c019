"""hitlessd under a real systemd: activation, reload, restart, crash, watchdog, stop, and faults in a handover."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import pytest
from machine import Machine
from service import FAULTS, LOADED, PORT, SOCKET, UNIT, Load, Service, backend, configuration

from tests.support.places import places

RATE = 1000


@pytest.fixture(scope="module")
def installed(installed: Machine) -> Iterator[Machine]:
    """With an echo server."""
    with backend(installed):
        yield installed


def test_the_first_connection_starts_it(service: Service) -> None:
    service.configure(configuration(bind="sd@http"))
    service.drop_in(f"[Socket]\nListenStream=\nListenStream=127.0.0.1:{PORT}\n", SOCKET)
    service.start(SOCKET)
    assert not service.active()
    assert service.connect() == "hello"
    assert service.active()
    assert "generation 1" in service.status
    # By address, the listener is found as well.
    service.configure(configuration(bind=f"127.0.0.1:{PORT}"))
    assert service.reload().returncode == 0
    assert service.connect() == "hello"
    # One of systemd's that no bind wants would leave clients hanging.
    service.configure(configuration(bind="127.0.0.1:8002"))
    refused = service.reload()
    assert refused.returncode != 0
    assert "FileDescriptorName=http" in service.status
    assert service.connect() == "hello"


def test_a_broken_configuration_fails_the_reload_and_changes_nothing(service: Service) -> None:
    service.start()
    before = service.main_pid
    service.configure(configuration().replace("server s =", "server s 127"))
    began = time.monotonic()
    refused = service.reload()
    assert refused.returncode != 0
    record = time.monotonic() - began
    assert service.main_pid == before
    assert service.connect() == "hello"
    assert "LAST RELOAD REFUSED" in service.status
    assert "/etc/hitlessd/hitlessd.conf:" in service.status
    messages = [str(entry["MESSAGE"]) for entry in service.machine.journal(UNIT)]
    assert any("refused: /etc/hitlessd/hitlessd.conf:13:" in message for message in messages), messages
    service.configure(configuration())
    assert service.reload().returncode == 0
    assert service.main_pid != before
    assert service.connect() == "hello"
    assert record < 30, "the refusal waited for a time-out"


def test_crashes_and_restarts_in_a_row_lose_no_listener(service: Service) -> None:
    service.start()
    assert service.connect() == "hello"
    listener = service.listener()
    assert listener
    for count in range(1, 13):
        pid = service.main_pid
        service.machine.run("kill", "-KILL", str(pid))
        service.machine.wait_until(lambda: service.restarts >= count and service.serving(), 20, "it is back")  # noqa: B023
        assert service.listener() == listener
    for _ in range(10):
        service.machine.run("systemctl", "restart", UNIT)
        assert service.serving()
        assert service.listener() == listener
    assert service.machine.property(UNIT, "Result") == "success"


def test_restart_and_crash_with_an_invalid_file_serve_the_last_good_one(service: Service) -> None:
    service.start()
    cursor = service.machine.journal_cursor()
    service.configure("[global]\nworkers = many\n")
    service.machine.run("systemctl", "restart", UNIT)
    assert service.serving()
    assert "SERVING THE LAST GOOD CONFIGURATION" in service.status
    assert any("workers" in line and "hitlessd.conf:2" in line for line in service.complaints(cursor))
    service.machine.run("kill", "-KILL", str(service.main_pid))
    service.machine.wait_until(service.serving, 20, "it is back")
    assert "SERVING THE LAST GOOD CONFIGURATION" in service.status
    assert service.reload().returncode != 0
    service.configure(configuration())
    assert service.reload().returncode == 0
    assert "LAST GOOD" not in service.status


def test_a_cold_start_with_an_invalid_file_exits_78(service: Service) -> None:
    service.configure("[global]\nworkers = many\n")
    assert service.machine.run("systemctl", "start", UNIT, check=False).returncode != 0
    assert service.machine.property(UNIT, "ExecMainStatus") == "78"
    assert service.machine.property(UNIT, "ActiveState") == "failed"
    assert service.restarts == 0


def test_the_watchdog_ends_a_main_process_that_hangs(service: Service) -> None:
    service.drop_in("[Service]\nWatchdogSec=1s\n")
    service.start()
    listener = service.listener()
    service.machine.run("kill", "-STOP", str(service.main_pid))
    service.machine.wait_until(lambda: service.restarts >= 1 and service.serving(), 30, "it is back")
    assert service.listener() == listener
    assert service.machine.property(UNIT, "WatchdogTimestampMonotonic") != "0"


def test_stop_closes_everything_and_empties_the_store(service: Service) -> None:
    service.start()
    stored = service.stored
    assert stored > 0
    for _ in range(3):
        assert service.reload().returncode == 0
    # A generation leaves nothing behind.
    service.machine.wait_until(lambda: service.stored == stored, 10, "the older generation's table has gone")
    cursor = service.machine.journal_cursor()
    began = time.monotonic()
    service.machine.run("systemctl", "stop", UNIT)
    assert time.monotonic() - began < 30
    assert service.stored == 0
    assert service.listener() == ""
    assert service.mains() == []
    # Nor did systemd have to end what was left of it.
    said = [str(entry.get("MESSAGE")) for entry in service.machine.journal(UNIT, cursor)]
    assert any("stopping" in line for line in said)
    assert [line for line in said if "Killing process" in line] == []
    service.start()
    assert "generation 1," in service.status


def test_it_runs_unprivileged(service: Service) -> None:
    service.start()
    shown = service.machine.read(f"/proc/{service.main_pid}/status")
    uid = next(line for line in shown.splitlines() if line.startswith("Uid:")).split()[1]
    assert uid == service.machine.run("id", "-u", "hitlessd").stdout.strip() != "0"
    assert "NoNewPrivs:\t1" in shown


@pytest.mark.quick
def test_twenty_reloads_under_load(service: Service, record_property: Callable[[str, object], None]) -> None:
    service.configure(configuration(backend=LOADED))
    service.start()
    with Load(service.machine, RATE) as load:
        service.machine.wait_until(lambda: service.connections() > RATE, 30, "the load runs")
        cursor = service.machine.journal_cursor()
        seen = {service.main_pid}
        took = []
        for _ in range(20):
            began = time.monotonic()
            assert service.reload().returncode == 0
            took.append(time.monotonic() - began)
            pid = service.main_pid
            assert f"Pid: {pid}\n" in service.ask("show info")
            seen.add(pid)
        outcome = load.stop()
        assert outcome["failed"] == 0, outcome["errors"]
        assert service.connections() == outcome["done"]
        record_property("connections", outcome["done"])
        record_property("reload, median", f"{sorted(took)[10] * 1000:.0f} ms, systemctl and all")
    assert len(seen) == 21
    assert service.restarts == 0
    assert service.complaints(cursor) == []
    service.machine.wait_until(lambda: service.mains() == [service.main_pid], 10, "no older generation is left")


def serve(service: Service, count: int) -> None:
    """Wait for that many connections more; the number of all goes on through restarts."""
    before = service.machine.wait_until(service.connections, 30, "it answers")
    service.machine.wait_until(lambda: service.connections() >= before + count, 30, "the load runs")


def test_restarts_and_crashes_refuse_no_new_connection(
    service: Service, record_property: Callable[[str, object], None]
) -> None:
    """What was established is cut off by them; whoever comes then waits in the backlog and is served."""
    service.configure(configuration(backend=LOADED))
    service.start()
    with Load(service.machine, 500) as load:
        service.machine.wait_until(lambda: service.connections() > 500, 30, "the load runs")
        for _ in range(3):
            service.machine.run("systemctl", "restart", UNIT)
            service.machine.run("kill", "-KILL", str(service.main_pid))
            # `systemctl restart` has set the number to 0.
            service.machine.wait_until(lambda: service.restarts == 1, 20, "it is started again")
            serve(service, 250)
        outcome = load.stop()
    record_property("connections", f"{outcome['done']} served, cut off by kind: {outcome['failures']}")
    assert outcome["failures"].get("refused", 0) == 0, outcome["errors"]
    assert outcome["failures"].get("timeout", 0) == 0, outcome["errors"]
    assert outcome["done"] > 500


@pytest.mark.parametrize("number", ["KILL", "STOP"])
def test_whoever_dies_in_a_handover_one_generation_serves(
    service: Service, number: str, record_property: Callable[[str, object], None]
) -> None:
    """Where MAINPID decides: each state of both tables."""
    service.configure(configuration(reload_timeout="2s"))
    service.drop_in(f"[Service]\nEnvironment=HITLESSD_FAULTS={FAULTS}\n")
    service.start()
    assert service.connect() == "hello"
    listener, cursor = service.listener(), service.machine.journal_cursor()
    for place in places():
        service.fault(place, f"SIG{number}")
        refused = service.reload().returncode != 0
        service.machine.wait_until(service.serving, 30, f"it serves after {place}")
        # Whoever was given up on is dead, not asleep.
        service.machine.run("pkill", "-CONT", "-u", "hitlessd", check=False)
        service.machine.wait_until(
            lambda: service.mains() == [service.main_pid], 20, f"one main process after {place}: {service.mains()}"
        )
        assert service.listener() == listener, place
        record_property(place, f"reload {'refused' if refused else 'done'}, restarts so far {service.restarts}")
        again = service.reload()
        assert again.returncode == 0, (place, again.stderr)
        assert service.serving(), place
    # systemd has waited for nobody who is dead.
    assert [line for line in service.complaints(cursor) if "Watchdog" in line or "timed out" in line] == []
