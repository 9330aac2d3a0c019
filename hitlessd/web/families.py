"""The metrics of frontends, backends and servers: HAProxy 2.6's names, types and labels (promex), and their text.

Rows are those of `show stat`. This part is written by hand, for it is most of a scrape: 500 servers are 30,000 samples,
and prometheus_client needs three times as long to write them as it takes here to find and write them (73 and 26 ms of
CPU; `python -m benchmarks.metrics --compare`). A field
that says nothing has no sample, where HAProxy's says NaN.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Literal, NamedTuple

from hitlessd.runtime.descriptions import describe
from hitlessd.runtime.statrow import BACKEND, COLUMNS, FRONTEND, SERVER, Row

__all__ = ["CHECK_STATES", "SERVER_STATES", "Scope", "escaped", "written"]

Scope = Literal["frontend", "backend", "server"]

_AT = {name: at for at, name in enumerate(COLUMNS)}
_CODES = ("1xx", "2xx", "3xx", "4xx", "5xx", "other")
#: Values of the label `state`, in HAProxy's order.
SERVER_STATES = ("DOWN", "UP", "MAINT", "DRAIN", "NOLB")
CHECK_STATES = (
    *("HANA", "SOCKERR", "L4OK", "L4TOUT", "L4CON", "L6OK", "L6TOUT", "L6RSP", "L7TOUT", "L7RSP", "L7OK", "L7OKC"),
    *("L7STS", "PROCERR", "PROCTOUT", "PROCOK"),
)
_TWO_STATES = ("DOWN", "UP")


class _Family(NamedTuple):
    """`how` is number, seconds (of a field in milliseconds), codes, or the states that the field may name."""

    name: str
    kind: Literal["counter", "gauge"]
    field: str
    how: str = "number"
    http: bool = False  # in HTTP mode only


def _families(text: str) -> tuple[_Family, ...]:
    """Lines of: name, field, how it is read. Those that end in `_total` are counters; `*` marks those of HTTP mode."""
    found = []
    for line in text.split("\n"):
        if words := line.replace("*", " ").split():
            name, field, how = (*words, "number")[:3]
            found.append(
                _Family(name, "counter" if name.endswith("_total") else "gauge", field, how, http=line.endswith("*"))
            )
    return tuple(found)


_FRONTEND = _families("""
current_sessions scur
max_sessions smax
limit_sessions slim
sessions_total stot
bytes_in_total bin
bytes_out_total bout
requests_denied_total dreq
responses_denied_total dresp
request_errors_total ereq
status status frontend
limit_session_rate rate_lim
max_session_rate rate_max
http_responses_total hrsp_1xx codes *
http_requests_rate_max req_rate_max *
http_requests_total req_tot *
http_comp_bytes_in_total comp_in *
http_comp_bytes_out_total comp_out *
http_comp_bytes_bypassed_total comp_byp *
http_comp_responses_total comp_rsp *
connections_rate_max conn_rate_max
connections_total conn_tot
intercepted_requests_total intercepted *
denied_connections_total dcon
denied_sessions_total dses
failed_header_rewriting_total wrew
http_cache_lookups_total cache_lookups *
http_cache_hits_total cache_hits *
internal_errors_total eint
""")
_BACKEND = _families("""
current_queue qcur
max_queue qmax
current_sessions scur
max_sessions smax
limit_sessions slim
sessions_total stot
bytes_in_total bin
bytes_out_total bout
requests_denied_total dreq
responses_denied_total dresp
connection_errors_total econ
response_errors_total eresp
retry_warnings_total wretr
redispatch_warnings_total wredis
status status backend
weight weight
active_servers act
backup_servers bck
check_up_down_total chkdown
check_last_change_seconds lastchg
downtime_seconds_total downtime
loadbalanced_total lbtot
max_session_rate rate_max
http_responses_total hrsp_1xx codes *
http_requests_total req_tot *
client_aborts_total cli_abrt
server_aborts_total srv_abrt
http_comp_bytes_in_total comp_in *
http_comp_bytes_out_total comp_out *
http_comp_bytes_bypassed_total comp_byp *
http_comp_responses_total comp_rsp *
last_session_seconds lastsess
failed_header_rewriting_total wrew
connection_attempts_total connect
connection_reuses_total reuse
http_cache_lookups_total cache_lookups *
http_cache_hits_total cache_hits *
internal_errors_total eint
uweight uweight
agg_server_status agg_server_status counted
agg_server_check_status agg_server_status counted
agg_check_status agg_check_status checks
""")
_SERVER = _families("""
current_queue qcur
max_queue qmax
current_sessions scur
max_sessions smax
limit_sessions slim
sessions_total stot
bytes_in_total bin
bytes_out_total bout
responses_denied_total dresp
connection_errors_total econ
response_errors_total eresp
retry_warnings_total wretr
redispatch_warnings_total wredis
status status server
weight weight
check_failures_total chkfail
check_up_down_total chkdown
check_last_change_seconds lastchg
downtime_seconds_total downtime
queue_limit qlimit
current_throttle throttle
loadbalanced_total lbtot
max_session_rate rate_max
check_status check_status check
check_code check_code
check_duration_seconds check_duration seconds
http_responses_total hrsp_1xx codes *
client_aborts_total cli_abrt
server_aborts_total srv_abrt
last_session_seconds lastsess
failed_header_rewriting_total wrew
connection_attempts_total connect
connection_reuses_total reuse
idle_connections_current srv_icur
idle_connections_limit src_ilim
internal_errors_total eint
unsafe_idle_connections_current idle_conn_cur
safe_idle_connections_current safe_conn_cur
used_connections_current used_conn_cur
need_connections_current need_conn_est
uweight uweight
""")
_SCOPES: dict[Scope, tuple[int, tuple[_Family, ...]]] = {
    "frontend": (FRONTEND, _FRONTEND),
    "backend": (BACKEND, _BACKEND),
    "server": (SERVER, _SERVER),
}
_HELP = {
    "http_responses_total": "HTTP responses, by class of their status",
    "check_status": "result of the latest check, by state: 1 for the one it is",
    "agg_server_status": "servers of the backend, by state",
    "agg_server_check_status": "servers of the backend, by state",
    "agg_check_status": "servers of the backend, by the result of their latest check",
    "check_duration_seconds": "seconds that the latest check took",
    "status": "state, 1 for the one it is",
}


def escaped(text: str) -> str:
    """A label's value (Prometheus, "Exposition formats")."""
    return text.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"')


def written(rows: Sequence[Row], scopes: Iterable[str], no_maint: bool) -> Iterator[str]:
    """The text of these scopes, a family at a time. `no_maint`: without servers in maintenance."""
    counted, checks = _aggregated(rows) if "backend" in scopes else ({}, {})
    for scope, (kind, families) in _SCOPES.items():
        if scope not in scopes:
            continue
        labelled = [(_labels(row, scope), row) for row in rows if row.kind == kind]
        if no_maint and scope == "server":
            labelled = [(labels, row) for labels, row in labelled if _server_state(row) != "MAINT"]
        for family in families:
            name = f"hitlessd_{scope}_{family.name}"
            if family.how == "counted":
                lines = _aggregates(name, labelled, counted, SERVER_STATES)
            elif family.how == "checks":
                lines = _aggregates(name, labelled, checks, CHECK_STATES)
            else:
                lines = _samples(name, family, labelled)
            if lines:
                text = _HELP.get(family.name) or describe(family.field).replace("milliseconds", "seconds")
                yield f"# HELP {name} {text}\n# TYPE {name} {family.kind}\n" + "".join(lines)


def _labels(row: Row, scope: Scope) -> str:
    labels = f'proxy="{escaped(str(row.values[_AT["pxname"]]))}"'
    return labels + (f',server="{escaped(str(row.values[_AT["svname"]]))}"' if scope == "server" else "")


def _samples(name: str, family: _Family, labelled: Sequence[tuple[str, Row]]) -> list[str]:
    at = _AT[family.field]
    if family.http:
        labelled = [(labels, row) for labels, row in labelled if row.values[_AT["mode"]] == "http"]
    match family.how:
        case "number" if family.field == "check_code":
            # The last check may have had none, which is 0 as with HAProxy.
            result = _AT["check_status"]
            return [f"{name}{{{labels}}} {row.values[at] or 0}\n" for labels, row in labelled if row.values[result]]
        case "number":
            return [f"{name}{{{labels}}} {value}\n" for labels, row in labelled if (value := row.values[at]) != ""]
        case "seconds":
            return [
                f"{name}{{{labels}}} {float(str(value)) / 1000:.6f}\n"
                for labels, row in labelled
                if (value := row.values[at]) != ""
            ]
        case "codes":
            return [
                f'{name}{{{labels},code="{code}"}} {row.values[at + offset]}\n'
                for offset, code in enumerate(_CODES)
                for labels, row in labelled
            ]
        case "check":
            known = [(labels, str(row.values[at])) for labels, row in labelled if row.values[at]]
            return _states(name, known, CHECK_STATES)
        case "server":
            return _states(name, [(labels, _server_state(row)) for labels, row in labelled], SERVER_STATES)
        case "frontend":
            known = [(labels, "UP" if row.values[at] == "OPEN" else "DOWN") for labels, row in labelled]
            return _states(name, known, _TWO_STATES)
        case _:
            known = [(labels, "UP" if str(row.values[at]).startswith("UP") else "DOWN") for labels, row in labelled]
            return _states(name, known, _TWO_STATES)


def _states(name: str, known: Iterable[tuple[str, str]], states: Sequence[str]) -> list[str]:
    """One sample for each state that there might be, 1 for the one that it is."""
    # All of an object at once: the lines of one state differ from those of another in a digit only.
    endings = {this: [f',state="{state}"}} {int(state == this)}\n' for state in states] for this in (*states, "")}
    lines = []
    for labels, state in known:
        start = f"{name}{{{labels}"
        lines.append(start + start.join(endings.get(state, endings[""])))
    return lines


def _server_state(row: Row) -> str:
    """As HAProxy's exporter: what is not checked is up, and what is going down still is."""
    status = str(row.values[_AT["status"]])
    word = status.partition(" ")[0]
    return word if word in SERVER_STATES else "UP"


def _aggregated(rows: Iterable[Row]) -> tuple[dict[object, Counter[str]], dict[object, Counter[str]]]:
    """By backend: how many servers are in which state, and had which result of their latest check."""
    states: dict[object, Counter[str]] = {}
    checks: dict[object, Counter[str]] = {}
    for row in rows:
        if row.kind == SERVER:
            proxy = row.values[_AT["pxname"]]
            states.setdefault(proxy, Counter())[_server_state(row)] += 1
            checks.setdefault(proxy, Counter())[str(row.values[_AT["check_status"]])] += 1
    return states, checks


def _aggregates(
    name: str, labelled: Iterable[tuple[str, Row]], counts: dict[object, Counter[str]], states: Sequence[str]
) -> list[str]:
    none: Counter[str] = Counter()
    return [
        f'{name}{{{labels},state="{state}"}} {counts.get(row.values[_AT["pxname"]], none)[state]}\n'
        for labels, row in labelled
        for state in states
    ]
