"""What a worker has closed it does not watch any more, also where a duplicate of the socket lives on elsewhere."""

from __future__ import annotations

import os
from pathlib import Path

from hitlessd.model import Timeouts
from hitlessd.worker.serial import freeze, resume
from tests.support.relay import Farm, Lab, Peer, make_config, make_park, migrate

TIMES = Timeouts(connect=5, client=60, server=50, queue=7)


def watched(lab: Lab) -> set[int]:
    """The numbers under which sockets are registered; those of closed ones stay while a duplicate lives (epoll(7))."""
    lines = Path(f"/proc/self/fdinfo/{lab.worker.epoll.fileno()}").read_text().splitlines()
    return {int(line.split()[1]) for line in lines if line.startswith("tfd:")}


def end(lab: Lab, *peers: Peer) -> None:
    for peer in peers:
        peer.close()
    lab.until(lambda: not lab.worker.connections, "no connections")
    lab.turn()


def test_one_that_nobody_else_has(farm: Farm) -> None:
    with Lab(make_config(farm.servers(), timeouts=TIMES)) as lab:
        before = watched(lab)
        client, server = lab.pair(farm)
        assert len(watched(lab)) == len(before) + 2
        end(lab, client, server)
        assert watched(lab) == before


def test_one_that_lies_in_a_park(farm: Farm) -> None:
    with Lab(make_config(farm.servers(), timeouts=TIMES), park=make_park()) as lab:
        before = watched(lab)
        client, server = lab.pair(farm)
        lab.pass_time(2.0)
        lab.pass_time(1.0)
        (conn,) = lab.worker.connections
        assert conn.shared
        end(lab, client, server)
        assert watched(lab) == before


def test_one_that_goes_and_comes_back(farm: Farm) -> None:
    """As when nobody takes it: who was to may have its descriptors still."""
    with Lab(make_config(farm.servers(), timeouts=TIMES)) as lab:
        before = watched(lab)
        client, server = lab.pair(farm)
        (conn,) = lab.worker.connections
        frozen = freeze(conn)
        assert watched(lab) == before  # though both sockets are open
        assert frozen.server is not None
        copies = [os.dup(sock.fileno()) for sock in (frozen.client, frozen.server)]
        resume(lab.worker, frozen)
        assert len(watched(lab)) == len(before) + 2
        end(lab, client, server)
        assert watched(lab) == before
        for copy in copies:
            os.close(copy)


def test_one_that_moves_to_another_worker(farm: Farm) -> None:
    config = make_config(farm.servers(), timeouts=TIMES)
    with Lab(config) as old, Lab(config, listener=old.listener, accept=False) as new:
        here, there = watched(old), watched(new)
        client, server = old.pair(farm)
        assert migrate(old, new) == {"moved": 1, "kept": {}, "lost": 0}
        old.turn()
        assert watched(old) == here and len(watched(new)) == len(there) + 2
        end(new, client, server)
        assert watched(new) == there
