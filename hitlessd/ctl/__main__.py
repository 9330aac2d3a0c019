"""`python -m hitlessd.ctl` is hitlessctl."""

import sys

from hitlessd.ctl import main

sys.exit(main())
