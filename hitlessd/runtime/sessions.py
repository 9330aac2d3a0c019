"""`show sess`: connections one by one, asked for in pages."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hitlessd.runtime.command import Answer, Call, Command, Pieces
from hitlessd.runtime.sess import session_details, session_line, session_number

__all__ = ["COMMANDS"]


def _show_sess(call: Call) -> Answer:
    control, words = call.control, call.words[2:]
    only = session_number(words[0]) if words and words[0] != "all" else 0
    if words and words[0] != "all" and not only:
        return "Session not found.\n"
    dump = session_details if words else session_line
    after: int | None = 0

    def ask(done: Callable[[str | None], object]) -> None:
        def came(page: dict[str, Any]) -> None:
            nonlocal after
            forms = page["sessions"]
            after = int(forms[-1]["number"]) if forms and page.get("more") else None
            done("Session not found.\n" if only and not forms else "".join(map(dump, forms)))

        if after is None:
            done(None)
        else:
            control.sessions(after, only, came)

    return Pieces(ask)


COMMANDS = (
    Command(
        ("show", "sess"),
        "show sess [id]",
        "report the list of current sessions or dump this exact session",
        _show_sess,
        "operator",
        privileged=True,
        scope="generation",
    ),
)
