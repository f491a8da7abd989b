"""Machine code kept on disk between processes: a private folder of ``runtime.kept``.

A key covers the code, the processor, the compiler's version and how it was run.
"""

from __future__ import annotations

from crossdock.runtime.kept import Folder
from crossdock.runtime.kept import key as key

LIMIT = 16 << 20
"""A larger file is no kernel of ours."""
FOLDER = Folder("native", LIMIT)
load = FOLDER.load
save = FOLDER.save
