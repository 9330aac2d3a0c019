"""Whatever the bytes: a Config or a ConfigError, never anything else, and soon."""

from __future__ import annotations

import string
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hitlessd.config import load, parse
from hitlessd.config.words import KINDS, OPTIONS
from hitlessd.errors import ConfigError
from hitlessd.model import Config, SourceFile

EXAMPLE = (Path(__file__).parent.parent / "examples" / "hitlessd.conf").read_text()

_RULES = """acl x path_beg /a hdr(host) -i -m reg ( if unless or || ! { } src 10.0.0.0/8 TRUE x http-request deny
set-header X-A %[src] %[ redirect location return status 404 content-type string lf-string hdr mode http tcp insert
rewrite domain uri len hdr(x) random(2) consistent expect send connection reject inspect-delay 5s 503 /dev/null
" ' \\"""

WORDS = sorted(
    {
        *OPTIONS,
        *KINDS,
        *EXAMPLE.split(),
        "no option tcplog",
        "server",
        "server x =",
        "bind",
        "daemon",
        "cookie",
        "check",
        *_RULES.split(),
    }
)
PIECES = st.one_of(
    st.sampled_from(WORDS),
    st.sampled_from(
        ["[", "]", "=", "\n", "\n\n", "\n  ", "\n[", "\n#", " ;", " ", "\t", "\r\n", "\r", "@", ":", "/", "*"]
    ),
    st.sampled_from(["\x00", "\x0b", "\x1c", "\x85", "\u2028", "\u202e", "\ufeff", "\ud800", "\xa0", "9" * 30, "é"]),
    st.text(max_size=8),
    st.integers().map(str),
)
LINES = st.builds(
    "{}{} = {}".format,
    st.sampled_from(["", "  ", "\t"]),
    st.sampled_from([*OPTIONS, "server a", "server b", "acl x", "acl y"]),
    st.lists(st.one_of(st.sampled_from(WORDS), st.text(string.printable, max_size=12)), max_size=6).map(" ".join),
)
SECTIONS = st.builds(
    "{}\n{}\n".format,
    st.sampled_from(["[global]", "[defaults]", "[listen a]", "[frontend a]", "[backend b]", "[backend a]"]),
    st.lists(LINES, max_size=6).map("\n".join),
)


def resolver(host: str) -> Sequence[str]:
    if "x" in host:
        raise OSError("no such host")
    return ["192.0.2.1"]


def outcome(*texts: str) -> Config | list[str]:
    try:
        return parse([SourceFile(f"{i}", text) for i, text in enumerate(texts)], resolver=resolver)
    except ConfigError as error:
        problems = error.problems
    assert problems
    for problem in problems:
        assert "cannot " in problem
        assert "\n" not in problem
        assert len(problem) < 600
    return problems


FAST = settings(max_examples=100, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])


@FAST
@given(st.lists(PIECES, max_size=40).map("".join))
def test_random_text(text: str) -> None:
    outcome(text)


@FAST
@given(st.lists(st.lists(SECTIONS, max_size=5).map("".join), max_size=3))
def test_random_options(texts: list[str]) -> None:
    outcome(*texts)


def test_a_path_that_utf8_cannot_spell() -> None:
    outcome("[listen a]\nbind = /run/\ud800\nserver s = /run/\ud800\nserver t = abns@\ud800\n")


@FAST
@given(
    st.lists(
        st.tuples(st.integers(0, len(EXAMPLE)), st.integers(0, 12), PIECES), min_size=1, max_size=6
    )
)  # fmt: skip
def test_mutations_of_a_valid_file(changes: list[tuple[int, int, str]]) -> None:
    text = EXAMPLE
    for start, length, piece in changes:
        text = text[:start] + piece + text[start + length :]
    outcome(text)


@FAST
@given(st.lists(st.integers(0, EXAMPLE.count("\n")), max_size=20))
def test_lines_moved_and_doubled(order: list[int]) -> None:
    lines = EXAMPLE.split("\n")
    outcome("\n".join(lines[i] for i in order) + "\n" + EXAMPLE)


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz") / "random.conf"


@FAST
@given(data=st.binary(max_size=200), start=st.integers(0, len(EXAMPLE)))
def test_random_bytes_in_a_file(scratch: Path, data: bytes, start: int) -> None:
    for content in (data, EXAMPLE.encode()[:start] + data + EXAMPLE.encode()[start:]):
        scratch.write_bytes(content)
        with suppress(ConfigError):
            load([str(scratch)], resolver=resolver)


@pytest.mark.parametrize(
    "text",
    [
        "x\n" * 500_000,
        "[a]\n" * 250_000,
        "[global]\nbind" + " " * 1_000_000 + "x",
        "[global]\nbind = " + "a#" * 500_000,
        "[global]\nx" + "=" * 1_000_000,
        "[listen a]\nbind = " + ":" * 1_000_000,
        "[listen a]\nbind = " + "backlog " * 130_000,
        "[listen a]\nserver a = 192.0.2.1 " + "zz " * 340_000,
        "[listen a]\nserver a = " + "a." * 500_000,
        "[" * 1_000_000,
        "[listen " + "a" * 1_000_000 + "]\nbind = x\n" * 2,
        "[listen a]\nbind = :1\n" + " y\n" * 49_000,
        "[global]\nmaxconn = " + "9" * 1_000_000,
        *(
            f"[listen a]\nmode = http\n{line}\n"
            for line in (
                "http-request = set-header A " + '"\\' * 400_000,
                "http-request = set-header A '" + "%[path]" * 100_000 + "'",
                "http-request = deny if " + "!" * 900_000,
                "http-request = deny if " + "{ path a } " * 80_000,
                "http-request = deny if { path_reg " + "(" * 400_000 + " }",
                "http-request = deny\n" + " deny if x\n" * 40_000,
                "http-request = return" + " hdr a b" * 100_000,
                "http-check = send" + " hdr a b" * 100_000,
                "http-check = expect status " + "200," * 200_000 + "\n expect status 200" * 40_000,
                "acl b = " + "a." * 400_000,
                "use_backend = a if " + "TRUE or " * 100_000,
            )
        ),
    ],
)
def test_hostile_text(text: str) -> None:
    """Texts that expressions of quadratic time, or an answer to each word, would make slow."""
    assert isinstance(outcome(text), list)
