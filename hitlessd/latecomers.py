"""Modules that a start does without, imported when it is over.

An upgrade replaces the files below a running process. Whoever imports one of its modules only then mixes two versions;
and it is the old process that has to carry out the reload that puts the new one to work.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterator

__all__ = ["WORKERS", "imports"]

#: What workers may need, and main.
WORKERS = ("hitlessd.http",)


def imports(packages: tuple[str, ...]) -> Iterator[str]:
    """Import all modules of these packages, one with each step, which gives its name. Where files cannot be read, as
    with the last descriptor gone, it ends early: what is missing is imported when it is needed."""
    # Not with pkgutil, which is as dear as ten of them.
    for package in packages:
        try:
            (directory,) = importlib.import_module(package).__path__
            entries = sorted(os.scandir(directory), key=lambda entry: entry.name)
            for name, is_package in [(entry.name, entry.is_dir()) for entry in entries]:
                if is_package and os.path.exists(f"{directory}/{name}/__init__.py"):
                    yield from imports((f"{package}.{name}",))
                elif name.endswith(".py") and not name.startswith("__"):
                    module = f"{package}.{name[:-3]}"
                    importlib.import_module(module)
                    yield module
        except (ImportError, OSError):
            return
