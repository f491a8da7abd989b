"""Profiles of a few named machines, to plan for where they are not at hand.

Each is a file NAME.json as ``probe --json`` writes one. Its ``origin`` says whether the figures
were measured there, or typed in from data sheets and with which assumptions.
"""

from __future__ import annotations

import json
from importlib.resources import files

from crossdock.devices.machine import Machine
from crossdock.runtime.errors import LoadError


def names() -> tuple[str, ...]:
    """The machines there are."""
    found = (entry.name for entry in files(__package__).iterdir())
    return tuple(sorted(name.removesuffix(".json") for name in found if name.endswith(".json")))


def read(name: str) -> Machine:
    """A machine by name; raises LoadError naming those there are."""
    if name not in names():
        raise LoadError(f"there is no machine {name!r}; there are {', '.join(names())}")
    text = files(__package__).joinpath(f"{name}.json").read_text(encoding="utf-8")
    return Machine.from_json(json.loads(text))
