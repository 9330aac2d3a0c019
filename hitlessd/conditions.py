"""Conditions and their tests, from the model's dataclasses to functions that a worker calls."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

from hitlessd.matching import METHODS, matcher
from hitlessd.model import Acl, Condition
from hitlessd.samples import FETCHES, Fetch, Mistake, Sample, find

__all__ = ["PREDEFINED", "Test", "compile_acl", "compile_condition", "criterion"]

Test = Callable[[Sample], bool]

_SUFFIXES = ("beg", "end", "sub", "dir", "dom", "reg", "len")
_DEFAULTS = {"text": "str", "number": "int", "address": "ip", "switch": "bool", "method": "str"}

#: HAProxy's predefined ACLs (configuration manual, section 7.4).
PREDEFINED: dict[str, Acl] = {
    acl.name: acl
    for acl in (
        Acl("always_true", name="TRUE"),
        Acl("always_false", name="FALSE"),
        Acl("src", values=("127.0.0.1/8", "::1"), name="LOCALHOST"),
        Acl("req.ver", values=("1.0",), name="HTTP_1.0"),
        Acl("req.ver", values=("1.1",), name="HTTP_1.1"),
        Acl("hdr_val", "content-length", values=("gt", "0"), name="HTTP_CONTENT"),
        Acl("url_reg", values=("^[^/:]*://",), name="HTTP_URL_ABS"),
        Acl("url_beg", values=("/",), name="HTTP_URL_SLASH"),
        Acl("url", values=("*",), name="HTTP_URL_STAR"),
        Acl("method", values=("GET", "HEAD"), name="METH_GET"),
        *(
            Acl("method", values=(method,), name=f"METH_{method}")
            for method in ("CONNECT", "DELETE", "HEAD", "OPTIONS", "POST", "PUT", "TRACE")
        ),
    )
}


def criterion(acl: Acl) -> tuple[Fetch, str]:
    """The fetch of a test and its match method. Raises Mistake."""
    name, suffix = acl.criterion, ""
    if name not in FETCHES:
        base, _, suffix = name.rpartition("_")
        if suffix not in _SUFFIXES or base not in FETCHES or FETCHES[base].kind != "text":
            raise Mistake("use this criterion", name, "one that this version has", _criteria())
        name = base
    fetch = find(name, acl.argument)
    method = acl.match or suffix or _DEFAULTS[fetch.kind]
    if method not in METHODS:
        raise Mistake("match by this method", method, "one of " + ", ".join(METHODS), METHODS)
    if (fetch.kind in ("number", "switch")) and method not in ("int", "found", "bool", "str"):
        raise Mistake("match by this method", method, f"int, bool or found for {acl.criterion}")
    if fetch.kind == "switch" and method == "str":
        raise Mistake("match by this method", method, f"bool or found for {acl.criterion}")
    return fetch, method


@lru_cache(1024)
def compile_acl(acl: Acl) -> Test:
    """Raises Mistake, a ValueError, for what can never hold as it stands."""
    fetch, method = criterion(acl)
    values = fetch.all_of(acl.argument)
    if method in ("found", "bool"):
        if acl.values:
            raise Mistake("compare with this", acl.values[0], f"no value: {acl.criterion} is asked for alone here")
        if method == "found":
            return lambda sample: bool(values(sample))
        return lambda sample: any(_true(value) for value in values(sample))
    if not acl.values:
        raise Mistake("compare with nothing", acl.criterion, f"values after it, or {acl.criterion} -m found")
    match = matcher(method, acl.values, acl.insensitive)

    return lambda sample: any(match(value) for value in values(sample))


def compile_condition(condition: Condition | None) -> Test:
    """Whether a rule applies; without a condition it does. Raises Mistake as compile_acl() does."""
    if condition is None:
        return lambda sample: True
    alternatives = tuple(
        tuple((tuple(compile_acl(acl) for acl in term.tests), term.negated) for term in terms)
        for terms in condition.alternatives
    )
    unless = condition.unless
    if len(alternatives) == 1 and len(alternatives[0]) == 1 and len(alternatives[0][0][0]) == 1:
        ((((test,), negated),),) = alternatives
        if negated == unless:
            return test
        return lambda sample: not test(sample)

    def holds(sample: Sample) -> bool:
        for terms in alternatives:
            for tests, negated in terms:
                if any(test(sample) for test in tests) == negated:
                    break
            else:
                return not unless
        return unless

    return holds


def _true(value: bytes | int) -> bool:
    return value not in (b"", b"0") if isinstance(value, bytes) else bool(value)


def _criteria() -> list[str]:
    """Every name of a criterion."""
    texts = [name for name, fetch in FETCHES.items() if fetch.kind == "text"]
    return [*FETCHES, *(f"{name}_{suffix}" for name in texts for suffix in _SUFFIXES)]
