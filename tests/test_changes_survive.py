"""What operators have changed at run time outlives reloads, restarts, crashes and the death of workers, as long as the
file says what it said; a stop forgets it."""

from __future__ import annotations

import csv
import os
import select
import signal
import socket
import subprocess
from pathlib import Path

import pytest

from tests.support.daemon import Daemon
from tests.support.echo import Echo, exchange
from tests.support.processes import ROOT, free_port, free_ports, poll_until, python_module
from tests.support.restartable import Restartable
from tests.support.visitors import Conversation, Visitors, conversations, listen

_SHOWN = ("status", "uweight", "slim", "addr", "sid")


def answers(daemon: Daemon, *commands: str) -> None:
    """Each is done without a complaint."""
    for command in commands:
        said = daemon.ask(command).strip()
        assert said in ("", "New server registered.", "Server deleted.") or " changed from " in said, (command, said)


def shown(daemon: Daemon) -> dict[str, tuple[str, ...]]:
    """Of every server and frontend, what operators can change."""
    found = csv.DictReader(daemon.ask("show stat").removeprefix("# ").splitlines())
    rows = {f"{row['pxname']}/{row['svname']}": tuple(row[name] for name in _SHOWN) for row in found}
    return {**rows, "maxconn": (daemon.info()["Maxconn"],)}


def body(port: int, other: int, server: int, **said: str) -> str:
    """Two sections alike; `said` replaces what the first one says."""
    values = {"a": f"127.0.0.1:{server} weight 10", "b": f"127.0.0.1:{server} maxconn 9", "limit": "100"} | said
    servers = f"server c = 127.0.0.1:{server} check inter 1h\nserver d = 127.0.0.1:{server}\n"
    return (
        f"[listen l]\nbind = 127.0.0.1:{port}\nmaxconn = {values['limit']}\n"
        + (f"server a = {values['a']}\n" if values["a"] else "")
        + f"server b = {values['b']}\n{servers}{values.get('more', '')}"
        f"[listen m]\nbind = 127.0.0.1:{other}\nmaxconn = 100\nserver a = 127.0.0.1:{server} weight 10\n"
        f"server b = 127.0.0.1:{server} maxconn 9\n{servers}"
    )


def changes(section: str, server: int) -> tuple[str, ...]:
    return (
        f"set weight {section}/a 50%",
        f"set server {section}/b addr 127.0.0.1 port {server}",
        f"set maxconn server {section}/b 5",
        f"disable health {section}/c",
        f"set server {section}/a state drain",
        f"disable server {section}/d",
        f"del server {section}/d",
        f"add server {section}/n 127.0.0.1:{server} weight 3",
        f"set server {section}/n state ready",
        f"set maxconn frontend {section} 50",
    )


def test_all_kinds_survive_all_but_a_stop(tmp_path: Path) -> None:
    port, other = free_ports(2)
    with Echo() as echo, Echo(b"new") as new, Restartable(tmp_path, body(port, other, echo.port)) as service:
        daemon = service.daemon
        before = shown(daemon)
        answers(daemon, *changes("l", new.port), "set maxconn global 77", "disable frontend m")
        wanted = shown(daemon)
        assert wanted["l/a"][:2] == ("DRAIN", "5") and wanted["l/b"][2:4] == ("5", f"127.0.0.1:{new.port}")
        assert wanted["l/c"][0] == "no check" and "l/d" not in wanted and wanted["l/n"][0] == "no check"
        assert wanted["l/FRONTEND"][2] == "50" and wanted["maxconn"] == ("77",)
        assert wanted["m/FRONTEND"][0] == "PAUSED"
        answers(daemon, "disable server l/c")  # b and n are left, both at the new server
        assert shown(daemon)["l/c"] == ("MAINT", *wanted["l/c"][1:])
        wanted = shown(daemon)

        def serves() -> None:
            assert exchange(port) == b"newhello"
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection(("127.0.0.1", other), 5)
            assert shown(daemon) == wanted

        serves()
        for again in (daemon.reload, service.restart, service.crash, daemon.reload, service.crash):
            again()
            serves()
        # Whoever is forked in a dead worker's place begins with it.
        for _ in range(2):
            old = service.kill_worker()
            poll_until(lambda old=old: len(service.workers()) == 2 and old not in service.workers(), 10, "two workers")  # type: ignore[misc]
        for _ in range(6):
            serves()
        # Taken back one by one, nothing is left of it.
        answers(daemon, "enable frontend m", "set server l/c state ready", "set weight l/a 100%", "enable health l/c")
        assert exchange(other) == b"hello"
        assert service.log.count("is what the configuration says again") == 0
        service.stop()
        service.start()
        assert shown(daemon) == before


def test_a_reload_drops_what_the_file_has_changed_and_nothing_else(tmp_path: Path) -> None:
    port, other = free_ports(2)
    with Echo() as echo, Daemon(tmp_path, body(port, other, echo.port)) as daemon:
        for section in ("l", "m"):
            answers(daemon, *changes(section, 7))
        answers(daemon, "set maxconn global 77")
        wanted = shown(daemon)
        more = f"server n = 127.0.0.1:{echo.port} weight 4\n"
        a, b = f"127.0.0.1:{echo.port} weight 11 disabled", "127.0.0.9:9 maxconn 8"
        text = body(port, other, echo.port, a=a, b=b, limit="90", more=more)
        text = text.replace("check inter 1h", "", 1).replace(
            f"server d = 127.0.0.1:{echo.port}", "server d = 127.0.0.1:1", 1
        )
        daemon.write(daemon.text(text).replace("maxconn = 2000", "maxconn = 1999"))
        result = daemon.reload()
        assert result.returncode == 0, result.stderr
        found = shown(daemon)
        assert {name: row for name, row in found.items() if name.startswith("m/")} == {
            name: row for name, row in wanted.items() if name.startswith("m/")
        }
        assert found["l/a"][:2] == ("MAINT", "11") and found["l/b"][2:4] == ("8", "127.0.0.9:9")
        assert found["l/d"][:4] == ("no check", "1", "", "127.0.0.1:1") and found["l/c"][0] == "no check"
        assert found["l/n"][1] == "4" and found["l/FRONTEND"][2] == "90" and found["maxconn"] == ("1999",)
        log = daemon.log
        for what in (
            "weight of server l/a",
            "state of server l/a",
            "address of server l/b",
            "maxconn of server l/b",
            "health check of server l/c",
            "server l/d",
            "server l/n",
            "state of server l/n",
            "maxconn of frontend l",
            "maxconn",
        ):
            line = f"notice: {what} is what the configuration says again: it has changed there"
            assert log.count(line) == 1, (what, log)
        assert "m/" not in "".join(line for line in log.splitlines() if "says again" in line)


def test_what_is_changed_while_a_reload_runs_is_not_lost(tmp_path: Path) -> None:
    port, other = free_ports(2)
    with Echo() as echo, Echo(b"new") as new, Daemon(tmp_path, body(port, other, echo.port)) as daemon:
        answers(daemon, "set weight l/a 1", "add server m/x 127.0.0.1:1", "disable server m/d")
        # The successor has the offer and sleeps.
        daemon.fault("successor.accept", signal.SIGSTOP)
        command = python_module("hitlessd.ctl", "-s", daemon.socket, "reload")
        with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as reload:
            sleeper = daemon.asleep()
            answers(daemon, *changes("l", new.port)[1:5], "set weight l/a 10", "add server l/y 127.0.0.1:1 weight 9")
            answers(daemon, "add server l/z 127.0.0.1:1")
            answers(daemon, "disable frontend m", "set server l/c state drain", "set server l/d state maint")
            assert "a reload is running" in daemon.ask("del server m/d")
            assert "a reload is running" in daemon.ask("shutdown frontend m")
            answers(daemon, "set server l/y state ready", "set weight l/y 0", "set maxconn global 70")
            wanted = shown(daemon)
            os.kill(sleeper, signal.SIGCONT)
            assert "Success=1" in daemon.ask("reload") and reload.wait(20) == 0
        assert daemon.info()["Generation"] == "3" and "cannot accept" not in daemon.log
        assert shown(daemon) == wanted
        assert exchange(port) == b"newhello"  # b is left, at the new server
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", other), 5)
        answers(daemon, "enable frontend m")
        assert exchange(other) == b"hello"
        assert "somebody may have shut its socket down" not in daemon.log
        # So it is where the successor does not succeed.
        daemon.fault("successor.accept", signal.SIGSTOP)
        with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as reload:
            sleeper = daemon.asleep()
            answers(daemon, "disable frontend m")
            with socket.create_connection(("127.0.0.1", other), 10) as client:  # waits, and is refused in the end
                os.kill(sleeper, signal.SIGKILL)
                assert reload.wait(20) == 1
                with pytest.raises(ConnectionResetError):
                    client.recv(1)
        answers(daemon, "set weight m/a 3")
        assert daemon.ask("get weight m/a").startswith("3 (initial 10)")
        assert daemon.reload().returncode == 0
        assert daemon.ask("get weight m/a").startswith("3 (initial 10)")


def test_what_was_said_of_a_servers_health_goes_where_it_goes(tmp_path: Path) -> None:
    port = free_port()
    text = f"[listen l]\nbind = 127.0.0.1:{port}\nserver s = 127.0.0.1:1\nserver t = 127.0.0.1:1\n"
    text += "server c = 127.0.0.1:1 check inter 1h\n"
    with Restartable(tmp_path, text) as service:
        daemon = service.daemon

        def states() -> dict[str, str]:
            return {name.removeprefix("l/"): row[0] for name, row in shown(daemon).items() if name.startswith("l/")}

        poll_until(lambda: states()["c"] == "DOWN", 10, "its check fails")
        answers(daemon, "set server l/s health down", "set server l/s addr 127.0.0.1 port 2")
        wanted = states()
        assert wanted["s"] == "DOWN" and wanted["t"] == "no check"
        for again in (daemon.reload, service.crash, service.restart):
            again()
            assert states() == wanted
        daemon.fault("successor.accept", signal.SIGSTOP)
        command = python_module("hitlessd.ctl", "-s", daemon.socket, "reload")
        with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as reload:
            sleeper = daemon.asleep()
            for server in "tsc":
                answers(daemon, f"set server l/{server} addr 127.0.0.1 port 3")
            answers(daemon, "set server l/t health stopping", "add server l/n 127.0.0.1:1", "enable server l/n")
            answers(daemon, "set server l/n health down")
            wanted = states()
            assert (wanted["t"], wanted["n"], wanted["c"]) == ("NOLB", "DOWN", "DOWN")
            os.kill(sleeper, signal.SIGCONT)
            assert reload.wait(20) == 0
        assert states() == wanted


def test_a_frontend_on_a_unix_path_lets_its_clients_wait(tmp_path: Path) -> None:
    path = str(tmp_path / "s.sock")
    with Echo() as echo, Daemon(tmp_path, f"[listen u]\nbind = {path}\nserver s = 127.0.0.1:{echo.port}\n") as daemon:
        answers(daemon, "disable frontend u")
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(10)
            client.connect(path)
            client.sendall(b"hello")
            assert daemon.reload().returncode == 0
            assert shown(daemon)["u/FRONTEND"][0] == "PAUSED" and int(daemon.info()["CumConns"]) == 0
            answers(daemon, "enable frontend u")
            assert client.recv(10) == b"hello"


def test_a_frontend_whose_address_was_taken_meanwhile_stays_off(tmp_path: Path) -> None:
    port = free_port()
    with (
        Echo() as echo,
        Daemon(tmp_path, f"[listen l]\nbind = 127.0.0.1:{port}\nserver s = 127.0.0.1:{echo.port}\n") as daemon,
    ):
        with Conversation(port) as conversation:
            answers(daemon, "disable frontend l")
            conversation.say()  # whoever is connected stays
            with socket.socket() as thief:
                thief.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                thief.bind(("127.0.0.1", port))
                thief.listen()
                assert (
                    daemon.ask("enable frontend l") == f"cannot listen on 127.0.0.1:{port}: Address already in use\n\n"
                )
                assert shown(daemon)["l/FRONTEND"][0] == "PAUSED"
            answers(daemon, "enable frontend l")
            assert exchange(port) == b"hello"
            # For good: the next reload opens it again. Workers forked in between do without.
            answers(daemon, "shutdown frontend l")
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection(("127.0.0.1", port), 5)
            conversation.say()
        worker = next(pid for pid in daemon.processes() if pid != daemon.pid)
        os.kill(worker, signal.SIGKILL)
        poll_until(lambda: worker not in daemon.processes() and len(daemon.processes()) == 3, 10, "another worker")
        assert shown(daemon)["l/FRONTEND"][0] == "STOP" and daemon.info()["Workers"] == "2"
        assert daemon.reload().returncode == 0
        assert exchange(port) == b"hello"


def test_a_frontend_that_is_off_stays_off_when_a_reload_fails_that_gives_its_address_away(tmp_path: Path) -> None:
    port = free_port()
    with Echo() as echo:
        text = f"[listen {{}}]\nbind = 127.0.0.1:{port}\nserver s = 127.0.0.1:{echo.port}\n"
        with Daemon(tmp_path, text.format("old")) as daemon:
            answers(daemon, "disable frontend old")
            daemon.write(daemon.text(text.format("new")))
            daemon.fault("successor.commit", signal.SIGKILL)
            assert daemon.reload().returncode == 1
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection(("127.0.0.1", port), 5)
            answers(daemon, "enable frontend old")
            assert exchange(port) == b"hello"
            answers(daemon, "disable frontend old")
            assert daemon.reload().returncode == 0
            assert exchange(port) == b"hello"


def test_a_frontend_of_systemds_keeps_its_socket(tmp_path: Path) -> None:
    with Echo() as echo, socket.create_server(("127.0.0.1", 0)) as passed:
        address = passed.getsockname()
        daemon = Daemon(tmp_path, listen("sd@web", server=echo.port))
        daemon.start(passed=[(passed.fileno(), "web")])
        try:
            daemon.wait_serving()
            told = daemon.ask("shutdown frontend t")
            assert told.startswith("cannot shut down frontend t: systemd listens for it (FileDescriptorName=web)")
            answers(daemon, "disable frontend t")
            with socket.create_connection(address, 10) as client:
                client.sendall(b"hello")
                assert daemon.reload().returncode == 0
                answers(daemon, "enable frontend t")
                assert client.recv(10) == b"hello"
        finally:
            daemon.end_all()


def test_a_server_with_connections_stays(tmp_path: Path) -> None:
    port = free_port()
    with Echo() as echo, Daemon(tmp_path, listen(port, server=echo.port, migrate=False)) as daemon:
        with Conversation(port) as conversation:
            conversation.say()  # so that it has the server
            answers(daemon, "disable server t/s")
            for _ in range(2):
                told = "Server still has connections attached to it, cannot remove it.\n\n"
                assert daemon.ask("del server t/s") == told
                # Then it is the generation that drains that has it.
                assert daemon.reload().returncode == 0
            conversation.say()
            conversation.finish()
        poll_until(lambda: daemon.ask("del server t/s") == "Server deleted.\n\n", 10, "it is deleted")
        # The same name again, and somewhere else.
        answers(daemon, f"add server t/s 127.0.0.1:{echo.port}", "enable server t/s")
        assert exchange(port) == b"hello"


def test_who_goes_into_maintenance_may_take_its_sessions_along(tmp_path: Path) -> None:
    port = free_port()
    with Echo() as echo:
        text = listen(port, server=echo.port, migrate=False)
        text += f"server other = 127.0.0.1:{echo.port} on-marked-down shutdown-sessions\n"
        with Daemon(tmp_path, text) as daemon, conversations(port, port) as (one, two):
            # Both are served by the generation that drains.
            assert daemon.reload().returncode == 0
            answers(daemon, "disable server t/other")
            (ended,), _, _ = select.select([one.sock, two.sock], [], [], 10)
            gone, stays = (one, two) if ended is one.sock else (two, one)
            assert gone.closed()
            stays.say()


def test_counters_are_cleared_over_all_generations(tmp_path: Path) -> None:
    port = free_port()
    with Echo() as echo:
        text = f"[listen l]\nbind = 127.0.0.1:{port}\nno option migrate\nserver s = 127.0.0.1:{echo.port}\n"
        with Daemon(tmp_path, text) as daemon:

            def row(name: str) -> dict[str, str]:
                found = csv.DictReader(daemon.ask("show stat").removeprefix("# ").splitlines())
                return next(each for each in found if each["svname"] == name)

            with Conversation(port) as conversation:
                for _ in range(3):
                    exchange(port)
                assert daemon.reload().returncode == 0
                for _ in range(4):
                    exchange(port)
                poll_until(lambda: row("s")["stot"] == "8", 10, "all are counted")
                answers(daemon, "clear counters")
                assert row("s")["stot"] == "8"
                answers(daemon, "clear counters all")
                cleared = {name: row(name) for name in ("FRONTEND", "s", "BACKEND")}
                for each in cleared.values():
                    assert (each["stot"], each["bin"], each["bout"], each["scur"]) == ("0", "0", "0", "1")
                assert daemon.info()["CumConns"] == "8" and int(row("s")["smax"]) <= 1
                conversation.say(b"x" * 10)
                exchange(port)
                poll_until(lambda: (row("s")["stot"], row("s")["bin"]) in (("1", "15"), ("1", "5")), 10, "it counts on")
                conversation.finish(b"")
            # The generation before has ended, and its totals are folded into ours.
            poll_until(lambda: daemon.info()["Generations"] == "1", 10, "one generation")
            assert (row("s")["stot"], row("s")["bin"], row("s")["scur"]) == ("1", "15", "0")
            assert daemon.reload().returncode == 0
            assert (row("FRONTEND")["stot"], row("FRONTEND")["bout"]) == ("1", "15")


def test_changes_under_load_fail_nobody(tmp_path: Path) -> None:
    port, other = free_ports(2)
    with (
        Echo() as echo,
        Echo() as more,
        Daemon(tmp_path, body(port, other, echo.port)) as daemon,
        Visitors(port) as visitors,
    ):
        for round in range(3):
            answers(daemon, f"add server l/n{round} 127.0.0.1:{more.port} maxconn 5", f"enable server l/n{round}")
            answers(daemon, "set server l/a state maint", "set server l/a state ready", f"set weight l/n{round} 20")
            answers(daemon, f"set server l/b addr 127.0.0.1 port {more.port}", "set maxconn server l/b 0")
            assert daemon.reload().returncode == 0
            answers(daemon, f"disable server l/n{round}", "set maxconn frontend l 40", "set maxconn global 90")
            poll_until(lambda n=round: daemon.ask(f"del server l/n{n}") == "Server deleted.\n\n", 10, "it is deleted")  # type: ignore[misc]
            answers(daemon, f"set server l/b addr 127.0.0.1 port {echo.port}", "set maxconn server l/b 9")
            visitors.more(20)
    assert visitors.served > 60
