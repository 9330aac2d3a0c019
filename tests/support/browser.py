"""A real browser, without a window: Chromium with a profile of its own, that opens one page."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from tests.support.processes import Process, descendants, end

__all__ = ["PAGES", "Browser"]

PAGES = Path(__file__).with_name("pages")
"""The page that reports what it could not load; for HttpBackend(pages=...)."""

CHROMIUM = shutil.which("chromium-headless-shell") or shutil.which("chromium") or "chromium"


class Browser:
    """Opens `url` at the beginning of a `with` block."""

    def __init__(self, directory: Path, url: str) -> None:
        self._command = [CHROMIUM, "--headless", "--disable-gpu", f"--user-data-dir={directory / 'profile'}"]
        self._command += ["--no-first-run", "--disable-background-networking", "--disable-dev-shm-usage"]
        if os.geteuid() == 0:
            self._command.append("--no-sandbox")
        # It ends with its last page otherwise, as soon as that is loaded.
        self._command += ["--remote-debugging-port=0", url]
        self._home = directory

    def __enter__(self) -> Browser:
        self.process = Process(self._command, env={**os.environ, "HOME": str(self._home)})
        return self

    def __exit__(self, *_: object) -> None:
        pids = descendants(self.process.pid)
        self.process.stop()
        for pid in pids:
            end(pid)

    @property
    def log(self) -> str:
        return self.process.stderr.text
