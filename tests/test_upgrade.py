"""The files of a running process are replaced, as by an upgrade: what it has loaded must do until the reload."""

from __future__ import annotations

import shutil
from pathlib import Path

from tests.support.daemon import Daemon
from tests.support.echo import Echo, exchange
from tests.support.processes import ROOT, free_port, poll_until
from tests.support.visitors import listen

RUIN = "raise SystemExit('cannot start: a module of another version')\n"


def test_the_old_process_does_without_its_files(tmp_path: Path) -> None:
    package = tmp_path / "lib" / "hitlessd"
    shutil.copytree(ROOT / "hitlessd", package, ignore=shutil.ignore_patterns("__pycache__"))
    lib = {"PYTHONPATH": str(package.parent), "PYTHONSAFEPATH": "1"}
    port, page, metrics = free_port(), free_port(), free_port()
    with Echo() as echo:
        text = listen(port, server=echo.port)
        text += f"[frontend page]\nmode = http\nbind = 127.0.0.1:{page}\nstats enable\nstats uri = /\n"
        more = f"metrics bind = 127.0.0.1:{metrics}\nlog = stderr debug"
        with Daemon(tmp_path, text, more=more, env=lib) as daemon:
            poll_until(lambda: "all modules are loaded" in daemon.log, 15, "it is complete")
            for module in package.rglob("*.py"):
                module.write_text(RUIN)
            for command in ("show info json desc", "show stat typed", "show servers state", "show reloads json"):
                assert "internal error" not in daemon.ask(command), daemon.log
            assert daemon.ask("set server t/s weight 5") == "\n"
            assert daemon.ask(f"add server t/new 127.0.0.1:{echo.port} check") == "New server registered.\n\n"
            for each, target in ((metrics, "/metrics"), (page, "/"), (page, "/;csv")):
                answer = get(each, target)
                assert answer.startswith(b"HTTP/1.1 200 "), answer[:500]
            assert get(page, "/ bad").split(b" ", 2)[1] == b"400"
            refused = daemon.reload()
            assert refused.returncode == 1
            assert exchange(port) == b"hello"
            shutil.rmtree(package)
            shutil.copytree(ROOT / "hitlessd", package)
            assert daemon.reload().returncode == 0
            assert exchange(port) == b"hello"


def get(port: int, target: str) -> bytes:
    return exchange(port, f"GET {target} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n".encode())
