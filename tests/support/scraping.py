"""Scrapes, and what is in them."""

from __future__ import annotations

import http.client
from collections.abc import Mapping
from dataclasses import dataclass, field

from prometheus_client.parser import text_string_to_metric_families

__all__ = ["Exposition", "Labels", "Scraper", "read"]

Labels = tuple[tuple[str, str], ...]


@dataclass
class Exposition:
    """Samples by name and labels, and the types of families by the names that HELP and TYPE give."""

    text: str
    samples: dict[str, dict[Labels, float]] = field(default_factory=dict)
    types: dict[str, str] = field(default_factory=dict)

    def value(self, name: str, **labels: str) -> float:
        """Of the one sample that has all of these labels."""
        wanted = set(labels.items())
        found = [value for each, value in self.samples.get(name, {}).items() if wanted <= set(each)]
        assert len(found) == 1, f"{len(found)} samples of {name} with {labels}"
        return found[0]

    def label_names(self, name: str) -> set[str]:
        return {label for labels in self.samples[name] for label, _ in labels}

    def counters(self) -> Mapping[tuple[str, Labels], float]:
        """All that must never go back."""
        counting = {name for name, kind in self.types.items() if kind == "counter"}
        counting |= {f"{name}_{part}" for name, kind in self.types.items() if kind == "histogram"
                     for part in ("bucket", "count", "sum")}  # fmt: skip
        return {(name, labels): value for name in counting for labels, value in self.samples.get(name, {}).items()}


def read(text: str) -> Exposition:
    """What a scrape says; an error of the parser's for what is not sound."""
    found = Exposition(text)
    for line in text.splitlines():
        if line.startswith("# TYPE "):
            _, _, name, kind = line.split(" ")
            found.types[name] = kind
    for family in text_string_to_metric_families(text):  # type: ignore[no-untyped-call]
        for sample in family.samples:
            found.samples.setdefault(sample.name, {})[tuple(sorted(sample.labels.items()))] = sample.value
    return found


class Scraper:
    """A client of one connection, as Prometheus is."""

    def __init__(self, port: int) -> None:
        self.connection = http.client.HTTPConnection("127.0.0.1", port, timeout=15)

    def __enter__(self) -> Scraper:
        return self

    def __exit__(self, *_: object) -> None:
        self.connection.close()

    def get(self, target: str = "/metrics") -> tuple[int, str]:
        self.connection.request("GET", target)
        response = self.connection.getresponse()
        return response.status, response.read().decode()

    def scrape(self, query: str = "") -> Exposition:
        status, text = self.get("/metrics" + query)
        assert status == 200, text
        return read(text)
