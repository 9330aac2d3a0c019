"""From the text of one file to its sections and options, each with its line: the standard library's configparser and
the line numbers that it does not keep. Knows no option; what belongs where is said elsewhere.
"""

from __future__ import annotations

import configparser
import re
from collections.abc import Iterator
from typing import Any

from hitlessd.dataclass import dataclass, field
from hitlessd.model import SourceFile, Where

from .problems import Problems, quote

__all__ = ["LINE_LIMIT", "Option", "Section", "read_sections"]

#: Lines of one file: SIZE_LIMIT leaves 20 bytes for each. configparser takes about 15 us a line, and a reload that
#: meets a wrong file must be refused in the time of a check.
LINE_LIMIT = 50_000

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")
#: A line that has quotes or backslashes, piece by piece: what is escaped, what is quoted, blanks (perhaps with the sign
#: that begins a comment), and all else. A quote that nothing closes is a character like others.
_PIECE = re.compile(r"""\\.|"(?:[^"\\]|\\.)*"|'[^']*'|\s+[#;]?|[^\s"'\\]+|.""")
_COMMENT = re.compile(r" [#;]")
#: Blanks that count, as configparser must not see them; no text contains these control characters.
_HIDE = str.maketrans(" \t", "\x01\x02")
_SHOW = str.maketrans("\x01\x02", " \t")
_HEADER = re.compile(r"\[([^]#;]*)\](?:\s+[#;].*|\s*)$")


@dataclass(slots=True, eq=False, repr=False)
class Option:
    """`name = text`, and the lines that continue it."""

    name: str
    where: Where
    lines: list[tuple[str, Where]]  # without empty lines and comments; empty when there is no value

    @property
    def text(self) -> str:
        return self.lines[0][0] if self.lines else ""


@dataclass(slots=True, eq=False, repr=False)
class Section:
    """`[title]` and its options in the order of the file. Doubled names are still in it. title None: before the first
    header."""

    title: str | None
    where: Where
    options: list[Option] = field(default_factory=list)


class _Values(dict[str, Any]):
    """configparser's store. It keeps the lines of a value in a list until the end and None for an option without value,
    to which a continuation line then cannot be added (3.11 raises AttributeError): an empty first line does for
    both."""

    def __setitem__(self, key: str, value: Any) -> None:
        super().__setitem__(key, [""] if value is None else value)


class _Parser(configparser.RawConfigParser):
    """configparser with line numbers.

    It reads an iterator line by line, so in optionxform() the number of the iterator's line is that of the option;
    section headers get theirs from the iterator itself. Both are appended to the name after a NUL, which no text
    contains. That makes every name unique: doubled ones are found by the caller, all of them, where configparser would
    stop at the first.
    """

    SECTCRE = re.compile(r"\[(?P<header>[^]]*\0\d+)\]$")

    def __init__(self) -> None:
        super().__init__(
            dict_type=_Values,
            allow_no_value=True,
            delimiters=("=",),
            comment_prefixes=("#", ";"),
            inline_comment_prefixes=(),  # feed() knows about quotes
            strict=False,
            empty_lines_in_values=True,
            default_section="\0",
            interpolation=None,
        )
        self.line = 0

    def optionxform(self, optionstr: str) -> str:
        return f"{optionstr}\0{self.line}"

    def feed(self, text: str, file: str, problems: Problems) -> Iterator[str]:
        """The lines as configparser shall see them.

        Comments become empty lines, so that a value's n-th line is the file's n-th from there. Runs of blanks become
        one, but for those in quotes: no option has a use for them, and configparser's expressions take quadratic time
        for them.
        """
        yield "[\x00" + "0]"
        for self.line, line in enumerate(text.split("\n"), 1):
            body = " ".join(line.split())
            if not body or body[0] in "#;":
                yield ""
            elif line[0] == "[":
                header = _HEADER.match(line)
                if not header:
                    problems.add(
                        Where(file, self.line),
                        f"cannot read this section header: found {quote(body)}, expected [KIND] or [KIND NAME]",
                    )
                title = " ".join(header[1].split()) if header else "\0"
                yield f"[{title}\0{self.line}]"
            elif body[0] == "=":
                problems.add(
                    Where(file, self.line), f"cannot read this line: found {quote(body)}, expected OPTION = VALUE"
                )
                yield ""
            else:
                indent = len(line) - len(line.lstrip())
                yield " " * indent + _without_comment(line, body)


def read_sections(source: SourceFile, problems: Problems) -> list[Section]:
    """Split a file. What cannot be split is told to `problems`; sections with a broken header are left out."""
    text = source.text.removeprefix("\ufeff").replace("\r\n", "\n")
    lines = text.count("\n") + 1
    if lines > LINE_LIMIT:
        problems.add(Where(source.name, 0), f"cannot read: found {lines} lines, expected at most {LINE_LIMIT}")
        return []
    control = _CONTROL.search(text)
    if control:
        line = text.count("\n", 0, control.start()) + 1
        problems.add(
            Where(source.name, line),
            f"cannot read this line: found the control character 0x{ord(control[0]):02x}, expected text",
        )
        return []
    parser = _Parser()
    try:
        parser.read_file(parser.feed(text, source.name, problems), source.name)
    except configparser.Error as error:  # nothing is known that leads here
        why = str(error).splitlines()[0]
        problems.add(Where(source.name, parser.line), f"cannot read this line: {why}")
        return []
    sections = []
    for tagged in parser.sections():
        title, _, number = tagged.rpartition("\0")
        if title == "\0":
            continue
        section = Section(title if number != "0" else None, Where(source.name, int(number)))
        for name, value in parser.items(tagged, raw=True):
            section.options.append(_option(source.name, name, value))
        sections.append(section)
    return sections


def _without_comment(line: str, body: str) -> str:
    """A line's text; `body` is it with every run of blanks made one."""
    if not any(sign in body for sign in "\"'\\"):
        comment = _COMMENT.search(body)
        return body[: comment.start()] if comment else body
    pieces = []
    for piece in _PIECE.findall(line.strip()):
        if piece.isspace():
            pieces.append(" ")
        elif piece[0].isspace():
            break
        else:
            pieces.append(piece.translate(_HIDE))
    return "".join(pieces)


def _option(file: str, tagged: str, value: str) -> Option:
    tagged, value = tagged.translate(_SHOW), value.translate(_SHOW)
    name, _, number = tagged.rpartition("\0")
    first = int(number)
    lines = [(text, Where(file, first + i)) for i, text in enumerate(value.split("\n")) if text]
    return Option(name, Where(file, first), lines)
