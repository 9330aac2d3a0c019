"""Runs in a machine, see inside.py: so many idle connections live through a reload and a restart.

    python3 vm-tests/many.py 15000

Prints how long each took.
"""

from __future__ import annotations

import os
import select
import socket
import sys
import time

from inside import CONFIGURATION, PATIENCE, UNIT, configure, do, info, main_pid, wait_served, workers

from tests.support.processes import poll_until, raise_descriptor_limit

BATCH = 500


def serve(listener: socket.socket) -> None:
    """An echo, until killed."""
    poll = select.epoll()
    poll.register(listener, select.EPOLLIN)
    socks = {}
    while True:
        for fd, _ in poll.poll():
            if fd == listener.fileno():
                sock = listener.accept()[0]
                socks[sock.fileno()] = sock
                poll.register(sock, select.EPOLLIN)
            elif data := socks[fd].recv(100):
                socks[fd].send(data)
            else:
                socks.pop(fd).close()


def ask(socks: list[socket.socket]) -> None:
    """Each has its own answer."""
    for start in range(0, len(socks), BATCH):
        some = list(enumerate(socks[start : start + BATCH], start))
        for number, sock in some:
            sock.send(b"%08d" % number)
        for number, sock in some:
            assert sock.recv(100) == b"%08d" % number


def main() -> None:
    count = int(sys.argv[1])
    patience = PATIENCE + count / 50
    raise_descriptor_limit()
    configure(CONFIGURATION.replace("workers = 2", f"workers = 2\nmaxconn = {count + 100}"))
    listener = socket.create_server(("127.0.0.1", 9003), backlog=4096)
    server = os.fork()
    if not server:
        serve(listener)
    before, took = int(info()["CumConns"]), []
    try:
        began = time.monotonic()
        socks: list[socket.socket] = []
        while len(socks) < count:
            number = min(BATCH, count - len(socks))
            some = [socket.create_connection(("127.0.0.1", 8001), PATIENCE) for _ in range(number)]
            ask(some)
            socks += some
        took.append(f"connected in {time.monotonic() - began:.0f} s")
        poll_until(lambda: info().get("CurrParked") == str(count), patience, "all are parked", 0.5)
        held = sum(len(os.listdir(f"/proc/{pid}/fd")) for pid in workers())
        assert held > 2 * count, held
        for verb in ("reload", "restart"):
            old, began = main_pid(), time.monotonic()
            do("systemctl", verb, UNIT)
            took.append(f"{verb} returned after {time.monotonic() - began:.1f} s")
            wait_served(old, count, patience)
            took.append(f"all parked again after {time.monotonic() - began:.1f} s")
            ask(socks)
        told = info()
        assert (told["CumLost"], told["CurrConns"], int(told["CumConns"]) - before) == ("0", str(count), count), told
    finally:
        os.kill(server, 9)
        os.waitpid(server, 0)
    print(f"{count} connections, {held} descriptors: {'; '.join(took)}")


if __name__ == "__main__":
    main()
