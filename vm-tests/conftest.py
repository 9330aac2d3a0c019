"""Fixtures that boot machines, evidence when a test fails, the figures that tests record, and who runs beside whom.

A machine ends with the thread that booted it, and is nobody else's. So tests that share one stay together; with `-n 2`
(pytest-xdist) others run beside them.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from container import Container
from kernel import Kernel
from machine import SUITES, Machine
from package import Built, build_once
from service import TREE, Service, configuration
from xdist.scheduler import LoadScopeScheduling

BACKENDS: dict[str, Callable[[str], Machine]] = {"nspawn": Container, "qemu": Kernel}
QEMU = "test_kernel"
"""The module whose machines compute all day, and so begin first, one after the other, beside those that mostly wait."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--backend", choices=list(BACKENDS), default="nspawn", help="what boots the machines")


@pytest.fixture(scope="session")
def boot(request: pytest.FixtureRequest) -> Callable[[str], Machine]:
    """Boots the machine of a suite."""
    return BACKENDS[request.config.getoption("--backend")]


@pytest.fixture(scope="module", params=list(SUITES))
def booted(request: pytest.FixtureRequest, boot: Callable[[str], Machine]) -> Iterator[Machine]:
    """A machine of each suite in turn, for the tests of a module."""
    with boot(request.param) as machine:
        yield machine


@pytest.fixture(params=list(SUITES))
def fresh_machine(request: pytest.FixtureRequest, boot: Callable[[str], Machine]) -> Iterator[Machine]:
    """A machine of each suite, booted for the one test that asks for it."""
    with boot(request.param) as machine:
        yield machine


@pytest.fixture(scope="module")
def text() -> str:
    """The configuration that tests of a module begin with."""
    return configuration()


@pytest.fixture(scope="module")
def installed(booted: Machine, text: str) -> Machine:
    """With hitlessd installed, not started."""
    booted.install(TREE, text)
    return booted


@pytest.fixture
def machine(installed: Machine) -> Machine:
    """By this name, for the evidence of failed tests."""
    return installed


@pytest.fixture
def service(machine: Machine, text: str) -> Iterator[Service]:
    """The unit, not started; gone after the test."""
    service = Service(machine)
    service.configure(text)
    try:
        yield service
    finally:
        service.stop()


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Built:
    """Builds Debian packages, once for all processes of this run."""
    directory = tmp_path_factory.getbasetemp()
    return partial(build_once, (directory if worker_id == "master" else directory.parent) / "packages")


def machine_of(nodeid: str) -> str:
    """The module of a test, and the suite if it has one."""
    module, _, name = nodeid.partition("::")
    stem = Path(module).stem
    return stem if stem == QEMU else f"{stem} {next((suite for suite in SUITES if suite in name), '')}".rstrip()


class _Machines(LoadScopeScheduling):  # type: ignore[misc]
    def _split_scope(self, nodeid: str) -> str:
        return machine_of(nodeid)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadScopeScheduling:
    config.option.loadscopereorder = False
    return _Machines(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: machine_of(item.nodeid) != QEMU)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Keep the evidence while the machine still runs: at teardown it is gone."""
    report = yield
    if report.failed:
        # A set: fixtures may pass the same machine on.
        values = getattr(item, "funcargs", {}).values()
        for machine in {value for value in values if isinstance(value, Machine)}:
            report.sections.append(("artefacts", str(machine.keep(f"{item.path.stem}-{item.name}"))))
    return report


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print what tests have handed to record_property() (of one that failed, what it got to know before), and how long
    each module took on each suite."""
    took: dict[str, float] = {}
    for outcome in ("passed", "failed", "error", ""):
        for report in terminalreporter.stats.get(outcome, []):
            group = machine_of(report.nodeid)
            took[group] = took.get(group, 0.0) + report.duration
            for title, value in report.user_properties if outcome in ("passed", "failed") else ():
                terminalreporter.write_line(f"{report.nodeid.partition('::')[2]}: {title}: {value}")
    for group, seconds in sorted(took.items(), key=lambda item: -item[1]):
        terminalreporter.write_line(f"{seconds:7.0f} s  {group}")
