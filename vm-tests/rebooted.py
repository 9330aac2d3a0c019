"""Runs in a machine, see inside.py, just after a boot: the package's units are up, in order, and content.

python3 vm-tests/rebooted.py
"""

from __future__ import annotations

import urllib.request

from inside import UNIT, info, journal, output

SOCKET = "hitlessd.socket"


def main() -> None:
    states = {unit: output("systemctl", "show", "-P", "ActiveState", unit).strip() for unit in (UNIT, SOCKET)}
    assert states == {UNIT: "active", SOCKET: "active"}, (states, journal()[-20:])
    with urllib.request.urlopen("http://127.0.0.1/", timeout=20) as answer:
        assert answer.read() == b"hello"
    # A client can wait at the socket before the service is there.
    listening = int(output("systemctl", "show", "-P", "ActiveEnterTimestampMonotonic", SOCKET))
    started = int(output("systemctl", "show", "-P", "ExecMainStartTimestampMonotonic", UNIT))
    assert 0 < listening < started, (listening, started)
    told = info()
    assert (told["Generation"], told["CumResumed"], told["CumLost"]) == ("1", "0", "0"), told
    for unit in (UNIT, SOCKET):
        complaints = output("journalctl", "--boot", "--priority=warning", "--quiet", "--no-pager", f"--unit={unit}")
        assert complaints == "", complaints
    failed = output("systemctl", "list-units", "--failed", "--plain", "--no-legend")
    assert failed == "", failed
    print(f"listening {listening / 1e6:.1f} s after the kernel's start, started after {started / 1e6:.1f} s")


if __name__ == "__main__":
    main()
