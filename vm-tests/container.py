"""Machines that systemd-nspawn boots in a second, on the host's kernel.

From a read-only image (image.py) below an overlay in memory, in its own network with nothing but a loopback interface.
It needs root and a mounted cgroup2, which may be one without controllers: beside cgroup v1 the machine still sees a
pure cgroup2 hierarchy, as systemd 257 demands, though no memory or CPU limits work.

Nothing of a machine outlives the with-block, nor, but for an empty cgroup that the next boot clears away, a test run
that is killed: the processes form a tree of PID namespaces that ends with its root, and that ends with the thread that
booted it. The host's limits hold inside too: where it has no CAP_SYS_RESOURCE, LimitNOFILE= cannot exceed its own.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import select
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

from image import image_path
from machine import ARTEFACTS, ENVIRONMENT, Machine, MachineError, Process

from hitlessd.main.spare import NAME as SPARE

__all__ = ["Container"]

CGROUP_PREFIX = "hitlessd-vm-"

# Runs in a mount and a PID namespace of its own, as PID 1 of the latter. $1: the cgroup2 file system, $2: our cgroup in
# it; then the command. A tmpfs hides /run since systemd-nspawn leaves directories there. The bind mount makes a hybrid
# host look like a pure cgroup2 one; a new mount of cgroup2 would change the options of the host's.
PREPARE = """
mount -t tmpfs -o mode=755 tmpfs /run
echo 0 >"$2/cgroup.procs"
if [ "$1" != /sys/fs/cgroup ]; then mount --bind "$1" /sys/fs/cgroup; fi
shift 2
exec "$@"
"""

_serial = itertools.count(1)


class ContainedProcess(Process):
    """A process in a machine. Signals go to it, and not to the nsenter(1) that stands for it on the host."""

    @property
    def host_pid(self) -> int:
        """Its pid as the host counts; 0 if it has ended."""
        deadline = time.monotonic() + 5
        while self.poll() is None and time.monotonic() < deadline:
            if children := _children(self.pid):
                return children[0]
            # nsenter(1) has not forked yet, or is just passing on its child's end.
            select.select([], [], [], 0.002)
        return 0

    @property
    def inside_pid(self) -> int:
        """Its pid as the machine counts; 0 if it has ended."""
        pid = self.host_pid
        return _namespace_pids(pid)[-1] if pid else 0

    def send_signal(self, sig: int) -> None:
        """Send a signal, unless it has ended. terminate() and kill() come here too."""
        if pid := self.host_pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, sig)
        if sig in (signal.SIGCONT, signal.SIGKILL) and self.poll() is None:
            # nsenter(1) stops when its child does, and must run to see it go on or end.
            os.kill(self.pid, signal.SIGCONT)


class Container(Machine):
    """A machine of systemd-nspawn; `boot_deadline` is in seconds."""

    def __init__(self, name: str, boot_deadline: float = 60.0, artefacts: Path = ARTEFACTS) -> None:
        super().__init__(name, artefacts)
        self.boot_deadline = boot_deadline
        self.leader = 0
        """The host's pid for the machine's PID 1; 0 when there is none."""
        self._label = f"{os.getpid()}-{next(_serial)}"

    def __repr__(self) -> str:
        return f"<Container {self.name}, PID 1 is {self.leader}>"

    def processes(self, unit: str) -> tuple[int, list[int]]:
        """By the host's pids: no command has to be started for it."""
        place = Path(f"/proc/{self.leader}/root/sys/fs/cgroup/system.slice/{unit}/cgroup.procs")
        parents: dict[int, int] = {}
        with contextlib.suppress(OSError):
            for line in place.read_text().split():
                with contextlib.suppress(OSError, ValueError):
                    status = Path(f"/proc/{line}/stat").read_text().rpartition(")")[2].split()
                    # A spare is a child of PID 1, too.
                    if status[0] not in "ZX" and Path(f"/proc/{line}/comm").read_text().strip() != SPARE:
                        parents[int(line)] = int(status[1])
        main = max((pid for pid, parent in parents.items() if parent == self.leader), default=0)
        return main, [pid for pid, parent in parents.items() if parent == main]

    def kill(self, pid: int, number: int) -> bool:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)
            return True
        return False

    def start(self, *argv: str) -> ContainedProcess:
        process = super().start(*argv)
        assert isinstance(process, ContainedProcess)
        return process

    # Within

    def _boot(self) -> None:
        """Start systemd-nspawn and wait until systemd says that the boot has finished."""
        root = image_path(self.name)
        if not root.is_dir():
            raise MachineError(f"cannot boot {self.name}: there is no {root}; run `python vm-tests/image.py` as root")
        if os.geteuid() != 0:
            raise MachineError(f"cannot boot {self.name}: only root can")
        self._console = self._cleanup.enter_context(tempfile.TemporaryFile())
        hierarchy = _cgroup2()
        _clear_cgroups(hierarchy)
        cgroup = hierarchy / f"{CGROUP_PREFIX}{self._label}"
        cgroup.mkdir()
        self._cleanup.callback(_remove_cgroup, cgroup)
        # Closed once it has said READY=1: a queue that nobody reads would block systemd-nspawn, and with it PID 1.
        notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        self._cleanup.callback(notify.close)
        notify.bind("")  # an abstract name of the kernel's choice
        nspawn = [
            "systemd-nspawn",
            "--boot",
            "--console=read-only",
            f"--directory={root}",
            "--keep-unit",
            "--link-journal=no",
            f"--machine={self.name}",
            "--notify-ready=yes",
            "--private-network",
            "--register=no",
            "--resolv-conf=off",
            "--timezone=off",
            "--volatile=overlay",
        ]
        namespaces = ["unshare", "--mount", "--propagation=private", "--pid", "--fork", "--kill-child", "--mount-proc"]
        supervisor = subprocess.Popen(
            [
                *("setpriv", "--pdeathsig=KILL", *namespaces),
                *("sh", "-euc", PREPARE, "sh", str(hierarchy), str(cgroup), *nspawn),
            ],
            env=ENVIRONMENT | {"NOTIFY_SOCKET": "@" + notify.getsockname()[1:].decode()},
            start_new_session=True,  # the terminal's Ctrl-C is for pytest, which then ends us in order
            stdin=subprocess.DEVNULL,
            stdout=self._console,
            stderr=subprocess.STDOUT,
        )
        self._cleanup.callback(self._end, supervisor)
        self._wait_for_ready(notify, supervisor)
        notify.close()
        self.leader = self._find_leader(supervisor.pid)
        self._life = os.pidfd_open(self.leader)
        self._cleanup.callback(os.close, self._life)

    def _wait_for_ready(self, notify: socket.socket, supervisor: subprocess.Popen[bytes]) -> None:
        """Return when systemd-nspawn passes on the READY=1 of the systemd within."""
        end = time.monotonic() + self.boot_deadline
        pidfd = os.pidfd_open(supervisor.pid)
        self._cleanup.callback(os.close, pidfd)
        poller = select.poll()
        poller.register(notify, select.POLLIN)
        poller.register(pidfd, select.POLLIN)
        while True:
            events = poller.poll(max(0.0, end - time.monotonic()) * 1000)
            if (notify.fileno(), select.POLLIN) in events:
                if b"READY=1" in notify.recv(65536).splitlines():
                    return
                continue
            why = "it ended" if events else f"it is not up after {self.boot_deadline:g} s"
            console = self._console_output().decode(errors="replace")
            raise MachineError(f"cannot boot {self.name}: {why}; the last of its console:\n{console[-4000:]}")

    def _find_leader(self, supervisor: int) -> int:
        """The child of systemd-nspawn that is PID 1 of a namespace of its own."""
        for nspawn in _children(supervisor):
            for child in _children(nspawn):
                if _namespace_pids(child)[-1] == 1:
                    return child
        raise MachineError(f"cannot find PID 1 of {self.name} below process {supervisor}")

    def _end(self, supervisor: subprocess.Popen[bytes]) -> None:
        """Kill everything, and return when it has been reaped."""
        self._end_started()
        self.leader = 0
        # systemd-nspawn is PID 1 of a namespace, and so it ends only when all in there is dead and reaped. unshare(1)
        # waits for it; to kill that one would leave nobody who does.
        if nspawn := _children(supervisor.pid):
            os.kill(nspawn[0], signal.SIGKILL)
        else:
            supervisor.kill()
        supervisor.wait(30)

    def _command(self, argv: Iterable[str]) -> list[str]:
        """The command that runs `argv` in the machine.

        Should we be killed, so is nsenter(1): stopped together with its child it would never reap it, and a PID
        namespace lasts until all in it are reaped.
        """
        if not self.leader:
            raise MachineError(f"cannot run a command on {self.name}: it is not running")
        return ["setpriv", "--pdeathsig=KILL", "nsenter", f"--target={self.leader}", "--all", "--", *argv]

    def _process(self, argv: Iterable[str], stdin: int) -> Process:
        return ContainedProcess(self._command(argv), stdin)

    def _console_output(self) -> bytes:
        # The offset is shared with systemd-nspawn, so it must not be moved.
        return os.pread(self._console.fileno(), 1 << 20, 0)


def _children(pid: int) -> list[int]:
    """The child processes of a process that has one thread; none if it has ended."""
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except (FileNotFoundError, ProcessLookupError):
        return []


def _namespace_pids(pid: int) -> list[int]:
    """A process's pids, from the host's to that in the innermost PID namespace; [0] if it has ended."""
    try:
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("NSpid:"):
                return [int(number) for number in line.split()[1:]]
    except (FileNotFoundError, ProcessLookupError):
        pass
    return [0]


def _cgroup2() -> Path:
    """Where cgroup2 is mounted."""
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, path, kind, *_ = line.split()
        if kind == "cgroup2":
            return Path(path)
    raise MachineError("cannot boot a machine: no cgroup2 file system is mounted on this host")


def _clear_cgroups(hierarchy: Path) -> None:
    """Remove the cgroups of test runs that were killed."""
    for cgroup in hierarchy.glob(f"{CGROUP_PREFIX}*"):
        owner = cgroup.name.removeprefix(CGROUP_PREFIX).partition("-")[0]
        if not Path("/proc", owner).exists():
            _remove_cgroup(cgroup)


def _remove_cgroup(cgroup: Path, deadline: float = 30.0) -> None:
    """Wait until nothing runs in a cgroup any more, then remove it with all below it."""
    end = time.monotonic() + deadline
    with open(cgroup / "cgroup.events") as events:
        # cgroups(7): a change of this file is reported as an exceptional condition.
        poller = select.poll()
        poller.register(events, select.POLLPRI)
        while "populated 1" in events.read():
            if time.monotonic() > end:
                raise MachineError(f"cannot end a machine: {cgroup} still has processes after {deadline:g} s")
            poller.poll(1000)
            events.seek(0)
    for directory, _, _ in os.walk(cgroup, topdown=False):
        os.rmdir(directory)
