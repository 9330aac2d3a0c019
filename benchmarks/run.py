"""hitlessd side by side with Debian's haproxy 2.6 and nginx, all as shipped and as ordinary users: what a connection, a
request and a gigabyte cost, idle connections, latency, reloads, starts, workers, and what it costs to survive a crash.

Each proxy has CPU 0 to itself, load generator and servers share CPU 1; the proxies take turns; medians of the rounds,
and ratios of each round with their least and greatest. Absolute figures hold for one run on one machine: compare the
ratios.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from benchmarks import http, tcp
from benchmarks.figures import Comparison, Target
from benchmarks.idle import Idle
from benchmarks.latency import Latency
from benchmarks.machine import facts, machine
from benchmarks.markdown import insert, markdown
from benchmarks.migration import Migration
from benchmarks.parking import Parking
from benchmarks.plot import groups_of, svg
from benchmarks.profiling import WORKS, profile
from benchmarks.reloads import Reloads
from benchmarks.report import show_comparison, show_header, show_notes, show_verdict
from benchmarks.scale import Scale
from benchmarks.sections import Section, show
from benchmarks.terminal import Terminal
from benchmarks.user import apply_unit_limit
from benchmarks.workers import Workers
from tests.support.processes import ROOT

__all__ = ["SECTIONS", "Run", "main", "parser"]

RESULTS: Final = ROOT / "build" / "bench"
DOCUMENT: Final = ROOT / "docs" / "performance.md"
_ARRIVALS: Final = 2500.0

Block = Comparison | Section


class Run:
    """One run of the benchmark: where it writes, what it found."""

    def __init__(self, options: argparse.Namespace, out: Terminal, directory: Path) -> None:
        self.options = options
        self.out = out
        self.directory = directory
        self.blocks: list[Block] = []
        self.figures: dict[str, Any] = {}

    @property
    def targets(self) -> list[Target]:
        return [target for block in self.blocks for target in block.targets]

    def tell(self, text: str) -> None:
        """What is going on, while it is going on."""
        self.out.draw([f"  {self.out.paint('…', 'yellow')} {text}"])

    def section(self, name: str) -> None:
        """Run one, and show what it finds as it finds it."""
        began = time.monotonic()
        for block in SECTIONS[name](self):
            self.blocks.append(block)
            found = self.figures.setdefault(name, {})
            if isinstance(block, Comparison):
                show_comparison(self.out, block)
                found[block.title] = block.as_dict()
            else:
                show(self.out, block)
                found[block.title] = block.figures
        if name in _NOTES:
            show_notes(self.out, _NOTES[name])
            self.figures[name]["settings"] = _NOTES[name]
        self.figures.setdefault(name, {})["seconds"] = round(time.monotonic() - began, 1)

    # -- the sections ------------------------------------------------------------------------------------------------

    def tcp(self) -> Iterator[Block]:
        options = self.options
        yield from tcp.TcpComparison(self.directory, options.quick, options.rounds, self.tell).small()

    def bulk(self) -> Iterator[Block]:
        options = self.options
        yield from tcp.TcpComparison(self.directory, options.quick, options.rounds, self.tell).bulk()

    def http(self) -> Iterator[Block]:
        options = self.options
        yield from http.HttpComparison(self.directory, options.quick, options.rounds, self.tell).sections()

    def idle(self) -> Iterator[Block]:
        options = self.options
        yield from Idle(self.directory, options.quick, options.rounds, self.tell).sections()

    def latency(self) -> Iterator[Block]:
        options = self.options
        latency = Latency(
            self.directory, options.quick, options.rounds, options.rate or 0.0, options.workers, self.tell
        )
        yield from latency.sections()

    def reload(self) -> Iterator[Block]:
        yield Reloads(self.directory, self.options.quick, self.options.workers, self.tell).reload()

    def start(self) -> Iterator[Block]:
        yield Reloads(self.directory, self.options.quick, self.options.workers, self.tell).start()

    def workers(self) -> Iterator[Block]:
        options = self.options
        yield from Workers(self.directory, options.quick, options.rounds, self.tell).sections()

    def scale(self) -> Iterator[Block]:
        options = self.options
        beside = bool(machine()["haproxy"])
        yield from Scale(self.directory, options.quick, options.rounds, beside, self.tell).sections()

    def migrate(self) -> Iterator[Block]:
        options = self.options
        beside = bool(machine()["haproxy"])
        yield from Migration(self.directory, options.quick, options.rate or _ARRIVALS, beside, self.tell).sections()

    def parking(self) -> Iterator[Block]:
        options = self.options
        rounds = options.rounds if options.quick else 2 * options.rounds
        yield from Parking(self.directory, options.quick, rounds, self.tell).sections()


SECTIONS: Final[dict[str, Callable[[Run], Iterator[Block]]]] = {
    "tcp": Run.tcp,
    "bulk": Run.bulk,
    "http": Run.http,
    "idle": Run.idle,
    "latency": Run.latency,
    "reload": Run.reload,
    "start": Run.start,
    "workers": Run.workers,
    "scale": Run.scale,
    "migrate": Run.migrate,
    "parking": Run.parking,
}

SLOW: Final = frozenset({"parking", "scale"})
"""What a quick run leaves out unless it is asked for."""

_NOTES: Final = {"tcp": tcp.SETTINGS, "bulk": tcp.SETTINGS, "http": http.SETTINGS}


def parser() -> argparse.ArgumentParser:
    """The command line."""
    found = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = found.add_argument
    add(
        "sections",
        nargs="*",
        metavar="SECTION",
        help=f"which of {', '.join(SECTIONS)}; all by default, without parking and scale if quick",
    )
    add("--quick", action="store_true", help="less of everything, one round: for a look, not for a figure")
    add("--rounds", type=_positive, help="turns that each proxy has (5)")
    add("--rate", type=float, help="connections a second for latency (half load) and migrate (2500)")
    add("--workers", type=_positive, default=1, help="workers or threads where reloads are measured (%(default)d)")
    add("--json", metavar="FILE", type=Path, default=RESULTS / "results.json", help="all figures (%(default)s)")
    add("--plot", metavar="FILE", type=Path, default=RESULTS / "results.svg", help="a picture (%(default)s)")
    add(
        "--markdown", metavar="FILE", type=Path, nargs="?", const=DOCUMENT,
        help="write the results into this document, and the picture beside it (docs/performance.md)",
    )  # fmt: skip
    add("--profile", metavar="WORK", choices=WORKS, help=f"instead: where the time of one of {', '.join(WORKS)} goes")
    add("--check", action="store_true", help="exit with 1 if a target is missed")
    return found


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise ValueError(text)
    return value


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line; exits with 2 and a message if it makes no sense."""
    command = parser()
    options = command.parse_intermixed_args(argv)
    unknown = set(options.sections) - set(SECTIONS)
    if unknown:
        command.error(f"unknown section {', '.join(sorted(unknown))}; there are {', '.join(SECTIONS)}")
    options.sections = options.sections or [name for name in SECTIONS if not (options.quick and name in SLOW)]
    options.rounds = options.rounds or (1 if options.quick else 5)
    return options


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark; returns its exit status."""
    options = arguments(argv)
    limits = apply_unit_limit()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    out = Terminal()
    about = machine()
    told = facts(about, options.rounds, *limits)
    beside = f" beside haproxy {about['haproxy']}" if about["haproxy"] else ""
    beside += f" and nginx {about['nginx']}" if about["nginx"] else ""
    title = f"hitlessd {about['hitlessd']}{beside}"
    show_header(out, title, told)
    with tempfile.TemporaryDirectory(prefix="hitlessd-bench-") as name:
        directory = Path(name)
        if options.profile:
            try:
                profile(options.profile, directory, RESULTS, out)
            except RuntimeError as error:
                print(error, file=sys.stderr)
                return 1
            return 0
        run = Run(options, out, directory)
        broken = False
        for section in dict.fromkeys(options.sections):
            try:
                run.section(section)
            except (RuntimeError, AssertionError, OSError, subprocess.SubprocessError) as error:
                # What the others find is worth having.
                out.line("  " + out.paint(f"cannot measure {section}: {error}", "red"))
                run.figures.setdefault(section, {})["error"] = str(error)
                broken = True
    out.erase()
    show_verdict(out, run.targets)
    try:
        _write(options, run, about, title, told)
    except (OSError, ValueError) as error:
        print(f"cannot write the results: {error}", file=sys.stderr)
        return 1
    return 1 if broken or (options.check and not all(target.met for target in run.targets)) else 0


def _write(options: argparse.Namespace, run: Run, about: dict[str, Any], title: str, told: Sequence[str]) -> None:
    figures = {"machine": about, "targets": [target.as_dict() for target in run.targets], **run.figures}
    comparisons = [block for block in run.blocks if isinstance(block, Comparison)]
    note = f"CPU a unit, to haproxy's; {options.rounds} rounds, least to greatest; red: the target; shorter is better"
    picture = svg(title, note, groups_of(comparisons))
    files = {options.json: json.dumps(figures, indent=1) + "\n", options.plot: picture}
    if options.markdown:
        text = markdown([title, *told], run.blocks, run.targets)
        with contextlib.suppress(FileNotFoundError):
            files[options.markdown] = insert(options.markdown.read_text(), text)
        if options.markdown not in files:
            raise ValueError(f"there is no {options.markdown}")
        files[options.markdown.with_suffix(".svg")] = picture
    for file, content in files.items():
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content)
        run.out.line("  " + run.out.paint(f"written: {file}", "dim"))


if __name__ == "__main__":
    sys.exit(main())
