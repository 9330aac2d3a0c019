"""The statistics page as HTTP: who asks for what, and what is shown. No I/O of its own."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from hitlessd.model import Config, StatsPage
from hitlessd.runtime import typed
from hitlessd.runtime.control import Control
from hitlessd.runtime.stat import StatFilter, show_stat, stat_rows
from hitlessd.web.message import Feed, Grant, Reply, Request, Waiting
from hitlessd.web.page import access
from hitlessd.web.page.board import Board, scoped
from hitlessd.web.page.news import News, Viewer
from hitlessd.web.page.posting import STATUSES, Posting
from hitlessd.web.page.sections import Sections
from hitlessd.web.page.shell import Shell
from hitlessd.web.page.tables import figures, tables
from hitlessd.web.page.text import escape, shown
from hitlessd.web.page.visit import Visit, path_of

__all__ = ["Site"]

_FORMS = ("csv", "json", "typed")
#: Kinds of states that an option hides.
_HIDDEN = {"up": ("down", "maint"), "no-maint": ("maint",)}


class Site:
    """Answers for all pages of the configuration: respond() is a Responder. `clock` is monotonic."""

    def __init__(self, control: Control, clock: Callable[[], float] = time.monotonic) -> None:
        self._control, self._clock = control, clock
        self._shell = Shell()
        self._posting = Posting(control, self._shell)
        # One for each scope that the configuration knows.
        self._news: dict[frozenset[str] | None, News] = {}

    def respond(self, request: Request, grant: Grant) -> Reply | Feed | Waiting:
        page, shell = grant.page, self._shell
        if page is None or not path_of(request.target).startswith(page.uri):
            return shell.reply(404, "There is nothing here.\n")
        user = access.user(request, page)
        if user is None:
            realm = page.realm.replace("\\", "\\\\").replace('"', '\\"')
            return shell.reply(
                401, "A name and a password are needed.\n", "plain", ("WWW-Authenticate", f'Basic realm="{realm}"')
            )
        visit = Visit.of(self._control, request, grant, page, user)
        if request.method == "POST":
            return self._posting.respond(visit, self._news_of(visit))
        if found := next((form for form in _FORMS if form in visit.options), ""):
            return shell.reply(200, self._statistics(visit, found), "json" if found == "json" else "plain")
        news = self._news_of(visit)
        if "events" in visit.options:
            return Feed(Viewer(news, {"token": visit.token if visit.admin else ""}).next)
        news.refresh()
        return shell.reply(200, self._whole(visit, news), "html")

    def _news_of(self, visit: Visit) -> News:
        found = self._news.get(visit.names)
        if found is None:
            board = Board(self._control, visit.names)
            found = self._news[visit.names] = News(board, Sections(self._control, board), self._clock)
        return found

    def _statistics(self, visit: Visit, form: str) -> str:
        """What `show stat` says."""
        control: Any = _Scoped(self._control, visit.names)
        wanted = StatFilter(hide_maint="no-maint" in visit.options, hide_down="up" in visit.options)
        now = time.time()
        if form == "csv":
            return show_stat(control, wanted, now)
        rows = stat_rows(control, wanted, now)
        return typed.stat_json(rows) if form == "json" else typed.stat_typed(rows, False)

    def _whole(self, visit: Visit, news: News) -> str:
        control, page, board, html = self._control, visit.page, news.board, news.html
        hidden = frozenset(kind for option in visit.options for kind in _HIDDEN.get(option, ()))
        proxies = f'<div id="proxies">{tables(control, board, visit.admin, hidden)}</div>'
        if visit.admin:
            proxies = (
                f'<form method="post" id="act"><input type="hidden" name="token" value="{visit.token}">{proxies}</form>'
                '<dialog id="dialog" aria-label="Confirm"></dialog>'
            )
        said = next((option[3:] for option in visit.options if option.startswith("st=")), "")
        result = f'<p class="result" role="status">{STATUSES[said]}</p>' if said in STATUSES else ""
        title = page.node or page.description or "hitlessd"
        body = (
            '<a class="skip" href="#proxies">To the proxies</a>'
            f'<header class="top"><h1>{shown(title)}</h1>{_about(control, page)}'
            '<span class="live scripted" id="live">connecting</span></header>'
            f'<main>{result}<div id="summary">{html["summary"]}</div>{figures(control, board)}'
            f'<div id="changes" class="card">{html["changes"]}</div>{_tools(visit)}{proxies}'
            f'<div id="generations" class="card">{html["generations"]}</div>'
            f'<div id="reloads" class="card">{html["reloads"]}</div></main>'
            '<div id="said" role="status"></div>'
        )
        return self._shell.page(
            f"{page.node} {page.description}".strip() or "hitlessd",
            body,
            refresh=None if "norefresh" in visit.options else page.refresh,
            layout=board.layout,
            options=visit.suffix,
            hide=" ".join(sorted(hidden)),
        )


def _about(control: Control, page: StatsPage) -> str:
    named = bool(page.node or page.description)
    words = [page.description] if page.node and page.description else []
    if named:
        words.append("hitlessd" if page.hide_version else f"hitlessd {control.version}")
    elif not page.hide_version:
        words.append(f"version {control.version}")
    return "".join(f'<span class="about">{shown(word)}</span>' for word in words)


def _tools(visit: Visit) -> str:
    uri = escape(visit.page.uri)
    lasting = visit.options
    links = [
        ("all servers", "") if "up" in lasting or "no-maint" in lasting else ("only those that are up", ";up"),
        ("CSV", ";csv"),
    ]
    if visit.page.refresh and "norefresh" not in lasting:
        links.append(("stop refreshing", ";norefresh"))
    anchors = "".join(
        f'<a href="{uri}{escape(suffix)}"{" class=plainly" if suffix == ";norefresh" else ""}>{text}</a>'
        for text, suffix in links
    )
    find = '<input type="search" id="find" autocomplete="off" spellcheck="false">'
    return (
        f'<div class="tools" role="search"><label class="scripted">Find {find}</label>'
        '<label class="scripted"><input type="checkbox" id="wrong">'
        f' Only what is not up</label><nav aria-label="Other views">{anchors}</nav></div>'
    )


class _Scoped:
    """A Control whose configuration has some proxies only."""

    def __init__(self, control: Control, names: frozenset[str] | None) -> None:
        self._control = control
        self.config: Config = scoped(control.config, names)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._control, name)
