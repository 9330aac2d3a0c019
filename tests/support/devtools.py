"""Chromium as a user has it: a tab that is opened, looked at, clicked and typed into (Chrome DevTools Protocol).

with Browser(tmp_path, "about:blank") as browser, Tab(browser) as tab:
    tab.open(url)
    assert tab.ask("document.title") == "..."
    assert tab.complaints == []
"""

from __future__ import annotations

import base64
import contextlib
import itertools
import json
import os
import re
from pathlib import Path
from types import TracebackType
from typing import Any

from websockets.sync.client import connect

from tests.support.browser import Browser
from tests.support.processes import ROOT, Deadline

__all__ = ["ARTEFACTS", "Tab"]

#: Where screenshots go, for people to look at.
ARTEFACTS = Path(os.environ.get("HITLESSD_ARTEFACTS", ROOT / "build" / "artefacts"))

_WS = re.compile(r"ws://\S+")
_KEYS = {"Tab": 9, "Enter": 13, "Escape": 27, " ": 32}
_PATIENCE = 20.0


class Tab:
    """One page of a browser. `complaints`: errors of its console; `requests`: the URLs that it has asked for."""

    def __init__(self, browser: Browser, width: int = 1280, height: int = 900) -> None:
        match = browser.process.stderr.wait(_WS.search, _PATIENCE, "the address of its DevTools")
        self._stack = contextlib.ExitStack()
        self._socket = self._stack.enter_context(
            connect(match.group(), max_size=1 << 26, compression=None, proxy=None, close_timeout=1)
        )
        self._numbers = itertools.count(1)
        self._session = ""
        self._events: list[dict[str, Any]] = []
        self.complaints: list[str] = []
        self.requests: list[str] = []
        self._target = self.call("Target.createTarget", url="about:blank", width=width, height=height)["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=self._target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")
        self.size(width, height)

    def __enter__(self) -> Tab:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            print(f"--- the page has complained: {self.complaints}; it has asked for: {self.requests}")
        self._session = ""
        with contextlib.suppress(AssertionError):
            self.call("Target.closeTarget", targetId=self._target)
        self._stack.close()

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """A command and its result. AssertionError if it fails."""
        number = next(self._numbers)
        message = {"id": number, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        self._socket.send(json.dumps(message))
        limit = Deadline(_PATIENCE)
        while True:
            answer = json.loads(self._socket.recv(limit.left))
            if answer.get("id") == number:
                assert "error" not in answer, (method, answer["error"])
                result: dict[str, Any] = answer["result"]
                return result
            self._heard(answer)

    def _heard(self, event: dict[str, Any]) -> None:
        method, params = event.get("method", ""), event.get("params", {})
        if method == "Network.requestWillBeSent":
            self.requests.append(params["request"]["url"])
        elif method == "Runtime.exceptionThrown":
            details = params["exceptionDetails"]
            self.complaints.append(details.get("exception", {}).get("description") or details["text"])
        elif method == "Runtime.consoleAPICalled" and params["type"] in ("error", "warning", "assert"):
            self.complaints.append(str([each.get("value") for each in params["args"]]))
        elif method == "Log.entryAdded" and params["entry"]["level"] in ("error", "warning"):
            self.complaints.append(f"{params['entry']['text']} {params['entry'].get('url', '')}")
        self._events.append(event)

    def open(self, url: str) -> None:
        """Load a page, and return when it is loaded."""
        self._events.clear()
        answer = self.call("Page.navigate", url=url)
        assert "errorText" not in answer, answer
        self.loaded()

    def loaded(self) -> None:
        """Wait until the page that a click leads to is loaded."""
        limit = Deadline(_PATIENCE)
        while not any(event.get("method") == "Page.loadEventFired" for event in self._events):
            self._heard(json.loads(self._socket.recv(limit.left)))

    def ask(self, expression: str) -> Any:
        """The value of a JavaScript expression; promises are awaited. AssertionError if it throws."""
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def until(self, expression: str, deadline: float = 15.0) -> Any:
        """Wait, within the page, until an expression is true; its value."""
        wait = (
            "new Promise((done, fail) => { const end = Date.now() + %d; (function look() { let value; "
            "try { value = (%s); } catch (error) { value = null; } "
            "if (value) done(value); else if (Date.now() > end) fail(Error('never: ' + %s)); "
            "else setTimeout(look, 20); })(); })"
        )
        return self.ask(wait % (deadline * 1000, expression, json.dumps(expression)))

    def size(self, width: int, height: int, phone: bool = False) -> None:
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=2 if phone else 1,
            mobile=phone,
        )  # fmt: skip

    def scheme(self, name: str) -> None:
        """light or dark."""
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": name}])

    def without_scripts(self) -> None:
        self.call("Emulation.setScriptExecutionDisabled", value=True)

    def sign_in(self, name: str, password: str) -> None:
        """Send this name and password with each request."""
        encoded = base64.b64encode(f"{name}:{password}".encode()).decode()
        self.call("Network.setExtraHTTPHeaders", headers={"Authorization": f"Basic {encoded}"})

    def press(self, *keys: str) -> None:
        """Press keys, by the names of KeyboardEvent.key; `Shift+Tab` works, too."""
        for key in keys:
            plain = key.removeprefix("Shift+")
            event: dict[str, Any] = {"key": plain, "code": "Space" if plain == " " else plain}
            event["windowsVirtualKeyCode"] = _KEYS.get(plain) or ord(plain.upper())
            event["modifiers"] = 8 if key != plain else 0
            if plain == "Enter":
                event["text"] = "\r"
            elif len(plain) == 1:
                event["text"] = plain
            self.call("Input.dispatchKeyEvent", type="keyDown", **event)
            event.pop("text", None)
            self.call("Input.dispatchKeyEvent", type="keyUp", **event)

    def click(self, selector: str) -> None:
        """Click into the middle of the element."""
        quoted = json.dumps(selector)
        x, y = self.ask(
            f"(() => {{ const element = document.querySelector({quoted}); element.scrollIntoView({{block: 'center'}});"
            " const box = element.getBoundingClientRect();"
            " return [box.x + box.width / 2, box.y + box.height / 2]; })()"
        )
        self._events.clear()
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def screenshot(self, name: str, whole: bool = True) -> Path:
        """A picture of the page, kept for people; its path."""
        ARTEFACTS.mkdir(parents=True, exist_ok=True)
        data = self.call("Page.captureScreenshot", captureBeyondViewport=whole)["data"]
        path = ARTEFACTS / f"{name}.png"
        path.write_bytes(base64.b64decode(data))
        return path
