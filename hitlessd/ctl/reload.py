"""`hitlessctl reload`: waits for the outcome, whatever happens to the main process meanwhile."""

from __future__ import annotations

import os
import time

from hitlessd.ctl.connection import Connection, Unreachable, ask, fields, is_refusal, number
from hitlessd.ctl.output import DONE, REFUSED, UNREACHABLE, say

__all__ = ["quietly", "reload"]

_RECONNECT = 30.0  # seconds in which a new main process must answer after the one we spoke to has gone
#: The same as an ExecReload=: systemd starts the crashed service again only after we have ended (systemd.service(5)),
#: and clients wait meanwhile. Only who died between MAINPID= and the hand-over of its callers has a successor.
_RECONNECT_IN_UNIT = 0.3
_PAUSE = 0.05  # seconds between attempts to reconnect
_HISTORY = 5.0  # seconds to wait for it

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    #: Is given an outcome: whether it was done, the reason or summary, the answer to `show reloads json` or "".
    Show = Callable[[bool, str, str], object]


def quietly(_ok: bool, _text: str, _history: str) -> None:
    """The status says it all; refusals are told anyway."""


def reload(where: str, timeout: float | None, show: Show = quietly) -> int:
    """Returns the exit status."""
    deadline = None if timeout is None else time.monotonic() + timeout
    before: dict[str, str] = {}
    history = ""
    try:
        connection = Connection(where, deadline, None)
        try:
            connection.send("show info;reload" + ";show reloads json" * (show is not quietly))
            info = connection.answer(None)
            before = fields(info or "")
            answer = connection.answer(None) if info is not None else None
            if answer is not None and show is not quietly:
                history = _history(connection)
        finally:
            connection.close()
    except TimeoutError:
        return _no_answer(where, timeout)
    except OSError:
        answer = None
    if answer is None:
        return _outcome_from_successor(where, before, show, deadline, timeout)
    result, _, text = answer.partition("\n--")
    text = text.strip("\n")
    if result == "Success=1":
        show(True, text or "reloaded", history)
        return DONE
    if result == "Success=0":
        show(False, text or "no reason given", history)
        say(f"cannot reload: {text or 'no reason given'}", error=True)
    elif answer.startswith("Permission denied"):
        step = "run as root or as hitlessd's user, or give the `stats socket` level admin"
        say(f"cannot reload: permission denied at {where}; next step: {step}", error=True)
    else:
        say(f"cannot reload: {answer}", error=True)
    return REFUSED


def _history(connection: Connection) -> str:
    """Who does not tell its history has reloaded all the same."""
    try:
        return connection.answer(_HISTORY) or ""
    except OSError:
        return ""


def _no_answer(where: str, timeout: float | None) -> int:
    waited = f"within {timeout:g} s" if timeout is not None else "in time"
    say(
        f"cannot learn how the reload ended: hitlessd at {where} did not answer {waited}; next step: hitlessctl status",
        error=True,
    )
    return UNREACHABLE


def _outcome_from_successor(
    where: str, before: dict[str, str], show: Show, deadline: float | None, timeout: float | None
) -> int:
    """The main process has gone without an answer: whoever serves now tells how it ended."""
    asked = number(before, "Now_monotonic_usec")
    in_unit = _is_exec_reload()
    if in_unit:
        _end_reload()
    until = time.monotonic() + (_RECONNECT_IN_UNIT if in_unit else _RECONNECT)
    if deadline is not None:
        until = min(until, deadline)
    reason = f"cannot reach hitlessd at {where}"
    while True:
        try:
            info = fields(ask(where, ["show info"], until)[0])
            if not asked or number(info, "Start_monotonic_usec") > asked:
                return _judge(where, info, show, bool(asked))
            reason = f"generation {info.get('Generation', '?')} still serves and did not say why"
        except Unreachable as error:
            reason = str(error)
        if time.monotonic() >= until:
            break
        time.sleep(_PAUSE)
    if deadline is not None and until == deadline:
        return _no_answer(where, timeout)
    say(f"cannot learn how the reload ended: hitlessd closed the connection, and {reason}", error=True)
    return UNREACHABLE


def _is_exec_reload() -> bool:
    """Whether systemd waits for us with the main process's unit. Of another unit, say one that renews certificates and
    then has hitlessd reload, there is no main process while we run, or it is ourselves (systemd.exec(5))."""
    own = str(os.getpid())
    return os.environ.get("SYSTEMD_EXEC_PID") == own and os.environ.get("MAINPID", own) != own


def _end_reload() -> None:
    """Tell systemd that the reload is over, lest it wait when we have ended for READY=1 from a main process that said
    RELOADING=1 and is dead: 257 does, until the watchdog fires, and restarts nothing meanwhile."""
    from hitlessd.systemd import Manager  # only those who need it pay for it

    Manager(dict(os.environ)).notify("READY=1")


def _judge(where: str, info: dict[str, str], show: Show, comparable: bool) -> int:
    """Whether a main process that started after our call runs what the file says."""
    generation, state = info.get("Generation", "?"), info.get("ConfigState", "")
    if not comparable:
        say(
            f"cannot learn how the reload ended: hitlessd closed the connection; generation {generation} serves now; "
            "next step: hitlessctl reload",
            error=True,
        )
        return UNREACHABLE
    if state == "file":
        show(True, f"generation {generation} serves; it started after this call and runs the configuration file", "")
        return DONE
    try:
        details = ask(where, ["show errors"])[0]
    except Unreachable:
        details = ""
    if is_refusal(details):
        details = ""
    reason = (
        f"generation {generation} was started, but it runs the stored configuration because the file is invalid"
        f"\n{details}".rstrip("\n")
    )
    show(False, reason, "")
    say(f"cannot reload: {reason}", error=True)
    return REFUSED
