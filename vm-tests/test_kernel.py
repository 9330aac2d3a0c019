"""What the kernel and PID 1 decide, on Debian 12's and Debian 13's own: counters of TCP, memory, clocks, a reboot.

Without KVM nothing here is fast. So of the tests with real processes some run that differ in what the kernel has to do;
test_parking.py does the rest, on the host's kernel.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import pytest
from inside import CONFIGURATION
from kernel import SUITES, Kernel
from package import Built
from service import TREE

PARTS = {
    "counters": "tests/test_parking_counters.py",
    "park": "tests/test_parking_park.py",
    # Thousands are many for a machine that is computed.
    "worker": "tests/test_worker_parking.py -k 'not thousands'",
    "processes": " ".join(
        (
            "'tests/test_parking_flows.py::test_idle_ones_and_ones_that_talk[crash]'",
            "'tests/test_parking_flows.py::test_half_closed_ones[client-crash]'",
            "'tests/test_parking_flows.py::test_half_closed_ones[server-crash]'",
            "'tests/test_parking_flows.py::test_megabytes_that_nobody_reads[client-crash]'",
            "'tests/test_parking_deaths.py::test_whoever_resumes_dies[claim-2-crash]'",
        )
    ),
}
"""Ordinary tests, as pytest's arguments."""

Record = Callable[[str, object], None]
Inside = Callable[[str], str]
RELEASES = {"debian-12": "6.1.", "debian-13": "6.12."}
LONG_PROGRAMS = ("memory", "clocks", "netem", "many 15000")
_LONG = pytest.mark.long


SOURCES = ("hitlessd", "tests", "vm-tests", "pyproject.toml")
"""What of the source tree is in /opt/hitlessd, beside what is installed."""


@pytest.fixture(scope="module", params=list(SUITES))
def booted(request: pytest.FixtureRequest) -> Iterator[Kernel]:
    """Each suite's kernel in turn, whatever other tests run on."""
    with Kernel(request.param) as kernel:
        yield kernel


@pytest.fixture(scope="module")
def kernel(booted: Kernel, built: Built) -> Kernel:
    """With the Debian package installed and running, and the source tree."""
    booted.write("/etc/hitlessd/hitlessd.conf", CONFIGURATION)
    for source in SOURCES:
        booted.push(TREE / source, f"/opt/hitlessd/{source}")
    booted.push(built("HEAD"), "/root/hitlessd.deb")
    # As apt does when nothing else is missing; with our configuration, which is there already.
    booted.run("dpkg", "--force-confold", "--force-unsafe-io", "--install", "/root/hitlessd.deb")
    return booted


@pytest.fixture
def inside(kernel: Kernel, record_property: Record) -> Inside:
    """Runs a command in the source tree; what it wrote, if it succeeds."""

    def run(command: str) -> str:
        began = time.monotonic()
        done = kernel.run("sh", "-c", f"cd /opt/hitlessd && exec 2>&1 && {command}", check=False, timeout=60)
        last = done.stdout.strip().rpartition("\n")[2]
        record_property(command.split()[0], f"{last} ({time.monotonic() - began:.0f} s)")
        assert done.returncode == 0, done.stdout[-8000:]
        return done.stdout

    return run


def test_it_is_the_suites_own_kernel(inside: Inside, kernel: Kernel, record_property: Record) -> None:
    assert inside("uname -r").startswith(RELEASES[kernel.name])
    record_property("accelerator", kernel.accelerator)


def test_the_installed_hitlessd_checks_its_configuration(inside: Inside) -> None:
    inside("hitlessd -c -f /etc/hitlessd/hitlessd.conf && python3 -m hitlessd -c -f /etc/hitlessd/hitlessd.conf")


@pytest.mark.parametrize(
    "part", ["counters", "park", *(pytest.param(each, marks=_LONG) for each in ("worker", "processes"))]
)
def test_ordinary_tests_pass(inside: Inside, part: str) -> None:
    assert "skipped" not in inside(f"python3 -m pytest -q -p no:cacheprovider {PARTS[part]}")


@pytest.mark.parametrize(
    "program",
    [
        "restarts",
        *(pytest.param(each, marks=_LONG) for each in ("memory", "clocks", "netem", "many 15000")),
    ],
)
def test_a_crowd_lives_on(inside: Inside, program: str) -> None:
    name, *arguments = program.split()
    inside(f"python3 vm-tests/{name}.py {' '.join(arguments)}")


@pytest.mark.long
def test_it_is_back_after_a_reboot(inside: Inside, kernel: Kernel) -> None:
    """The last one: all else is gone then."""
    # Another one may have left proxies without servers that live.
    kernel.write("/etc/hitlessd/hitlessd.conf", CONFIGURATION)
    kernel.reboot()
    inside("python3 vm-tests/rebooted.py")
