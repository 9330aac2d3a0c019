"""HAProxy's log-format language (configuration manual, section 8.2.6), compiled once into a function.

Texts of the language make log lines and, without a log's own rules, the values of headers in http-request rules.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import lru_cache
from typing import Any

from hitlessd.logcode import RECORDS, Code, Made, Shape, Source
from hitlessd.logfields import VARIABLES, Kind, Variable, tools

__all__ = ["HTTP_FORMAT", "TCP_FORMAT", "Formatter", "compile_format", "problem_of"]

#: Takes a LogRecord, or what a Source names.
Formatter = Callable[[Any], str]

#: What `option tcplog` stands for (section 8.2.2).
TCP_FORMAT = "%ci:%cp [%t] %ft %b/%s %Tw/%Tc/%Tt %B %ts %ac/%fc/%bc/%sc/%rc %sq/%bq"
#: What `option httplog` stands for (section 8.2.3).
HTTP_FORMAT = (
    "%ci:%cp [%tr] %ft %b/%s %TR/%Tw/%Tc/%Tr/%Ta %ST %B %CC %CS %tsc %ac/%fc/%bc/%sc/%rc %sq/%bq %hr %hs %{+Q}r"
)

_ITEM = re.compile(r"%(?:\{([^}]*)\})?(?:%|([A-Za-z][A-Za-z0-9]*)|\[)")
_FETCH = re.compile(r"\s*([A-Za-z0-9_.-]+)(?:\(([^)]*)\))?\s*")
_CONVERTERS = ("lower", "upper")
_QUOTE, _QUOTE_END = "'\"' + ", " + '\"'"
_ESCAPES = str.maketrans({'"': '\\"', "\\": "\\\\", "]": "\\]"})


def compile_format(text: str, *, log: bool = False, http: bool = True, source: Source = RECORDS) -> Formatter:
    """A function that writes a record, or what `source` has instead, in that format.

    `log`: as a log line, where spaces merge, nothing is shown as `-`, and what is fetched shows no control characters.
    `http`: variables of HTTP mode are allowed. Raises ValueError, "cannot ...", for mistakes.
    """
    return _made(text, log, http, source.shape).bind(source)


@lru_cache(maxsize=64)
def _made(text: str, log: bool, http: bool, shape: Shape) -> Made:
    return _Compiler(log, http, shape).compile(text)


def problem_of(text: str, *, http: bool = True) -> str:
    """What is wrong with a `log-format`, "" if nothing is."""
    try:
        compile_format(text, log=True, http=http)
    except ValueError as error:
        return str(error)
    return ""


class _Compiler:
    """The state of one compilation."""

    def __init__(self, log: bool, http: bool, shape: Shape) -> None:
        self._log = log
        self._http = http
        self._code = Code(shape, tools())
        self._names = self._code.names
        self._fetches = 0
        self._space = log  # what stands before ends with a space, or is nothing: another space merges with it

    def compile(self, text: str) -> Made:
        flags: frozenset[str] = frozenset()
        at, swallow = 0, False
        while at < len(text):
            percent = text.find("%", at)
            literal = text[at:] if percent < 0 else text[at:percent]
            if swallow and literal[:1].isspace():
                literal = literal[1:].lstrip()
                self._space = True
            swallow = False
            self._literal(literal)
            if percent < 0:
                break
            match = _ITEM.match(text, percent)
            if not match:
                raise ValueError(_explain(text[percent:]))
            own, name, at = match[1] or "", match[2], match.end()
            if name == "o":
                flags = _flags(flags, own)
            elif name:
                swallow = self._variable(name, _flags(flags, own), before_space=text[at : at + 1].isspace())
            elif match[0].endswith("["):
                at = self._fetch(text, at, _flags(flags, own))
            else:
                self._literal("%")
        return self._code.made()

    def _literal(self, text: str) -> None:
        if self._log:
            text = re.sub(r"\s+", " ", text)
            if self._space and text.startswith(" "):
                text = text[1:]
        if text:
            self._space = self._log and text.endswith(" ")
            self._code.text(text)

    def _value(self, expression: str) -> None:
        self._space = False
        if expression.startswith(_QUOTE) and expression.endswith(_QUOTE_END):
            self._code.text('"')
            self._code.value(expression[len(_QUOTE) : -len(_QUOTE_END)])
            self._code.text('"')
        else:
            self._code.value(expression)

    def _variable(self, name: str, flags: frozenset[str], before_space: bool) -> bool:
        """Whether the space that follows belongs to the variable: it goes when that is empty."""
        variable = VARIABLES.get(name)
        if variable is None:
            raise ValueError(f'cannot use the variable "%{name}": no such variable{_nearest(name, VARIABLES, "%")}')
        if variable.http and not self._http:
            raise ValueError(f'cannot use the variable "%{name}": it needs mode http')
        expression = self._flagged(variable, flags)
        if variable.kind is Kind.CAPTURES and "Q" not in flags and self._space and before_space and self._log:
            self._value(f"((lambda text: text and text + ' ')({expression}))")
            self._space = True
            return True
        self._value(expression)
        return False

    def _flagged(self, variable: Variable, flags: frozenset[str]) -> str:
        kind, expression = variable.kind, variable.expression
        if "X" in flags and kind is Kind.HEX:
            return f"(lambda number: '%04X' % number if number != '-' else number)({expression})"
        if "X" in flags and kind is Kind.ADDRESS:
            return f"hex_address({expression})"
        if kind is Kind.ADDRESS:
            return f"{_QUOTE}{expression}{_QUOTE_END}" if "Q" in flags else expression
        if kind in (Kind.TEXT, Kind.CAPTURES):
            return self._text(expression, flags, dash=kind is Kind.TEXT)
        return expression

    def _text(self, expression: str, flags: frozenset[str], dash: bool = True) -> str:
        if "E" in flags:
            self._names["escapes"] = _ESCAPES
            expression = f"{expression}.translate(escapes)"
        if "Q" in flags:
            return f"{_QUOTE}{expression}{_QUOTE_END}"
        return f"({expression} or '-')" if dash and self._log else expression

    def _fetch(self, text: str, at: int, flags: frozenset[str]) -> int:
        """Compile what stands in brackets from `at` on; returns the place behind them."""
        from hitlessd.samples import fetcher

        match = _FETCH.match(text, at)
        if not match:
            raise ValueError(f'cannot read "%[{text[at:]}": expected the name of a sample fetch after "%["')
        self._fetches += 1
        name = f"fetch{self._fetches}"
        self._names[name] = fetcher(match[1], match[2] or "")
        self._names["shown"] = _shown
        expression = f"shown({name}(r))"
        at = match.end()
        last = ""
        while text.startswith(",", at):
            match = _FETCH.match(text, at + 1)
            converter = match[1] if match else ""
            if not match or match[2] or converter not in _CONVERTERS:
                raise ValueError(
                    f'cannot use the converter "{converter}": expected {" or ".join(_CONVERTERS)}'
                    f"{_nearest(converter, _CONVERTERS)}"
                )
            last = converter
            at = match.end()
        if not text.startswith("]", at):
            raise ValueError(f'cannot read "%[{text[match.start() :]}": expected "]" after "{match[0].strip()}"')
        if last:
            # The others leave no trace, and Python would not read hundreds of parentheses in each other. Only ASCII
            # letters have two cases in a header.
            self._names[last] = _lower if last == "lower" else _upper
            expression = f"{last}({expression})"
        if self._log:
            expression = f"controls({expression})"
        self._value(self._text(expression, flags))
        return at + 1


def _shown(value: object) -> str:
    if isinstance(value, bytes):
        return value.decode("latin-1")
    return "" if value is None else str(int(value) if isinstance(value, bool) else value)


def _lower(text: str) -> str:
    return text.encode("latin-1", "replace").lower().decode("latin-1")


def _upper(text: str) -> str:
    return text.encode("latin-1", "replace").upper().decode("latin-1")


def _flags(flags: frozenset[str], text: str) -> frozenset[str]:
    """`flags` changed by what stands in braces, as in `+Q,-E`."""
    for word in filter(None, (part.strip() for part in text.split(","))):
        if len(word) != 2 or word[0] not in "+-" or word[1] not in "QEX":
            raise ValueError(f'cannot use the flag "{word}" in "%{{{text}}}": expected +Q, -Q, +E, -E, +X or -X')
        flags = flags | {word[1]} if word[0] == "+" else flags - {word[1]}
    return flags


def _nearest(word: str, words: Any, prefix: str = "") -> str:
    import difflib  # only who makes a mistake pays

    close = difflib.get_close_matches(word, words, 1, 0.5)
    return f'; did you mean "{prefix}{close[0]}"?' if close else ""


def _explain(rest: str) -> str:
    shown = rest[:20]
    if rest.startswith("%{") and "}" not in rest:
        return f'cannot read "{shown}": expected "}}" behind the flags'
    return f'cannot read "{shown}": expected a variable, "[" or, for the sign itself, "%%" after "%"'
