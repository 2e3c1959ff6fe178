"""`python -m micrographia`: the same as the command `micrographia`."""

import sys

from micrographia.cli.main import main

sys.exit(main())
