"""Whether a process notices that what it was made of is not there any more."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from importlib.machinery import EXTENSION_SUFFIXES
from importlib.util import find_spec
from pathlib import Path

from tests.support.processes import ROOT, poll_until

_CHILD = """
import json, os, sys
sys.path[:0] = [{root!r}, {directory!r}]
from hitlessd.main.sources import Sources, started
import plain, {library}
sources = Sources(started())
said = [sources.changed()]
{act}
said.append(sources.changed())
print(json.dumps(said))
"""
#: Of Python's own, and in a file.
_LIBRARY = "_ctypes"


def _found(directory: Path, act: str, executable: str = sys.executable, young: str = "") -> list[str]:
    """What changed() said before and after."""
    (directory / "plain.py").write_text("")
    spec = find_spec(_LIBRARY)
    assert spec and spec.origin and spec.origin.endswith(EXTENSION_SUFFIXES[0])
    shutil.copy(spec.origin, directory)
    code = _CHILD.format(root=str(ROOT), directory=str(directory), library=_LIBRARY, act=act)
    # A process is known to have begun in a tick of the clock: a file of the same one is in doubt.
    settled = (directory / "plain.py").stat().st_ctime_ns + 20_000_000
    poll_until(lambda: time.time_ns() > settled, 5, "the files are older than the process will be")
    done = subprocess.run([executable, "-c", young + code], capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert isinstance(said, list)
    return [Path(each).name for each in said]


def test_nothing_has_changed(tmp_path: Path) -> None:
    assert _found(tmp_path, "pass") == ["", ""]


def test_a_module_is_written_replaced_or_removed(tmp_path: Path) -> None:
    file = tmp_path / "plain.py"
    assert _found(tmp_path, f"open({str(file)!r}, 'w').write('1')") == ["", "plain.py"]
    other = tmp_path / "other"
    other.write_text("")
    assert _found(tmp_path, f"os.rename({str(other)!r}, {str(file)!r})") == ["", "plain.py"]
    assert _found(tmp_path, f"os.remove({str(file)!r})") == ["", "plain.py"]


def test_a_module_that_came_later(tmp_path: Path) -> None:
    (tmp_path / "late.py").write_text("")
    act = f"import late; sources.note(); assert not sources.changed(); os.remove({str(tmp_path / 'late.py')!r})"
    assert _found(tmp_path, act) == ["", "late.py"]


def test_a_library_that_no_module_names(tmp_path: Path) -> None:
    library = next(tmp_path.glob("*.so"), tmp_path / f"{_LIBRARY}{EXTENSION_SUFFIXES[0]}")
    act = f"sources._marks.pop({str(library)!r}); os.remove({str(library)!r})"
    assert _found(tmp_path, act) == ["", library.name]


def test_another_interpreter(tmp_path: Path) -> None:
    link = tmp_path / "python"
    link.symlink_to(Path(sys.executable).resolve())
    act = f"os.remove({str(link)!r}); os.symlink('/bin/true', {str(link)!r})"
    assert _found(tmp_path, act, str(link)) == ["", "python"]


def test_a_module_that_is_younger_than_the_process_may_not_be_what_was_read(tmp_path: Path) -> None:
    young = f"import os; os.utime({str(tmp_path / 'plain.py')!r})\n"
    assert _found(tmp_path, "pass", young=young) == ["plain.py", "plain.py"]
