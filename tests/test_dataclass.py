"""hitlessd.dataclass makes what the standard library makes, and a start does without the latter."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from typing import Any

import pytest

from hitlessd import dataclass as ours
from hitlessd.model import Bind, InetAddress, Server
from tests.support.processes import ROOT

FORMS = [
    {},
    {"frozen": True, "slots": True},
    {"frozen": True},
    {"slots": True},
    {"slots": True, "eq": False},
    {"slots": True, "eq": False, "repr": False},
]


def make(library: Any, form: dict[str, bool]) -> Any:
    @library.dataclass(**form)
    class Base:
        number: int
        text: str = "a"

        def double(self) -> int:
            return self.number * 2

    @library.dataclass(**form)
    class Point(Base):
        items: list[int] = library.field(default_factory=list)
        ready: bool = library.field(default=True)

    return Point


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_objects_are_as_the_standard_librarys(form: dict[str, bool]) -> None:
    told = []
    for library in (ours, dataclasses):
        kind = make(library, form)
        one, other = kind(1), kind(number=1, items=[])
        third = library.replace(one, text="b", items=[2])
        told.append(
            [
                [repr(each).partition(" object at")[0] for each in (one, third)],
                [one == other, one == third, one == (1,), kind.__hash__ is None, one.items is other.items],
                [one.double(), third.text, third.items, third.ready],
                [hasattr(one, "__dict__"), kind.__match_args__, kind.__qualname__, kind.__name__],
                [(f.name, f.default is library.MISSING or f.default) for f in library.fields(kind)],
                library.asdict(third),
                _outcome(lambda one=one: setattr(one, "number", 2)),
                _outcome(lambda one=one: delattr(one, "text")),
                _outcome(lambda one=one: hash((one, one)) and None),
                _outcome(lambda kind=kind: kind()),
                _outcome(lambda kind=kind: kind(1, 2, 3, 4, 5)),
                _outcome(lambda kind=kind: kind(1, unknown=5)),
            ]
        )
    assert told[0] == told[1]


def _outcome(call: Any) -> tuple[str, str]:
    try:
        call()
    except (AttributeError, TypeError) as error:
        return ("TypeError" if isinstance(error, TypeError) else "AttributeError"), str(error)
    return "done", ""


def test_equal_ones_are_one_key() -> None:
    kind = make(ours, {"frozen": True, "slots": True})
    one = {kind(1, items=()): 1}
    assert one[kind(1, items=())] == 1
    assert kind(2, items=()) not in one


def test_a_mutable_default_is_refused() -> None:
    with pytest.raises(ValueError, match="mutable default"):

        @ours.dataclass
        class _Shared:
            items: list[int] = []


def test_the_standard_librarys_replace_takes_them() -> None:
    address = InetAddress("127.0.0.1", 80)
    assert dataclasses.replace(address, port=81) == InetAddress("127.0.0.1", 81)
    assert dataclasses.is_dataclass(Server)
    assert Bind(address) == Bind(address) != Bind(InetAddress("::1", 80))


def test_a_start_does_without_what_is_dear() -> None:
    dear = {"dataclasses", "inspect", "traceback", "pkgutil", "asyncio", "subprocess", "logging", "urllib.parse"}
    code = "import sys, hitlessd.cli, hitlessd.main.process; print(*sys.modules)"
    # Not the site module: what an environment's .pth files import is not ours.
    done = subprocess.run(
        [sys.executable, "-S", "-c", code], cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    assert dear.isdisjoint(done.stdout.split())
    assert "hitlessd.main.process" in done.stdout
