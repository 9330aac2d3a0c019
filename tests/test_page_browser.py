"""The page in a real browser: how it looks, reads and is used. The pictures are kept, see tests/support/devtools.py."""

from __future__ import annotations

import time
from collections.abc import Iterator
from functools import partial

import pytest

from hitlessd.changes import Change, Item
from hitlessd.model import StatsPage
from hitlessd.table import Column, Health, HealthRecord, RowKey, ServerState
from hitlessd.web.message import Feed
from hitlessd.web.page import news, site
from tests.support.browser import Browser
from tests.support.devtools import Tab
from tests.support.showcase import Showcase, showcase

#: Texts whose contrast to what is behind them is less than it has to be (WCAG 2.2, 1.4.3).
_FAINT = """
(() => {
  const numbers = text => (text.match(/[\\d.]+/g) || []).map(Number);
  const canvas = document.createElement("canvas").getContext("2d", {willReadFrequently: true});
  const colour = text => {
    canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = text; canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data];
  };
  const light = rgb => {
    const [r, g, b] = rgb.slice(0, 3).map(each => {
      each /= 255; return each <= 0.04045 ? each / 12.92 : ((each + 0.055) / 1.055) ** 2.4;
    });
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = element => {
    for (let at = element; at; at = at.parentElement) {
      const found = colour(getComputedStyle(at).backgroundColor);
      if (found[3] === 255) return found;
    }
    return [255, 255, 255, 255];
  };
  const faint = [];
  let seen = 0;
  const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walk.nextNode()) {
    const element = walk.currentNode.parentElement;
    if (!walk.currentNode.data.trim() || !element.checkVisibility() || element.closest("script, style")) continue;
    const [one, other] = [light(colour(getComputedStyle(element).color)), light(behind(element))];
    const ratio = (Math.max(one, other) + 0.05) / (Math.min(one, other) + 0.05);
    seen++;
    if (ratio < 4.5) faint.push(ratio.toFixed(2) + " " + walk.currentNode.data.trim().slice(0, 30));
  }
  return {seen, faint};
})()
"""
_LIVE = "document.getElementById('live').textContent === 'live'"


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with Browser(tmp_path_factory.mktemp("chromium"), "about:blank") as found:
        yield found


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages are told twenty times a second, so that nobody has to wait."""
    monkeypatch.setattr(news, "FRESH", 0.0)
    monkeypatch.setattr(site, "Feed", partial(Feed, interval=0.05))


@pytest.fixture
def shown() -> Iterator[Showcase]:
    with showcase() as found:
        yield found


@pytest.fixture
def tab(browser: Browser, shown: Showcase) -> Iterator[Tab]:
    """The page, open. It must neither complain nor ask anybody else for anything."""
    with Tab(browser) as found:
        found.scheme("light")
        found.open(shown.url)
        found.until(_LIVE)
        yield found
        assert found.complaints == []
        assert {url for url in found.requests if not url.startswith((shown.url, "data:", "about:"))} == set()


def text(tab: Tab, selector: str) -> str:
    return str(tab.ask(f"document.querySelector({selector!r})?.textContent ?? null"))


# -- how it looks ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize(("name", "width"), [("desktop", 1280), ("tablet", 900), ("phone", 360)])
def test_it_can_be_read(tab: Tab, scheme: str, name: str, width: int) -> None:
    tab.scheme(scheme)
    tab.size(width, 800, phone=width < 500)
    found = tab.ask(_FAINT)
    assert found["faint"] == []
    assert found["seen"] > 100
    assert tab.ask("document.documentElement.scrollWidth") <= width
    path = tab.screenshot(f"page-{scheme}-{name}")
    assert path.stat().st_size > 20_000


def test_a_dialog_can_be_read(tab: Tab) -> None:
    for scheme in ("light", "dark"):
        tab.scheme(scheme)
        tab.click("[value='maint/postgres/primary']")
        tab.until("document.getElementById('dialog').open")
        found = tab.ask(_FAINT.replace("document.body,", "document.getElementById('dialog'),"))
        assert found["faint"] == []
        assert found["seen"] > 3
        tab.screenshot(f"page-{scheme}-dialog", whole=False)
        tab.press("Escape")
        tab.until("!document.getElementById('dialog').open")


def test_states_differ_in_more_than_their_colour(tab: Tab) -> None:
    shapes = tab.ask(
        "[...new Map([...document.querySelectorAll('.state')].map(each => {"
        " const shape = getComputedStyle(each, '::before');"
        " const said = [shape.clipPath, shape.borderRadius, shape.backgroundImage, shape.borderWidth];"
        " return [each.className, said.join()]; }))]"
    )
    assert {name for name, _ in shapes} == {
        f"state {name}" for name in ("up", "down", "failing", "drain", "maint", "none")
    }
    assert len({shape for _, shape in shapes}) == len(shapes)


def test_tables_and_fields_have_names(tab: Tab) -> None:
    assert tab.ask("document.documentElement.lang") == "en"
    assert tab.ask("[...document.querySelectorAll('table')].every(each => each.caption)")
    assert tab.ask("[...document.querySelectorAll('thead th')].every(each => each.scope === 'col')")
    assert tab.ask("[...document.querySelectorAll('tbody th')].every(each => each.scope === 'row')")
    assert tab.ask("[...document.querySelectorAll('input:not([type=hidden])')].every(each => each.labels.length === 1)")
    assert tab.ask("document.querySelectorAll('h1').length") == 1
    tree = tab.call("Accessibility.getFullAXTree")["nodes"]
    buttons = [node["name"]["value"] for node in tree if node.get("role", {}).get("value") == "button"]
    assert len(buttons) > 10
    assert all(buttons)


# -- what it tells -----------------------------------------------------------------------------------------------------


def test_numbers_go_on_by_themselves(tab: Tab, shown: Showcase) -> None:
    tab.ask("window.here = true")
    shown.do(lambda: shown.count(RowKey("server", "app", "app1"), Column.SCUR, 1300))
    tab.until("document.getElementById('app/app1').cells[3].textContent === '1,312'")
    assert tab.ask("window.here")


def test_a_death_is_told_aloud_and_in_the_title(tab: Tab, shown: Showcase) -> None:
    down = HealthRecord(Health.DOWN, int(time.time()), 0, 4)
    assert tab.ask("document.title") == "(1 down) lb1.example.net Shop, Frankfurt"
    shown.do(lambda: shown.health("app", "app1", down, "Connection refused"))
    tab.until("document.getElementById('said').textContent === 'app/app1 is DOWN'")
    assert tab.ask("document.getElementById('said').role") == "status"
    tab.until("document.title.startsWith('(2 down)')")
    summary = text(tab, "#summary")
    assert "2 of 7 servers are down" in summary
    assert "Layer4 connection problem: Connection refused" in summary


def test_who_changes_something_elsewhere_is_seen_here(tab: Tab, shown: Showcase) -> None:
    change = Change(Item("server-weight", "app", "app1"), 5, 1)

    def changed() -> None:
        shown.control.changes.items[change.item] = change
        shown.administered("app", "app1", ServerState.DRAIN, 5)

    tab.ask("document.querySelector(\"[value='ready/app/app1']\").focus()")
    shown.do(changed)
    tab.until("document.querySelector('[id=\"app/app1\"] .changed')?.textContent === 'weight 5, configured 1'")
    tab.until("document.querySelector(\"[value='drain/app/app1']\").ariaPressed === 'true'")
    assert tab.ask("document.querySelector(\"[value='ready/app/app1']\").ariaPressed") == "false"
    assert text(tab, "#changes h2") == "2 changes at run time"
    assert tab.ask("document.activeElement.value") == "ready/app/app1"  # the tables are new, the focus stays


def test_a_feed_that_breaks_comes_back(tab: Tab, shown: Showcase) -> None:
    def cut() -> None:
        for client in list(shown.server._clients):
            if client.feed:
                shown.server._drop(client)
        shown.count(RowKey("server", "app", "app1"), Column.SCUR, 30)

    shown.do(cut)
    tab.until("document.getElementById('app/app1').cells[3].textContent === '42'")
    assert text(tab, "#live") == "live"
    tab.complaints.clear()  # Chromium's own, about the connection that we have cut


def test_lines_are_drawn_of_what_the_page_has_seen(tab: Tab) -> None:
    tab.until("document.querySelector('[id=\"app/app1\"] .spark polyline')?.getAttribute('points').includes(' ')")


# -- how it is used ----------------------------------------------------------------------------------------------------


def test_a_server_is_drained_by_keys_alone(tab: Tab, shown: Showcase) -> None:
    for _ in range(60):
        tab.press("Tab")
        if tab.ask("document.activeElement.value") == "drain/app/app1":
            break
    focus = tab.ask(
        "(() => { const style = getComputedStyle(document.activeElement);"
        " return [document.activeElement.value, style.outlineStyle, parseFloat(style.outlineWidth)]; })()"
    )
    assert focus == ["drain/app/app1", "solid", 3]
    tab.press("Enter")
    tab.until("document.getElementById('dialog').open")
    assert text(tab, "#dialog h2") == "Drain app/app1?"
    assert shown.control.administered == []
    tab.press("Escape")
    tab.until("!document.getElementById('dialog').open")
    assert tab.ask("document.activeElement.value") == "drain/app/app1"
    tab.press("Enter")
    tab.until("document.getElementById('dialog').open && document.activeElement.classList.contains('main')")
    tab.press("Enter")
    tab.until("!document.getElementById('dialog').open")
    assert text(tab, "#said") == "app/app1: now drain"
    assert shown.control.administered == [Change(Item("server-state", "app", "app1"), "drain")]


def test_a_weight_is_asked_for(tab: Tab, shown: Showcase) -> None:
    tab.click("[value='weight/app/app1']")
    tab.until("document.activeElement.name === 'value'")
    tab.ask("document.activeElement.value = ''")
    tab.press("2", "0", "Enter")
    tab.until("!document.getElementById('dialog').open")
    assert shown.control.administered == [Change(Item("server-weight", "app", "app1"), 20)]


def test_what_is_refused_says_why(tab: Tab, shown: Showcase) -> None:
    shown.control.refusal = "cannot switch www off: it is being reloaded"
    tab.click("[value='off/www']")
    tab.until("document.getElementById('dialog').open")
    tab.click("#dialog .main")
    tab.until("document.querySelector('.problem').textContent === 'cannot switch www off: it is being reloaded'")
    tab.click("#dialog .no")
    tab.until("!document.getElementById('dialog').open")
    tab.complaints.clear()  # Chromium's own, about the status 409


def test_looking_for_something(tab: Tab) -> None:
    rows = "[...document.querySelectorAll('#proxies tbody tr')]"
    visible = f"{rows}.filter(each => each.checkVisibility()).map(each => each.id)"
    tab.click("#wrong")
    assert tab.ask(visible) == ["app/app2", "app/app3", "app/app4", "postgres/replica"]
    tab.click("#wrong")
    tab.click("#find")
    tab.press("c", "d", "n")
    assert tab.ask(visible) == ["images/cdn"]


def test_without_scripts(browser: Browser, shown: Showcase) -> None:
    with Tab(browser) as tab:
        tab.without_scripts()
        tab.open(shown.url)
        tab.screenshot("page-without-scripts", whole=False)
        tab.click("[value='maint/postgres/primary']")
        tab.loaded()
        assert text(tab, ".ask h2") == "Put postgres/primary into maintenance?"
        assert "the last server of postgres" in text(tab, ".ask")
        assert shown.control.administered == []
        tab.screenshot("page-without-scripts-question", whole=False)
        tab.click(".ask .main")
        tab.loaded()
        assert text(tab, ".result") == "Done."
        assert shown.control.administered == [Change(Item("server-state", "postgres", "primary"), "maint")]
        assert tab.complaints == []


def test_with_a_password(browser: Browser) -> None:
    page = StatsPage(uri="/haproxy?stats", auth=(("ann", "secret"),))
    with showcase(page, admin=False) as shown, Tab(browser) as tab:
        tab.sign_in("ann", "secret")
        tab.open(shown.url + ";no-maint")
        tab.until(_LIVE)
        assert tab.ask("document.getElementById('app/app4').hidden")
        assert tab.ask("document.querySelectorAll('button').length") == 0
        shown.do(lambda: shown.administered("app", "app4", ServerState.READY))
        tab.until("!document.getElementById('app/app4').hidden")
        assert tab.complaints == []
