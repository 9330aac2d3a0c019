"""Changes of a head that is passed on. The rest stays as it came: order, case and spaces."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

__all__ = ["Change", "changed", "with_connection"]

#: What is to be done, to the fields of which name, the value, and to which of them:
#: "set" removes all of the name and adds one at the end, "add" adds one, "del" removes all; "replace" changes and
#: "delete" removes the one that is number `nth` among those of its name before any change.
Change = tuple[str, bytes, bytes] | tuple[str, bytes, bytes, int]


def changed(head: bytes, changes: Iterable[Change]) -> bytes:
    """The head after all changes, in their order."""
    first, *lines = head[:-4].split(b"\r\n")
    # Counted before any change: a place stays when its line goes.
    fields: list[bytes | None] = list(lines)
    for change in changes:
        operation, name, value = change[:3]
        lower = name.lower()
        places = [at for at, line in enumerate(fields) if line is not None and _name(line) == lower]
        if operation in ("set", "del"):
            for at in places:
                fields[at] = None
        elif operation in ("replace", "delete"):
            at = _nth(lines, lower, change[3] if len(change) > 3 else 0)
            if at >= 0 and fields[at] is not None:
                fields[at] = lines[at].partition(b":")[0] + b": " + value if operation == "replace" else None
        if operation in ("set", "add"):
            fields.append(name + b": " + value)
    return b"\r\n".join([first, *(line for line in fields if line is not None)]) + b"\r\n\r\n"


def with_connection(head: bytes, option: bytes) -> bytes:
    """The head, which has no Connection field, with one at its end."""
    return head[:-2] + b"connection: " + option + b"\r\n\r\n"


def _name(line: bytes) -> bytes:
    return line.partition(b":")[0].lower()


def _nth(lines: Sequence[bytes], name: bytes, nth: int) -> int:
    places = [at for at, line in enumerate(lines) if _name(line) == name]
    return places[nth] if nth < len(places) else -1
