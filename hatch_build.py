"""Build hook: lay out the links that an editable install imports from.

The packages live in top-level folders, and the wheel moves them under ``crossdock/``. An editable
install has nothing to move, so it gets a git-ignored ``.editable/crossdock/`` of links to the same
files; ``.editable`` is the one path that the install puts on ``sys.path``, and type checkers and
editors follow it without any setting of their own.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

PACKAGE = "crossdock"
LINKED = ("__init__.py", "__main__.py", "py.typed", "runtime", "devices", "kernels", "scheduler")


class EditableLinks(BuildHookInterface[Any]):
    """Make the links of an editable install; other builds pass through."""

    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Make the links when ``version`` says that the build is an editable one."""
        if version == "editable":
            link_package(Path(self.root))


def link_package(root: Path) -> None:
    """Replace ``root/.editable/crossdock`` by a folder of relative links into ``root``."""
    package = root / ".editable" / PACKAGE
    if package.is_symlink() or package.is_file():
        package.unlink()
    package.mkdir(parents=True, exist_ok=True)
    for entry in package.iterdir():
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        elif entry.name not in LINKED:
            entry.unlink()
    for name in LINKED:
        link = package / name
        target = os.path.join("..", "..", name)
        if not link.is_symlink() or os.readlink(link) != target:
            link.unlink(missing_ok=True)
            link.symlink_to(target, target_is_directory=(root / name).is_dir())
