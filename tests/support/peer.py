"""A successor by hand that misbehaves, as a process of its own: who holds listeners may be killed for what it does.

    python -m tests.support.peer [--uid UID] SOCKET STEP...

Steps: hello, hello=VERSION, next, all (every listener), ready, ready=TEXT (of `kept`), accepting, committed, refuse,
bogus, garbage, wait (for whatever comes next), stall (until killed), leave. Prints each message that it receives.
"""

from __future__ import annotations

import json
import os
import select
import socket
import sys

from hitlessd.descriptors import receive_with_descriptors
from hitlessd.handover.wire import FrameReader, Message, encode


class Peer:
    def __init__(self, path: str) -> None:
        self._sock = socket.socket(socket.AF_UNIX)
        self._sock.settimeout(30)
        self._sock.connect(path)
        self._reader = FrameReader()
        self._records = 0
        self._taken = 0

    def send(self, **text: object) -> None:
        self._sock.sendall(encode(text))

    def receive(self) -> Message | None:
        """The next message, None when the other side closes."""
        while True:
            data, fds = receive_with_descriptors(self._sock, 1 << 18)
            if not data:
                print("closed", flush=True)
                return None
            if not data.startswith(b"hlsd") and not self._records:
                print(data.decode(errors="replace").strip(), flush=True)
                continue
            for message in self._reader.feed(data, fds):
                self._records = len(message.text.get("records", ())) or self._records
                self._taken += len(message.fds)
                told = {key: value for key, value in message.text.items() if key in ("is", "reason")}
                print(json.dumps({**told, "fds": len(message.fds)}), flush=True)
                return message

    def step(self, step: str) -> None:
        word, _, value = step.partition("=")
        match word:
            case "hello":
                version = int(value or 1)
                first = encode({"is": "hello", "version": version, "pid": os.getpid(), "nonce": ""})
                self._sock.sendall(b"_takeover\n" + first)
                self.receive()
            case "next":
                self.send(**{"is": "next"})
                self.receive()
            case "all":
                while self._taken < self._records:
                    self.step("next")
            case "ready":
                self.send(**{"is": "ready", "kept": json.loads(value or "[]")})
                self.receive()
            case "accepting":
                self.send(**{"is": "accepting"})
                self.receive()
            case "committed" | "refuse" | "bogus":
                self.send(**{"is": word, "reason": "the peer does not want to"})
            case "garbage":
                self._sock.sendall(b"\0garbage\n" * 100)
            case "wait":
                self.receive()
            case "stall":
                print("stalls", flush=True)
                select.select([], [], [])
            case "leave":
                os._exit(0)


def main() -> None:
    arguments = sys.argv[1:]
    if arguments[0] == "--uid":
        uid = int(arguments[1])
        os.setgroups([])
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)
        del arguments[:2]
    peer = Peer(arguments[0])
    for step in arguments[1:]:
        peer.step(step)


if __name__ == "__main__":
    main()
