"""Modules that a start does without, imported when it is over.

An upgrade replaces the files below a running process. Whoever imports one of its modules only then mixes two versions;
and it is the old process that has to carry out the reload that puts the new one to work.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator

__all__ = ["WORKERS", "imports"]

#: What workers may need.
WORKERS = ("hitlessd.http",)


def imports(packages: tuple[str, ...]) -> Iterator[str]:
    """Import all modules of these packages, one with each step, which gives its name."""
    for package in packages:
        for found in pkgutil.walk_packages(importlib.import_module(package).__path__, f"{package}."):
            importlib.import_module(found.name)
            yield found.name
