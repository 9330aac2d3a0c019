"""Events, their catalog and their page: one entry each, with fields that are really there."""

from __future__ import annotations

import ast
import re
import subprocess
from collections import defaultdict
from functools import cache
from pathlib import Path

import pytest

from hitlessd.events import Event
from hitlessd.log import SEVERITIES
from tests.support.processes import ROOT

CATALOG = ROOT / "units" / "hitlessd.catalog"
PAGE = ROOT / "docs" / "journal.md"
#: On every entry of ours, or of journald's (systemd.journal-fields(7)).
_ALWAYS = {"MESSAGE", "PRIORITY", "HITLESSD_GENERATION", "_PID", "_SYSTEMD_UNIT"}
#: Arguments that are no fields.
_NO_FIELDS = {"event", "about", "fields", "generation"}


def _named(node: ast.AST) -> set[str]:
    return {
        each.attr
        for each in ast.walk(node)
        if isinstance(each, ast.Attribute) and isinstance(each.value, ast.Name) and each.value.id == "Event"
    }


def _keys(function: ast.AST, name: str) -> set[str]:
    """The keys of the dict displays that are assigned to that name."""
    found: set[str] = set()
    for node in ast.walk(function):
        if isinstance(node, ast.Assign | ast.AnnAssign) and node.value:
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            if any(isinstance(target, ast.Name) and target.id == name for target in targets):
                displays = [each for each in ast.walk(node.value) if isinstance(each, ast.Dict)]
                found |= {str(key.value) for each in displays for key in each.keys if isinstance(key, ast.Constant)}
    return found


class _Calls:
    """Every call in the package that logs."""

    def __init__(self) -> None:
        self.used: set[str] = set()
        self.fields: dict[str, set[str]] = defaultdict(set)
        self.common: dict[str, set[str]] = {}  # those that it always has
        self.nameless: list[str] = []  # severe, and without an event
        for path in sorted((ROOT / "hitlessd").rglob("*.py")):
            text = path.read_text()
            if "import Event\n" in text or "og(" in text:
                self._read(path, ast.parse(text))

    def _read(self, path: Path, tree: ast.Module) -> None:
        if path.name == "states.py":
            return  # its events are others
        for function in [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]:
            for call in [node for node in ast.walk(function) if isinstance(node, ast.Call)]:
                self._call(path, function, call)
            if path.parent.name != "handover":
                self.used |= _named(function)

    def _call(self, path: Path, function: ast.AST, call: ast.Call) -> None:
        words = {keyword.arg: keyword.value for keyword in call.keywords if keyword.arg}
        if "event" in words:
            names = set(words) - _NO_FIELDS
            for keyword in call.keywords:
                if keyword.arg in (None, "fields") and isinstance(keyword.value, ast.Name):
                    names |= _keys(function, keyword.value.id)
            for event in _named(words["event"]):
                self.fields[event] |= names
                self.common[event] = self.common.get(event, names) & names
            return
        called = getattr(call.func, "attr", getattr(call.func, "id", ""))
        if called == "complain" and path.name != "park.py":
            self.nameless.append(f"{path.relative_to(ROOT)}:{call.lineno}")
        elif call.args and isinstance(call.args[0], ast.Constant):
            severe = call.args[0].value in SEVERITIES[: SEVERITIES.index("notice")]
            if severe and called in ("log", "_log", "_quota", "quota"):
                self.nameless.append(f"{path.relative_to(ROOT)}:{call.lineno}")


calls = cache(_Calls)


def _catalog() -> dict[str, tuple[dict[str, str], str]]:
    """Headers and text of each entry, by id."""
    found: dict[str, tuple[dict[str, str], str]] = {}
    for entry in re.split(r"^-- ", CATALOG.read_text(), flags=re.MULTILINE)[1:]:
        head, _, text = entry.partition("\n\n")
        message_id, *headers = head.splitlines()
        assert message_id not in found, message_id
        found[message_id] = (dict(line.split(": ", 1) for line in headers), text.strip())
    return found


def test_ids_are_unique_and_whole() -> None:
    assert all(re.fullmatch("[0-9a-f]{32}", event.message_id) for event in Event)
    assert len({event.message_id for event in Event}) == len(Event)


def test_every_event_is_logged() -> None:
    assert {event.name for event in Event} - calls().used == set()


def test_whatever_is_a_warning_or_worse_can_be_found() -> None:
    """Each such line needs an `event=` of hitlessd/events.py."""
    assert calls().nameless == []


def test_the_catalog_explains_every_event_and_nothing_else() -> None:
    by_id = {event.message_id: event for event in Event}
    found = _catalog()
    assert [by_id[message_id].name if message_id in by_id else message_id for message_id in found] == [
        event.name for event in Event
    ]


@pytest.mark.parametrize("event", Event, ids=lambda event: event.name)
def test_an_entry_of_the_catalog(event: Event) -> None:
    headers, text = _catalog()[event.message_id]
    assert list(headers) == ["Subject", "Defined-By", "Documentation"]
    assert headers["Defined-By"] == "hitlessd"
    assert headers["Documentation"].startswith("man:hitless")
    assert 60 < len(text) < 1000
    substituted = set(re.findall(r"@([A-Z_]+)@", headers["Subject"] + text))
    given = {f"HITLESSD_{name.upper()}" for name in calls().common.get(event.name, ())}
    assert substituted <= given | _ALWAYS


def test_systemd_takes_the_catalog(tmp_path: Path) -> None:
    """Into a database of its own, from which it then reads our entries."""
    directory = tmp_path / "usr/lib/systemd/catalog"
    directory.mkdir(parents=True)
    (tmp_path / "var/lib/systemd/catalog").mkdir(parents=True)
    (directory / CATALOG.name).write_text(CATALOG.read_text())

    def journalctl(*arguments: str) -> str:
        done = subprocess.run(
            ["journalctl", f"--root={tmp_path}", *arguments], capture_output=True, text=True, timeout=30, check=True
        )
        assert done.stderr == ""
        return done.stdout

    journalctl("--update-catalog")
    listed = journalctl("--list-catalog").splitlines()
    assert {line.split()[0] for line in listed} == {event.message_id for event in Event}
    assert all(line.split(None, 1)[1].startswith("hitlessd: ") for line in listed)
    shown = journalctl("--dump-catalog", Event.SERVER_DOWN.message_id)
    assert _catalog()[Event.SERVER_DOWN.message_id][1] in shown


def test_the_page_has_a_row_for_every_event() -> None:
    """What stands there is what this builds: copy it from the failure when an event has changed."""
    rows = []
    for event in Event:
        fields = ", ".join(f"`{name.upper()}`" for name in sorted(calls().fields[event.name]))
        rows.append(f"| `{event.name}` | `{event.message_id}` | {event.meaning} | {fields} |")
    found = [line for line in PAGE.read_text().splitlines() if re.match(r"\| `[A-Z_]+` \| `[0-9a-f]{32}`", line)]
    assert "\n".join(found) == "\n".join(rows)


def test_the_page_explains_every_field() -> None:
    explained = set(re.findall(r"^\| `HITLESSD_([A-Z_]+)` \|", PAGE.read_text(), re.MULTILINE))
    used = {name.upper() for names in calls().fields.values() for name in names}
    assert explained == used | {"GENERATION", "SUPPRESSED"}


def test_what_the_page_asks_the_journal_for_exists() -> None:
    ids = {event.message_id for event in Event}
    named = set(re.findall(r"MESSAGE_ID=([0-9a-f]+)", PAGE.read_text()))
    assert named and named <= ids
