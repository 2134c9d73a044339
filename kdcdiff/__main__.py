"""`python -m kdcdiff`."""

import sys

from kdcdiff.cli import main

sys.exit(main())
