"""HAProxy's words: blanks separate them, quotes and backslashes protect (configuration manual, "Quoting and escaping").

Unlike there, nothing is expanded: a dollar sign is a dollar sign.
"""

from __future__ import annotations

import re

from .problems import Place

__all__ = ["WORDS_LIMIT", "one_text", "words"]

#: Words of one line; what has more values than this has further lines. HAProxy's limit is 64.
WORDS_LIMIT = 4096

_PIECE = re.compile(r"""( )|\\(x[0-9A-Fa-f]{2}|[\\ #"'$nrt])|"((?:[^"\\]|\\.)*)"|'([^']*)'|([^ "'\\]+|\\)|(.)""", re.S)
_ESCAPED = re.compile(r"""\\(x[0-9A-Fa-f]{2}|[\\ #"'$nrt])""")
_LETTERS = {"n": "\n", "r": "\r", "t": "\t"}


def words(place: Place, text: str) -> list[str] | None:
    """The words, without their quotes; None after `place` was told of a quote that nothing closes.

    A byte that stands as \\xNN and is no ASCII becomes what "surrogateescape" makes of it.
    """
    found: list[str] = []
    word: list[str] | None = None
    for blank, escape, double, single, plain, wrong in _PIECE.findall(text):
        if wrong:
            place.refuse("read this quoting", text[text.find(wrong) :], f"a closing {wrong}, or \\{wrong} for the sign")
            return None
        if blank:
            if word is not None:
                found.append("".join(word))
            word = None
            continue
        if word is None:
            word = []
        word.append(_unescape(escape) if escape else _ESCAPED.sub(_replace, double) or single or plain)
    if word is not None:
        found.append("".join(word))
    if len(found) > WORDS_LIMIT:
        place.fail(f"cannot read this line: found {len(found)} words, expected at most {WORDS_LIMIT}")
        return None
    return found


def one_text(place: Place, text: str) -> str | None:
    """An option's text that may contain blanks, in quotes or as it stands."""
    if text[:1] not in ('"', "'"):
        return text
    found = words(place, text)
    if found is None:
        return None
    if len(found) != 1:
        place.refuse("read this text", text, "one quoted text, or one without quotes around it")
        return None
    return found[0]


def _replace(match: re.Match[str]) -> str:
    return _unescape(match[1])


def _unescape(escape: str) -> str:
    if escape[0] == "x":
        code = int(escape[1:], 16)
        return chr(code if code < 0x80 else 0xDC00 + code)
    return _LETTERS.get(escape, escape)
