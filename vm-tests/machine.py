"""A Debian machine with systemd as PID 1, booted for the length of a with-block; what the tests do to it and ask it.

    with Container("debian-13") as machine:
        machine.install(tree, "[global]\n...")
        machine.run("systemctl", "start", "hitlessd")

container.py boots it in a second, on the host's kernel; kernel.py on the suite's own, which takes a minute. Nothing of
it outlives the with-block.
"""

from __future__ import annotations

import abc
import contextlib
import io
import json
import select
import subprocess
import tarfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from image import SUITES
from payload import INSTALL_COMMANDS, add_hitlessd, add_text, owned_by_root

__all__ = ["ARTEFACTS", "ENVIRONMENT", "SUITES", "Machine", "MachineError", "Process"]

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


class MachineError(Exception):
    """A machine cannot be booted, or died, or did not do what it was told."""


class Process(subprocess.Popen[str]):
    """A process in a machine; on the host another one stands for it. Signals go to the one in the machine."""

    def __init__(self, command: Sequence[str], stdin: int) -> None:
        """`command` is the host's."""
        super().__init__(
            command,
            encoding="utf-8",
            env=ENVIRONMENT,
            errors="replace",
            start_new_session=True,
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    @property
    def inside_pid(self) -> int:
        """Its pid as the machine counts; 0 if it has ended."""
        raise NotImplementedError


class Machine(abc.ABC):
    """One boot of the image `name`, a key of SUITES. Not safe for use by several threads at once, run() excepted.

    All times are in seconds of a machine that is as fast as the host and has it for itself: `patience` times as long is
    waited. Entering the with-block boots, and returns when the boot has finished; leaving it ends the machine at once,
    as a power cut would. Leaving by an exception keeps the artefacts.
    """

    pace = 1.0
    """How many times as long as on the host everything takes; who makes a load, makes less of it."""
    patience = 3.0

    def __init__(self, name: str, artefacts: Path = ARTEFACTS) -> None:
        self.name = name
        self.suite = SUITES.get(name, "")
        self.artefacts = artefacts
        self._cleanup = contextlib.ExitStack()
        self._started: list[Process] = []
        self._life = -1
        """A descriptor that can be read when the machine has died."""

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as self._cleanup:
            self._boot()
            # Only now is it left to __exit__.
            self._cleanup = self._cleanup.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is not None and issubclass(kind, Exception):
            self.keep(self.name)
        self._cleanup.close()

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
                stdout, stderr = process.communicate(input, timeout * self.patience)
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
            archive.add(path, inside.lstrip("/"), filter=owned_by_root)

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
        end = time.monotonic() + deadline * self.patience
        poller = select.poll()
        poller.register(self._life, select.POLLIN)
        while True:
            if value := condition():
                return value
            left = end - time.monotonic()
            if left <= 0:
                raise TimeoutError(f"not within {deadline * self.patience:g} s on {self.name}: {what}")
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
        (directory / "console.log").write_bytes(self._console_output())
        for name, argv in EVIDENCE.items():
            # The machine may be the very thing that failed.
            with contextlib.suppress(MachineError, subprocess.TimeoutExpired):
                (directory / name).write_text(self.run(*argv, check=False, timeout=20).stdout)
        return directory

    # Processes of a unit, for who kills them

    @abc.abstractmethod
    def processes(self, unit: str) -> tuple[int, list[int]]:
        """The main process, 0 if there is none, and its children, as kill() knows them."""

    @abc.abstractmethod
    def kill(self, pid: int, number: int) -> bool:
        """Send a signal to a process that processes() has told; False if it is gone."""

    # Within

    @abc.abstractmethod
    def _boot(self) -> None:
        """Boot; what ends the machine goes to self._cleanup."""

    @abc.abstractmethod
    def _command(self, argv: Iterable[str]) -> list[str]:
        """The host's command that runs `argv` in the machine, and is ended with the thread that starts it."""

    @abc.abstractmethod
    def _process(self, argv: Iterable[str], stdin: int) -> Process:
        """Start a command."""

    @abc.abstractmethod
    def _console_output(self) -> bytes:
        """What the console has shown."""

    def _end_started(self) -> None:
        for process in self._started:
            with process:
                process.kill()

    @contextlib.contextmanager
    def _unpacking(self) -> Iterator[tarfile.TarFile]:
        """An archive to fill, which is then unpacked in the machine's root directory.

        Writing to /proc/PID/root would be simpler, but follows absolute symbolic links into the host.
        """
        content = io.BytesIO()
        with tarfile.open(fileobj=content, mode="w") as archive:
            yield archive
        argv = self._command(["tar", "--extract", "--keep-directory-symlink", "--directory=/"])
        result = subprocess.run(
            argv, capture_output=True, env=ENVIRONMENT, input=content.getvalue(), timeout=60 * self.patience
        )
        if result.returncode:
            raise MachineError(f"cannot unpack files on {self.name}: {result.stderr.decode(errors='replace')}")


EVIDENCE = {
    "journal.log": ["journalctl", "--output=short-precise", "--all", "--no-pager"],
    "units.log": ["systemctl", "--no-pager", "--full", "--all", "status", "hitlessd*"],
    "failed.log": ["systemctl", "--no-pager", "--failed", "--plain"],
    "processes.log": ["ps", "-e", "-ww", "-o", "pid,ppid,user,stat,etimes,wchan:20,args", "--forest"],
    "sockets.log": ["ss", "--all", "--numeric", "--processes", "--extended"],
}
"""Files that keep() writes, with the commands they come from."""


def artefacts_directory(artefacts: Path, label: str) -> Path:
    """The directory for what is kept about `label`."""
    directory = artefacts / "".join(c if c.isalnum() or c in "-_.[]" else "-" for c in label)
    directory.mkdir(parents=True, exist_ok=True)
    return directory
