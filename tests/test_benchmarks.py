"""The benchmark: its arithmetic, its tables and picture, its command line, and one short run of a section."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree

import pytest

from benchmarks.figures import Comparison, Ratio, Sample, Series, Target, Work, base_of, ratio_of
from benchmarks.idle import most_idle
from benchmarks.markdown import BEGIN, END, insert, markdown
from benchmarks.plot import Bar, Group, groups_of, svg
from benchmarks.profiling import calls_of
from benchmarks.reloads import phase_medians
from benchmarks.report import show_comparison, show_verdict
from benchmarks.run import SECTIONS, SLOW, arguments
from benchmarks.sections import Section, show
from benchmarks.terminal import Terminal
from benchmarks.usage import Usage, usage_of
from benchmarks.user import User, unit_limit
from tests.support.processes import ROOT

SVG = "{http://www.w3.org/2000/svg}"
WORK = Work("small <requests>", "request", 1e6, "µs CPU", "/s", {}, lambda result: float(result["done"]))


def series(costs: Sequence[float], failed: int = 0) -> Series:
    return Series([Sample(1000, 2.0, cost * 1000, 0.5, 0.1, failed, 0.75) for cost in costs])


@pytest.fixture
def comparison() -> Comparison:
    """Ours took 1.1, 1.2 and 1.0 of what haproxy took in the same round."""
    found = Comparison(
        WORK,
        {
            "haproxy": series([10e-6, 20e-6, 30e-6]),
            "nginx": series([5e-6] * 3),
            "hitlessd": series([11e-6, 24e-6, 30e-6]),
        },
    )
    found.aim("hitlessd", "haproxy", 1.05)
    return found


class _Text:
    def __init__(self) -> None:
        self.text = ""

    def write(self, text: str) -> int:
        self.text += text
        return len(text)

    def flush(self) -> None:
        pass

    def isatty(self) -> bool:
        return False


def terminal(text: _Text) -> Terminal:
    return Terminal(text)  # type: ignore[arg-type]


def test_a_ratio_is_made_of_the_rounds_own() -> None:
    assert ratio_of([1.0, 4.0, 9.0], [1.0, 2.0, 3.0]) == Ratio(2.0, 1.0, 3.0)


@pytest.mark.parametrize(("values", "others"), [([], []), ([1.0], [1.0, 2.0])])
def test_a_ratio_needs_as_many_of_both(values: list[float], others: list[float]) -> None:
    with pytest.raises(ValueError, match=r"no rounds|longer"):
        ratio_of(values, others)


@pytest.mark.parametrize(
    ("name", "base"),
    [
        ("hitlessd", "haproxy"),
        ("hitlessd, always", "haproxy, always"),
        ("nginx, httplog", "haproxy"),
        ("haproxy, always", "haproxy"),
        ("haproxy", ""),
    ],
)
def test_like_is_compared_with_like(name: str, base: str) -> None:
    assert base_of(name, {"haproxy": 1, "haproxy, always": 2}) == base


def test_without_haproxy_nobody_is_compared() -> None:
    assert base_of("hitlessd", {"nginx": 1, "hitlessd": 2}) == ""


def test_a_target_has_the_ratio_and_its_spread(comparison: Comparison) -> None:
    (target,) = comparison.targets
    assert target.value == pytest.approx(1.1)
    assert target.spread == pytest.approx((1.0, 1.2))
    assert not target.met
    assert target.as_dict()["spread"] == [1.0, 1.2]


def test_a_contender_that_is_missing_is_no_target(comparison: Comparison) -> None:
    comparison.aim("hitlessd", "haproxy, splice", 1.0)
    assert len(comparison.targets) == 1


def test_failures_miss_a_target() -> None:
    found = Comparison(WORK, {"hitlessd": series([1e-6], failed=2)})
    found.count_failures()
    assert [(target.value, target.met) for target in found.targets] == [(2, False)]


def test_the_kernels_share_is_weighed_by_what_was_used() -> None:
    samples = [Sample(1, 1, 3.0, 0, 0, 0, 1.0), Sample(1, 1, 1.0, 0, 0, 0, 0.0)]
    assert Series(samples).system == pytest.approx(0.75)


def test_figures_are_for_json(comparison: Comparison) -> None:
    found = json.loads(json.dumps(comparison.as_dict()))
    assert found["hitlessd"]["ratio_to"] == "haproxy"
    assert found["hitlessd"]["ratio"]["median"] == pytest.approx(1.1)
    assert found["haproxy"]["ratio"] is None
    assert len(found["nginx"]["samples"]) == 3


@pytest.mark.parametrize(("value", "at_most", "met"), [(1.0, True, True), (1.1, True, False), (1.1, False, True)])
def test_a_target_is_a_limit_or_a_floor(value: float, at_most: bool, met: bool) -> None:
    assert Target("x", value, 1.0, " x", at_most).met is met


def test_the_table_says_ratio_spread_and_verdict(comparison: Comparison) -> None:
    text = _Text()
    show_comparison(terminal(text), comparison)
    show_verdict(terminal(text), comparison.targets)
    assert "1.10 x (1.00..1.20)" in text.text
    assert "kernel  75%" in text.text
    assert "✘ target ≤ 1.05 x" in text.text
    assert "1 of 1 targets missed" in text.text


def test_a_section_has_rows_with_and_without_targets() -> None:
    section = Section("reload", "10 times")
    section.tell("phase start", "90 ms")
    section.aim("median", 120.0, 150.0, " ms")
    section.aim_ratio("p99.9", Ratio(1.5, 1.25, 3.0), 2.0)
    text = _Text()
    show(terminal(text), section)
    assert "✔ target ≤ 150 ms" in text.text
    assert "1.50 x (1.25..3)" in text.text
    assert [target.name for target in section.targets] == ["reload: median", "reload: p99.9"]


def test_markdown_goes_between_the_marks(comparison: Comparison) -> None:
    section = Section("reload", "")
    section.aim("a | b", 1.0, 2.0)
    text = markdown(["a machine"], [comparison, section], [*comparison.targets, *section.targets])
    document = insert(f"before\n{BEGIN}\nold\n{END}\nafter\n", text)
    assert document.startswith(f"before\n{BEGIN}\n") and document.endswith(f"{END}\nafter\n")
    assert "old" not in document
    assert "| 1.10 x (1.00..1.20) | 75% |" in document
    assert "a \\| b" in document
    tables = [line for line in document.splitlines() if line.startswith("|")]
    assert all(line.endswith("|") for line in tables)
    assert insert(document, text) == document


def test_a_document_without_marks_is_left_alone() -> None:
    with pytest.raises(ValueError, match="has no lines"):
        insert("nothing", "text")


def test_the_picture_has_a_bar_for_each_ratio_and_its_whisker(comparison: Comparison) -> None:
    picture = ElementTree.fromstring(svg("a & b", "<note>", groups_of([comparison])))
    bars = [rect for rect in picture.iter(f"{SVG}rect") if rect.get("class") != "back"]
    lines = [line.get("class") for line in picture.iter(f"{SVG}line")]
    texts = [text.text for text in picture.iter(f"{SVG}text")]
    assert [bar.get("class") for bar in bars] == ["other", "ours"]
    assert float(bars[1].get("width", "0")) > float(bars[0].get("width", "0"))
    assert lines.count("whisker") == 6
    assert lines.count("goal") == 1
    assert {"a & b", "<note>", "small <requests>", "hitlessd", "nginx", "1.10 ✘"} <= set(texts)
    style = picture.findtext(f"{SVG}style")
    assert style and "prefers-color-scheme: dark" in style


def test_a_wild_round_stays_inside_the_picture() -> None:
    picture = ElementTree.fromstring(svg("", "", [Group("x", [Bar("hitlessd", Ratio(1.0, 0.5, 90.0), 1.25)])]))
    _, _, width, _ = map(float, picture.get("viewBox", "").split())
    assert all(float(line.get("x2", "0")) <= width for line in picture.iter(f"{SVG}line"))


def test_without_a_comparison_the_picture_says_so() -> None:
    assert "nothing to compare" in svg("t", "n", groups_of([Comparison(WORK, {"hitlessd": series([1e-6])})]))


def test_counts_of_system_calls_are_read() -> None:
    text = (
        "% time     seconds  usecs/call     calls    errors syscall\n"
        "------ ----------- ----------- --------- --------- ----------------\n"
        " 35.17    0.126404          15      8000       100 recvfrom\n"
        " 24.83    0.089243          22      4000           accept4\n"
        "------ ----------- ----------- --------- --------- ----------------\n"
        "100.00    0.359401          17     12000       100 total\n"
    )
    assert calls_of(text) == {"recvfrom": 8000, "accept4": 4000}


def test_phases_are_those_of_reloads_that_were_done() -> None:
    outcomes: list[dict[str, object]] = [
        {"ok": True, "phases": [["start", 0.1], ["move", 0.02]]},
        {"ok": False, "phases": [["start", 9.0]]},
        {"ok": True, "phases": [["start", 0.3], ["move", 0.04]]},
    ]
    assert phase_medians(outcomes) == pytest.approx({"start": 0.2, "move": 0.03})


@pytest.mark.parametrize(("limit", "count"), [(20_000, 9_200), (524_288, 10_000), (1024, 100)])
def test_idle_connections_fit_the_limit(limit: int, count: int) -> None:
    assert most_idle(limit) == count


def test_our_own_cpu_is_found() -> None:
    before = usage_of([os.getpid()])
    while (used := usage_of([os.getpid()]) - before).total <= 0:
        pass
    assert 0 <= used.kernel_share <= 1
    assert Usage(1.0, 0.0, 0.0).kernel_share == 0.0
    assert usage_of([2**22 + 1]) == Usage(0.0, 0.0, 0.0)


def test_the_units_limit_is_what_is_run_with() -> None:
    assert unit_limit((ROOT / "units" / "hitlessd.service").read_text()) == 524288
    with pytest.raises(ValueError, match="no LimitNOFILE="):
        unit_limit("[Service]\n")


def test_somebody_else_runs_without_privileges() -> None:
    assert User().wrapper == []
    assert {"--reuid=2000001", "--no-new-privs", "--bounding-set=-all"} <= set(User(2000001).wrapper)


def test_sections_are_chosen_by_name() -> None:
    options = arguments(["tcp", "--quick", "reload", "--rounds", "3"])
    assert options.sections == ["tcp", "reload"]
    assert (options.quick, options.rounds) == (True, 3)
    assert arguments([]).sections == list(SECTIONS)
    assert set(SECTIONS) - set(arguments(["--quick"]).sections) == SLOW
    assert {"tcp", "bulk", "http", "idle", "latency", "reload", "start", "workers", "migrate"} <= set(SECTIONS)


@pytest.mark.parametrize(
    "argv", [["nonsense"], ["--rounds", "0"], ["--rate", "fast"], ["--profile", "nonsense"]], ids=" ".join
)
def test_what_makes_no_sense_is_refused(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        arguments(argv)
    assert caught.value.code == 2
    message = capsys.readouterr().err
    assert "Traceback" not in message
    assert argv[-1] in message


def test_one_section_runs_and_writes_what_it_found(tmp_path: Path) -> None:
    document = tmp_path / "document.md"
    document.write_text(f"# Results\n{BEGIN}\n{END}\n")
    files = ["--json", tmp_path / "r.json", "--plot", tmp_path / "r.svg", "--markdown", document]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", "--quick", *map(str, files), "tcp"],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((tmp_path / "r.json").read_text())
    for work in ("one request a connection", "request on a kept connection"):
        each = found["tcp"][work]
        assert {"haproxy", "hitlessd"} <= set(each)
        assert all(each[name]["failed"] == 0 and each[name]["cpu_seconds_per_unit"] > 0 for name in each)
        assert each["hitlessd"]["ratio"]["median"] > 0
    assert len(found["targets"]) == 2
    assert found["machine"]["haproxy"] in done.stdout
    assert "one request a connection" in document.read_text()
    ElementTree.parse(tmp_path / "r.svg")
    ElementTree.parse(document.with_suffix(".svg"))
