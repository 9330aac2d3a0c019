r"""A Debian machine on its suite's own kernel, booted by QEMU for the length of a with-block, and root's shell in it.

    with Kernel("debian-12", tree, "[global]\n...", package) as kernel:
        kernel.run("cd /opt/hitlessd && python3 -m pytest tests/test_relay_flow.py", timeout=100)

machine.py is ten times as fast, but its machines share the host's kernel. Here KVM is used where it works; it may be
there and yet not boot, and then QEMU computes every instruction itself (TCG): a boot takes half a minute, and what has
deadlines must be patient.

The image's disk (image.py) is never written to; the files come on a second one, as a tar archive. The first serial line
is the console, the second one the shell. Nothing outlives the with-block, nor the thread that booted it.
"""

import contextlib
import itertools
import os
import select
import shlex
import subprocess
import tarfile
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Self

from image import SUITES, disk_path, image_path
from machine import (
    ARTEFACTS,
    ENVIRONMENT,
    MachineError,
    add_text,
    artefacts_directory,
    owned_source,
)

__all__ = ["SUITES", "Kernel"]

CPUS = 2

# No mitigations: they cost, above all without KVM, and protect nothing here.
COMMAND_LINE = (
    "root=/dev/vda rw console=ttyS0 panic=-1 mitigations=off systemd.getty_auto=no systemd.wants=serial-shell.service"
)

QEMU = (
    *("qemu-system-x86_64", "-nodefaults", "-display", "none"),
    *("-cpu", "max", "-smp", str(CPUS), "-m", "2G", "-append", COMMAND_LINE),
    *("-chardev", "stdio,id=shell,signal=off", "-serial", "chardev:console", "-serial", "chardev:shell"),
)

DEADLINES = {"kvm": 10.0, "tcg": 150.0}
"""Seconds for a boot by each of QEMU's accelerators, in the order in which they are tried. It must work with the last
one; what an earlier one did not boot in time is not tried again."""

SOURCES = ("hitlessd", "tests", "vm-tests", "pyproject.toml")
"""What of the source tree is in /opt/hitlessd, beside what is installed."""

PACKAGE = "root/hitlessd.deb"
INSTALL_PACKAGE = ("dpkg", "--force-confold", "--install", f"/{PACKAGE}")
"""As apt does when nothing else is missing; with our configuration, which is there already."""

_marks = itertools.count(1)
_refused: set[str] = set()


class Kernel:
    """The image `name`, a key of SUITES, booted with a source tree and with the Debian package made of it.

    The package comes as apt installs it: its service and socket are enabled and have been started. All times are in
    seconds. Entering the with-block boots as far as multi-user.target; leaving it ends the machine at once, as a power
    cut would. Leaving by an exception keeps the console. Not safe for use by several threads at once.
    """

    def __init__(self, name: str, tree: Path, configuration: str, package: Path, artefacts: Path = ARTEFACTS) -> None:
        self.name = name
        self.tree = tree
        self.package = package
        self.configuration = configuration
        self.artefacts = artefacts
        self.accelerator = ""
        """How it was booted in the end."""
        self._cleanup = contextlib.ExitStack()

    def __repr__(self) -> str:
        return f"<Kernel {self.name}>"

    def __enter__(self) -> Self:
        if not disk_path(self.name).exists():
            raise MachineError(f"cannot boot {self.name}: there is no image; run `python vm-tests/image.py` as root")
        with contextlib.ExitStack() as self._cleanup:
            self._console = self._cleanup.enter_context(tempfile.NamedTemporaryFile("a+b"))
            archive = self._cleanup.enter_context(tempfile.NamedTemporaryFile())
            with tarfile.open(fileobj=archive, mode="w") as content:
                add_text(content, "/etc/hitlessd/hitlessd.conf", self.configuration)
                content.add(self.package, PACKAGE)
                for source in SOURCES:
                    content.add(self.tree / source, f"opt/hitlessd/{source}", filter=owned_source)
            archive.flush()
            *attempts, last = (each for each in DEADLINES if each not in _refused)
            if not any(self._boot(each, archive.name) for each in attempts):
                _refused.update(attempts)
                if not self._boot(last, archive.name):
                    said = self._console_output()[-4000:].decode(errors="replace")
                    raise MachineError(f"cannot boot {self.name} in QEMU; the last of its console:\n{said}")
            installed = self.run(shlex.join(INSTALL_PACKAGE), timeout=DEADLINES["tcg"])
            if installed.returncode:
                raise MachineError(f"cannot install hitlessd on {self.name}: {installed.stdout}")
            # Only now is it left to __exit__.
            self._cleanup = self._cleanup.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is not None and issubclass(kind, Exception):
            self.keep(self.name)
        self._cleanup.close()

    def run(self, command: str, timeout: float = 60.0) -> subprocess.CompletedProcess[str]:
        """Run a shell's command as root: its exit status, and in `stdout` what it wrote to stdout and stderr.

        What it leaves running must not write to the shell's output. After `timeout`: TimeoutError, and the machine is
        of no more use; MachineError if it dies.
        """
        mark = f"--- end of command {next(_marks)}, exit status "
        # In two parts, lest an echo be taken for it.
        text = f"(\n{command}\n) </dev/null 2>&1; printf '%s%s %d\\n' '{mark[:5]}' '{mark[5:-1]}' $?\n"
        self._tell(text)
        output, status = self._read(mark, timeout)
        return subprocess.CompletedProcess(command, int(status), output, "")

    def reboot(self) -> None:
        """Reboot in order, and return at multi-user.target. The disk stays, what was in memory does not."""
        self._tell("systemctl --no-block reboot; exit\n")
        # It has to go down as well.
        self._read("ready", 2 * DEADLINES["tcg"])

    def keep(self, label: str) -> Path:
        """Keep the console's output and the journal in the directory LABEL of `artefacts`, and return its path."""
        directory = artefacts_directory(self.artefacts, label)
        if not self._console.closed:
            (directory / "console.log").write_bytes(self._console_output())
        # The machine may be the very thing that failed.
        with contextlib.suppress(AssertionError, AttributeError, MachineError, OSError):
            said = self.run("journalctl --boot --output=short-precise --no-pager", timeout=30).stdout
            (directory / "journal.log").write_text(said)
        return directory

    # Within

    def _boot(self, accelerator: str, archive: str) -> bool:
        """Boot until the shell is there; False if that cannot be, and then nothing is left of the try."""
        root = image_path(self.name)
        begin = time.monotonic()
        with contextlib.ExitStack() as attempt:
            self._qemu = attempt.enter_context(
                subprocess.Popen(
                    [
                        *("setpriv", "--pdeathsig=KILL", *QEMU, "-accel", accelerator),
                        *("-kernel", str(root / "vmlinuz"), "-initrd", str(root / "initrd.img")),
                        *("-drive", f"file={disk_path(self.name)},format=raw,if=virtio,snapshot=on"),
                        *("-drive", f"file={archive},format=raw,if=virtio,readonly=on"),
                        *("-chardev", f"file,id=console,path={self._console.name},append=on"),
                    ],
                    bufsize=0,
                    env=ENVIRONMENT,
                    start_new_session=True,  # the terminal's Ctrl-C is for pytest, which then ends us in order
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=self._console,
                )
            )
            attempt.callback(self._qemu.kill)
            try:
                self._read("ready", DEADLINES[accelerator])
            except (MachineError, TimeoutError):
                return False
            self._cleanup.push(attempt.pop_all())
        self.accelerator = f"{accelerator}, booted in {time.monotonic() - begin:.0f} s"
        return True

    def _tell(self, text: str) -> None:
        assert self._qemu.stdin is not None
        self._qemu.stdin.write(text.encode())

    def _read(self, mark: str, timeout: float) -> tuple[str, str]:
        """Read until a line begins with `mark`: what came before, and the rest of that line."""
        end = time.monotonic() + timeout
        output = b"\n"
        reader = self._qemu.stdout
        assert reader is not None
        while True:
            before, found, rest = output.partition(b"\n" + mark.encode())
            if found and b"\n" in rest:
                return before[1:].decode(errors="replace"), rest.decode(errors="replace").strip()
            if not select.select([reader], [], [], max(0.0, end - time.monotonic()))[0]:
                said = output[-4000:].decode(errors="replace")
                raise TimeoutError(f"not within {timeout:g} s on {self.name}: {mark}; it said:\n{said}")
            if not (data := os.read(reader.fileno(), 65536)):
                raise MachineError(f"cannot wait for {mark}: {self.name} has died")
            output += data.replace(b"\r", b"")

    def _console_output(self) -> bytes:
        return Path(self._console.name).read_bytes()
