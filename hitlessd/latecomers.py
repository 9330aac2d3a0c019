"""Modules that a start does without, imported when it is over.

An upgrade replaces the files below a running process. Whoever imports one of its modules only then mixes two versions;
and it is the old process that has to carry out the reload that puts the new one to work.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator

__all__ = ["WORKERS", "imports"]

#: What workers may need, and main.
WORKERS = ("hitlessd.http",)
#: Of the standard library, whose files an upgrade replaces, too: in hand for a bug only.
_STANDARD = ("traceback",)


def imports(packages: tuple[str, ...]) -> Iterator[str]:
    """Import all modules of these packages, one with each step, which gives its name."""
    import pkgutil  # itself as dear as ten of them

    for name in _STANDARD:
        importlib.import_module(name)
        yield name
    for package in packages:
        for found in pkgutil.walk_packages(importlib.import_module(package).__path__, f"{package}."):
            importlib.import_module(found.name)
            yield found.name
