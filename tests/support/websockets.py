"""WebSocket sessions with a real library at both ends: each message comes back once, in order, byte for byte."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import threading
from types import TracebackType
from typing import Any

from websockets.asyncio.client import connect
from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed

from tests.support.processes import poll_until

__all__ = ["EchoServer", "Sessions"]


class _Loop:
    """An asyncio loop in a thread, for the length of a `with` block; `main()` runs in it until `over` is set."""

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._ready = threading.Event()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name=type(self).__name__)

    def _run(self) -> None:
        async def main() -> None:
            self._loop = asyncio.get_running_loop()
            self._over = asyncio.Event()
            await self.main()

        try:
            asyncio.run(main())
        except BaseException as error:
            self._failure = error
        finally:
            self._ready.set()

    async def main(self) -> None:
        raise NotImplementedError

    def start(self) -> None:
        self._thread.start()
        self._ready.wait(20)
        if self._failure is not None:
            raise self._failure

    def stop(self) -> None:
        if self._loop is not None and self._thread.is_alive():
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._over.set)
        self._thread.join(20)
        assert not self._thread.is_alive(), "the loop has not ended"
        if self._failure is not None:
            raise self._failure

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


class EchoServer(_Loop):
    """Sends every message back; counts sessions."""

    def __init__(self) -> None:
        super().__init__()
        self.address = ""
        self.sessions = 0

    async def main(self) -> None:
        async with serve(self._echo, "127.0.0.1", 0, compression=None) as server:
            port = next(iter(server.sockets)).getsockname()[1]
            self.address = f"127.0.0.1:{port}"
            self._ready.set()
            await self._over.wait()

    async def _echo(self, session: ServerConnection) -> None:
        self.sessions += 1
        with contextlib.suppress(ConnectionClosed):
            async for message in session:
                await session.send(message)

    def __enter__(self) -> EchoServer:
        self.start()
        return self


class Sessions(_Loop):
    """`count` sessions with an echo at `address`. Each always has `window` messages on their way, of up to 40 KB."""

    def __init__(self, address: str, count: int, *, window: int = 3, pause: float = 0.02) -> None:
        super().__init__()
        self._address = address
        self._count = count
        self._window = window
        self._pause = pause
        self.echoed = [0] * count
        """Messages that have come back, by session."""
        self.errors: list[str] = []
        self._open = 0

    def __enter__(self) -> Sessions:
        self.start()
        poll_until(lambda: self._open == self._count or self.errors, 20, "all sessions are open")
        return self

    async def main(self) -> None:
        self._ready.set()
        async with asyncio.TaskGroup() as group:
            for index in range(self._count):
                group.create_task(self._session(index))

    @staticmethod
    def _message(index: int, number: int) -> bytes | str:
        seed = hashlib.sha256(f"{index} {number}".encode()).hexdigest()
        # Text and binary frames, with lengths of all three forms (RFC 6455, 5.2).
        text = f"{index} {number} " + seed * (1100 if number % 50 == 0 else number % 7)
        return text.encode() if number % 2 else text

    async def _session(self, index: int) -> None:
        sent = 0
        try:
            async with connect(f"ws://{self._address}/echo", compression=None, proxy=None) as session:
                self._open += 1
                while not (self._over.is_set() and sent == self.echoed[index]):
                    while sent < self.echoed[index] + self._window and not self._over.is_set():
                        await session.send(self._message(index, sent))
                        sent += 1
                    answer = await asyncio.wait_for(session.recv(), 20)
                    if answer != self._message(index, self.echoed[index]):
                        raise ValueError(f"not the echo of message {self.echoed[index]}: {answer[:40]!r}")
                    self.echoed[index] += 1
                    if self.echoed[index] % self._window == 0:
                        with contextlib.suppress(TimeoutError):
                            await asyncio.wait_for(self._over.wait(), self._pause)
        except (OSError, ValueError, TimeoutError, ConnectionClosed) as error:
            self.errors.append(f"session {index} after {self.echoed[index]} of {sent}: {error!r}")

    def wait_echoed(self, more: int, deadline: float = 20.0) -> None:
        """Wait until every session has had so many more messages back, or one failed."""
        before = list(self.echoed)

        def all_have() -> Any:
            return self.errors or all(now >= then + more for now, then in zip(self.echoed, before, strict=True))

        poll_until(all_have, deadline, f"{more} more messages in every session")
        assert not self.errors, self.errors[:5]
