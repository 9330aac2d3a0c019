"""The linters, as tests: what they say is in the failure."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent
MANUALS = sorted((ROOT / "docs" / "man").iterdir())


def _run(*argv: str | Path) -> None:
    done = subprocess.run([*map(str, argv)], cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_ruff_finds_nothing() -> None:
    _run(BIN / "ruff", "check", ".")


def test_the_format_is_ruffs() -> None:
    _run(BIN / "ruff", "format", "--check", ".")


def test_mypy_finds_nothing() -> None:
    _run(BIN / "mypy")


def test_mypy_finds_nothing_in_the_machine_tests() -> None:
    # Their folder is no package: what is beside a test is imported by its plain name.
    _run(BIN / "mypy", "vm-tests")


@pytest.mark.parametrize("page", MANUALS, ids=lambda page: page.name)
def test_man_finds_nothing_in(page: Path) -> None:
    man = shutil.which("man")
    assert man, "man-db is not installed"
    done = subprocess.run([man, "--warnings", "-l", str(page)], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0
    assert done.stderr == ""


def test_nothing_in_worker_imports_main() -> None:
    guilty = [path for path in (ROOT / "hitlessd" / "worker").glob("*.py") if "hitlessd.main" in path.read_text()]
    assert guilty == []
