"""Which orders a pool of workers follows while a handover goes on."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator

import pytest

from hitlessd.log import Log
from hitlessd.loop import Loop
from hitlessd.main.parks import Parks
from hitlessd.main.store import Store
from hitlessd.main.workers import Pool
from hitlessd.model import LogTarget
from hitlessd.systemd import Manager
from tests.support.accepting import accepting
from tests.support.processes import Deadline
from tests.support.relay import Farm, listen, make_config, make_table


class _Hall:
    """A pool of one worker on a listener, and the loop of its main process."""

    def __init__(self, listener: socket.socket, farm: Farm) -> None:
        self.errors: list[BaseException] = []
        self.loop = Loop(lambda _what, error: self.errors.append(error))
        config = make_config(farm.servers())
        self.table = make_table(config)
        self.port = listener.getsockname()[1]
        sockets = [("www", config.frontends[0].binds[0], listener)]
        log = Log(LogTarget("stderr", "emerg"))
        parks = self.parks = Parks(log, Store(Manager({})), 1, 100, 200, True)
        self.pool = Pool(self.loop, log, config, sockets, self.table, 100, parks)
        self.pool.start()

    def order(self, order: str) -> None:
        done: list[bool] = []
        self.pool.tell(order, lambda: done.append(True))
        deadline = Deadline(20.0)
        while not done:
            deadline.check(order)
            self.loop.turn(1.0)

    @property
    def accepts(self) -> bool:
        return bool(accepting([pid for _, pid in self.pool.members()], self.port))

    def close(self) -> None:
        gone: list[bool] = []
        self.pool.when_gone(lambda: gone.append(True))
        self.pool.kill_all()
        deadline = Deadline(20.0)
        while not gone:
            deadline.check("the end of the workers")
            self.loop.turn(1.0)
        self.loop.close()
        for park in self.parks:
            self.parks.drop(park)
        self.table.close()
        for fd in self.pool._wake:
            os.close(fd)
        assert not self.errors


@pytest.fixture
def hall() -> Iterator[_Hall]:
    farm = Farm(1)
    listener = listen()
    made = _Hall(listener, farm)
    yield made
    made.close()
    listener.close()
    farm.close()


@pytest.mark.parametrize("state", ["idle", "stop"])
def test_nobody_is_resumed_while_another_generation_accepts(hall: _Hall, state: str) -> None:
    """SIGTTIN amid a handover must not make two generations accept."""
    if state == "stop":
        hall.order("accept")
        assert hall.accepts
        hall.order("stop")
    hall.order("resume")
    assert not hall.accepts
    assert hall.pool.state == state
    hall.order("accept")
    assert hall.accepts


def test_a_handover_that_is_called_off_does_not_end_a_pause(hall: _Hall) -> None:
    hall.order("accept")
    hall.order("pause")
    hall.order("stop")
    hall.order("accept")
    assert not hall.accepts
    hall.order("resume")
    assert hall.accepts
