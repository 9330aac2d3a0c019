"""A row of `show stat`: HAProxy 2.6's columns in its order (management guide, 9.1), and the row as CSV."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from hitlessd.model import Mode
from hitlessd.table import Column

__all__ = ["BACKEND", "COLUMNS", "FRONTEND", "SERVER", "Counts", "Row", "counts", "header", "template"]

_NAMES = """
    pxname svname qcur qmax scur smax slim stot bin bout dreq dresp ereq econ eresp wretr wredis status weight act bck
    chkfail chkdown lastchg downtime qlimit pid iid sid throttle lbtot tracked type rate rate_lim rate_max check_status
    check_code check_duration hrsp_1xx hrsp_2xx hrsp_3xx hrsp_4xx hrsp_5xx hrsp_other hanafail req_rate req_rate_max
    req_tot cli_abrt srv_abrt comp_in comp_out comp_byp comp_rsp lastsess last_chk last_agt qtime ctime rtime ttime
    agent_status agent_code agent_duration check_desc agent_desc check_rise check_fall check_health agent_rise
    agent_fall agent_health addr cookie mode algo conn_rate conn_rate_max conn_tot intercepted dcon dses wrew connect
    reuse cache_lookups cache_hits srv_icur src_ilim qtime_max ctime_max rtime_max ttime_max eint idle_conn_cur
    safe_conn_cur used_conn_cur need_conn_est uweight agg_server_status agg_server_check_status agg_check_status -
    ssl_sess ssl_reused_sess ssl_failed_handshake h2_headers_rcvd h2_data_rcvd h2_settings_rcvd h2_rst_stream_rcvd
    h2_goaway_rcvd h2_detected_conn_protocol_errors h2_detected_strm_protocol_errors h2_rst_stream_resp h2_goaway_resp
    h2_open_connections h2_backend_open_streams h2_total_connections h2_backend_total_streams h1_open_connections
    h1_open_streams h1_total_connections h1_total_streams h1_bytes_in h1_bytes_out h1_spliced_bytes_in
    h1_spliced_bytes_out
"""
COLUMNS: tuple[str, ...] = tuple(_NAMES.split())
_AT = {name: at for at, name in enumerate(COLUMNS)}


#: Values of the column `type`.
FRONTEND, BACKEND, SERVER = 0, 1, 2

#: Places in a row, and the columns of the shared table that go there.
Counts = tuple[tuple[int, Column], ...]


def counts(names: str) -> Counts:
    """Those of these names, which both sides have in common."""
    return tuple((_AT[name], Column[name.upper()]) for name in names.split())


def template(zeroes: Iterable[str]) -> list[object]:
    """A row that says 0 there and nothing elsewhere."""
    values: list[object] = [""] * len(COLUMNS)
    for name in zeroes:
        values[_AT[name]] = 0
    values[_AT["-"]] = "-"
    return values


def header() -> str:
    return "# " + ",".join(COLUMNS) + ",\n"


class Row:
    """A row under construction; "" is no value."""

    __slots__ = ("iid", "kind", "sid", "values")

    def __init__(
        self, pxname: str, svname: str, iid: int, sid: int, kind: int, mode: Mode, zeroes: list[object]
    ) -> None:
        self.values = zeroes.copy()
        self.iid, self.sid, self.kind = iid, sid, kind
        self.set(pxname=pxname, svname=svname, pid=1, iid=iid, sid=sid, type=kind, mode=mode)

    def set(self, **fields: object) -> None:
        for name, value in fields.items():
            self.values[_AT[name]] = value

    def count(self, which: Counts, totals: Sequence[int]) -> None:
        """Fill in what the shared table says of this object."""
        values = self.values
        for at, column in which:
            values[at] = totals[column]

    def csv(self) -> str:
        """The line, with its end."""
        line = ",".join(map(str, self.values)) + ",\n"
        if '"' in line or line.count(",") != len(self.values):
            return ",".join(_quoted(str(value)) for value in self.values) + ",\n"
        return line


def _quoted(text: str) -> str:
    """RFC 4180's quoting, only where the text is ambiguous."""
    if "," in text or '"' in text:
        return '"' + text.replace('"', '""') + '"'
    return text
