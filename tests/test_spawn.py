"""Starting a successor: its command line, its environment, and what is said when it cannot start."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

from hitlessd.main.spawn import command_line
from tests.support.processes import ROOT

_COMMAND = ["/usr/bin/python3", "-X", "dev", "-m", "hitlessd", "-f", "/etc/hitlessd.conf"]


@pytest.mark.parametrize(
    ("added", "left"),
    [
        ([], []),
        (["-x", "/run/haproxy.sock"], []),
        (["-sf", "1", "22", "333"], []),
        (["-st"], []),
        (["-D"], []),
        (["-x", "s", "-sf", "4", "-p", "pid", "-D", "-q"], ["-p", "pid", "-q"]),
        (["-sf", "4", "-st", "5", "-f", "7"], ["-f", "7"]),
        (["-W", "-Ws", "-f", "other dir"], ["-W", "-Ws", "-f", "other dir"]),
        (["-x"], []),
    ],
)
def test_what_was_for_this_start_only_is_left_out(added: list[str], left: list[str]) -> None:
    original = [*_COMMAND, *added]
    assert command_line(original) == _COMMAND + left
    assert original == [*_COMMAND, *added]
    assert command_line(command_line(original)) == _COMMAND + left


_PARENT = """
import json, os, sys
from hitlessd.errors import HitlessdError
from hitlessd.main.spawn import spawn

before = sorted(os.listdir("/proc/self/fd"))
result = {"pid": os.getpid()}
try:
    process, sock = spawn("secret", json.loads(sys.argv[1]))
except HitlessdError as error:
    result["error"] = str(error)
else:
    with sock.makefile("rb") as stream:
        result["said"] = stream.read().decode(errors="replace")
    result["child"] = process.pid
    result["inheritable"] = os.get_inheritable(sock.fileno())
    sock.close()
    result["ended"] = process.wait(10)
    process.close()
result["same"] = sorted(os.listdir("/proc/self/fd")) == before
try:
    os.waitpid(-1, os.WNOHANG)
except ChildProcessError:
    result["childless"] = True
print(json.dumps(result))
"""
_CHILD = """
import json, os, socket
summons = os.environ["HITLESSD_TAKEOVER"].split(":")
left = [name for name in os.environ if name.startswith("LISTEN_") or name == "WATCHDOG_PID"]
open_ = [int(name) for name in os.listdir("/proc/self/fd") if os.path.exists("/proc/self/fd/" + name)]
with socket.socket(fileno=int(summons[0])) as stream:
    stream.sendall(json.dumps([os.getpid(), os.getppid(), summons, left, open_, os.environ["KEPT"]]).encode())
"""


def _spawn(*argv: str, limit: str = "") -> dict[str, Any]:
    """What happened, as the process that called spawn() saw it."""
    environment = {
        **{name: "1" for name in ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES", "LISTEN_PIDFDID", "WATCHDOG_PID")},
        "PATH": "/usr/bin:/bin",
        "KEPT": "yes",
    }
    done = subprocess.run(
        [sys.executable, "-c", limit + _PARENT, json.dumps(argv)],
        cwd=ROOT,
        env=environment,
        timeout=30,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert isinstance(result, dict)
    return result


def test_a_successor_knows_its_summons_and_is_not_our_child() -> None:
    result = _spawn(sys.executable, "-c", _CHILD)
    pid, parent, summons, left, opened, kept = json.loads(result["said"])
    assert pid == result["child"]
    assert parent != result["pid"]
    assert result["childless"]
    assert summons[1:] == ["secret", str(result["pid"])]
    assert (left, kept) == ([], "yes")
    assert set(opened) == {0, 1, 2, int(summons[0])}
    assert (result["ended"], result["same"], result["inheritable"]) == (True, True, False)


def test_a_successor_that_cannot_be_executed_says_why() -> None:
    for _ in range(5):
        result = _spawn("/nonexistent/python")
        assert '"is":"refuse"' in result["said"]
        assert "cannot execute /nonexistent/python: No such file or directory" in result["said"]
        assert (result["ended"], result["same"], result["childless"]) == (True, True, True)


@pytest.mark.parametrize(
    ("broken", "why"),
    [
        # In the first process, in the second, and where descriptors are what is lacking.
        ("os.fork = fail", "Resource temporarily unavailable"),
        ("os.fork = first_only", "cannot fork"),
    ],
)
def test_a_fork_that_fails_is_said_once(broken: str, why: str) -> None:
    prelude = (
        "import errno, os\nfork, calls = os.fork, []\n"
        "def fail():\n    raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))\n"
        "def first_only():\n    calls.append(1)\n    return fork() if len(calls) == 1 else fail()\n" + broken + "\n"
    )
    result = _spawn("/bin/true", limit=prelude)
    assert result["error"] == f"cannot start the successor: {why}"
    assert (result["same"], result["childless"]) == (True, True)
