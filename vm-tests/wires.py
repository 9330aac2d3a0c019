"""Namespaces of a machine on one switch: clients (10.9.3.2) and servers (10.9.3.11, ...), hitlessd's being 10.9.3.1."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

SWITCH = "switch0"
BALANCER, CLIENTS, SERVERS = "10.9.3.1", "10.9.3.2", ("10.9.3.11", "10.9.3.12")
NAMES = ("clients", "one", "two")
"""Of the namespaces. The port of the switch that one hangs on is called like it; so is the link in it."""


@contextlib.contextmanager
def switch(shell: Callable[[str], object]) -> Iterator[None]:
    """The switch and all that hang on it; `shell` runs a script as root, and raises what it will if that fails."""
    commands = [f"ip link add {SWITCH} type bridge", f"ip address add {BALANCER}/24 dev {SWITCH}"]
    commands.append(f"ip link set {SWITCH} up")
    for name, address in zip(NAMES, (CLIENTS, *SERVERS), strict=True):
        commands += [
            f"ip netns add {name}",
            f"ip link add {name} type veth peer name {name} netns {name}",
            f"ip link set {name} master {SWITCH} up",
            f"ip -n {name} address add {address}/24 dev {name}",
            f"ip -n {name} link set {name} up",
            f"ip -n {name} link set lo up",
        ]
    shell("set -eux\n" + "\n".join(commands))
    try:
        yield
    finally:
        gone = "\n".join(f"ip netns delete {name}; ip link delete {name}" for name in NAMES)
        shell(f"{gone}\nip link delete {SWITCH}\n:")
