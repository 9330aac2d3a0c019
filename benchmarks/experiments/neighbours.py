"""What a process that starts beside an undisturbed hitlessd does to the latency of new connections.

    python -m benchmarks.experiments.neighbours [ROUNDS]

Four times a second, as reloads come in the section `latency`: a program that does nothing, haproxy and Python that only
start, and reloads of hitlessd by a signal and by hitlessctl. What the first ones cost is the machine's, not ours.
"""

import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from benchmarks.latency import under_load
from benchmarks.proxies import HAPROXY, Hitlessd, interpreter
from benchmarks.targets import RELOADS_A_SECOND
from tests.support.backend import Backend
from tests.support.processes import free_ports, poll_until

_RATE: Final = 4000.0
"""New connections a second: about half load."""
_SECONDS: Final = 4.0


class _Disturbed(Hitlessd):
    """Whose reload() may be something else."""

    what: Callable[[], object] | None = None

    def reload(self) -> float:
        if self.what is None:
            return super().reload()
        began = time.monotonic()
        self.what()
        return time.monotonic() - began

    def by_signal(self) -> None:
        """Reload without hitlessctl."""
        main = self.pidfile.read_text()
        os.kill(int(main), signal.SIGHUP)
        poll_until(lambda: self.pidfile.read_text() != main, 10, "another main process")


def _start(*command: str) -> Callable[[], object]:
    return lambda: subprocess.run(command, stdout=subprocess.DEVNULL, check=True)


def main(arguments: Sequence[str]) -> None:
    """Print percentiles in ms, medians of the rounds."""
    rounds = int(arguments[0]) if arguments else 5
    with tempfile.TemporaryDirectory() as text, Backend() as backend:
        Path(text).chmod(0o755)  # proxies run as other users
        with _Disturbed(Path(text) / "hitlessd", free_ports(2), [backend.port], workers=1) as proxy:
            neighbours: dict[str, Callable[[], object] | None] = {
                "nothing": None,
                "/bin/true": _start("/bin/true"),
                "haproxy -v": _start(HAPROXY, "-v"),
                "python3 -c pass": _start(interpreter(), "-c", "pass"),
                "reload by SIGHUP": proxy.by_signal,
                "hitlessctl reload": None,
            }
            found: dict[str, list[dict[str, float]]] = {name: [] for name in neighbours}
            for _ in range(rounds):
                for name, proxy.what in neighbours.items():
                    often = RELOADS_A_SECOND if name != "nothing" else 0
                    found[name].append(under_load(proxy, _RATE, int(_RATE * _SECONDS), often).result["latency_ms"])
    print(f"{f'{RELOADS_A_SECOND:g} times a second':20} p50     p99     p99.9   ms, and p99.9 to that of nothing")
    for name, runs in found.items():
        medians = [statistics.median(run[key] for run in runs) for key in ("p50", "p99", "p999")]
        ratio = statistics.median(
            run["p999"] / alone["p999"] for run, alone in zip(runs, found["nothing"], strict=True)
        )
        print(f"{name:20} " + " ".join(f"{value:7.2f}" for value in medians) + f" {ratio:7.2f}")


if __name__ == "__main__":
    main(sys.argv[1:])
