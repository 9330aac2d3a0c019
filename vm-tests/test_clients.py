"""Sessions of Debian's own clients with Debian's own servers, through reloads: what people keep open all day."""

from __future__ import annotations

import csv
import time
from collections.abc import Callable

import pytest
from machine import Machine
from programs import CONFIGURATION, DIRECT, PATIENCE, PSQL, SERVERS, WORKERS, Conversation, copying
from service import TREE, UNIT, Load, Service

RELOADS = 20
RATE = 1000


@pytest.fixture
def service(fresh_machine: Machine) -> Service:
    """hitlessd, running before Debian's servers."""
    fresh_machine.install(TREE, CONFIGURATION)
    fresh_machine.run("sh", "-euc", SERVERS)
    service = Service(fresh_machine)
    service.start()
    return service


def accepted(service: Service) -> dict[str, int]:
    """Connections ever, by frontend."""
    rows = csv.DictReader(service.ask("show stat").removeprefix("# ").splitlines())
    return {row["pxname"]: int(row["stot"]) for row in rows if row["svname"] == "FRONTEND"}


#: Main, its spare, and workers.
PROCESSES = 2 + WORKERS


def processes(service: Service) -> list[int]:
    """All processes of the unit, of whatever generation."""
    return [int(pid) for pid in service.machine.read(f"/sys/fs/cgroup/system.slice/{UNIT}/cgroup.procs").split()]


def test_clients_keep_their_sessions_through_twenty_reloads(
    service: Service, record_property: Callable[[str, object], None]
) -> None:
    machine = service.machine
    with (
        Conversation(machine, *DIRECT, echo=r"\echo done") as direct,
        Conversation(machine, *PSQL, echo=r"\echo done") as database,
        Conversation(machine, *PSQL, echo=r"\echo done") as listening,
        Conversation(machine, "ssh", "-MT", "balanced", "exec sh", echo="echo done") as shell,
        Conversation(machine, "redis-cli", "-p", "8379", echo="ECHO done") as commands,
        Conversation(machine, "redis-cli", "-p", "8379", "SUBSCRIBE", "ticks") as subscribed,
        Load(machine, RATE) as load,
    ):
        database.ask("CREATE TABLE kept (n int); CREATE TEMP TABLE passing (n int); BEGIN;")
        listening.ask("LISTEN ticks;")
        assert [subscribed.hear() for _ in range(3)] == ["subscribe", "ticks", "1"]
        backend = database.ask("SELECT pg_backend_pid();")
        client = commands.ask("CLIENT ID")
        remote = shell.ask("echo $$ $PPID")
        expected = machine.run("sha256sum", "/srv/file").stdout.split()[0]
        machine.wait_until(lambda: accepted(service)["load"] > RATE, PATIENCE, "the load runs")
        cursor = machine.journal_cursor()

        took: list[float] = []
        left: list[float] = []
        heard: list[str] = []
        with copying(machine) as copies:
            for tick in range(RELOADS):
                # On their way, or waiting in a socket, while the generations change.
                assert commands.ask(f"PUBLISH ticks {tick}") == ["1"]
                assert direct.ask(f"NOTIFY ticks, '{tick}';") == []
                began = time.monotonic()
                done = service.reload()
                assert done.returncode == 0, done.stderr
                took.append(time.monotonic() - began)
                began = time.monotonic()
                machine.wait_until(lambda: len(processes(service)) == PROCESSES, 10, "the old generation has left")
                left.append(time.monotonic() - began)

                assert [subscribed.hear() for _ in range(3)] == ["message", "ticks", str(tick)]
                assert commands.ask("INCR ticks") == [str(tick + 1)]
                # psql reads what comes unasked only along with an answer.
                heard += machine.wait_until(lambda: listening.ask("SELECT 1;")[1:], PATIENCE, "the notification")
                assert database.ask(f"INSERT INTO kept VALUES ({tick}); INSERT INTO passing VALUES ({tick});") == []
                assert shell.ask(f"echo {tick} $$ $PPID") == [f"{tick} {remote[0]}"]
            assert service.mains() == [service.main_pid]
            shown = service.ask("show proc")
            machine.write("/srv/enough", "")
            hashes, errors = copies.communicate(timeout=PATIENCE)
        assert copies.returncode == 0, errors
        assert set(hashes.split()) == {expected, "-"}
        record_property("reload, median", f"{sorted(took)[RELOADS // 2] * 1000:.0f} ms, systemctl and all")
        record_property("old generation gone", f"at most {max(left) * 1000:.0f} ms after the reload")
        record_property("copies of 20 MB there and back", hashes.count("-"))

        assert [line.split('"')[3] for line in heard] == [str(tick) for tick in range(RELOADS)]
        assert direct.ask("SELECT count(*) FROM kept;") == ["0"]
        assert database.ask("COMMIT;") == []
        assert direct.ask("SELECT count(DISTINCT n) FROM kept;") == [str(RELOADS)]
        assert database.ask("SELECT count(DISTINCT n) FROM passing;") == [str(RELOADS)]
        assert database.ask("SELECT pg_backend_pid();") == backend
        assert commands.ask("CLIENT ID") == client
        assert shell.ask("echo $$ $PPID") == remote

        outcome = load.stop()
        assert outcome["failed"] == 0, outcome["errors"]
        record_property("new connections", f"{outcome['done']}, none failed")
        assert accepted(service) == {"postgresql": 2, "ssh": 1, "redis": 2, "load": outcome["done"]}
        assert [program.leave() for program in (database, listening, shell, commands)] == [0, 0, 0, 0]

    header, *lines = shown.splitlines()
    column = header.index("<generation>")
    generations = [line[column:].split()[0] for line in lines if line and not line.startswith("#")]
    assert generations == [str(RELOADS + 1)] * (1 + WORKERS), shown
    assert service.restarts == 0
    assert service.complaints(cursor) == []
