"""`python -m flmm_cli` is `flmm`."""

import sys

from flmm_cli.main import main

sys.exit(main())
