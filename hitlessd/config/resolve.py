"""Names of servers to addresses, once a reading."""

from __future__ import annotations

import socket
from collections.abc import Callable, Sequence

from hitlessd.errors import reason_of

__all__ = ["Names", "Resolver", "system_resolver"]

#: From a host name to its numeric addresses, the preferred one first. Raises OSError (socket.gaierror) when there is
#: none.
Resolver = Callable[[str], Sequence[str]]


def system_resolver(host: str) -> Sequence[str]:
    """What getaddrinfo(3) says, in its order (/etc/gai.conf)."""
    found = socket.getaddrinfo(host.encode("ascii"), None, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


class Names:
    """Asks a resolver about each name once and remembers the answer, a failure too: a name server that does not answer
    costs its timeout only once."""

    def __init__(self, resolver: Resolver) -> None:
        self._resolver = resolver
        self.resolved: dict[str, tuple[str, ...]] = {}
        self._failed: dict[str, str] = {}

    def lookup(self, host: str) -> tuple[str, ...]:
        """The addresses, never none. Raises OSError with the reason."""
        if host in self.resolved:
            return self.resolved[host]
        if host not in self._failed:
            try:
                addresses = tuple(self._resolver(host))
            except (OSError, UnicodeError) as error:
                self._failed[host] = reason_of(error)
            else:
                if addresses:
                    self.resolved[host] = addresses
                    return addresses
                self._failed[host] = "it has no address"
        raise OSError(self._failed[host])
