"""Established connections outlive `systemctl restart`, the death of a worker and that of main, exactly or not at all.

The crowd checks every byte; what it has lost must be what the journal says.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable

import pytest
from crowd import CROWDED, Account, Crowd, Killer, bad_wires, cpu_of_pid_1, hog, parked
from machine import SUITES, Machine
from programs import CONFIGURATION as PROGRAMS
from programs import PSQL, SERVERS, Conversation
from service import FAULTS, PORT, SOCKET, TREE, UNIT, Load, Service

RESTARTS = 12
RATE = 1000
YOUNG = 8002
"""The port for connections that come and go."""
CONFIGURATION = """\
[global]
stats socket = /run/hitlessd/hitlessd.sock mode 600 expose-fd listeners level admin
workers = 2
maxconn = {maxconn}
{more}
[defaults]
mode = tcp
timeout connect = 5s
timeout client = 1m
timeout server = 1m
[listen crowd]
bind = {bind}
server s = {server}
[listen young]
bind = 127.0.0.1:8002
server s = 127.0.0.1:9002
"""
Record = Callable[[str, object], None]


def configuration(
    bind: str = f"127.0.0.1:{PORT}", server: str = f"127.0.0.1:{CROWDED}", more: str = "", maxconn: int = 3000
) -> str:
    return CONFIGURATION.format(bind=bind, server=server, more=more, maxconn=maxconn)


@pytest.fixture(scope="module")
def text() -> str:
    return configuration()


def restart(service: Service) -> float:
    """`systemctl restart`; seconds."""
    began = time.monotonic()
    service.machine.run("systemctl", "restart", UNIT)
    return time.monotonic() - began


def wait_parked(service: Service, count: int) -> None:
    """Wait until so many, or more, are parked."""
    service.machine.wait_until(lambda: parked(service) >= count, 30, f"{count} connections are parked")


def number(service: Service, name: str) -> int:
    return int(service.info()[name])


def up(service: Service) -> None:
    """Wait until the main process that systemd knows answers."""

    def answers() -> bool:
        shown = service.machine.run("hitlessctl", "show", "info", check=False)
        return shown.returncode == 0 and f"\nPid: {service.main_pid}\n" in shown.stdout

    service.machine.wait_until(answers, 30, "it is back")


def balanced(service: Service, cursor: str, cut: int) -> Account:
    """What the journal says, if it, the counters, and those who were cut off agree on how many are lost."""
    account = Account.read(service.machine, cursor)
    info = service.info()
    assert account.lost == cut, (account.lost, cut, account.reasons)
    assert int(info["CumResumed"]) == sum(account.resumed), (info, account.resumed)
    return account


def gaps(report: dict[str, object], record: Record) -> None:
    """Print the longest gaps, the target being 500 ms."""
    kinds = report["kinds"]
    assert isinstance(kinds, dict)
    longest = {
        kind: f"{found['gap_ms']['max']:.0f} ms (p50 {found['gap_ms']['p50']:.0f})" for kind, found in kinds.items()
    }
    record("longest gap", longest)


def whole(report: dict[str, object]) -> None:
    """No wrong byte on either side, and nobody lost."""
    server = report["server"]
    assert isinstance(server, dict)
    lost = report["lost"]
    assert isinstance(lost, list)
    assert (report["corrupt"], server["corrupt"]) == (0, 0), lost[:10]
    assert report["broken"] == 0, lost[:10]
    assert report["unfinished"] == 0


def test_twelve_restarts_break_nobody_and_refuse_nobody(service: Service, record_property: Record) -> None:
    machine = service.machine
    service.start()
    with Crowd(machine, idle=700, pingpong=300, bulk=32) as crowd:
        wait_parked(service, crowd.size)
        # At once no more than the machine's limit on descriptors lets park, should they pile up on a busy one.
        with Load(machine, RATE, "--max-open 1000", port=YOUNG) as load:
            machine.wait_until(lambda: service.connections() > crowd.size + RATE, 30, "the load runs")
            cursor, before, took = machine.journal_cursor(), cpu_of_pid_1(machine), []
            for count in range(1, RESTARTS + 1):
                took.append(restart(service))
                if count % 4 == 0:
                    crowd.verify()
            cpu = cpu_of_pid_1(machine) - before
            outcome = load.stop()
        report = crowd.stop()
    gaps(report, record_property)
    record_property("restart, median", f"{sorted(took)[RESTARTS // 2] * 1000:.0f} ms, systemctl and all")
    record_property("CPU of PID 1", f"{cpu / RESTARTS * 1000:.1f} ms a restart")
    record_property("young", f"{outcome['done']} served, cut off by kind: {outcome['failures']}")
    whole(report)
    assert outcome["failures"]["refused"] == 0, outcome["errors"]
    assert outcome["failures"]["timeout"] == 0, outcome["errors"]
    assert outcome["failures"]["corrupt"] == outcome["failures"]["wrong"] == 0, outcome["errors"]
    account = Account.read(machine, cursor)
    record_property("journal", f"{account.took}, lost {account.lost}: {account.reasons[:3]}")
    # The next restart may come before the last one has resumed all.
    assert account.resumed and account.resumed[-1] >= crowd.size
    assert number(service, "CumResumed") >= sum(account.resumed)
    # Who is cut off while it ends may not notice.
    assert outcome["failed"] <= account.lost, (outcome["failures"], outcome["errors"][:5], account.reasons)
    assert service.restarts == 0


@pytest.mark.parametrize("what", ["worker", "main"])
def test_kills_at_random_moments_break_nobody(service: Service, record_property: Record, what: str) -> None:
    """Also while the connections of the last kill come back; 25 a test, at other moments on each suite."""
    seed = sorted(SUITES).index(service.machine.name) + 1
    machine, killer = service.machine, Killer(service.machine, seed)
    service.start()
    with Crowd(machine, idle=700, pingpong=300, bulk=32, options=f"--seed {seed}") as crowd:
        wait_parked(service, crowd.size)
        cursor = machine.journal_cursor()
        while killer.kills < 25:
            crowd.rest(killer.delay())
            killer.kill(what)
            if killer.kills % 8 == 0:
                crowd.verify()
        up(service)
        crowd.verify()
        lost = len(crowd.lost)
        account = balanced(service, cursor, lost)
        counted = number(service, "CumLost")
        report = crowd.stop()
    gaps(report, record_property)
    record_property("kills", f"{killer.kills}, resumed {sum(account.resumed)}, {account.took[-1:]}, lost {lost}")
    assert (report["corrupt"], report["server"]["corrupt"]) == (0, 0), report["lost"][:10]
    assert (lost, counted, account.reasons) == (0, 0, [])
    whole(report)


@pytest.mark.quick
@pytest.mark.parametrize("what", ["restart", "worker", "main"])
def test_the_gap_of_one_death(service: Service, record_property: Record, what: str) -> None:
    """When nothing else happens."""
    machine, killer = service.machine, Killer(service.machine, 8)
    service.start()
    with Crowd(machine, idle=700, pingpong=300, bulk=32) as crowd:
        wait_parked(service, crowd.size)
        cursor = machine.journal_cursor()
        if what == "restart":
            restart(service)
        else:
            killer.kill(what)
        crowd.verify()
        crowd.rest(1.0)
        account = balanced(service, cursor, 0)
        report = crowd.stop()
    gaps(report, record_property)
    record_property("journal", account.took)
    whole(report)


@pytest.mark.parametrize("place", ["resumption", "parking"])
def test_a_death_in_every_batch_breaks_nobody(service: Service, place: str) -> None:
    """Who resumes dies over and over, each time a batch further; who parks dies after a batch."""
    machine, killer = service.machine, Killer(service.machine, 3)
    service.drop_in(f"[Service]\nEnvironment=HITLESSD_FAULTS={FAULTS}\n")
    service.start()
    with Crowd(machine, idle=400, pingpong=100, bulk=8) as crowd:
        wait_parked(service, crowd.size)
        cursor = machine.journal_cursor()
        for what in ("worker", "main"):
            for batch in (1, 2):
                service.fault(f"{place}.batch-{batch}", "SIGKILL")
                killer.kill(what)
                if place == "resumption":
                    machine.wait_until(
                        lambda: machine.run("test", "-e", FAULTS, check=False).returncode, 20, f"batch {batch}"
                    )
                up(service)
                machine.run("rm", "-f", FAULTS)
                wait_parked(service, crowd.size)
                crowd.verify()
        balanced(service, cursor, len(crowd.lost))
        whole(crowd.stop())


def test_new_connections_meet_a_listener_through_kills(service: Service, record_property: Record) -> None:
    """Whoever is younger than park-after when the process dies is cut off; the log says how many those were."""
    machine, killer = service.machine, Killer(service.machine, 4)
    service.start()
    with Crowd(machine, idle=100, pingpong=100) as crowd:
        wait_parked(service, crowd.size)
        with Load(machine, 300, port=YOUNG) as load:
            machine.wait_until(lambda: service.connections() > crowd.size + 300, 30, "the load runs")
            cursor = machine.journal_cursor()
            kills = ("worker", "main", "worker", "main", "main", "worker")
            for what in kills:
                crowd.rest(killer.delay())
                killer.kill(what)
            up(service)
            outcome = load.stop()
        account = Account.read(machine, cursor)
        report = crowd.stop()
    record_property("young", f"{outcome['done']} served, cut off by kind: {outcome['failures']}; {account.reasons}")
    whole(report)
    assert outcome["failures"]["refused"] == outcome["failures"]["timeout"] == 0, outcome["errors"]
    assert outcome["failures"]["corrupt"] == outcome["failures"]["wrong"] == 0, outcome["errors"]
    # Who is cut off while it ends may not notice. And a worker counts at the end of a turn: whom it accepted in the one
    # in which it was killed, a burst at most, nobody has counted.
    assert outcome["failed"] <= account.lost + 16 * len(kills), (outcome["failures"], account.reasons)


def test_without_the_check_of_the_counters_bytes_go_wrong(service: Service, record_property: Record) -> None:
    """A check that cannot fail proves nothing."""
    machine, killer = service.machine, Killer(service.machine, 5)
    service.drop_in("[Service]\nEnvironment=HITLESSD_UNCHECKED_RESUME=1\n")
    service.start()
    with Crowd(machine, bulk=40, options="--timeout 60") as crowd:
        wait_parked(service, crowd.size)

        def corrupt() -> int:
            return sum(1 for each in crowd.lost if each["reason"] == "corrupt")

        while killer.kills < 200 and not corrupt():
            crowd.rest(killer.dice.uniform(0.1, 0.5))
            killer.kill(killer.dice.choice(["worker", "main"]))
        crowd.rest(2.0)
        found = corrupt()
    record_property("corrupt", f"{found} of 40 after {killer.kills} kills: {[x['detail'] for x in crowd.lost[:3]]}")
    assert found


def test_a_restart_into_a_broken_configuration_keeps_everybody(service: Service) -> None:
    machine = service.machine
    service.start()
    with Crowd(machine, idle=50, pingpong=50, bulk=4) as crowd:
        wait_parked(service, crowd.size)
        cursor = machine.journal_cursor()
        service.configure("[global]\nworkers = many\n")
        restart(service)
        crowd.verify()
        assert "SERVING THE LAST GOOD CONFIGURATION" in service.status
        assert any("workers" in line and "hitlessd.conf:2" in line for line in service.complaints(cursor))
        machine.run("kill", "-KILL", str(service.main_pid))
        up(service)
        crowd.verify()
        assert "SERVING THE LAST GOOD CONFIGURATION" in service.status
        service.configure(configuration())
        assert service.reload().returncode == 0
        assert "LAST GOOD" not in service.status
        restart(service)
        whole(crowd.stop())
    service.configure("[global]\nworkers = many\n")
    machine.run("systemctl", "stop", UNIT)
    assert machine.run("systemctl", "start", UNIT, check=False).returncode != 0
    assert machine.property(UNIT, "ExecMainStatus") == "78"


@pytest.mark.parametrize("units", [(UNIT,), (SOCKET, UNIT)], ids=["service", "socket and service"])
def test_stop_means_stop(service: Service, units: tuple[str, ...], record_property: Record) -> None:
    machine = service.machine
    if SOCKET in units:
        service.configure(configuration(bind="sd@http"))
        service.drop_in(f"[Socket]\nListenStream=\nListenStream=127.0.0.1:{PORT}\n", SOCKET)
        service.start(SOCKET)
    service.start()
    with Crowd(machine, idle=300, pingpong=50, bulk=10) as crowd:
        wait_parked(service, crowd.size)
        # Once through the store, since what has come back must end as well.
        restart(service)
        crowd.verify()
        assert crowd.lost == []
        wait_parked(service, crowd.size)
        began = time.time()
        machine.run("systemctl", "stop", *units)
        stopped = time.time()
        machine.wait_until(lambda: len(crowd.lost) == crowd.size, 10, f"all see an end: {len(crowd.lost)}")
        # Those with much in their buffers see the end when they have read it.
        last = max(each["at"] for each in crowd.lost if each["kind"] != "bulk")
        reasons = {each["reason"] for each in crowd.lost}
    record_property(
        "stop", f"{(stopped - began) * 1000:.0f} ms; the last end after {(last - began) * 1000:.0f} ms: {reasons}"
    )
    assert stopped - began <= 1.0
    assert last - began <= 1.0
    assert reasons <= {"reset", "short"}
    assert service.stored == 0
    assert service.mains() == []
    for unit in units:
        service.start(unit)
    info = service.info()
    assert (info["CumResumed"], info["CurrParked"], info["CumLost"]) == ("0", "0", "0")
    assert info["CurrConns"] == "0"


def one_clear_line(service: Service, cursor: str, *words: str) -> str:
    """What the service has said at warning or above since then: each process one line, with these words.

    That its share of connections is reached, which depends on who accepts how many, is another matter.
    """
    lines: dict[str, list[str]] = {}
    for entry in service.machine.journal(UNIT, cursor):
        severe = entry.get("_SYSTEMD_UNIT") == UNIT and int(entry["PRIORITY"]) <= 4
        if severe and "new clients wait" not in str(entry["MESSAGE"]):
            lines.setdefault(str(entry["_PID"]), []).append(str(entry["MESSAGE"]))
    assert lines
    assert all(len(said) == 1 for said in lines.values()), lines
    every = [line for said in lines.values() for line in said]
    assert all(word in line for word in words for line in every), every
    return every[0]


@pytest.mark.parametrize("most", [2, 3, 4])
def test_a_full_store_costs_a_line_and_nothing_else(service: Service, most: int, record_property: Record) -> None:
    machine = service.machine
    service.drop_in(f"[Service]\nFileDescriptorStoreMax={most}\n")
    cursor = machine.journal_cursor()
    service.start()
    with Crowd(machine, idle=100, pingpong=50, bulk=4) as crowd:
        if machine.name == "debian-12":
            # It does not tell the service how many it stores, and complains by itself.
            assert any(f"FileDescriptorStoreMax={most}" in line for line in service.complaints(cursor))
        else:
            record_property("line", one_clear_line(service, cursor, "FileDescriptorStoreMax"))
        for _ in range(2):
            assert service.reload().returncode == 0
            crowd.verify()
        assert service.stored <= most
        whole(crowd.stop())
    restart(service)
    up(service)
    with Crowd(machine, idle=10) as crowd:
        whole(crowd.stop())


def test_a_low_limit_of_descriptors_parks_fewer(service: Service, record_property: Record) -> None:
    machine = service.machine
    # Enough for the connections, not for as many again on their way to another process.
    service.drop_in("[Service]\nLimitNOFILE=1500\n")
    service.configure(configuration(maxconn=600))
    cursor = machine.journal_cursor()
    service.start()
    with Crowd(machine, idle=500, pingpong=50) as crowd:
        wait_parked(service, 50)
        crowd.rest(2.0)
        record_property("line", one_clear_line(service, cursor, "LimitNOFILE"))
        record_property("parked", f"{parked(service)} of {crowd.size}")
        assert parked(service) < crowd.size
        crowd.verify()
        kept = parked(service)
        began = machine.journal_cursor()
        restart(service)
        up(service)
        crowd.verify()
        lost = len(crowd.lost)
        record_property("restart", f"{lost} of {crowd.size} lost")
        assert lost <= crowd.size - kept
        balanced(service, began, lost)
        assert service.reload().returncode == 0
        crowd.verify()
        assert len(crowd.lost) == lost
        report = crowd.stop()
    assert report["corrupt"] == 0


def test_too_many_references_park_nobody_and_break_nothing(service: Service, record_property: Record) -> None:
    """Another process of the daemon's user has used up what the kernel lets that user send (ETOOMANYREFS)."""
    machine = service.machine
    service.drop_in("[Service]\nLimitNOFILE=8000\n")
    service.configure(configuration(maxconn=1000))
    service.start()
    with hog(machine, 9000):
        cursor = machine.journal_cursor()
        with Crowd(machine, idle=100, pingpong=50, bulk=4) as crowd:
            crowd.rest(5.0)
            record_property("parked", f"{parked(service)} of {crowd.size}")
            record_property("line", one_clear_line(service, cursor, "cannot park"))
            assert parked(service) == 0
            whole(crowd.stop())
    with Crowd(machine, idle=100, pingpong=50, bulk=4) as crowd:
        wait_parked(service, crowd.size)
        assert service.reload().returncode == 0
        wait_parked(service, crowd.size)
        restart(service)
        crowd.verify()
        whole(crowd.stop())


def test_packets_that_are_late_or_lost(service: Service, record_property: Record) -> None:
    """The counters are the kernel's, and it knows of bytes that are sent and not yet acknowledged."""
    machine, killer = service.machine, Killer(service.machine, 6)
    with bad_wires(machine, "--delay 0.005 --loss 0.01 --late 0.02") as wires:
        service.configure(configuration(bind="10.9.1.2:8001", server="10.9.2.2:9003"))
        service.start()
        with Crowd(
            machine,
            idle=60,
            pingpong=40,
            bulk=8,
            target="10.9.1.2:8001",
            listen="10.9.2.2:9003",
            netns="clients",
            server_netns="servers",
            options="--timeout 40",
        ) as crowd:
            wait_parked(service, crowd.size)
            cursor = machine.journal_cursor()
            for count in range(16):
                crowd.rest(killer.delay())
                if count % 4 == 3:
                    restart(service)
                else:
                    killer.kill(killer.dice.choice(["worker", "main"]))
            up(service)
            crowd.verify()
            account = balanced(service, cursor, len(crowd.lost))
            report = crowd.stop()
        carried = [json.loads(wire.stop()) for wire in wires]
    gaps(report, record_property)
    record_property("packets", carried)
    record_property("journal", account.took[-1:])
    assert all(each["lost"] for each in carried)
    whole(report)


def test_clients_keep_their_sessions_through_restarts_and_kills(
    fresh_machine: Machine, record_property: Record
) -> None:
    """A transaction, a shell, a subscription."""
    machine = fresh_machine
    machine.install(TREE, PROGRAMS)
    machine.run("sh", "-euc", SERVERS)
    service, killer = Service(machine), Killer(machine, 7)
    service.start()
    with (
        Conversation(machine, *PSQL, echo=r"\echo done") as database,
        Conversation(machine, "ssh", "-MT", "balanced", "exec sh", echo="echo done") as shell,
        Conversation(machine, "redis-cli", "-p", "8379", echo="ECHO done") as commands,
        Conversation(machine, "redis-cli", "-p", "8379", "SUBSCRIBE", "ticks") as subscribed,
    ):
        database.ask("CREATE TABLE kept (n int); CREATE TEMP TABLE passing (n int); BEGIN;")
        assert [subscribed.hear() for _ in range(3)] == ["subscribe", "ticks", "1"]
        backend = database.ask("SELECT pg_backend_pid();")
        client = commands.ask("CLIENT ID")
        remote = shell.ask("echo $$ $PPID")
        wait_parked(service, 4)
        took = []
        deeds = ["restart"] * RESTARTS + ["worker", "main"] * 3
        killer.dice.shuffle(deeds)
        for tick, deed in enumerate(deeds):
            # On its way, or waiting in a socket, while the process changes.
            assert commands.ask(f"PUBLISH ticks {tick}") == ["1"]
            began = time.monotonic()
            if deed == "restart":
                restart(service)
            else:
                killer.kill(deed)
            assert [subscribed.hear() for _ in range(3)] == ["message", "ticks", str(tick)]
            assert commands.ask("INCR ticks") == [str(tick + 1)]
            took.append(time.monotonic() - began)
            assert database.ask(f"INSERT INTO kept VALUES ({tick}); INSERT INTO passing VALUES ({tick});") == []
            assert shell.ask(f"echo {tick} $$ $PPID") == [f"{tick} {remote[0]}"]
        assert database.ask("COMMIT;") == []
        assert database.ask("SELECT count(DISTINCT n) FROM kept;") == [str(len(deeds))]
        assert database.ask("SELECT count(DISTINCT n) FROM passing;") == [str(len(deeds))]
        assert database.ask("SELECT pg_backend_pid();") == backend
        assert commands.ask("CLIENT ID") == client
        assert shell.ask("echo $$ $PPID") == remote
        record_property("an answer again", f"at most {max(took) * 1000:.0f} ms after it began")
        assert [program.leave() for program in (database, shell, commands)] == [0, 0, 0]
