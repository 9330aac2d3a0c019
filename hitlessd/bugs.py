"""How a bug reads in the log: with the way to it, as the standard library's traceback tells it but without the text of
the lines.

Not with that module: it would slow every reload if it were imported at the start, and cannot be imported by a process
that a bug has met for want of descriptors.
"""

from __future__ import annotations

import sys

__all__ = ["account"]


def account(error: BaseException | None = None) -> str:
    """Several lines: the way to the error (None: the one that is being handled), the innermost call last, and what it
    says."""
    error = error or sys.exception()
    lines = ["Traceback (most recent call last):"]
    trace = error.__traceback__ if error else None
    while trace is not None:
        code = trace.tb_frame.f_code
        lines.append(f'  File "{code.co_filename}", line {trace.tb_lineno}, in {code.co_name}')
        trace = trace.tb_next
    return "\n".join([*lines, f"{type(error).__name__}: {error}"])
