"""`clear counters`: what main itself forgets of what was counted, and takes back from what others have."""

from __future__ import annotations

from collections.abc import Sequence

from hitlessd.table import GAUGES, MAXIMA, PROCESS, Column, Table, totals

__all__ = ["clear_counters"]

#: What workers compare with each other; nobody reads it as a total.
_INTERNAL = frozenset({Column.OBSERVED_OK})


def clear_counters(tables: Sequence[Table], everything: bool) -> None:
    """Forget the most there was at once; with `everything` take all that was counted from the first table's base, so
    that the sums over all tables are 0. What there is now stays, and so do the totals of the process, as with HAProxy.
    """
    for table in tables:
        table.clear_maxima(columns=[Column.SMAX, Column.QMAX, *([Column.LASTSESS] if everything else [])])
    if not everything:
        return
    ours = tables[0]
    for key in ours.keys:
        if key == PROCESS:
            continue
        for column, total in zip(Column, totals(tables, key), strict=True):
            if total and column not in GAUGES and column not in MAXIMA and column not in _INTERNAL:
                ours.add(key, column, -total)
