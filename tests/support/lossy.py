"""A bad wire between two tunnel devices: packets come late, overtake each other, and get lost.

    python -m tests.support.lossy LEFT RIGHT --delay 0.005 --loss 0.01

Makes the devices (TUN, so IP packets only), prints "ready", and carries until SIGTERM, at which it prints a line of
JSON with what was carried and lost; ip(8) gives the devices their addresses and moves one into another network
namespace. For kernels without sch_netem.
"""

from __future__ import annotations

import argparse
import fcntl
import heapq
import itertools
import json
import os
import random
import select
import signal
import struct
import sys
import time
from collections.abc import Sequence

# linux/if_tun.h
_TUNSETIFF = 0x400454CA
_IFF_TUN = 0x0001
_IFF_NO_PI = 0x1000

_LARGEST = 1 << 16
_BURST = 256


def device(name: str) -> int:
    """A descriptor of a new TUN device of that name."""
    fd = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    fcntl.ioctl(fd, _TUNSETIFF, struct.pack("16sH22x", name.encode(), _IFF_TUN | _IFF_NO_PI))
    return fd


class Wire:
    """Carries packets between two descriptors. Times in seconds; `late` is the share that takes twice the delay."""

    def __init__(self, left: int, right: int, delay: float, loss: float, late: float, seed: int) -> None:
        self.carried = self.lost = 0
        self.stopping = False
        self._delay = delay
        self._loss = loss
        self._late = late
        self._dice = random.Random(seed)
        self._other = {left: right, right: left}
        self._queue: list[tuple[float, int, int, bytes]] = []
        self._order = itertools.count()

    def run(self) -> None:
        """Until `stopping` is set, by a signal handler say."""
        poller = select.poll()
        for fd in self._other:
            poller.register(fd, select.POLLIN)
        while not self.stopping:
            # At least now and then, for a signal that came just before.
            wait = min(0.1, max(0.0, self._queue[0][0] - time.monotonic())) if self._queue else 0.1
            for fd, _ in poller.poll(wait * 1000):
                self._take(fd)
            self._deliver()

    def _take(self, fd: int) -> None:
        for _ in range(_BURST):
            try:
                packet = os.read(fd, _LARGEST)
            except BlockingIOError:
                return
            if self._dice.random() < self._loss:
                self.lost += 1
                continue
            delay = self._delay * (2 if self._dice.random() < self._late else 1)
            heapq.heappush(self._queue, (time.monotonic() + delay, next(self._order), self._other[fd], packet))

    def _deliver(self) -> None:
        now = time.monotonic()
        while self._queue and self._queue[0][0] <= now:
            _, _, fd, packet = heapq.heappop(self._queue)
            try:
                os.write(fd, packet)
                self.carried += 1
            except OSError:
                self.lost += 1  # the device is down, or full


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.support.lossy", description=__doc__)
    parser.add_argument("left")
    parser.add_argument("right")
    parser.add_argument("--delay", type=float, default=0.005, help="seconds, one way")
    parser.add_argument("--loss", type=float, default=0.01, help="share of the packets that get lost")
    parser.add_argument("--late", type=float, default=0.02, help="share of the packets that others overtake")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args(argv)
    wire = Wire(device(options.left), device(options.right), options.delay, options.loss, options.late, options.seed)

    def stop(*_: object) -> None:
        wire.stopping = True

    signal.signal(signal.SIGTERM, stop)
    print("ready", flush=True)
    wire.run()
    print(json.dumps({"carried": wire.carried, "lost": wire.lost}), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
