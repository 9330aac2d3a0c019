"""What goes wrong with a machine on which hitlessd serves: full file systems, processes that sleep, no descriptors."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from crowd import CROWDED, Crowd, Killer, parked
from machine import Machine
from service import PORT, UNIT, Load, Service, backend

Record = Callable[[str, object], None]

PATIENCE = 30.0
YOUNG = 8002
"""The port for connections that come and go."""
RATE = 100
CONFIGURATION = f"""\
[global]
stats socket = /run/hitlessd/hitlessd.sock mode 600 expose-fd listeners level admin
workers = 2
{{more}}
[defaults]
mode = tcp
option tcplog
timeout connect = 5s
timeout client = 1m
timeout server = 1m
[listen crowd]
bind = 127.0.0.1:{PORT}
server s = 127.0.0.1:{CROWDED}
[listen young]
bind = 127.0.0.1:{YOUNG}
server s = 127.0.0.1:9002
"""
ANOTHER = """\
[listen another]
bind = /run/hitlessd/another.sock
server s = 127.0.0.1:9002
"""
#: So many connections at once, each of which wants an answer; tells how many had one and how many were cut off when
#: none has come for so many seconds, and again, after a line of input, when those have gone and the others were served.
RUSH = f"""\
import select, socket, sys
count, rest = int(sys.argv[1]), float(sys.argv[2])
poll, waiting, served, cut = select.poll(), {{}}, [], 0
for _ in range(count):
    sock = socket.create_connection(("127.0.0.1", {PORT}), 20)
    sock.sendall(b"hello")
    waiting[sock.fileno()] = sock
    poll.register(sock, select.POLLIN)
def hear(seconds, keep):
    global cut
    while waiting and (ready := poll.poll(seconds * 1000)):
        for fd, _ in ready:
            poll.unregister(fd)
            sock = waiting.pop(fd)
            try:
                fine = sock.recv(100) == b"hello"
            except OSError:
                fine = False
            if fine:
                served.append(sock)
            else:
                cut += 1
            if not keep:
                sock.close()
    print(len(served), cut, flush=True)
hear(rest, True)
sys.stdin.readline()
for sock in served:
    sock.close()
hear(20, False)
"""


def configuration(more: str = "maxconn = 3000") -> str:
    return CONFIGURATION.format(more=more)


@pytest.fixture(scope="module")
def text() -> str:
    return configuration()


@pytest.fixture(scope="module")
def installed(installed: Machine) -> Machine:
    """With a /var/tmp of its own, so that it can be filled."""
    installed.run("mount", "-t", "tmpfs", "-o", "size=1M,mode=1777", "private", "/var/tmp")
    return installed


@contextlib.contextmanager
def full(machine: Machine, what: str) -> Iterator[None]:
    """/run, /tmp and /var/tmp without a free byte, or /run without a free inode."""
    run = machine.run
    run("mount", "-o", "remount,size=32M,nr_inodes=3000", "/run")
    if what == "bytes":
        fill = "for d in /run /tmp /var/tmp; do head -c 8G /dev/zero >$d/fill || :; done"
    else:
        fill = "mkdir /run/fill; i=0; while true >/run/fill/$i; do i=$((i+1)); done"
    run("sh", "-c", fill, check=False)
    try:
        yield
    finally:
        run("sh", "-c", "rm -rf /run/fill /tmp/fill /var/tmp/fill; mount -o remount,size=1G,nr_inodes=100000 /run")


def whole(report: dict[str, object]) -> None:
    """No wrong byte on either side, and nobody lost."""
    server, lost = report["server"], report["lost"]
    assert isinstance(server, dict) and isinstance(lost, list)
    assert (report["corrupt"], server["corrupt"], report["broken"], report["unfinished"]) == (0, 0, 0, 0), lost[:10]


def served(load: Load) -> int:
    outcome = load.stop()
    assert (outcome["failed"], outcome["unfinished"]) == (0, 0), outcome["errors"]
    return int(outcome["done"])


def more(service: Service, count: int) -> None:
    """Wait for so many connections more."""
    wanted = service.machine.wait_until(service.connections, PATIENCE, "it answers") + count
    service.machine.wait_until(lambda: service.connections() >= wanted, PATIENCE, "the load runs")


def wait_parked(service: Service, count: int) -> None:
    service.machine.wait_until(lambda: parked(service) >= count, PATIENCE, f"{count} connections are parked")


def test_no_byte_free_on_run_and_tmp(service: Service, record_property: Record) -> None:
    """Each connection wants a line of the journal, which cannot be stored."""
    machine = service.machine
    service.start()
    with Crowd(machine, idle=20, pingpong=20, bulk=2) as crowd, full(machine, "bytes"):
        wait_parked(service, crowd.size)
        with Load(machine, RATE, port=YOUNG) as load:
            more(service, RATE)
            for _ in range(3):
                assert service.reload().returncode == 0
            # A name in a directory takes no byte.
            service.configure(configuration() + ANOTHER)
            assert service.reload().returncode == 0
            more(service, RATE)
            record_property("connections", served(load))
        crowd.verify()
        machine.run("systemctl", "restart", UNIT)
        crowd.verify()
        whole(crowd.stop())
    assert service.restarts == 0


def test_no_inode_free_on_run(service: Service, record_property: Record) -> None:
    """systemd cannot start anything in this unit then; what runs goes on, and what rests in the store waits."""
    machine = service.machine
    service.start()
    with Crowd(machine, idle=20, pingpong=20, bulk=2, options="--timeout 60") as crowd:
        wait_parked(service, crowd.size)
        with full(machine, "inodes"):
            with Load(machine, RATE, port=YOUNG) as load:
                more(service, RATE)
                cursor = machine.journal_cursor()
                by_systemd = service.reload()
                said = service.complaints(cursor)
                record_property("systemctl reload", f"{by_systemd.returncode}: {said[:1]}")
                if by_systemd.returncode:
                    assert any("No space left on device" in line for line in said), said
                # It needs nothing of systemd's.
                done = machine.run("hitlessctl", "reload", check=False)
                assert done.returncode == 0, done.stderr
                service.configure(configuration() + ANOTHER)
                refused = machine.run("hitlessctl", "reload", check=False)
                assert refused.returncode != 0
                assert "another.sock" in refused.stderr and "No space left on device" in refused.stderr, refused.stderr
                record_property("reload", refused.stderr.strip())
                service.configure(configuration())
                more(service, RATE)
                served(load)
            crowd.verify()
            assert crowd.lost == []
            listener = service.listener()
            restarted = machine.run("systemctl", "restart", UNIT, check=False)
            record_property("systemctl restart", restarted.returncode)
            assert service.listener() == listener
        machine.wait_until(service.active, PATIENCE, "it is back once there is room")
        assert service.listener() == listener
        crowd.verify()
        whole(crowd.stop())


def signal_all(service: Service, name: str) -> None:
    service.machine.run("systemctl", "kill", "--kill-whom=all", f"--signal={name}", UNIT)


def test_all_that_sleep_and_wake_have_lost_nothing(service: Service, record_property: Record) -> None:
    """For longer than a worker may leave pings unanswered, and shorter than the watchdog waits."""
    machine, killer = service.machine, Killer(service.machine, 1)
    service.start()
    with Crowd(machine, idle=20, pingpong=20, bulk=4) as crowd, Load(machine, RATE, port=YOUNG) as load:
        more(service, RATE)
        cursor, before = machine.journal_cursor(), killer.processes()
        signal_all(service, "SIGSTOP")
        crowd.rest(7.0)
        signal_all(service, "SIGCONT")
        more(service, RATE)
        crowd.verify()
        crowd.rest(2.0)
        assert killer.processes() == before
        record_property("connections", served(load))
        whole(crowd.stop())
    assert service.restarts == 0
    assert service.complaints(cursor) == []


def test_the_watchdog_ends_all_that_sleep(service: Service) -> None:
    machine = service.machine
    service.drop_in("[Service]\nWatchdogSec=2s\nTimeoutAbortSec=1s\n")
    service.start()
    with Crowd(machine, idle=20, pingpong=20, bulk=4) as crowd:
        wait_parked(service, crowd.size)
        cursor = machine.journal_cursor()
        signal_all(service, "SIGSTOP")
        machine.wait_until(lambda: service.restarts >= 1 and service.active(), PATIENCE, "it is back")
        crowd.verify()
        assert any("Watchdog timeout" in line for line in service.complaints(cursor))
        whole(crowd.stop())
    assert service.restarts == 1


def spent(pids: list[int]) -> float:
    """CPU time of processes, by the host's pids, in seconds."""
    ticks = 0
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


class Rush:
    """Connections at once, see RUSH."""

    def __init__(self, machine: Machine, count: int) -> None:
        self._process = machine.start("python3", "-c", RUSH, str(count), "1")

    def __enter__(self) -> Rush:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()

    def counted(self) -> tuple[int, int]:
        """How many were served, and how many were cut off."""
        assert self._process.stdout is not None and self._process.stderr is not None
        line = self._process.stdout.readline()
        assert line, self._process.stderr.read()
        served, cut = line.split()
        return int(served), int(cut)

    def go_on(self) -> None:
        """Those who were served leave, the others wait to be."""
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()


def test_more_clients_than_descriptors_wait_their_turn(service: Service, record_property: Record) -> None:
    machine, killer = service.machine, Killer(service.machine, 1)
    service.drop_in("[Service]\nLimitNOFILE=600\n")
    service.configure(configuration(""))
    service.start()
    limit = int(service.info()["Maxconn"])
    assert limit < 300
    with backend(machine, CROWDED), Rush(machine, 300) as rush:
        served, cut = rush.counted()
        assert (served <= limit, cut) == (True, 0)
        cursor, pids = machine.journal_cursor(), killer.processes()[1]
        before = spent(pids)
        time.sleep(1.0)
        cpu = spent(pids) - before
        record_property("full", f"{served} of maxconn {limit} served; {cpu:.2f} s of CPU in 1 s")
        assert cpu < 0.3
        assert service.reload().returncode == 0
        # Which tells at the start that it will park fewer, and when it does.
        assert all("park" in line for line in service.complaints(cursor))
        rush.go_on()
        assert rush.counted() == (300, 0)


def lower(machine: Machine, pid: int, limit: str) -> None:
    """Set a limit on open files, as the daemon's user may."""
    as_daemon = ("setpriv", "--reuid=hitlessd", "--regid=hitlessd", "--clear-groups")
    machine.run(*as_daemon, "prlimit", f"--nofile={limit}", f"--pid={pid}")


@pytest.mark.parametrize("spare", [100, 101])
def test_workers_without_descriptors_pause_and_go_on(service: Service, spare: int, record_property: Record) -> None:
    """Taken away at run time; `spare` is left to each, two a connection, so that with 101 one has a client alone, who
    has as many seconds as retries."""
    machine, killer = service.machine, Killer(service.machine, 1)
    service.configure(configuration().replace("mode = tcp", "mode = tcp\nretries = 30"))
    service.start()
    cursor, pids = machine.journal_cursor(), killer.processes()[1]
    for line in machine.run("pgrep", "-P", str(service.main_pid)).stdout.split():
        held = len(machine.run("ls", f"/proc/{line}/fd").stdout.split())
        lower(machine, int(line), f"{held + spare}:")
    with backend(machine, CROWDED), Rush(machine, 300) as rush:
        served, cut = rush.counted()
        before = spent(pids)
        time.sleep(1.0)
        cpu = spent(pids) - before
        said = service.complaints(cursor)
        record_property("full", f"{served} of 300 served, {cut} cut off; {cpu:.2f} s of CPU in 1 s; {said}")
        assert (served, cut) == (100, 0)
        assert cpu < 0.3
        assert any("cannot accept on crowd: Too many open files" in line for line in said)
        # Once a second and worker.
        assert len(said) <= 2 * 2 * 4
        if spare == 101:
            # The limit is theirs alone. They cannot even take the ways on which connections move, and keep theirs.
            assert service.reload().returncode == 0
        rush.go_on()
        assert rush.counted() == (300, 0)


def test_a_reload_with_too_few_descriptors_says_so(service: Service, record_property: Record) -> None:
    machine = service.machine
    service.start()
    pid = service.main_pid
    lower(machine, pid, "300:300")
    with Crowd(machine, idle=10, pingpong=10) as crowd:
        assert service.reload().returncode != 0
        refused = machine.run("hitlessctl", "reload", check=False).stderr
        record_property("reload", refused.strip())
        assert "maxconn 3000" in refused and "LimitNOFILE=" in refused
        assert service.main_pid == pid
        crowd.verify()
        machine.run("systemctl", "restart", UNIT)
        assert service.reload().returncode == 0
        crowd.verify()
        whole(crowd.stop())
