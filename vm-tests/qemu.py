"""QEMU, with a Debian suite's own kernel, and root's shell in it.

KVM is used where it works; it may be there and yet not boot, and then QEMU computes every instruction itself (TCG): a
boot takes half a minute, and what has deadlines must be patient. So what a computed machine is after its boot is kept
beside the image, and the next one goes on from there.

The image's disk (image.py) is never written to; the first files come on a second one, as a tar archive. The first
serial line is the console, the second one the shell; a third goes to sshd(8), see kernel.py.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import select
import socket
import subprocess
import tarfile
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from image import disk_path, image_path
from machine import ENVIRONMENT, MachineError
from payload import add_text

__all__ = ["DEADLINES", "Qemu", "booted"]

CPUS = 2

# No mitigations: they cost, above all without KVM, and protect nothing here.
COMMAND_LINE = (
    "root=/dev/vda rw console=ttyS0 panic=-1 mitigations=off systemd.getty_auto=no systemd.wants=serial-shell.service"
)

_QEMU = (
    *("qemu-system-x86_64", "-nodefaults", "-display", "none"),
    *("-cpu", "max", "-smp", str(CPUS), "-m", "2G", "-append", COMMAND_LINE),
    *("-chardev", "stdio,id=shell,signal=off", "-serial", "chardev:console", "-serial", "chardev:shell"),
    *("-device", "virtio-serial", "-device", "virtserialport,chardev=ssh,name=ssh"),
)

DEADLINES = {"kvm": 10.0, "tcg": 300.0}
"""Seconds for a boot by each of QEMU's accelerators, in the order in which they are tried. It must work with the last
one; what an earlier one did not boot in time is not tried again."""

SSHD_CONFIG = """\
AuthorizedKeysFile /etc/machine-ssh/authorized_keys
HostKey /etc/machine-ssh/key
MaxSessions 1000
PermitRootLogin yes
StrictModes no
SetEnv {environment}
"""
SSHD_UNIT = """\
[Service]
ExecStartPre=/sbin/modprobe virtio_console
ExecStart=/bin/sh -c 'exec /usr/sbin/sshd -i -f /etc/machine-ssh/sshd_config <>/dev/virtio-ports/ssh >&0'
RuntimeDirectory=sshd
StandardError=journal
Restart=always
RestartSec=1
OOMScoreAdjust=-1000
LimitNOFILE=524288
TasksMax=infinity
"""

_refused: set[str] = set()


class Qemu:
    """A running QEMU; `files` is the directory with what it was booted with, `place` one for sockets."""

    def __init__(self, process: subprocess.Popen[bytes], accelerator: str, files: Path, place: Path) -> None:
        self._process = process
        self.pid = process.pid
        self.accelerator = accelerator
        self.key = files / "key"
        self.port = place / "port"
        self.console = place / "console"

    def poll(self) -> int | None:
        return self._process.poll()

    def tell(self, text: str) -> None:
        """Type something into the shell."""
        assert self._process.stdin is not None
        self._process.stdin.write(text.encode())

    def hear(self, mark: str, timeout: float) -> None:
        """Read what the shell says until a line begins with `mark`."""
        end = time.monotonic() + timeout
        output = b"\n"
        reader = self._process.stdout
        assert reader is not None
        while b"\n" + mark.encode() not in output:
            if not select.select([reader], [], [], max(0.0, end - time.monotonic()))[0]:
                said = output[-4000:].decode(errors="replace")
                raise TimeoutError(f"not within {timeout:g} s: {mark}; it said:\n{said}")
            if not (data := os.read(reader.fileno(), 65536)):
                raise MachineError(f"cannot wait for {mark}: the machine has died")
            output += data.replace(b"\r", b"")

    def save(self, memory: Path, timeout: float) -> None:
        """Write what it is to a file, and end it."""
        with socket.socket(socket.AF_UNIX) as sock, sock.makefile("rw") as monitor:
            sock.settimeout(timeout)
            sock.connect(str(self.port.with_name("monitor")))
            monitor.readline()

            def do(command: str, **arguments: str) -> Any:
                monitor.write(json.dumps({"execute": command, "arguments": arguments}) + "\n")
                monitor.flush()
                while "event" in (answer := json.loads(monitor.readline())):
                    pass
                return answer.get("return")

            do("qmp_capabilities")
            do("migrate", uri=f"exec:cat >{memory}")
            end = time.monotonic() + timeout
            while (status := do("query-migrate").get("status")) != "completed":
                if status in ("failed", "cancelled") or time.monotonic() > end:
                    raise MachineError(f"cannot keep the state of a machine: {status}")
                select.select([], [], [], 0.1)
            do("quit")
        self._process.wait(timeout)


@contextlib.contextmanager
def booted(name: str) -> Iterator[Qemu]:
    """The image `name` in QEMU, at multi-user.target, with the shell."""
    *attempts, last = (each for each in DEADLINES if each not in _refused)
    with contextlib.ExitStack() as stack:
        for accelerator in attempts:
            with contextlib.ExitStack() as attempt, contextlib.suppress(MachineError, TimeoutError):
                files = Path(attempt.enter_context(tempfile.TemporaryDirectory(prefix="hitlessd-vm-")))
                _write_files(files)
                qemu = attempt.enter_context(_running(name, accelerator, files, f"{disk_path(name)},format=raw"))
                qemu.hear("ready", DEADLINES[accelerator])
                stack.push(attempt.pop_all())
                break
            _refused.add(accelerator)
        else:
            files = _state(name, last)
            disk = f"{files}/disk.qcow2,format=qcow2"
            qemu = stack.enter_context(_running(name, last, files, disk, "-incoming", f"exec:cat {files}/memory"))
        yield qemu


def _state(name: str, accelerator: str) -> Path:
    """The directory with what a machine is after its boot: made by the first who wants it."""
    root = image_path(name)
    version = subprocess.run([_QEMU[0], "--version"], check=True, capture_output=True, text=True).stdout
    # A disk that was made anew is another one.
    recipe = repr((version, _QEMU, SSHD_CONFIG, SSHD_UNIT, ENVIRONMENT, disk_path(name).stat().st_mtime_ns))
    place = root.with_name(f"{root.name}-booted-{hashlib.sha256(recipe.encode()).hexdigest()[:12]}")
    with open(root.with_name(f".{place.name}.lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not place.is_dir():
            with tempfile.TemporaryDirectory(dir=root.parent, prefix=f".{root.name}.") as scratch:
                new = Path(scratch) / "new"
                new.mkdir(0o700)
                _write_files(new)
                base = ("-b", str(disk_path(name)), "-F", "raw")
                command = ["qemu-img", "create", "-q", "-f", "qcow2", *base, str(new / "disk.qcow2")]
                subprocess.run(command, check=True, capture_output=True)
                with _running(name, accelerator, new, f"{new}/disk.qcow2,format=qcow2", snapshot="off") as qemu:
                    try:
                        qemu.hear("ready", DEADLINES[accelerator])
                    except (MachineError, TimeoutError) as error:
                        said = qemu.console.read_bytes()[-4000:].decode(errors="replace")
                        raise MachineError(f"cannot boot {name}: {error}; the last of its console:\n{said}") from None
                    qemu.save(new / "memory", DEADLINES[accelerator])
                new.rename(place)
    return place


def _write_files(files: Path) -> None:
    """What a machine is booted with, for the second disk, and the key to it."""
    for key in ("key", "host_key"):
        argv = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(files / key)]
        subprocess.run(argv, check=True, stdin=subprocess.DEVNULL)
    with tarfile.open(files / "files.tar", mode="w") as content:
        environment = " ".join(f'{name}="{value}"' for name, value in ENVIRONMENT.items())
        add_text(content, "/etc/machine-ssh/sshd_config", SSHD_CONFIG.format(environment=environment))
        add_text(content, "/etc/machine-ssh/authorized_keys", (files / "key.pub").read_text())
        add_text(content, "/etc/machine-ssh/key", (files / "host_key").read_text(), 0o600)
        add_text(content, "/etc/systemd/system/machine-ssh.service", SSHD_UNIT)


@contextlib.contextmanager
def _running(name: str, accelerator: str, files: Path, disk: str, *more: str, snapshot: str = "on") -> Iterator[Qemu]:
    root = image_path(name)
    with tempfile.TemporaryDirectory(prefix="hitlessd-vm-") as directory:
        place = Path(directory)
        command = [
            *("setpriv", "--pdeathsig=KILL", *_QEMU, "-accel", accelerator),
            *("-kernel", str(root / "vmlinuz"), "-initrd", str(root / "initrd.img")),
            *("-drive", f"file={disk},if=virtio,snapshot={snapshot}"),
            *("-drive", f"file={files}/files.tar,format=raw,if=virtio,readonly=on"),
            *("-chardev", f"file,id=console,path={place}/console,append=on"),
            *("-chardev", f"socket,id=ssh,path={place}/port,server=on,wait=off"),
            *("-qmp", f"unix:{place}/monitor,server=on,wait=off"),
            *more,
        ]
        with (
            open(place / "console", "ab") as console,
            subprocess.Popen(
                command,
                bufsize=0,
                env=ENVIRONMENT,
                start_new_session=True,  # the terminal's Ctrl-C is for pytest, which then ends us in order
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=console,
            ) as process,
        ):
            try:
                yield Qemu(process, accelerator, files, place)
            finally:
                process.kill()
