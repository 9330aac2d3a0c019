"""What a frontend logs of a finished connection or request, made ready once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from hitlessd.log import Logger
from hitlessd.logformat import HTTP_FORMAT, TCP_FORMAT, compile_format
from hitlessd.logrecord import LogRecord, compile_json
from hitlessd.model import Frontend

__all__ = ["AccessWriter", "access_log", "plain_writer"]


class AccessWriter(Protocol):
    """Where access log entries go: Log.access."""

    def __call__(self, line: str, record: LogRecord, whole: bool, /) -> None: ...


def plain_writer(log: Logger) -> AccessWriter:
    """For those who have nothing but a Logger: the line is a message like any other."""

    def write(line: str, record: LogRecord, whole: bool, /) -> None:
        log("info", line)

    return write


def access_log(config: Frontend, write: AccessWriter) -> Callable[[LogRecord], None] | None:
    """Logs one record; None where this frontend wants none. JSON goes before `log-format`, that before the options."""
    whole = config.log_json
    if config.log_json:
        line = compile_json()
    elif config.log_format:
        line = compile_format(config.log_format, log=True)
    elif config.httplog and config.mode == "http":
        line = compile_format(HTTP_FORMAT, log=True)
    elif config.tcplog or config.httplog:
        line = compile_format(TCP_FORMAT, log=True)
    else:
        return None
    return lambda record: write(line(record), record, whole)
