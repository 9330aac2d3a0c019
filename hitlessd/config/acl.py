"""`acl` lines, and the conditions that rules end with (configuration manual, section 7)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from hitlessd.conditions import PREDEFINED, compile_acl, criterion
from hitlessd.dataclass import dataclass
from hitlessd.model import Acl, Condition, Term, Where
from hitlessd.samples import BACKEND, CONNECTION, HELLO, REQUEST, RESPONSE, Mistake, split_call

__all__ = [
    "HTTP_BACKEND",
    "HTTP_FRONTEND",
    "HTTP_RESPONSE",
    "TCP_ACCEPT",
    "TCP_ROUTE",
    "Acls",
    "Scope",
    "acl",
    "condition",
]

#: The tests of each name.
Acls = Mapping[str, Sequence[Acl]]


@dataclass(frozen=True, slots=True)
class Scope:
    """What can be asked at one place."""

    stages: tuple[int, ...]
    known: str


TCP_ACCEPT = Scope((CONNECTION,), "before a byte has been read")
TCP_ROUTE = Scope((CONNECTION, HELLO), "where `mode = tcp` does not read requests")
HTTP_FRONTEND = Scope((CONNECTION, REQUEST), "once a request has been read, in `mode = http`")
HTTP_BACKEND = Scope((CONNECTION, REQUEST, BACKEND), "once a request has a backend, in `mode = http`")
HTTP_RESPONSE = Scope((CONNECTION, REQUEST, BACKEND, RESPONSE), "once a response has been read, in `mode = http`")


def acl(name: str, words: Sequence[str], where: Where) -> Acl:
    """`CRITERION [-i] [-m METHOD] [--] [VALUE...]`. Raises Mistake."""
    if not words:
        raise Mistake("read this condition", "", "a criterion, as in path_beg /api")
    call, argument = split_call(words[0])
    insensitive, method = False, ""
    rest = list(words[1:])
    while rest and rest[0].startswith("-"):
        flag = rest.pop(0)
        if flag == "--":
            break
        if flag == "-i":
            insensitive = True
        elif flag == "-m":
            if not rest:
                raise Mistake("match by this method", "", "one after -m, as in -m beg")
            method = rest.pop(0)
        elif flag in ("-f", "-M", "-u"):
            raise Mistake("use this flag", flag, "values in the line: this version reads none from files")
        elif flag != "-n":  # addresses are numeric anyway
            raise Mistake("use this flag", flag, "-i, -m or --, and -- before values that begin with a dash")
    test = Acl(call, argument, insensitive, tuple(rest), name, where, method)
    compile_acl(test)
    return test


def condition(words: Sequence[str], acls: Acls, scope: Scope, where: Where) -> Condition | None:
    """`if|unless TERM... [or TERM...]`, None when there is none. Raises Mistake."""
    if not words:
        return None
    if words[0] not in ("if", "unless"):
        raise Mistake("use this word", words[0], "if or unless, and a condition", ("if", "unless"))
    alternatives: list[list[Term]] = [[]]
    negated = False
    rest = iter(words[1:])
    for word in rest:
        if word in ("or", "||"):
            if negated or not alternatives[-1]:
                raise Mistake("read this condition", word, "a term on both sides of it")
            alternatives.append([])
            continue
        bare = word.lstrip("!")
        negated ^= bool(len(word) - len(bare) & 1)
        word = bare
        if not word:
            continue
        tests = _anonymous(rest, where) if word == "{" else _named(word, acls)
        for test in tests:
            _check_scope(test, scope)
        alternatives[-1].append(Term(tests, negated))
        negated = False
    if negated or not alternatives[-1]:
        raise Mistake(
            "read this condition", " ".join(words), f"a term at its end, as in {words[0]} {{ path_beg /api }}"
        )
    return Condition(tuple(tuple(terms) for terms in alternatives), words[0] == "unless")


def _anonymous(rest: Iterator[str], where: Where) -> tuple[Acl, ...]:
    words: list[str] = []
    for word in rest:
        if word == "}":
            return (acl("", words, where),)
        words.append(word)
    raise Mistake("read this condition", "{ " + " ".join(words), "a } that closes it, after a blank")


def _named(name: str, acls: Acls) -> tuple[Acl, ...]:
    if name in acls:
        return tuple(acls[name])
    if name in PREDEFINED:
        return (PREDEFINED[name],)
    if name.startswith("{"):
        raise Mistake("read this condition", name, "a blank after { and before }")
    raise Mistake("use this acl", name, "the name of an acl of this section", (*acls, *PREDEFINED))


def _check_scope(test: Acl, scope: Scope) -> None:
    if criterion(test)[0].stage not in scope.stages:
        what = f"{test.name} ({test.criterion})" if test.name else test.criterion
        raise Mistake("ask for this here", what, f"a criterion that is known {scope.known}")
