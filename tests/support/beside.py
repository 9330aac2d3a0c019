"""hitlessd and a real haproxy beside each other: the same configuration, the same requests, servers of the same kind.

    with beside(tmp_path, "[listen web]\nbind = $web\nserver a = $a\n") as pair:
        reply = pair.ask(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n")  # hitlessd's; AssertionError if haproxy's differs

The text is hitlessd's; haproxy gets it in its own syntax. A name behind `$` is an Origin if it has one letter, else an
address to listen on.
"""

from __future__ import annotations

import contextlib
import re
import socket
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from string import Template

from tests.support.accepting import listening_sockets
from tests.support.fronts import HAPROXY
from tests.support.origin import Origin, Seen
from tests.support.processes import DeadlineExpired, Lines, Process, free_port, poll_until
from tests.support.restartable import Restartable

__all__ = ["Client", "Line", "Pair", "Reply", "Side", "beside", "for_haproxy"]

_DEFAULTS = """
[defaults]
mode = http
option httplog
timeout connect = 2s
timeout client = 20s
timeout server = 20s
"""
_LOG_HEAD = re.compile(r"\S+ hitlessd\[\d+\] generation \d+ info: ")
_LOG = re.compile(
    r"(?P<ci>[\d.]+):(?P<cp>\d+) \[[^]]+\] (?P<ft>\S+) (?P<b>[^ /]+)/(?P<s>\S+) "
    r"(?P<TR>-?\d+)/(?P<Tw>-?\d+)/(?P<Tc>-?\d+)/(?P<Tr>-?\d+)/(?P<Ta>\+?\d+) (?P<ST>-?\d+) (?P<B>\+?\d+) - - "
    r"(?P<tsc>\S{4}) (?P<ac>\d+)/(?P<fc>\d+)/(?P<bc>\d+)/(?P<sc>\d+)/(?P<rc>\+?\d+) (?P<sq>\d+)/(?P<bq>\d+) "
    r'"(?P<r>.*)"'
)
#: Names of fields of which a proxy may say what it likes, or which frame what it relays.
_HOP = (b"connection", b"keep-alive")

Line = dict[str, str]


@dataclass
class Reply:
    """A response as a client got it."""

    status: int
    reason: bytes
    fields: list[tuple[bytes, bytes]]  # names as they came
    body: bytes
    interim: list[int] = field(default_factory=list)
    trailers: list[bytes] = field(default_factory=list)  # in lower case
    whole: bool = True  # False: the connection ended in the midst of it

    def values(self, name: bytes) -> list[bytes]:
        return [value for found, value in self.fields if found.lower() == name]

    def normal(self) -> tuple[object, ...]:
        """What has to be the same whoever relays it."""
        fields = [(name.lower(), value) for name, value in self.fields if name.lower() not in _HOP]
        return self.status, self.reason, fields, self.body, self.interim, self.trailers, self.whole, self.goes_on

    @property
    def goes_on(self) -> bool:
        return b"close" not in b",".join(self.values(b"connection")).lower()


class Client:
    """A connection to a proxy."""

    def __init__(self, port: int, source: str = "127.0.0.1") -> None:
        self.sock = socket.create_connection(("127.0.0.1", port), 15, (source, 0))
        self._data = b""

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.sock.close()

    def send(self, data: bytes) -> Client:
        self.sock.sendall(data)
        return self

    def ask(self, request: bytes) -> Reply:
        """Send a request and receive its response."""
        self.send(request)
        return self.receive(request.partition(b" ")[0])

    def receive(self, method: bytes = b"GET") -> Reply:
        """The next final response. ConnectionError if the proxy ends the connection instead."""
        interim: list[int] = []
        while True:
            while b"\r\n\r\n" not in self._data:
                if not self._more():
                    raise ConnectionError(f"the end instead of a response, after {self._data!r}")
            head, _, self._data = self._data.partition(b"\r\n\r\n")
            first, *lines = head.split(b"\r\n")
            _, status, reason = (first + b" ").split(b" ", 2)
            fields = [(name, value.strip()) for name, _, value in (line.partition(b":") for line in lines)]
            if int(status) >= 200 or int(status) == 101:
                break
            interim.append(int(status))
        reply = Reply(int(status), reason.strip(), fields, b"", interim)
        if method == b"HEAD" or reply.status in (101, 204, 304) or (method == b"CONNECT" and reply.status == 200):
            return reply
        if length := reply.values(b"content-length"):
            wanted = int(length[0])
            while len(self._data) < wanted and self._more():
                pass
            reply.whole = len(self._data) >= wanted
            reply.body, self._data = self._data[:wanted], self._data[wanted:]
        elif reply.values(b"transfer-encoding"):
            while size := self._chunk():
                reply.body += self.hear(size)
                self.hear(2)
            while line := self._line():
                reply.trailers.append(line.lower())
        else:
            reply.body = self.rest()
        return reply

    def _line(self) -> bytes:
        while b"\r\n" not in self._data:
            assert self._more(), self._data
        line, _, self._data = self._data.partition(b"\r\n")
        return line

    def _chunk(self) -> int:
        return int(self._line(), 16)

    def hear(self, size: int) -> bytes:
        """So many bytes."""
        while len(self._data) < size:
            assert self._more(), self._data
        data, self._data = self._data[:size], self._data[size:]
        return data

    def rest(self) -> bytes:
        """All until the end."""
        while self._more():
            pass
        data, self._data = self._data, b""
        return data

    def _more(self) -> bool:
        try:
            data = self.sock.recv(65536)
        except ConnectionResetError:
            return False
        self._data += data
        return bool(data)

    def reset(self) -> None:
        """Leave without a word."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        self.sock.close()


class Side:
    """One of the two proxies, with servers of its own."""

    def __init__(self, kind: str, names: Sequence[str]) -> None:
        self.kind = kind
        self.origins = {name: Origin(name) for name in names if len(name) == 1}
        self.ports = {name: free_port() for name in names if len(name) > 1}
        self.service: Restartable | None = None
        self.log: Lines | None = None  # of haproxy

    @property
    def addresses(self) -> dict[str, str]:
        found = {name: origin.address for name, origin in self.origins.items()}
        return found | {name: f"127.0.0.1:{port}" for name, port in self.ports.items()}

    @property
    def ours(self) -> bool:
        return self.kind == "hitlessd"

    def client(self, where: str = "web", source: str = "127.0.0.1") -> Client:
        return Client(self.ports[where], source)

    def ask(self, request: bytes, where: str = "web", source: str = "127.0.0.1") -> Reply:
        """A request of a client of its own."""
        with self.client(where, source) as client:
            return client.ask(request)

    def lines(self) -> list[str]:
        """All access log lines, without what stands before the first field."""
        if self.service is not None:
            found = [_LOG_HEAD.sub("", line) for line in self.service.log.splitlines()]
        else:
            assert self.log is not None
            found = list(self.log)
        return [line for line in found if re.match(r"[\d.]+:\d+ \[|\{", line)]

    def logs(self, count: int) -> list[Line]:
        """The first log lines, in HAProxy's HTTP format, when there are so many."""
        lines = poll_until(lambda: (found := self.lines())[count - 1 :] and found[:count], 10, f"{count} log lines")
        parsed = []
        for line in lines:
            match = _LOG.fullmatch(line)
            assert match is not None, line
            parsed.append(match.groupdict())
        return parsed


class Pair:
    """hitlessd and haproxy."""

    def __init__(self, ours: Side, theirs: Side) -> None:
        self.ours, self.theirs = ours, theirs
        self._agreed = dict.fromkeys(ours.origins, (0, 0))

    def __iter__(self) -> Iterator[Side]:
        return iter((self.ours, self.theirs))

    def ask(self, request: bytes, where: str = "web", source: str = "127.0.0.1") -> Reply:
        """Both answer the same, and what they have sent to servers is the same."""
        reply, theirs = (side.ask(request, where, source) for side in self)
        _same(reply.normal(), theirs.normal())
        self.agree()
        return reply

    def forget(self) -> None:
        """What servers have seen so far is of no concern to the next agree()."""
        ours, theirs = self.ours.origins, self.theirs.origins
        self._agreed = {name: (len(ours[name].seen), len(theirs[name].seen)) for name in self._agreed}

    def agree(self) -> None:
        """Servers of both have seen the same requests since the last time."""
        for name, (start, started) in self._agreed.items():
            ours, theirs = self.ours.origins[name].seen, self.theirs.origins[name].seen
            # A proxy may have answered before the server has noted what it was asked.
            with contextlib.suppress(DeadlineExpired):
                poll_until(lambda: len(ours) - start == len(theirs) - started, 10, "as many requests")  # noqa: B023
            self._agreed[name] = len(ours), len(theirs)
            _same(list(map(_message, ours[start:])), list(map(_message, theirs[started:])))

    def agree_on_logs(self, count: int, *names: str) -> list[Line]:
        """The first log lines of both have the same values there; ours are returned.

        %B is not among them: haproxy counts what it stores of a response, where we count what the client gets.
        """
        ours, theirs = (side.logs(count) for side in self)
        names = names or ("ci", "ft", "b", "s", "ST", "tsc", "rc", "sq", "bq", "r")
        for one, other in zip(ours, theirs, strict=True):
            _same({name: one[name] for name in names}, {name: other[name] for name in names})
        return ours

    def seen(self, name: str = "a") -> Seen:
        """The latest request that our server of that name has got."""
        return self.ours.origins[name].seen[-1]


def _same(ours: object, theirs: object) -> None:
    assert ours == theirs, f"\nhitlessd: {ours}\nhaproxy:  {theirs}"


def _message(seen: Seen) -> tuple[object, ...]:
    # Where haproxy puts a field of its own is its affair: at the end, mostly.
    fields = [(name, value) for name, value in seen.fields if name not in _HOP]
    return seen.line, fields, seen.body


def for_haproxy(text: str) -> str:
    """A configuration in haproxy's syntax."""
    lines, key = [], ""
    for line in text.splitlines():
        if line.startswith("["):
            lines.append(line.strip("[]"))
        elif line[:1] == " ":
            lines.append(f"    {key} {line.strip()}")
        elif line:
            key, _, value = line.partition(" = ")
            lines.append(f"    {key} {value}")
    return "\n".join(lines)


@contextlib.contextmanager
def beside(directory: Path, text: str, *, defaults: str = _DEFAULTS, workers: int = 1) -> Iterator[Pair]:
    """Both serve; `text` has sections behind those of `defaults`."""
    text = defaults.strip() + "\n" + text.strip() + "\n"
    names = dict.fromkeys(match["named"] for match in Template.pattern.finditer(text) if match["named"])
    with contextlib.ExitStack() as stack:
        sides = []
        for kind in ("hitlessd", "haproxy"):
            side = Side(kind, list(names))
            sides.append(side)
            for origin in side.origins.values():
                stack.callback(origin.stop)
            own = Template(text).substitute(side.addresses)
            if side.ours:
                head = f"[global]\nstats socket = {directory}/h.sock level admin\nworkers = {workers}\nlog = stderr\n"
                side.service = stack.enter_context(Restartable(directory, config=head + own))
            else:
                stack.enter_context(_haproxy(directory, for_haproxy(own), side))
        yield Pair(*sides)


@contextlib.contextmanager
def _haproxy(directory: Path, text: str, side: Side) -> Iterator[None]:
    file = directory / "haproxy.cfg"
    head = "global\n    nbthread 1\n    log stdout format raw local0\n"
    file.write_text(head + text.replace("defaults\n", "defaults\n    log global\n", 1) + "\n")
    process = Process([HAPROXY, "-db", "-f", str(file)])
    side.log = process.stdout

    def serves() -> bool:
        assert process.running, process.stderr.text
        return listening_sockets().keys() >= set(side.ports.values())

    try:
        poll_until(serves, 20, f"haproxy serves {side.ports}")
        yield
    finally:
        process.stop()
