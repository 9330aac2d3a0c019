"""The page of a real daemon, open in a real browser while that is reloaded, killed and started again."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.beside import Client
from tests.support.browser import Browser
from tests.support.devtools import Tab
from tests.support.origin import Origin
from tests.support.processes import free_port
from tests.support.restartable import Restartable
from tests.test_http_features import get

_BODY = """
[listen web]
mode = http
bind = 127.0.0.1:{port}
server s1 = {origin} weight {weight}
stats enable
stats uri = /stats
stats auth = ann:secret
stats admin = if TRUE
"""
_LIVE = "document.getElementById('live').textContent === 'live'"


class Site:
    """A daemon with a page, and a browser that shows it."""

    def __init__(self, service: Restartable, origin: Origin, port: int, tab: Tab) -> None:
        self.service, self.origin, self.port, self.tab = service, origin, port, tab

    def visit(self) -> None:
        """A request of somebody."""
        with Client(self.port) as client:
            assert client.ask(get("/")).status == 200

    def answers(self) -> str:
        """How many answers of class 2xx the page has seen: an expression."""
        return "document.getElementById('web/s1').querySelector('[data-f=\"7\"]').textContent"

    def configure(self, weight: int, more: str = "") -> None:
        daemon = self.service.daemon
        daemon.write(daemon.text(body(self.port, self.origin, weight) + more))


def body(port: int, origin: Origin, weight: int = 1) -> str:
    return _BODY.format(port=port, origin=origin.address, weight=weight)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with Browser(tmp_path_factory.mktemp("chromium"), "about:blank") as found:
        yield found


@pytest.fixture
def opened(tmp_path: Path, browser: Browser) -> Iterator[Site]:
    port = free_port()
    with contextlib.ExitStack() as stack:
        origin = Origin("a")
        stack.callback(origin.stop)
        service = stack.enter_context(Restartable(tmp_path, body(port, origin)))
        tab = stack.enter_context(Tab(browser))
        tab.sign_in("ann", "secret")
        tab.open(f"http://127.0.0.1:{port}/stats")
        tab.until(_LIVE)
        # Whether the page was loaded again, or has ever said that something is wrong.
        tab.ask(
            "window.here = true; window.wrong = []; new MutationObserver(() => {"
            " const text = document.getElementById('live').textContent; if (text !== 'live') window.wrong.push(text);"
            " }).observe(document.getElementById('live'), {childList: true, characterData: true, subtree: true})"
        )
        yield Site(service, origin, port, tab)


def test_reloads_go_by_while_it_is_open(opened: Site) -> None:
    tab = opened.tab
    token = "document.getElementsByName('token')[0].value"
    before = tab.ask(token)
    opened.visit()
    tab.until(f"{opened.answers()} === '1'")
    for weight in (2, 3):
        opened.configure(weight, "[backend later]\nmode = http\nserver x = 127.0.0.1:1\n" if weight == 3 else "")
        done = opened.service.daemon.reload()
        assert done.returncode == 0, done.stderr
        opened.visit()
        tab.until(f"{opened.answers()} === '{weight}'")
        tab.until(f"document.getElementById('reloads').textContent.includes('reload {weight - 1} worked')")
    # What is new in the configuration has come without loading the page again, and nobody saw an error.
    tab.until("document.getElementById('later/x')")
    assert tab.ask("document.getElementById('web/s1').querySelector('[data-f=\"14\"]').textContent") == "3"
    assert tab.ask("window.here")
    assert tab.ask("window.wrong") == []
    assert tab.complaints == []
    assert tab.ask("performance.getEntriesByType('resource').filter(each => each.name.includes('events')).length") <= 1
    # Its forms are still good: each generation signs as the one before did.
    assert tab.ask(token) == before
    tab.click("[value='drain/web/s1']")
    tab.until("document.getElementById('dialog').open")
    assert tab.ask("document.querySelector('#dialog h2').textContent") == "Drain web/s1?"
    tab.press("Escape")
    # One that is refused is told at the top.
    opened.service.daemon.write(opened.service.daemon.text("[listen web]\nbogus = 1\n"))
    assert opened.service.daemon.reload().returncode != 0
    tab.until("document.querySelector('#summary .alert')?.textContent.includes('Reload 3 was refused')")
    tab.until("document.querySelector('#reloads pre')?.textContent.includes('bogus')")
    assert tab.ask("window.here")
    assert tab.ask("window.wrong") == []
    tab.screenshot("page-after-reloads")


def test_a_crash_is_hardly_seen(opened: Site) -> None:
    tab = opened.tab
    opened.visit()
    tab.until(f"{opened.answers()} === '1'")
    opened.service.crash()
    opened.visit()
    tab.until(f"{opened.answers()} === '2'")
    assert tab.ask("window.here")
    # Chromium says that the connection was cut; the page does not, for it was back soon.
    assert tab.ask("window.wrong") == []
    tab.complaints.clear()
