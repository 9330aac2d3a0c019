"""hitlessd and haproxy with as many proxies, listeners and servers as are asked for."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from benchmarks.proxies import Haproxy, Hitlessd, Proxy
from tests.support.processes import free_ports

__all__ = ["KINDS", "Shape", "ShapedHaproxy", "ShapedHitlessd", "shaped"]


@dataclass(frozen=True)
class Shape:
    """What a configuration has. All of its servers have one address."""

    proxies: int = 1
    binds: int = 1
    """Of each proxy."""
    servers: int = 1
    """Of each proxy."""
    mode: str = "tcp"
    balance: str = "roundrobin"
    consistent: bool = False
    inter: float = 0.0
    """Seconds between two checks of a server; 0: none."""
    maxconn: int = 4000
    crash_proof: bool = True
    """Of hitlessd alone; on is what is shipped."""


class ShapedHitlessd(Hitlessd):
    """hitlessd of a shape."""

    shape = Shape()

    def text(self, listen: Sequence[int], servers: Sequence[int]) -> str:
        shape = self.shape
        head = super().text([0], []).partition("[listen t]")[0]
        head = head.replace("maxconn = 4000", f"maxconn = {shape.maxconn}")
        head = head.replace("mode = tcp", f"mode = {shape.mode}")
        if not shape.crash_proof:
            head = head.replace("[global]\n", "[global]\ncrash-proof = off\n")
        # Idle connections are to stay.
        head = re.sub(r"timeout (client|server) = \w+", r"timeout \1 = 10m", head)
        hashed = "hash-type = consistent\n" if shape.consistent else ""
        check = f" check inter {shape.inter:g}s" if shape.inter else ""
        lines = "".join(f"server s{number} = 127.0.0.1:{servers[0]}{check}\n" for number in range(shape.servers))
        parts = [head]
        for number in range(shape.proxies):
            ports = listen[number * shape.binds : (number + 1) * shape.binds]
            binds = "\n       ".join(f"127.0.0.1:{port}" for port in ports)
            parts.append(f"[listen t{number}]\nbind = {binds}\nbalance = {shape.balance}\n{hashed}{lines}\n")
        return "".join(parts)


class ShapedHaproxy(Haproxy):
    """haproxy of a shape."""

    shape = Shape()

    def text(self, listen: Sequence[int], servers: Sequence[int]) -> str:
        shape = self.shape
        head = super().text([0], []).partition("listen t\n")[0]
        head = head.replace("maxconn 4000", f"maxconn {shape.maxconn}").replace("mode tcp", f"mode {shape.mode}")
        head = re.sub(r"timeout (client|server) \w+", r"timeout \1 10m", head)
        hashed = "    hash-type consistent\n" if shape.consistent else ""
        check = f" check inter {shape.inter:g}s" if shape.inter else ""
        lines = "".join(f"    server s{number} 127.0.0.1:{servers[0]}{check}\n" for number in range(shape.servers))
        parts = [head]
        for number in range(shape.proxies):
            ports = listen[number * shape.binds : (number + 1) * shape.binds]
            binds = "".join(f"    bind 127.0.0.1:{port}\n" for port in ports)
            parts.append(f"listen t{number}\n{binds}    balance {shape.balance}\n{hashed}{lines}\n")
        return "".join(parts)


KINDS: Final = (ShapedHitlessd, ShapedHaproxy)


def shaped(
    kind: type[ShapedHitlessd | ShapedHaproxy], directory: Path, server: int, cpu: int | None = None, **of: object
) -> Proxy:
    """One of these, not yet started, in front of a port; `of` is what makes its Shape."""
    shape = replace(Shape(), **of)  # type: ignore[arg-type]
    proxy = kind(directory, free_ports(shape.proxies * shape.binds), [server], cpu=cpu)
    proxy.shape = shape
    return proxy
