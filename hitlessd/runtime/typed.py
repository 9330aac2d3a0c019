"""The typed and the JSON form of `show stat` and `show info`, and their schema (management guide, 9.2 and 9.3).

Each value carries where it comes from, what it is and what it is about, by which tools know how to add up several
processes. Imported when somebody asks for it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from hitlessd.runtime.descriptions import describe
from hitlessd.runtime.statrow import BACKEND, COLUMNS, FRONTEND, SERVER, Row

__all__ = ["info_json", "info_typed", "schema", "stat_json", "stat_typed"]


def _words(text: str) -> dict[str, str]:
    return dict(pair.split("=") for pair in text.split())


#: What the letters mean, by the words of the JSON form.
_ORIGINS = _words("M=Metric S=Status K=Key C=Config P=Product")
_NATURES = _words("G=Gauge L=Limit m=Min M=Max R=Rate C=Counter D=Duration A=Age T=Time N=Name O=Output a=Avg")
_SCOPES = _words("C=Cluster P=Process S=Service s=System")


class _Tag(NamedTuple):
    """Origin, nature and scope, a letter each; then the type: str, u32, s32, u64 or flt."""

    letters: str
    type: str


def _table(text: str) -> dict[str, _Tag]:
    tags = {}
    for line in text.strip().splitlines():
        tag, _, names = line.strip().partition(" ")
        letters, _, kind = tag.partition(":")
        tags.update(dict.fromkeys(names.split(), _Tag(letters, kind)))
    return tags


_COUNTER = _Tag("MCP", "u64")
#: Of columns of `show stat`; all others are counters.
_STAT = _table("""
    KNS:str pxname svname
    CNS:str tracked cookie
    CGS:str addr mode algo
    SGP:str status
    MOP:str check_status last_chk last_agt agent_status check_desc agent_desc
    MOP:u32 check_code agent_code
    KGP:u32 pid
    KGS:u32 iid sid
    CGS:u32 qlimit type check_rise check_fall check_health agent_rise agent_fall agent_health
    CLP:u32 slim rate_lim src_ilim
    SGP:u32 act bck
    MaP:u32 weight uweight throttle qtime ctime rtime ttime
    MAP:u32 lastchg
    MAP:s32 lastsess
    MCP:u32 downtime
    MDP:u64 check_duration agent_duration
    MRP:u32 rate req_rate conn_rate
    MMP:u32 qmax smax rate_max req_rate_max conn_rate_max qtime_max ctime_max rtime_max ttime_max
    MGP:u32 qcur scur srv_icur idle_conn_cur safe_conn_cur used_conn_cur need_conn_est
    MGP:u32 agg_server_status agg_server_check_status agg_check_status
    MGP:u64 h2_open_connections h2_backend_open_streams h1_open_connections h1_open_streams
""")
#: Where a backend's differ.
_STAT_BACKEND = _table("MGP:u32 act bck rate rate_max")

#: Fields of `show info`, by HAProxy's position; what is missing is ours.
_INFO_NAMES = """
    Name Version Release_date Nbthread Nbproc Process_num Pid Uptime Uptime_sec Memmax_MB PoolAlloc_MB PoolUsed_MB
    PoolFailed Ulimit-n Maxsock Maxconn Hard_maxconn CurrConns CumConns CumReq MaxSslConns CurrSslConns CumSslConns
    Maxpipes PipesUsed PipesFree ConnRate ConnRateLimit MaxConnRate SessRate SessRateLimit MaxSessRate SslRate
    SslRateLimit MaxSslRate SslFrontendKeyRate SslFrontendMaxKeyRate SslFrontendSessionReuse_pct SslBackendKeyRate
    SslBackendMaxKeyRate SslCacheLookups SslCacheMisses CompressBpsIn CompressBpsOut CompressBpsRateLim ZlibMemUsage
    MaxZlibMemUsage Tasks Run_queue Idle_pct node description Stopping Jobs Unstoppable_Jobs Listeners ActivePeers
    ConnectedPeers DroppedLogs BusyPolling FailedResolutions TotalBytesOut TotalSplicdedBytesOut BytesOutRate
    DebugCommandsIssued CumRecvLogs Build_info Memmax_bytes PoolAlloc_bytes PoolUsed_bytes Start_time_sec Tainted
    Generation Generations Workers Reloads ReloadsRefused LastReload LastReload_time_sec LastReload_duration_ms
    ConfigState CurrParked CumResumed CumLost Start_monotonic_usec Now_monotonic_usec Product
"""
_INFO_AT = {name: at for at, name in enumerate(_INFO_NAMES.split())}
#: Of fields of `show info`; all others are gauges.
_GAUGE = _Tag("MGP", "u32")
_INFO = _table("""
    POS:str Product Name Version Release_date Build_info
    COS:str node description
    CGS:u32 Nbthread Nbproc Workers
    KGP:u32 Process_num Generation
    SGP:u32 Pid
    SGP:str Tainted LastReload ConfigState
    MDP:str Uptime
    MDP:u32 Uptime_sec Start_time_sec LastReload_time_sec LastReload_duration_ms
    MDP:u64 Start_monotonic_usec Now_monotonic_usec
    CLP:u32 Memmax_MB Memmax_bytes Ulimit-n Maxsock Maxconn Hard_maxconn Maxpipes
    CLP:u32 ConnRateLimit SessRateLimit SslRateLimit CompressBpsRateLim MaxZlibMemUsage
    MCP:u32 PoolFailed CumConns CumReq CumSslConns SslCacheLookups SslCacheMisses CumRecvLogs
    MCP:u32 Reloads ReloadsRefused CumResumed CumLost
    MMP:u32 MaxSslConns MaxConnRate MaxSslRate SslFrontendMaxKeyRate SslBackendMaxKeyRate
    MRP:u32 ConnRate SessRate MaxSessRate SslRate SslBackendKeyRate CompressBpsIn CompressBpsOut
    MRP:u64 BytesOutRate
    MaP:u32 Idle_pct
    MGP:u64 TotalBytesOut TotalSplicdedBytesOut PoolAlloc_bytes PoolUsed_bytes
""")
#: With `float` these are tagged as rates, and no whole numbers are promised.
_INFO_FLOAT = _table("""
    MDP:flt Uptime_sec Start_time_sec
    MRP:flt ConnRate SessRate SslRate SslFrontendKeyRate SslFrontendSessionReuse_pct SslBackendKeyRate
    MRP:flt CompressBpsIn CompressBpsOut
""")

_LETTERS = {FRONTEND: "F", SERVER: "S", BACKEND: "B"}
_OBJECTS = {FRONTEND: "Frontend", SERVER: "Server", BACKEND: "Backend"}


def _stat_values(row: Row) -> list[tuple[int, str, _Tag, object]]:
    """Position, name, tag and value of what the row has."""
    found = []
    special = _STAT_BACKEND if row.kind == BACKEND else {}
    at = 0
    for name, value in zip(COLUMNS, row.values, strict=True):
        if name == "-":
            continue  # HAProxy's CSV has it between its own columns and those of its modules; it is no field
        if value != "":
            found.append((at, name, special.get(name) or _STAT.get(name, _COUNTER), value))
        at += 1
    return found


def stat_typed(rows: Iterable[Row], desc: bool) -> str:
    """A line a value; with `desc` each says what it is."""
    lines = []
    for row in rows:
        head = f"{_LETTERS[row.kind]}.{row.iid}.{row.sid}."
        for at, name, tag, value in _stat_values(row):
            more = f':"{describe(name)}"' if desc else ""
            lines.append(f"{head}{at}.{name}.1:{tag.letters}:{tag.type}:{value}{more}\n")
    return "".join(lines)


def stat_json(rows: Iterable[Row]) -> str:
    """A list of objects, each a list of values, in one line."""
    return _text(
        [
            [
                {"objType": _OBJECTS[row.kind], "proxyId": row.iid, "id": row.sid, **_value(at, name, tag, value)}
                for at, name, tag, value in _stat_values(row)
            ]
            for row in rows
        ]
    )


def _info_tag(name: str, floating: bool) -> tuple[int, _Tag]:
    key = name.replace(" ", "_")
    tag = _INFO.get(key, _GAUGE)
    return _INFO_AT[key], _INFO_FLOAT.get(key, tag) if floating else tag


def info_typed(fields: Sequence[tuple[str, object]], floating: bool, desc: bool) -> str:
    """A line a field."""
    lines = []
    for name, value in fields:
        at, tag = _info_tag(name, floating)
        more = f':"{describe(name)}"' if desc else ""
        lines.append(f"{at}.{name}.1:{tag.letters}:{tag.type}:{value}{more}\n")
    return "".join(lines)


def info_json(fields: Sequence[tuple[str, object]], floating: bool) -> str:
    """A list of fields, in one line."""
    found = []
    for name, value in fields:
        at, tag = _info_tag(name, floating)
        found.append(_value(at, name, tag, float(str(value)) if tag.type == "flt" else value))
    return _text(found)


def _value(at: int, name: str, tag: _Tag, value: object) -> dict[str, Any]:
    origin, nature, scope = tuple(tag.letters)
    return {
        "field": {"pos": at, "name": name},
        "processNum": 1,
        "tags": {"origin": _ORIGINS[origin], "nature": _NATURES[nature], "scope": _SCOPES[scope]},
        "value": {"type": tag.type, "value": str(value) if tag.type == "str" else value},
    }


def _text(found: object) -> str:
    return json.dumps(found, separators=(",", ":")) + "\n"


def schema() -> str:
    """`show schema json`: HAProxy's, which is about both forms."""

    def refer(name: str) -> dict[str, str]:
        return {"$ref": f"#/definitions/{name}"}

    def number(bottom: int, top: int | None = None) -> dict[str, Any]:
        return {"type": "integer", "minimum": bottom} | ({} if top is None else {"maximum": top})

    def typed(kind: str, value: Mapping[str, Any]) -> dict[str, Any]:
        properties = {"type": {"type": "string", "enum": [kind]}, "value": value}
        return {"properties": properties, "required": ["type", "value"]}

    def words(choice: Iterable[str]) -> dict[str, Any]:
        return {"type": "string", "enum": [*choice, "Unknown"]}

    common = {name: refer(name) for name in ("field", "processNum", "tags")}
    numbers = {"s32": (-(1 << 31), (1 << 31) - 1), "s64": (1 - (1 << 53), (1 << 53) - 1)}
    numbers |= {"u32": (0, (1 << 32) - 1), "u64": (0, (1 << 53) - 1)}
    values = {f"{kind}Value": typed(kind, number(*limits)) for kind, limits in numbers.items()}
    values["strValue"] = typed("str", {"type": "string"})
    kinds = [{"$ref": f"#/definitions/typedValue/definitions/{name}"} for name in values]
    values["unknownValue"] = {
        "properties": {"type": number(0), "value": {"type": "string", "enum": ["unknown"]}},
        "required": ["type", "value"],
    }

    def listing(title: str, properties: Mapping[str, Any], required: Sequence[str]) -> dict[str, Any]:
        item = {"title": "InfoItem", "type": "object", "properties": properties, "required": required}
        return {"title": title, "type": "array", "items": item}

    objects = {"enum": ["Frontend", "Backend", "Listener", "Server", "Unknown"]}
    stat = {"objType": objects, "proxyId": number(0), "id": number(0), **common, "typedValue": refer("typedValue")}
    kind = [
        listing("Info", {**common, "value": refer("typedValue")}, ["field", "processNum", "tags", "value"]),
        listing("Stat", stat, ["objType", "proxyId", "id", "field", "processNum", "tags", "value"]),
        {
            "title": "Error",
            "type": "object",
            "properties": {"errorStr": {"type": "string"}},
            "required": ["errorStr"],
        },
    ]
    tags = {"origin": words(_ORIGINS.values()), "nature": words(_NATURES.values()), "scope": words(_SCOPES.values())}
    definitions = {
        "field": {"type": "object", "pos": number(0), "name": {"type": "string"}, "required": ["pos", "name"]},
        "processNum": number(1),
        "tags": {"type": "object", **tags, "required": ["origin", "nature", "scope"]},
        "typedValue": {"type": "object", "oneOf": kinds, "definitions": values},
    }
    return _text({"$schema": "http://json-schema.org/draft-04/schema#", "oneOf": kind, "definitions": definitions})
