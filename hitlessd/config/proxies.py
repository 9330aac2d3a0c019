"""Options of backends and frontends that are lines of words: balance, hash-type, cookie, forwardfor, checks by HTTP.

Each function takes the words and raises Mistake for what is wrong with them.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Literal, cast, get_args

from hitlessd.dataclass import dataclass, replace
from hitlessd.matching import network
from hitlessd.model import Balance, Cookie, Expectation, ForwardFor, HttpCheck
from hitlessd.samples import Mistake

from .formats import check_header

__all__ = ["Balancing", "balance", "cookie", "forward_for", "hash_type", "http_check", "http_checks"]

_BALANCES: tuple[Balance, ...] = get_args(Balance)
_CALL = re.compile(r"([a-z-]+)(?:\((.*)\))?")
_NUMBER_LIMIT = 65535
_FUNCTIONS = ("sdbm", "djb2", "wt6", "crc32", "none")
_COOKIE_MODES = ("insert", "rewrite", "prefix")
_COOKIE_FLAGS = ("indirect", "nocache", "postonly", "preserve", "httponly", "secure")
_COOKIE_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_METHOD = re.compile(r"[A-Z][A-Z0-9_-]{0,31}")
_VERSION = re.compile(r"HTTP/1\.[01]")
_STATUSES = re.compile(r"[1-9][0-9]{2}(-[1-9][0-9]{2})?(,[1-9][0-9]{2}(-[1-9][0-9]{2})?)*")
_EXPECTATIONS = ("status", "rstatus", "string", "rstring", "hdr")
_ExpectationKind = Literal["status", "rstatus", "string", "rstring", "hdr"]


@dataclass(frozen=True, slots=True)
class Balancing:
    """`balance` with its arguments, as the fields of Backend have them."""

    algorithm: Balance = "roundrobin"
    header: str = ""
    draws: int = 2
    uri_len: int = 0
    uri_depth: int = 0
    uri_whole: bool = False


def balance(words: Sequence[str]) -> Balancing:
    """`roundrobin|static-rr|leastconn|first|source|uri [whole] [len N] [depth N]|hdr(NAME)|random[(N)]`."""
    match = _CALL.fullmatch(words[0]) if words else None
    name, argument = (match[1], match[2]) if match else (" ".join(words), None)
    algorithm = next((each for each in _BALANCES if each == name), None)
    if algorithm is None:
        raise Mistake("balance like this", name, ", ".join(_BALANCES[:-1]) + " or " + _BALANCES[-1], _BALANCES)
    rest = list(words[1:])
    found = Balancing(algorithm)
    if algorithm == "uri":
        found = _uri(found, rest)
        rest = []
    elif algorithm == "hdr":
        if not argument:
            raise Mistake("balance like this", words[0], "hdr(NAME)")
        found = replace(found, header=check_header(argument, "")[0])
    elif algorithm == "random" and argument is not None:
        found = replace(found, draws=_number(argument, 1, "draw"))
    elif argument is not None:
        raise Mistake("balance like this", words[0], f"{algorithm} without an argument")
    if rest:
        raise Mistake("use more words", " ".join(rest), f"nothing after {words[0]}")
    return found


def _uri(found: Balancing, rest: list[str]) -> Balancing:
    while rest:
        word = rest.pop(0)
        if word == "whole":
            found = replace(found, uri_whole=True)
        elif word in ("len", "depth"):
            if not rest:
                raise Mistake("use this word", word, "a number after it")
            number = _number(rest.pop(0), 0, word)
            found = replace(found, uri_len=number) if word == "len" else replace(found, uri_depth=number)
        else:
            raise Mistake("use this word", word, "whole, len N or depth N", ("whole", "len", "depth"))
    return found


def hash_type(words: Sequence[str]) -> tuple[bool, str]:
    """`map-based|consistent [FUNCTION [avalanche]]`: whether it is consistent, and the words that change nothing."""
    if not words or words[0] not in ("map-based", "consistent"):
        near = ("map-based", "consistent")
        raise Mistake("hash like this", words[0] if words else "", "map-based or consistent", near)
    function = words[1] if len(words) > 1 else ""
    if function and function not in (*_FUNCTIONS, "avalanche"):
        raise Mistake("hash by this function", function, "one of " + ", ".join(_FUNCTIONS), _FUNCTIONS)
    if words[2:] not in ([], ["avalanche"]) or (function == "avalanche" and words[2:]):
        raise Mistake("use more words", " ".join(words[2:]), "at most avalanche after the function")
    return words[0] == "consistent", " ".join(words[1:])


def cookie(words: Sequence[str]) -> Cookie:
    """`NAME insert|rewrite|prefix [WORD...]`."""
    name = words[0] if words else ""
    if not _COOKIE_NAME.fullmatch(name):
        raise Mistake("use this cookie", name, "the name of a cookie")
    modes: list[str] = []
    flags: dict[str, bool] = {}
    domains: list[str] = []
    attributes: list[str] = []
    rest = list(words[1:])
    while rest:
        word = rest.pop(0)
        if word in _COOKIE_MODES:
            modes.append(word)
        elif word in _COOKIE_FLAGS:
            flags[word] = True
        elif word in ("domain", "attr"):
            value = rest.pop(0) if rest else ""
            if not value or any(ord(sign) < 0x20 or sign in ";\x7f" for sign in value):
                raise Mistake("use this word", f"{word} {value}".strip(), f"{word} VALUE, without a semicolon")
            (domains if word == "domain" else attributes).append(value)
        elif word in ("maxidle", "maxlife", "dynamic"):
            raise Mistake("use this word", word, "a word that this version has")
        else:
            known = (*_COOKIE_MODES, *_COOKIE_FLAGS, "domain", "attr")
            raise Mistake("use this word", word, "one of " + ", ".join(known), known)
    if len(modes) != 1:
        raise Mistake("use a cookie like this", " ".join(words), "one of insert, rewrite and prefix")
    if modes == ["rewrite"] and "indirect" in flags:
        raise Mistake("combine rewrite with this", "indirect", "insert or prefix with it")
    if "preserve" in flags and modes != ["insert"] and "indirect" not in flags:
        raise Mistake("use this word", "preserve", "insert or indirect with it")
    options: dict[str, Any] = {**flags, "domains": tuple(domains), "attributes": tuple(attributes)}
    return Cookie(name, cast(Literal["insert", "rewrite", "prefix"], modes[0]), **options)


def forward_for(words: Sequence[str]) -> ForwardFor:
    """`[except NETWORK] [header NAME] [if-none]`."""
    found = ForwardFor()
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if word == "if-none":
            found = replace(found, if_none=True)
        elif word in ("except", "header"):
            if not rest:
                raise Mistake("use this word", word, "a value after it")
            value = rest.pop(0)
            if word == "except":
                network(value)
                found = replace(found, unless_from=value)
            else:
                found = replace(found, header=check_header(value, "")[0])
        else:
            near = ("except", "header", "if-none")
            raise Mistake("use this word", word, "except NETWORK, header NAME or if-none", near)
    return found


def http_check(words: Sequence[str]) -> HttpCheck:
    """`option httpchk [[METHOD] URI [VERSION]]`."""
    if len(words) > 3:
        raise Mistake("use more words", " ".join(words[3:]), "METHOD URI VERSION; headers stand in `http-check = send`")
    if not words:
        return HttpCheck()
    if len(words) == 1:
        return HttpCheck(uri=_check_uri(words[0]))
    found = HttpCheck(_check_method(words[0]), _check_uri(words[1]))
    return replace(found, version=_check_version(words[2])) if len(words) == 3 else found


def http_checks(check: HttpCheck, lines: Sequence[Sequence[str]]) -> HttpCheck:
    """One more line of `http-check` each: `send ...`, which replaces what `option httpchk` says, or `expect ...`."""
    expect: list[Expectation] = []
    sent = False
    for words in lines:
        kind, *rest = words or [""]
        if kind == "send":
            if sent:
                raise Mistake("check like this", " ".join(words), "one send in a section")
            check, sent = _send(check, rest), True
        elif kind == "expect":
            expect.append(_expect(rest))
        else:
            raise Mistake("check like this", kind, "send or expect", ("send", "expect"))
    return replace(check, expect=tuple(expect))


def _send(check: HttpCheck, rest: list[str]) -> HttpCheck:
    headers: list[tuple[str, str]] = list(check.headers)
    while rest:
        word = rest.pop(0)
        count = 2 if word == "hdr" else 1
        if word not in ("meth", "uri", "ver", "hdr", "body"):
            near = ("meth", "uri", "ver", "hdr", "body")
            raise Mistake("use this word", word, "meth, uri, ver, hdr or body", near)
        if len(rest) < count:
            raise Mistake("use this word", word, "a value after it")
        value = rest.pop(0)
        if word == "meth":
            check = replace(check, method=_check_method(value))
        elif word == "uri":
            check = replace(check, uri=_check_uri(value))
        elif word == "ver":
            check = replace(check, version=_check_version(value))
        elif word == "body":
            check = replace(check, body=value)
        else:
            text = rest.pop(0)
            if "%" in text.replace("%%", ""):
                raise Mistake("use this value", text, "text without variables in a check")
            if value.lower() != "connection":  # every check ends its connection
                headers.append((check_header(value, text.replace("%", ""))[0], text.replace("%%", "%")))
    return replace(check, headers=tuple(headers))


def _expect(rest: list[str]) -> Expectation:
    negated = False
    while rest and rest[0].startswith("!"):
        negated = not negated
        rest = [rest[0][1:], *rest[1:]] if rest[0] != "!" else rest[1:]
    kind, *rest = rest or [""]
    if kind not in _EXPECTATIONS:
        raise Mistake("expect this", kind, "status, rstatus, string, rstring or hdr", _EXPECTATIONS)
    if kind == "hdr":
        return _expect_header(rest, negated)
    if len(rest) != 1:
        found = " ".join(rest)
        raise Mistake(
            "expect this", f"{kind} {found}".strip(), f"{kind} and one value; with blanks it stands in quotes"
        )
    value = rest[0]
    if kind == "status" and not _STATUSES.fullmatch(value):
        raise Mistake("expect this status", value, "numbers and ranges, as in 200-399,404")
    if kind in ("rstatus", "rstring"):
        try:
            re.compile(value.encode("utf-8", "surrogateescape"))
        except (re.error, RecursionError, OverflowError) as error:
            raise Mistake("use this regular expression", value, f"one that Python's `re` can read ({error})") from None
    return Expectation(cast(_ExpectationKind, kind), value, "", negated)


def _expect_header(rest: list[str], negated: bool) -> Expectation:
    if rest[:1] != ["name"] or len(rest) not in (2, 4) or (len(rest) == 4 and rest[2] != "value"):
        raise Mistake("expect this header", " ".join(rest), "hdr name NAME, or hdr name NAME value VALUE")
    if not _COOKIE_NAME.fullmatch(rest[1]):
        raise Mistake("use this header", rest[1], "the name of a header field")
    return Expectation("hdr", rest[3] if len(rest) == 4 else "", rest[1], negated)


def _check_method(text: str) -> str:
    if not _METHOD.fullmatch(text):
        raise Mistake("check by this method", text, "a method, as in GET")
    return text


def _check_uri(text: str) -> str:
    if not (text == "*" or text[:1] == "/") or not text.isascii() or not text.isprintable() or " " in text:
        raise Mistake("check this URI", text, "one that begins with / and has no blanks, or *")
    return text


def _check_version(text: str) -> str:
    if not _VERSION.fullmatch(text):
        expected = "HTTP/1.0 or HTTP/1.1; headers stand in `http-check = send hdr NAME VALUE`"
        raise Mistake("check by this version", text, expected)
    return text


def _number(text: str, low: int, what: str) -> int:
    if text.isascii() and text.isdigit() and len(text) < 6 and low <= int(text) <= _NUMBER_LIMIT:
        return int(text)
    raise Mistake(f"use this {what}", text, f"a number from {low} to {_NUMBER_LIMIT}")
