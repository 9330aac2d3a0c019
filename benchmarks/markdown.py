"""The results as a chapter of docs/performance.md, between two marks that say where it came from. No I/O."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from benchmarks.figures import Comparison, Target
from benchmarks.report import spread
from benchmarks.sections import Section, number

__all__ = ["BEGIN", "END", "insert", "markdown"]

BEGIN: Final = "<!-- Written by `python -m benchmarks --markdown`. -->"
END: Final = "<!-- End of what `python -m benchmarks --markdown` has written. -->"


def insert(document: str, text: str) -> str:
    """The document with `text` between the marks; ValueError if they are not there."""
    before, begin, rest = document.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"it has no lines {BEGIN} and {END}")
    return f"{before}{begin}\n\n{text.strip()}\n\n{end}{after}"


def markdown(facts: Sequence[str], blocks: Sequence[Comparison | Section], targets: Sequence[Target]) -> str:
    """Where it was measured, the targets, and a table for each part."""
    lines = [f"- {_escaped(fact)}" for fact in facts]
    lines += ["", "| target | found | spread | |", "|---|---|---|---|"]
    for target in targets:
        between = f"{number(target.spread[0])}..{number(target.spread[1])}" if target.spread else ""
        met = f"✔ {target.goal}" if target.met else f"✘ {target.goal}"
        lines.append(f"| {_escaped(target.name)} | {number(target.value)}{target.unit} | {between} | {met} |")
    for block in blocks:
        lines += ["", *(_comparison(block) if isinstance(block, Comparison) else _section(block))]
    return "\n".join(lines) + "\n"


def _comparison(comparison: Comparison) -> list[str]:
    work = comparison.work
    lines = [
        f"**{_escaped(comparison.title)}**",
        "",
        f"| | {work.shown} a {work.unit} | to haproxy | kernel | {work.unit}s a second | failed |",
        "|---|---|---|---|---|---|",
    ]
    for name, each in comparison.series.items():
        ratio = comparison.base(name)
        lines.append(
            f"| {_escaped(name)} | {number(each.cost * work.scale)} | {spread(ratio) if ratio else ''} "
            f"| {each.system:.0%} | {number(each.rate)} | {each.failed} |"
        )
    return lines


def _section(section: Section) -> list[str]:
    title = f"**{_escaped(section.title)}**" + (f": {_escaped(section.note)}" if section.note else "")
    lines = [title, "", "| | | |", "|---|---|---|"]
    for label, text, target in section.rows:
        met = "" if target is None else f"{'✔' if target.met else '✘'} {target.goal}"
        lines.append(f"| {_escaped(label.strip())} | {_escaped(text)} | {met} |")
    return lines


def _escaped(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")
