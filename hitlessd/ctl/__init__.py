"""hitlessctl: speaks to a running hitlessd over its runtime API socket.

It runs in every reload, so what a reload needs (commandline.py, connection.py, output.py, reload.py) imports next to
nothing; the rest is imported by the command that wants it.
"""

from __future__ import annotations

from hitlessd.ctl.commandline import main

__all__ = ["main"]
