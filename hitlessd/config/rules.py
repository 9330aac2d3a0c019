"""The lines that decide: use_backend, tcp-request, http-request and http-response. Each takes the words of one line and
raises Mistake for what is wrong with it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, cast

from hitlessd.model import HttpRule, TcpRule, UseBackend, Where
from hitlessd.samples import Mistake

from .acl import HTTP_BACKEND, HTTP_FRONTEND, HTTP_RESPONSE, TCP_ACCEPT, TCP_ROUTE, Acls, Scope, condition
from .formats import check_format, check_header

__all__ = ["Lines", "inspect_delay", "tcp_request"]

_Action = Literal["allow", "deny", "set-header", "add-header", "del-header", "redirect", "return", "use-service"]
_ACTIONS = ("allow", "deny", "set-header", "add-header", "del-header", "redirect", "return")
_REQUEST_ACTIONS = (*_ACTIONS, "use-service")
_SERVICES = ("prometheus-exporter",)
_REDIRECTS = ("location", "prefix", "scheme")
_REDIRECT_CODES = (301, 302, 303, 307, 308)
#: Statuses of which there is a page without `string` or `file`.
PAGES = (200, 400, 401, 403, 404, 405, 407, 408, 410, 413, 425, 429, 500, 501, 502, 503, 504)
_PAYLOADS = ("string", "lf-string", "file", "lf-file")
_ANSWER_WORDS = ("status", "deny_status", "content-type", *_PAYLOADS, "hdr")


class Lines:
    """What rules are read with: the acls of their section, its mode, and the files that they may attach."""

    def __init__(self, acls: Acls, kind: str, mode: str, read: Callable[[str], bytes]) -> None:
        self._acls = acls
        self._kind = kind
        self._mode = mode
        self._read = read

    def use_backend(self, words: Sequence[str], where: Where) -> UseBackend:
        """`NAME [if|unless CONDITION]`."""
        name, *rest = words or [""]
        if "%" in name:
            raise Mistake("use this backend", name, "a name without variables")
        scope = HTTP_FRONTEND if self._mode == "http" else TCP_ROUTE
        return UseBackend(name, condition(rest, self._acls, scope, where), where)

    def http_rule(self, words: Sequence[str], where: Where, *, response: bool) -> HttpRule:
        """`ACTION [WORD...] [if|unless CONDITION]` of http-request, or of http-response."""
        action, *rest = words or [""]
        actions = _ACTIONS if response else _REQUEST_ACTIONS
        if action not in actions:
            raise Mistake("use this action", action, "one of " + ", ".join(actions), actions)
        scope = HTTP_RESPONSE if response else HTTP_BACKEND if self._kind == "backend" else HTTP_FRONTEND
        rule, after = self._action(cast(_Action, action), rest, where, scope)
        found = condition(after, self._acls, scope, where)
        if found is None:
            return rule
        return HttpRule(
            rule.action, rule.name, rule.value, rule.status, rule.content_type, rule.headers, rule.body, found, where
        )

    def _action(
        self, action: _Action, rest: Sequence[str], where: Where, scope: Scope
    ) -> tuple[HttpRule, Sequence[str]]:
        """The rule without its condition, and the words after it."""
        match action:
            case "allow":
                return HttpRule(action, where=where), rest
            case "set-header" | "add-header":
                if len(rest) < 2:
                    raise Mistake("change a header like this", " ".join((action, *rest)), f"{action} NAME VALUE")
                name, value = check_header(rest[0], rest[1], scope.stages)
                if rest[2:] and rest[2] not in ("if", "unless"):
                    raise Mistake("use this word", rest[2], "if or unless: a value that has blanks stands in quotes")
                return HttpRule(action, name, value, where=where), rest[2:]
            case "del-header":
                if not rest:
                    raise Mistake("change a header like this", action, "del-header NAME")
                if rest[1:2] == ["-m"]:
                    raise Mistake("use this word", "-m", "the whole name of a header, and no method to match names by")
                return HttpRule(action, check_header(rest[0], "")[0], where=where), rest[1:]
            case "redirect":
                return _redirect(rest, where, scope)
            case "use-service":
                service = rest[0] if rest else ""
                if service not in _SERVICES:
                    raise Mistake("use this service", service, "prometheus-exporter", _SERVICES)
                return HttpRule(action, service, where=where), rest[1:]
        return self._answer(action, rest, where, scope)

    def _answer(
        self, action: _Action, rest: Sequence[str], where: Where, scope: Scope
    ) -> tuple[HttpRule, Sequence[str]]:
        """deny, return: `[status N] [content-type T] [string S|lf-string S|file F|lf-file F] [hdr NAME VALUE]...`."""
        status, content_type, value = 200, "", ""
        if action == "deny":
            status = 502 if scope is HTTP_RESPONSE else 403
        body: bytes | None = None
        payload = ""
        headers: list[tuple[str, str]] = []
        given: set[str] = set()
        while rest and rest[0] not in ("if", "unless"):
            word, *rest = rest
            if word not in _ANSWER_WORDS or (word == "deny_status" and action != "deny"):
                raise Mistake("use this word", word, "one of " + ", ".join(_ANSWER_WORDS), _ANSWER_WORDS)
            key = "payload" if word in _PAYLOADS else "status" if word == "deny_status" else word
            if key in given and key != "hdr":
                raise Mistake("use this word", word, f"one {key} in a line")
            given.add(key)
            if len(rest) < (2 if word == "hdr" else 1):
                raise Mistake("use this word", word, "a value after it")
            if word == "hdr":
                headers.append(check_header(rest[0], rest[1], scope.stages))
                rest = rest[2:]
                continue
            argument, *rest = rest
            if key == "status":
                status = _status(argument)
            elif word == "content-type":
                content_type = check_header(word, argument.replace("%", "%%"))[1].replace("%%", "%")
            else:
                payload = word
                value, body = self._payload(word, argument, scope)
        whole = bool(payload)
        if action == "deny" and not whole and status not in PAGES:
            raise Mistake("use this status", str(status), "one of " + ", ".join(map(str, PAGES)) + ", or a body for it")
        if (body or value) and not content_type:
            raise Mistake("answer like this", payload, "a content-type, too")
        rule = HttpRule(action, "", value, status, content_type, tuple(headers), body, where=where)
        return rule, rest

    def _payload(self, word: str, argument: str, scope: Scope) -> tuple[str, bytes | None]:
        """A log-format text, or bytes as they are."""
        if word == "lf-string":
            return check_format(argument, scope.stages), None
        if word == "string":
            return "", argument.encode("utf-8", "surrogateescape")
        data = self._read(argument)
        if word == "file":
            return "", data
        return check_format(data.decode("utf-8", "surrogateescape"), scope.stages), None


def tcp_request(words: Sequence[str], acls: Acls, where: Where) -> TcpRule | None:
    """`connection accept|reject [if|unless CONDITION]`, or `content accept ...`, which gives None: that only ends a
    wait which ends by itself here."""
    layer, action, *rest = (*words, "", "")[: max(2, len(words))]
    if layer == "content":
        if action != "accept":
            raise Mistake(
                "use this rule", " ".join(words[:2]), "tcp-request connection, or use_backend with a condition"
            )
        return None
    if layer != "connection":
        near = ("connection", "content", "inspect-delay")
        raise Mistake("use this rule", layer, "connection accept, connection reject or inspect-delay", near)
    if action not in ("accept", "reject"):
        raise Mistake("use this action", action, "accept or reject", ("accept", "reject"))
    return TcpRule("accept" if action == "accept" else "reject", condition(rest, acls, TCP_ACCEPT, where), where)


def inspect_delay(words: Sequence[str]) -> str | None:
    """The time of `inspect-delay TIME`; None for another rule."""
    if not words or words[0] != "inspect-delay":
        return None
    if len(words) != 2:
        raise Mistake("read this delay", " ".join(words), "inspect-delay TIME")
    return words[1]


def _redirect(rest: Sequence[str], where: Where, scope: Scope) -> tuple[HttpRule, Sequence[str]]:
    kind, target, code = "", "", 302
    while rest and rest[0] not in ("if", "unless"):
        word, *rest = rest
        if word not in (*_REDIRECTS, "code"):
            note = "this version does not have it" if word in ("drop-query", "append-slash", "set-cookie") else ""
            expected = "location, prefix, scheme or code" + (f"; {note}" if note else "")
            raise Mistake("use this word", word, expected, () if note else (*_REDIRECTS, "code"))
        if not rest:
            raise Mistake("use this word", word, "a value after it")
        argument, *rest = rest
        if word == "code":
            if not argument.isdigit() or int(argument[:9]) not in _REDIRECT_CODES:
                raise Mistake("redirect with this code", argument, "301, 302, 303, 307 or 308")
            code = int(argument)
        elif kind:
            raise Mistake("redirect like this", word, "one of location, prefix and scheme")
        else:
            kind, target = word, check_header("location", argument, scope.stages)[1]
    if scope is HTTP_RESPONSE and kind in ("prefix", "scheme"):
        raise Mistake("redirect like this", kind, "location: a response has no path to add")
    if not kind:
        raise Mistake("redirect like this", " ".join(rest), "location TARGET, prefix TARGET or scheme TARGET")
    return HttpRule("redirect", kind, target, code, where=where), rest


def _status(text: str) -> int:
    if text.isascii() and text.isdigit() and len(text) == 3 and 200 <= int(text) <= 599:
        return int(text)
    raise Mistake("use this status", text, "a number from 200 to 599")
