"""http-request and http-response rules (HAProxy configuration manual, 4.2), compiled once, applied to each message."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Protocol, cast

from hitlessd.conditions import compile_condition
from hitlessd.http.answers import target
from hitlessd.http.edit import ADD, DELETE, SET, Edit
from hitlessd.http.texts import Text, compile_text
from hitlessd.model import HttpRule
from hitlessd.samples import RequestHead, ResponseHead, Sample

__all__ = ["NOTHING", "Answer", "Rules", "Verdict", "compile_rules", "seen_through"]


class Answer:
    """A final answer instead of the message, or (kind "service") that main answers it.

    kind "deny" or "return": `status`, and `body` with `content_type`; body None means the status's own page (errorfile
    or standard) for deny and none at all for return. kind "redirect": `status` and `location`. `headers`
    are further ones.
    """

    __slots__ = ("body", "content_type", "headers", "kind", "location", "status")

    def __init__(
        self,
        kind: Literal["deny", "redirect", "return", "service"],
        status: int,
        *,
        location: bytes = b"",
        body: bytes | None = None,
        content_type: bytes = b"",
        headers: tuple[tuple[bytes, bytes], ...] = (),
    ) -> None:
        self.kind = kind
        self.status = status
        self.location = location
        self.body = body
        self.content_type = content_type
        self.headers = headers


class Verdict:
    """What the rules want: changes of the head in their order, and the answer, if there is one. Shared; not to be
    changed."""

    __slots__ = ("answer", "edits")

    def __init__(self, edits: tuple[Edit, ...] = (), answer: Answer | None = None) -> None:
        self.edits = edits
        self.answer = answer


NOTHING = Verdict()


class _Step(Protocol):
    """One rule's action: an edit, an answer, or None for `allow`."""

    def __call__(self, sample: Sample) -> Edit | Answer | None: ...


class Rules:
    """The rules of one section and direction."""

    __slots__ = ("_response", "_steps")

    def __init__(self, rules: Sequence[HttpRule], response: bool) -> None:
        self._steps = [(compile_condition(rule.condition) if rule.condition else None, _step(rule)) for rule in rules]
        self._response = response

    def apply(self, sample: Sample, earlier: Sequence[Edit] = ()) -> Verdict:
        """In order, until one answers or allows. Each sees the changes of those before it, `earlier` ones included,
        which the verdict leaves out."""
        edits: list[Edit] = []
        view: Sample = seen_through(sample, earlier, self._response) if earlier else sample
        stale = False
        for test, step in self._steps:
            if stale:
                view = seen_through(sample, [*earlier, *edits], self._response)
                stale = False
            if test is not None and not test(view):
                continue
            found = step(view)
            if isinstance(found, tuple):
                edits.append(found)
                stale = True
            elif found is None:
                break
            else:
                return Verdict(tuple(edits), found)
        return Verdict(tuple(edits)) if edits else NOTHING


def compile_rules(rules: Sequence[HttpRule], *, response: bool = False) -> Rules | None:
    """None for no rules. Raises Mistake, a ValueError, for what the configuration would have refused."""
    return Rules(rules, response) if rules else None


def _step(rule: HttpRule) -> _Step:
    match rule.action:
        case "allow":
            return lambda sample: None
        case "set-header" | "add-header" | "del-header":
            return _edit(rule)
        case "redirect":
            return _redirect(rule)
        case "use-service":
            service = Answer("service", 200)
            return lambda sample: service
    return _answer(rule)


def _edit(rule: HttpRule) -> _Step:
    operation = {"set-header": SET, "add-header": ADD, "del-header": DELETE}[rule.action]
    name = rule.name.encode("ascii")
    if "%" not in rule.value:
        edit: Edit = (operation, name, rule.value.encode("utf-8", "surrogateescape"))
        return lambda sample: edit
    text = compile_text(rule.value)
    return lambda sample: (operation, name, text(sample))


def _redirect(rule: HttpRule) -> _Step:
    text, status = compile_text(rule.value), rule.status

    def redirect(sample: Sample) -> Answer:
        host = sample.request.values(b"host") if sample.request else []
        location = target(rule.name, text(sample), _path_and_query(sample.request), host[0] if host else b"")
        return Answer("redirect", status, location=location)

    return redirect


def _answer(rule: HttpRule) -> _Step:
    kind: Literal["deny", "return"] = "deny" if rule.action == "deny" else "return"
    status, content_type = rule.status, rule.content_type.encode("utf-8", "surrogateescape")
    text = compile_text(rule.value) if rule.value else None
    headers: list[tuple[bytes, Text]] = [(name.encode("ascii"), compile_text(value)) for name, value in rule.headers]

    def answer(sample: Sample) -> Answer:
        body = text(sample) if text is not None else rule.body
        return Answer(
            kind,
            status,
            body=body,
            content_type=content_type if body else b"",
            headers=tuple([(name, value(sample)) for name, value in headers]),
        )

    return answer


def _path_and_query(request: RequestHead | None) -> bytes:
    """What a redirect adds: of an absolute-form target without its scheme and host."""
    target = request.target if request is not None else b"/"
    if target.startswith(b"/"):
        return target
    _, mark, rest = target.partition(b"://")
    at = rest.find(b"/")
    if mark and at >= 0:
        return rest[at:]
    return b"/"


def seen_through(sample: Sample, edits: Sequence[Edit], response: bool = False) -> Sample:
    """The sample as it is after these changes of its request, or of its response."""
    return cast(Sample, _Changed(sample, edits, response))


class _Changed:
    """A sample whose request or response has been changed."""

    def __init__(self, sample: Sample, edits: Sequence[Edit], response: bool) -> None:
        self._sample = sample
        self.request = sample.request
        self.response = sample.response
        if response and sample.response is not None:
            self.response = cast(ResponseHead, _ChangedHead(sample.response, edits))
        elif not response and sample.request is not None:
            self.request = cast(RequestHead, _ChangedHead(sample.request, edits))

    def __getattr__(self, name: str) -> object:
        return getattr(self._sample, name)


class _ChangedHead:
    """A head with other fields."""

    def __init__(self, head: RequestHead | ResponseHead, edits: Sequence[Edit]) -> None:
        self._head = head
        fields = list(head.fields)
        for operation, name, value in edits:
            if operation != ADD:
                lower = name.lower()
                fields = [field for field in fields if field[0].lower() != lower]
            if operation != DELETE:
                fields.append((name, value))
        self.fields = tuple(fields)

    @property
    def host(self) -> bytes:
        """Of a request."""
        host: bytes = cast(RequestHead, self._head).host
        return host if self.values(b"host") == self._head.values(b"host") else (self.values(b"host") or [b""])[0]

    def __getattr__(self, name: str) -> object:
        return getattr(self._head, name)

    def values(self, name: bytes) -> list[bytes]:
        return [value for field, value in self.fields if field.lower() == name]
