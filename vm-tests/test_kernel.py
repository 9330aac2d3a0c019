"""What the kernel and PID 1 decide, on Debian 12's and Debian 13's own: counters of TCP, memory, clocks, a reboot.

Without KVM nothing here is fast. So both kernels run at the same time, and of the tests with real processes some that
differ in what the kernel has to do; test_parking.py does the rest, on the host's kernel.
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait

import pytest
from inside import CONFIGURATION
from kernel import SUITES, Kernel
from package import build
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
_LONG = pytest.mark.long


@pytest.fixture(scope="module")
def pool() -> Iterator[ThreadPoolExecutor]:
    """A thread for each kernel: a machine ends with the thread that booted it."""
    with ThreadPoolExecutor(len(SUITES)) as pool:
        yield pool


@pytest.fixture(scope="module")
def kernels(pool: ThreadPoolExecutor, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Kernel]]:
    """All suites' kernels, booted, with the Debian package installed and running."""
    package = build(tmp_path_factory.mktemp("package"))
    made = [Kernel(name, TREE, CONFIGURATION, package) for name in SUITES]
    booting = [pool.submit(kernel.__enter__) for kernel in made]
    wait(booting)
    try:
        yield [each.result() for each in booting]
    finally:
        for kernel in made:
            kernel.__exit__(None, None, None)


@pytest.fixture
def everywhere(
    pool: ThreadPoolExecutor, kernels: list[Kernel], record_property: Record
) -> Callable[[str], dict[str, str]]:
    """Runs a command in the source tree on all kernels; what it wrote, by suite, if it succeeds on all."""

    def run(command: str) -> dict[str, str]:
        def one(kernel: Kernel) -> tuple[subprocess.CompletedProcess[str], float]:
            began = time.monotonic()
            done = kernel.run(f"cd /opt/hitlessd && {command}", timeout=300)
            return done, time.monotonic() - began

        outcomes = dict(zip(SUITES, pool.map(one, kernels), strict=True))
        for name, (done, took) in outcomes.items():
            last = done.stdout.strip().rpartition("\n")[2]
            record_property(name, f"{last} ({took:.0f} s)")
        failed = {name: done.stdout[-8000:] for name, (done, _) in outcomes.items() if done.returncode}
        assert not failed, "\n".join(f"--- {name}:\n{said}" for name, said in failed.items())
        return {name: done.stdout for name, (done, _) in outcomes.items()}

    return run


def test_it_is_the_suites_own_kernel(
    everywhere: Callable[[str], dict[str, str]], kernels: list[Kernel], record_property: Record
) -> None:
    release = everywhere("uname -r")
    assert release["debian-12"].startswith("6.1.")
    assert release["debian-13"].startswith("6.12.")
    for kernel in kernels:
        record_property(kernel.name, kernel.accelerator)


def test_the_installed_hitlessd_checks_its_configuration(everywhere: Callable[[str], dict[str, str]]) -> None:
    everywhere("hitlessd -c -f /etc/hitlessd/hitlessd.conf && python3 -m hitlessd -c -f /etc/hitlessd/hitlessd.conf")


@pytest.mark.parametrize(
    "part", ["counters", "park", *(pytest.param(each, marks=_LONG) for each in ("worker", "processes"))]
)
def test_ordinary_tests_pass(everywhere: Callable[[str], dict[str, str]], part: str) -> None:
    said = everywhere(f"python3 -m pytest -q -p no:cacheprovider {PARTS[part]}")
    assert all("skipped" not in text for text in said.values()), said


@pytest.mark.parametrize(
    "program",
    ["restarts", *(pytest.param(each, marks=_LONG) for each in ("memory", "clocks", "netem", "many 3000"))],
)
def test_a_crowd_lives_on(everywhere: Callable[[str], dict[str, str]], program: str) -> None:
    name, *arguments = program.split()
    everywhere(f"python3 vm-tests/{name}.py {' '.join(arguments)}")


@pytest.mark.long
def test_it_is_back_after_a_reboot(
    everywhere: Callable[[str], dict[str, str]], kernels: list[Kernel], pool: ThreadPoolExecutor
) -> None:
    """The last one: all else is gone then."""
    list(pool.map(Kernel.reboot, kernels))
    everywhere("python3 vm-tests/rebooted.py")
