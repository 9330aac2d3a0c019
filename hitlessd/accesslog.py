"""What a frontend logs of a finished connection or request, made ready once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from hitlessd.log import Logger
from hitlessd.logcode import RECORDS, Source
from hitlessd.logfacts import compile_fields, compile_json
from hitlessd.logformat import HTTP_FORMAT, TCP_FORMAT, compile_format
from hitlessd.model import Frontend

__all__ = ["AccessLog", "PlainLog", "access_log"]


class AccessLog(Protocol):
    """Where access log entries go: Log."""

    @property
    def wanted(self) -> bool:
        """Whether it takes any."""

    @property
    def structured(self) -> bool:
        """Whether it wants the facts one by one, too."""

    def access(self, line: str, whole: bool = False, fields: str = "", /) -> None: ...


class PlainLog:
    """For those who have nothing but a Logger: the line is a message like any other."""

    wanted, structured = True, False

    def __init__(self, log: Logger) -> None:
        self._log = log

    def access(self, line: str, whole: bool = False, fields: str = "", /) -> None:
        self._log("info", line)


def access_log(config: Frontend, log: AccessLog, source: Source = RECORDS) -> Callable[[Any], None] | None:
    """Logs one record, or what `source` has instead; None where this frontend wants none, or `log` takes none. JSON
    goes before `log-format`, that before the options."""
    if not log.wanted:
        return None
    whole, http = config.log_json, config.mode == "http"
    if config.log_json:
        line = compile_json(source, http=http)
    elif config.log_format:
        line = compile_format(config.log_format, log=True, source=source)
    elif config.httplog and http:
        line = compile_format(HTTP_FORMAT, log=True, source=source)
    elif config.tcplog or config.httplog:
        line = compile_format(TCP_FORMAT, log=True, source=source)
    else:
        return None
    access = log.access
    if log.structured:
        fields = compile_fields(source, http=http)
        return lambda what: access(line(what), whole, fields(what))
    return lambda what: access(line(what), whole)
