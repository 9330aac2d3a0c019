"""Fixtures that boot machines, evidence when a test fails, and the figures that tests record."""

from collections.abc import Generator, Iterator

import pytest
from kernel import Kernel
from machine import SUITES, Machine


@pytest.fixture(scope="session", params=list(SUITES))
def machine(request: pytest.FixtureRequest) -> Iterator[Machine]:
    """A machine of each suite in turn, shared by all tests that ask for it: they must leave it as they found it."""
    with Machine(request.param) as booted:
        yield booted


@pytest.fixture(params=list(SUITES))
def fresh_machine(request: pytest.FixtureRequest) -> Iterator[Machine]:
    """A machine of each suite, booted for the one test that asks for it."""
    with Machine(request.param) as booted:
        yield booted


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Keep the evidence while the machine still runs: at teardown it is gone."""
    report = yield
    if report.failed:
        values = [*getattr(item, "funcargs", {}).values()]
        values += [each for value in values if isinstance(value, list) for each in value]
        # A set: fixtures may pass the same machine on.
        for machine in {value for value in values if isinstance(value, Machine | Kernel)}:
            report.sections.append(("artefacts", str(machine.keep(f"{item.name}-{machine.name}"))))
    return report


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print what tests have handed to record_property(); of one that failed, what it got to know before."""
    for report in (*terminalreporter.stats.get("passed", []), *terminalreporter.stats.get("failed", [])):
        for name, value in report.user_properties:
            terminalreporter.write_line(f"{report.nodeid.partition('::')[2]}: {name}: {value}")
