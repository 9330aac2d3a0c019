"""The table of a benchmark for a person."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.figures import Comparison, Ratio, Target
from benchmarks.sections import mark, number
from benchmarks.terminal import Terminal, bar, pad

__all__ = ["Target", "show_comparison", "show_header", "show_notes", "show_verdict", "spread"]

_BAR = 16
_NAME = 20


def show_header(out: Terminal, title: str, facts: Sequence[str]) -> None:
    out.line()
    out.line("  " + out.paint(title, "bold"))
    for fact in facts:
        out.line("  " + out.paint(fact, "dim"))


def spread(ratio: Ratio) -> str:
    """A ratio, its least and its greatest value."""
    return f"{ratio.median:.2f} x ({ratio.low:.2f}..{ratio.high:.2f})"


def show_comparison(out: Terminal, comparison: Comparison) -> None:
    """One kind of traffic: the cost of a unit as bars, the ratio, the kernel's share, the rate, and who was busy."""
    work, series = comparison.work, comparison.series
    out.line()
    note = f"{work.shown} a {work.unit}, shorter is better; kernel: its share of that"
    out.line(f"  {out.paint(comparison.title, 'bold', 'cyan')}  {out.paint(note, 'dim')}")
    top = max(each.cost for each in series.values())
    for name, each in series.items():
        colour = "green" if name.startswith("hitlessd") else "blue"
        ratio = comparison.base(name)
        out.line(
            f"    {pad(name, _NAME)}{out.paint(bar(each.cost / top, _BAR), colour)} "
            f"{pad(out.paint(number(each.cost * work.scale), 'bold'), 7, right=True)}  "
            f"{pad(spread(ratio) if ratio else '', 20)}{out.paint(f'kernel {each.system:4.0%}', 'dim')}"
            f"{pad(number(each.rate), 9, right=True)} {pad(work.rate_shown, 5)} "
            + out.paint(f"proxy {each.busy:4.0%}  load {each.load_busy:4.0%}", "dim")
            + (out.paint(f"  others {each.others_busy:4.0%}", "yellow") if each.others_busy > 0.1 else "")
            + (out.paint(f"  {each.failed} FAILED", "red", "bold") if each.failed else "")
        )
    for target in comparison.targets:
        label = target.name.removeprefix(f"{comparison.title}: ")
        out.line(f"    {pad(label, _NAME + _BAR + 1)}{pad(f'{target.value:.2f}', 7, right=True)}  {mark(out, target)}")


def show_notes(out: Terminal, notes: Sequence[str]) -> None:
    """What a reader of the figures above has to know."""
    for note in notes:
        out.line("    " + out.paint(note, "dim"))


def show_verdict(out: Terminal, targets: Sequence[Target]) -> None:
    """All targets once more, and how many were missed."""
    if not targets:
        return
    out.line()
    out.line(f"  {out.paint('targets', 'bold', 'cyan')}")
    for target in targets:
        value = number(target.value) + target.unit
        if target.spread:
            value += f" ({target.spread[0]:.2f}..{target.spread[1]:.2f})"
        out.line(f"    {pad(target.name, 64)}{pad(value, 24)}{mark(out, target)}")
    missed = sum(not target.met for target in targets)
    out.line()
    if missed:
        out.line("  " + out.paint(f"{missed} of {len(targets)} targets missed", "red", "bold"))
    else:
        out.line("  " + out.paint(f"all {len(targets)} targets met", "green", "bold"))
    out.line()
