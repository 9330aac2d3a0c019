"""Machines that QEMU boots: a Debian suite on its own kernel.

container.py is ten times as fast, but its machines share the host's kernel. A program in one of these is run by ssh(1),
any number at once over one connection, which goes through a port of virtio-serial and so needs no network. Nothing
outlives the with-block, nor the thread that booted it.
"""

from __future__ import annotations

import itertools
import os
import select
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path

from image import SUITES, disk_path
from machine import ARTEFACTS, ENVIRONMENT, Machine, MachineError, Process
from qemu import DEADLINES, booted

__all__ = ["SUITES", "Kernel"]

PACES = {"kvm": 1.0, "tcg": 8.0}

# Connects ssh(1) with the port's socket, and leaves (ProxyUseFdpass).
PROXY = """\
import socket, sys
port = socket.socket(socket.AF_UNIX)
port.connect(sys.argv[1])
socket.send_fds(socket.socket(fileno=1), [b"x"], [port.fileno()])
"""
# Runs "$@" under a number by which signals find it.
STARTED = 'mkdir -p /run/started; echo $$ >/run/started/{number}; exec "$@"'

_numbers = itertools.count(1)


class RemoteProcess(Process):
    """A process behind ssh(1). Signals go to it by a command of their own."""

    kernel: Kernel
    number: int

    @property
    def inside_pid(self) -> int:
        def told() -> str:
            if self.poll() is not None:
                return "0"
            return self.kernel.run("cat", f"/run/started/{self.number}", check=False).stdout.strip()

        return int(self.kernel.wait_until(told, 5, "a pid"))

    def send_signal(self, sig: int) -> None:
        if self.poll() is None and self.kernel.alive and (pid := self.inside_pid):
            self.kernel.run("kill", f"-{int(sig)}", str(pid), check=False)
        if sig == signal.SIGKILL:
            super().send_signal(sig)


class Kernel(Machine):
    """A machine of QEMU's; entering the with-block boots as far as multi-user.target."""

    def __init__(self, name: str, artefacts: Path = ARTEFACTS) -> None:
        super().__init__(name, artefacts)
        self.accelerator = ""
        """How it was booted in the end."""

    def __repr__(self) -> str:
        return f"<Kernel {self.name}>"

    @property
    def alive(self) -> bool:
        return self._qemu.poll() is None

    def reboot(self) -> None:
        """Reboot in order, and return at multi-user.target. The disk stays, what was in memory does not."""
        self._master.kill()
        self._master.wait()
        self._qemu.tell("systemctl --no-block reboot; exit\n")
        # It has to go down as well.
        self._qemu.hear("ready", 2 * DEADLINES[self._qemu.accelerator])
        self._connect()

    def processes(self, unit: str) -> tuple[int, list[int]]:
        main = int(self.property(unit, "MainPID"))
        children = self.run("pgrep", "-P", str(main), check=False).stdout if main else ""
        return main, [int(pid) for pid in children.split()]

    def kill(self, pid: int, number: int) -> bool:
        return self.run("kill", f"-{int(number)}", str(pid), check=False).returncode == 0

    # Within

    def _boot(self) -> None:
        if not disk_path(self.name).exists():
            raise MachineError(f"cannot boot {self.name}: there is no image; run `python vm-tests/image.py` as root")
        begin = time.monotonic()
        self._qemu = self._cleanup.enter_context(booted(self.name))
        self._life = os.pidfd_open(self._qemu.pid)
        self._cleanup.callback(os.close, self._life)
        self.pace = PACES[self._qemu.accelerator]
        self.patience = 2 * self.pace + 1
        self.accelerator = f"{self._qemu.accelerator}, booted in {time.monotonic() - begin:.0f} s"
        self._connect()

    def _connect(self) -> None:
        """Have sshd(8) answer."""
        # The clock of a machine that was not booted just now is late.
        self._qemu.tell(f"date -s @{time.time():.0f} >/dev/null; systemctl start machine-ssh.service\n")
        # What was killed has left its socket, beside which ssh(1) would not listen for others.
        self._control.unlink(missing_ok=True)
        proxy = shlex.join([sys.executable, "-c", PROXY, str(self._qemu.port)])
        command = [
            *("setpriv", "--pdeathsig=KILL", *self._ssh(), "-o", f"ProxyCommand={proxy}"),
            *("-o", "ProxyUseFdpass=yes", "-M", "-n", "-T", "machine", "echo connected; exec sleep inf"),
        ]
        end = time.monotonic() + DEADLINES[self._qemu.accelerator]
        while not self._connected(command, end):
            # It has ended: sshd(8) may have met what was left in the port, and is there again in a second.
            if time.monotonic() > end:
                raise MachineError(f"cannot reach {self.name}: sshd does not answer")
            select.select([], [], [], 1.0)
        self._cleanup.callback(self._end_started)

    def _connected(self, command: list[str], end: float) -> bool:
        self._master = self._cleanup.enter_context(
            subprocess.Popen(
                command,
                env=ENVIRONMENT,
                start_new_session=True,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
            )
        )
        self._cleanup.callback(self._master.kill)
        assert self._master.stdout is not None
        left = max(0.0, end - time.monotonic())
        return bool(select.select([self._master.stdout], [], [], left)[0] and self._master.stdout.readline())

    @property
    def _control(self) -> Path:
        return self._qemu.port.with_name("control")

    def _ssh(self) -> list[str]:
        options = (
            "BatchMode=yes",
            f"ControlPath={self._control}",
            f"IdentityFile={self._qemu.key}",
            "LogLevel=ERROR",
            "StrictHostKeyChecking=no",
            "User=root",
            "UserKnownHostsFile=/dev/null",
        )
        return ["ssh", "-F", "/dev/null", *(word for option in options for word in ("-o", option))]

    def _command(self, argv: Iterable[str]) -> list[str]:
        return ["setpriv", "--pdeathsig=KILL", *self._ssh(), "-T", "machine", "--", shlex.join(argv)]

    def _process(self, argv: Iterable[str], stdin: int) -> Process:
        number = next(_numbers)
        process = RemoteProcess(self._command(["sh", "-c", STARTED.format(number=number), "sh", *argv]), stdin)
        process.kernel, process.number = self, number
        return process

    def _console_output(self) -> bytes:
        return self._qemu.console.read_bytes()
