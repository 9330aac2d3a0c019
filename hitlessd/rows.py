"""The names of the shared table's rows: those that it was made with, and those that are taken from its spare ones.

A spare row gets its name in an area of fixed size, whose first word, the length, is written last: who dies in between
leaves an unused row. Rows are taken in order and never given back, so that a reader who has seen some only looks at the
next one.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import NamedTuple

from hitlessd.model import Config

__all__ = ["AREA", "PROCESS", "RowKey", "SpareNames", "dump_keys", "load_keys", "row_keys"]

#: Words of an area: the length in bytes, and the name as JSON.
AREA = 64


class RowKey(NamedTuple):
    """What a row is about; kind is process, frontend, backend or server."""

    kind: str
    proxy: str = ""
    server: str = ""


PROCESS = RowKey("process")


def row_keys(config: Config) -> list[RowKey]:
    """The rows that a configuration needs, in its own order; the process row is the first."""
    keys = [PROCESS]
    keys += [RowKey("frontend", frontend.name) for frontend in config.frontends]
    for backend in config.backends:
        keys.append(RowKey("backend", backend.name))
        keys += [RowKey("server", backend.name, server.name) for server in backend.servers]
    return keys


def dump_keys(keys: Sequence[RowKey]) -> bytes:
    return json.dumps(keys).encode()


def load_keys(text: bytes) -> list[RowKey]:
    """Raises ValueError, RecursionError for what dump_keys() has not written."""
    keys = json.loads(text)
    if not isinstance(keys, list) or not all(_is_key(key) for key in keys):
        raise ValueError("its keys make no sense")
    return [RowKey(*key) for key in keys]


def _is_key(key: object) -> bool:
    return isinstance(key, list) and len(key) == 3 and all(isinstance(word, str) for word in key)


class SpareNames:
    """The areas of all spare rows: words of the table."""

    def __init__(self, words: memoryview, count: int, area: int) -> None:
        """`words` are unsigned 64-bit ones, `area` how many each row has, 2 or more."""
        self._words = words
        self.area = area
        self.count = count

    def read(self, number: int) -> RowKey | None:
        """The name of a spare row, counted from 0; None when it is not taken, or there is none of that number.

        Raises ValueError, RecursionError for what write() has not written.
        """
        if number >= self.count:
            return None
        length = self._words[number * self.area]
        if not length:
            return None
        text = self._text(number)
        if length > len(text):
            raise ValueError("a name is longer than its area")
        key = json.loads(text[:length].tobytes())
        if not _is_key(key):
            raise ValueError("a name makes no sense")
        return RowKey(*key)

    def write(self, number: int, key: RowKey) -> None:
        """Take a spare row. Raises ValueError when the name is too long for its area."""
        name = json.dumps(key, separators=(",", ":"), ensure_ascii=False).encode()
        text = self._text(number)
        if len(name) > len(text):
            raise ValueError(f"its name has {len(name)} bytes, there is room for {len(text)}")
        text[: len(name)] = name
        self._words[number * self.area] = len(name)

    def close(self) -> None:
        self._words.release()

    def _text(self, number: int) -> memoryview:
        start = number * self.area
        return self._words[start + 1 : start + self.area].cast("B")
