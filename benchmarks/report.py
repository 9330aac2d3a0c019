"""The table of a benchmark for a person, and its figures for a program."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.measure import Loaded, Series, Times, Work
from benchmarks.terminal import Terminal, bar, pad

_BAR = 22


@dataclass(frozen=True)
class Target:
    """A figure that is aimed at."""

    name: str
    value: float
    limit: float
    unit: str
    at_most: bool = True

    @property
    def met(self) -> bool:
        return self.value <= self.limit if self.at_most else self.value >= self.limit

    def as_dict(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "value": round(self.value, 4),
            "limit": self.limit,
            "unit": self.unit,
            "at_most": self.at_most,
            "met": self.met,
        }


def show_header(out: Terminal, title: str, facts: Sequence[str]) -> None:
    out.line()
    out.line("  " + out.paint(title, "bold"))
    for fact in facts:
        out.line("  " + out.paint(fact, "dim"))


def _section(out: Terminal, title: str, note: str = "") -> None:
    out.line()
    out.line(f"  {out.paint(title, 'bold', 'cyan')}  {out.paint(note, 'dim')}".rstrip())


def _figure(value: float) -> str:
    if value >= 1000:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _mark(out: Terminal, target: Target) -> str:
    sign = "≤" if target.at_most else "≥"
    goal = f"target {sign} {target.limit:g}{target.unit}"
    return out.paint(f"✔ {goal}", "green") if target.met else out.paint(f"✘ {goal}", "red", "bold")


def show_work(out: Terminal, work: Work, series: Mapping[str, Series], targets: Sequence[Target]) -> None:
    """One kind of traffic: the cost of a unit as bars, then the rate and who was busy."""
    _section(out, work.name, f"{work.shown} a {work.unit}; shorter is better")
    top = max(each.cost for each in series.values())
    plain = series["haproxy"].cost if "haproxy" in series else top
    for name, each in series.items():
        colour = "green" if name.startswith("hitlessd") else "blue"
        # Like with like, where there is a haproxy with the same settings.
        variant = f"haproxy, {name.partition(', ')[2]}"
        base = series[variant].cost if variant in series and variant != name else plain
        ratio = f"{each.cost / base:5.2f} x" if name != "haproxy" else "       "
        out.line(
            f"    {pad(name, 18)}{out.paint(bar(each.cost / top, _BAR), colour)} "
            f"{pad(out.paint(_figure(each.cost * work.scale), 'bold'), 8, right=True)}  {ratio}"
            f"{pad(_figure(each.rate), 9, right=True)} {pad(work.rate_shown, 5)} "
            + out.paint(f"proxy {each.busy:4.0%}  load {each.load_busy:4.0%}", "dim")
            + (out.paint(f"  others {each.others_busy:4.0%}", "yellow") if each.others_busy > 0.1 else "")
            + (out.paint(f"  {each.failed} FAILED", "red", "bold") if each.failed else "")
        )
    for target in targets:
        label = target.name if len(targets) > 1 else ""
        value = f"{target.value:.2f} x   " if len(targets) > 1 else ""
        out.line(f"    {pad(label, 18 + _BAR + 1)}{pad(value, 10, right=True)}{_mark(out, target)}")


def show_notes(out: Terminal, notes: Sequence[str]) -> None:
    """What a reader of the figures above has to know."""
    for note in notes:
        out.line("    " + out.paint(note, "dim"))


def show_reloads(out: Terminal, times: Mapping[str, Times], target: Target | None, note: str) -> None:
    _section(out, "reload", note)
    names = {
        "haproxy": "haproxy -x -sf",
        "hitlessd": "hitlessctl reload",
        "runtime socket": "  the same without hitlessctl's own start",
    }
    for name, each in times.items():
        out.line(
            f"    {pad(names.get(name, name), 44)}median {out.paint(f'{each.median * 1000:6.1f} ms', 'bold')}"
            f"   longest {each.longest * 1000:6.1f} ms"
            + (f"   {_mark(out, target)}" if target and name == "hitlessd" else "")
        )


def show_under_load(out: Terminal, runs: Mapping[str, Loaded], targets: Sequence[Target], note: str) -> None:
    _section(out, "reloads under load", note)
    head = f"    {pad('', 28)}{'conn/s':>8}{'reloads':>9}{'a second':>10}{'failures':>10}"
    out.line(out.paint(head + f"{'p50':>9}{'p99':>9}{'p99.9':>9}{'max ms':>9}", "dim"))
    for name, run in runs.items():
        latency = run.result["latency_ms"]
        reloads = f"{run.reloads:>9}{run.reload_rate:>10.1f}" if run.reloads else f"{'-':>9}{'-':>10}"
        failures = out.paint(f"{run.failed:>10}", "red" if run.failed else "green", "bold")
        out.line(
            f"    {pad(name, 28)}{run.result['rate']:>8,.0f}{reloads}{failures}"
            + "".join(f"{latency[key]:>9.1f}" for key in ("p50", "p99", "p999", "max"))
        )
        for problem in run.problems[:3]:
            out.line(out.paint(f"      {problem}", "red"))
        for error in run.result["errors"][:3]:
            out.line(out.paint(f"      {error}", "red"))
    for target in targets:
        out.line(f"    {pad(target.name, 28)}{_figure(target.value):>8}   {_mark(out, target)}")


def show_verdict(out: Terminal, targets: Sequence[Target]) -> None:
    missed = [target.name for target in targets if not target.met]
    out.line()
    if missed:
        out.line(
            "  " + out.paint(f"{len(missed)} of {len(targets)} targets missed: {', '.join(missed)}", "red", "bold")
        )
    else:
        out.line("  " + out.paint(f"all {len(targets)} targets met", "green", "bold"))
    out.line()


def work_figures(series: Mapping[str, Series]) -> dict[str, Any]:
    """For the JSON file: medians and every sample, in seconds and units."""
    return {
        name: {
            "cpu_seconds_per_unit": each.cost,
            "units_per_second": each.rate,
            "proxy_busy": each.busy,
            "load_busy": each.load_busy,
            "others_busy": each.others_busy,
            "failed": each.failed,
            "samples": [vars(sample) for sample in each.samples],
        }
        for name, each in series.items()
    }
