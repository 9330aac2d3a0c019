"""What one section says itself, option by option, and what it inherits from [defaults]."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar, get_args

from hitlessd.conditions import criterion
from hitlessd.dataclass import dataclass, field, replace
from hitlessd.model import (
    NOWHERE,
    Acl,
    Bind,
    Cookie,
    ForwardFor,
    HttpCheck,
    HttpRule,
    Mode,
    Reuse,
    Server,
    StatsPage,
    TcpRule,
    UseBackend,
    Where,
)
from hitlessd.samples import HELLO, Mistake

from . import values
from .acl import acl
from .attached import Attached
from .formats import errorfile_problem, log_format_problem
from .ini import Option
from .lines import bind_line
from .problems import Place, Problems
from .proxies import Balancing, balance, cookie, forward_for, hash_type, http_check, http_checks
from .quoting import one_text, words
from .resolve import Names
from .rules import Lines, inspect_delay, tcp_request
from .sections import Entry
from .server import Words, default_server_line, server_line
from .stats import IGNORED, SWITCHES, admin, stats_line
from .words import VALUED

__all__ = ["Reader", "Settings"]

_T = TypeVar("_T")
_MODES: tuple[Mode, ...] = get_args(Mode)
_REUSES: tuple[Reuse, ...] = get_args(Reuse)
_RETRIES_LIMIT = 65535
#: Of these, what a section chooses replaces what [defaults] does.
_LOGS = ("option tcplog", "option httplog", "option jsonlog")
_PAGES = (200, 400, 401, 403, 404, 405, 407, 408, 410, 413, 414, 421, 425, 429, 431, 500, 501, 502, 503, 504, 505)


@dataclass(slots=True, eq=False, repr=False)
class Settings:
    """What one section says; None and absence: nothing."""

    entry: Entry
    mode: Mode | None = None
    maxconn: int | None = None
    default_backend: tuple[str, Place] | None = None
    balance: Balancing | None = None
    hash_consistent: bool | None = None
    retries: int | None = None
    rate_limit: int | None = None
    log_format: str | None = None
    http_reuse: Reuse | None = None
    cookie: Cookie | None = None
    forwardfor: ForwardFor | None = None
    http_check: HttpCheck | None = None
    http_checks: list[list[str]] = field(default_factory=list)
    inspect_delay: float = 0.0
    flags: dict[str, bool] = field(default_factory=dict)
    timeouts: dict[str, float | None] = field(default_factory=dict)  # by their names in Timeouts
    errorfiles: dict[int, bytes] = field(default_factory=dict)
    default_server: list[Words] = field(default_factory=list)
    binds: list[Bind] = field(default_factory=list)
    servers: list[Server] = field(default_factory=list)
    acls: dict[str, list[Acl]] = field(default_factory=dict)
    use_backend: list[tuple[UseBackend, Place]] = field(default_factory=list)
    tcp_rules: list[TcpRule] = field(default_factory=list)
    http_request: list[HttpRule] = field(default_factory=list)
    http_response: list[HttpRule] = field(default_factory=list)
    stats: StatsPage | None = None

    def inherit(self, defaults: Settings) -> None:
        """Take from [defaults] what this section leaves unsaid. Rules and acls are nobody's but their section's."""
        for name in ("maxconn", "balance", "hash_consistent", "retries", "rate_limit", "http_reuse", "cookie", "mode"):
            if getattr(self, name) is None:
                setattr(self, name, getattr(defaults, name))
        inherited = dict(defaults.flags)
        if self.log_format is not None or any(self.flags.get(name) for name in _LOGS):
            inherited = {name: on for name, on in inherited.items() if name not in _LOGS}
        else:
            self.log_format = defaults.log_format
        if "option forwardfor" not in self.flags:
            self.forwardfor = defaults.forwardfor
        if "option httpchk" not in self.flags:
            self.http_check = defaults.http_check
        self.http_checks = self.http_checks or defaults.http_checks
        # As with HAProxy, whoever says anything of the page says all of it.
        if not self.entry.has("stats "):
            self.stats = defaults.stats
        self.flags = inherited | self.flags
        self.timeouts = defaults.timeouts | self.timeouts
        self.errorfiles = defaults.errorfiles | self.errorfiles
        # HAProxy gives [defaults]' default_backend to every listen, whose own servers are then never used
        if not (self.entry.kind == "listen" and self.entry.has("server ")):
            self.default_backend = self.default_backend or defaults.default_backend

    @property
    def asks_hello(self) -> bool:
        """Whether a rule asks for what a TLS client says first."""
        conditions = [rule.condition for rule, _ in self.use_backend if rule.condition is not None]
        terms = [term for each in conditions for terms in each.alternatives for term in terms]
        return any(criterion(test)[0].stage == HELLO for term in terms for test in term.tests)

    @property
    def has_http_check(self) -> bool:
        return self.flags.get("option httpchk", False)


class Reader:
    """Reads sections; what is wrong goes to `problems`."""

    def __init__(self, names: Names, attached: Attached, problems: Problems) -> None:
        self._names = names
        self._attached = attached
        self._problems = problems

    def read(self, entry: Entry, defaults: Settings | None = None) -> Settings:
        """What a section says, with what it inherits."""
        settings = Settings(entry)
        for name, option in entry.options.items():
            place = self._place(entry, option)
            if name.startswith("server "):
                continue
            if name.startswith("acl "):
                self._acl(settings, name[len("acl ") :], option)
            elif name.startswith("timeout "):
                seconds = values.duration(place, option.text)
                # 0 means never, as with HAProxy
                settings.timeouts[name[len("timeout ") :].replace("-", "_")] = seconds or None
            elif name.startswith("stats "):
                continue  # a page's condition may use acls that stand behind it
            elif name in VALUED:
                self._valued(settings, place, name, option)
            elif name.startswith("option ") or name == "shutdown-on-reload":
                settings.flags[name] = _flag(place, option)
            else:
                self._setting(settings, place, name, option)
        if defaults:
            settings.inherit(defaults)
        # Which criteria there are depends on the mode, and rules may stand before the acls that they use.
        for name in ("use_backend", "tcp-request", "http-request", "http-response"):
            if name in entry.options:
                self._rules(settings, name, entry.options[name])
        if entry.has("stats "):
            settings.stats = self._page(settings)
        inherited = (*defaults.default_server, *settings.default_server) if defaults else settings.default_server
        for name, option in entry.options.items():
            if name.startswith("server "):
                self._server(settings, name[len("server ") :], option, inherited)
        return settings

    def _place(self, entry: Entry, option: Option, where: Where | None = None) -> Place:
        return Place(self._problems, where or option.where, entry.title, option.name)

    def _each(self, settings: Settings, option: Option, take: Callable[[list[str], Place], Any]) -> None:
        """Have each line's words taken; a Mistake is told with its line."""
        for line, where in option.lines:
            place = self._place(settings.entry, option, where)
            found = words(place, line)
            if found is not None:
                _try(place, lambda found=found, place=place: take(found, place))  # type: ignore[misc]

    def _one(self, place: Place, text: str, read: Callable[[list[str]], _T]) -> _T | None:
        """What a function makes of the words, None after its Mistake was told."""
        found = words(place, text)
        return _try(place, lambda: read(found)) if found is not None else None

    def _setting(self, settings: Settings, place: Place, name: str, option: Option) -> None:
        text = option.text
        match name:
            case "bind":
                for line, where in option.lines:
                    bind = bind_line(self._place(settings.entry, option, where), line)
                    if bind:
                        settings.binds.append(bind)
            case "mode":
                settings.mode = values.one_of(place, text, _MODES, "use this mode")
            case "maxconn":
                settings.maxconn = values.integer(place, text, 0, values.INT_MAX)
            case "retries":
                settings.retries = values.integer(place, text, 0, _RETRIES_LIMIT)
            case "rate-limit sessions":
                settings.rate_limit = values.integer(place, text, 0, values.INT_MAX)
            case "default_backend":
                settings.default_backend = (text, place)
            case "balance":
                settings.balance = self._one(place, text, balance)
            case "hash-type":
                found = self._one(place, text, hash_type)
                if found:
                    settings.hash_consistent, ignored = found
                    if ignored:
                        place.warn(f"{ignored} changes nothing: there is one hash function")
            case "http-reuse":
                settings.http_reuse = values.one_of(place, text, _REUSES, "reuse connections like this")
            case "cookie":
                settings.cookie = self._one(place, text, cookie)
            case "log-format":
                format_ = one_text(place, text)
                if format_ is not None:
                    settings.log_format = format_
                    if problem := log_format_problem(format_, http=True):
                        settings.log_format = ""
                        place.fail(problem)
            case "errorfile":
                self._each(settings, option, lambda line, place: self._errorfile(settings, line, place))
            case "default-server":
                for line, where in option.lines:
                    settings.default_server.append(
                        default_server_line(self._place(settings.entry, option, where), line)
                    )
            case "http-check":
                self._each(settings, option, lambda line, place: self._http_check(settings, line))

    def _http_check(self, settings: Settings, line: list[str]) -> None:
        sends = [each for each in settings.http_checks if each[:1] == ["send"]] if line[:1] == ["send"] else []
        http_checks(HttpCheck(), [*sends, line])  # says what is wrong with it
        settings.http_checks.append(line)

    def _valued(self, settings: Settings, place: Place, name: str, option: Option) -> None:
        text = option.text
        if option.name.startswith("no ") or text == "off":
            settings.flags[name] = False
            return
        settings.flags[name] = True
        text = "" if text == "on" else text
        if name == "option forwardfor":
            settings.forwardfor = self._one(place, text, forward_for)
        else:
            settings.http_check = self._one(place, text, http_check)

    def _errorfile(self, settings: Settings, line: Sequence[str], place: Place) -> None:
        if len(line) != 2:
            raise Mistake("read this error page", " ".join(line), "STATUS FILE, one a line")
        code, path = line
        if not (code.isascii() and code.isdigit() and int(code[:9]) in _PAGES):
            raise Mistake("use this status", code, "one of " + ", ".join(map(str, _PAGES)))
        if int(code) in settings.errorfiles:
            raise Mistake("use this status twice", code, "one page for each in a section")
        data = self._attached.read(path)
        if problem := errorfile_problem(int(code), data):
            place.fail(f"{problem} ({path})")
            return
        settings.errorfiles[int(code)] = data

    def _acl(self, settings: Settings, name: str, option: Option) -> None:
        if values.name(self._place(settings.entry, option), name, "acl") is None:
            return
        tests = settings.acls.setdefault(name, [])
        for line, where in option.lines:
            place = self._place(settings.entry, option, where)
            found = words(place, line)
            if found is not None:
                test = _try(place, lambda found=found, where=where: acl(name, found, where))  # type: ignore[misc]
                if test:
                    tests.append(test)

    def _rules(self, settings: Settings, name: str, option: Option) -> None:
        entry = settings.entry
        lines = Lines(settings.acls, entry.kind, settings.mode or "tcp", self._attached.read)

        def take(line: list[str], place: Place) -> None:
            match name:
                case "use_backend":
                    settings.use_backend.append((lines.use_backend(line, place.where), place))
                case "http-request":
                    settings.http_request.append(lines.http_rule(line, place.where, response=False))
                case "http-response":
                    settings.http_response.append(lines.http_rule(line, place.where, response=True))
                case _:
                    delay = inspect_delay(line)
                    if delay is not None:
                        settings.inspect_delay = values.duration(place, delay) or 0.0
                    elif rule := tcp_request(line, settings.acls, place.where):
                        settings.tcp_rules.append(rule)

        self._each(settings, option, take)

    def _page(self, settings: Settings) -> StatsPage | None:
        """What a section's `stats` options say together, None for no page."""
        entry = settings.entry
        page = StatsPage()
        wanted = True
        for name, option in entry.options.items():
            if not name.startswith("stats "):
                continue
            place = self._place(entry, option)
            if page.where == NOWHERE:
                page = replace(page, where=option.where)
            if name in SWITCHES:
                on = values.switch(place, option.text, bare=True)
                if name == "stats enable":
                    wanted = on is not False
                elif name not in IGNORED:
                    page = replace(page, hide_version=on is True)
            elif name == "stats refresh":
                seconds = values.duration(place, option.text, unit="s")
                page = replace(page, refresh=seconds or None)
            else:
                for line, where in option.lines or [("", option.where)]:
                    page = self._page_line(settings, page, name, line, self._place(entry, option, where))
        return page if wanted else None

    def _page_line(self, settings: Settings, page: StatsPage, name: str, line: str, place: Place) -> StatsPage:
        found = words(place, line)
        if found is None:
            return page
        if name == "stats admin":
            acls, kind = settings.acls, settings.entry.kind
            return _try(place, lambda: admin(found, acls, kind, place.where, page)) or page
        return _try(place, lambda: stats_line(page, name, found)) or page

    def _server(self, settings: Settings, name: str, option: Option, defaults: Sequence[Words]) -> None:
        place = self._place(settings.entry, option)
        valid = values.name(place, name, "server")
        server = server_line(place, name, len(settings.servers) + 1, option.text, self._names, defaults)
        if valid and server:
            settings.servers.append(server)


def _try(place: Place, read: Callable[[], _T]) -> _T | None:
    try:
        return read()
    except Mistake as mistake:
        place.refuse(mistake.what, mistake.found, mistake.expected, near=mistake.near)
        return None


def _flag(place: Place, option: Option) -> bool:
    if option.name.startswith("no "):
        return False
    return values.switch(place, option.text, bare=True) or False
