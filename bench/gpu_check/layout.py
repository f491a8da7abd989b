"""Import ``crossdock`` from this checkout, installed or not.

The packages lie in the checkout's top-level folders; a folder that has the checkout under the name
``crossdock`` is all that an import needs.
"""

from __future__ import annotations

import atexit
import importlib.util
import os
import shutil
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = "crossdock"


def importable() -> None:
    """Put the package on ``sys.path`` where it is not, and on that of the processes to come."""
    found = importlib.util.find_spec(PACKAGE)
    if found and found.origin and Path(found.origin).resolve().parent == ROOT:
        return
    folder = tempfile.mkdtemp(prefix="crossdock-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    os.symlink(ROOT, Path(folder) / PACKAGE, target_is_directory=True)
    sys.path.insert(0, folder)
    importlib.invalidate_caches()
    paths = [folder, os.environ.get("PYTHONPATH", "")]
    os.environ["PYTHONPATH"] = os.pathsep.join(path for path in paths if path)


def environment() -> dict[str, str]:
    """The environment for the processes of sections; torch keeps there what it compiles."""
    return {"TORCHINDUCTOR_FX_GRAPH_CACHE": "1", **os.environ, "PYTHONUNBUFFERED": "1"}
