"""Every exception that hitlessd raises on purpose, split by whose fault it is.

A message reads "cannot X: why" and is shown to a person as it stands; nothing here is a traceback for a user's mistake.
"""

from __future__ import annotations

__all__ = ["ConfigError", "HitlessdError", "ListenerRefused", "PeerError", "StateError", "SystemRefused", "reason_of"]


class HitlessdError(Exception):
    """The root; catch it where a message to a person is the right answer."""


class ConfigError(HitlessdError):
    """The operator's configuration is wrong. Carries every problem found, one line each, in file order."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


class PeerError(HitlessdError):
    """Another process (a predecessor, a successor, a client of the runtime socket) broke the protocol or went away."""


class SystemRefused(HitlessdError):
    """The operating system refused something we need: an address in use, too few descriptors, no permission."""


class ListenerRefused(SystemRefused):
    """Addresses that cannot be listened on, one line each."""


class StateError(HitlessdError):
    """An event that the transition table does not allow in this state; nothing was changed."""


def reason_of(error: Exception) -> str:
    """Why, for the end of a message: what the system calls it, without number and file name, if it is the system's."""
    return (error.strerror if isinstance(error, OSError) else None) or str(error)
