"""What every answer has: headers that keep browsers from harm, and the frame of page.html around its body."""

from __future__ import annotations

import base64
import hashlib
import re
import time
from pathlib import Path

from hitlessd.web.message import Reply
from hitlessd.web.page.text import escape, shown

__all__ = ["Shell"]

_SLOT = re.compile(r"\{\{(\w+)\}\}")


class Shell:
    """Reads page.html, once."""

    def __init__(self) -> None:
        template = Path(__file__).with_name("page.html").read_text(encoding="utf-8")
        self._parts = _SLOT.split(template)
        style, script = (_digest(template, name) for name in ("style", "script"))
        policy = (
            f"default-src 'none'; style-src {style}; script-src {script}; connect-src 'self'; img-src data:;"
            " form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
        )
        self._headers = (
            ("Cache-Control", "no-store"),
            ("Content-Security-Policy", policy),
            ("Cross-Origin-Resource-Policy", "same-origin"),
            # Not no-referrer: browsers would then send `Origin: null` with our own forms.
            ("Referrer-Policy", "same-origin"),
            ("X-Content-Type-Options", "nosniff"),
            ("X-Frame-Options", "DENY"),
        )

    def page(
        self,
        title: str,
        body: str,
        *,
        refresh: float | None = None,
        layout: str = "",
        options: str = "",
        hide: str = "",
    ) -> str:
        """A whole page. `refresh`: seconds after which browsers without scripts load it again; the rest is for the
        script."""
        again = f'<noscript><meta http-equiv="refresh" content="{refresh:g}"></noscript>\n' if refresh else ""
        slots = {
            "title": shown(title),
            "refresh": again,
            "layout": layout,
            "options": escape(options),
            "hide": hide,
            "now": str(int(time.time())),
            "body": body,
        }
        return "".join(slots[part] if at % 2 else part for at, part in enumerate(self._parts))

    def reply(self, status: int, text: str, kind: str = "plain", *more: tuple[str, str]) -> Reply:
        """An answer; `kind` is html, plain or json."""
        media = "application/json" if kind == "json" else f"text/{kind}; charset=utf-8"
        return Reply(status, text.encode(errors="replace"), media, (*self._headers, *more))


def _digest(template: str, element: str) -> str:
    """What a Content-Security-Policy calls the text of the only such element."""
    inside = template.partition(f"<{element}>")[2].partition(f"</{element}>")[0]
    return f"'sha256-{base64.b64encode(hashlib.sha256(inside.encode()).digest()).decode()}'"
