"""hitlessd as process 1 of a container that has no init."""

from __future__ import annotations

import contextlib
import os
import subprocess
from pathlib import Path

from tests.support.daemon import Daemon
from tests.support.echo import Echo, exchange
from tests.support.processes import ROOT, Process, descendants, free_port, poll_until, python_module
from tests.support.visitors import Conversation, listen


def test_process_1_refuses_to_be_replaced_and_serves_on(tmp_path: Path) -> None:
    """Or the container would end, with its successor, as soon as it has drained."""
    port = free_port()
    with Echo() as echo:
        # Its files and its socket only: the pids that it knows are of another namespace.
        daemon = Daemon(tmp_path, listen(port, server=echo.port))
        command = python_module("hitlessd", "-f", daemon.file)
        container = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc", *command]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        with Process(container, env=environment, cwd=ROOT) as outer:

            def serves() -> bool:
                with contextlib.suppress(OSError):
                    return "Pid: 1\n" in daemon.ask("show info")
                return False

            poll_until(serves, 15, "it serves")
            with Conversation(port) as talk:
                for _ in range(2):
                    done = daemon.reload()
                    assert done.returncode == 1
                    assert "it is process 1, with which its container ends" in done.stderr + done.stdout
                # From within, as by `docker exec`.
                inside = ["nsenter", "--pid", "--mount", f"--target={descendants(outer.pid)[1]}", *command]
                done = subprocess.run(
                    [*inside, "-x", str(daemon.socket), "-sf", "1"],
                    env=environment,
                    cwd=ROOT,
                    capture_output=True,
                    text=True,
                    timeout=15,
                )
                assert done.returncode == 1
                assert "it is process 1, with which its container ends" in done.stderr
                talk.say()
                assert exchange(port) == b"hello"
