"""`python -m modelserve.cli` is the command `modelserve`."""

import sys

from modelserve.cli import main

sys.exit(main())
