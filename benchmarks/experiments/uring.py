"""A bare relay on epoll and the same on io_uring, both in plain Python: CPU a connection, and a request on a kept one.

    python -m benchmarks.experiments.uring [ROUNDS]

Wants `liburing` from PyPI, and Linux 6.14 for it. Neither relay has timeouts, counters or logs: what differs is how the
kernel is asked. Both do the same in the same order: accept, connect, pass on what comes, close when both have ended.
"""

import contextlib
import importlib
import itertools
import select
import socket
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from benchmarks import measure
from benchmarks.experiments.variants import table, tcp_works
from benchmarks.measure import LOAD_CPU, PROXY_CPU
from benchmarks.proxies import Proxy
from tests.support.backend import Backend
from tests.support.processes import free_port

_SIZE: Final = 64 << 10
_ENTRIES: Final = 1024
_BURST: Final = 16
_ACCEPT, _CONNECT, _RECV, _SEND = range(4)


class _Side:
    """One socket."""

    __slots__ = ("buffer", "ended", "fd", "number", "peer", "sock", "unsent", "view")

    def __init__(self, sock: socket.socket, number: int) -> None:
        self.sock = sock
        self.fd = sock.fileno()
        self.number = number
        self.peer: _Side
        self.buffer: Any = None
        self.view: Any = None
        # The binding keeps no reference to what it was given, and the kernel looks at it until the completion.
        self.unsent = b""
        self.ended = False


def _server() -> socket.socket:
    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock


def with_epoll(listener: socket.socket, port: int) -> None:
    """One edge-triggered registration a socket, as hitlessd does it."""
    epoll = select.epoll()
    mask = select.EPOLLIN | select.EPOLLOUT | select.EPOLLRDHUP | select.EPOLLET
    sides: dict[int, _Side] = {}
    scratch = memoryview(bytearray(_SIZE))
    home = listener.fileno()
    listener.setblocking(False)
    epoll.register(home, select.EPOLLIN)
    while True:
        for fd, events in epoll.poll(-1, 128):
            if fd == home:
                for _ in range(_BURST):
                    try:
                        sock, _address = listener.accept()
                    except BlockingIOError:
                        break
                    sock.setblocking(False)
                    client, server = _Side(sock, 0), _Side(_server(), 0)
                    client.peer, server.peer = server, client
                    sides[client.fd], sides[server.fd] = client, server
                    server.sock.connect_ex(("127.0.0.1", port))
                    epoll.register(client.fd, mask)
                    epoll.register(server.fd, mask)
                continue
            side = sides.get(fd)
            if side is None or not events & select.EPOLLIN:
                continue
            try:
                size = side.sock.recv_into(scratch)
                if size:
                    side.peer.sock.send(scratch[:size])
                    if not events & select.EPOLLRDHUP or side.sock.recv_into(scratch):
                        continue
            except BlockingIOError:
                continue
            except OSError:
                pass
            for each in (side, side.peer):
                del sides[each.fd]
                epoll.unregister(each.fd)
                each.sock.close()


def with_uring(listener: socket.socket, port: int) -> None:
    """Each operation a submission; all of a turn in one system call."""
    uring: Any = importlib.import_module("liburing")
    ring = uring.Ring()
    uring.io_uring_queue_init(_ENTRIES, ring, uring.IORING_SETUP_SINGLE_ISSUER | uring.IORING_SETUP_DEFER_TASKRUN)
    cqe, get_sqe = uring.Cqe(), uring.io_uring_get_sqe
    prep_recv, prep_send, prep_connect = uring.io_uring_prep_recv, uring.io_uring_prep_send, uring.io_uring_prep_connect
    address = uring.Sockaddr(uring.AF_INET, "127.0.0.1", port)
    numbers = itertools.count(1)
    sides: dict[int, _Side] = {}
    uring.io_uring_prep_multishot_accept(sqe := get_sqe(ring), listener.fileno())
    sqe.user_data = _ACCEPT

    def receive(side: _Side) -> None:
        prep_recv(sqe := get_sqe(ring), side.fd, side.buffer)
        sqe.user_data = side.number << 2 | _RECV

    while True:
        uring.io_uring_submit_and_wait(ring, 1)
        ready, progress = 0, uring.io_uring_cqe_iter_init(ring)
        found = []
        while uring.io_uring_cqe_iter_next(progress, cqe):
            ready += 1
            entry = cqe[0]
            data = entry.user_data
            try:
                found.append((data, entry.res))
            except OSError:
                found.append((data, -1))
        uring.io_uring_cq_advance(ring, ready)
        for data, result in found:
            what = data & 3
            if what == _ACCEPT:
                client, server = _Side(socket.socket(fileno=result), next(numbers)), _Side(_server(), next(numbers))
                client.peer, server.peer = server, client
                for side in (client, server):
                    side.buffer = bytearray(_SIZE >> 4)
                    side.view = memoryview(side.buffer)
                    sides[side.number] = side
                prep_connect(sqe := get_sqe(ring), server.fd, address)
                sqe.user_data = server.number << 2 | _CONNECT
                continue
            side = sides[data >> 2]
            if what == _CONNECT:
                receive(side)
                receive(side.peer)
            elif what == _RECV and result > 0:
                side.unsent = bytes(side.view[:result])
                prep_send(sqe := get_sqe(ring), side.peer.fd, side.unsent)
                sqe.user_data = side.number << 2 | _SEND
            elif what == _SEND and result > 0:
                receive(side)
            else:
                # Its peer's operation is under way, and ends by this: until then its buffer has to stay.
                side.ended = True
                if side.peer.ended:
                    for each in (side, side.peer):
                        del sides[each.number]
                        each.sock.close()
                else:
                    with contextlib.suppress(OSError):
                        side.peer.sock.shutdown(socket.SHUT_RDWR)


class _Relay(Proxy):
    """One of the two, in a process of its own."""

    def text(self, listen: Sequence[int], servers: Sequence[int]) -> str:
        return ""

    def command(self) -> list[str]:
        return [sys.executable, "-m", __spec__.name, self.name, str(self.listen[0]), str(self.servers[0])]

    def _serves(self) -> bool:
        try:
            socket.create_connection(("127.0.0.1", self.listen[0]), 1).close()
        except OSError:
            return False
        return True


def main(arguments: Sequence[str]) -> None:
    """A relay (`NAME PORT SERVER`), or the comparison."""
    if len(arguments) == 3:
        name, port, server = arguments
        with socket.create_server(("127.0.0.1", int(port)), backlog=4096) as listener:
            {"epoll": with_epoll, "io_uring": with_uring}[name](listener, int(server))
    rounds = int(arguments[0]) if arguments else 3
    with tempfile.TemporaryDirectory() as text, Backend(cpu=LOAD_CPU) as backend:
        behind = int(backend.addresses[0].rpartition(":")[2])
        proxies: list[Proxy] = []
        for name in ("epoll", "io_uring"):
            proxy = _Relay(Path(text) / name, [free_port()], [behind], cpu=PROXY_CPU)
            proxy.name = name
            proxies.append(proxy)
        with proxies[0], proxies[1]:
            found = measure.compare(
                tcp_works(), proxies, lambda w, p: measure.run_work(w, p, backend), rounds, lambda _text: None
            )
    print(table(found, "epoll"))


if __name__ == "__main__":
    main(sys.argv[1:])
