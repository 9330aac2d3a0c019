"""What the page answers to forms: a question first, and when that is answered, the change and how it went."""

from __future__ import annotations

import json
from collections.abc import Callable

from hitlessd.runtime.control import Control
from hitlessd.table import RowKey
from hitlessd.web.message import Reply, Waiting
from hitlessd.web.page import access, actions
from hitlessd.web.page.board import scoped
from hitlessd.web.page.news import News
from hitlessd.web.page.shell import Shell
from hitlessd.web.page.text import escape, shown
from hitlessd.web.page.visit import Visit

__all__ = ["STATUSES", "Posting"]

#: HAProxy's words for `st=` in the redirection that answers its forms, and ours for people.
STATUSES = {
    "DONE": "Done.",
    "NONE": "Nothing was asked for.",
    "PART": "Done for some of the servers only.",
    "ERRP": "That cannot be done: it makes no sense here, or it was refused.",
    "EXCD": "That was too much at once.",
    "DENY": "That is not allowed here.",
}
_MOST_BODY = 32768  # bytes

Done = Callable[[Reply], object]


class Posting:
    """Answers POST."""

    def __init__(self, control: Control, shell: Shell) -> None:
        self._control, self._shell = control, shell

    def respond(self, visit: Visit, news: News) -> Reply | Waiting:
        if len(visit.request.body) > _MOST_BODY:
            return self._redirect(visit, "EXCD")
        try:
            form = actions.read_form(visit.request.body)
        except actions.Unfit as error:
            return self._refuse(visit, 400, str(error))
        ours = "do" in form
        why = "" if visit.admin else "`stats admin` does not allow it"
        why = why or access.forged(visit.request, form.get("token", [""])[0], visit.token)
        if why:
            refusal = self._refuse(visit, 403, f"cannot change anything: {why}")
            return refusal if ours or visit.admin else self._redirect(visit, "DENY")
        return self._ours(visit, form, news) if ours else self._haproxy(visit, form)

    def _haproxy(self, visit: Visit, form: actions.Form) -> Reply | Waiting:
        changes, ended, status = actions.haproxy_form(form, scoped(self._control.config, visit.names))
        whole = len(changes) + len(ended)
        if not whole:
            return self._redirect(visit, status)

        def begin(done: Done) -> None:
            def answer(refused: list[str]) -> None:
                said = status if not refused else "ERRP" if len(refused) == whole else "PART"
                done(self._redirect(visit, said))

            actions.carry_out(self._control, changes, ended, answer)

        return Waiting(begin)

    def _ours(self, visit: Visit, form: actions.Form, news: News) -> Reply | Waiting:
        try:
            wish = actions.read_wish(form, scoped(self._control.config, visit.names))
            if form.get("sure") != ["1"]:
                return self._shell.reply(200, self._question(visit, wish, form["do"][0], news), "html")
            change = wish.change
        except actions.Unfit as error:
            return self._refuse(visit, 400, str(error))

        def begin(done: Done) -> None:
            def answer(refused: list[str]) -> None:
                if refused:
                    done(self._refuse(visit, 409, refused[0]))
                elif visit.wants_json:
                    done(self._json(200, f"{wish.what}: {wish.done}"))
                else:
                    done(self._redirect(visit, "DONE"))

            actions.carry_out(self._control, [change], [], answer)

        return Waiting(begin)

    def _question(self, visit: Visit, wish: actions.Wish, do: str, news: News) -> str:
        """A page of its own, of which the script makes a dialog."""
        news.refresh()
        values = {row.key: value for row, value in zip(news.board.rows, news.board.values, strict=True)}
        whole, mine = values.get(RowKey("backend", wish.proxy)), values.get(wish.key)
        last = bool(whole and mine and mine.usable and whole.usable == 1)
        question, button, told = actions.confirmation(wish, mine.scur if mine else 0, last)
        asked = ""
        if wish.action == "weight":
            weight = mine.weight if mine else 0
            asked = (
                '<p><label>Weight <input name="value" type="number" min="0" max="256" required'
                f' value="{weight}"></label></p>'
            )
        back = escape(visit.page.uri + visit.lasting)
        form = (
            f'<form method="post" class="ask" action="{back}"><h2>{shown(question)}</h2>'
            f"{''.join(f'<p>{shown(line)}</p>' for line in told)}{asked}"
            f'<input type="hidden" name="do" value="{escape(do)}">'
            f'<input type="hidden" name="token" value="{visit.token}"><input type="hidden" name="sure" value="1">'
            f'<p class="problem" role="alert"></p><p class="answers"><button class="main">{shown(button)}</button>'
            f'<a class="no" href="{back}">Cancel</a></p></form>'
        )
        return self._shell.page(question, f"<main>{form}</main>")

    def _refuse(self, visit: Visit, status: int, why: str) -> Reply:
        if visit.wants_json:
            return self._json(status, why)
        back = escape(visit.page.uri + visit.lasting)
        body = (
            f'<main><div class="ask"><h2>That was not done</h2><p>{shown(why)}</p>'
            f'<p class="answers"><a class="no" href="{back}">Back to the page</a></p></div></main>'
        )
        return self._shell.reply(status, self._shell.page("That was not done", body), "html")

    def _json(self, status: int, text: str) -> Reply:
        return self._shell.reply(status, json.dumps({"ok": status == 200, "text": text}), "json")

    def _redirect(self, visit: Visit, status: str) -> Reply:
        where = f"{visit.page.uri}{visit.lasting};st={status}"
        return self._shell.reply(303, "", "plain", ("Location", where))
