"""The Debian package on booted machines: installed, upgraded and downgraded under load, removed, purged."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from crowd import CROWDED, Crowd
from machine import Machine
from package import Built, build, with_version
from service import LOADED, SOCKET, TREE, UNIT, Load, Service

Record = Callable[[str, object], None]

PATIENCE = 60.0
RATE = 200
CROWD_PORT = 8002
OLD, NEW, BROKEN = "0.1.0", "0.1.1", "0.1.2"
CONFIGURATION = f"""\
[global]
stats socket = /run/hitlessd/hitlessd.sock mode 600 expose-fd listeners level admin
workers = 2
maxconn = 3000
[defaults]
mode = tcp
timeout connect = 5s
timeout client = 1m
timeout server = 1m
[frontend web]
mode = http
bind = sd@http
http-request = return status 200 content-type text/plain string hello
[listen t]
bind = 127.0.0.1:8001
server s = 127.0.0.1:{LOADED}
[listen crowd]
bind = 127.0.0.1:{CROWD_PORT}
server s = 127.0.0.1:{CROWDED}
"""
#: A version that cannot start.
RUIN = "\nraise SystemExit('cannot start: this version is broken')\n"


def ruin(tree: Path) -> None:
    with (tree / "hitlessd" / "cli.py").open("a") as file:
        file.write(RUIN)


@pytest.fixture(scope="module")
def packages(built: Built) -> dict[str, Path]:
    return {
        OLD: built(OLD, with_version(OLD)),
        NEW: built(NEW, with_version(NEW)),
        BROKEN: built(BROKEN, with_version(BROKEN), ruin),
    }


@pytest.fixture(scope="module")
def installed(booted: Machine, packages: dict[str, Path]) -> Machine:
    """A machine where the package is installed as it comes."""
    for package in packages.values():
        booted.push(package, f"/root/{package.name}")
    install(booted, OLD)
    return booted


@pytest.fixture
def machine(installed: Machine) -> Iterator[Machine]:
    """With the package, the service and its socket running as after the installation."""
    install(installed, OLD)
    installed.run("systemctl", "start", SOCKET, UNIT)
    yield installed
    installed.run("systemctl", "stop", SOCKET, UNIT, check=False)
    installed.run("dpkg", "--purge", "hitlessd")


@pytest.fixture
def service(machine: Machine) -> Service:
    """With a configuration of ours."""
    service = Service(machine)
    service.configure(CONFIGURATION)
    assert service.reload().returncode == 0
    return service


def install(machine: Machine, version: str) -> str:
    """`apt install`, up or down; what was printed."""
    argv = ["apt-get", "-y", "--allow-downgrades", "--no-install-recommends", "install"]
    options = ["-o", "Dpkg::Options::=--force-confold"]
    done = machine.run(*argv, *options, f"/root/hitlessd_{version}-1_all.deb", timeout=120)
    return done.stdout + done.stderr


def page(machine: Machine, port: int = 80) -> str:
    return machine.run("curl", "-sS", "--max-time", "20", f"http://127.0.0.1:{port}/").stdout


def version(machine: Machine) -> str:
    return machine.run("hitlessctl", "show", "version").stdout.strip()


def test_lintian_has_nothing_to_say(packages: dict[str, Path]) -> None:
    (changes,) = packages[OLD].parent.glob(f"hitlessd_{OLD}-1_*.changes")
    argv = ["lintian", "--allow-root", "--fail-on=error,warning", str(changes)]
    result = subprocess.run(argv, capture_output=True, text=True, timeout=120, check=False)
    assert (result.returncode, result.stdout) == (0, ""), result.stdout + result.stderr


def test_two_builds_are_the_same(packages: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Byte for byte, the source package, too, in another place with other settings."""
    monkeypatch.setenv("TZ", "Pacific/Kiritimati")
    umask = os.umask(0o077)
    try:
        again = build(tmp_path, with_version(OLD))
    finally:
        os.umask(umask)
    same = [again.name, f"hitlessd_{OLD}.orig.tar.xz", f"hitlessd_{OLD}-1.debian.tar.xz", f"hitlessd_{OLD}-1.dsc"]
    first = packages[OLD].parent
    assert [name for name in same if (first / name).read_bytes() != (tmp_path / name).read_bytes()] == []


def test_the_packages_own_test_passes(machine: Machine) -> None:
    machine.push(TREE / "debian" / "tests" / "smoke", "/root/smoke")
    machine.run("/root/smoke")


@pytest.mark.quick
def test_an_installation_runs(machine: Machine, record_property: Record) -> None:
    assert page(machine).startswith("hitlessd works.")
    for unit in (UNIT, SOCKET):
        assert machine.property(unit, "ActiveState") == "active"
        assert machine.run("systemctl", "is-enabled", unit).stdout.strip() == "enabled"
    argv = ["systemd-analyze", "security", "--no-pager", "--threshold=20", UNIT]
    record_property("exposure", machine.run(*argv).stdout.splitlines()[-1].split(": ")[1])
    # The image leaves out manuals, as dpkg is told there.
    listed = machine.run("dpkg", "--listfiles", "hitlessd").stdout
    assert all(f"/man/man{page[-1]}/{page}.gz" in listed for page in ("hitlessd.8", "hitlessctl.1", "hitlessd.conf.5"))
    assert Service(machine).complaints(machine.journal_cursor()) == []


def test_the_first_connection_starts_it(machine: Machine) -> None:
    machine.run("systemctl", "stop", UNIT)
    assert machine.property(UNIT, "ActiveState") == "inactive"
    assert page(machine).startswith("hitlessd works.")
    assert machine.property(UNIT, "ActiveState") == "active"


@pytest.mark.quick
def test_upgrade_and_downgrade_are_reloads(service: Service, record_property: Record) -> None:
    machine = service.machine
    with (
        Crowd(machine, idle=50, pingpong=20, bulk=2, target=f"127.0.0.1:{CROWD_PORT}") as crowd,
        Load(machine, RATE) as load,
    ):
        before = (service.main_pid, service.listener(), service.listener(80))
        for new in (NEW, OLD, NEW):
            printed = install(machine, new)
            assert "cannot" not in printed, printed
            assert version(machine) == new
            crowd.verify()
        after = (service.main_pid, service.listener(), service.listener(80))
        report, talk = load.stop(), crowd.stop()
    record_property("connections", f"{report['done']}, failed {report['failed']}; the crowd lost {talk['lost']}")
    assert (report["failed"], report["unfinished"]) == (0, 0), report["errors"]
    assert (talk["lost"], talk["corrupt"], talk["server"]["corrupt"]) == ([], 0, 0)
    assert before[1:] == after[1:] and before[0] != after[0]
    assert (service.restarts, service.info()["Generation"]) == (0, "5")


def test_a_version_that_cannot_start_leaves_the_old_one_running(service: Service) -> None:
    machine = service.machine
    with Load(machine, RATE) as load:
        pid = service.main_pid
        printed = install(machine, BROKEN)
        assert "the version before serves on" in printed, printed
        assert service.main_pid == pid
        assert machine.run("dpkg-query", "-W", "-f", "${Status}", "hitlessd").stdout == "install ok installed"
        printed = install(machine, NEW)
        assert "cannot" not in printed, printed
        assert version(machine) == NEW
        report = load.stop()
    assert (report["failed"], report["unfinished"]) == (0, 0), report["errors"]


def test_an_invalid_configuration_leaves_the_old_version_running(service: Service) -> None:
    machine = service.machine
    service.configure(CONFIGURATION.replace("[listen t]", "[listen t]\nbalance = leastcon"))
    printed = install(machine, NEW)
    assert "balance" in printed and "leastcon" in printed and "the version before serves on" in printed, printed
    assert version(machine) == OLD
    service.configure(CONFIGURATION)
    assert service.reload().returncode == 0
    assert version(machine) == NEW


def test_a_new_python_is_put_to_work_by_a_reload(service: Service) -> None:
    machine = service.machine
    python = machine.run("readlink", "-f", "/usr/bin/python3").stdout.strip()
    generation = service.info()["Generation"]
    machine.run("dpkg-trigger", "--by-package=python3-minimal", python)
    machine.run("dpkg", "--configure", "--pending")
    assert int(service.info()["Generation"]) == int(generation) + 1


def test_remove_stops_and_purge_removes_what_is_ours(service: Service) -> None:
    machine, run = service.machine, service.machine.run
    machine.write("/etc/hitlessd/conf.d/mine.conf", "[global]\nmaxconn = 2000\n")
    machine.write("/etc/other.conf", "not ours\n")
    run("apt-get", "-y", "remove", "hitlessd")
    for unit in (UNIT, SOCKET):
        assert machine.property(unit, "ActiveState") == "inactive"
    assert service.listener() == service.listener(80) == ""
    assert machine.read("/etc/hitlessd/hitlessd.conf") == CONFIGURATION
    install(machine, OLD)
    assert page(machine) == "hello"
    assert service.info()["Maxconn"] == "2000"
    run("apt-get", "-y", "purge", "hitlessd")
    assert run("ls", "-d", "/etc/hitlessd", check=False).returncode != 0
    left = run("sh", "-c", "find / -xdev -name '*hitlessd*' -not -path '/root/*' -not -path '/proc/*' | sort").stdout
    assert left.split() == ["/var/lib/systemd/hitlessd"] or not left.split(), left
    assert machine.read("/etc/other.conf") == "not ours\n"
