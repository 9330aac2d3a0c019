"""Hundreds of clients of the runtime API at once, some of them a nuisance, while reloads go on: nobody else waits."""

from __future__ import annotations

import select
import socket
from pathlib import Path

from tests.support.daemon import Daemon
from tests.support.processes import Deadline, free_port

CROWD = 200
ROUNDS = 6
QUESTIONS = ("show version", "show info", "show stat", "show cli level", "show servers state", "show proc")


def _body(servers: int) -> str:
    lines = [f"server s{number} = 127.0.0.1:{number + 1}" for number in range(servers)]
    return f"[listen web]\nbind = 127.0.0.1:{free_port()}\n" + "\n".join(lines) + "\n"


class _Asker:
    """A client with a prompt that asks its next question when it has the answer to the last one."""

    def __init__(self, path: str, number: int) -> None:
        self.number = number
        self.asked = 0
        self.answers: list[bytes] = []
        self._buffer = b""
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(path)
        self.sock.sendall(b"prompt\n")

    @property
    def done(self) -> bool:
        return len(self.answers) == ROUNDS

    def ready(self) -> None:
        data = self.sock.recv(1 << 20)
        assert data, f"client {self.number} was dropped after {len(self.answers)} answers"
        self._buffer += data
        if not self._buffer.endswith(b"\n> "):
            return
        if self.asked:
            self.answers.append(self._buffer)
        self._buffer = b""
        if self.asked < ROUNDS:
            self.sock.sendall(QUESTIONS[(self.number + self.asked) % len(QUESTIONS)].encode() + b"\n")
            self.asked += 1


def test_everybody_is_answered_while_some_are_stuck_and_reloads_go_on(tmp_path: Path) -> None:
    limit = Deadline(60)
    with Daemon(tmp_path, _body(60), workers=1) as daemon:
        path = str(daemon.socket)
        # One that never reads a long answer, one that never finishes its line, one that reads a byte at a time.
        stuck, slow, drip = (socket.socket(socket.AF_UNIX) for _ in range(3))
        for sock, data in (
            (stuck, b"prompt\n" + b"show stat typed\n" * 50),
            (slow, b"show sta"),
            (drip, b"prompt\n" + b"show stat\n" * 20),
        ):
            sock.connect(path)
            sock.sendall(data)
        poll = select.poll()
        askers = {asker.sock.fileno(): asker for asker in (_Asker(path, number) for number in range(CROWD))}
        for fd in askers:
            poll.register(fd, select.POLLIN)
        reloaders = [socket.socket(socket.AF_UNIX) for _ in range(2)]
        waiting = list(reloaders)
        answered = 0
        began = 0
        while not all(asker.done for asker in askers.values()) or waiting:
            left = limit.left
            assert left > 0
            # A reload in the midst of it, and another one.
            if began < len(reloaders) and answered >= (began + 1) * CROWD * ROUNDS // 4:
                reloaders[began].connect(path)
                reloaders[began].sendall(b"reload\n")
                poll.register(reloaders[began], select.POLLIN)
                began += 1
            for fd, _ in poll.poll(left * 1000):
                if fd in askers:
                    before = len(askers[fd].answers)
                    askers[fd].ready()
                    answered += len(askers[fd].answers) - before
                else:
                    sock = next(sock for sock in reloaders if sock.fileno() == fd)
                    poll.unregister(fd)
                    sock.settimeout(limit.left)
                    assert sock.recv(1 << 16).startswith(b"Success=1\n")
                    waiting.remove(sock)
            if select.select([drip], [], [], 0)[0]:
                drip.recv(1)
        for asker in askers.values():
            for at, answer in enumerate(asker.answers):
                question = QUESTIONS[(asker.number + at) % len(QUESTIONS)]
                expected = {
                    "show version": (2, b""),
                    "show cli level": (2, b"admin"),
                    "show info": (50, b"\nPid: "),
                    "show stat": (63, b"\nweb,s59,"),
                    "show servers state": (62, b" s59 "),
                    "show proc": (5, b"# workers"),
                }[question]
                assert answer.count(b"\n") >= expected[0] and expected[1] in answer, (question, answer[:200])
            asker.sock.close()
        for sock in (stuck, slow, drip, *reloaders):
            sock.close()
        assert daemon.info()["Reloads"] == "2"
