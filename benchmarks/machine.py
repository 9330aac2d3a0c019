"""Where a benchmark runs, and how: what a reader of its figures has to know first."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.measure import LOAD_CPU, PROXY_CPU
from benchmarks.proxies import haproxy_version, interpreter
from benchmarks.user import ordinary_user
from hitlessd import __version__

__all__ = ["facts", "machine"]


def machine() -> dict[str, Any]:
    """The machine and the versions, for the JSON file."""
    model = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if "model name" in line
        ),
        platform.machine(),
    )
    return {
        "cpu": model,
        "cpus": len(os.sched_getaffinity(0)),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "interpreter": interpreter(),
        "hitlessd": __version__,
        "haproxy": haproxy_version(),
        "nginx": _nginx_version(),
        "load_average": os.getloadavg()[0],
        "ordinary_user": ordinary_user().uid is not None or os.geteuid() != 0,
    }


def facts(about: dict[str, Any], rounds: int, limit: int, wanted: int) -> Sequence[str]:
    """The same for a person, in lines."""
    user = "an ordinary user" if about["ordinary_user"] else "root: no ordinary user can read this tree, or its Python"
    unit = "as units/hitlessd.service" if limit == wanted else f"as many as there may be here; the unit says {wanted:,}"
    turns = "one round" if rounds == 1 else f"{rounds} rounds in turn, medians"
    found = [
        f"{about['cpu']}, {about['cpus']} CPUs; Linux {about['kernel']}; {about['interpreter']} {about['python']}",
        f"proxy on CPU {PROXY_CPU}, load generator and servers on CPU {LOAD_CPU}; {turns}",
        f"each proxy is run by {user}; open files {limit:,} ({unit})",
        "hitlessd as shipped: crash-proof on, counters and timeouts on, no log but where httplog is said",
    ]
    if about["load_average"] > 0.5:
        found.append(f"the machine is busy (load average {about['load_average']:.1f}): rates and times suffer")
    found += [f"there is no {name} here to compare with" for name in ("haproxy", "nginx") if not about[name]]
    return found


def _nginx_version() -> str:
    """Such as 1.22.1, or nothing if there is no nginx."""
    try:
        text = subprocess.run(["/usr/sbin/nginx", "-v"], capture_output=True, text=True, check=True).stderr
    except (OSError, subprocess.CalledProcessError):
        return ""
    found = re.search(r"nginx/([\d.]+)", text)
    return found[1] if found else ""
