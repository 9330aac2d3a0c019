"""A part of the table that is rows of figures, some of them with a target."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from benchmarks.figures import Ratio, Target
from benchmarks.terminal import Terminal, pad

__all__ = ["Section", "mark", "number", "show"]


@dataclass
class Section:
    """One part of the table."""

    title: str
    note: str
    rows: list[tuple[str, str, Target | None]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    figures: dict[str, Any] = field(default_factory=dict)

    def tell(self, label: str, text: str) -> None:
        """A figure without a target."""
        self.rows.append((label, text, None))

    def aim(self, label: str, value: float, limit: float, unit: str = "", at_most: bool = True) -> None:
        """A figure with a target."""
        target = Target(f"{self.title}: {label}", value, limit, unit, at_most)
        self.rows.append((label, number(value) + unit, target))

    def aim_ratio(self, label: str, ratio: Ratio, limit: float) -> None:
        """A ratio of rounds with a target; the row has its spread."""
        target = Target(f"{self.title}: {label}", ratio.median, limit, " x", spread=(ratio.low, ratio.high))
        text = f"{number(ratio.median)} x ({number(ratio.low)}..{number(ratio.high)})"
        self.rows.append((label, text, target))

    @property
    def targets(self) -> list[Target]:
        return [target for _, _, target in self.rows if target]


def number(value: float) -> str:
    """As exact as it is worth."""
    if abs(value) >= 1000 or value == int(value):
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def mark(out: Terminal, target: Target) -> str:
    """Whether it is met, and what it is."""
    if target.met:
        return out.paint(f"✔ target {target.goal}", "green")
    return out.paint(f"✘ target {target.goal}", "red", "bold")


def show(out: Terminal, section: Section) -> None:
    """For a person."""
    out.line()
    out.line(f"  {out.paint(section.title, 'bold', 'cyan')}  {out.paint(section.note, 'dim')}".rstrip())
    for label, text, target in section.rows:
        sign = mark(out, target) if target is not None else ""
        out.line(f"    {pad(label, 56)}{pad(out.paint(text, 'bold'), 20, right=True)}   {sign}".rstrip())
    for problem in section.problems[:6]:
        out.line(out.paint(f"      {problem}", "red"))
