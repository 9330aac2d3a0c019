"""Ratios as a picture: a bar for each contender, its whisker from the least to the greatest round, a tick for a target.

SVG by hand: it follows the reader's light or dark scheme, and needs nothing to be installed. No I/O.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final
from xml.sax.saxutils import escape

from benchmarks.figures import Comparison, Ratio, base_of

__all__ = ["Bar", "Group", "groups_of", "svg"]

_WIDTH: Final = 860
_LEFT: Final = 250
_RIGHT: Final = 120
_ROW: Final = 20
_GAP: Final = 30
_TOP: Final = 64
_STYLE: Final = """
svg { font: 12px system-ui, sans-serif; }
.back { fill: #ffffff; } text { fill: #1c2024; } .dim { fill: #5b646e; } .head { font-weight: 600; }
.grid { stroke: #d5dade; } .one { stroke: #5b646e; } .whisker { stroke: #1c2024; stroke-width: 1.5; }
.ours { fill: #2a8a4a; } .other { fill: #6f8fb8; } .goal { stroke: #c0392b; stroke-width: 2.5; }
@media (prefers-color-scheme: dark) {
.back { fill: #14181c; } text { fill: #e6e9ec; } .dim { fill: #9aa4ae; }
.grid { stroke: #333a41; } .one { stroke: #9aa4ae; } .whisker { stroke: #e6e9ec; }
.ours { fill: #46b36b; } .other { fill: #56739b; } .goal { stroke: #ff6b5b; } }
"""


@dataclass(frozen=True)
class Bar:
    """A contender, and the target it has, if any."""

    name: str
    ratio: Ratio
    goal: float | None = None


@dataclass(frozen=True)
class Group:
    """One kind of traffic."""

    title: str
    bars: Sequence[Bar]


def groups_of(comparisons: Sequence[Comparison]) -> list[Group]:
    """Everybody's ratio to the haproxy that it is compared with, and the targets of those ratios."""
    found = []
    for comparison in comparisons:
        bars = []
        for name in comparison.series:
            ratio = comparison.base(name)
            if ratio is not None and all(math.isfinite(value) for value in ratio):
                wanted = f"{comparison.title}: {name} to {base_of(name, comparison.series)}"
                goal = next((target.limit for target in comparison.targets if target.name == wanted), None)
                bars.append(Bar(name, ratio, goal))
        if bars:
            found.append(Group(comparison.title, bars))
    return found


def svg(title: str, note: str, groups: Sequence[Group]) -> str:
    """The picture; without groups, one that says so."""
    # One round that went wrong must not make all the others small.
    top = max([1.25, *(bar.ratio.median for group in groups for bar in group.bars)]) * 1.25
    step = 0.25 if top <= 2.5 else 0.5 if top <= 5 else math.ceil(top / 10)
    scale = (_WIDTH - _LEFT - _RIGHT) / top
    height = _TOP + sum(_GAP + _ROW * len(group.bars) for group in groups) + 40
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" role="img">',
        f"<title>{escape(title)}</title><style>{_STYLE}</style>",
        f'<rect class="back" width="{_WIDTH}" height="{height}"/>',
        f'<text class="head" x="16" y="26">{escape(title)}</text><text class="dim" x="16" y="46">{escape(note)}</text>',
    ]
    for number in range(int(top / step) + 1):
        value, x = number * step, _LEFT + number * step * scale
        kind = "one" if value == 1 else "grid"
        parts.append(f'<line class="{kind}" x1="{x:.1f}" x2="{x:.1f}" y1="{_TOP}" y2="{height - 30}"/>')
        parts.append(f'<text class="dim" x="{x:.1f}" y="{height - 12}" text-anchor="middle">{value:g}</text>')
    y = _TOP
    for group in groups:
        parts.append(f'<text class="head" x="16" y="{y + 20}">{escape(group.title)}</text>')
        y += _GAP
        for bar in group.bars:
            parts += _bar(bar, y, scale, top)
            y += _ROW
    if not groups:
        parts.append(f'<text x="16" y="{_TOP}">nothing to compare</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"


def _bar(bar: Bar, y: int, scale: float, top: float) -> list[str]:
    median, low, high = (min(value, top) * scale for value in bar.ratio)
    middle, kind = y + _ROW / 2, "ours" if bar.name.startswith("hitlessd") else "other"
    parts = [
        f'<text x="{_LEFT - 8}" y="{middle + 4}" text-anchor="end">{escape(bar.name)}</text>',
        f'<rect class="{kind}" x="{_LEFT}" y="{y + 3}" width="{median:.1f}" height="{_ROW - 6}" rx="2"/>',
        f'<line class="whisker" x1="{_LEFT + low:.1f}" x2="{_LEFT + high:.1f}" y1="{middle}" y2="{middle}"/>',
    ]
    for end in (low, high):
        x = _LEFT + end
        parts.append(f'<line class="whisker" x1="{x:.1f}" x2="{x:.1f}" y1="{middle - 4}" y2="{middle + 4}"/>')
    if bar.goal is not None:
        x = _LEFT + bar.goal * scale
        parts.append(f'<line class="goal" x1="{x:.1f}" x2="{x:.1f}" y1="{y}" y2="{y + _ROW}"/>')
    sign = "" if bar.goal is None else " ✔" if bar.ratio.median <= bar.goal else " ✘"
    text = f"{bar.ratio.median:.2f}{sign}"
    parts.append(f'<text x="{_WIDTH - _RIGHT + 12}" y="{middle + 4}">{text}</text>')
    return parts
