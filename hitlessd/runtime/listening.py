"""`show listeners`: where the frontends accept."""

from __future__ import annotations

from hitlessd.runtime.command import Call, Command

__all__ = ["COMMANDS"]


def _show_listeners(call: Call) -> str:
    lines = [
        f"{frontend.name} {bind.address}" + (f" interface {bind.interface}" if bind.interface else "")
        for frontend in call.control.config.frontends
        for bind in frontend.binds
    ]
    return "# frontend address\n" + "".join(f"{line}\n" for line in lines)


COMMANDS = (
    Command(
        ("show", "listeners"),
        "show listeners",
        "list the addresses on which frontends accept",
        _show_listeners,
        "operator",  # as all that tells addresses
        privileged=True,
    ),
)
