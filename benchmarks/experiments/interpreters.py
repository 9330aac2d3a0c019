"""Other Pythons beside this one.

    python -m benchmarks.experiments.interpreters ROUNDS NAME=ROOT:PROGRAM ...

ROOT is a directory with a Debian system, or its packages unpacked (`dpkg -x`), of any suite: PROGRAM, such as
python3.13, runs from there with the C library of its own. A NAME that ends in "jit" has PYTHON_JIT=1.
"""

import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from benchmarks.experiments.variants import Variant, compare, table

_LIBRARIES: Final = "usr/lib/x86_64-linux-gnu"
_LOADER: Final = "usr/lib64/ld-linux-x86-64.so.2"
_MODULES: Final = "/usr/lib/python3/dist-packages"


def of(name: str, root: Path, program: str, cache: str) -> Variant:
    """The variant that runs on an interpreter of another root."""
    environment = {"PYTHONHOME": f"{root}/usr", "PYTHONPATH": _MODULES, "PYTHONPYCACHEPREFIX": f"{cache}/{name}"}
    if name.endswith("jit"):
        environment["PYTHON_JIT"] = "1"
    python = (f"{root}/{_LOADER}", "--library-path", f"{root}/{_LIBRARIES}", f"{root}/usr/bin/{program}")
    return Variant(name, python, environment=environment)


def main(arguments: Sequence[str]) -> None:
    with tempfile.TemporaryDirectory() as cache:
        variants = [Variant("this one")]
        for word in arguments[1:]:
            name, _, place = word.partition("=")
            root, _, program = place.partition(":")
            variants.append(of(name, Path(root), program, cache))
        print(table(compare(variants, int(arguments[0])), "this one"))


if __name__ == "__main__":
    main(sys.argv[1:])
