"""Promise 1, no refused connection: thousands of new connections a second while one reload follows another."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.accepting import generations_accepting
from tests.support.backend import Backend
from tests.support.daemon import Daemon
from tests.support.load import Load
from tests.support.processes import free_ports, poll_until

CONNECTIONS = 25_000
RATE = 2_500
RELOADS = 40
OPEN = 1_500  # at a time: a machine that is too slow for the rate gets fewer, instead of a backlog that overflows


def _plain(daemon: Daemon, first: int, second: int, ports: list[int]) -> list[str | None]:
    """The same configuration every time."""
    return [None]


def _alternating(daemon: Daemon, first: int, second: int, ports: list[int]) -> list[str | None]:
    """A listener added and removed, servers changed; the loaded bind is in both versions."""
    one = _body(first, ports)
    two = (
        f"[frontend t]\nbind = 127.0.0.1:{first}\n       127.0.0.1:{second}\ndefault_backend = b\n"
        f"[backend b]\nbalance = leastconn\nserver s2 = 127.0.0.1:{ports[1]} weight 2\n"
        f"server s3 = 127.0.0.1:{ports[2]}\n"
    )
    return [daemon.text(two), daemon.text(one)]


def _every_third_broken(daemon: Daemon, first: int, second: int, ports: list[int]) -> list[str | None]:
    """Two valid ones and one that is refused."""
    return [*_alternating(daemon, first, second, ports), "[listen t]\nbind = nowhere\n"]


def _body(port: int, ports: list[int]) -> str:
    servers = "".join(f"server s{i} = 127.0.0.1:{backend}\n" for i, backend in enumerate(ports[:2], 1))
    return f"[listen t]\nbind = 127.0.0.1:{port}\n{servers}"


@pytest.mark.parametrize("kind", [_plain, _alternating, _every_third_broken])
def test_no_connection_fails_while_one_reload_follows_another(
    kind: Callable[[Daemon, int, int, list[int]], list[str | None]], tmp_path: Path
) -> None:
    first, second = free_ports(2)
    with (
        Backend(["127.0.0.1:0"] * 3) as backend,
        Daemon(tmp_path, _body(first, backend.ports)) as daemon,
        Load(f"127.0.0.1:{first}", rate=RATE, max_open=OPEN) as load,
    ):
        versions = kind(daemon, first, second, backend.ports)
        completed = refused = turn = 0
        while completed < RELOADS or load.progress["done"] < CONNECTIONS:
            version = versions[turn % len(versions)]
            turn += 1
            if version is not None:
                daemon.write(version)
            result = daemon.reload()
            broken = version is not None and "nowhere" in version
            assert (result.returncode != 0) is broken, result.stderr
            completed += not broken
            refused += broken
        outcome = load.stop()
        info = daemon.info()
        assert outcome["failed"] == 0, outcome["errors"]
        assert outcome["done"] >= CONNECTIONS
        assert int(info["Generation"]) == completed + 1
        poll_until(lambda: int(daemon.info()["CumConns"]) == outcome["done"], 10, "each has been counted, once")
        counters = backend.counters()
        assert [counters[name] for name in ("corrupt", "reset", "short")] == [0, 0, 0]
        poll_until(lambda: generations_accepting(daemon.processes(), first) == {daemon.pid}, 10, "one generation")
        poll_until(lambda: len(daemon.processes()) == 3, 10, "nothing lingers")
        assert (refused > 0) is (kind is _every_third_broken)
