"""The one place that speaks with systemd: descriptors from and to PID 1, and state notifications.

Sources: sd_notify(3), sd_listen_fds(3), sd_watchdog_enabled(3), "File Descriptor Store" in systemd.service(5).
"""

from __future__ import annotations

import errno
import os
import select
import time
from collections.abc import Iterable, Sequence

from hitlessd.errors import SystemRefused

__all__ = ["STORE_PREFIX", "Manager", "inherited_descriptors", "leave_no_trace"]

#: Descriptors of ours in the store carry names that no .socket unit will have by accident. No ':' is allowed in them.
STORE_PREFIX = "hitlessd."

#: What a process we start must not inherit: with its old LISTEN_PID it would silently get no descriptors, with its old
#: WATCHDOG_PID no watchdog.
_OF_ONE_PROCESS = ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES", "LISTEN_PIDFDID", "WATCHDOG_PID")

#: Times to send descriptors that the kernel does not let pass, and seconds in between.
_TRIES, _AGAIN = 10, 0.02
#: At most this many descriptors fit in one message (SCM_MAX_FD, unix(7)).
_MAX_FDS = 253


def leave_no_trace(environment: dict[str, str]) -> None:
    """Take what was meant for one process out of the environment of the next."""
    for name in _OF_ONE_PROCESS:
        environment.pop(name, None)


def inherited_descriptors() -> list[tuple[int, str]]:
    """What systemd passed us, as (descriptor, name), close-on-exec set; an empty list without socket activation.

    Raises SystemRefused when LISTEN_FDS names descriptors that are not there.
    """
    if os.environ.get("LISTEN_PID") != str(os.getpid()):
        return []
    from systemd import daemon  # its import costs 8 ms, which a reload need not pay

    try:
        return sorted(daemon.listen_fds_with_names(unset_environment=False).items())
    except OSError as error:
        raise SystemRefused(f"cannot use the descriptors of $LISTEN_FDS: {error.strerror}") from None


def _one_line(text: str) -> str:
    clean = "".join(" " if ord(letter) < 32 else letter for letter in text)
    return clean.encode(errors="backslashreplace").decode()


class Manager:
    """The service manager, if there is one; without NOTIFY_SOCKET every call does nothing and succeeds."""

    def __init__(self, environment: dict[str, str]) -> None:
        self.present = bool(environment.get("NOTIFY_SOCKET"))
        #: The descriptor store is open to us (FileDescriptorStoreMax=); managers older than 254 do not say.
        self.has_store = self.present and environment.get("FDSTORE") != "0"
        #: The most that it takes, FileDescriptorStoreMax=; None where the manager does not say.
        limit = environment.get("FDSTORE", "")
        self.store_limit = int(limit) if self.present and limit.isdecimal() else None
        #: Another process is the main one by our own word: from us systemd hears nothing but a barrier any more.
        self.replaced = False
        #: Seconds within which systemd wants to hear from us, None without WatchdogSec=.
        self.watchdog: float | None = None
        usec, pid = environment.get("WATCHDOG_USEC", ""), environment.get("WATCHDOG_PID", "")
        if self.present and usec.isdecimal() and int(usec) and pid in ("", str(os.getpid())):
            self.watchdog = int(usec) / 1e6

    def notify(self, *lines: str, fds: Sequence[int] = ()) -> bool:
        """Send one datagram of state lines; whether it went out. Never raises: a deaf manager must not stop traffic.

        A line break within a line, say from a file name in a reason, would begin another assignment.
        """
        if not self.present or (self.replaced and lines != ("BARRIER=1",)):
            return True
        from systemd import daemon

        text = "\n".join(map(_one_line, lines))
        for _ in range(_TRIES):
            try:
                daemon.notify(text, False, 0, list(fds))
                return True
            except OSError as error:
                # What PID 1 cannot be told, it will find out by its own time-outs.
                if error.errno != errno.ETOOMANYREFS:
                    return False
                # Too many descriptors of this user are in flight (unix(7)): a state of the system, which passes.
                time.sleep(_AGAIN)
        return False

    def reloading(self) -> None:
        """RELOADING=1 and the time go together in one datagram; a READY=1 must follow, whatever comes of it."""
        self.notify("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def store(self, name: str, fds: Iterable[int]) -> bool:
        """Put descriptors into the store under `name`; sending one that is already there changes nothing. False when
        they could not be sent; whether they are kept nobody tells."""
        every = list(fds)
        return all(
            [
                self.notify("FDSTORE=1", f"FDNAME={name}", "FDPOLL=0", fds=every[start : start + _MAX_FDS])
                for start in range(0, len(every), _MAX_FDS)
            ]
        )

    def unstore(self, name: str) -> None:
        """Drop every stored descriptor of that name."""
        self.notify("FDSTOREREMOVE=1", f"FDNAME={name}")

    def barrier(self, timeout: float = 5.0) -> bool:
        """Wait until PID 1 has processed all that we sent before; False when it did not within `timeout` seconds."""
        if not self.present:
            return True
        reader, writer = os.pipe2(os.O_CLOEXEC)
        try:
            self.notify("BARRIER=1", fds=[writer])
        finally:
            os.close(writer)
        poll = select.poll()
        poll.register(reader, 0)  # POLLHUP comes unasked
        done = bool(poll.poll(timeout * 1000))
        os.close(reader)
        return done
