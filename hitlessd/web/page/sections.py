"""The parts of the page that are no tables of servers: what is wrong, what operators changed, generations, reloads.

Each is HTML that says the same until something happens: ages are the script's affair. No I/O.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence

from hitlessd.changes import Change
from hitlessd.runtime.control import Control, GenerationInfo, ReloadOutcome
from hitlessd.web.page.board import Board, Row, Values
from hitlessd.web.page.text import anchor, clock, kind, number_text, phrase, shown

__all__ = ["Sections", "change_text", "state"]

#: Servers that are listed as trouble, reloads that are listed at all, characters of a reason.
_MOST_TROUBLES, _MOST_RELOADS, _MOST_REASON = 20, 20, 4000


def state(word: str, attributes: str = "") -> str:
    """A state as a word with a colour and a shape."""
    return f'<span class="state {kind(word)}"{attributes}>{shown(word)}</span>'


class Sections:
    """Makes them all, of what a board shows; keeps what is costly. Where a board does not show every proxy, reasons of
    reloads, which may speak of any, are left out."""

    def __init__(self, control: Control, board: Board) -> None:
        self._control, self._board = control, board
        self._reloads: tuple[object, str] = (self, "")

    def __call__(self) -> Mapping[str, str]:
        control, board = self._control, self._board
        if self._reloads[0] is not control.last_reload:
            self._reloads = (control.last_reload, _reloads(control.history, board.names is None))
        return {
            "summary": _summary(control, board),
            "changes": _changes(control.changes.items.values(), board),
            "generations": _generations(control.generations()),
            "reloads": self._reloads[1],
        }


# --- what is wrong


def _summary(control: Control, board: Board) -> str:
    pairs = list(zip(board.rows, board.values, strict=True))
    servers = [(row, value) for row, value in pairs if row.backend]
    down = sorted((pair for pair in servers if kind(pair[1].state) == "down"), key=lambda pair: -pair[1].since)
    gone = [(row, value) for row, value in pairs if row.key.kind == "backend" and value.state == "DOWN"]
    failing = [pair for pair in servers if kind(pair[1].state) == "failing"]
    troubles = gone + down + failing
    parts = [_refusal(control, board), _file_alert(control, board)]
    grave = "bad" if gone or down else "warn" if failing else "good"
    parts.append(f'<p class="verdict {grave}">{_verdict(servers, len(down))}</p>')
    if troubles:
        items = [_trouble(row, value) for row, value in troubles[:_MOST_TROUBLES]]
        if (more := len(troubles) - _MOST_TROUBLES) > 0:
            items.append(f"<li>and {number_text(more)} more</li>")
        parts.append(f'<ul class="troubles">{"".join(items)}</ul>')
    last = control.last_reload
    if last and last.ok:
        parts.append(
            f'<p class="last">Reload {last.number} worked {clock(last.at)}, took {_seconds(last.duration)}'
            f" and brought up generation {last.generation or control.generation}.</p>"
        )
    return "".join(parts)


def _verdict(servers: Sequence[tuple[Row, Values]], down: int) -> str:
    whole = len(servers)
    away = [kind(value.state) for _, value in servers]
    drains, maintained = away.count("drain"), away.count("maint")
    if not whole:
        return "No servers are configured"
    if down:
        text = f"{down} of {phrase(whole, 'server', 'servers')} {'is' if down == 1 else 'are'} down"
    elif drains or maintained:
        text = "No server is down"
    else:
        text = f"All {whole} servers are in rotation" if whole > 1 else "The server is in rotation"
    if drains:
        text += f", {number_text(drains)} {'drains' if drains == 1 else 'drain'}"
    if maintained:
        text += f", {number_text(maintained)} {'is' if maintained == 1 else 'are'} in maintenance"
    return text


def _trouble(row: Row, value: Values) -> str:
    name = anchor(row.key.proxy, row.key.server)
    why = value.why if row.backend else "no server of it can take new sessions"
    said = f' <span class="why">{shown(why)}</span>' if why else ""
    return f'<li>{state(value.state)} <a href="#{name}">{name}</a> since {clock(value.since)}{said}</li>'


def _refusal(control: Control, board: Board) -> str:
    last = control.last_reload
    if last is None or last.ok:
        return ""
    first = last.reason.strip().partition("\n")[0][:300]
    reason = f": <code>{shown(first)}</code>" if board.names is None and first else "."
    return (
        f'<p class="alert"><strong>Reload {last.number} was refused</strong> {clock(last.at)}{reason}'
        ' The configuration before it goes on. <a href="#reloads">All reloads</a></p>'
    )


def _file_alert(control: Control, board: Board) -> str:
    if not control.warm:
        return ""
    first = control.config_error.strip().partition("\n")[0][:300]
    reason = f": <code>{shown(first)}</code>" if board.names is None and first else ""
    return f'<p class="alert"><strong>The last good configuration is served</strong>, the file is invalid{reason}</p>'


# --- what operators have changed

_WHAT = {
    "server-state": "state {}",
    "server-weight": "weight {}",
    "server-address": "address {}",
    "server-maxconn": "maxconn {}",
    "server-check": "checks {}",
    "server-added": "added",
    "server-deleted": "deleted",
    "frontend-state": "switched {}",
    "frontend-maxconn": "maxconn {}",
    "global-maxconn": "maxconn {}",
}


def change_text(change: Change) -> str:
    """What was done, and what the configuration says: `weight 5, configured 1`."""
    said = {True: "on", False: "off"}
    words = _WHAT.get(change.item.kind, change.item.kind + " {}").format(_word(change.value, said))
    if change.before is None or "{}" not in _WHAT.get(change.item.kind, "{}"):
        return words
    return f"{words}, configured {_word(change.before, said)}"


def _word(value: object, said: Mapping[bool, str]) -> str:
    return said[value] if isinstance(value, bool) else str(value)


def _changes(changes: Iterable[Change], board: Board) -> str:
    mine = [change for change in changes if board.names is None or change.item.proxy in board.names]
    if not mine:
        return ""
    items = []
    for change in mine:
        name = anchor(change.item.proxy, change.item.server)
        whom = f'<a href="#{name}">{name}</a>' if change.item.proxy else "hitlessd"
        items.append(f"<li>{whom}: {shown(change_text(change))}</li>")
    return (
        f"<h2>{phrase(len(mine), 'change', 'changes')} at run time</h2>"
        "<p>They are not in the configuration's files, but outlive reloads, restarts and crashes until those files say"
        f" something else about the same.</p><ul>{''.join(items)}</ul>"
    )


# --- generations and reloads


def _generations(generations: Sequence[GenerationInfo]) -> str:
    now = time.time()
    rows = []
    for info in generations:
        sessions = sum(number for _, number in info.workers)
        role = "<span class='state up'>serves</span>"
        if info.role != "current":
            role = "<span class='state drain'>drains</span>"
        rows.append(
            f'<tr><th scope="row">{info.generation}</th>'
            f"<td>{role}</td>"
            f'<td class="n">{number_text(sessions)}</td><td class="n">{number_text(info.moved)}</td>'
            f"<td>{clock(round(now - info.uptime))}</td>"
            f'<td class="n">{info.pid}</td><td class="n wide">{len(info.workers)}</td><td>{shown(info.note)}</td></tr>'
        )
    heads = "".join(
        f'<th scope="col"{more}>{name}</th>'
        for name, more in (
            ("Generation", ""),
            ("State", ""),
            ("Sessions", ' class="n"'),
            ("Moved", ' class="n" title="connections that came over from the one before, or went over to the next"'),
            ("Began", ""),
            ("PID", ' class="n"'),
            ("Workers", ' class="n wide"'),
            ("Note", ""),
        )
    )
    return (
        "<h2>Generations</h2>"
        f'<div class="scroll"><table class="plain"><caption class="unseen">Generations</caption>'
        f"<thead><tr>{heads}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
    )


def _reloads(history: Sequence[ReloadOutcome], reasons: bool) -> str:
    if not history:
        return "<h2>Reloads</h2><p>There was none yet.</p>"
    latest = list(reversed(history))[:_MOST_RELOADS]
    longest = max(outcome.duration for outcome in latest) or 1.0
    items = "".join(_reload(outcome, longest, reasons) for outcome in latest)
    return f'<h2>Reloads</h2><ol class="reloads" reversed>{items}</ol>'


def _reload(outcome: ReloadOutcome, longest: float, reasons: bool) -> str:
    word = f"<span class='state up'>reload {outcome.number} worked</span>"
    if not outcome.ok:
        word = f"<span class='state down'>reload {outcome.number} refused</span>"
    facts = [f"generation {outcome.generation}"] if outcome.generation else []
    facts.append(f"took {_seconds(outcome.duration)}")
    if outcome.ok:
        lost = f"{outcome.lost} lost"
        lost = f'<strong class="lost">{lost}</strong>' if outcome.lost else lost
        facts.append(f"connections: {outcome.moved} moved, {outcome.kept} kept, {lost}")
        facts.append(f"listeners: {outcome.taken} taken, {outcome.bound} bound, {outcome.closed} closed")
    reason = outcome.reason.strip()[:_MOST_REASON] if reasons else ""
    told = f'<pre tabindex="0">{shown(reason)}</pre>' if reason and not outcome.ok else ""
    if reason and outcome.ok and "\n" in reason:
        told = f"<details><summary>Warnings</summary><pre>{shown(reason.partition(chr(10))[2])}</pre></details>"
    return f"<li><p>{word} {clock(outcome.at)}</p>{_phases(outcome, longest)}<p>{'; '.join(facts)}</p>{told}</li>"


def _phases(outcome: ReloadOutcome, longest: float) -> str:
    """A bar as long as the reload took, beside the longest, divided by what took the time."""
    if not outcome.phases:
        return ""
    bars, at = [], 0.0
    for number, (name, took) in enumerate(outcome.phases):
        width = max(0.0, took) / longest * 100
        bars.append(
            f'<rect class="phase{number % 4}" x="{at:.2f}" y="0" height="10" width="{max(0.0, width - 0.3):.2f}">'
            f"<title>{shown(name)}: {_seconds(took)}</title></rect>"
        )
        at += width
    legend = ", ".join(
        f'<span class="phase{number % 4}">{shown(name)} {_seconds(took)}</span>'
        for number, (name, took) in enumerate(outcome.phases)
    )
    return (
        '<svg class="phases" viewBox="0 0 100 10" preserveAspectRatio="none" aria-hidden="true">'
        f'{"".join(bars)}</svg><p class="legend">{legend}</p>'
    )


def _seconds(seconds: float) -> str:
    return f"{seconds * 1000:.0f} ms" if seconds < 10 else f"{seconds:.1f} s"
