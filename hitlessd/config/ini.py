"""From the text of one file to its sections and options, each with its line. Knows no option; what belongs where is
said elsewhere.

The format is that of the standard library's configparser, with `=` alone between an option and its value, which may be
missing, and with comments that know about quotes. configparser itself keeps no line numbers and would take half the
time in which thousands of servers are read.
"""

from __future__ import annotations

import re

from hitlessd.dataclass import dataclass, field
from hitlessd.model import SourceFile, Where

from .problems import Problems, quote

__all__ = ["LINE_LIMIT", "Option", "Section", "read_sections"]

#: Lines of one file: SIZE_LIMIT leaves 20 bytes for each, and a reload that meets a wrong file must be refused in the
#: time of a check.
LINE_LIMIT = 50_000

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")
#: A line that has quotes or backslashes, piece by piece: what is escaped, what is quoted, blanks (perhaps with the sign
#: that begins a comment), and all else. A quote that nothing closes is a character like others.
_PIECE = re.compile(r"""\\.|"(?:[^"\\]|\\.)*"|'[^']*'|\s+[#;]?|[^\s"'\\]+|.""")
_QUOTING = re.compile(r"""["'\\]""")
_COMMENT = re.compile(r" [#;]")
#: Blanks that count, as nobody may strip them; no text contains these control characters.
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


def read_sections(source: SourceFile, problems: Problems) -> list[Section]:
    """Split a file. What cannot be split is told to `problems`; sections with a broken header are left out."""
    text = source.text.removeprefix("\ufeff").replace("\r\n", "\n")
    lines = text.count("\n") + 1
    if lines > LINE_LIMIT:
        problems.add(Where(source.name, 0), f"cannot read: found {lines} lines, expected at most {LINE_LIMIT}")
        return []
    control = _CONTROL.search(text)
    if control:
        problems.add(
            Where(source.name, text.count("\n", 0, control.start()) + 1),
            f"cannot read this line: found the control character 0x{ord(control[0]):02x}, expected text",
        )
        return []
    section = Section(None, Where(source.name, 0))
    sections = [section]
    option: Option | None = None
    indent = 0  # of the option's line; what is indented deeper continues it
    for number, line in enumerate(text.split("\n"), 1):
        body = " ".join(line.split())
        if not body or body[0] in "#;":
            continue
        where = Where(source.name, number)
        if line[0] == "[":
            section, option, indent = _section(line, body, where, problems), None, 0
            if section.title is not None:
                sections.append(section)
            continue
        if body[0] == "=":
            problems.add(where, f"cannot read this line: found {quote(body)}, expected OPTION = VALUE")
            continue
        # Runs of blanks become one, but for those in quotes: no option has a use for them.
        said = _without_comment(line, body)
        depth = len(line) - len(line.lstrip())
        if option is not None and depth > indent:
            option.lines.append((_shown(said), where))
            continue
        indent = depth
        name, _, value = said.partition("=")
        value = value.strip()
        option = Option(_shown(name.rstrip()), where, [(_shown(value), where)] if value else [])
        section.options.append(option)
    return sections


def _section(line: str, body: str, where: Where, problems: Problems) -> Section:
    """That of a header; without a title when it is broken."""
    header = _HEADER.match(line)
    if not header:
        found = quote(body)
        problems.add(where, f"cannot read this section header: found {found}, expected [KIND] or [KIND NAME]")
        return Section(None, where)
    return Section(" ".join(header[1].split()), where)


def _without_comment(line: str, body: str) -> str:
    """A line's text; `body` is it with every run of blanks made one."""
    if not _QUOTING.search(body):
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
    return "".join(pieces).strip()


def _shown(text: str) -> str:
    return text.translate(_SHOW) if "\x01" in text or "\x02" in text else text
