"""What forms of the page want, our own and HAProxy's, made into changes; and how that is answered. No I/O.

Ours say `do=ACTION/PROXY[/SERVER]`, and `sure=1` once the user has confirmed. HAProxy's say `action=ACTION`,
`b=BACKEND` or `b=#ID`, and `s=SERVER` as often as needed; the answer is a redirection whose `st=` says how it went.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any
from urllib.parse import parse_qs, unquote

from hitlessd.changes import Change, Item, Kind
from hitlessd.dataclass import dataclass
from hitlessd.model import Backend, Config
from hitlessd.runtime.control import Control
from hitlessd.table import RowKey

__all__ = ["Form", "Unfit", "Wish", "carry_out", "confirmation", "haproxy_form", "read_form", "read_wish"]

Form = Mapping[str, Sequence[str]]

_MOST_FIELDS = 1000
_MOST_WEIGHT = 256
#: HAProxy's actions that mean something here, and what.
_HAPROXY: dict[str, tuple[Kind, Any] | None] = {
    "ready": ("server-state", "ready"),
    "enable": ("server-state", "ready"),
    "drain": ("server-state", "drain"),
    "maint": ("server-state", "maint"),
    "disable": ("server-state", "maint"),
    "dhlth": ("server-check", False),
    "ehlth": ("server-check", True),
    "shutdown": None,
}


class Unfit(ValueError):
    """A form that cannot be carried out, for the reason that it says."""


@dataclass(frozen=True, slots=True)
class Wish:
    """What a button of ours is for. `value` is text where it has to be asked for first."""

    action: str
    proxy: str
    server: str = ""
    value: str = ""

    @property
    def what(self) -> str:
        return f"{self.proxy}/{self.server}" if self.server else self.proxy

    @property
    def key(self) -> RowKey:
        """Of its row."""
        return RowKey("server", self.proxy, self.server) if self.server else RowKey("frontend", self.proxy)

    @property
    def done(self) -> str:
        """How it is told afterwards."""
        return f"weight {self.value.strip()}" if self.action == "weight" else f"now {self.action}"

    @property
    def change(self) -> Change:
        """Raises Unfit."""
        match self.action:
            case "ready" | "drain" | "maint":
                return Change(Item("server-state", self.proxy, self.server), self.action)
            case "on" | "off":
                return Change(Item("frontend-state", self.proxy), self.action)
        text = self.value.strip()
        if not (text.isascii() and text.isdigit() and len(text) < 5 and int(text) <= _MOST_WEIGHT):
            raise Unfit(f"cannot set the weight to {text[:20] or 'nothing'}: expected 0 to {_MOST_WEIGHT}")
        return Change(Item("server-weight", self.proxy, self.server), int(text))


def read_form(body: bytes) -> Form:
    """Raises Unfit."""
    try:
        return parse_qs(body.decode("ascii"), keep_blank_values=True, max_num_fields=_MOST_FIELDS)
    except ValueError as error:
        raise Unfit(f"cannot read the form: {error}") from None


def read_wish(form: Form, config: Config) -> Wish:
    """What one of our buttons says, about something that exists. Raises Unfit."""
    action, *names = (unquote(word) for word in form["do"][0].split("/"))
    value = form.get("value", [""])[0]
    if action in ("ready", "drain", "maint", "weight") and len(names) == 2:
        if all(server.name != names[1] for server in _backend(config, names[0]).servers):
            raise Unfit(f"cannot change {names[0]}/{names[1]}: there is no such server (any more)")
    elif action in ("on", "off") and len(names) == 1:
        if all(frontend.name != names[0] for frontend in config.frontends):
            raise Unfit(f"cannot change {names[0]}: there is no such frontend (any more)")
    else:
        raise Unfit("cannot read the form: it says nothing that is known here")
    proxy, server = (*names, "")[:2]
    return Wish(action, proxy, server, value)


def haproxy_form(form: Form, config: Config) -> tuple[list[Change], list[tuple[str, str]], str]:
    """Changes, servers whose sessions are to be ended, and what `st=` says if all of that succeeds."""
    action, name = form.get("action", [""])[0], form.get("b", [""])[0]
    servers = form.get("s", ())
    if not action or not name or not servers:
        return [], [], "NONE"
    try:
        backend = _backend(config, name)
    except Unfit:
        return [], [], "ERRP"
    known = {server.name for server in backend.servers}
    found = [server for server in dict.fromkeys(servers) if server in known]
    if action not in _HAPROXY or not found:
        return [], [], "ERRP"
    status = "DONE" if len(found) == len(set(servers)) else "PART"
    what = _HAPROXY[action]
    if what is None:
        return [], [(backend.name, server) for server in found], status
    return [Change(Item(what[0], backend.name, server), what[1]) for server in found], [], status


def _backend(config: Config, name: str) -> Backend:
    number = int(name[1:]) if name[:1] == "#" and name[1:].isdecimal() and len(name) < 12 else None
    for backend in config.backends:
        if backend.iid == number if number is not None else backend.name == name:
            return backend
    raise Unfit(f"cannot change {name[:100]}: there is no such backend (any more)")


def carry_out(
    control: Control,
    changes: Sequence[Change],
    ended: Sequence[tuple[str, str]],
    done: Callable[[list[str]], object],
    later: Callable[[Callable[[], object]], object],
) -> None:
    """Ask main for all of it, one after the other: each takes main some milliseconds where there are thousands of
    servers. `done`, called once, gets a reason for each that was refused; `later(call)` calls when others had their
    turn."""
    refused: list[str] = []
    asked: Iterator[Callable[[Callable[[str], object]], object]] = iter(
        [
            *(partial(control.administer, change) for change in changes),
            *(partial(_shut_down, control, server) for server in ended),
        ]
    )

    def go_on() -> None:
        ask = next(asked, None)
        if ask:
            ask(one)
        else:
            done(refused)

    def one(reason: str) -> None:
        if reason:
            refused.append(reason)
        later(go_on)

    go_on()


def _shut_down(control: Control, server: tuple[str, str], done: Callable[[str], object]) -> None:
    control.shut_down(0, server, lambda _answer: done(""))


def confirmation(wish: Wish, sessions: int, last: bool) -> tuple[str, str, list[str]]:
    """The question, the name of the button that says yes, and what will come of it, for a person.

    `sessions` it has now; `last`: no other server of its backend gets new ones.
    """
    what = wish.what
    have = f"{sessions:,} session{'' if sessions == 1 else 's'}"
    match wish.action:
        case "drain":
            told = [
                "New clients go to other servers; those that belong to it by a cookie still come.",
                f"Its {have} go on.",
            ]
            question, button = f"Drain {what}?", "Drain"
        case "maint":
            told = ["Nobody gets to it any more, and it is not checked.", f"Its {have} go on until they end."]
            question, button = f"Put {what} into maintenance?", "Into maintenance"
        case "ready":
            told = ["It is checked, if it has checks, and gets new sessions as long as those pass."]
            question, button = f"Put {what} back into rotation?", "Ready"
        case "off":
            told = ["It accepts no new connections.", f"Its {have} go on."]
            question, button = f"Switch {what} off?", "Switch off"
        case "on":
            told = ["It accepts new connections again."]
            question, button = f"Switch {what} on?", "Switch on"
        case _:
            told = [
                "Its share of new sessions, beside the weights of the other servers. 0: no new ones but by a cookie."
            ]
            question, button = f"Set the weight of {what}", "Set"
    if wish.action in ("drain", "maint") and last:
        told.append(f"It is the last server of {wish.proxy} that gets new sessions: clients will be refused.")
    return question, button, told
