"""Lines of words, some of which are followed by a value."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

from .problems import Place

__all__ = ["pairs"]

#: More words than this are not listed to who has used another.
_LISTED = 10


def pairs(
    place: Place, words: Sequence[str], known: Mapping[str, bool], absent: Callable[[str], str], given: list[str]
) -> Iterator[tuple[str, str]]:
    """The known words of a line with their arguments (or ""); refuses the others. `given` gets each known one."""
    rest = iter(words)
    skipping = False
    for word in rest:
        if word not in known:
            if skipping:
                continue
            note = absent(word)
            expected = "one of " + ", ".join(known) if len(known) <= _LISTED else "a word that belongs here"
            place.refuse("use this word", word, expected, near=() if note else known, note=note)
            skipping = True  # its arguments are unknown, too
            continue
        skipping = False
        argument = next(rest, "") if known[word] else ""
        if known[word] and not argument:
            place.refuse(f"use {word} alone", "", "a value after it")
        elif word in given:
            place.fail(f"cannot use {word} twice: expected it once in a line")
        else:
            given.append(word)
            yield word, argument
