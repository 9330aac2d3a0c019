"""A Debian machine with systemd as PID 1, booted for the length of a with-block; what the tests do to it and ask it.

    with Machine("debian-13") as machine:
        machine.install(tree, "[global]\n...")
        machine.run("systemctl", "start", "hitlessd")

systemd-nspawn boots it in a second from a read-only image (image.py) below an overlay in memory, in its own network
with nothing but a loopback interface. It needs root and a mounted cgroup2, which may be one without controllers: beside
cgroup v1 the machine still sees a pure cgroup2 hierarchy, as systemd 257 demands, though no memory or CPU limits work.

Nothing of a machine outlives the with-block, nor, but for an empty cgroup that the next boot clears away, a test run
that is killed: the processes form a tree of PID namespaces that ends with its root, and that ends with the thread that
booted it. The host's limits hold inside too: where it has no CAP_SYS_RESOURCE, LimitNOFILE= cannot exceed its own.
"""

import contextlib
import io
import itertools
import json
import os
import select
import signal
import socket
import subprocess
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from image import SUITES, image_path

__all__ = ["SUITES", "Machine", "MachineError", "Process"]

T = TypeVar("T")

ARTEFACTS = Path(__file__).resolve().parent / "artefacts"

ENVIRONMENT = {
    "HOME": "/root",
    "LANG": "C.UTF-8",
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "SYSTEMD_COLORS": "0",
    "SYSTEMD_PAGER": "",
    "TERM": "dumb",
}
"""The whole environment of what runs in a machine, and of what boots it: nothing of the host's leaks in."""

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

INSTALLED_SCRIPT = "#!/usr/bin/python3\nimport sys\n\nfrom hitlessd.{module} import main\n\nsys.exit(main())\n"

_serial = itertools.count(1)


class MachineError(Exception):
    """A machine cannot be booted, or died, or did not do what it was told."""


class Process(subprocess.Popen[str]):
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


class Machine:
    """One boot of the image `name`, a key of SUITES. Not safe for use by several threads at once, run() excepted.

    `boot_deadline` and all other times are in seconds. Entering the with-block boots, and returns when the boot has
    finished; leaving it ends the machine at once, as a power cut would. Leaving by an exception keeps the artefacts.
    """

    def __init__(self, name: str, boot_deadline: float = 60.0, artefacts: Path = ARTEFACTS) -> None:
        self.name = name
        self.suite = SUITES.get(name, "")
        self.boot_deadline = boot_deadline
        self.artefacts = artefacts
        self.leader = 0
        """The host's pid for the machine's PID 1; 0 when there is none."""
        self._label = f"{os.getpid()}-{next(_serial)}"
        self._cleanup = contextlib.ExitStack()
        self._started: list[Process] = []

    def __repr__(self) -> str:
        return f"<Machine {self.name}, PID 1 is {self.leader}>"

    def __enter__(self) -> Self:
        root = image_path(self.name)
        if not root.is_dir():
            raise MachineError(f"cannot boot {self.name}: there is no {root}; run `python vm-tests/image.py` as root")
        if os.geteuid() != 0:
            raise MachineError(f"cannot boot {self.name}: only root can")
        with contextlib.ExitStack() as self._cleanup:
            self._console = self._cleanup.enter_context(tempfile.TemporaryFile())
            self._boot(root)
            # Only now is it left to __exit__.
            self._cleanup = self._cleanup.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is not None and issubclass(kind, Exception):
            self.keep(self.name)
        self._cleanup.close()
        self.leader = 0

    # Commands

    def run(
        self, *argv: str, check: bool = True, input: str | None = None, timeout: float = 60.0
    ) -> subprocess.CompletedProcess[str]:
        """Run a command as root and return its exit status and what it wrote; nothing to read unless `input` is given.

        With `check`, an exit status other than 0 raises MachineError. After `timeout` the command is killed, and
        subprocess.TimeoutExpired is raised.
        """
        with self._process(argv, stdin=subprocess.DEVNULL if input is None else subprocess.PIPE) as process:
            try:
                stdout, stderr = process.communicate(input, timeout)
            except BaseException:
                process.kill()
                raise
        if check and process.returncode != 0:
            said = (stderr + stdout).strip()
            raise MachineError(f"cannot {' '.join(argv)!r} on {self.name}: exit status {process.returncode}: {said}")
        return subprocess.CompletedProcess(argv, process.returncode, stdout, stderr)

    def start(self, *argv: str) -> Process:
        """Start a command as root and return it, its stdin, stdout and stderr being text pipes.

        The caller ends it; what is left when the machine ends is ended with it, and so it is when the calling thread
        ends. What writes much needs a reader.
        """
        process = self._process(argv, stdin=subprocess.PIPE)
        self._started.append(process)
        return process

    # Files

    def push(self, path: Path | str, inside: str) -> None:
        """Copy a file or a directory of the host's to the absolute path `inside`; it belongs to root."""
        with self._unpacking() as archive:
            archive.add(path, inside.lstrip("/"), filter=_owned_by_root)

    def write(self, inside: str, text: str, mode: int = 0o644) -> None:
        """Write a file; directories are made as needed."""
        with self._unpacking() as archive:
            add_text(archive, inside, text, mode)

    def read(self, inside: str) -> str:
        """The text of a file."""
        return self.run("cat", "--", inside).stdout

    # systemd

    def property(self, unit: str, name: str) -> str:
        """A unit's property, as `systemctl show` prints it."""
        return self.run("systemctl", "show", f"--property={name}", "--value", "--", unit).stdout.rstrip("\n")

    def journal(self, unit: str | None = None, since_cursor: str | None = None) -> list[dict[str, Any]]:
        """The journal's entries: only those about `unit` if given, only those after `since_cursor` if given.

        An entry maps field names to text, or to a list of bytes if the value is not UTF-8
        (https://systemd.io/JOURNAL_EXPORT_FORMATS/).
        """
        argv = ["journalctl", "--output=json", "--all", "--no-pager", "--quiet"]
        argv += [f"--unit={unit}"] if unit is not None else []
        argv += [f"--after-cursor={since_cursor}"] if since_cursor is not None else []
        self._sync_journal()
        return [json.loads(line) for line in self.run(*argv).stdout.splitlines()]

    def journal_cursor(self) -> str:
        """The place of the journal's last entry, to pass as `since_cursor`."""
        self._sync_journal()
        entries = self.run("journalctl", "--output=json", "--lines=1", "--no-pager", "--quiet").stdout
        return str(json.loads(entries)["__CURSOR"])

    def _sync_journal(self) -> None:
        # What has been logged so far may still be on its way to journald.
        self.run("journalctl", "--sync")

    # Waiting

    def wait_until(self, condition: Callable[[], T], deadline: float, what: str) -> T:
        """Ask until `condition` returns something true, and return that. After `deadline` seconds: TimeoutError."""
        end = time.monotonic() + deadline
        poller = select.poll()
        poller.register(self._leader_pidfd, select.POLLIN)
        while True:
            if value := condition():
                return value
            left = end - time.monotonic()
            if left <= 0:
                raise TimeoutError(f"not within {deadline:g} s on {self.name}: {what}")
            if poller.poll(min(left, 0.02) * 1000):
                raise MachineError(f"cannot wait for {what}: {self.name} has died")

    # hitlessd

    def install(self, tree: Path | str, configuration: str) -> None:
        """Install hitlessd from the source directory `tree` as the Debian package does, and start nothing.

        `configuration` becomes /etc/hitlessd/hitlessd.conf. May be repeated: then it is an upgrade.
        """
        with self._unpacking() as archive:
            add_hitlessd(archive, Path(tree), configuration)
        for argv in INSTALL_COMMANDS:
            self.run(*argv)

    # Evidence

    def keep(self, label: str) -> Path:
        """Keep what helps to understand a failure in the directory LABEL of `artefacts`, and return its path."""
        directory = artefacts_directory(self.artefacts, label)
        if not self._console.closed:
            (directory / "console.log").write_bytes(self._console_output())
        for name, argv in EVIDENCE.items():
            # The machine may be the very thing that failed.
            with contextlib.suppress(MachineError, subprocess.TimeoutExpired):
                (directory / name).write_text(self.run(*argv, check=False, timeout=20).stdout)
        return directory

    # Within

    def _boot(self, root: Path) -> None:
        """Start systemd-nspawn and wait until systemd says that the boot has finished."""
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
        self._leader_pidfd = os.pidfd_open(self.leader)
        self._cleanup.callback(os.close, self._leader_pidfd)

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
        for process in self._started:
            with process:
                process.kill()
        self.leader = 0
        # systemd-nspawn is PID 1 of a namespace, and so it ends only when all in there is dead and reaped. unshare(1)
        # waits for it; to kill that one would leave nobody who does.
        if nspawn := _children(supervisor.pid):
            os.kill(nspawn[0], signal.SIGKILL)
        else:
            supervisor.kill()
        supervisor.wait(30)

    def _nsenter(self, argv: Iterable[str]) -> list[str]:
        """The command that runs `argv` in the machine.

        Should we be killed, so is nsenter(1): stopped together with its child it would never reap it, and a PID
        namespace lasts until all in it are reaped.
        """
        if not self.leader:
            raise MachineError(f"cannot run a command on {self.name}: it is not running")
        return ["setpriv", "--pdeathsig=KILL", "nsenter", f"--target={self.leader}", "--all", "--", *argv]

    def _process(self, argv: Iterable[str], stdin: int) -> Process:
        return Process(
            self._nsenter(argv),
            encoding="utf-8",
            env=ENVIRONMENT,
            errors="replace",
            start_new_session=True,
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    @contextlib.contextmanager
    def _unpacking(self) -> Iterator[tarfile.TarFile]:
        """An archive to fill, which is then unpacked in the machine's root directory.

        Writing to /proc/PID/root would be simpler, but follows absolute symbolic links into the host.
        """
        content = io.BytesIO()
        with tarfile.open(fileobj=content, mode="w") as archive:
            yield archive
        argv = self._nsenter(["tar", "--extract", "--keep-directory-symlink", "--directory=/"])
        result = subprocess.run(argv, capture_output=True, env=ENVIRONMENT, input=content.getvalue(), timeout=60)
        if result.returncode:
            raise MachineError(f"cannot unpack files on {self.name}: {result.stderr.decode(errors='replace')}")

    def _console_output(self) -> bytes:
        # The offset is shared with systemd-nspawn, so it must not be moved.
        return os.pread(self._console.fileno(), 1 << 20, 0)


INSTALLED_UNITS = {
    ".catalog": "usr/lib/systemd/catalog/{name}",
    ".service": "usr/lib/systemd/system/{name}",
    ".socket": "usr/lib/systemd/system/{name}",
    ".sysusers": "usr/lib/sysusers.d/{stem}.conf",
    ".tmpfiles": "usr/lib/tmpfiles.d/{stem}.conf",
}
"""Where a file in units/ goes, by its suffix. What has another suffix is documentation."""

INSTALL_COMMANDS = (
    ("mkdir", "-p", "/etc/hitlessd/conf.d"),
    ("python3", "-m", "compileall", "-q", "/usr/lib/python3/dist-packages/hitlessd"),
    ("systemd-sysusers", "hitlessd.conf"),
    ("systemd-tmpfiles", "--create", "hitlessd.conf"),
    ("journalctl", "--update-catalog"),
    ("systemctl", "daemon-reload"),
)
"""What the Debian package does when its files are there."""

EVIDENCE = {
    "journal.log": ["journalctl", "--output=short-precise", "--all", "--no-pager"],
    "units.log": ["systemctl", "--no-pager", "--full", "--all", "status", "hitlessd*"],
    "failed.log": ["systemctl", "--no-pager", "--failed", "--plain"],
    "processes.log": ["ps", "-e", "-ww", "-o", "pid,ppid,user,stat,etimes,wchan:20,args", "--forest"],
    "sockets.log": ["ss", "--all", "--numeric", "--processes", "--extended"],
}
"""Files that keep() writes, with the commands they come from."""


def add_hitlessd(archive: tarfile.TarFile, tree: Path, configuration: str) -> None:
    """Add what the Debian package contains, from a source tree, and the configuration."""
    archive.add(tree / "hitlessd", "usr/lib/python3/dist-packages/hitlessd", filter=owned_source)
    for unit in sorted((tree / "units").iterdir()):
        if place := INSTALLED_UNITS.get(unit.suffix):
            archive.add(unit, place.format(name=unit.name, stem=unit.stem), filter=_owned_by_root)
    add_text(archive, "/usr/bin/hitlessd", INSTALLED_SCRIPT.format(module="cli"), 0o755)
    add_text(archive, "/usr/bin/hitlessctl", INSTALLED_SCRIPT.format(module="ctl"), 0o755)
    add_text(archive, "/etc/hitlessd/hitlessd.conf", configuration)


def add_text(archive: tarfile.TarFile, inside: str, text: str, mode: int = 0o644) -> None:
    member = tarfile.TarInfo(inside.lstrip("/"))
    content = text.encode()
    member.size, member.mode, member.mtime = len(content), mode, int(time.time())
    archive.addfile(member, io.BytesIO(content))


def artefacts_directory(artefacts: Path, label: str) -> Path:
    """The directory for what is kept about `label`."""
    directory = artefacts / "".join(c if c.isalnum() or c in "-_.[]" else "-" for c in label)
    directory.mkdir(parents=True, exist_ok=True)
    return directory


def _owned_by_root(member: tarfile.TarInfo) -> tarfile.TarInfo:
    member.uid = member.gid = 0
    member.uname = member.gname = "root"
    return member


def owned_source(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
    """A tarfile filter: what belongs to a source tree, and to root."""
    return None if Path(member.name).name == "__pycache__" else _owned_by_root(member)


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
