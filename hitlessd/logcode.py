"""Makes one Python function of a text with expressions in it, for logs: twenty calls a line would take as long as all
the rest of it.

Expressions are over `r`, a LogRecord. Where it is known what stands behind the record, a Source says of each of its
attributes how it is had from there, and no record is made at all: the function reads what its text asks for and nothing
else, each thing once.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping
from types import CodeType
from typing import Any, NamedTuple

from hitlessd.dataclass import dataclass, field

__all__ = ["RECORDS", "Code", "Made", "Shape", "Source"]

_TOKEN = re.compile(r"\br\b(?:\.(\w+))?")
_RECORD = "_record"
#: Of every record.
_DERIVED = {"_began": "r.request_began if r.request_began >= 0.0 else r.accepted"}
_CONSTANT = {"_nothing": ""}


@dataclass(frozen=True, eq=False)
class Shape:
    """What a function is given, and how it finds in there what expressions say of `r`. Compared by identity: what was
    compiled for one is remembered, as thousands of frontends may want the same."""

    argument: str = "r"
    #: Expressions over `r`, the argument and the source's names; others are attributes of the argument.
    attributes: Mapping[str, str] = field(default_factory=dict)
    #: Attributes that never change.
    constants: Mapping[str, Any] = field(default_factory=dict)
    #: The LogRecord itself, for who cannot do without.
    record: str = "r"
    #: Is put before the parentheses of a call of wall().
    wall: str = "r.wall"


class Source(NamedTuple):
    """A shape with what it needs of one frontend."""

    shape: Shape
    names: Mapping[str, Any] = {}


#: Records are given.
RECORDS = Source(Shape())


class Made(NamedTuple):
    """A function but for the names of a source."""

    code: CodeType
    names: Mapping[str, Any]

    def bind(self, source: Source) -> Callable[[Any], str]:
        """The function: it takes what the source's shape names."""
        names = {**self.names, **source.names}
        exec(self.code, names)
        made: Callable[[Any], str] = names["made"]
        return made


class Code:
    """A text that grows from left to right, and the function that it becomes."""

    def __init__(self, shape: Shape, names: Mapping[str, Any]) -> None:
        """`names`: what the expressions may use."""
        self.names: dict[str, Any] = dict(names)
        self._shape = shape
        self._constants = {**_CONSTANT, **shape.constants}
        self._attributes = {**_DERIVED, **shape.attributes}
        self._parts: list[tuple[str, bool]] = []  # text, or an expression
        self._uses: Counter[str] = Counter()
        self._statements: list[str] = []
        self._placed: set[str] = set()

    def text(self, text: str) -> None:
        self._parts.append((text, False))

    def value(self, expression: str) -> None:
        """What an expression says, as str() writes it. What is known beforehand becomes text."""
        used = [match[1] or _RECORD for match in _TOKEN.finditer(expression)]
        if used and all(name in self._constants for name in used):
            constants = {f"_{name}": self._constants[name] for name in used}
            known = _TOKEN.sub(lambda match: f"_{match[1]}", expression)
            self.text(str(eval(known, {**self.names, **constants})))
        else:
            self._parts.append((expression, True))

    def made(self) -> Made:
        """All of it."""
        for part, live in self._parts:
            if live:
                self._count(part)
        template, values = [], []
        for part, live in self._parts:
            template.append("%s" if live else part.replace("%", "%%"))
            if live:
                values.append(f"{self._place(part)}, ")
        statements = "".join(f"    {line}\n" for line in self._statements)
        result = f"    return {''.join(template)!r} % ({''.join(values)})\n"
        # The values are ours and nothing of the text but what repr() made of it is in here, as with a dataclass.
        text = f"def made({self._shape.argument}):\n{statements}{result}"
        return Made(compile(text, "<log-format>", "exec"), self.names)

    def _meaning(self, name: str) -> str:
        """How an attribute is had, "" if by its name."""
        return self._shape.record if name == _RECORD else self._attributes.get(name, "")

    def _count(self, expression: str) -> None:
        for match in _TOKEN.finditer(expression):
            name = match[1] or _RECORD
            self._uses[name] += 1
            if self._uses[name] == 1 and (meaning := self._meaning(name)) != "r":
                self._count(meaning)

    def _place(self, expression: str) -> str:
        return _TOKEN.sub(lambda match: self._place_one(match[1] or _RECORD), expression)

    def _place_one(self, name: str) -> str:
        if name == "wall":
            return self._shape.wall
        if name in self._constants:
            # Of the immutable kinds that repr() writes as Python reads them.
            return repr(self._constants[name])
        meaning = self._meaning(name)
        if meaning == "r":
            return "r"
        how = f"({self._place(meaning)})" if meaning else f"{self._shape.argument}.{name}"
        if self._uses[name] == 1:
            return how
        local = f"_{name}"
        if name not in self._placed:
            self._placed.add(name)
            self._statements.append(f"{local} = {how}")
        return local
