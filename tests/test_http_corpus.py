"""What smuggles is refused, and what is accepted h11 and llhttp read in the same way; the cases are data."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from hitlessd.http.edit import forward_request, forward_response
from hitlessd.http.heads import head_end, parse_request, parse_response
from tests.support.readers import Outcome, by_h11, by_httptools, by_us, in_pieces

CORPUS = Path(__file__).parent / "corpus" / "http"
CHUNKED_POST = b"POST / HTTP/1.1\r\nHost: a.example\r\nTransfer-Encoding: chunked\r\n\r\n"


@dataclass(frozen=True)
class Case:
    name: str
    source: str
    data: bytes
    response: bool
    ours: str
    exceptions: dict[str, str]


def _cases() -> Iterator[Case]:
    for file in sorted(CORPUS.glob("*.json")):
        for line in json.loads(file.read_text()):
            data = line["data"].encode("latin-1")
            name = f"{file.stem}: {line['name']}"
            if file.stem == "chunks":
                data = CHUNKED_POST + data
            response = file.stem == "responses"
            yield Case(name, line["source"], data, response, str(line["ours"]), line.get("except", {}))


CASES = list(_cases())


def _messages(case: Case) -> Iterator[tuple[bytes, Outcome]]:
    """Each message of the connection with the bytes that it begins; the last one may be none."""
    rest = case.data
    while rest:
        outcome = by_us(rest, case.response)
        yield rest, outcome
        if outcome.verdict != "message" or outcome.last or outcome.tunnel or outcome.end < 0:
            return
        rest = rest[outcome.end :]


def _verdict(outcome: Outcome) -> str:
    return "accept" if outcome.verdict == "message" else str(outcome.status or outcome.verdict)


def test_the_corpus_is_what_it_claims() -> None:
    assert len(CASES) > 900
    assert len({case.name for case in CASES}) == len(CASES)
    assert all(case.source for case in CASES)
    assert sum(case.ours == "accept" for case in CASES) > 190


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name.encode("unicode_escape").decode())
def test_all_agree_about(case: Case) -> None:
    verdict = ""
    differing: dict[str, str] = {}
    for rest, ours in _messages(case):
        verdict = _verdict(ours)
        if ours.verdict != "message":
            break
        for name, reader in (("h11", by_h11), ("llhttp", by_httptools)):
            theirs = reader(rest, case.response)
            if theirs.verdict != "message":
                differing[name] = "refuses"
            elif (theirs.start, theirs.fields, theirs.body, theirs.end) != (
                ours.start,
                ours.fields,
                ours.body,
                ours.end,
            ):
                differing[name] = "reads"
    assert verdict == case.ours
    assert differing == {name: reason.partition(":")[0] for name, reason in case.exceptions.items()}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name.encode("unicode_escape").decode())
def test_a_byte_at_a_time_is_the_same_for(case: Case) -> None:
    sizes = [911] if len(case.data) > 10_000 else [1, 7]  # where only the size counts, larger pieces tell as much
    for rest, outcome in _messages(case):
        for size in sizes:
            pieces = [rest[at : at + size] for at in range(0, len(rest), size)]
            assert in_pieces(pieces, case.response) == outcome


@pytest.mark.parametrize(
    "case",
    [case for case in CASES if case.ours == "accept"],
    ids=lambda case: case.name.encode("unicode_escape").decode(),
)
def test_what_is_passed_on_means_the_same_for(case: Case) -> None:
    for rest, ours in _messages(case):
        end = head_end(rest, 0, case.response)
        body = rest[end : ours.end if ours.end >= 0 else None]
        for keep in (True, False):
            if case.response:
                head = forward_response(parse_response(rest[:end]), 11, keep)
            else:
                head = forward_request(parse_request(rest[:end]), keep)
            again = by_us(head + body, case.response)
            if again.status == 431:  # the field that we add was one too many for ourselves
                continue
            assert (again.verdict, again.start, again.body) == (ours.verdict, ours.start, ours.body)
            assert _end_to_end(again) == _end_to_end(ours)
            for reader in (by_h11, by_httptools):
                theirs = reader(head + body, case.response)
                if theirs.verdict == "message":
                    assert theirs.body == ours.body
                    assert (theirs.end < 0) == (ours.end < 0)


HOP_BY_HOP = {b"connection", b"keep-alive", b"proxy-connection", b"te", b"upgrade", b"http2-settings", b"x-y"}


def _end_to_end(outcome: Outcome) -> list[tuple[bytes, bytes]]:
    """The fields that are not for one hop only; X-Y is what a case's Connection names, and may."""
    return [(name, value) for name, value in outcome.fields if name not in HOP_BY_HOP]
