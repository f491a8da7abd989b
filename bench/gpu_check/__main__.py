"""Entry point of ``python -m bench.gpu_check``."""

from __future__ import annotations

import sys

OLDEST = (3, 11)

if __name__ == "__main__":
    if sys.version_info < OLDEST:
        here, oldest = (".".join(map(str, found[:2])) for found in (sys.version_info, OLDEST))
        print(
            f"missing: Python {oldest} or newer (this is {here}); make gpu-check PYTHON=python3.12"
        )
        sys.exit(3)
    from bench.gpu_check.runner import main

    sys.exit(main())
