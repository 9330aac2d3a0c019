"""units/ on real machines, with a stub in hitlessd's place: what systemd thinks of them and what the sandbox allows."""

import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from machine import Machine

HERE = Path(__file__).resolve().parent
UNITS = HERE.parent / "units"
CLIENT = (
    "import socket, sys; print(socket.create_connection(('127.0.0.1', int(sys.argv[1])), 10).recv(9).decode(), end='')"
)


@pytest.fixture
def stubbed(fresh_machine: Machine, tmp_path: Path) -> Machine:
    """A machine where the stub is installed as hitlessd, not started."""
    package = tmp_path / "hitlessd"
    package.mkdir()
    (package / "__init__.py").touch()
    shutil.copy(HERE / "stub_cli.py", package / "cli.py")
    shutil.copy(HERE / "stub_ctl.py", package / "ctl.py")
    shutil.copytree(UNITS, tmp_path / "units")
    fresh_machine.install(tmp_path, "[global]\n")
    return fresh_machine


def served_by(machine: Machine, port: int) -> str:
    """The pid that the stub answers a connection with."""
    return machine.run("python3", "-c", CLIENT, str(port)).stdout.strip()


def restarted(machine: Machine, times: int) -> bool:
    """Whether systemd has restarted the service so often by itself."""
    return machine.property("hitlessd.service", "NRestarts") == str(times)


def test_units_are_valid(stubbed: Machine) -> None:
    units = ["hitlessd.service", "hitlessd.socket", "hitlessd@8080.socket"]
    result = stubbed.run("systemd-analyze", "verify", "--man=no", *units)
    assert result.stdout + result.stderr == ""


def test_the_sandbox_is_tight(stubbed: Machine, record_property: Callable[[str, object], None]) -> None:
    # The threshold is ten times the exposure, of which less is better.
    argv = ["systemd-analyze", "security", "--no-pager", "--threshold=20", "hitlessd.service"]
    record_property("exposure", stubbed.run(*argv).stdout.splitlines()[-1].split(": ")[1])


def test_the_sandbox_allows_what_hitlessd_does_and_nothing_else(stubbed: Machine) -> None:
    stubbed.run("systemctl", "start", "hitlessd.service")
    messages = [str(entry.get("MESSAGE")) for entry in stubbed.journal("hitlessd.service")]
    (outcome,) = [json.loads(message) for message in messages if message.startswith("{")]
    refused = {name for name, reason in outcome.items() if reason}
    assert refused == {name for name in outcome if name.startswith("forbidden_")}, outcome


def test_the_service_runs_as_its_user_and_needs_no_socket_unit(stubbed: Machine) -> None:
    stubbed.run("systemctl", "start", "hitlessd.service")
    main = stubbed.property("hitlessd.service", "MainPID")
    assert served_by(stubbed, 80) == main
    assert stubbed.run("ps", "-o", "user=", "-p", main).stdout.strip() == "hitlessd"
    assert stubbed.property("hitlessd.service", "NFileDescriptorStore") == "1"
    assert stubbed.property("hitlessd.socket", "ActiveState") == "inactive"


def test_a_first_connection_starts_the_service_with_its_named_sockets(stubbed: Machine) -> None:
    stubbed.run("systemctl", "start", "hitlessd.socket", "hitlessd@8080.socket")
    assert stubbed.property("hitlessd.service", "ActiveState") == "inactive"
    assert served_by(stubbed, 80) == stubbed.property("hitlessd.service", "MainPID")
    assert sorted(stubbed.property("hitlessd.service", "StatusText").split()) == ["8080", "http"]


def test_reload_tells_the_outcome(stubbed: Machine) -> None:
    stubbed.run("systemctl", "start", "hitlessd.service")
    stubbed.run("systemctl", "reload", "hitlessd.service")
    stubbed.write("/etc/hitlessd/hitlessd.conf", "broken\n")
    assert stubbed.run("systemctl", "reload", "hitlessd.service", check=False).returncode == 1
    assert stubbed.property("hitlessd.service", "ActiveState") == "active"


def test_crashes_in_a_row_trip_no_limit(stubbed: Machine) -> None:
    stubbed.run("systemctl", "start", "hitlessd.socket", "hitlessd.service")
    for crash in range(1, 13):
        stubbed.run("systemctl", "kill", "--kill-who=main", "--signal=KILL", "hitlessd.service")
        stubbed.wait_until(partial(restarted, stubbed, crash), 20, f"restart {crash}")
        assert served_by(stubbed, 80)
    assert stubbed.property("hitlessd.socket", "ActiveState") == "active"
