"""The tables of proxies and servers, complete without scripts; the script rewrites what `data-f` names. No I/O."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from itertools import groupby
from urllib.parse import quote

from hitlessd.changes import Change
from hitlessd.model import Backend, Frontend, Server
from hitlessd.runtime.control import Control
from hitlessd.table import RowKey
from hitlessd.web.page.board import FIELDS, Board, Row, Values
from hitlessd.web.page.sections import change_text, state
from hitlessd.web.page.text import ago, anchor, byte_text, kind, number_text, shown, spark

__all__ = ["Hidden", "figures", "tables"]

#: Kinds of states that are not shown, for `;up` and `;no-maint`.
Hidden = frozenset[str]

_AT = {name: at for at, name in enumerate(FIELDS)}
#: Points of the five minutes that the process remembers; see main/trends.py.
_POINTS, _STEP = 60, 5
_RESPONSES = ("2xx", "h2"), ("3xx", "h3"), ("4xx", "h4"), ("5xx", "h5")
_BYTES = ("In", "bin"), ("Out", "bout")

Pair = tuple[Row, Values]


def figures(control: Control, board: Board) -> str:
    """The numbers of the whole process."""
    row, value = board.rows[0], board.values[0]
    tiles = [
        ("Sessions", "scur", number_text(value.scur), ""),
        ("New a second", "rate", number_text(value.rate), _spark(control, row)),
        ("In queues", "qcur", number_text(value.qcur), ""),
        ("Sessions so far", "stot", number_text(value.stot), ""),
    ]
    items = "".join(
        f'<div><dt>{name}</dt><dd><span data-f="{_AT[field]}">{text}</span>{line}</dd></div>'
        for name, field, text, line in tiles
    )
    return f'<dl class="figures" data-row="0">{items}</dl>'


def tables(control: Control, board: Board, admin: bool, hidden: Hidden) -> str:
    """A section for each proxy, a `listen` being one, in the order of the files."""
    changes: dict[tuple[str, str], list[Change]] = {}
    for change in control.changes.items.values():
        changes.setdefault((change.item.proxy, change.item.server), []).append(change)
    now = time.time()
    pairs = zip(board.rows[1:], board.values[1:], strict=True)
    drawer = _Drawer(control, changes, admin, hidden, now)
    return "".join(drawer.section(list(group)) for _, group in groupby(pairs, lambda pair: _iid(pair[0])))


def _iid(row: Row) -> int:
    owner = row.backend or row.item
    assert isinstance(owner, Frontend | Backend)
    return owner.iid


def _spark(control: Control, row: Row) -> str:
    points = control.trend(row.key)
    known = ",".join(map(str, points))
    return (
        '<svg class="spark" viewBox="0 0 100 20" preserveAspectRatio="none" aria-hidden="true"'
        f' data-spark="{row.index}" data-points="{known}"><polyline points="{spark(points, _POINTS)}"/></svg>'
    )


class _Drawer:
    def __init__(
        self,
        control: Control,
        changes: Mapping[tuple[str, str], Sequence[Change]],
        admin: bool,
        hidden: Hidden,
        now: float,
    ) -> None:
        self._control, self._changes, self._admin, self._hidden, self._now = control, changes, admin, hidden, now

    def section(self, pairs: Sequence[Pair]) -> str:
        """One proxy."""
        first = pairs[0][0]
        name, http = first.key.proxy, first.http
        kinds = {row.key.kind for row, _ in pairs}
        word = "listen" if {"frontend", "backend"} <= kinds else "frontend" if "frontend" in kinds else "backend"
        busy = next(row for row, _ in pairs if row.key.kind in ("frontend", "backend"))
        titles = [
            *(("State", "c6"), ("Since", "c5"), ("Sessions", "n c7")),
            ("Requests/s" if http else "Sessions/s", "n c6"),
            ("Queue", "n c4"),
            *((title, "n c4 wide" if http else "n c8 wide") for title, _ in (_RESPONSES if http else _BYTES)),
            *(("Errors", "n c4"), ("Weight", "n c4"), ("Check", "c9")),
        ]
        if self._admin:
            titles.append(("Change", "c11"))
        heads = "".join(f'<th scope="col" class="{css}"{_span(title)}>{title}</th>' for title, css in titles)
        rows = "".join(self._row(row, value) for row, value in pairs)
        at = f"proxy-{first.index}"
        return (
            f'<section class="proxy" id="{anchor(name, "")}" aria-labelledby="{at}">'
            f'<header><h2 id="{at}">{shown(name)}</h2>'
            f'<span class="mode">{word}, {"HTTP" if http else "TCP"}</span>{_spark(self._control, busy)}</header>'
            '<div class="scroll">'
            f'<table class="servers"><caption class="unseen">{word} {shown(name)}</caption>'
            f'<thead><tr><th scope="col">Name</th>{heads}</tr></thead><tbody>{rows}</tbody></table></div></section>'
        )

    def _row(self, row: Row, value: Values) -> str:
        item, kind_ = row.item, row.key.kind
        name = row.key.server if row.backend else "Frontend" if kind_ == "frontend" else "Backend"
        hidden = " hidden" if kind(value.state) in self._hidden and kind_ == "server" else ""
        id_ = anchor(row.key.proxy, row.key.server or kind_.upper())
        marks = self._marks(row)
        server = isinstance(item, Server)
        cells = [
            f'<td data-l="State">{state(value.state, _f("state"))}</td>',
            f'<td class="since" data-l="Since"{_f("since")}>{ago(self._now - value.since)}</td>'
            if value.since
            else '<td class="none"></td>',
            self._sessions(row, value),
            _number("Rate", "rate", value, "n rate"),
            _number("Queue", "qcur", value) if kind_ != "frontend" else '<td class="n none"></td>',
        ]
        if row.http:
            cells += [_number(title, field, value, "n wide") for title, field in _RESPONSES]
        else:
            cells += [
                f'<td class="n wide"{_span(title)}{_f(field)}>{byte_text(getattr(value, field))}</td>'
                for title, field in _BYTES
            ]
        cells.append(_number("Errors", "err", value))
        cells.append(self._weight(row, value) if server else '<td class="n none"></td>')
        cells.append(_check(value) if server else '<td class="none"></td>')
        if self._admin:
            cells.append(self._buttons(row, value))
        backup = ' <span class="tag">backup</span>' if isinstance(item, Server) and item.backup else ""
        if isinstance(item, Server) and self._admin:
            backup += f' <span class="where">{shown(str(item.address))}</span>'
        return (
            f'<tr class="{kind_}" data-row="{row.index}" id="{id_}"{hidden}>'
            f'<th scope="row">{shown(name)}{backup}{marks}</th>{"".join(cells)}</tr>'
        )

    def _marks(self, row: Row) -> str:
        server = row.key.server
        kinds = ("frontend",) if row.key.kind == "frontend" else ("server",) if server else ()
        found = [
            change_text(change)
            for change in self._changes.get((row.key.proxy, server), ())
            if change.item.kind.startswith(kinds or ("none",))
        ]
        return "".join(f' <span class="tag changed" title="changed at run time">{shown(text)}</span>' for text in found)

    def _sessions(self, row: Row, value: Values) -> str:
        limit = f'<span class="of"> of {number_text(row.limit)}</span>' if row.limit else ""
        return f'<td class="n" data-l="Sessions"><span{_f("scur")}>{number_text(value.scur)}</span>{limit}</td>'

    def _weight(self, row: Row, value: Values) -> str:
        text = f"<span{_f('weight')}>{value.weight}</span>"
        if self._admin:
            target = _target("weight", row.key)
            text = f'<button name="do" value="{target}" class="text" title="Set the weight">{text}</button>'
        return f'<td class="n" data-l="Weight">{text}</td>'

    def _buttons(self, row: Row, value: Values) -> str:
        actions: tuple[tuple[str, str], ...] = ()
        if row.key.kind == "server":
            actions = ("ready", "Ready"), ("drain", "Drain"), ("maint", "Maint")
        elif row.key.kind == "frontend":
            actions = ("on", "On"), ("off", "Off")
        if not actions:
            return '<td class="change none"></td>'
        buttons = "".join(
            f'<button name="do" value="{_target(action, row.key)}" data-a="{action}"'
            f' aria-pressed="{"true" if value.admin == action else "false"}">{title}</button>'
            for action, title in actions
        )
        label = shown(row.key.server or row.key.proxy)
        group = f'<span class="choice" role="group" aria-label="{label}">{buttons}</span>'
        return f'<td class="change">{group}</td>'


def _check(value: Values) -> str:
    why = f'<span class="why"{_f("why")}>{shown(value.why)}</span>'
    return f'<td class="checked" data-l="Check"><span{_f("check")}>{shown(value.check)}</span>{why}</td>'


def _span(title: str) -> str:
    """Bytes in and out take the place of four classes of responses."""
    return ' colspan="2"' if title in ("In", "Out") else ""


def _f(field: str) -> str:
    return f' data-f="{_AT[field]}"'


def _number(title: str, field: str, value: Values, css: str = "n") -> str:
    return f'<td class="{css}" data-l="{title}"{_f(field)}>{number_text(getattr(value, field))}</td>'


def _target(action: str, key: RowKey) -> str:
    """What a button's value says: see actions.py."""
    return "/".join(quote(word, safe="", errors="replace") for word in (action, key.proxy, key.server) if word)
