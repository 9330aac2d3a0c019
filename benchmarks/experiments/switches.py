"""One thing changed at a time: options of the interpreter, of malloc, of sockets, sizes, and the collector.

    python -m benchmarks.experiments.switches GROUP [ROUNDS]

What the source has no option for is changed in a copy of the tree. TCP Fast Open needs both ends and a sysctl(8) of the
network's namespace, so `fastopen` is to be run as

    unshare -n sh -c 'ip link set lo up; sysctl -qw net.ipv4.tcp_fastopen=1027; python -m ... fastopen'
"""

import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from benchmarks.experiments.variants import WORKS, Variant, compare, copy_tree, table

_LIBRARIES: Final = "/usr/lib/x86_64-linux-gnu"
_TCP: Final = ("connect", "keepalive")
_SHIPPED: Final = "shipped"


@dataclass(frozen=True)
class Change:
    """What is other than shipped."""

    flags: tuple[str, ...] = ()
    environment: dict[str, str] = field(default_factory=dict)
    edits: tuple[tuple[str, str, str], ...] = ()
    """File below hitlessd/, text that it has once, and what takes its place."""

    def variant(self, name: str, directory: Path) -> Variant:
        if not self.edits:
            return Variant(name, (sys.executable, *self.flags), environment=self.environment)
        tree = directory / name
        tree.mkdir()
        copy_tree(tree)
        for file, old, new in self.edits:
            path = tree / "hitlessd" / file
            text = path.read_text()
            if text.count(old) != 1:
                raise ValueError(f"cannot change {file}: {text.count(old)} times {old!r}")
            path.write_text(text.replace(old, new))
        return Variant(name, (sys.executable, *self.flags), tree, self.environment)


def _preload(library: str) -> Change:
    return Change(environment={"PYTHONMALLOC": "malloc", "LD_PRELOAD": f"{_LIBRARIES}/{library}"})


def _edit(file: str, old: str, new: str) -> Change:
    return Change(edits=((file, old, new),))


_DEFER: Final = "        sock.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, 1)\n"
_QUICK: Final = "            sock.setsockopt(6, 12, 0)  # IPPROTO_TCP, TCP_QUICKACK\n"

GROUPS: Final[dict[str, tuple[Sequence[str], dict[str, Change]]]] = {
    "interpreter": (
        WORKS,
        {
            "-OO": Change(("-OO",)),
            "frozen_modules": Change(("-X", "frozen_modules=on")),
            "LD_BIND_NOW": Change(environment={"LD_BIND_NOW": "1"}),
        },
    ),
    "malloc": (
        WORKS,
        {
            "glibc malloc": Change(environment={"PYTHONMALLOC": "malloc"}),
            "jemalloc": _preload("libjemalloc.so.2"),
            "huge pages": Change(environment={"PYTHONMALLOC": "malloc", "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}),
        },
    ),
    "collector": (
        WORKS,
        {
            "as Python does": _edit("worker/loop.py", "    gc.set_threshold(100_000, 20, 100)\n", ""),
            "off": _edit("worker/loop.py", "    gc.set_threshold(100_000, 20, 100)\n", "    gc.disable()\n"),
        },
    ),
    "accept": (
        ("connect",),
        {
            f"burst {most}": _edit("worker/frontend.py", "        burst = self._burst\n", f"        burst = {most}\n")
            for most in (1, 4, 16, 64)
        },
    ),
    "defer": (
        ("connect", "single"),
        {"DEFER_ACCEPT": _edit("listeners.py", _DEFER, f"{_DEFER}        sock.setsockopt(6, 9, 1)\n")},
    ),
    "fastopen": (
        ("connect",),
        {"FASTOPEN_CONNECT": _edit("worker/connection.py", _QUICK, "            sock.setsockopt(6, 30, 1)\n")},
    ),
    "recv": (
        ("keepalive", "bulk"),
        {f"{size >> 10} KiB": _edit("parking/book.py", "\nBLOCK = 64 << 10", f"\nBLOCK = {size}") for size in
         (16 << 10, 256 << 10)},
    ),
    "pipes": (
        ("bulk",),
        {f"{size >> 10} KiB": _edit("worker/pipes.py", "SIZE = 256 << 10", f"SIZE = {size}") for size in
         (64 << 10, 128 << 10, 512 << 10, 1 << 20)},
    ),
}  # fmt: skip


def main(arguments: Sequence[str]) -> None:
    """Run one group."""
    if not arguments or arguments[0] not in GROUPS:
        raise SystemExit(f"usage: python -m {__spec__.name} {'|'.join(GROUPS)} [ROUNDS]")
    works, changes = GROUPS[arguments[0]]
    rounds = int(arguments[1]) if len(arguments) > 1 else 5
    with tempfile.TemporaryDirectory() as text:
        Path(text).chmod(0o755)  # proxies run as other users
        variants = [change.variant(name, Path(text)) for name, change in changes.items()]
        print(table(compare([Variant(_SHIPPED), *variants], rounds, works), _SHIPPED))


if __name__ == "__main__":
    main(sys.argv[1:])
