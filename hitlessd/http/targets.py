"""Request targets and Host: which server is meant, and that both agree (RFC 9112 sections 3.2 and 3.3)."""

from __future__ import annotations

import re

from hitlessd.http.grammar import Refused

__all__ = ["ABSOLUTE", "authority"]

#: RFC 3986 section 3.2.2 without the comma, which makes a list of one Host where fields are joined.
_HOST = re.compile(rb"(?:[-._~0-9A-Za-z!$&'()*+;=%]*+|\[[0-9A-Fa-f:.]++\])(?::[0-9]{0,5}+)?")
_PORT = re.compile(rb"[^:]:[0-9]++\Z")
ABSOLUTE = re.compile(rb"([hH][tT][tT][pP][sS]?)://([^/?@]++)([/?].*+)?")
#: Ports that Host need not name, by scheme; CONNECT has none, and HAProxy allows both there.
_OWN_PORTS = {b"http": (b":80",), b"https": (b":443",), b"": (b":80", b":443")}


def authority(method: bytes, target: bytes, version: int, host: bytes | None) -> bytes:
    """The host that is meant, after target and Host were checked against each other (RFC 9112 sections 3.2 and 3.3)."""
    if host is None:
        if version == 11:
            raise Refused(400, "no Host")
    elif not _HOST.fullmatch(host):
        raise Refused(400, "Host is malformed")
    if target[0] == 47 and method != b"CONNECT":
        return host or b""
    scheme = b""
    if method == b"CONNECT":
        wanted = target
        if not _HOST.fullmatch(target) or not _PORT.search(target):
            raise Refused(400, "the target of CONNECT is not host:port")
    elif target == b"*":
        if method != b"OPTIONS":
            raise Refused(400, "target * without OPTIONS")
        return host or b""
    else:
        absolute = ABSOLUTE.fullmatch(target)
        if absolute is None or not _HOST.fullmatch(absolute[2]) or absolute[2][:1] == b":":
            raise Refused(400, "the request target is malformed")
        scheme = absolute[1].lower()
        wanted = absolute[2]
    if host is not None and _bare(host, scheme) != _bare(wanted, scheme):
        raise Refused(400, "Host contradicts the request target")
    return wanted


def _bare(authority: bytes, scheme: bytes) -> bytes:
    """To compare by: in lower case, without the scheme's own port."""
    authority = authority.lower()
    for own in _OWN_PORTS[scheme]:
        authority = authority.removesuffix(own)
    return authority.removesuffix(b":")
