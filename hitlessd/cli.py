"""The command line of hitlessd: HAProxy's letters and meanings (HAProxy management guide, section 3)."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field

from hitlessd import __version__

__all__ = ["main"]

_USAGE = """\
usage: hitlessd -f FILE|DIR [-f ...] [options]

  -f FILE|DIR   configuration; of a directory, its *.conf files in the order of their names
  -c            check the configuration and exit: 0 valid, 1 not
  -p FILE       write the pid of the main process there
  -x SOCKET     take the listeners over from whoever serves that runtime socket (hitlessd or haproxy)
  -sf PID...    when serving, tell these processes to finish (SIGUSR1)
  -st PID...    when serving, tell these processes to stop at once (SIGTERM)
  -D            go into the background once serving
  -W, -Ws       accepted: hitlessd always has a main process and workers, and always tells systemd
  -q            no messages on the standard error output while starting
  -v, -vv       print the version, with details, and exit
  -h, --help    print this and exit
"""
_EXIT_USAGE = 64  # EX_USAGE, sysexits.h


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
                    if not pid.isdecimal() or int(pid) < 1:
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
                import difflib

                known = ["-f", "-c", "-p", "-x", "-sf", "-st", "-D", "-W", "-Ws", "-q", "-v", "-vv", "--help"]
                near = difflib.get_close_matches(word, known, 1, 0.5)
                raise _UsageError(
                    f"cannot use {word!r}: it is not an option" + (f"; did you mean {near[0]}?" if near else "")
                )
    return result


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
    from hitlessd.main.limits import plan, raise_soft_limit

    try:
        config = load(files)
        workers = config.global_.workers or len(os.sched_getaffinity(0))
        listeners = sum(len(frontend.binds) for frontend in config.frontends)
        plan(config, workers, listeners, raise_soft_limit())
    except HitlessdError as error:
        print(error, file=sys.stderr)
        return 1
    for warning in config.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    if not quiet:
        print("Configuration file is valid")
    return 0


def _into_background() -> int:
    """Fork; the parent waits until the child serves or fails. Returns the descriptor that the child reports on."""
    reader, writer = os.pipe2(os.O_CLOEXEC)
    if os.fork():
        os.close(writer)
        status = os.read(reader, 1)
        os._exit(0 if status == b"1" else 1)
    os.close(reader)
    os.setsid()
    return writer


def main(argv: Sequence[str] | None = None) -> int:
    """Run the daemon; returns its exit status."""
    try:
        arguments = _parse(sys.argv[1:] if argv is None else argv)
        if not (arguments.files or arguments.help or arguments.version):
            raise _UsageError("cannot start: no configuration; give one with -f")
    except _UsageError as error:
        print(f"hitlessd: {error}", file=sys.stderr)
        print("Try 'hitlessd --help'.", file=sys.stderr)
        return _EXIT_USAGE
    if arguments.help:
        print(_USAGE, end="")
        return 0
    if arguments.version:
        print(_version(arguments.version > 1))
        return 0
    if arguments.check:
        return _check(arguments.files, arguments.quiet)
    from hitlessd.main.process import Main, Options

    report = _into_background() if arguments.background else -1

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
    return Main(options, announce).run()


if __name__ == "__main__":
    sys.exit(main())
