"""The reference, the man page and the example know every option, and what they show is valid."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from hitlessd.config import load, parse
from hitlessd.config.words import KINDS, OPTIONS
from hitlessd.model import SourceFile
from tests.support.reference import written

ROOT = Path(__file__).parent.parent
REFERENCE = ROOT / "docs" / "configuration.md"
MAN = ROOT / "docs" / "man" / "hitlessd.conf.5"
EXAMPLE = ROOT / "examples" / "hitlessd.conf"


def test_example_is_valid() -> None:
    config = load([str(EXAMPLE)])
    assert config.warnings == ()
    assert config.resolved == {}


def test_example_is_valid_with_everything_that_is_commented_out() -> None:
    text = re.sub(r"(?m)^#(?=\S)", "", EXAMPLE.read_text())
    config = parse([SourceFile("example", text)])
    assert config.global_.maxconn == 20000
    assert config.global_.hard_stop_after == 1800.0


def test_configurations_in_the_reference_are_valid() -> None:
    pages = [
        REFERENCE,
        *map(REFERENCE.with_name, ("routing.md", "proxy-protocol.md", "health-checks.md", "cookbook.md", "metrics.md")),
    ]
    blocks = [block for page in pages for block in re.findall(r"```ini\n(.*?)```", page.read_text(), re.S)]
    assert blocks
    for block in blocks:
        if not re.search(r"^\[(listen|frontend)", block, re.M):
            block += "[listen any]\nbind = 127.0.0.1:80\n"
        parse([SourceFile("reference", block)], resolver=lambda host: ["192.0.2.1"])


@pytest.mark.parametrize("option", OPTIONS)
def test_every_option_is_described(option: str) -> None:
    assert re.search(rf"^### `{re.escape(option)}\b", REFERENCE.read_text(), re.M)
    plain = MAN.read_text().replace("\\-", "-")
    assert re.search(rf'^\.TP\n\.B[IR]? "?{re.escape(option)}\b', plain, re.M)


def test_the_table_of_options_is_the_one_that_counts() -> None:
    page = REFERENCE.read_text()
    assert page == written(page), "make it anew with python -m tests.support.reference"


@pytest.mark.parametrize("kind", KINDS)
def test_every_section_is_described(kind: str) -> None:
    assert f"[{kind}" in REFERENCE.read_text()
    assert f"[{kind}" in MAN.read_text()


def test_man_page_is_clean() -> None:
    result = subprocess.run(
        ["man", "--warnings", "-E", "UTF-8", "-l", "-Tutf8", "-Z", str(MAN)],
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, check=False,
        env={"PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8", "MANWIDTH": "80"},
    )  # fmt: skip
    assert (result.returncode, result.stderr) == (0, "")
