"""MSG_ZEROCOPY against a plain send over one connection: CPU a GB of the sender, and whether the kernel did copy.

    python -m benchmarks.experiments.zerocopy

The receiver is another process. Each send waits for its completion in the error queue, as a relay with one scratch
buffer has to before it reads into it again.
"""

import os
import resource
import select
import socket
import struct
from typing import Final

_SO_ZEROCOPY: Final = 60  # asm-generic/socket.h
_MSG_ZEROCOPY: Final = 0x4000000
_COPIED: Final = 1  # SO_EE_CODE_ZEROCOPY_COPIED in struct sock_extended_err (linux/errqueue.h)
_ERROR: Final = struct.Struct("IBBBBII")
_TOTAL: Final = 1 << 30
_SIZES: Final = (16 << 10, 64 << 10, 256 << 10, 1 << 20)


def _cpu() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def _sink(listener: socket.socket) -> None:
    """A process that reads all of one connection."""
    if os.fork():
        return
    sock, _address = listener.accept()
    buffer = bytearray(1 << 20)
    while sock.recv_into(buffer):
        pass
    os._exit(0)


def _completions(sock: socket.socket) -> tuple[int, int]:
    """Wait until some sends are done; how many, and how many of them were copied after all."""
    poller = select.poll()
    poller.register(sock, 0)
    done = copied = 0
    while not done:
        poller.poll()
        _data, ancillary, _flags, _address = sock.recvmsg(0, 512, socket.MSG_ERRQUEUE)
        for _level, _kind, payload in ancillary:
            _errno, _origin, _type, code, _pad, first, last = _ERROR.unpack_from(payload)
            done += last - first + 1
            copied += (last - first + 1) * (code & _COPIED)
    return done, copied


def measure(size: int, zerocopy: bool) -> tuple[float, int, int]:
    """Seconds of CPU a GB, sends, and those that were copied."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        _sink(listener)
        with socket.create_connection(listener.getsockname()) as sock:
            sock.setsockopt(socket.SOL_SOCKET, _SO_ZEROCOPY, 1)
            view = memoryview(bytearray(size))
            began, moved, sends, copied = _cpu(), 0, 0, 0
            while moved < _TOTAL:
                moved += sock.send(view, _MSG_ZEROCOPY if zerocopy else 0)
                sends += 1
                if zerocopy:
                    copied += _completions(sock)[1]
            cpu = _cpu() - began
        os.wait()
    return cpu / (moved / 1e9), sends, copied


if __name__ == "__main__":
    for size in _SIZES:
        plain, _sends, _copied = measure(size, False)
        zero, sends, copied = measure(size, True)
        print(f"{size >> 10:5} KiB: plain {plain:.3f} s CPU a GB, MSG_ZEROCOPY {zero:.3f}, {copied} of {sends} copied")
