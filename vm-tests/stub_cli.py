"""What stands for hitlessd/cli.py where the units are tested without the daemon; runs inside a machine.

It does once each thing that the sandbox of hitlessd.service must allow or forbid, writes the outcome to its stdout as
JSON, says READY=1, and answers every connection to its listener with its pid until SIGTERM.
"""

import array
import ctypes
import json
import mmap
import os
import resource
import select
import signal
import socket
import tempfile
from collections.abc import Callable
from pathlib import Path

from systemd import daemon


def main() -> int:
    """The probes, then a server on systemd's listener or on port 80."""
    signal.signal(signal.SIGTERM, lambda number, frame: os._exit(0))
    print(json.dumps({probe.__name__: attempt(probe) for probe in PROBES}), flush=True)
    inherited = daemon.listen_fds_with_names()
    # The order across socket units is undefined; the store's come back under the name they were given below.
    ours = [descriptor for descriptor, name in inherited.items() if name in ("http", "listener")]
    listener = socket.socket(fileno=ours[0]) if ours else socket.create_server(("127.0.0.1", 80))
    daemon.notify("FDSTORE=1\nFDNAME=listener\nFDPOLL=0", fds=[listener.fileno()])
    daemon.notify("READY=1\nSTATUS=" + " ".join(inherited.values()))
    poller = select.poll()
    poller.register(listener, select.POLLIN)
    while True:
        poller.poll(1000)
        daemon.notify("WATCHDOG=1")
        listener.setblocking(False)
        try:
            connection, _ = listener.accept()
        except BlockingIOError:
            continue
        with connection:
            connection.sendall(b"%d\n" % os.getpid())


def attempt(probe: Callable[[], object]) -> str:
    """'' if it could be done, else the reason."""
    try:
        probe()
    except OSError as error:
        return str(error)
    return ""


def shared_memory() -> None:
    descriptor = os.memfd_create("probe", os.MFD_ALLOW_SEALING)
    os.ftruncate(descriptor, 4096)
    mmap.mmap(descriptor, 4096)[0] = 1


def event_descriptors() -> None:
    eventfd = os.eventfd(1, os.EFD_NONBLOCK)
    with select.epoll() as epoll:
        epoll.register(eventfd, select.EPOLLIN | select.EPOLLEXCLUSIVE)
        if not epoll.poll(0):
            raise OSError("no event")


def splice() -> None:
    source, sink = os.pipe()
    there, here = socket.socketpair()
    os.write(sink, b"x")
    os.splice(source, there.fileno(), 1)
    if here.recv(2) != b"x":
        raise OSError("nothing came through")


def signal_a_sibling() -> None:
    child = os.fork()
    if child == 0:
        signal.pause()
    pidfd = os.pidfd_open(child)
    signal.pidfd_send_signal(pidfd, signal.SIGKILL)
    os.waitpid(child, 0)


def successor() -> None:
    """Double fork and exec of a new interpreter."""
    middle = os.fork()
    if middle == 0:
        child = os.posix_spawn("/usr/bin/python3", ["python3", "-c", "import systemd.daemon"], os.environ)
        os._exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    if os.waitstatus_to_exitcode(os.waitpid(middle, 0)[1]):
        raise OSError("it failed")


def descriptors_over_a_socket() -> None:
    one, two = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    socket.send_fds(one, [b"x"], [0, 1, 2])
    _, ancillary, _, _ = two.recvmsg(1, socket.CMSG_SPACE(12))
    for descriptor in array.array("i", ancillary[0][2]):
        os.close(descriptor)


def parent_death_signal() -> None:
    if ctypes.CDLL(None, use_errno=True).prctl(1, signal.SIGKILL):  # PR_SET_PDEATHSIG
        raise OSError(ctypes.get_errno(), "prctl")


def low_ports() -> None:
    for family, address in (socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1"):
        with socket.socket(family) as listener:
            listener.bind((address, 81))
            listener.listen()


def bind_to_device() -> None:
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"lo\0")
        listener.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)


def resolve() -> None:
    socket.getaddrinfo("localhost", 80)


def socket_file_of_a_group() -> None:
    path = Path(os.environ["RUNTIME_DIRECTORY"], "probe.sock")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        path.chmod(0o660)
        os.chown(path, -1, os.getgid())
    path.unlink()


def limits_and_affinity() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    os.sched_setaffinity(0, os.sched_getaffinity(0))


def posix_lock() -> None:
    with tempfile.TemporaryFile() as file:
        os.lockf(file.fileno(), os.F_TLOCK, 0)


def forbidden_write() -> None:
    Path("/etc/hitlessd/probe").touch()


def forbidden_netlink() -> None:
    socket.socket(socket.AF_NETLINK, socket.SOCK_RAW).close()


def forbidden_user_change() -> None:
    os.setuid(0)


def forbidden_raw_socket() -> None:
    socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP).close()


PROBES: list[Callable[[], None]] = [
    shared_memory,
    event_descriptors,
    splice,
    signal_a_sibling,
    successor,
    descriptors_over_a_socket,
    parent_death_signal,
    low_ports,
    bind_to_device,
    resolve,
    socket_file_of_a_group,
    limits_and_affinity,
    posix_lock,
    forbidden_write,
    forbidden_netlink,
    forbidden_user_change,
    forbidden_raw_socket,
]
