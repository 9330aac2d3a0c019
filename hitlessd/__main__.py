"""`python -m hitlessd` is the daemon, as /usr/bin/hitlessd is."""

import sys

from hitlessd.cli import main

sys.exit(main())
