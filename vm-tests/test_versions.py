"""The ordinary tests once more, on Debian 13's own Python, systemd-python and haproxy 3.0."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from container import Container
from machine import Machine
from service import TREE

#: What depends on the versions: the interpreter, the kernel's face to it, and haproxy on the other side.
FILES = (
    "test_config.py",
    "test_getsocks.py",
    "test_handover_faults.py",
    "test_haproxy.py",
    "test_listeners.py",
    "test_relay_flow.py",
    "test_relay_reset.py",
    "test_relay_urgent.py",
    "test_reload.py",
    "test_takeover.py",
)


@pytest.fixture(scope="module")
def machine() -> Iterator[Machine]:
    with Container("debian-13") as machine:
        for name in ("hitlessd", "tests"):
            machine.push(TREE / name, f"/opt/hitlessd/{name}")
        machine.push(TREE / "pyproject.toml", "/opt/hitlessd/pyproject.toml")
        yield machine


@pytest.mark.parametrize("file", FILES)
def test_passes_on_debian_13(machine: Machine, file: str) -> None:
    done = machine.run(
        *("sh", "-c", f"cd /opt/hitlessd && exec python3 -m pytest -q -p no:cacheprovider tests/{file}"),
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
