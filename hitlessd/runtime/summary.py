"""What `hitlessctl status` shows: a summary for people, made of the runtime API's answers. Imports nothing; no I/O."""

from __future__ import annotations

__all__ = ["summary"]

_ROW = "{:<20} {:<20} {:<4} {:<10} {:>8} {:>12} {:>12}"


def summary(info: dict[str, str], stat: str, proc: str, errors: str, now: float) -> str:
    """A text of several lines from the answers to `show info` (its fields), `show stat`, `show proc` and `show errors`.

    `errors` is empty for those who may not read them. `now` is CLOCK_REALTIME seconds.
    """

    def say(name: str) -> str:
        return info.get(name, "?")

    header, *lines = stat.splitlines() or [""]
    names = header.removeprefix("# ").split(",")
    rows = [dict(zip(names, _cells(line), strict=False)) for line in lines]
    servers = [row.get("status", "") for row in rows if row.get("type") == "2"]
    used = sum(status == "no check" or status.startswith("UP") for status in servers)
    stopping = ", stopping" if info.get("Stopping") == "1" else ""
    stored = info.get("ConfigState") == "stored"
    text = [
        f"hitlessd {say('Version')}, generation {say('Generation')}, pid {say('Pid')}, up {say('Uptime')}{stopping}",
        f"listeners: {say('Listeners')}   workers: {say('Workers')}   servers: {used} of {len(servers)} in use",
        f"sessions: {say('CurrConns')} now, {say('CumConns')} in all, "
        f"{say('SessRate')}/s (most: {say('MaxSessRate')}/s){_requests(rows)}",
        f"configuration: {'the stored one; the file is invalid' if stored else 'the file'}",
        f"last reload: {_last_reload(info, now)}",
    ]
    old = [line.split() for line in proc.partition("# old workers")[2].splitlines() if " master " in line]
    if old:
        # PID, type, reloads, uptime, version, generation, sessions, moved, and why the rest has stayed.
        generations = [
            f"{words[5]} (pid {words[0]}, {words[6]} sessions{'; ' * bool(words[8:])}{' '.join(words[8:])})"
            for words in old
        ]
        text.append("draining generations: " + ", ".join(generations))
    text += errors.splitlines()[1:]
    text += ["", _ROW.format("PROXY", "NAME", "MODE", "STATUS", "NOW", "TOTAL", "REQUESTS").rstrip()]
    for row in rows:
        cells = [row.get(name, "") for name in ("pxname", "svname", "mode", "status", "scur", "stot", "req_tot")]
        if row.get("mode") != "http":
            cells[-1] = ""  # HAProxy says 0
        text.append(_ROW.format(*cells).rstrip())
    return "\n".join(text)


def _requests(rows: list[dict[str, str]]) -> str:
    """Of HTTP, if there is any."""
    counts = [row.get("req_tot", "") for row in rows if row.get("type") == "0" and row.get("mode") == "http"]
    return f"; HTTP requests: {sum(int(count) for count in counts if count.isdecimal())}" if counts else ""


def _last_reload(info: dict[str, str], now: float) -> str:
    number, _, result = info.get("LastReload", "none").partition(" ")
    if number == "none":
        return "none"
    at = info.get("LastReload_time_sec", "")
    age = _age(max(0, int(now) - int(at))) if at.isascii() and at.isdigit() else "?"
    verdict = "done" if result == "success" else "refused"
    return f"number {number}, {verdict} after {info.get('LastReload_duration_ms', '?')} ms, {age} ago"


def _cells(line: str) -> list[str]:
    """A line of CSV. Importing csv would cost more than this."""
    if '"' not in line:
        return line.split(",")
    cells, quoted = [""], False
    for character in line:
        if character == '"':
            quoted = not quoted
        elif character == "," and not quoted:
            cells.append("")
        else:
            cells[-1] += character
    return cells


def _age(seconds: int) -> str:
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds // size} {unit}"
    return f"{seconds} s"
