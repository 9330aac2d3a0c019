"""Connections one by one, over all generations: ours from our workers, those of older ones over their lines.

A line is a SOCK_SEQPACKET pair between a generation that drains and whoever is the current one: a request is answered
with its number, and nothing else is remembered, so that it can be passed on with the next handover.
"""

from __future__ import annotations

import itertools
import socket
from collections.abc import Callable, Sequence
from typing import Any

from hitlessd import channel
from hitlessd.descriptors import ShortOfDescriptors, close_all
from hitlessd.errors import PeerError
from hitlessd.events import Event
from hitlessd.log import Logger
from hitlessd.loop import READ, Loop, Timer
from hitlessd.main.inheritance import Ancestor
from hitlessd.main.workers import Answer, Pool, Visited

__all__ = ["LineServer", "Sessions"]

#: Seconds that an older generation may take to answer.
_PATIENCE = 3.0
#: What these orders may carry.
_ASKED = {
    "show-sessions": ("after", "only", "room"),
    "shutdown-session": ("only", "server"),
    "clear-maxima": ("all",),
}

Done = Callable[[dict[str, Any]], object]


def merge(answers: Sequence[Answer]) -> dict[str, Any]:
    """One page of several: by number, and only up to where all of them are complete."""
    pages = [answer for answer in answers if answer]
    forms = sorted(
        (form for page in pages for form in page.get("sessions", ())), key=lambda form: int(form.get("number", 0))
    )
    ends = [int(page["sessions"][-1].get("number", 0)) for page in pages if page.get("more") and page.get("sessions")]
    if ends:
        forms = [form for form in forms if int(form.get("number", 0)) <= min(ends)]
    return {"sessions": forms, "more": bool(ends), "closed": sum(int(page.get("closed", 0)) for page in pages)}


class LineServer:
    """The end of the generation that drains."""

    def __init__(self, loop: Loop, pool: Pool, sock: socket.socket) -> None:
        """Owns the socket."""
        self._loop = loop
        self._pool = pool
        self._sock = sock
        sock.setblocking(False)
        loop.add(sock.fileno(), READ, self._ready)

    def close(self) -> None:
        if self._sock.fileno() >= 0:
            self._loop.remove(self._sock.fileno())
            self._sock.close()

    def pass_on(self, message: dict[str, Any], fd: int) -> bool:
        """Give the current generation a client of ours; False if it does not take it now."""
        try:
            channel.send(self._sock, message, [fd])
        except (OSError, ValueError):
            return False
        return True

    def _ready(self, _events: int) -> None:
        try:
            message = channel.receive(self._sock)
        except BlockingIOError:
            return
        except (OSError, PeerError):
            message = None
        if message is None:
            return self.close()
        order = message.get("do")
        if order not in _ASKED:
            return  # of a later version; the asker's patience ends it
        more = {name: message[name] for name in _ASKED[order] if name in message}
        if order == "show-sessions":
            more["room"] = _room(self._pool)
        self._pool.ask(order, lambda answers: self._answer(message, merge(answers)), **more)

    def _answer(self, message: dict[str, Any], page: dict[str, Any]) -> None:
        try:
            channel.send(self._sock, {"did": message["do"], "r": message.get("r"), **page})
        except (OSError, ValueError):
            return  # nobody reads


def _room(pool: Pool) -> int:
    """Bytes of each worker's share of one message."""
    return (channel.LONGEST - 1024) // max(1, len(pool.members()))


class _Asked:
    """One question to all generations."""

    def __init__(self, done: Done) -> None:
        self.done = done
        self.answers: list[Answer] = []
        self.waiting: set[int] = set()
        self.timer: Timer | None = None


class Sessions:
    """The current generation's end: asks its own workers and every line."""

    def __init__(self, loop: Loop, log: Logger, pool: Pool, ancestors: list[Ancestor]) -> None:
        """`ancestors` is looked at whenever something is asked."""
        self._loop = loop
        self._log = log
        self._pool = pool
        self._ancestors = ancestors
        self._numbers = itertools.count(1)
        self._lines: dict[socket.socket, int] = {}  # that we listen to; their generation
        self._asked: dict[int, tuple[_Asked, socket.socket]] = {}
        self._when_visited: Visited = lambda sock, _message: sock.close()

    def when_visited(self, callback: Visited) -> None:
        """Call back with each client that an older generation passes on."""
        self._when_visited = callback

    def listen(self) -> None:
        """Listen to every line that there is."""
        for ancestor in self._ancestors:
            if ancestor.line is not None and ancestor.line not in self._lines:
                line = ancestor.line
                self._lines[line] = ancestor.generation
                self._loop.add(line.fileno(), READ, lambda _events, line=line: self._heard(line))  # type: ignore[misc]

    def page(self, after: int, only: int, done: Done) -> None:
        """The next sessions behind a number, or the only one of that number: "sessions" and "more"."""
        self._ask("show-sessions", {"after": after, "only": only, "room": _room(self._pool)}, done)

    def shut_down(self, only: int, server: Sequence[str], done: Done) -> None:
        """End one, or those of a server: "closed" tells how many."""
        self._ask("shutdown-session", {"only": only, "server": list(server)}, done)

    def clear_maxima(self, everything: bool, done: Done) -> None:
        """Have all workers forget how much there was at once; with `everything` when the latest session was, too."""
        self._ask("clear-maxima", {"all": everything}, done)

    def forget(self, line: socket.socket) -> None:
        """Its generation has ended, or is another's to ask now."""
        if self._lines.pop(line, None) is not None:
            self._loop.remove(line.fileno())
        for number, (asked, sock) in list(self._asked.items()):
            if sock is line:
                self._settle(number, asked, None)

    def close(self) -> None:
        """Listen to no line any more."""
        for line in list(self._lines):
            self.forget(line)

    def _ask(self, order: str, more: dict[str, Any], done: Done) -> None:
        asked = _Asked(done)
        asked.waiting.add(0)
        self.listen()
        for line in list(self._lines):
            number = next(self._numbers)
            try:
                channel.send(line, {"do": order, "r": number, **more})
            except OSError:
                continue  # it has just ended, or reads nothing
            asked.waiting.add(number)
            self._asked[number] = (asked, line)
        asked.timer = self._loop.call_later(_PATIENCE, lambda: self._expire(asked))
        self._pool.ask(order, lambda answers: self._settle(0, asked, merge(answers)), **more)

    def _heard(self, line: socket.socket) -> None:
        fds: list[int] = []
        try:
            answer, fds = channel.receive_with(line)
        except BlockingIOError:
            return
        except ShortOfDescriptors as error:
            text = f"a client that generation {self._lines[line]} has passed on is lost: {error}"
            self._log("err", text, event=Event.WEB_CLIENT_DROPPED)
            return
        except (OSError, PeerError):
            answer = None
        if answer is None:
            return self.forget(line)
        if answer.get("did") == "web" and fds:
            self._when_visited(socket.socket(fileno=fds.pop(0)), answer)
        close_all(fds)
        number = answer.get("r")
        if isinstance(number, int) and number in self._asked:
            self._settle(number, self._asked[number][0], answer)

    def _settle(self, number: int, asked: _Asked, answer: Answer) -> None:
        self._asked.pop(number, None)
        if number not in asked.waiting:
            return
        asked.waiting.discard(number)
        asked.answers.append(answer)
        if not asked.waiting:
            if asked.timer:
                asked.timer.cancel()
            asked.done(merge(asked.answers))

    def _expire(self, asked: _Asked) -> None:
        for number in list(asked.waiting):
            if number in self._asked:
                generation = self._lines.get(self._asked[number][1], 0)
                self._log("notice", f"generation {generation} does not say which connections it has: left out")
            self._settle(number, asked, None)
