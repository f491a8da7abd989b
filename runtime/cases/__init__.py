"""Cases of the op table: what ``crossdock verify`` and the tests run every kernel on.

``table`` and ``nn`` hold the cases, ``kit`` says what a case is. A new op gets its rows there.
"""

from __future__ import annotations

from crossdock.runtime.cases.kit import Case, Feed
from crossdock.runtime.cases.table import CASES, of_op

__all__ = ["CASES", "Case", "Feed", "of_op"]
