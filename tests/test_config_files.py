"""Reading files: drop-in directories, and everything that is not a readable text file."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from hitlessd.config import SIZE_LIMIT, load, read_files
from hitlessd.errors import ConfigError
from hitlessd.model import SourceFile
from tests.support.descriptors import no_leak

VALID = "[listen a]\nbind = :1\nserver s = 192.0.2.1\n"


@contextmanager
def unprivileged() -> Iterator[None]:
    """As somebody whom permissions bind; root is not."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def problems_of(*paths: Path) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load([str(path) for path in paths])
    return caught.value.problems


def test_files_and_directories_in_order(tmp_path: Path) -> None:
    main = tmp_path / "main"
    main.write_text(VALID)
    directory = tmp_path / "conf.d"
    directory.mkdir()
    (directory / "20-b.conf").write_text("[listen a]\nmaxconn = 20\n")
    (directory / "10-a.conf").write_text("[listen a]\nmaxconn = 10\n")
    (directory / ".hidden.conf").write_text("not read")
    (directory / "30-c.conf.bak").write_text("not read")
    (directory / "README").write_text("not read")
    assert read_files([str(main), str(directory)]) == (
        SourceFile(str(main), VALID),
        SourceFile(str(directory / "10-a.conf"), "[listen a]\nmaxconn = 10\n"),
        SourceFile(str(directory / "20-b.conf"), "[listen a]\nmaxconn = 20\n"),
    )
    config = load([str(main), str(directory)])
    assert config.frontends[0].maxconn == 20
    assert config.files == read_files([str(main), str(directory)])


def test_empty_directory(tmp_path: Path) -> None:
    main = tmp_path / "main.conf"
    main.write_text(VALID)
    directory = tmp_path / "conf.d"
    directory.mkdir()
    assert len(load([str(main), str(directory)]).frontends) == 1
    assert read_files([str(directory)]) == ()
    assert problems_of(directory) == [
        f"{directory}: cannot use this configuration: found no [frontend] or [listen], expected at least one"
    ]


def test_empty_file(tmp_path: Path) -> None:
    path = tmp_path / "empty.conf"
    path.touch()
    assert problems_of(path) == [
        f"{path}: cannot use this configuration: found no [frontend] or [listen], expected at least one"
    ]


def test_missing(tmp_path: Path) -> None:
    path = tmp_path / "no.conf"
    assert problems_of(path) == [f"{path}: cannot read: No such file or directory"]
    below = tmp_path / "file"
    below.write_text(VALID)
    assert problems_of(below / "x") == [f"{below / 'x'}: cannot read: Not a directory"]


def test_dangling_link_in_a_directory(tmp_path: Path) -> None:
    (tmp_path / "a.conf").symlink_to("nowhere")
    assert problems_of(tmp_path) == [f"{tmp_path / 'a.conf'}: cannot read: No such file or directory"]


def test_forbidden(tmp_path: Path) -> None:
    path = tmp_path / "secret.conf"
    path.write_text(VALID)
    path.chmod(0)
    with unprivileged():
        assert problems_of(path) == [f"{path}: cannot read: Permission denied"]


def test_directory_in_a_directory(tmp_path: Path) -> None:
    (tmp_path / "a.conf").mkdir()
    assert problems_of(tmp_path) == [f"{tmp_path / 'a.conf'}: cannot read: found a directory, expected a regular file"]


def test_named_pipe_does_not_hang(tmp_path: Path) -> None:
    path = tmp_path / "pipe.conf"
    os.mkfifo(path)
    expected = [f"{path}: cannot read: found a named pipe, expected a regular file"]
    assert problems_of(path) == expected
    assert problems_of(tmp_path) == expected


def test_socket(tmp_path: Path) -> None:
    path = tmp_path / "socket.conf"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        assert problems_of(path) == [f"{path}: cannot read: found a socket, expected a regular file"]


def test_devices() -> None:
    for name in ("/dev/zero", "/dev/null", "/dev/tty"):
        assert problems_of(Path(name)) == [f"{name}: cannot read: found a character device, expected a regular file"]


def test_huge_file_is_refused_by_its_size(tmp_path: Path) -> None:
    path = tmp_path / "huge.conf"
    with path.open("wb") as file:
        file.truncate(10_000_000)
    assert problems_of(path) == [f"{path}: cannot read: found 10000000 bytes, expected at most {SIZE_LIMIT}"]


def test_largest_file(tmp_path: Path) -> None:
    path = tmp_path / "large.conf"
    path.write_text(VALID.ljust(SIZE_LIMIT, "#"))
    assert len(load([str(path)]).frontends) == 1
    path.write_text(VALID.ljust(SIZE_LIMIT + 1, "#"))
    assert problems_of(path)[0].endswith(f"found {SIZE_LIMIT + 1} bytes, expected at most {SIZE_LIMIT}")


def test_file_without_size() -> None:
    """Files of /proc say that they are empty."""
    problems = problems_of(Path("/proc/self/comm"))
    assert problems[-1].startswith("/proc/self/comm:1: cannot use")


def test_not_utf8(tmp_path: Path) -> None:
    path = tmp_path / "latin.conf"
    path.write_bytes(b"[listen a]\n# caf\xc3\xa9\n# caf\xe9\n")
    assert problems_of(path) == [f"{path}:3: cannot read: found byte 0xe9 as the line's byte 6, expected text in UTF-8"]


def test_utf16(tmp_path: Path) -> None:
    path = tmp_path / "wide.conf"
    path.write_text(VALID, encoding="utf-16")
    assert problems_of(path) == [f"{path}:1: cannot read: found byte 0xff as the line's byte 1, expected text in UTF-8"]


def test_binary(tmp_path: Path) -> None:
    path = tmp_path / "binary.conf"
    path.write_bytes(b"[global]\n\x00\x01\x02")
    assert problems_of(path)[0] == f"{path}:2: cannot read this line: found the control character 0x00, expected text"


def test_byte_order_mark_and_carriage_returns(tmp_path: Path) -> None:
    path = tmp_path / "windows.conf"
    path.write_bytes(b"\xef\xbb\xbf" + VALID.replace("\n", "\r\n").encode())
    config = load([str(path)])
    assert config.frontends[0].binds[0].where.line == 2


def test_same_file_twice(tmp_path: Path) -> None:
    path = tmp_path / "a.conf"
    path.write_text(VALID)
    assert problems_of(path, tmp_path) == [f"{path}: cannot read the same file twice: it was read already as {path}"]


def test_every_unreadable_file_and_every_wrong_line_at_once(tmp_path: Path) -> None:
    path = tmp_path / "a.conf"
    path.write_text("[frontend a]\nbind = :x\ndefault_backend = elsewhere\n")
    assert problems_of(tmp_path / "no.conf", path, tmp_path / "nor.conf") == [
        f"{tmp_path / 'no.conf'}: cannot read: No such file or directory",
        f'{path}:2: [frontend a] bind: cannot use this port: found "x", expected a port from 1 to 65535',
        f"{tmp_path / 'nor.conf'}: cannot read: No such file or directory",
    ]


def test_name_with_nul() -> None:
    (problem,) = problems_of(Path("a\0b"))
    assert problem.startswith("a\0b: cannot read: ")


def test_descriptors_are_closed(tmp_path: Path) -> None:
    path = tmp_path / "a.conf"
    with no_leak():
        path.write_bytes(b"\xff")
        problems_of(path)
        path.write_text(VALID)
        load([str(path)])
