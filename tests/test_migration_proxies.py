"""What the new configuration means for connections that move: they live on under their old names."""

from __future__ import annotations

import contextlib
import os
import resource
import socket
from collections.abc import Iterator
from dataclasses import replace

import pytest

from hitlessd import channel
from hitlessd.descriptors import close_all
from hitlessd.model import Config, Timeouts
from hitlessd.table import Column, RowKey, Table, row_keys
from hitlessd.worker.batch import ROOM
from hitlessd.worker.serial import to_serial
from tests.support.relay import Farm, Lab, gauges, make_config, make_table, migrate

TIMES = Timeouts(connect=5, client=60, server=50, queue=7)


@pytest.fixture
def farm() -> Iterator[Farm]:
    made = Farm(2)
    yield made
    made.close()


@contextlib.contextmanager
def few_descriptors(count: int) -> Iterator[None]:
    """This process can open so many more and no others."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    fill: list[int] = []
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(map(int, os.listdir("/proc/self/fd"))) + count + 1, limits[1]))
    try:
        with contextlib.suppress(OSError):
            while True:
                fill.append(os.dup(0))
        while count:
            os.close(fill.pop())
            count -= 1
        yield
    finally:
        for fd in fill:
            os.close(fd)
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def both_rows(old: Config, new: Config) -> Table:
    """The new generation's table, with rows for what is no longer configured, as main makes it."""
    keys = [*row_keys(new), *(key for key in row_keys(old) if key not in row_keys(new))]
    table = Table.create(keys, 1, 2)
    known = make_table(new, generation=2)
    for key, row in known.index.items():
        table.set_state(table.index[key], known.state(row), known.weight(row), 0)
    known.close()
    return table


@contextlib.contextmanager
def labs(old: Config, new: Config, rows: bool = True) -> Iterator[tuple[Lab, Lab]]:
    table = both_rows(old, new) if rows else make_table(new, generation=2)
    with contextlib.ExitStack() as stack:
        stack.callback(table.close)
        two = stack.enter_context(Lab(new, table=table, accept=False))
        one = stack.enter_context(Lab(old))
        yield one, two


def renamed(config: Config, frontend: str, backend: str) -> Config:
    return replace(
        config,
        frontends=(replace(config.frontends[0], name=frontend, default_backend=backend),),
        backends=(replace(config.backends[0], name=backend),),
    )


@pytest.mark.parametrize("rows", [True, False])
@pytest.mark.parametrize("names", [("other", "b2"), ("www", "b2"), ("other", "app")])
def test_a_connection_lives_on_under_names_that_are_no_longer_configured(
    farm: Farm, names: tuple[str, str], rows: bool
) -> None:
    config = make_config(farm.servers(), timeouts=TIMES)
    other = make_config([replace(farm.server(1), name="x")], timeouts=Timeouts(connect=1, client=2, server=3))
    with labs(config, renamed(other, *names), rows) as (old, new):
        client, server = old.pair(farm)
        client.send(b"a")
        old.until(lambda: server.read() == b"a")
        (before,) = (to_serial(conn) for conn in old.worker.connections)
        assert migrate(old, new) == {"moved": 1, "kept": {}, "lost": 0}
        (conn,) = new.worker.connections
        form = to_serial(conn)
        assert (form.frontend, form.backend, form.server, form.number) == ("www", "app", "s1", before.number)
        new.turn()
        key = RowKey("frontend", "www")
        if key in new.table.index:
            assert new.table.value(new.table.index[key], Column.SCUR) == 1
        assert new.value("process", Column.SCUR) == 1
        # Old timeouts where the old configuration is all there is, new ones otherwise.
        assert conn.frontend.route.client_open == (2 if names[0] == "www" else 60)
        client.send(b"b")
        server.send(b"c")
        new.until(lambda: server.read() == b"ab" and client.read() == b"c")
        client.close()
        server.close()
        new.until(lambda: not new.worker.connections)
        new.turn()
        assert gauges(new.table) == {} and "] www app/s1 " in new.lines[-1]


def test_a_server_that_was_removed_keeps_its_connections(farm: Farm) -> None:
    config = make_config([farm.server(0)], timeouts=TIMES)
    other = make_config([farm.server(1)], timeouts=TIMES)
    with labs(config, other) as (old, new):
        client, server = old.pair(farm)
        migrate(old, new)
        (conn,) = new.worker.connections
        assert conn.target is not None and conn.target.name == "s1"
        client.send(b"x")
        new.until(lambda: server.read() == b"x")
        client.close()
        server.close()
        new.until(lambda: not new.worker.connections)
        new.turn()
        assert gauges(new.table) == {}


@pytest.mark.parametrize("where", ["frontend", "backend"])
@pytest.mark.parametrize("gone", [True, False])
def test_shutdown_on_reload(farm: Farm, where: str, gone: bool) -> None:
    plain = make_config(farm.servers(), timeouts=TIMES)
    strict = replace(
        plain,
        frontends=(replace(plain.frontends[0], shutdown_on_reload=where == "frontend"),),
        backends=(replace(plain.backends[0], shutdown_on_reload=where == "backend"),),
    )
    # What the new configuration says counts, and where it says nothing, the old one.
    with labs(*((strict, renamed(plain, "other", "b2")) if gone else (plain, strict))) as (old, new):
        client, server = old.pair(farm)
        assert migrate(old, new)["moved"] == 1
        new.until(lambda: not new.worker.connections)
        new.turn()
        assert " KD " in new.lines[-1] and gauges(new.table) == {}
        old.until(lambda: (client.read(), client.eof)[1] and (server.read(), server.eof)[1])


@pytest.mark.parametrize("where", ["frontend", "backend"])
def test_no_option_migrate(farm: Farm, where: str) -> None:
    plain = make_config(farm.servers(), timeouts=TIMES)
    stays = replace(
        plain,
        frontends=(replace(plain.frontends[0], migrate=where != "frontend"),),
        backends=(replace(plain.backends[0], migrate=where != "backend"),),
    )
    with labs(stays, plain) as (old, new):
        client, server = old.pair(farm)
        assert migrate(old, new) == {"moved": 0, "kept": {"option migrate is off": 1}, "lost": 0}
        client.send(b"x")
        old.until(lambda: server.read() == b"x")


def test_who_waits_longest_is_served_first(farm: Farm) -> None:
    config = make_config([farm.server(0, maxconn=1)], timeouts=TIMES)
    with labs(config, config) as (old, new):
        first, server = old.pair(farm)
        waiting = []
        for number in range(3):
            client = old.connect()
            client.send(b"%d" % number)
            waiting.append(client)
            old.until(lambda count=number: len(old.worker.connections) == count + 2)  # type: ignore[misc]
        old.settle()
        assert migrate(old, new)["moved"] == 4
        assert len(new.worker.backends["app"].queue) == 3
        first.close()
        for number in range(3):
            server.close()
            server = new.until(farm.accept)
            new.until(lambda one=server, text=b"%d" % number: one.read() == text)  # type: ignore[misc]
            waiting[number].close()
        server.close()
        new.until(lambda: not new.worker.connections)


@pytest.mark.parametrize("ways", [1, 3])
def test_many_go_in_several_batches(farm: Farm, ways: int) -> None:
    config = make_config(farm.servers(), timeouts=TIMES)
    with labs(config, config) as (old, new):
        pairs = [old.pair(farm, number % 2) for number in range(ROOM // 2 * 2 + 3)]
        assert migrate(old, new, ways) == {"moved": len(pairs), "kept": {}, "lost": 0}
        for client, server in pairs:
            client.send(b"x")
            server.send(b"y")
        new.until(lambda: all(server.read() == b"x" and client.read() == b"y" for client, server in pairs))
        assert new.value("frontend", Column.STOT) == 0 and old.value("frontend", Column.STOT) == len(pairs)


def test_who_waits_for_a_slot_waits_no_longer_for_a_move(farm: Farm) -> None:
    config = make_config([farm.server(0, maxconn=1)], timeouts=TIMES)
    with labs(config, config) as (old, new):
        old.pair(farm)
        waiting = old.connect()
        old.until(lambda: len(old.worker.connections) == 2)
        old.settle()
        for lab in (old, new):
            lab.pass_time(4)
        assert migrate(old, new)["moved"] == 2
        new.pass_time(2.5)
        assert new.value("backend", Column.QCUR) == 1 and waiting.read() == b"" and not waiting.eof
        new.pass_time(1)
        new.until(lambda: waiting.read() is not None and waiting.eof)
        new.turn()
        assert new.lines[-1].split()[6] == "sQ" and new.value("backend", Column.QCUR) == 0


def test_descriptors_that_run_short_on_the_way_leave_them_where_they_were(farm: Farm) -> None:
    config = make_config(farm.servers(), timeouts=TIMES)
    with labs(config, config) as (old, new):
        pairs = [old.pair(farm, number % 2) for number in range(20)]
        with few_descriptors(12):
            report = migrate(old, new)
        assert (report["moved"], report["lost"], list(report["kept"].values())) == (0, 0, [20])
        assert not new.worker.connections
        for client, server in pairs:
            client.send(b"x")
            old.until(lambda server=server: server.read() == b"x")  # type: ignore[misc]
        # With room again, the next reload takes them.
        assert migrate(old, new) == {"moved": 20, "kept": {}, "lost": 0}


def test_all_ways_together_have_less_on_the_way_than_half_of_the_limit(farm: Farm) -> None:
    ways = 8
    with Lab(make_config(farm.servers(), timeouts=TIMES)) as old:
        pairs = [old.pair(farm, number % 2) for number in range(60)]
        near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with near, far, few_descriptors(20):
            soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
            channel.send(old.main, {"do": "migrate", "ways": ways}, [near.fileno()])
            near.close()
            old.settle()
            far.setblocking(False)
            sent = []
            with contextlib.suppress(BlockingIOError):
                while True:
                    _, fds = channel.receive_with(far)
                    sent.append(len(fds))
                    close_all(fds)
        assert len(sent) == 2  # the most that may be unanswered
        assert all(sent) and sum(sent) * ways <= soft // 2
        for client, server in pairs:
            client.send(b"x")
            old.until(lambda server=server: server.read() == b"x")  # type: ignore[misc]


def test_what_was_sent_before_a_death_is_received_although_answers_were_not() -> None:
    one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with other:
        channel.send(other, {"is": "taken"})
        channel.send(one, {"is": "batch"}, [one.fileno()])
        one.close()
        message, fds = channel.receive_with(other)
        assert message == {"is": "batch"} and len(fds) == 1
        close_all(fds)
        assert channel.receive(other) is None


@pytest.mark.parametrize("garbage", [b"{}", b'{"is":"taken"}', b"nonsense"])
def test_a_receiver_that_talks_nonsense_gets_nobody(farm: Farm, garbage: bytes) -> None:
    config = make_config(farm.servers(), timeouts=TIMES)
    with Lab(config) as old:
        client, server = old.pair(farm)
        near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with near, far:
            channel.send(old.main, {"do": "migrate"}, [near.fileno()])
            near.close()
            old.turn()
            far.send(garbage)
            old.settle()
            answer = channel.receive(old.main)
        if answer is None or answer["did"] != "migrate":
            pytest.fail(f"no report but {answer}")
        assert answer["moved"] == 0 and list(answer["kept"].values()) == [1]
        client.send(b"x")
        old.until(lambda: server.read() == b"x")


def test_a_sender_that_talks_nonsense_is_left_alone(farm: Farm) -> None:
    config = make_config(farm.servers(), timeouts=TIMES)
    for garbage in (b"{}", b'{"is":"batch"}', b"nonsense"):
        with Lab(config) as new:
            near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            with near:
                channel.send(new.main, {"do": "adopt"}, [far.fileno()])
                far.close()
                new.turn()
                near.send(garbage)
                new.settle()
                assert not new.worker.arrivals and any("cannot take over" in text for _, text in new.logged)
                answer = channel.receive(near)
                assert answer is not None and answer["is"] == "refused"
