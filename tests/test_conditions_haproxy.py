"""Conditions and texts say the same as a haproxy that is asked the same."""

from __future__ import annotations

import contextlib
import signal
import socket
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from hitlessd.http.texts import compile_text
from tests.support.processes import Process, free_ports, poll_until
from tests.test_conditions import FIELDS, HEADERS, TEXTS, Known, holds, request

_CONFIG = """\
global
    tune.http.maxhdr 2000
    tune.bufsize 65536
defaults
    mode http
    timeout connect 5s
    timeout client 1m
    timeout server 1m
frontend f
    bind 127.0.0.1:{port}
{rules}
    http-request return status 200
"""

#: Header sets that are asked about every criterion.
_OTHERS = (
    ((b"Host", b"a"), (b"Accept", b"c"), (b"Content-Length", b"0"), (b"X-Forwarded-For", b"192.0.2.7")),
    ((b"Host", b"www.Example.net:80"), (b"Accept", b", ,c,"), (b"X-Quoted", b'"d'), (b"X-Empty", b" ")),
    ((b"Host", b"example.net"), (b"Accept", b'a"b,c"d, "e\\", f", c'), (b"X-Quoted", b"d, d"), (b"x-none", b"0")),
)


@contextlib.contextmanager
def haproxy(directory: Path, rules: Sequence[str]) -> Iterator[int]:
    """A haproxy with these rules; gives its port."""
    (port,) = free_ports(1)
    file = directory / "haproxy.cfg"
    file.write_text(_CONFIG.format(port=port, rules="\n".join("    " + rule for rule in rules)))
    process = Process(["/usr/sbin/haproxy", "-db", "-f", file])

    def serves() -> bool:
        assert process.running, process.stderr.text
        with contextlib.suppress(OSError):
            socket.create_connection(("127.0.0.1", port), 5).close()
            return True
        return False

    try:
        poll_until(serves, 20, "haproxy serves")
        yield port
    finally:
        process.stop(first=signal.SIGKILL)


def ask(port: int, sample: Known) -> dict[str, str]:
    """The headers of haproxy's answer; the sample gets the connection's addresses."""
    assert sample.request is not None
    head = b"%b %b HTTP/1.1\r\n" % (sample.request.method, sample.request.target)
    head += b"".join(b"%b: %b\r\n" % field for field in sample.request.fields)
    with socket.create_connection(("127.0.0.1", port), 5) as client:
        sample.client, sample.local = client.getsockname(), client.getpeername()
        client.sendall(head + b"\r\n")
        reply = b""
        while b"\r\n\r\n" not in reply:
            data = client.recv(65536)
            assert data, reply
            reply += data
    lines = reply.decode("latin-1").partition("\r\n\r\n")[0].split("\r\n")
    assert lines[0].startswith("HTTP/1.1 200"), lines[0]
    return dict(line.split(": ", 1) for line in lines[1:])


def quoted(words: str) -> str:
    return " ".join(f"'{word}'" for word in words.split(" "))


def compare(directory: Path, conditions: Sequence[str], samples: Sequence[Known]) -> None:
    rules = []
    for number, words in enumerate(conditions):
        rules.append(f"http-request set-var(txn.c{number}) int(1) if {{ {quoted(words)} }}")
        rules.append(f"http-after-response set-header C{number} 1 if {{ var(txn.c{number}) -m found }}")
    with haproxy(directory, rules) as port:
        for sample in samples:
            answers = ask(port, sample)
            for number, words in enumerate(conditions):
                theirs = f"c{number}" in answers
                assert holds(words, sample) is theirs, (words, sample.request, "haproxy", theirs)


def test_texts(tmp_path: Path) -> None:
    conditions = list(dict.fromkeys(words for words, _, _ in TEXTS))
    targets = dict.fromkeys(target for _, target, _ in TEXTS if target.isascii() and target[:1] in b"/h")
    samples = []
    for target in targets:
        host = b"www.example.net" if target.startswith(b"/") else target.split(b"/")[2]
        samples.append(request(target, (b"Host", host)))
    compare(tmp_path, conditions, samples)


def test_headers(tmp_path: Path) -> None:
    # `-m bool` of a text that is no number never matches there; here it does when the text is there and is not 0
    conditions = [words for words, _ in HEADERS if "-m bool" not in words]
    fields = [*_OTHERS, tuple(field for field in FIELDS if field[0] != b"Content-Length")]
    compare(tmp_path, conditions, [request(b"/", *each) for each in fields])


@pytest.mark.parametrize("target", [b"/a/b?c=d", b"/a?b?c", b"/?", b"/"])
def test_texts_with_variables(tmp_path: Path, target: bytes) -> None:
    texts = [
        "%ci|%cp|%fi|%fp|%f|%HM|%HP|%HQ|%HU|%HV|100%%",
        "%[src]|%[src_port]|%[dst]|%[dst_port]|%[fe_name]|%[method]|%[path]|%[query]|%[url]|%[base]|%[req.ver]",
        "%[req.hdr(accept)]|%[req.hdr(accept,1)]|%[req.fhdr(accept)]|%[req.hdr_cnt(accept)]|%[hdr(none)]|%[hdr_ip(x)]",
        "%[req.hdr(host),lower]|%[req.hdr(host),upper,length]|%{+Q}[path]|%[req.hdr_val(age)]|%[always_true]",
    ]
    rules = [f"http-request set-var-fmt(txn.t{number}) '{text}'" for number, text in enumerate(texts)]
    rules += [f"http-after-response set-header T{number} %[var(txn.t{number})]" for number in range(len(texts))]
    sample = request(target, (b"Host", b"Www.Example.Net"), (b"Accept", b"a, b"), (b"Accept", b"c,d"), (b"Age", b"12"))
    sample.frontend_name = "f"
    with haproxy(tmp_path, rules) as port:
        answers = ask(port, sample)
    for number, text in enumerate(texts):
        assert compile_text(text)(sample).decode() == answers[f"t{number}"]
