"""The harness itself: machines boot, obey, tell and vanish; nothing here needs hitlessd."""

import contextlib
import os
import select
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from container import Container
from machine import ARTEFACTS, SUITES, MachineError

HERE = Path(__file__).resolve().parent
VERSIONS = {"debian-12": "252", "debian-13": "257"}

SERVER = """\
import socket
listener = socket.socket(fileno=3)
while True:
    connection, _ = listener.accept()
    with connection:
        connection.sendall(b"hello")
"""
CLIENT = "import socket; print(socket.create_connection(('127.0.0.1', 4711), 10).recv(5).decode())"


@pytest.fixture
def machine(booted: Container) -> Container:
    """Shared by all tests that ask for it: they must leave it as they found it."""
    return booted


def running_cgroups() -> set[str]:
    """The machines of this process that still have a cgroup."""
    mounts = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
    hierarchy = next(Path(path) for _, path, kind, *_ in mounts if kind == "cgroup2")
    return {path.name for path in hierarchy.glob(f"hitlessd-vm-{os.getpid()}-*")}


def test_boots_completely(machine: Container, record_property: Callable[[str, object], None]) -> None:
    version = machine.run("systemctl", "--version").stdout.split()[1]
    assert version.startswith(VERSIONS[machine.name])
    state = machine.run("systemctl", "is-system-running", check=False).stdout.strip()
    assert state == "running", machine.run("systemctl", "--failed", "--plain").stdout
    record_property("systemd", version)
    record_property("boot", machine.run("systemd-analyze", "time").stdout.splitlines()[0].strip())


def test_has_a_loopback_interface_and_no_other(machine: Container) -> None:
    addresses = machine.run("ip", "-brief", "address").stdout
    assert addresses.split() == ["lo", "UNKNOWN", "127.0.0.1/8", "::1/128"]


def test_sees_only_cgroup2(machine: Container) -> None:
    assert machine.run("stat", "--file-system", "--format=%T", "/sys/fs/cgroup").stdout.strip() == "cgroup2fs"


def test_run_gives_status_and_output(machine: Container) -> None:
    result = machine.run("sh", "-c", "cat; echo err >&2; exit 3", input="in\n", check=False)
    assert (result.returncode, result.stdout, result.stderr) == (3, "in\n", "err\n")
    assert machine.run("cat").stdout == ""


def test_run_raises_with_what_the_command_said(machine: Container) -> None:
    with pytest.raises(MachineError, match=r"cannot 'sh -c .*' on debian-1\d: exit status 3: too bad"):
        machine.run("sh", "-c", "echo too bad; exit 3")


def test_run_kills_what_takes_too_long(machine: Container) -> None:
    with pytest.raises(subprocess.TimeoutExpired):
        machine.run("sleep", "4711", timeout=0.1)
    assert machine.run("pgrep", "--full", "sleep 4711", check=False).stdout == ""


def test_start_gives_a_process_that_signals_reach(machine: Container) -> None:
    with machine.start(
        "sh", "-c", "trap 'echo got it; exit 7' USR1; echo ready; while :; do read line; done"
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        assert machine.read(f"/proc/{process.inside_pid}/comm") == "sh\n"
        process.send_signal(signal.SIGUSR1)
        assert process.stdin is not None
        # Whether the signal ends the shell's read, or this line does, depends on the shell's version. Not by a buffer,
        # in which the line would be left for close() to fail with.
        with contextlib.suppress(BrokenPipeError):
            os.write(process.stdin.fileno(), b"\n")
        assert process.stdout.readline() == "got it\n"
        assert process.wait(10) == 7


def test_start_gives_a_process_that_can_be_killed(machine: Container) -> None:
    with machine.start("sleep", "inf") as process:
        inside = process.inside_pid
        process.kill()
        assert process.wait(10) == -signal.SIGKILL
    assert machine.run("test", "-e", f"/proc/{inside}", check=False).returncode == 1


def test_start_gives_a_process_that_can_be_stopped(machine: Container) -> None:
    def state() -> str:
        return machine.read(f"/proc/{inside}/stat").rpartition(")")[2].split()[0]

    with machine.start("cat") as process:
        inside = process.inside_pid
        process.send_signal(signal.SIGSTOP)
        machine.wait_until(lambda: state() == "T", 10, "stop")
        process.send_signal(signal.SIGCONT)
        assert process.communicate("on it goes", 10) == ("on it goes", "")
    with machine.start("cat") as process:
        inside = process.inside_pid
        process.send_signal(signal.SIGSTOP)
        machine.wait_until(lambda: state() == "T", 10, "stop")
        process.kill()
        assert process.wait(10) == -signal.SIGKILL


def test_files_go_in_and_come_out(fresh_machine: Container, tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "file").write_text("content")
    os.chown(tmp_path / "sub", 1234, 1234)
    fresh_machine.push(tmp_path, "/srv/new/tree")
    assert fresh_machine.read("/srv/new/tree/sub/file") == "content"
    assert fresh_machine.run("stat", "--format=%u:%g", "/srv/new/tree/sub").stdout == "0:0\n"
    fresh_machine.write("/srv/script", "#!/bin/sh\necho done\n", mode=0o755)
    assert fresh_machine.run("/srv/script").stdout == "done\n"


def test_files_do_not_leave_through_symbolic_links(fresh_machine: Container, tmp_path: Path) -> None:
    fresh_machine.run("ln", "-s", str(tmp_path), "/srv/link")
    fresh_machine.run("mkdir", "--parents", str(tmp_path))
    fresh_machine.write("/srv/link/file", "content")
    assert list(tmp_path.iterdir()) == []
    assert fresh_machine.read(f"{tmp_path}/file") == "content"


def test_boots_are_fresh(fresh_machine: Container) -> None:
    mark = Path("/usr/mark")
    fresh_machine.write(str(mark), "")
    with Container(fresh_machine.name) as other:
        assert other.run("test", "-e", str(mark), check=False).returncode == 1


def test_journal_is_read_by_unit_and_from_a_cursor(machine: Container) -> None:
    before = machine.journal_cursor()
    machine.run("systemd-run", "--wait", "--quiet", "--unit=said", "echo", "one")
    between = machine.journal_cursor()
    machine.run("systemd-run", "--wait", "--quiet", "--unit=said", "echo", "two")
    machine.run("systemd-run", "--wait", "--quiet", "--unit=unsaid", "echo", "three")

    def said(cursor: str) -> list[str]:
        entries = machine.journal("said.service", cursor)
        return [entry["MESSAGE"] for entry in entries if entry.get("SYSLOG_IDENTIFIER") == "echo"]

    assert said(before) == ["one", "two"]
    assert said(between) == ["two"]
    assert any(entry.get("MESSAGE") == "three" for entry in machine.journal(since_cursor=between))


def test_a_first_connection_starts_a_socket_unit(fresh_machine: Container) -> None:
    fresh_machine.write("/srv/server.py", SERVER)
    fresh_machine.write("/etc/systemd/system/hello.socket", "[Socket]\nListenStream=127.0.0.1:4711\n")
    fresh_machine.write("/etc/systemd/system/hello.service", "[Service]\nExecStart=/usr/bin/python3 /srv/server.py\n")
    fresh_machine.run("systemctl", "daemon-reload")
    fresh_machine.run("systemctl", "start", "hello.socket")
    assert fresh_machine.property("hello.service", "ActiveState") == "inactive"
    assert fresh_machine.run("python3", "-c", CLIENT).stdout == "hello\n"
    assert fresh_machine.property("hello.service", "ActiveState") == "active"
    assert fresh_machine.property("hello.service", "MainPID") != "0"


def test_wait_until_gives_the_value_or_raises(machine: Container) -> None:
    values = iter([0, "", "there"])
    assert machine.wait_until(lambda: next(values), 10, "the third value") == "there"
    with pytest.raises(TimeoutError, match=r"not within 0 s on debian-1\d: nothing"):
        machine.wait_until(lambda: False, 0, "nothing")


def test_wait_until_notices_that_the_machine_died(fresh_machine: Container) -> None:
    os.kill(fresh_machine.leader, signal.SIGKILL)
    with pytest.raises(MachineError, match="has died"):
        fresh_machine.wait_until(lambda: False, 60, "nothing")


@pytest.mark.parametrize("name", SUITES)
def test_nothing_remains_of_a_machine(name: str, tmp_path: Path) -> None:
    before = running_cgroups()
    with Container(name, artefacts=tmp_path) as machine:
        assert len(running_cgroups() - before) == 1
        process = machine.start("sleep", "inf")
        stopped = machine.start("sleep", "inf")
        stopped.send_signal(signal.SIGSTOP)
        pids = [machine.leader, process.host_pid, process.pid, stopped.host_pid, stopped.pid]
    assert process.returncode is not None
    assert stopped.returncode is not None
    assert [pid for pid in pids if Path(f"/proc/{pid}").exists()] == []
    assert running_cgroups() == before
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", SUITES)
def test_nothing_remains_of_a_killed_test_run(name: str) -> None:
    program = (
        f"import sys; sys.path.insert(0, {str(HERE)!r}); from container import Container; "
        f"machine = Container({name!r}); "
        "machine.__enter__(); machine.start('cat').send_signal(19); print(machine.leader, flush=True); sys.stdin.read()"
    )
    argv = [sys.executable, "-B", "-c", program]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as run:
        assert run.stdout is not None
        pidfd = os.pidfd_open(int(run.stdout.readline()))
        run.kill()
    try:
        poller = select.poll()
        poller.register(pidfd, select.POLLIN)
        assert poller.poll(30_000), "the machine has outlived the process that booted it"
    finally:
        os.close(pidfd)


def test_an_exception_keeps_the_evidence(tmp_path: Path) -> None:
    def fail() -> None:
        with Container("debian-12", artefacts=tmp_path) as machine:
            machine.run("logger", "a trace of it")
            machine.run("journalctl", "--sync")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    kept = tmp_path / "debian-12"
    assert "a trace of it" in (kept / "journal.log").read_text()
    assert "Debian GNU/Linux 12" in (kept / "console.log").read_text()


def test_a_failed_boot_says_why_and_leaves_nothing(tmp_path: Path) -> None:
    before = running_cgroups()
    with pytest.raises(MachineError, match="cannot boot debian-13: it is not up after 0 s"):
        Container("debian-13", boot_deadline=0, artefacts=tmp_path).__enter__()
    assert running_cgroups() == before


def test_a_machine_without_an_image_says_how_to_make_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(MachineError, match=r"cannot boot debian-12: there is no .*; run `python vm-tests/image.py`"):
        Container("debian-12").__enter__()


def test_artefacts_have_a_place_in_the_tree() -> None:
    assert ARTEFACTS == HERE / "artefacts"
