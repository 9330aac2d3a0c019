"""Listening sockets: opening them, recognising inherited ones, and the care that unix paths need.

A listener is never shut down, disconnected or unlinked while another process may use it: PID 1, a predecessor and a
successor hold the same open file description (facts of unix(7) and socket(7), learnt by others the hard way). Only
`disable frontend` ends one of our own, on which nobody accepts any more, for the time being.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import socket
import stat
from collections.abc import Iterable, Sequence
from typing import Any

from hitlessd.dataclass import dataclass
from hitlessd.errors import SystemRefused, reason_of
from hitlessd.model import Bind, InetAddress, SystemdAddress, UnixAddress

__all__ = ["Identity", "Listener", "Wanted", "assign", "close_unwanted", "identify", "open_listener", "own_path"]

#: listen(2) cuts it to net.core.somaxconn.
_LONGEST_BACKLOG = 65535
#: A path is bound under a temporary name and renamed, so getsockname() tells that name; HAProxy uses the same form.
_TEMPORARY = re.compile(r"\.\d+\.(tmp|bak)$")
#: Not in the socket module of every Python (socket(7)).
_SO_BINDTOIFINDEX = 62


@dataclass(frozen=True, slots=True)
class Identity:
    """What makes two listeners the same: family, address, IPV6_V6ONLY of the wildcard, interface."""

    family: int
    address: str
    v6only: bool = False
    interface: str = ""

    def __str__(self) -> str:
        return self.address + (f" interface {self.interface}" if self.interface else "")


@dataclass(slots=True, eq=False)
class Listener:
    """A listening socket and where it came from. Whoever holds it last closes it; nobody shuts it down."""

    sock: socket.socket
    identity: Identity
    origin: str = "own"  # own: we may close it for good; systemd: PID 1 has it too
    name: str = ""  # FileDescriptorName= of a socket unit, or the name in the descriptor store
    inode: tuple[int, int] | None = None  # device and inode of the unix path, as bound by us
    temporary: str = ""  # where the unix path lies until start_listening()
    stored: bool = False  # lies in systemd's descriptor store; each entry there makes the next one dearer
    #: Listeners of a predecessor that overlap with this one (wildcard and specific address on one port).
    overlaps: tuple[Listener, ...] = ()

    def record(self) -> dict[str, Any]:
        """What travels beside the descriptor in a handover and in the store."""
        return {
            "origin": self.origin,
            "name": self.name,
            "inode": self.inode,
            "stored": self.stored,
            "address": self.identity.address,
        }

    @classmethod
    def adopt(cls, fd: int, record: dict[str, Any], *, idle: bool = False) -> Listener:
        """A listener that another process opened; the descriptor is ours from here on.

        Raises SystemRefused, the descriptor closed, when it is not a listening stream socket. `idle`: one that has
        stopped to listen will do, too.
        """
        try:
            sock = socket.socket(fileno=fd)
        except OSError as error:
            with contextlib.suppress(OSError):
                os.close(fd)
            raise SystemRefused(f"cannot use descriptor {fd}: {error.strerror}") from None
        try:
            identity = identify(sock, idle=idle)
            prepare(sock, identity.family)
            inode = record.get("inode")
            return cls(
                sock,
                identity,
                str(record.get("origin", "own")),
                str(record.get("name", "")) or _store_name(),
                (int(inode[0]), int(inode[1])) if inode else None,
                stored=bool(record.get("stored")),
            )
        except OSError as error:
            # Stream sockets that are not TCP (SCTP) do not know TCP's options.
            sock.close()
            raise SystemRefused(f"cannot use descriptor {fd}: {error.strerror}") from None
        except (TypeError, ValueError, LookupError, ArithmeticError):
            sock.close()
            raise SystemRefused(f"cannot use descriptor {fd}: its record makes no sense") from None
        except SystemRefused:
            sock.close()
            raise

    def start_listening(self, backlog: int) -> None:
        """Begin to queue connections, if open_listener() could only bind, and to be found. Raises SystemRefused."""
        if self.temporary:
            path = self.identity.address.removeprefix("unix@")
            try:
                os.rename(self.temporary, path)
            except OSError as error:
                raise SystemRefused(f"cannot listen on {path}: {error.strerror}") from None
            self.temporary = ""
        if self.listening:
            return
        with _shared_port(self.sock, self.overlaps):
            try:
                self.sock.listen(backlog or _LONGEST_BACKLOG)
            except OSError as error:
                raise SystemRefused(f"cannot listen on {self.identity}: {error.strerror}") from None
        self.overlaps = ()

    @property
    def listening(self) -> bool:
        """Whether clients can connect, of an open one. Another process that holds it may have changed that."""
        return bool(self.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))

    @property
    def can_rest(self) -> bool:
        """Whether nobody else may be accepting on it, and clients can be told so: a TCP socket of our own."""
        return self.origin == "own" and self.identity.family != socket.AF_UNIX

    @property
    def open(self) -> bool:
        return self.sock.fileno() >= 0

    def overlap(self, others: Iterable[Listener]) -> None:
        """Note who listens on our port beside us, for start_listening()."""
        if not self.listening and self.can_rest:
            port = int(self.identity.address.rpartition(":")[2])
            self.overlaps = tuple(x for x in others if x is not self and x.open and _same_port(x, port))

    def stop_listening(self) -> None:
        """Refuse clients, those included who wait; the address stays ours, and start_listening() begins anew.

        For whom it can_rest, when every worker of every generation has left it (shutdown(2) ends it for all).
        """
        # Not twice: one that is shut down when it does not listen accepts clients whose data has ended, for the kernel.
        if self.listening:
            with contextlib.suppress(OSError):
                self.sock.shutdown(socket.SHUT_RD)

    def unlink(self) -> None:
        """Remove our unix path, if what lies there is still what we bound."""
        if self.temporary:
            with contextlib.suppress(OSError):
                os.unlink(self.temporary)
        elif self.inode is not None and _sound(self):
            with contextlib.suppress(OSError):
                os.unlink(self.identity.address.removeprefix("unix@"))

    def close(self) -> None:
        self.sock.close()


@dataclass(frozen=True, slots=True)
class Wanted:
    """A bind of the configuration and who asks for it: a frontend's name, or "" for the runtime API."""

    frontend: str
    bind: Bind


def identify(sock: socket.socket, *, idle: bool = False) -> Identity:
    """Recognise a socket by what the kernel says of it. Raises SystemRefused for what cannot be a listener of ours.

    `idle`: it need not listen now.
    """
    try:
        family = sock.getsockopt(socket.SOL_SOCKET, socket.SO_DOMAIN)
        listens = idle or sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
        if sock.getsockopt(socket.SOL_SOCKET, socket.SO_TYPE) != socket.SOCK_STREAM or not listens:
            raise SystemRefused(f"cannot use descriptor {sock.fileno()}: it is not a listening stream socket")
        name = sock.getsockname()
        # bind(2) of any other address sets it, whatever was asked for.
        wildcard = family == socket.AF_INET6 and name[0] == "::"
        v6only = wildcard and bool(sock.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY))
        interface = _interface(sock)
    except OSError as error:
        raise SystemRefused(f"cannot use descriptor {sock.fileno()}: {error.strerror}") from None
    if family == socket.AF_UNIX:
        text = name.decode(errors="surrogateescape") if isinstance(name, bytes) else str(name)
        if not text.startswith("\0"):
            text = _TEMPORARY.sub("", text)
        return Identity(family, str(UnixAddress(text)))
    if family not in (socket.AF_INET, socket.AF_INET6):
        raise SystemRefused(f"cannot use descriptor {sock.fileno()}: address family {family} is not supported")
    return Identity(family, str(InetAddress(name[0], name[1])), v6only, interface)


def _interface(sock: socket.socket) -> str:
    """The device that a socket is bound to; one that has gone, or was re-created under its name, is named '?'."""
    index = sock.getsockopt(socket.SOL_SOCKET, _SO_BINDTOIFINDEX)
    if not index:
        return ""
    try:
        return socket.if_indextoname(index)
    except OSError:
        return "?"


def _identity_of(bind: Bind) -> Identity:
    address = bind.address
    if isinstance(address, SystemdAddress):
        raise TypeError("systemd's sockets are found by name")
    if isinstance(address, UnixAddress):
        return Identity(socket.AF_UNIX, str(address))
    # The kernel's spelling of the address, so that [::0:1] is [::1].
    host = socket.inet_ntop(address.family, socket.inet_pton(address.family, address.host.partition("%")[0]))
    scope = "%" + address.host.partition("%")[2] if "%" in address.host else ""
    v6only = host == "::" and bind.v6only
    return Identity(address.family, str(InetAddress(host + scope, address.port)), v6only, bind.interface)


def assign(
    wanted: Sequence[Wanted], candidates: Iterable[Listener]
) -> tuple[list[tuple[Wanted, Listener]], list[Wanted], list[Listener]]:
    """Match binds with listeners that we already have: (matched, binds still to be opened, listeners nobody wants).

    Raises SystemRefused when a `bind = sd@NAME` has no socket.
    """
    free = list(candidates)
    by_identity: dict[Identity, list[Listener]] = {}
    for listener in free:
        by_identity.setdefault(listener.identity, []).append(listener)
    taken: set[int] = set()
    matched: list[tuple[Wanted, Listener]] = []
    missing: list[Wanted] = []
    for want in wanted:
        if isinstance(want.bind.address, SystemdAddress):
            named = [x for x in free if x.origin == "systemd" and x.name == want.bind.address.name]
            if not named:
                names = sorted({x.name for x in free if x.origin == "systemd"})
                raise SystemRefused(
                    f"cannot bind {want.bind.address} ({want.bind.where}): systemd passed no socket of that name; "
                    + (f"it passed {', '.join(names)}" if names else "it passed none; is the .socket unit started?")
                )
            matched += [(want, listener) for listener in named]
            taken.update(map(id, named))
            continue
        # A haproxy may have several sockets for one address (shards), each with clients in its backlog.
        same = by_identity.get(_identity_of(want.bind), ())
        found = [x for x in same if id(x) not in taken and _sound(x)]
        if not found:
            missing.append(want)
        matched += [(want, listener) for listener in found]
        taken.update(map(id, found))
    return matched, missing, [x for x in free if id(x) not in taken]


def _sound(listener: Listener) -> bool:
    """A unix path that somebody removed or replaced leaves a listener that no client can reach."""
    if listener.inode is None:
        return True
    try:
        status = os.lstat(listener.identity.address.removeprefix("unix@"))
    except OSError:
        return False
    return (status.st_dev, status.st_ino) == listener.inode


def prepare(sock: socket.socket, family: int) -> None:
    """What accepted connections inherit from their listener on Linux: no Nagle delay, urgent data in line."""
    sock.setblocking(False)
    if family != socket.AF_UNIX:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, 1)


def open_listener(bind: Bind, held: Sequence[Listener] = (), replace: bool = False) -> Listener:
    """Bind and listen. Raises SystemRefused, naming the address, the place in the file and what to do.

    `held` are the listeners that we or our predecessor hold: on one port with an address that overlaps (`*:80` and
    `127.0.0.1:80`), the kernel refuses the bind unless both sockets say SO_REUSEPORT; we set it for that moment only.
    The result then is not `listening` yet: it would steal connections from a predecessor that may have to go on.
    `replace`: a unix path may be taken over although somebody listens there.
    """
    try:
        if isinstance(bind.address, UnixAddress):
            return _open_unix(bind, bind.address, replace)
        assert isinstance(bind.address, InetAddress)
        return _open_inet(bind, bind.address, held)
    except OSError as error:
        raise SystemRefused(f"cannot bind {bind.address} ({bind.where}): {_explain(error, bind)}") from None


def _explain(error: OSError, bind: Bind) -> str:
    match error.errno:
        case errno.EADDRINUSE:
            return (
                "another process listens there (`ss -ltnp` or `ss -lxp` shows which);"
                " to take over from a hitlessd or haproxy use -x with its runtime socket"
            )
        case errno.EADDRNOTAVAIL:
            return "this machine has no such address (`ip address` shows those it has)"
        case errno.EACCES | errno.EPERM:
            if isinstance(bind.address, InetAddress) and bind.address.port < 1024:
                return "ports below 1024 need CAP_NET_BIND_SERVICE, or a .socket unit and `bind = sd@NAME`"
            return "permission denied"
        case errno.ENOENT:
            return "there is no such directory"
        case errno.ENODEV:
            return f"there is no interface {bind.interface}"
        case _:
            return reason_of(error)


def _open_inet(bind: Bind, address: InetAddress, held: Sequence[Listener]) -> Listener:
    sock = socket.socket(address.family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if address.family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, bind.v6only)
        if bind.interface:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, bind.interface.encode() + b"\0")
        prepare(sock, address.family)
        overlaps: tuple[Listener, ...] = ()
        try:
            sock.bind(address.sockaddr)
        except OSError as error:
            overlaps = tuple(x for x in held if _same_port(x, address.port))
            if error.errno != errno.EADDRINUSE or not overlaps:
                raise
            with _shared_port(sock, overlaps):
                sock.bind(address.sockaddr)
        listener = Listener(sock, _identity_of(bind), "own", _store_name(), overlaps=overlaps)
        if not overlaps:
            sock.listen(bind.backlog or _LONGEST_BACKLOG)
    except BaseException:
        sock.close()
        raise
    return listener


def _same_port(listener: Listener, port: int) -> bool:
    return listener.identity.family != socket.AF_UNIX and listener.identity.address.endswith(f":{port}")


@contextlib.contextmanager
def _shared_port(sock: socket.socket, overlaps: Sequence[Listener]) -> Any:
    """Let a socket bind or listen beside overlapping ones, only for the moment: no stranger may join the port later."""
    every = [x.sock for x in overlaps if x.sock.fileno() >= 0] + ([sock] if overlaps else [])
    for each in every:
        each.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    try:
        yield
    finally:
        for each in every:
            each.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 0)


def _store_name() -> str:
    return f"listener-{os.urandom(8).hex()}"


def _open_unix(bind: Bind, address: UnixAddress, replace: bool) -> Listener:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    temporary = ""
    try:
        prepare(sock, socket.AF_UNIX)
        if address.abstract:
            sock.bind(address.path)
            sock.listen(bind.backlog or _LONGEST_BACKLOG)
            return Listener(sock, _identity_of(bind), "own", _store_name())
        _refuse_foreign_path(address.path, replace)
        # HAProxy's form, by which it finds our socket; at most 10 bytes more than the configuration's limit leaves.
        temporary = f"{address.path}.{os.getpid() % 100000}.tmp"
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        # Nobody may connect before mode and owner are right, hence listen only afterwards (umask(2) is process-wide).
        sock.bind(temporary)
        own_path(temporary, bind)
        sock.listen(bind.backlog or _LONGEST_BACKLOG)
        status = os.lstat(temporary)
        inode = (status.st_dev, status.st_ino)
        # Renamed by start_listening() only: whoever serves that path now may have to go on.
        return Listener(sock, _identity_of(bind), "own", _store_name(), inode, temporary=temporary)
    except BaseException:
        sock.close()
        if temporary:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
        raise


def own_path(path: str, bind: Bind) -> None:
    """Give a unix path the mode and owner that the configuration wants. Raises OSError, SystemRefused."""
    if bind.user or bind.group:
        os.chown(path, _user_id(bind.user), _group_id(bind.group))
    if bind.mode is not None:
        os.chmod(path, bind.mode)


def _user_id(name: str) -> int:
    if not name or name.isdecimal():
        return int(name or -1)
    import pwd

    try:
        return pwd.getpwnam(name).pw_uid
    except KeyError:
        raise SystemRefused(f"cannot find user {name}: no such user") from None


def _group_id(name: str) -> int:
    if not name or name.isdecimal():
        return int(name or -1)
    import grp

    try:
        return grp.getgrnam(name).gr_gid
    except KeyError:
        raise SystemRefused(f"cannot find group {name}: no such group") from None


def _refuse_foreign_path(path: str, replace: bool) -> None:
    """A stale socket may be replaced; a file of another kind, or a socket where somebody answers, may not."""
    try:
        status = os.lstat(path)
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(status.st_mode):
        raise FileExistsError(errno.EEXIST, "the path exists and is not a socket; remove it or choose another path")
    if replace:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        # Anything else means that somebody is there: a full backlog, a datagram socket, one we may not connect to.
        if probe.connect_ex(path) not in (errno.ECONNREFUSED, errno.ENOENT):
            raise OSError(errno.EADDRINUSE, "in use")


def close_unwanted(listener: Listener) -> None:
    """Close a listener for good; its unix path goes too, if it is still ours."""
    listener.unlink()
    listener.close()
