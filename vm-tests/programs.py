"""Debian's own clients and servers in a machine, with hitlessd between: programs to have sessions with."""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Iterator

from machine import Machine, Process
from service import LOADED, PORT

WORKERS = 2
PATIENCE = 30.0
CONFIGURATION = f"""\
[global]
stats socket = /run/hitlessd/hitlessd.sock mode 600 expose-fd listeners level admin
workers = {WORKERS}
maxconn = 3000
[defaults]
mode = tcp
timeout connect = 5s
timeout client = 5m
timeout server = 5m
[listen postgresql]
bind = 127.0.0.1:8432
server s = 127.0.0.1:5432
[listen ssh]
bind = 127.0.0.1:8022
server s = 127.0.0.1:22
[listen redis]
bind = 127.0.0.1:8379
server s = 127.0.0.1:6379
[listen load]
bind = 127.0.0.1:{PORT}
server s = 127.0.0.1:{LOADED}
"""
SERVERS = r"""
echo 'ListenAddress 127.0.0.1' >/etc/ssh/sshd_config.d/test.conf
systemctl unmask --quiet ssh postgresql redis-server
systemctl start ssh postgresql redis-server

runuser -u postgres -- psql -Xq -c "CREATE ROLE tester LOGIN PASSWORD 'secret'" -c "CREATE DATABASE tester OWNER tester"

mkdir -p -m 700 ~/.ssh
ssh-keygen -q -t ed25519 -N '' -f ~/.ssh/id_ed25519
cp ~/.ssh/id_ed25519.pub ~/.ssh/authorized_keys
echo "balanced $(cat /etc/ssh/ssh_host_ed25519_key.pub)" >~/.ssh/known_hosts
cat >~/.ssh/config <<.
Host balanced
HostName 127.0.0.1
Port 8022
HostKeyAlias balanced
ControlPath ~/.ssh/control
.
head -c 20M /dev/urandom >/srv/file
"""
# Past hitlessd, over PostgreSQL's unix socket; unlike runuser(1), this becomes psql and does not wait for it.
DIRECT = ("setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups", "psql", "-XqAt", "tester")
PSQL = ("psql", "-XqAt", "postgresql://tester:secret@127.0.0.1:8432/tester")
# There and back again within the one connection of the ssh that holds ControlPath, until told that it is enough.
COPY = """
until [ -e /srv/enough ]; do
    scp -q /srv/file balanced:/srv/pushed
    scp -q balanced:/srv/pushed /srv/pulled
    sha256sum </srv/pulled
done
"""


class Conversation:
    """A program in a machine that reads lines and answers in lines; ended with the with-block.

    `echo` is its command for saying "done".
    """

    def __init__(self, machine: Machine, *argv: str, echo: str = "") -> None:
        self._argv = argv
        self._echo = echo
        self._lines: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._process = machine.start("sh", "-c", 'exec "$@" 2>&1', "sh", *argv)
        self._reader = threading.Thread(target=self._read)

    def __enter__(self) -> Conversation:
        self._reader.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._reader.join()
        with self._process:
            pass

    def ask(self, line: str) -> list[str]:
        """Say a line, and hear what it says to that."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{line}\n{self._echo}\n")
        self._process.stdin.flush()
        return list(iter(self.hear, "done"))

    def hear(self) -> str:
        """Its next line."""
        try:
            line = self._lines.get(timeout=PATIENCE)
        except queue.Empty:
            raise TimeoutError(f"not within {PATIENCE:g} s: a line of {' '.join(self._argv)}") from None
        assert line, f"{' '.join(self._argv)} has ended"
        return line.rstrip("\n")

    def leave(self) -> int:
        """Close its stdin and return the exit status that it ends with."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        return self._process.wait(PATIENCE)

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._lines.put(line)
        self._lines.put("")


@contextlib.contextmanager
def copying(machine: Machine) -> Iterator[Process]:
    """Files go to and fro over the running SSH session."""
    with machine.start("sh", "-euc", COPY) as process:
        try:
            yield process
        finally:
            process.kill()
