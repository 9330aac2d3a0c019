"""`metrics bind` in [global]: what it takes, and what is said of what it does not."""

from __future__ import annotations

import pytest

from hitlessd.config import parse
from hitlessd.errors import ConfigError
from hitlessd.model import InetAddress, MetricsBind, SourceFile, UnixAddress

REST = "[listen l]\nbind = 127.0.0.1:80\nserver s = 127.0.0.1:81\ntimeout client = 1s\ntimeout connect = 1s\ntimeout server = 1s\n"  # noqa: E501


def binds(text: str) -> list[MetricsBind]:
    return list(parse([SourceFile("f", f"[global]\n{text}\n{REST}")]).global_.metrics_binds)


def test_there_is_none_by_default() -> None:
    assert binds("workers = 1") == []


def test_addresses_and_owners() -> None:
    found = binds(
        "metrics bind = 127.0.0.1:9101\n  [::1]:9101\n  unix@/run/m.sock mode 660 user root group root\n  abns@m\n"
    )
    assert [(each.address, each.mode, each.user, each.group) for each in found] == [
        (InetAddress("127.0.0.1", 9101), None, "", ""),
        (InetAddress("::1", 9101), None, "", ""),
        (UnixAddress("/run/m.sock"), 0o660, "root", "root"),
        (UnixAddress("\0m"), None, "", ""),
    ]
    assert [each.where.line for each in found] == [2, 3, 4, 5]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("metrics bind = 127.0.0.1", "f:2: [global] metrics bind: cannot use this address"),
        ("metrics bind = run/m", "cannot use this path"),
        ("metrics bind = sd@m", "cannot use this address"),
        ("metrics bind = 127.0.0.1:1 mode 600", "cannot use mode with 127.0.0.1:1: expected the path of a unix socket"),
        ("metrics bind = abns@m user root", "cannot use user with abns@m: expected the path of a unix socket"),
        ("metrics bind = /run/m mod 600", 'found "mod", expected one of mode, user, group; did you mean "mode"?'),
        ("metrics bind = /run/m group no-such", "expected a group that exists"),
        ("metrics bind = /run/m level admin", "this version does not have it"),
        ("metrics bind = 127.0.0.1:80", "cannot use 127.0.0.1:80 twice"),
        ("metrics bind = /run/a\nstats socket = /run/a", "cannot use unix@/run/a twice"),
        ("metrics bnd = 127.0.0.1:1", 'did you mean "metrics bind"?'),
    ],
)
def test_mistakes(text: str, problem: str) -> None:
    with pytest.raises(ConfigError) as error:
        binds(text)
    assert problem in str(error.value)


def test_it_belongs_into_global() -> None:
    with pytest.raises(ConfigError, match=r"metrics bind"):
        parse([SourceFile("f", REST + "metrics bind = 127.0.0.1:1\n")])
