"""From the sections of all files to one section each: what continues, what replaces, what is given twice, what does not
belong."""

from __future__ import annotations

from collections.abc import Iterator

from hitlessd.dataclass import dataclass, field
from hitlessd.model import SourceFile, Where

from . import values
from .ini import Option, Section, read_sections
from .problems import Place, Problems, nearest, quote
from .words import ABSENT_SECTIONS, FLAGS, KINDS, NAMED, OPTIONS, SEVERAL_LINES, VALUED, absent, places

__all__ = ["Entry", "Merged", "merge"]

_EXAMPLES = {"server": "ADDRESS:PORT", "acl": "CRITERION VALUE..."}


@dataclass(slots=True, eq=False, repr=False)
class Entry:
    """A section as all files together make it. Options are named as in words.OPTIONS, or `server NAME`, `acl NAME`."""

    kind: str
    name: str
    where: Where
    options: dict[str, Option] = field(default_factory=dict)

    @property
    def title(self) -> str:
        return f"{self.kind} {self.name}" if self.name else self.kind

    def has(self, prefix: str) -> bool:
        """There is an option whose name begins like this."""
        return any(name.startswith(prefix) for name in self.options)


@dataclass(slots=True, eq=False, repr=False)
class Merged:
    """Every section of a configuration in the order of first appearance."""

    entries: dict[tuple[str, str], Entry] = field(default_factory=dict)
    headers_refused: bool = False  # there is more than what could be read

    def of(self, *kinds: str) -> Iterator[Entry]:
        return (entry for entry in self.entries.values() if entry.kind in kinds)


def merge(files: tuple[SourceFile, ...], problems: Problems) -> Merged:
    """Read and merge. A later file continues a section and replaces its options one by one, as with systemd's drop-ins;
    within one file, a section or an option that is given twice is a mistake."""
    merged = Merged()
    for source in files:
        problems.begin(source.name)
        in_file: dict[tuple[str, str], Where] = {}
        count = len(problems)
        sections = read_sections(source, problems)
        merged.headers_refused |= len(problems) > count
        for section in sections:
            if section.title is None:
                for option in section.options:
                    header = _meant_header(option)
                    why = f"expected {header}" if header else "expected a section header before it, as in [global]"
                    problems.add(option.where, f"cannot use {quote(option.name)} here: {why}")
                    merged.headers_refused |= bool(header)
                continue
            key = _key(section, problems)
            if key is None:
                merged.headers_refused = True
                continue
            place = Place(problems, section.where, " ".join(key).rstrip())
            if key in in_file:
                place.fail(
                    f"cannot begin this section again: expected it once in a file, and it began at {in_file[key]}"
                )
            elif key not in merged.entries and (other := _clash(merged, key)):
                place.fail(
                    f"cannot use the name {key[1]} twice: "
                    f"expected another than that of [{other.title}] at {other.where}"
                )
            in_file.setdefault(key, section.where)
            entry = merged.entries.setdefault(key, Entry(key[0], key[1], section.where))
            _add(entry, section, problems)
    return merged


def _key(section: Section, problems: Problems) -> tuple[str, str] | None:
    """Kind and name, or None when the header is wrong."""
    title = section.title or ""
    kind, _, name = title.partition(" ")
    place = Place(problems, section.where, title)
    if kind not in KINDS:
        expected = "[global], [defaults], [listen NAME], [frontend NAME] or [backend NAME]"
        if kind in ABSENT_SECTIONS:
            place.refuse("use this section", kind, expected, note="this version does not have it")
        else:
            place.refuse("use this section", kind, expected, near=KINDS)
        return None
    if kind in ("global", "defaults"):
        if name:
            place.refuse("name this section", name, f"[{kind}] alone")
            return None
        return kind, ""
    if not name:
        place.refuse("use this section without a name", None, f"[{kind} NAME]")
        return None
    if values.name(place, name, kind) is None:
        return None
    return kind, name


def _clash(merged: Merged, key: tuple[str, str]) -> Entry | None:
    """Another section that may not have this name, too: a listen is a frontend and a backend."""
    kind, name = key
    kinds = ("frontend", "backend") if kind == "listen" else ("listen",)
    for other in kinds:
        if kind in ("listen", "frontend", "backend") and (other, name) in merged.entries:
            return merged.entries[other, name]
    return None


def _add(entry: Entry, section: Section, problems: Problems) -> None:
    given: dict[str, Where] = {}
    for option in section.options:
        place = Place(problems, option.where, entry.title, option.name)
        name = _known(place, entry, option)
        if not name:
            continue
        if name in given:
            several = name.split(" ")[0] in SEVERAL_LINES or name in SEVERAL_LINES
            note = "; write further lines below it, indented deeper" if several else ""
            place.fail(
                f"cannot give this option twice: expected it once in a section, and it stands at {given[name]}{note}"
            )
            continue
        given[name] = option.where
        if name not in SEVERAL_LINES and name.split(" ")[0] not in SEVERAL_LINES and len(option.lines) > 1:
            text, where = option.lines[1]
            Place(problems, where, entry.title, option.name).refuse(
                "continue this option on a further line", text, "nothing",
                note="a line that is indented deeper than the one above continues it",
            )  # fmt: skip
            continue
        entry.options[name] = option


def _known(place: Place, entry: Entry, option: Option) -> str:
    """The option's name in words.OPTIONS, or `server NAME`, `acl NAME`; "" when it does not belong here."""
    name, value = option.name, option.text
    if name.startswith("["):
        place.option = ""
        place.refuse("read this section header", name, "[KIND] or [KIND NAME], beginning at the left margin")
        return ""
    first, _, rest = name.partition(" ")
    if name.startswith("no option "):
        if name[3:] in FLAGS and value:
            place.refuse("use this option with a value", value, f"`{name}` alone, or `{name[3:]} = off`")
            return ""
        if name[3:] in FLAGS:
            name = name[3:]
    elif first in NAMED:
        if name == first or " " in rest or not value:
            words = (rest if rest else value).split(" ")
            what = " ".join(words[1:]) or ("" if " " in rest else value if rest else "") or _EXAMPLES[first]
            example = f"{first} {words[0] or 'NAME'} = {what}"
            place.option = first
            place.refuse(f"read this {first}", " ".join(filter(None, (name, value))), f"`{example}`")
            return ""
        name = first
    if name not in OPTIONS:
        _refuse_unknown(place, entry, option)
        return ""
    if entry.kind not in OPTIONS[name]:
        instead = absent(name) if entry.kind == "global" else ""
        note = f"; {instead}" if instead else ""
        place.fail(f"cannot use this option in a [{entry.kind}] section: expected it in {places(name)}{note}")
        return ""
    if not value and name not in FLAGS:
        place.refuse("use this option without a value", None, f"`{option.name} = VALUE`")
        return ""
    return option.name if name in NAMED else name


def _meant_header(option: Option) -> str:
    """`[frontend www]` for HAProxy's line `frontend www`, "" for what is no header there."""
    kind, _, name = option.name.partition(" ")
    # What is indented below it is read as its value, which then does not stand on its line.
    valued = bool(option.lines) and option.lines[0][1] == option.where
    if valued or kind not in KINDS or (kind in ("global", "defaults")) == bool(name):
        return ""
    return quote(f"[{option.name}]").strip('"')


def _refuse_unknown(place: Place, entry: Entry, option: Option) -> None:
    name = option.name
    what = "use this option"
    if header := _meant_header(option):
        place.option = ""
        place.refuse("read this section header", name, header)
        return
    note = absent(name)
    if note:
        place.option = name if option.lines else name.split(" ")[0]
        place.fail(f"cannot {what}: {note}")
        return
    # HAProxy's own notation has no equals sign, though one may stand in what follows
    known = max((word for word in OPTIONS if name.startswith(word + " ")), key=len, default="")
    if known and (known not in FLAGS or known in VALUED) and (not option.lines or known in SEVERAL_LINES):
        meant = f"{name} = {option.text}" if option.lines else name
        place.option = known
        place.refuse("read this option", meant, f"`{known} = {meant[len(known) + 1 :]}`")
        return
    allowed = [word for word, kinds in OPTIONS.items() if entry.kind in kinds]
    near = allowed if nearest(name, allowed) else OPTIONS  # perhaps it is meant for another section
    place.refuse(what, name, f"an option of [{entry.kind}]", near=near)
