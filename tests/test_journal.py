"""The journal's native protocol, against a socket of our own: what arrives, and that nobody ever waits."""

from __future__ import annotations

import array
import fcntl
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from hitlessd.events import Event
from hitlessd.journal import Journal
from hitlessd.log import Log
from hitlessd.logfacts import compile_fields
from hitlessd.model import LogTarget
from tests.support.records import Record


def parse(data: bytes) -> dict[str, str]:
    """The fields of an entry (systemd.io/JOURNAL_NATIVE_PROTOCOL)."""
    found: dict[str, str] = {}
    while data:
        head, _, data = data.partition(b"\n")
        name, equals, value = head.partition(b"=")
        if not equals:
            size = int.from_bytes(data[:8], "little")
            value, data = data[8 : 8 + size], data[8 + size :]
            assert data[:1] == b"\n"
            data = data[1:]
        found[name.decode()] = value.decode()
    return found


class Receiver:
    """journald's end."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(path)
        self.socket.setblocking(False)

    def entries(self) -> list[dict[str, str]]:
        """All that has come."""
        found: list[dict[str, str]] = []
        while True:
            try:
                data, ancillary, _, _ = self.socket.recvmsg(1 << 20, socket.CMSG_SPACE(4))
            except BlockingIOError:
                return found
            for _, _, packed in ancillary:
                (fd,) = array.array("i", packed)
                assert not data
                assert fcntl.fcntl(fd, fcntl.F_GET_SEALS) & fcntl.F_SEAL_WRITE
                with open(fd, "rb") as file:
                    file.seek(0)
                    data = file.read()
            found.append(parse(data))


@pytest.fixture
def receiver(tmp_path: Path) -> Iterator[Receiver]:
    made = Receiver(str(tmp_path / "journal"))
    yield made
    made.socket.close()


def test_fields_with_and_without_line_breaks(receiver: Receiver) -> None:
    journal = Journal(receiver.path)
    assert journal.send([("MESSAGE", "two\nlines"), ("A", "b=c"), ("B", "größe\udcff")])
    assert receiver.entries() == [{"MESSAGE": "two\nlines", "A": "b=c", "B": "größe\\udcff"}]
    journal.close()


def test_what_is_too_large_for_a_datagram_goes_as_a_sealed_file(receiver: Receiver) -> None:
    journal = Journal(receiver.path)
    assert journal.send([("MESSAGE", "x" * (9 << 20))])
    assert [len(entry["MESSAGE"]) for entry in receiver.entries()] == [9 << 20]
    journal.close()


def test_a_journald_that_is_not_there_or_comes_back(tmp_path: Path) -> None:
    journal = Journal(str(tmp_path / "journal"))
    assert not journal.send([("MESSAGE", "lost")])
    receiver = Receiver(str(tmp_path / "journal"))
    assert journal.send([("MESSAGE", "one")])
    receiver.socket.close()
    assert not journal.send([("MESSAGE", "lost")])
    os.unlink(receiver.path)
    receiver = Receiver(receiver.path)
    assert journal.send([("MESSAGE", "two")])
    assert receiver.entries() == [{"MESSAGE": "two"}]
    receiver.socket.close()
    journal.close()


def test_what_is_too_large_finds_the_journald_that_is_there(tmp_path: Path) -> None:
    journal = Journal(str(tmp_path / "journal"))
    large = [("MESSAGE", "x" * (9 << 20))]
    assert not journal.send(large)
    for _ in ("one that has come late", "one that came back"):
        receiver = Receiver(str(tmp_path / "journal"))
        assert journal.send(large)
        assert [len(entry["MESSAGE"]) for entry in receiver.entries()] == [9 << 20]
        receiver.socket.close()
        os.unlink(receiver.path)
    journal.close()


def test_a_journald_that_reads_nothing_costs_lines_and_not_time(receiver: Receiver) -> None:
    log = Log(LogTarget("journal"), 3, journal=receiver.path)
    before = time.monotonic()
    for number in range(3000):
        log.access(f"line {number}")
    assert time.monotonic() - before < 5
    came = receiver.entries()
    assert 0 < len(came) < 3000
    log.access("after")
    told, last = receiver.entries()
    assert told["MESSAGE"] == f"{3000 - len(came)} lines are lost: nobody reads" and told["PRIORITY"] == "4"
    assert told["MESSAGE_ID"] == Event.LOG_LINES_LOST.message_id
    assert told["HITLESSD_LINES"] == str(3000 - len(came))
    assert last["MESSAGE"] == "after"
    log.configure(LogTarget("stderr"))


def test_an_access_log_entry_has_fields(receiver: Receiver) -> None:
    log = Log(LogTarget("journal"), 3, journal=receiver.path)
    log.access("the line", False, compile_fields()(Record(status=503, cause="SC", server_name="")))
    (entry,) = receiver.entries()
    assert entry == {
        "MESSAGE": "the line",
        "PRIORITY": "6",
        "SYSLOG_IDENTIFIER": "hitlessd",
        "HITLESSD_GENERATION": "3",
        "CLIENT_ADDR": "192.0.2.7",
        "CLIENT_PORT": "33088",
        "FRONTEND": "www",
        "BACKEND": "app",
        "METHOD": "GET",
        "URI": "/",
        "VERSION": "HTTP/1.1",
        "HOST": "example.org",
        "STATUS": "503",
        "BYTES": "2750",
        "BYTES_UPLOADED": "120",
        "TIME_IDLE": "250",
        "TIME_REQUEST": "125",
        "TIME_QUEUE": "125",
        "TIME_CONNECT": "250",
        "TIME_RESPONSE": "1000",
        "TIME_ACTIVE": "3500",
        "TIME_TOTAL": "3750",
        "TERMINATION_STATE": "SC",
        "RETRIES": "0",
        "REDISPATCHED": "0",
        "SERVER_QUEUE": "0",
        "BACKEND_QUEUE": "0",
        "PROCESS_CONNECTIONS": "5",
        "FRONTEND_CONNECTIONS": "4",
        "BACKEND_CONNECTIONS": "3",
        "SERVER_CONNECTIONS": "2",
    }
    log.configure(LogTarget("stderr"))
