"""The part of the standard library's dataclasses that is used here, for a start that is a third shorter.

There, each class costs half a millisecond, since all its methods are compiled when it is defined, and the module itself
imports inspect; a start defines 80 classes, and makes objects of a few. Here a method is compiled when it is first
called, to what the standard library makes of it. Type checkers are told that it is the standard library's, whose
`replace()` takes these objects, too.

Not here: order, keyword-only and init-only fields, __post_init__, weak references, copies of frozen objects by `copy`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dataclasses import MISSING, asdict, dataclass, field, fields, replace
    from types import ModuleType

__all__ = ["MISSING", "asdict", "compile_all", "dataclass", "field", "fields", "replace"]


class _Field:
    """What dataclasses.replace() looks at, too."""

    __slots__ = ("_field_type", "default", "default_factory", "init", "name")

    def __init__(self, default: Any, default_factory: Any) -> None:
        self.name = ""
        self.default = default
        self.default_factory = default_factory
        self.init = True
        self._field_type = None


if not TYPE_CHECKING:

    class _Missing:
        """The type of MISSING: there is no default."""

    MISSING = _Missing()

    def field(*, default=MISSING, default_factory=MISSING):
        return _Field(default, default_factory)

    def fields(what):
        return tuple(what.__dataclass_fields__.values())

    def replace(what, /, **changes):
        for name in what.__dataclass_fields__:
            if name not in changes:
                changes[name] = getattr(what, name)
        return what.__class__(**changes)

    def asdict(what):
        """Of the object itself only: its values are the same objects."""
        return {name: getattr(what, name) for name in what.__dataclass_fields__}

    def dataclass(cls=None, /, *, eq=True, repr=True, frozen=False, slots=False):
        def decorate(cls):
            return _made(cls, eq, repr, frozen, slots)

        return decorate if cls is None else decorate(cls)


def _made(cls: Any, eq: bool, text: bool, frozen: bool, slots: bool) -> Any:
    known: dict[str, Any] = {}
    for base in reversed(cls.__mro__[1:]):
        known.update(getattr(base, "__dataclass_fields__", {}))
    own = cls.__annotations__
    for name, annotation in own.items():
        if str(annotation).startswith(("ClassVar", "typing.ClassVar")):
            continue
        default = cls.__dict__.get(name, MISSING)
        if default.__class__.__hash__ is None:
            raise ValueError(f"cannot have a mutable default, in {cls.__qualname__}.{name}: use default_factory")
        one = default if isinstance(default, _Field) else _Field(default, MISSING)
        one.name = name
        known[name] = one
        if one.default is not MISSING:
            setattr(cls, name, one.default)
        elif default is not MISSING:
            delattr(cls, name)
    if slots:
        cls = _with_slots(cls, known)
    cls.__dataclass_fields__ = known
    given = cls.__dict__
    if "__init__" not in given:
        _when_called(cls, "__init__", lambda: _init(cls, frozen))
    if text and "__repr__" not in given:
        cls.__repr__ = _repr
    if eq and "__eq__" not in given:
        _when_called(cls, "__eq__", lambda: _eq(cls))
        if "__hash__" not in given:
            if frozen:
                _when_called(cls, "__hash__", lambda: _hash(cls))
            else:
                cls.__hash__ = None
    if frozen:
        cls.__setattr__, cls.__delattr__ = _refuse_to_set, _refuse_to_delete
    cls.__match_args__ = tuple(known)  # type: ignore[misc]
    return cls


def _with_slots(cls: Any, known: dict[str, Any]) -> Any:
    """Another class: slots are made with the class."""
    inherited = {name for base in cls.__mro__[1:-1] for name in base.__dict__.get("__slots__", ())}
    content = {name: value for name, value in cls.__dict__.items() if name not in known}
    for name in ("__dict__", "__weakref__"):
        content.pop(name, None)
    content["__slots__"] = tuple(name for name in known if name not in inherited)
    made = type(cls)(cls.__name__, cls.__bases__, content)
    made.__qualname__ = cls.__qualname__
    return made


def _when_called(cls: Any, name: str, make: Any) -> None:
    """Have the first call of a method compile it and take its place."""

    def compiled() -> Any:
        method = make()
        method.__qualname__ = f"{cls.__qualname__}.{name}"
        setattr(cls, name, method)
        return method

    def first(*arguments: Any, **named: Any) -> Any:
        return compiled()(*arguments, **named)

    first.__name__, first.__qualname__ = name, f"{cls.__qualname__}.{name}"
    first.compiled = compiled  # type: ignore[attr-defined]
    setattr(cls, name, first)


def compile_all(module: ModuleType) -> None:
    """Compile what is left of the module's classes; for who has time now, and later has none."""
    for cls in list(vars(module).values()):
        if isinstance(cls, type):
            for method in list(vars(cls).values()):
                if compiled := getattr(method, "compiled", None):
                    compiled()


def _init(cls: Any, frozen: bool) -> Any:
    scope: dict[str, Any] = {"_set": object.__setattr__, "_MISSING": MISSING}
    head, body = ["self"], []
    for name, one in cls.__dataclass_fields__.items():
        value = name
        if one.default is not MISSING:
            scope[f"_default_{name}"] = one.default
            head.append(f"{name}=_default_{name}")
        elif one.default_factory is not MISSING:
            scope[f"_make_{name}"] = one.default_factory
            head.append(f"{name}=_MISSING")
            value = f"_make_{name}() if {name} is _MISSING else {name}"
        else:
            head.append(name)
        body.append(f" _set(self, {name!r}, {value})" if frozen else f" self.{name} = {value}")
    return _compiled(f"def __init__({', '.join(head)}):\n" + "\n".join(body or [" pass"]), scope)


def _eq(cls: Any) -> Any:
    mine, theirs = _tuple("self", cls), _tuple("other", cls)
    return _compiled(
        "def __eq__(self, other):\n"
        f" return {mine} == {theirs} if other.__class__ is self.__class__ else NotImplemented",
        {},
    )


def _hash(cls: Any) -> Any:
    return _compiled(f"def __hash__(self):\n return hash({_tuple('self', cls)})", {})


def _tuple(what: str, cls: Any) -> str:
    return "(" + "".join(f"{what}.{name}, " for name in cls.__dataclass_fields__) + ")"


def _compiled(source: str, scope: dict[str, Any]) -> Any:
    exec(source, scope)
    return scope[source[4 : source.index("(")]]


def _repr(self: Any) -> str:
    told = ", ".join(f"{name}={getattr(self, name)!r}" for name in self.__dataclass_fields__)
    return f"{self.__class__.__qualname__}({told})"


def _refuse_to_set(self: Any, name: str, value: object) -> None:
    raise AttributeError(f"cannot assign to field {name!r}")


def _refuse_to_delete(self: Any, name: str) -> None:
    raise AttributeError(f"cannot delete field {name!r}")
