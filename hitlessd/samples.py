"""Sample fetches: what conditions, header values and logs can ask about a connection, a request or a response.

Names and meanings are HAProxy's (configuration manual, section 7.3). Texts are bytes as they came; numbers are int; a
fetch that has nothing to fetch gives None, or no value. Nothing here does I/O.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

__all__ = [
    "BACKEND",
    "CONNECTION",
    "CONVERTERS",
    "FETCHES",
    "HELLO",
    "REQUEST",
    "RESPONSE",
    "Fetch",
    "Head",
    "Mistake",
    "Sample",
    "Value",
    "expression",
    "fetcher",
    "find",
    "split_call",
    "text",
]

Value = bytes | int

#: From when on a fetch has an answer.
CONNECTION, HELLO, REQUEST, BACKEND, RESPONSE = range(5)

_TEXT, _NUMBER, _ADDRESS, _SWITCH, _METHOD = "text", "number", "address", "switch", "method"
_CALL = re.compile(r"([A-Za-z0-9_.]+)(?:\((.*)\))?")
_CALL_BEFORE = re.compile(r"([A-Za-z0-9_.]+)(?:\(([^()]*)\))?(?=,|$)")
_TOKEN = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")


class Head(Protocol):
    """What is asked of a request's or a response's head; see hitlessd.http.heads."""

    @property
    def version(self) -> int: ...
    @property
    def fields(self) -> Sequence[tuple[bytes, bytes]]: ...
    def values(self, name: bytes) -> list[bytes]: ...


class RequestHead(Head, Protocol):
    """A request's head."""

    @property
    def method(self) -> bytes: ...
    @property
    def target(self) -> bytes: ...
    @property
    def path(self) -> bytes: ...
    @property
    def query(self) -> bytes: ...
    @property
    def host(self) -> bytes: ...


class ResponseHead(Head, Protocol):
    """A response's head."""

    @property
    def status(self) -> int: ...


class Sample(Protocol):
    """What there is to ask, as far as it is known yet."""

    @property
    def client(self) -> tuple[str, int] | None: ...  # numeric address and port; None: a unix socket
    @property
    def local(self) -> tuple[str, int] | None: ...
    @property
    def request(self) -> RequestHead | None: ...
    @property
    def response(self) -> ResponseHead | None: ...
    @property
    def sni(self) -> str: ...  # of the ClientHello; "": none
    @property
    def frontend_name(self) -> str: ...
    @property
    def backend_name(self) -> str: ...
    @property
    def server_name(self) -> str: ...


class Mistake(ValueError):
    """A word of the configuration that cannot be used; `near` are those that may have been meant."""

    def __init__(self, what: str, found: str, expected: str, near: Iterable[str] = ()) -> None:
        super().__init__(f'cannot {what}: found "{found}", expected {expected}')
        self.what = what
        self.found = found
        self.expected = expected
        self.near = near


class Fetch:
    """One fetch: the kind of its values, from which stage on it answers, and how.

    `all_of(argument)` gives a function from a Sample to every value, as conditions look at them.
    """

    __slots__ = ("all_of", "argument", "kind", "stage")

    def __init__(
        self,
        kind: str,
        stage: int,
        all_of: Callable[[str], Callable[[Sample], Sequence[Value]]],
        argument: bool = False,
    ) -> None:
        self.kind = kind
        self.stage = stage
        self.all_of = all_of
        self.argument = argument


def fetcher(name: str, argument: str = "") -> Callable[[Sample], Value | None]:
    """One value, or None: as `%[NAME(ARGUMENT)]` needs it. Of several header values it is the last.

    Raises Mistake, a ValueError, for names and arguments that do not exist.
    """
    all_of = find(name, argument).all_of(argument)

    def last(sample: Sample) -> Value | None:
        values = all_of(sample)
        return values[-1] if values else None

    return last


def expression(word: str) -> tuple[Fetch, Callable[[Sample], Value | None]]:
    """What stands in `%[...]`: a fetch, and the converters after it. Raises Mistake."""
    match = _CALL_BEFORE.match(word)
    if not match:
        raise Mistake("read this sample fetch", word, "NAME or NAME(ARGUMENT), and perhaps converters after commas")
    name, argument = match[1], (match[2] or "").replace(" ", "")
    fetch = find(name, argument)
    get = fetcher(name, argument)
    for converter in filter(None, word[match.end() :].split(",")):
        get = _converted(get, converter)
    return fetch, get


def _converted(get: Callable[[Sample], Value | None], name: str) -> Callable[[Sample], Value | None]:
    convert = CONVERTERS.get(name)
    if convert is None:
        raise Mistake("use this converter", name, "one of " + ", ".join(CONVERTERS), CONVERTERS)
    function = convert

    def converted(sample: Sample) -> Value | None:
        value = get(sample)
        return None if value is None else function(value)

    return converted


def find(name: str, argument: str = "") -> Fetch:
    """The fetch of that name. Raises Mistake, also when an argument is missing or has no place."""
    fetch = FETCHES.get(name)
    if fetch is None:
        raise Mistake("use this sample fetch", name, "one that this version has", FETCHES)
    if fetch.argument and not argument:
        raise Mistake("use this sample fetch", name, f"{name}(NAME)")
    if argument and not fetch.argument:
        raise Mistake("use this sample fetch", f"{name}({argument})", f"{name} without an argument")
    if fetch.argument:
        fetch.all_of(argument)  # says what is wrong with it
    return fetch


def split_call(word: str) -> tuple[str, str]:
    """Name and argument of `NAME` or `NAME(ARGUMENT)`. Raises Mistake."""
    match = _CALL.fullmatch(word)
    if not match:
        known = _CALL.match(word)
        if known and word[known.end() :].startswith(","):
            raise Mistake("use this converter", word[known.end() + 1 :], f"{known[0]} alone: converters do not go here")
        raise Mistake("read this sample fetch", word, "NAME or NAME(ARGUMENT)")
    if match[2] == "":
        return match[1], ""
    return match[1], (match[2] or "").replace(" ", "")


def text(value: Value | None) -> str:
    """A value as a log line shows it, "" for none; bytes above 127 become the Latin-1 characters of that number."""
    if value is None:
        return ""
    return value.decode("latin-1") if isinstance(value, bytes) else str(int(value))


def _simple(get: Callable[[Sample], Value | None]) -> Callable[[str], Callable[[Sample], Sequence[Value]]]:
    def values(sample: Sample) -> Sequence[Value]:
        value = get(sample)
        return () if value is None else (value,)

    return lambda argument: values


def _of_request(get: Callable[[RequestHead], Value]) -> Callable[[str], Callable[[Sample], Sequence[Value]]]:
    return _simple(lambda sample: get(sample.request) if sample.request is not None else None)


def _request(sample: Sample) -> Head | None:
    return sample.request


def _response(sample: Sample) -> Head | None:
    return sample.response


def _elements(value: bytes) -> list[bytes]:
    """The elements of a list; commas in quoted strings do not separate (RFC 9110 5.6.1, 5.6.4)."""
    if b'"' not in value:
        return [element.strip(b" \t") for element in value.split(b",")]
    elements, start, quoted, escaped = [], 0, False, False
    for at, byte in enumerate(value):
        if escaped:
            escaped = False
        elif quoted:
            escaped = byte == 0x5C
            quoted = byte != 0x22
        elif byte == 0x22:
            quoted = True
        elif byte == 0x2C:
            elements.append(value[start:at].strip(b" \t"))
            start = at + 1
    return [*elements, value[start:].strip(b" \t")]


def _field(argument: str) -> tuple[bytes, int]:
    """Name and occurrence (0: all) of `hdr(NAME[,OCCURRENCE])`. Raises Mistake."""
    name, comma, number = argument.partition(",")
    lower = name.lower().encode("utf-8", "surrogateescape")
    if not _TOKEN.fullmatch(lower):
        raise Mistake("use this header", name, "the name of a header field")
    if not comma:
        return lower, 0
    if not re.fullmatch("-?[1-9][0-9]{0,3}", number):
        raise Mistake("use this occurrence", number, "a number, 1 for the first, -1 for the last")
    return lower, int(number)


def _header(
    head: Callable[[Sample], Head | None], lines: bool = False
) -> Callable[[str], Callable[[Sample], list[bytes]]]:
    """The values of a header; `lines`: whole field lines, else the elements of their lists."""

    def all_of(argument: str) -> Callable[[Sample], list[bytes]]:
        name, occurrence = _field(argument)

        def values(sample: Sample) -> list[bytes]:
            found = head(sample)
            if found is None:
                return []
            each = found.values(name)
            if each and not lines:
                each = [element for value in each for element in _elements(value)]
            if not occurrence:
                return each
            at = occurrence - 1 if occurrence > 0 else len(each) + occurrence
            return each[at : at + 1] if at >= 0 else []

        return values

    return all_of


def _count(
    head: Callable[[Sample], Head | None], lines: bool = False
) -> Callable[[str], Callable[[Sample], Sequence[Value]]]:
    header = _header(head, lines)

    def all_of(argument: str) -> Callable[[Sample], Sequence[Value]]:
        values = header(argument)
        return lambda sample: () if head(sample) is None else (len(values(sample)),)

    return all_of


def _numbers(head: Callable[[Sample], Head | None]) -> Callable[[str], Callable[[Sample], Sequence[Value]]]:
    header = _header(head)

    def all_of(argument: str) -> Callable[[Sample], Sequence[Value]]:
        values = header(argument)
        return lambda sample: [int(v) for v in values(sample) if re.fullmatch(rb"-?[0-9]{1,18}", v)]

    return all_of


def _host(end: tuple[str, int] | None) -> bytes | None:
    return end[0].encode("latin-1", "replace") if end else None


def _name(name: str) -> bytes | None:
    return name.encode("utf-8", "surrogateescape") or None


def _version(head: Head) -> bytes:
    return b"%d.%d" % divmod(head.version, 10)


def _client_port(sample: Sample) -> int | None:
    return sample.client[1] if sample.client else None


def _local_port(sample: Sample) -> int | None:
    return sample.local[1] if sample.local else None


def _bytes(value: Value) -> bytes:
    return value if isinstance(value, bytes) else b"%d" % value


#: What may follow a fetch in `%[...]`.
CONVERTERS: dict[str, Callable[[Value], Value]] = {
    "lower": lambda value: _bytes(value).lower(),
    "upper": lambda value: _bytes(value).upper(),
    "length": lambda value: len(_bytes(value)),
}

_SNI = Fetch(_TEXT, HELLO, _simple(lambda sample: _name(sample.sni)))
_REQUEST_HEADER = Fetch(_TEXT, REQUEST, _header(_request), True)
_REQUEST_LINES = Fetch(_TEXT, REQUEST, _header(_request, lines=True), True)
_RESPONSE_HEADER = Fetch(_TEXT, RESPONSE, _header(_response), True)
_RESPONSE_LINES = Fetch(_TEXT, RESPONSE, _header(_response, lines=True), True)
_REQUEST_COUNT = Fetch(_NUMBER, REQUEST, _count(_request), True)
_RESPONSE_COUNT = Fetch(_NUMBER, RESPONSE, _count(_response), True)
_REQUEST_ADDRESS = Fetch(_ADDRESS, REQUEST, _header(_request), True)
_RESPONSE_ADDRESS = Fetch(_ADDRESS, RESPONSE, _header(_response), True)
_REQUEST_NUMBER = Fetch(_NUMBER, REQUEST, _numbers(_request), True)
_RESPONSE_NUMBER = Fetch(_NUMBER, RESPONSE, _numbers(_response), True)
_REQUEST_VERSION = Fetch(_TEXT, REQUEST, _of_request(_version))

#: Every fetch by every name it has.
FETCHES: dict[str, Fetch] = {
    "always_true": Fetch(_SWITCH, CONNECTION, _simple(lambda sample: True)),
    "always_false": Fetch(_SWITCH, CONNECTION, _simple(lambda sample: False)),
    "src": Fetch(_ADDRESS, CONNECTION, _simple(lambda sample: _host(sample.client))),
    "src_port": Fetch(_NUMBER, CONNECTION, _simple(_client_port)),
    "dst": Fetch(_ADDRESS, CONNECTION, _simple(lambda sample: _host(sample.local))),
    "dst_port": Fetch(_NUMBER, CONNECTION, _simple(_local_port)),
    "fe_name": Fetch(_TEXT, CONNECTION, _simple(lambda sample: _name(sample.frontend_name))),
    "be_name": Fetch(_TEXT, BACKEND, _simple(lambda sample: _name(sample.backend_name))),
    "srv_name": Fetch(_TEXT, RESPONSE, _simple(lambda sample: _name(sample.server_name))),
    # TLS is not terminated here, so what HAProxy tells about its own TLS is what the ClientHello says that passes by.
    "ssl_fc": Fetch(_SWITCH, CONNECTION, _simple(lambda sample: False)),
    "ssl_fc_sni": _SNI,
    "req.ssl_sni": _SNI,
    "req_ssl_sni": _SNI,
    "method": Fetch(_METHOD, REQUEST, _of_request(lambda request: request.method)),
    "path": Fetch(_TEXT, REQUEST, _of_request(lambda request: request.path)),
    "query": Fetch(_TEXT, REQUEST, _of_request(lambda request: request.query)),
    "url": Fetch(_TEXT, REQUEST, _of_request(lambda request: request.target)),
    "base": Fetch(_TEXT, REQUEST, _of_request(lambda request: request.host + request.path)),
    "req.ver": _REQUEST_VERSION,
    "req_ver": _REQUEST_VERSION,
    "hdr": _REQUEST_HEADER,
    "req.hdr": _REQUEST_HEADER,
    "req.fhdr": _REQUEST_LINES,
    "hdr_cnt": _REQUEST_COUNT,
    "req.hdr_cnt": _REQUEST_COUNT,
    "req.fhdr_cnt": Fetch(_NUMBER, REQUEST, _count(_request, lines=True), True),
    "hdr_ip": _REQUEST_ADDRESS,
    "req.hdr_ip": _REQUEST_ADDRESS,
    "hdr_val": _REQUEST_NUMBER,
    "req.hdr_val": _REQUEST_NUMBER,
    "status": Fetch(
        _NUMBER, RESPONSE, _simple(lambda sample: None if sample.response is None else sample.response.status)
    ),
    "shdr": _RESPONSE_HEADER,
    "res.hdr": _RESPONSE_HEADER,
    "res.fhdr": _RESPONSE_LINES,
    "shdr_cnt": _RESPONSE_COUNT,
    "res.hdr_cnt": _RESPONSE_COUNT,
    "res.fhdr_cnt": Fetch(_NUMBER, RESPONSE, _count(_response, lines=True), True),
    "shdr_ip": _RESPONSE_ADDRESS,
    "res.hdr_ip": _RESPONSE_ADDRESS,
    "shdr_val": _RESPONSE_NUMBER,
    "res.hdr_val": _RESPONSE_NUMBER,
    "res.ver": Fetch(
        _TEXT, RESPONSE, _simple(lambda sample: None if sample.response is None else _version(sample.response))
    ),
}
