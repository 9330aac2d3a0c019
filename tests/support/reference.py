"""The table of all options in docs/configuration.md, made from the one that the reader of configurations goes by.

python -m tests.support.reference    # writes it anew
"""

from __future__ import annotations

import re
from pathlib import Path

from hitlessd.config.words import FLAGS, KINDS, OPTIONS, SEVERAL_LINES

__all__ = ["REFERENCE", "table", "written"]

REFERENCE = Path(__file__).parents[2] / "docs" / "configuration.md"
_BEGIN, _END = "<!-- options -->\n", "<!-- end of options -->\n"


def _anchor(heading: str) -> str:
    """As GitHub makes it of a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def _line(option: str, headings: dict[str, str]) -> str:
    heading = headings[option]
    places = " | ".join("•" if kind in OPTIONS[option] else "" for kind in KINDS)
    more = "flag" if option in FLAGS else "lines" if option in SEVERAL_LINES else ""
    return f"| [`{option}`](#{_anchor(heading)}) | {places} | {more} |\n"


def table(text: str) -> str:
    """The table for a page with these headings. Raises KeyError if one is missing."""
    headings: dict[str, str] = {}
    for heading in re.findall(r"^### (.+)$", text, re.M):
        words = re.match(r"`([^`=]+?)(?: = | \[|`)", heading)
        name = words[1] if words else ""
        found = max((each for each in OPTIONS if name == each or name.startswith(f"{each} ")), key=len, default="")
        headings.setdefault(found, heading)
    rows = "".join(_line(option, headings) for option in sorted(OPTIONS))
    return f"| option | {' | '.join(KINDS)} | |\n|---|{'---|' * len(KINDS)}---|\n{rows}"


def written(text: str) -> str:
    """The page with the table that it should have."""
    before, _, rest = text.partition(_BEGIN)
    _, _, after = rest.partition(_END)
    return f"{before}{_BEGIN}{table(text)}{_END}{after}"


if __name__ == "__main__":
    REFERENCE.write_text(written(REFERENCE.read_text()))
