"""Listeners for tests, opened as the program does it."""

from __future__ import annotations

from collections.abc import Sequence

from hitlessd.listeners import Listener, open_listener
from hitlessd.model import Bind

__all__ = ["opened"]


def opened(bind: Bind, held: Sequence[Listener] = (), replace: bool = False) -> Listener:
    """Open, and let it be found where it has a path."""
    listener = open_listener(bind, held, replace)
    if listener.temporary:
        listener.start_listening(0)
    return listener
