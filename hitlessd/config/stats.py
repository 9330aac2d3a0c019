"""The page of a proxy: `stats enable` and what goes with it (HAProxy configuration manual, "stats ..."). Each function
takes what one line says and raises Mistake for what is wrong with it."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence

from hitlessd.dataclass import replace
from hitlessd.model import StatsPage, Where
from hitlessd.samples import Mistake

from .acl import HTTP_BACKEND, HTTP_FRONTEND, Acls, condition

__all__ = ["IGNORED", "SWITCHES", "admin", "stats_line"]

#: What is on or off. Of `enable`, off means that there is no page, even if [defaults] has one.
SWITCHES = ("stats enable", "stats hide-version", "stats show-legends", "stats show-modules")
#: HAProxy's switches for what is here always, or never.
IGNORED = ("stats show-legends", "stats show-modules")
_NODE = re.compile(r"[A-Za-z0-9._-]{1,63}")
_SCOPE = re.compile(r"[A-Za-z0-9._:-]+")


def stats_line(page: StatsPage, name: str, words: Sequence[str]) -> StatsPage:
    """The page with what one line of the option `name` says of it."""
    match name:
        case "stats uri":
            return replace(page, uri=_uri(words))
        case "stats realm":
            return replace(page, realm=_text("use this realm", words))
        case "stats auth":
            return replace(page, auth=_account(page.auth, words))
        case "stats scope":
            word = _one("show this proxy", words, "the name of a proxy, or . for this one")
            if not _SCOPE.fullmatch(word):
                raise Mistake("show this proxy", word, "the name of a proxy, or . for this one")
            return page if word in page.scope else replace(page, scope=(*page.scope, word))
        case "stats show-node":
            node = _one("show this node", words, "one name") if words else os.uname().nodename
            if words and not _NODE.fullmatch(node):
                raise Mistake("show this node", node, "letters, digits and . _ - only, at most 63")
            return replace(page, node=node)
        case "stats show-desc":
            return replace(page, description=_text("show this description", words))
    raise Mistake("use this option", name, "an option of the statistics page")


def admin(words: Sequence[str], acls: Acls, kind: str, where: Where, page: StatsPage) -> StatsPage:
    """`if|unless CONDITION`: for which requests the page may change something; `kind`: of the section."""
    if not words or words[0] not in ("if", "unless"):
        example = "if or unless, and a condition, as in `stats admin = if { src 127.0.0.1 }`"
        raise Mistake("use this word", words[0] if words else "", example, ("if", "unless"))
    scope = HTTP_BACKEND if kind == "backend" else HTTP_FRONTEND
    return replace(page, admin=condition(words, acls, scope, where))


def _uri(words: Sequence[str]) -> str:
    uri = _one("use this uri", words, "one path, as in /stats")
    if uri[:1] != "/":
        raise Mistake("use this uri", uri, "a path, beginning with /")
    if not uri.isascii() or not uri.isprintable() or any(sign in uri for sign in " #"):
        raise Mistake("use this uri", uri, "visible ASCII characters, and no #")
    return uri


def _account(known: tuple[tuple[str, str], ...], words: Sequence[str]) -> tuple[tuple[str, str], ...]:
    text = _one("use this account", words, "USER:PASSWORD, in quotes if it has blanks")
    user, colon, password = text.partition(":")
    if not colon:
        raise Mistake("use this account", user, "USER:PASSWORD")
    if any(name == user for name, _ in known):
        raise Mistake("give this user twice", user, "one password for each")
    return (*known, (user, password))


def _text(what: str, words: Sequence[str]) -> str:
    text = " ".join(words)
    if not text or not text.isprintable():
        raise Mistake(what, text, "text without control characters")
    return text


def _one(what: str, words: Sequence[str], expected: str) -> str:
    if len(words) != 1 or not words[0]:
        raise Mistake(what, " ".join(words), expected)
    return words[0]
