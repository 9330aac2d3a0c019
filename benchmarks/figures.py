"""What was measured, without anybody who measures: samples, series of them, and ratios with their spread. No I/O."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

__all__ = ["GIGABYTE", "Comparison", "Ratio", "Sample", "Series", "Target", "Times", "Work", "base_of", "ratio_of"]

GIGABYTE: Final = 1e9


@dataclass(frozen=True)
class Work:
    """One kind of traffic. `settings` go to the load generator; `units` makes the number of units out of its result."""

    name: str
    unit: str
    scale: float
    """From CPU seconds a unit to what is shown."""
    shown: str
    rate_shown: str
    settings: dict[str, Any]
    units: Callable[[dict[str, Any]], float]


@dataclass
class Sample:
    """One run of one work through one proxy. Times in seconds."""

    units: float
    elapsed: float
    cpu: float
    load_cpu: float
    others: float
    """CPU seconds that everything else on the machine used meanwhile."""
    failed: int
    system: float = 0.0
    """The share of `cpu` that the kernel used, 0 to 1."""

    @property
    def cost(self) -> float:
        """CPU seconds of the proxy a unit."""
        return self.cpu / self.units if self.units else float("inf")

    @property
    def rate(self) -> float:
        """Units a second."""
        return self.units / self.elapsed


@dataclass
class Series:
    """All runs of one work through one proxy; medians."""

    samples: list[Sample] = field(default_factory=list)

    def median(self, what: Callable[[Sample], float]) -> float:
        return statistics.median(what(sample) for sample in self.samples)

    @property
    def cost(self) -> float:
        return self.median(lambda sample: sample.cost)

    @property
    def rate(self) -> float:
        return self.median(lambda sample: sample.rate)

    @property
    def system(self) -> float:
        """The kernel's share of the proxy's CPU, over all runs: its clock is too coarse for one."""
        used = sum(sample.cpu for sample in self.samples)
        return sum(sample.system * sample.cpu for sample in self.samples) / used if used else 0.0

    @property
    def busy(self) -> float:
        """Share of its CPU that the proxy used."""
        return self.median(lambda sample: sample.cpu / sample.elapsed)

    @property
    def load_busy(self) -> float:
        """Share of their CPU that load generator and backend used."""
        return self.median(lambda sample: sample.load_cpu / sample.elapsed)

    @property
    def others_busy(self) -> float:
        """CPUs' worth of time that everything else on the machine used."""
        return self.median(lambda sample: sample.others / sample.elapsed)

    @property
    def failed(self) -> int:
        return sum(sample.failed for sample in self.samples)


class Ratio(NamedTuple):
    """The median of the rounds' own ratios, the least and the greatest: what else the machine does meets both sides."""

    median: float
    low: float
    high: float


def ratio_of(values: Sequence[float], others: Sequence[float]) -> Ratio:
    """Round by round. ValueError if there are not as many of both, or none."""
    found = [value / other for value, other in zip(values, others, strict=True)]
    if not found:
        raise ValueError("cannot make a ratio: no rounds")
    return Ratio(statistics.median(found), min(found), max(found))


@dataclass
class Times:
    """How long something took each time, in seconds."""

    values: list[float]

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    @property
    def longest(self) -> float:
        return max(self.values)


@dataclass(frozen=True)
class Target:
    """A figure that is aimed at; `spread` is its least and greatest value of all rounds."""

    name: str
    value: float
    limit: float
    unit: str
    at_most: bool = True
    spread: tuple[float, float] | None = None

    @property
    def met(self) -> bool:
        return self.value <= self.limit if self.at_most else self.value >= self.limit

    @property
    def goal(self) -> str:
        return f"{'≤' if self.at_most else '≥'} {self.limit:g}{self.unit}"

    def as_dict(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "value": round(self.value, 4),
            "limit": self.limit,
            "unit": self.unit,
            "at_most": self.at_most,
            "spread": self.spread and [round(each, 4) for each in self.spread],
            "met": self.met,
        }


def base_of(name: str, names: Mapping[str, Any]) -> str:
    """Whom a contender is compared with: the haproxy with the same settings if there is one, else haproxy as shipped.

    Empty if there is none, or it is that haproxy itself.
    """
    kind, _, settings = name.partition(", ")
    same = f"haproxy, {settings}" if settings else "haproxy"
    if kind != "haproxy" and same in names:
        return same
    return "haproxy" if name != "haproxy" and "haproxy" in names else ""


@dataclass
class Comparison:
    """One kind of traffic through all contenders."""

    work: Work
    series: dict[str, Series]
    targets: list[Target] = field(default_factory=list)
    beside: str = ""
    """What else is there."""

    @property
    def title(self) -> str:
        return f"{self.work.name}, {self.beside}" if self.beside else self.work.name

    def ratio(self, name: str, other: str) -> Ratio:
        """Of the CPU a unit."""
        return ratio_of(*([sample.cost for sample in self.series[each].samples] for each in (name, other)))

    def base(self, name: str) -> Ratio | None:
        """To whom it is compared with."""
        other = base_of(name, self.series)
        return self.ratio(name, other) if other else None

    def aim(self, name: str, other: str, limit: float) -> None:
        """Let the ratio of two contenders be a target, if both were there."""
        if name in self.series and other in self.series:
            found = self.ratio(name, other)
            label = f"{self.title}: {name} to {other}"
            self.targets.append(Target(label, found.median, limit, " x", spread=(found.low, found.high)))

    def count_failures(self) -> None:
        """Make failures a missed target, if there were any."""
        failed = sum(each.failed for each in self.series.values())
        if failed:
            self.targets.append(Target(f"{self.title}: failures", failed, 0, ""))

    def as_dict(self) -> dict[str, Any]:
        """For the JSON file: medians, ratios and every sample, in seconds and units."""
        return {
            name: {
                "cpu_seconds_per_unit": each.cost,
                "unit": self.work.unit,
                "kernel_share": each.system,
                "ratio": (found := self.base(name)) and found._asdict(),
                "ratio_to": base_of(name, self.series),
                "units_per_second": each.rate,
                "proxy_busy": each.busy,
                "load_busy": each.load_busy,
                "others_busy": each.others_busy,
                "failed": each.failed,
                "samples": [vars(sample) for sample in each.samples],
            }
            for name, each in self.series.items()
        }
