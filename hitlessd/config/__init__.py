"""The configuration reader: files in, one checked and frozen Config out. Only the public face is here.

files (reading) -> ini (sections and options with their lines) -> sections (merging) -> settings (the values of one
section) -> build (inheritance, and with checks the whole); problems collects what is wrong on the way.
The reference for the format is docs/configuration.md.
"""

from __future__ import annotations

from collections.abc import Sequence

from hitlessd.errors import ConfigError
from hitlessd.model import Config, SourceFile

from .attached import Attached, is_attached
from .build import build
from .files import SIZE_LIMIT, gather, read_files
from .problems import Enough, Problems
from .resolve import Names, Resolver, system_resolver
from .sections import merge

__all__ = ["SIZE_LIMIT", "Resolver", "load", "parse", "read_files", "system_resolver"]


def load(paths: Sequence[str], *, resolver: Resolver = system_resolver) -> Config:
    """Read files and drop-in directories as one configuration.

    Host names of servers are resolved here, which may take as long as the system's name servers take.
    Raises ConfigError with every problem found.
    """
    return _parse(paths, (), resolver)


def parse(files: Sequence[SourceFile], *, resolver: Resolver = system_resolver) -> Config:
    """As load(), from texts that were read before (Config.files); a file that they attach and that is not among them is
    read. Raises ConfigError with every problem found."""
    return _parse((), tuple(files), resolver)


def _parse(paths: Sequence[str], files: tuple[SourceFile, ...], resolver: Resolver) -> Config:
    problems = Problems()
    config = Config()
    try:
        attached = Attached(file for file in files if is_attached(file))
        files = tuple(file for file in files if not is_attached(file)) + gather(paths, problems)
        whole = not problems  # files that could not be read may hold what would be missed
        merged = merge(files, problems)
        config = build(merged, files, Names(resolver), attached, problems, origin=", ".join(paths), whole=whole)
    except Enough:
        pass
    if problems:
        raise ConfigError(problems.errors())
    return config
