"""The effective configuration: what the files say, with what operators have changed."""

from __future__ import annotations

import json
import random
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from hitlessd.changes import Change, Changes, Item
from hitlessd.effective import configured, differences, effective, free_sid, keep, structure
from hitlessd.model import Backend, Check, Config, Frontend, Global, InetAddress, Server

HOST = "127.0.0.1"


def server(name: str, sid: int, **more: object) -> Server:
    return Server(name, InetAddress(HOST, 8000 + sid), sid, **more)  # type: ignore[arg-type]


CONFIG = Config(
    Global(maxconn=100),
    (Frontend("f", 2, (), "b"), Frontend("g", 3, (), "b", maxconn=5)),
    (
        Backend("b", 4, (server("s", 1, weight=10, check=Check()), server("t", 2, disabled=True, maxconn=3))),
        Backend("static", 5, (server("s", 1, weight=4),), "static-rr"),
    ),
)


def changes(*found: Change) -> Changes:
    return Changes({change.item: change for change in found})


def changed(*found: Change, config: Config = CONFIG) -> tuple[Config, list[Change]]:
    return effective(config, changes(*found))


def of(config: Config, name: str, backend: str = "b") -> Server:
    return next(each for each in config.backend(backend).servers if each.name == name)


def test_without_changes_it_is_the_configuration() -> None:
    assert effective(CONFIG, Changes()) == (CONFIG, [])


def test_each_kind() -> None:
    config, dropped = changed(
        Change(Item("server-state", "b", "s"), "drain", "ready"),
        Change(Item("server-weight", "b", "s"), 20, 10),
        Change(Item("server-address", "b", "s"), "[::1]:99", f"{HOST}:8001"),
        Change(Item("server-maxconn", "b", "t"), 0, 3),
        Change(Item("server-state", "b", "t"), "ready", "maint"),
        Change(Item("server-check", "b", "s"), False, True),
        Change(Item("server-deleted", "static", "s"), True, f"{HOST}:8001"),
        Change(Item("server-added", "static", "n"), "127.0.0.1:80 weight 7 id 1"),
        Change(Item("frontend-state", "f"), "off", "on"),
        Change(Item("frontend-maxconn", "g"), 0, 5),
        Change(Item("global-maxconn"), 50, 100),
    )
    assert not dropped
    s, t = of(config, "s"), of(config, "t")
    assert (s.drain, s.disabled, s.weight, s.initial_weight, s.check) == (True, False, 20, 10, None)
    assert (s.address, s.maxconn) == (InetAddress("::1", 99), 0)
    assert (t.disabled, t.drain, t.maxconn, t.initial_weight) == (False, False, 0, 1)
    (n,) = config.backend("static").servers
    assert (n.name, n.sid, n.weight, n.added, n.disabled) == ("n", 1, 7, True, True)
    assert [(each.disabled, each.maxconn) for each in config.frontends] == [(True, 0), (False, 0)]
    assert config.global_.maxconn == 50


def test_a_server_that_was_added_can_be_changed_as_others_can() -> None:
    added = Change(Item("server-added", "b", "n"), "127.0.0.1:80 check id 7")
    config, _ = changed(added)
    assert (of(config, "n").disabled, of(config, "n").check, of(config, "n").sid) == (True, None, 7)
    config, dropped = changed(
        Change(Item("server-check", "b", "n"), True, False),
        Change(Item("server-state", "b", "n"), "ready", "maint"),
        Change(Item("server-weight", "b", "n"), 3, 1),
        added,
    )
    assert not dropped
    n = of(config, "n")
    assert (n.disabled, n.check, n.weight) == (False, Check(), 3)
    # All of it goes when the file has such a server.
    whole = replace(CONFIG.backend("b"), servers=(*CONFIG.backend("b").servers, server("n", 3, weight=2)))
    config = replace(CONFIG, backends=(whole, CONFIG.backends[1]))
    found, dropped = changed(added, Change(Item("server-weight", "b", "n"), 3, 1), config=config)
    assert found == config and len(dropped) == 2


def test_the_number_of_an_added_server_stays() -> None:
    first = Change(Item("server-added", "b", "x"), "127.0.0.1:80 id 3")
    second = Change(Item("server-added", "b", "y"), "127.0.0.1:81 id 4")
    assert of(changed(first, second)[0], "y").sid == of(changed(second)[0], "y").sid == 4
    # Unless the file has given it to another one.
    whole = replace(CONFIG.backend("b"), servers=(*CONFIG.backend("b").servers, server("new", 4)))
    config, dropped = changed(first, second, config=replace(CONFIG, backends=(whole, CONFIG.backends[1])))
    assert not dropped and of(config, "y").sid == 5


def test_a_deleted_server_comes_back_when_the_file_moves_it() -> None:
    gone = Change(Item("server-deleted", "b", "s"), True, f"{HOST}:8001")
    again = Change(Item("server-added", "b", "s"), "127.0.0.9:1 id 1")
    config, dropped = changed(gone, again)
    assert not dropped and of(config, "s").address.sockaddr == ("127.0.0.9", 1)
    moved = replace(CONFIG.backends[0], servers=(server("s", 9), server("t", 2, disabled=True, maxconn=3)))
    config, dropped = changed(gone, again, config=replace(CONFIG, backends=(moved, CONFIG.backends[1])))
    assert of(config, "s").address.sockaddr == (HOST, 8009) and dropped == [gone, again]


def test_what_the_file_has_changed_counts() -> None:
    change = Change(Item("server-weight", "b", "s"), 20, 9)
    config, dropped = changed(change)
    assert (config, dropped) == (CONFIG, [change])
    for item in (
        Item("server-weight", "b", "nobody"),
        Item("frontend-state", "nobody"),
        Item("server-added", "no", "n"),
    ):
        gone = Change(item, "off" if item.kind == "frontend-state" else "127.0.0.1:1", None)
        assert changed(gone) == (CONFIG, [gone])


def test_a_host_name_is_what_the_file_says_whatever_its_address_is() -> None:
    named = replace(CONFIG.backends[0], servers=(server("s", 1, hostname="db"),))
    config = replace(CONFIG, backends=(named,))
    assert configured(config, Item("server-address", "b", "s")) == "db:8001"
    elsewhere = replace(named.servers[0], address=InetAddress("127.0.0.77", 8001))
    change = Change(Item("server-address", "b", "s"), "127.0.0.5:5", "db:8001")
    found, dropped = changed(change, config=replace(config, backends=(replace(named, servers=(elsewhere,)),)))
    assert not dropped and (of(found, "s").address.sockaddr, of(found, "s").hostname) == (("127.0.0.5", 5), "")


def test_static_algorithms_take_nothing_or_all() -> None:
    item = Item("server-weight", "static", "s")
    none, dropped = changed(Change(item, 0, 4))
    assert not dropped and (of(none, "s", "static").weight, of(none, "s", "static").initial_weight) == (0, 4)
    some, dropped = changed(Change(item, 2, 4))
    assert some == CONFIG and len(dropped) == 1


def test_unknown_kinds_are_left_alone() -> None:
    unknown = Change(Item("server-colour", "b", "s"), "green", "red")  # type: ignore[arg-type]
    assert changed(unknown) == (CONFIG, [])


def test_free_numbers() -> None:
    assert free_sid(()) == 1
    assert free_sid((server("a", 1), server("b", 3))) == 2


def test_differences_lead_from_one_to_the_other() -> None:
    found, _ = changed(
        Change(Item("server-state", "b", "s"), "maint", "ready"),
        Change(Item("server-added", "b", "n"), "127.0.0.1:80 id 3"),
        Change(Item("frontend-state", "f"), "off", "on"),
    )
    there = differences(CONFIG, found)
    assert [(each.item.kind, each.item.server) for each in there] == [
        ("frontend-state", ""),
        ("server-state", "s"),
        ("server-added", "n"),
    ]
    assert there[2].value == of(found, "n")
    back = differences(found, CONFIG)
    assert [(each.item, each.value) for each in back] == [
        (Item("frontend-state", "f"), "on"),
        (Item("server-deleted", "b", "n"), True),
        (Item("server-state", "b", "s"), "ready"),
    ]
    assert differences(found, found) == []


NAMES = st.sampled_from(["s", "t", "n", "m", "nobody"])
PROXIES = st.sampled_from(["b", "static", "f", "g", "nobody"])
VALUES = {
    "server-state": st.sampled_from(["ready", "drain", "maint", "x", None]),
    "server-weight": st.sampled_from([0, 1, 4, 10, 256, 257, -1, "x", True]),
    "server-address": st.sampled_from(["127.0.0.1:8001", "[::1]:1", "unix@/run/x", "nonsense", "host:1", 5]),
    "server-maxconn": st.sampled_from([0, 3, 7, -1, None]),
    "server-check": st.booleans(),
    "server-added": st.sampled_from(["127.0.0.1:80", "127.0.0.1:80 id 1", "127.0.0.1:80 id 3 ", "x y", "", 7]),
    "server-deleted": st.just(True),
    "frontend-state": st.sampled_from(["on", "off", "x"]),
    "frontend-maxconn": st.sampled_from([0, 5, 9, -1]),
    "global-maxconn": st.sampled_from([0, 100, 7, "x"]),
}


@st.composite
def any_changes(draw: st.DrawFn) -> Changes:
    found = Changes()
    for kind in draw(st.lists(st.sampled_from(sorted(VALUES)), max_size=8)):
        of_server, of_frontend = kind.startswith("server"), kind.startswith("frontend")
        item = Item(kind, draw(PROXIES) if of_server or of_frontend else "", draw(NAMES) if of_server else "")  # type: ignore[arg-type]
        said = configured(structure(CONFIG, found), item)
        before = said if draw(st.integers(0, 4)) else draw(st.sampled_from([0, "ready", True]))
        found.items[item] = Change(item, draw(VALUES[kind]), before)
    return found


@given(any_changes(), st.randoms(use_true_random=False))
def test_whatever_was_changed(found: Changes, chance: random.Random) -> None:
    config, dropped = effective(CONFIG, found)
    # Without what has no effect, it is the same, and nothing more is dropped.
    assert effective(CONFIG, keep(found, dropped)) == (config, [])
    # The order does not matter.
    items = list(found.items.values())
    chance.shuffle(items)
    shuffled, others = effective(CONFIG, changes(*items))
    assert shuffled == config and sorted(map(str, others)) == sorted(map(str, dropped))
    # It survives a record.
    assert effective(CONFIG, Changes.load(json.loads(json.dumps(found.export()))))[0] == config
    # It is sound, and differences() knows the way back and forth.
    for backend in config.backends:
        assert len({each.name for each in backend.servers}) == len({each.sid for each in backend.servers})
        assert len({each.name for each in backend.servers}) == len(backend.servers)
        for each in backend.servers:
            assert 0 <= each.weight <= 256 and each.maxconn >= 0 and each.sid > 0
    assert not differences(config, config)
    assert bool(differences(CONFIG, config)) is (config != CONFIG)
