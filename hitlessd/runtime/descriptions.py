"""What `desc` adds to the values of `show stat` and `show info`: what each of them means here."""

from __future__ import annotations

__all__ = ["describe"]

_TEXTS = """
pxname: name of the proxy
svname: name of the server, or FRONTEND, or BACKEND
qcur: connections or requests in the queue now
qmax: most in the queue at once that one worker has seen
scur: sessions now
smax: most sessions at once that one worker has seen
slim: maxconn of the frontend or server
stot: sessions ever; requests, for backends and servers in HTTP mode
bin: bytes from clients
bout: bytes to clients
dreq: requests denied by rules
dresp: responses denied by rules
ereq: requests that were no sound requests
econ: connections to servers that failed for good
eresp: servers that aborted or answered wrongly
wretr: connection attempts repeated
wredis: sent to another server after a failure
status: OPEN, PAUSED or STOP of frontends, UP or DOWN of backends, what checks and operators say of servers
weight: weight in balancing; of a backend the sum over its usable servers
act: of a server whether it is active; of a backend how many usable active servers there are
bck: of a server whether it is a backup; of a backend how many usable backup servers there are
chkfail: checks that failed while the server was up
chkdown: times it went down
lastchg: seconds since the state changed
downtime: seconds for which it was down, ever
pid: always 1, as all workers count together
iid: number of the proxy
sid: number of the server within its backend
lbtot: times chosen by balancing
type: 0 frontend, 1 backend, 2 server
rate: sessions of the last full second
rate_lim: most new sessions a second that are allowed
rate_max: most sessions in a second
check_status: result of the latest check
check_code: HTTP status of the latest check
check_duration: milliseconds that the latest check took
hrsp_1xx: HTTP responses with status 1xx
hrsp_2xx: HTTP responses with status 2xx
hrsp_3xx: HTTP responses with status 3xx
hrsp_4xx: HTTP responses with status 4xx
hrsp_5xx: HTTP responses with status 5xx
hrsp_other: HTTP responses with another status
hanafail: times that observed traffic had enough errors
req_rate: HTTP requests of the last full second
req_rate_max: most HTTP requests in a second
req_tot: HTTP requests that have ended
cli_abrt: transfers that the client has aborted
srv_abrt: transfers that the server has aborted
lastsess: seconds since the latest session, -1 if there was none
last_chk: what the latest check has found
check_desc: result of the latest check, in words
check_rise: checks that must succeed for the server to be up
check_fall: checks that must fail for the server to be down
check_health: counter of the checks, up from rise on
addr: address of the server
cookie: of a server its value in the cookie, of a backend the cookie's name
mode: tcp or http
algo: how servers are chosen
conn_rate: connections of the last full second
conn_rate_max: most connections in a second
conn_tot: connections ever
intercepted: requests that rules have redirected or answered
dcon: connections that rules have refused
dses: sessions that rules have refused
wrew: failed rewrites of headers; always 0
connect: attempts to connect to servers
reuse: requests sent on a connection that was there
srv_icur: idle connections to the server
src_ilim: most idle connections that are kept
eint: internal errors
idle_conn_cur: idle connections that have served one request
safe_conn_cur: idle connections that have served several requests
used_conn_cur: connections to the server in use
uweight: weight as configured or set
h1_open_connections: connections of HTTP/1 now
h1_open_streams: exchanges of HTTP/1 now
h1_total_connections: connections of HTTP/1 ever
h1_total_streams: exchanges of HTTP/1 ever
h1_bytes_in: bytes received by HTTP/1
h1_bytes_out: bytes sent by HTTP/1
Name: HAProxy, whose forms these are
Product: name of the product
Release_date: when this version was released
Tasks: connections and listeners now
Version: version of the product
Nbthread: threads of a worker
Nbproc: worker processes
Process_num: always 1, as all workers count together
Pid: main process
Uptime: age of this generation
Uptime_sec: age of this generation, in seconds
Ulimit-n: most open files of a process
Maxsock: most sockets of a process
Maxconn: most connections at once
Hard_maxconn: most connections at once
CurrConns: connections now
CumConns: connections ever
CumReq: HTTP requests, and connections in TCP mode, ever
ConnRate: connections of the last full second
MaxConnRate: most connections in a second
SessRate: sessions of the last full second
MaxSessRate: most sessions in a second
Idle_pct: percentage of its life for which the busiest worker has waited
node: name of the host
Stopping: 1 when nothing is accepted any more
Jobs: connections and listeners now
Listeners: listening sockets of the frontends
TotalBytesOut: bytes to clients, ever
TotalSplicdedBytesOut: bytes that have passed through pipes of the kernel
Build info: version of the product
Start_time_sec: when this generation began, in seconds since 1970
Generation: number of this generation
Generations: generations that live, those that drain included
Workers: worker processes of this generation
Reloads: completed reloads since the first start
ReloadsRefused: refused reloads since the first start
LastReload: number and result of the latest reload
LastReload_time_sec: when it ended, in seconds since 1970
LastReload_duration_ms: milliseconds that it took
ConfigState: whether the file is served, or the configuration stored before
CurrParked: connections that outlive the death of their worker, now
CumResumed: connections that went on after the death of their worker
CumLost: connections that did not
Start_monotonic_usec: CLOCK_MONOTONIC when this generation began, in microseconds
Now_monotonic_usec: CLOCK_MONOTONIC now, in microseconds
"""
_BY_NAME = dict(line.split(": ", 1) for line in _TEXTS.strip().splitlines())


def describe(name: str) -> str:
    """One line; the same for all that has nothing to count here, such as TLS."""
    return _BY_NAME.get(name, "not in use here, always 0")
