"""The worker compiled, by Cython and by mypyc, beside the same source as it is.

    python -m benchmarks.experiments.compiled [ROUNDS]

Wants Cython 3, setuptools, mypy, gcc and Python's headers. All is built in copies of the tree in a temporary directory
(two to three minutes). Cython takes the source unchanged. mypyc takes seven modules of the TCP path, after edits that
its native classes need.
"""

import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from benchmarks.experiments.variants import Variant, compare, copy_tree, table

__all__ = ["with_cython", "with_mypyc"]

_PATTERNS: Final = ("worker/**/*.py", "http/*.py", "table.py", "parking/book.py", "parking/park.py", "logrecord.py")
_MODULES: Final = ("relay", "connection", "frontend", "loop", "counters", "backend", "timers")
_IMPORT: Final = "from mypy_extensions import mypyc_attr\n"
_OPEN: Final = "@mypyc_attr(allow_interpreted_subclasses=True)\n"
_FOREIGN: Final = "@mypyc_attr(native_class=False)\n"


def with_cython(directory: Path) -> Path:
    """A copy with everything of the worker and of HTTP as extension modules."""
    tree = copy_tree(directory)
    files = {file for pattern in _PATTERNS for file in (tree / "hitlessd").glob(pattern)}
    names = sorted(str(file) for file in files if file.name != "__init__.py")
    _build([sys.executable, "-m", "Cython.Build.Cythonize", "-3", "--inplace", "--parallel", "2", *names], tree)
    return tree


def with_mypyc(directory: Path) -> Path:
    """A copy with the TCP path as native classes."""
    tree = copy_tree(directory)
    worker = tree / "hitlessd" / "worker"
    for name in _MODULES:
        file = worker / f"{name}.py"
        text = file.read_text()
        # An alias in a class body is no method there.
        alias = "    def looked_at(self) -> float:\n        return self.deadline()\n"
        text = text.replace("    looked_at = deadline\n", alias)
        # HTTP's classes, which stay as they are, derive from these two; and these derive from C's.
        text = re.sub(r"^(class (?:Side|Connection):)", _OPEN + r"\1", text, flags=re.M)
        text = re.sub(r"^(class _Accepting\w*\()", _FOREIGN + r"\1", text, flags=re.M)
        if "@mypyc_attr" in text:
            text = text.replace("\nimport ", f"\n{_IMPORT}import ", 1)
        file.write_text(text)
    names = [f"hitlessd/worker/{name}.py" for name in _MODULES]
    _build([sys.executable, "-m", "mypyc", *names], tree)
    return tree


def _build(command: Sequence[str], directory: Path) -> None:
    done = subprocess.run(command, cwd=directory, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"cannot compile: {done.stdout[-2000:]}{done.stderr[-2000:]}")


def main(arguments: Sequence[str]) -> None:
    rounds = int(arguments[0]) if arguments else 5
    with tempfile.TemporaryDirectory() as text:
        variants = [Variant("as it is")]
        for name, build in (("Cython", with_cython), ("mypyc", with_mypyc)):
            directory = Path(text) / name
            directory.mkdir()
            variants.append(Variant(name, tree=build(directory)))
        print(table(compare(variants, rounds), "as it is"))


if __name__ == "__main__":
    main(sys.argv[1:])
