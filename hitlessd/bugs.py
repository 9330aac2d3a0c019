"""How a bug reads in the log: with the way to it, as the standard library's traceback tells it but without the text of
the lines.

Not with that module: it would slow every reload if it were imported at the start, and cannot be imported by a process
that a bug has met for want of descriptors.
"""

from __future__ import annotations

import sys

__all__ = ["account"]

#: Calls that are told of each end of a longer way: a thousand of them, as of what calls itself, fit no log.
_ENDS = 20
#: Errors that are told of those that led to one another.
_MOST_ERRORS = 5
_CAUSED = "The above exception was the direct cause of the following exception:"
_DURING = "During handling of the above exception, another exception occurred:"


def account(error: BaseException | None = None) -> str:
    """Several lines: the way to the error (None: the one that is being handled), the innermost call last, and what it
    says; before it the same of the errors that it came from."""
    error = error or sys.exception()
    parts = [_one(error)]
    while error is not None and len(parts) < 2 * _MOST_ERRORS:
        earlier, how = error.__cause__, _CAUSED
        if earlier is None and not error.__suppress_context__:
            earlier, how = error.__context__, _DURING
        if earlier is not None:
            parts += [how, _one(earlier)]
        error = earlier
    return "\n\n".join(reversed(parts))


def _one(error: BaseException | None) -> str:
    way = []
    trace = error.__traceback__ if error else None
    while trace is not None:
        code = trace.tb_frame.f_code
        way.append(f'  File "{code.co_filename}", line {trace.tb_lineno}, in {code.co_name}')
        trace = trace.tb_next
    if len(way) > 2 * _ENDS:
        way[_ENDS:-_ENDS] = [f"  ... {len(way) - 2 * _ENDS} more calls"]
    try:
        text = str(error)
    except Exception:
        text = "<exception str() failed>"  # a second bug must not hide the first
    return "\n".join(["Traceback (most recent call last):", *way, f"{type(error).__name__}: {text}"])
