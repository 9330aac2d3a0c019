"""What stands for hitlessd.ctl where the units are tested without the daemon; runs inside a machine."""

import sys
from pathlib import Path


def main() -> int:
    """A reload that is refused as long as the configuration says `broken`."""
    if "broken" in Path("/etc/hitlessd/hitlessd.conf").read_text():
        print("cannot reload: the configuration is broken", file=sys.stderr)
        return 1
    return 0
