"""What is told of a bug, and that nothing has to be imported to tell it."""

from __future__ import annotations

import subprocess
import sys
import traceback
from pathlib import Path

import pytest

from hitlessd import latecomers
from hitlessd.bugs import account
from tests.support.processes import ROOT


def fail(depth: int) -> None:
    if depth:
        fail(depth - 1)
    raise ValueError("no such thing")


def test_the_way_to_it_is_told() -> None:
    with pytest.raises(ValueError, match="thing") as caught:
        fail(2)
    told = account(caught.value).splitlines()
    library = [line for line in "".join(traceback.format_exception(caught.value)).splitlines() if 'File "' in line]
    assert told == ["Traceback (most recent call last):", *library, "ValueError: no such thing"]


def test_of_the_one_that_is_being_handled() -> None:
    try:
        fail(0)
    except ValueError:
        assert account().endswith("in fail\nValueError: no such thing")


@pytest.mark.parametrize("how", ["cause", "context", "none"])
def test_what_led_to_it_is_told_first(how: str) -> None:
    def lead() -> None:
        try:
            fail(1)
        except ValueError as error:
            if how == "context":
                raise KeyError("b")  # noqa: B904
            raise KeyError("b") from (error if how == "cause" else None)

    with pytest.raises(KeyError) as caught:
        lead()
    library = "".join(traceback.format_exception(caught.value)).splitlines()
    # Without the text of the lines.
    assert account(caught.value).splitlines() == [line for line in library if not line.startswith("    ")]


def test_a_circle_of_errors_has_an_end() -> None:
    one, two = ValueError("one"), ValueError("two")
    one.__cause__, two.__cause__ = two, one
    assert account(one).count("ValueError: one") == 3


def test_a_long_way_is_cut_in_the_middle() -> None:
    with pytest.raises(ValueError, match="thing") as caught:
        fail(400)
    told = account(caught.value).splitlines()
    assert len(told) == 43 and told[21] == "  ... 362 more calls"


def test_an_error_that_cannot_say_what_it_is() -> None:
    class Mute(Exception):
        def __str__(self) -> str:
            raise ValueError("mute")

    assert account(Mute()).endswith("Mute: <exception str() failed>")


LAST = """
import os, resource, sys
from hitlessd import latecomers
from hitlessd.bugs import account
soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (64, hard))
try:
    while True:
        os.dup(0)
except OSError:
    print(account().splitlines()[-1])
print(list(latecomers.imports(latecomers.WORKERS)))
"""


def test_with_the_last_descriptor_gone_what_is_not_loaded_stays_away() -> None:
    done = subprocess.run(
        [sys.executable, "-c", LAST], cwd=ROOT, capture_output=True, text=True, timeout=30, check=True
    )
    assert done.stdout.splitlines() == ["OSError: [Errno 24] Too many open files", "[]"]


def test_all_modules_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (
        "late/__init__.py",
        "late/a.py",
        "late/__main__.py",
        "late/b/__init__.py",
        "late/b/c.py",
        "late/d/e.txt",
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    monkeypatch.syspath_prepend(tmp_path)
    assert list(latecomers.imports(("late",))) == ["late.a", "late.b.c"]
