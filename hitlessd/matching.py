"""Comparing samples with the values of a condition: HAProxy's match methods (configuration manual, section 7.1)."""

from __future__ import annotations

import re
import socket
from collections.abc import Callable, Sequence
from functools import lru_cache

from hitlessd.samples import Mistake, Value

__all__ = ["METHODS", "matcher"]

Match = Callable[[Value], bool]

#: Those that `-m` takes. `found` and `bool` compare with nothing.
METHODS = ("str", "beg", "end", "sub", "dir", "dom", "reg", "int", "len", "ip", "found", "bool")

_OPERATORS: dict[str, Callable[[int, int], bool]] = {
    "eq": lambda value, wanted: value == wanted,
    "ge": lambda value, wanted: value >= wanted,
    "gt": lambda value, wanted: value > wanted,
    "le": lambda value, wanted: value <= wanted,
    "lt": lambda value, wanted: value < wanted,
}
_RANGE = re.compile(r"(-?[0-9]{1,18})?(:)?(-?[0-9]{1,18})?")
_MAPPED = 0xFFFF << 32
_LOW_32 = (1 << 32) - 1


def matcher(method: str, values: Sequence[str], insensitive: bool) -> Match:
    """Whether a sample matches any of `values`. Raises Mistake for a value that the method cannot compare with."""
    if method == "int":
        return _number(values)
    if method == "len":
        number = _number(values)
        return lambda value: number(len(_bytes(value)))
    if method == "ip":
        return _address(values)
    return _text(method, values, insensitive)


def _bytes(value: Value) -> bytes:
    return value if isinstance(value, bytes) else b"%d" % value


def _text(method: str, values: Sequence[str], insensitive: bool) -> Match:
    if method in ("reg", "dir", "dom"):
        return _expression(method, values, insensitive)
    wanted = tuple(value.encode("utf-8", "surrogateescape") for value in values)
    if insensitive:
        wanted = tuple(value.lower() for value in wanted)
    compare: Callable[[bytes], bool]
    if method == "beg":
        compare = lambda value: value.startswith(wanted)  # noqa: E731
    elif method == "end":
        compare = lambda value: value.endswith(wanted)  # noqa: E731
    elif method == "sub":
        compare = lambda value: any(part in value for part in wanted)  # noqa: E731
    else:
        compare = frozenset(wanted).__contains__
    if insensitive:
        return lambda value: compare(_bytes(value).lower())
    return lambda value: compare(_bytes(value))


def _expression(method: str, values: Sequence[str], insensitive: bool) -> Match:
    flags = re.IGNORECASE if insensitive else 0
    expressions = []
    for value in values:
        source = value.encode("utf-8", "surrogateescape")
        if method != "reg":
            delimiters = b"/" if method == "dir" else b"/?.:"
            word = source.strip(delimiters)
            if not word:
                continue  # HAProxy: matches nothing
            source = b"(?:^|[%b])%b(?:[%b]|$)" % (delimiters, re.escape(word), delimiters)
        try:
            expressions.append(re.compile(source, flags).search)
        except (re.error, RecursionError, OverflowError) as error:
            raise Mistake("use this regular expression", value, f"one that Python's `re` can read ({error})") from None
    if len(expressions) == 1:
        search = expressions[0]
        return lambda value: search(_bytes(value)) is not None
    return lambda value: any(search(_bytes(value)) for search in expressions)


def _number(values: Sequence[str]) -> Match:
    """`[eq|ge|gt|le|lt] NUMBER...` or ranges, `LOW:HIGH`, either side of which may be left out."""
    compare = None
    tests: list[Callable[[int], bool]] = []
    for value in values:
        if value in _OPERATORS:
            compare = _OPERATORS[value]
            continue
        match = _RANGE.fullmatch(value)
        if not match or (match[1] is None and match[3] is None):
            raise Mistake("compare with this number", value, "a number or a range, as in 80 or 8000:8080", _OPERATORS)
        low = int(match[1]) if match[1] is not None else None
        high = (int(match[3]) if match[3] is not None else None) if match[2] else low
        tests.append(_limit(compare, low, high, value))
    if not tests:
        raise Mistake("compare with this number", values[-1] if values else "", "a number or a range after it")

    def any_of(value: Value) -> bool:
        if isinstance(value, bytes):
            if not re.fullmatch(rb"-?[0-9]{1,18}", value):
                return False
            value = int(value)
        return any(test(value) for test in tests)

    return any_of


def _limit(
    compare: Callable[[int, int], bool] | None, low: int | None, high: int | None, text: str
) -> Callable[[int], bool]:
    if compare is not None:
        if low is None or high != low:
            raise Mistake("compare with this range", text, "one number after eq, ge, gt, le or lt")
        wanted, operator = low, compare
        return lambda value: operator(value, wanted)
    if low is not None and high is not None and low > high:
        raise Mistake("compare with this range", text, "the lower number first")
    return lambda value: (low is None or value >= low) and (high is None or value <= high)


def _address(values: Sequence[str]) -> Match:
    networks = [network(value) for value in values]

    def any_of(value: Value) -> bool:
        found = _packed(value) if isinstance(value, bytes) else None
        return found is not None and any(_inside(found, wanted) for wanted in networks)

    return any_of


@lru_cache(4096)
def _packed(host: bytes) -> tuple[int, int] | None:
    """Bits of the family, and the address as a number."""
    text = host.decode("latin-1")
    try:
        if ":" in text:
            return 128, int.from_bytes(socket.inet_pton(socket.AF_INET6, text))
        return 32, int.from_bytes(socket.inet_pton(socket.AF_INET, text))
    except (OSError, ValueError):
        return None


def _inside(address: tuple[int, int], wanted: tuple[int, int, int]) -> bool:
    """Families meet as HAProxy has them meet (configuration manual, section 7.1.6)."""
    bits, number = address
    family, network_, mask = wanted
    if bits == family:
        return number & mask == network_
    if bits == 32:
        return (number | _MAPPED) & mask == network_
    high = number >> 32
    if high in (0, 0xFFFF):
        return number & _LOW_32 & mask == network_
    if number >> 112 == 0x2002:
        return number >> 80 & _LOW_32 & mask == network_
    return False


def network(text: str) -> tuple[int, int, int]:
    """Bits of the family, network and mask of `ADDRESS[/MASK]`, as numbers. Raises Mistake.

    The short forms are those of inet_aton(3): 10.1 is 10.0.0.1.
    """
    host, slash, mask_text = text.partition("/")
    try:
        if ":" in host:
            bits, number = 128, int.from_bytes(socket.inet_pton(socket.AF_INET6, host))
        elif not re.fullmatch("[0-9]+(\\.[0-9]+){0,3}", host):
            raise ValueError
        else:
            bits, number = 32, int.from_bytes(socket.inet_aton(host))
        length = bits
        if slash and bits == 32 and "." in mask_text:
            mask = int.from_bytes(socket.inet_pton(socket.AF_INET, mask_text))
            return bits, number & mask, mask
        if slash:
            if not re.fullmatch("[0-9]{1,3}", mask_text) or int(mask_text) > bits:
                raise ValueError
            length = int(mask_text)
    except (OSError, ValueError):
        raise Mistake("use this network", text, "ADDRESS or ADDRESS/BITS, numeric") from None
    mask = (1 << bits) - (1 << bits - length)
    return bits, number & mask, mask
