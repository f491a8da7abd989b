"""``python -m crossdock``: the same command line as the ``crossdock`` script."""

from __future__ import annotations

import sys

from crossdock.runtime.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
