"""What goes with each batch of connections: the sockets' families, and records of proxies, once where they are kept."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator
from dataclasses import replace

import pytest

from hitlessd import channel
from hitlessd.descriptors import close_all
from hitlessd.model import Timeouts
from hitlessd.worker.batch import Batch
from tests.support.relay import Farm, Lab, listen, make_config, make_table, migrate

TIMES = Timeouts(connect=5, client=60, server=50)
#: With so many ways each batch has one connection.
MANY_WAYS = 1 << 20


@pytest.fixture
def farm() -> Iterator[Farm]:
    made = Farm(1)
    yield made
    made.close()


class Receiver:
    """A worker of another version, by hand."""

    def __init__(self, old: Lab) -> None:
        self._old = old
        near, self._far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._far.setblocking(False)
        channel.send(old.main, {"do": "migrate", "ways": MANY_WAYS}, [near.fileno()])
        near.close()

    def __enter__(self) -> Receiver:
        return self

    def __exit__(self, *_: object) -> None:
        self._far.close()
        self._old.settle()

    def batches(self) -> Iterator[Batch]:
        """Those that come without another answer; their connections are taken, and ended."""
        self._old.settle()
        with contextlib.suppress(BlockingIOError):
            while True:
                _, fds = channel.receive_with(self._far)
                batch = Batch.read(fds.pop(0))
                for position in range(len(batch.forms)):
                    batch.claim(position)
                close_all(fds)
                yield batch
                batch.close()

    def answer(self, **more: object) -> None:
        channel.send(self._far, {"is": "taken", **more})


@pytest.mark.parametrize(("more", "later"), [({}, True), ({"remembers": True}, False)])
def test_who_remembers_records_is_told_once(farm: Farm, more: dict[str, object], later: bool) -> None:
    with Lab(make_config(farm.servers(), timeouts=TIMES)) as old:
        for _ in range(5):
            old.pair(farm)
        with Receiver(old) as receiver:
            told = [(sorted(batch.frontends), sorted(batch.backends)) for batch in receiver.batches()]
            assert told == [(["www"], ["app"])] * 2  # nobody has answered yet
            receiver.answer(**more)
            (third,) = [(sorted(batch.frontends), sorted(batch.backends)) for batch in receiver.batches()]
            assert third == ((["www"], ["app"]) if later else ([], []))
            # An operator changes it.
            backend = old.worker.backends["app"]
            backend.config = replace(backend.config, retries=7)
            receiver.answer(**more)
            (fourth,) = [(sorted(batch.frontends), batch.backends) for batch in receiver.batches()]
            assert fourth[0] == (["www"] if later else [])
            assert fourth[1]["app"]["retries"] == 7


@pytest.mark.parametrize("names", [("other", "app"), ("www", "other")])
def test_all_batches_arrive_where_nothing_is_known_of_their_proxies(farm: Farm, names: tuple[str, str]) -> None:
    config = make_config(farm.servers(), timeouts=TIMES)
    unlike = replace(
        config,
        frontends=(replace(config.frontends[0], name=names[0], default_backend=names[1]),),
        backends=(replace(config.backends[0], name=names[1]),),
    )
    table = make_table(unlike, generation=2)
    with contextlib.closing(table), Lab(unlike, table=table, accept=False) as new, Lab(config) as old:
        pairs = [old.pair(farm) for _ in range(6)]
        assert migrate(old, new, together=MANY_WAYS) == {"moved": 6, "kept": {}, "lost": 0}
        for client, server in pairs:
            client.send(b"x")
            new.until(lambda server=server: server.read() == b"x")  # type: ignore[misc]


@pytest.mark.parametrize("address", [("127.0.0.1", 0), ("::1", 0), "unix"])
def test_a_socket_is_what_it_was(
    farm: Farm, address: tuple[str, int] | str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    config = make_config(farm.servers(), timeouts=TIMES)
    table = make_table(config, generation=2)
    with (
        listen(str(tmp_path_factory.mktemp("s") / "s") if address == "unix" else address) as listener,
        contextlib.closing(table),
        Lab(config, table=table, accept=False) as new,
        Lab(config, listener=listener) as old,
    ):
        old.pair(farm)
        assert migrate(old, new)["moved"] == 1
        (moved,) = new.worker.connections
        assert moved.server is not None
        for side, family in ((moved.client, listener.family), (moved.server, socket.AF_INET)):
            sock = side.sock
            assert (sock.family, sock.type, sock.proto, sock.timeout) == (family, socket.SOCK_STREAM, 0, 0.0)
            assert not os.get_blocking(side.fd) and not os.get_inheritable(side.fd)
