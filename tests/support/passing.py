"""Run a command with descriptors as systemd passes them (sd_listen_fds(3)): numbered from 3 on, named, for its pid.

python -m tests.support.passing FD=NAME... -- COMMAND...
"""

from __future__ import annotations

import fcntl
import os
import sys

_FIRST = 3


def main() -> None:
    """Becomes the command; never returns."""
    split = sys.argv.index("--")
    given = [(int(fd), name) for fd, _, name in (each.partition("=") for each in sys.argv[1:split])]
    # Out of the way first: a number that is still to be moved must not be overwritten.
    high = [(fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, _FIRST + len(given)), name) for fd, name in given]
    for fd, _ in given:
        if fd >= _FIRST + len(given):
            os.close(fd)
    for place, (fd, _) in enumerate(high, _FIRST):
        os.dup2(fd, place, inheritable=True)
    if given:
        os.environ.update(
            LISTEN_PID=str(os.getpid()), LISTEN_FDS=str(len(given)), LISTEN_FDNAMES=":".join(name for _, name in high)
        )
    command = sys.argv[split + 1 :]
    os.execvp(command[0], command)


if __name__ == "__main__":
    main()
