"""`show sess` in HAProxy's format (management guide, 9.3). Pure: forms of worker/serial.py to text.

HAProxy prints a pointer, we the connection's number, which stays when it moves. What has no counterpart here (task
statistics, channel flags and analysers) is written as 0 or left empty, as HAProxy does where it has nothing to say.
"""

from __future__ import annotations

import re
import time
from typing import Any

__all__ = ["human_time", "session_details", "session_line", "session_number"]

#: HAProxy's numbers of a stream connector's states: QUE, TAR, CON, EST.
_CONNECTOR = {"queued": 2, "paused": 3, "connecting": 5, "established": 8, "exchanging": 8, "tarrying": 8}
_NAMES = {0: "INI", 2: "QUE", 3: "TAR", 5: "CON", 8: "EST"}


def human_time(seconds: float | None) -> str:
    """Two units at most, as HAProxy writes them: `1m30s`, `2h5m`; empty for never."""
    if seconds is None:
        return ""
    whole = max(0, int(seconds))
    units = [(whole // 86400, "d"), (whole // 3600 % 24, "h"), (whole // 60 % 60, "m"), (whole % 60, "s")]
    return "".join(f"{value}{unit}" for value, unit in [u for u in units if u[0]][:2]) or "0s"


def session_number(text: str) -> int:
    """The number that `0x...` names, the prefix being optional; 0 if no session can have it: they have 64 bits."""
    match = re.fullmatch(r"(?:0[xX])?0*([0-9a-fA-F]{1,16})", text)
    return int(match[1], 16) if match else 0


def _source(form: dict[str, Any]) -> tuple[str, str]:
    address = form.get("client_address")
    if address is None:
        return "unix_stream", "unix:1"
    host, port = address
    return "tcpv6" if ":" in host else "tcpv4", f"{host}:{port}"


def _http(form: dict[str, Any]) -> dict[str, Any] | None:
    """What belongs to HTTP, None in TCP mode."""
    http = form.get("http")
    return http if isinstance(http, dict) else None


def _backend(form: dict[str, Any]) -> str:
    # Between two requests it is not known yet.
    alone = _http(form) is not None and not form.get("entered")
    return "<NONE>" if alone else form.get("backend") or "<NONE>"


def _connector(form: dict[str, Any], back: int) -> int:
    return 0 if _http(form) is not None and back < 0 else _CONNECTOR.get(form.get("state", ""), 0)


def _expiries(form: dict[str, Any]) -> tuple[str, str, str]:
    client, server = form.get("expires") or (None, None)
    connecting = form.get("state") in ("connecting", "paused", "queued")
    return human_time(client), human_time(server), human_time(form.get("due_in")) if connecting else ""


def session_line(form: dict[str, Any]) -> str:
    """One line of `show sess`."""
    proto, source = _source(form)
    client, server, connecting = _expiries(form)
    front, back = form.get("fds") or (-1, -1)
    state = _connector(form, back)
    request = "" if _http(form) is None else f' req="{form["request"]}"' if form.get("request") else " req=-"
    return (
        f"{form.get('number', 0):#x}: proto={proto} src={source} fe={form.get('frontend', '')} "
        f"be={_backend(form)} srv={form.get('server') or '<none>'} ts=00 epoch=0 "
        f"age={human_time(form.get('age', 0.0))} calls=1 rate=0 cpu=0 lat=0 "
        f"rq[f=000000h,i=0,an=00h,rx={client},wx=,ax=] rp[f=000000h,i=0,an=00h,rx={server},wx=,ax=] "
        f"scf=[8,0h,fd={front}] scb=[{state},1h,fd={back}] exp={human_time(form.get('expires_in'))} "
        f"rc={form.get('retries', 0)} c_exp={connecting}{request}\n"
    )


def session_details(form: dict[str, Any]) -> str:
    """The answer to `show sess ID`: HAProxy's lines as far as they mean something here, then our own."""
    proto, source = _source(form)
    client, server, connecting = (text or "<NEVER>" for text in _expiries(form))
    accepted = float(form.get("accepted_at", 0.0))
    date = time.strftime("%d/%b/%Y:%H:%M:%S", time.localtime(accepted)) + f".{int(accepted * 1e6) % 1000000:06}"
    front, back = form.get("fds") or (-1, -1)
    state = _connector(form, back)
    one, other = form.get("client") or {}, form.get("server_side") or {}
    http = _http(form)
    mode = "tcp" if http is None else "http"
    exchange = "" if http is None else _exchange(form, http)
    return (
        f"{form.get('number', 0):#x}: [{date}] id=0 proto={proto} source={source}\n"
        f"  flags=0x0, conn_retries={form.get('retries', 0)}, conn_exp={connecting}"
        f" waiting={int(form.get('state') == 'queued')} epoch=0\n"
        f"  frontend={form.get('frontend', '')} (mode={mode}), addr={form.get('frontend_address', '')}\n"
        f"  backend={_backend(form)} (mode={mode}), addr={form.get('source_address', '')}\n"
        f"  server={form.get('server') or '<none>'} addr={form.get('server_address', '')}\n"
        f"  scf state=EST fd={front}{_flags(one)}\n"
        f"  scb state={_NAMES[state]} fd={back}{_flags(other)}\n"
        f"  req total={one.get('received', 0)} o={one.get('piped', 0)} rex={client}\n"
        f"  res total={other.get('received', 0)} o={other.get('piped', 0)} rex={server}\n"
        f"  age={human_time(form.get('age', 0.0))} exp={human_time(form.get('expires_in')) or '<NEVER>'}"
        f" generation={form.get('generation', 0)} worker={form.get('worker', 0)} state={form.get('state', '')}\n"
        f"{exchange}"
    )


def _exchange(form: dict[str, Any], http: dict[str, Any]) -> str:
    told = http.get("exchange") or {}
    return (
        f"  request={form.get('request') or '-'} status={told.get('status', -1)} exchanges={http.get('exchanges', 0)}"
        f" reused={int(bool(told.get('reused')))}{' tunnel' * bool(http.get('tunnel'))}\n"
    )


def _flags(side: dict[str, Any]) -> str:
    return " shut_received" * bool(side.get("eof")) + " shut_sent" * bool(side.get("shut"))
