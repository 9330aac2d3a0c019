"""The command line of hitlessd: HAProxy's letters and meanings (HAProxy management guide, section 3)."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Sequence

from hitlessd import __version__
from hitlessd.dataclass import dataclass, field

__all__ = ["main"]

_USAGE = """\
usage: hitlessd -f FILE|DIR [-f ...] [options]

  -f FILE|DIR   configuration; of a directory, its *.conf files in the order of their names
  -c            check the configuration, say what it needs of the unit, and exit: 0 valid, 1 not
  -p FILE       write the pid of the main process there
  -x SOCKET     take the listeners over from whoever serves that runtime socket (hitlessd or haproxy)
  -sf PID...    when serving, tell these processes to finish (SIGUSR1)
  -st PID...    when serving, tell these processes to stop at once (SIGTERM)
  -D            go into the background once serving
  -W, -Ws       accepted: hitlessd always has a main process and workers, and always tells systemd
  -q            with -c: say nothing of a valid configuration but warnings
  -v, -vv       print the version, with details, and exit
  -h, --help    print this and exit
"""
_EXIT_FAILED = 1
_EXIT_USAGE = 64  # EX_USAGE, sysexits.h
_EXIT_INTERRUPTED = 128 + 2  # as a shell says of a program that SIGINT ended
_LARGEST_PID = 2**31 - 1  # of the kernel's pid_t

_OPTIONS = ("-f", "-c", "-p", "-x", "-sf", "-st", "-D", "-W", "-Ws", "-q", "-v", "-vv", "--help")
#: What other programs, haproxy first, call something that exists here, or not.
_HINTS = {
    "-C": "give -f the whole path",
    "-F": "did you mean -f?",
    "-L": "hitlessd has no peers",
    "-N": "use `maxconn` in [defaults]",
    "-S": "hitlessd has no socket of its own for the master: `stats socket` takes `reload` and `show proc`",
    "-V": "did you mean -v?",
    "-d": "hitlessd stays in the foreground and logs to the standard error output as it is",
    "-m": "use MemoryMax= in the unit",
    "-n": "use `maxconn` in [global]",
    "-s": "use hitlessctl to speak to a running hitlessd",
    "-t": "did you mean -c?",
    "--check": "did you mean -c?",
}


@dataclass(slots=True)
class _Arguments:
    files: list[str] = field(default_factory=list)
    check: bool = False
    pidfile: str = ""
    predecessor: str = ""
    finish: list[int] = field(default_factory=list)
    terminate: list[int] = field(default_factory=list)
    background: bool = False
    quiet: bool = False
    version: int = 0
    help: bool = False


class _UsageError(Exception):
    pass


def _parse(argv: Sequence[str]) -> _Arguments:
    """Options as HAProxy takes them: single dashes, pids up to the next option."""
    result = _Arguments()
    words = list(argv)

    def value(option: str, what: str) -> str:
        if not words:
            raise _UsageError(f"cannot use {option}: found nothing after it, expected {what}")
        return words.pop(0)

    while words:
        word = words.pop(0)
        match word:
            case "-f":
                result.files.append(value(word, "a file or directory"))
            case "-p":
                result.pidfile = value(word, "a file")
            case "-x":
                result.predecessor = value(word, "a runtime socket")
            case "-sf" | "-st":
                pids = result.finish if word == "-sf" else result.terminate
                while words and not words[0].startswith("-"):
                    pid = words.pop(0)
                    if not (pid.isascii() and pid.isdecimal() and len(pid) < 20 and 0 < int(pid) <= _LARGEST_PID):
                        raise _UsageError(f"cannot use {word}: found {pid!r}, expected the number of a process")
                    pids.append(int(pid))
            case "-c":
                result.check = True
            case "-D":
                result.background = True
            case "-q":
                result.quiet = True
            case "-W" | "-Ws" | "-db" | "--":
                continue
            case "-v" | "-vv":
                result.version = len(word) - 1
            case "-h" | "--help":
                result.help = True
            case "--version":
                result.version = 1
            case _:
                hint = _hint(word)
                raise _UsageError(f"cannot use {word!r}: it is not an option" + (f"; {hint}" if hint else ""))
    return result


def _hint(word: str) -> str:
    """What somebody who gave a word that is no option may have wanted, or ""."""
    if word in _HINTS:
        return _HINTS[word]
    if not word.startswith("-"):
        if word in ("reload", "status", "show", "help"):
            return f"did you mean hitlessctl {word}?"
        return f"did you mean -f {word}?" if os.path.exists(word) else ""
    if len(word) < 3:  # every letter is near every other one
        return ""
    import difflib

    near = difflib.get_close_matches(word, _OPTIONS, 1, 0.5)
    return f"did you mean {near[0]}?" if near else ""


def _version(details: bool) -> str:
    lines = [f"hitlessd version {__version__}"]
    if details:
        import platform

        from hitlessd.handover.wire import VERSION

        lines += [
            f"Python {platform.python_version()} at {sys.executable}",
            f"takeover protocol {VERSION}, _getsocks as HAProxy 1.8 and later",
            f"Linux {platform.release()} {platform.machine()}",
        ]
    return "\n".join(lines)


def _check(files: Sequence[str], quiet: bool) -> int:
    """`-c`: also what only this machine can tell, short of opening anything."""
    from hitlessd.config import load
    from hitlessd.errors import HitlessdError
    from hitlessd.main.limits import plan, raise_soft_limit, store_entries
    from hitlessd.model import SystemdAddress

    try:
        config = load(files)
        workers = config.global_.workers or len(os.sched_getaffinity(0))
        binds = [bind for frontend in config.frontends for bind in frontend.binds]
        limits = plan(config, workers, len(binds), raise_soft_limit())
    except HitlessdError as error:
        _say(str(error), error=True)
        return _EXIT_FAILED
    for warning in (*config.warnings, *filter(None, [limits.shortage])):
        _say(f"warning: {warning}", error=True)
    if quiet:
        return 0
    own = sum(not isinstance(bind.address, SystemdAddress) for bind in binds)
    # One more runtime socket than configured: the unit's own.
    mains = len(config.global_.stats_sockets) + 1 + len(config.global_.metrics_binds)
    entries = store_entries(own, mains, workers)
    return _say(
        "Configuration file is valid\n"
        f"maxconn {limits.maxconn} with {workers} worker{'s' if workers > 1 else ''}:"
        f" LimitNOFILE={limits.needed} or more, FileDescriptorStoreMax={entries} or more"
    )


def _say(text: str, error: bool = False) -> int:
    """Print, and return the exit status: 1 when it cannot be written; a reader that has gone (`| head`) is fine."""
    try:
        print(text, file=sys.stderr if error else sys.stdout, flush=True)
        return 0
    except BrokenPipeError:
        status = 0
    except OSError as why:
        status = _EXIT_FAILED
        if not error:
            _say(f"hitlessd: cannot write to the standard output: {why.strerror}", error=True)
    # What is left in the buffer would fail once more at the exit, and Python would complain.
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 2 if error else 1)
    os.close(null)
    return status


def _open_standard_streams() -> None:
    """A program that is started without them (`>&-`) would get sockets with their numbers, and write messages there."""
    for fd in range(3):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # becomes the lowest number that is free, this one
    # Python has None where it found nothing.
    sys.stdout = sys.stdout or open(1, "w", closefd=False)
    sys.stderr = sys.stderr or open(2, "w", closefd=False)


def _into_background() -> int:
    """Fork; the parent waits until the child serves, or ends with its exit status.

    Returns the descriptor that the child reports on.
    """
    reader, writer = os.pipe2(os.O_CLOEXEC)
    if child := os.fork():
        os.close(writer)
        try:
            if os.read(reader, 1) == b"1":
                os._exit(0)
            status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        except KeyboardInterrupt:
            os._exit(_EXIT_INTERRUPTED)
        os._exit(status if status > 0 else _EXIT_FAILED)
    os.close(reader)
    os.setsid()
    return writer


def main(argv: Sequence[str] | None = None) -> int:
    """Run the daemon; returns its exit status."""
    _open_standard_streams()
    try:
        return _main(sys.argv[1:] if argv is None else argv)
    except KeyboardInterrupt:  # while it checks or loads; the main process takes SIGINT for a wish to stop
        return _EXIT_INTERRUPTED


def _main(argv: Sequence[str]) -> int:
    try:
        arguments = _parse(argv)
        if not (arguments.files or arguments.help or arguments.version):
            raise _UsageError("cannot start: no configuration; give one with -f")
    except _UsageError as error:
        _say(f"hitlessd: {error}\nTry 'hitlessd --help'.", error=True)
        return _EXIT_USAGE
    if arguments.help:
        return _say(_USAGE.rstrip())
    if arguments.version:
        return _say(_version(arguments.version > 1))
    if arguments.check:
        return _check(arguments.files, arguments.quiet)
    # Until it serves: imports make many objects, and the collector would look through them fifty times, for nothing.
    gc.disable()
    from hitlessd.main.process import Main, Options
    from hitlessd.main.spare import fork_spare

    report = _into_background() if arguments.background else -1
    place = fork_spare()

    def announce() -> None:
        if report >= 0:
            os.write(report, b"1")
            os.close(report)
            null = os.open(os.devnull, os.O_RDWR)
            for fd in range(3):
                os.dup2(null, fd)
            os.close(null)

    options = Options(
        tuple(arguments.files),
        arguments.pidfile,
        arguments.predecessor,
        tuple(arguments.finish),
        tuple(arguments.terminate),
    )
    status = Main(options, place, announce).run()
    # All is said and closed: to take the interpreter apart would cost each reload some milliseconds of CPU.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


if __name__ == "__main__":
    sys.exit(main())
