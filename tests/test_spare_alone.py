"""A spare without the rest of a main process: what it is when it is summoned, and why it declines to be."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
from pathlib import Path

from tests.support.processes import ROOT

#: Of a main process: forks a spare, acts, and prints what the last act gave. A successor tells of itself, as `said`.
_PROGRAM = """
import json, os, resource, signal, sys, time
sys.path.insert(0, {root!r})
from hitlessd.errors import PeerError
from hitlessd.main import spare
spare._PATIENCE = 20.0
def tell(said):
    print(json.dumps(said), flush=True)
    os._exit(0)
def summon(spare):
    try:
        successor, sock = spare.summon("nonce")
    except PeerError as error:
        tell(str(error))
    successor.wait(20)
    os._exit(0)
{before}
place = spare.fork_spare()
if place.summons:
    {successor}
{act}
summon(place.spare)
"""


def _said(
    act: str = "pass", *, before: str = "", successor: str = "tell('it is')", wrapper: tuple[str, ...] = ()
) -> str:
    code = _PROGRAM.format(root=str(ROOT), before=before, successor=successor, act=act)
    environment = {name: value for name, value in os.environ.items() if name != "TZ"}
    done = subprocess.run(
        [*wrapper, sys.executable, "-X", "dev", "-W", "error", "-c", code],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
        env=environment,
    )
    assert done.stderr == ""
    return str(json.loads(done.stdout))


def test_a_summoned_one_returns() -> None:
    assert _said() == "it is"


def test_nothing_that_one_generation_has_prepared_is_done_by_the_next(tmp_path: Path) -> None:
    """What it leaves in memory would add up over thousands of reloads."""
    notes = tmp_path / "notes"
    before = f"""
rehearse = spare.prepare
def prepare(packages):
    with open({str(notes)!r}, "a") as file:
        file.write(" ".join(packages) + ";")
    rehearse(packages)
spare.prepare = prepare
"""
    successor = """
    place.spare.prepare(["hitlessd.http"])
    if place.summons.nonce == "last":
        tell("it is")
    successor, sock = place.spare.summon("last")
    successor.wait(20)
    os._exit(0)
"""
    assert _said('place.spare.prepare(["hitlessd.http"])', before=before, successor=successor.strip()) == "it is"
    assert notes.read_text() == "hitlessd.http;"


def test_packages_that_are_being_replaced_are_its_end_without_a_traceback(tmp_path: Path) -> None:
    package = tmp_path / "halfway"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "module.py").write_text("half = (\n")
    said = _said('place.spare.prepare(["halfway"])', before=f"sys.path.append({str(tmp_path)!r})")
    assert said.startswith("it cannot import what it needs: ")


def test_what_was_replaced_before_the_fork_may_not_be_what_was_read(tmp_path: Path) -> None:
    module = tmp_path / "plain.py"
    module.write_text("")
    # A process is known to have begun in a tick of the clock.
    before = f"""
sys.path.append({str(tmp_path)!r})
import plain
os.utime({str(module)!r})
while time.time_ns() < os.stat({str(module)!r}).st_ctime_ns + 20_000_000:
    pass
"""
    assert _said(before=before) == f"{module} has changed"


def test_a_fork_that_fails() -> None:
    before = """
main = os.getpid()
fork = spare.fork_orphan
def fails(beforehand):
    if os.getpid() != main:
        raise OSError(11, "cannot fork")
    return fork(beforehand)
spare.fork_orphan = fails
"""
    assert _said(before=before) == "cannot fork"


def test_a_heir_that_has_died_is_done_without() -> None:
    before = """
Spare = spare.Spare
def made(line, pid):
    if os.getpid() != main:
        raise PeerError("there is no such process")
    return Spare(line, pid)
spare.Spare = made
main = os.getpid()
"""
    assert _said(before=before, successor="tell(f'{place.spare}')") == "None"


def test_it_keeps_nothing_above_a_limit_that_was_lowered() -> None:
    before = "os.dup2(1, 400); resource.setrlimit(resource.RLIMIT_NOFILE, (300, 300))"
    assert _said(before=before, successor="tell(os.path.lexists('/proc/self/fd/400'))") == "False"


def test_no_signal_of_a_main_process_ends_it_before_it_is_one() -> None:
    successor = (
        "[signal.raise_signal(number) for number in (signal.SIGHUP, signal.SIGINT, signal.SIGUSR2)]; tell('it is')"
    )
    assert _said(successor=successor) == "it is"


def test_soft_limits_are_passed_on() -> None:
    act = """
soft, hard = resource.getrlimit(resource.RLIMIT_STACK)
resource.setrlimit(resource.RLIMIT_STACK, (4 << 20 if soft != 4 << 20 else 5 << 20, hard))
"""
    assert _said(act) == "limits, priority or CPUs of this process have changed"
    # Except for what each main process does by itself.
    act = """
soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (hard - 1, hard))
"""
    assert _said(act) == "it is"


def test_it_goes_by_the_time_zone_of_now(tmp_path: Path) -> None:
    zone = tmp_path / "zone"

    def hours(count: int) -> bytes:
        """A file of tzfile(5) for one place without a summer time."""
        return (
            b"TZif"
            + bytes(16)
            + struct.pack(">6i", 0, 0, 0, 0, 1, 4)
            + struct.pack(">iBB", count * 3600, 0, 0)
            + b"HERE"[:3]
            + b"\0"
        )

    zone.write_bytes(hours(3))
    mount = 'mount --bind "$0" "$(readlink -f /etc/localtime)" && exec "$@"'
    wrapper = ("unshare", "--mount", "sh", "-c", mount, str(zone))
    act = f"""
assert time.strftime("%z") == "+0300", time.strftime("%z")
with open({str(zone)!r}, "wb") as file:
    file.write({hours(5)!r})
os.utime({str(zone)!r}, (1, 1))
"""
    assert _said(act, successor="tell(time.strftime('%z'))", wrapper=wrapper) == "+0500"
