"""How two workers share what comes to one listener (EPOLLEXCLUSIVE), at several rates.

python -m benchmarks.experiments.fairness
"""

import tempfile
from pathlib import Path
from typing import Any, Final

from benchmarks.proxies import Hitlessd
from tests.support.backend import Backend
from tests.support.load import Load
from tests.support.processes import free_port

_LOADS: Final[dict[str, dict[str, Any]]] = {
    "100 connections a second": {"rate": 100, "total": 300},
    "1,000 connections a second": {"rate": 1000, "total": 4000},
    "64 clients, as fast as they can": {"total": 10000, "clients": 64},
    "2,000 connections that stay, opened at once": {"mode": "keepalive", "total": 8000, "clients": 2000},
}


def accepted(proxy: Hitlessd) -> list[int]:
    """By each worker, ever."""
    lines = proxy.ask("show activity").splitlines()
    line = next(line for line in lines if line.startswith("accepted:"))
    return [int(word) for word in line.split("[")[1].rstrip(" ]").split()]


def main() -> None:
    with tempfile.TemporaryDirectory() as directory, Backend() as backend:
        port = int(backend.addresses[0].rpartition(":")[2])
        with Hitlessd(Path(directory) / "proxy", [free_port()], [port], workers=2) as proxy:
            for name, settings in _LOADS.items():
                shares = []
                for _ in range(3):
                    before = accepted(proxy)
                    with Load(proxy.targets[0], progress=0, **settings) as load:
                        load.result(60)
                    counts = [now - then for then, now in zip(before, accepted(proxy), strict=True)]
                    shares.append(max(counts) / sum(counts))
                print(f"{name}: the busier of two had {', '.join(f'{share:.0%}' for share in sorted(shares))}")


if __name__ == "__main__":
    main()
