"""The pool of pipes."""

from __future__ import annotations

import os
import resource

import pytest

from hitlessd.worker import pipes
from hitlessd.worker.pipes import SIZE, Pipe, PipePool


def count_fds() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_pipes_are_kept_for_later_and_closed_in_the_end() -> None:
    before = count_fds()
    pool = PipePool(4 * SIZE)
    first = pool.take()
    assert first is not None and pool.lent == 1 and pool.bytes >= SIZE
    pool.give(first)
    assert pool.take() is first
    pool.give(first)
    pool.close()
    assert count_fds() == before and pool.bytes == pool.lent == 0


def test_the_budget_is_kept() -> None:
    pool = PipePool(2 * SIZE)
    taken = [pool.take(), pool.take()]
    assert None not in taken
    assert pool.take() is None
    for pipe in taken:
        assert pipe is not None
        pool.give(pipe)
    assert pool.take() is not None
    pool.lent = 0
    pool.close()


def test_a_pipe_with_bytes_does_not_go_back() -> None:
    before = count_fds()
    pool = PipePool(4 * SIZE)
    pipe = pool.take()
    assert pipe is not None
    pipe.fill = os.write(pipe.writer, b"secret")
    pool.give(pipe)
    assert pool.lent == pool.bytes == 0
    assert count_fds() == before


def test_no_descriptors_left_means_no_pipe() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    pool = PipePool(4 * SIZE)
    highest = max(int(name) for name in os.listdir("/proc/self/fd"))
    fill = []
    resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 1, hard))
    try:
        while True:
            try:
                fill.append(os.dup(2))
            except OSError:
                break
        assert pool.take() is None
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for fd in fill:
            os.close(fd)
    assert pool.bytes == pool.lent == 0


def test_a_user_out_of_pipe_pages_gets_no_shrunken_pipe() -> None:
    """Beyond pipe-user-pages-soft an ordinary user's pipes have two pages; a child that is one finds that out."""
    read_end, write_end = os.pipe()
    pid = os.fork()
    if not pid:
        status = 9
        try:
            if os.getuid() == 0:
                os.setgroups([])
                os.setresgid(64999, 64999, 64999)
                os.setresuid(64999, 64999, 64999)
            hoard = PipePool(1 << 40)
            while hoard.take() is not None:
                pass
            before = count_fds()
            refused = hoard.take() is None and count_fds() == before
            enough = hoard.bytes >= 16 << 20
            freed = hoard._free
            some = Pipe(*os.pipe(), 1 << 12)
            some.close()
            os.write(write_end, f"{int(refused)}{int(enough)}{len(freed)}".encode())
            status = 0
        finally:
            os._exit(status)
    os.close(write_end)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert os.read(read_end, 100) == b"110"
    os.close(read_end)


@pytest.mark.parametrize("workers", [1, 2, 8])
def test_the_share_of_a_worker_fits_into_what_a_user_may_have(workers: int) -> None:
    assert pipes.BUDGET // workers * workers <= 64 << 20
