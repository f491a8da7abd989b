"""The public front: names are there, lazily, and stay the same objects."""

from __future__ import annotations

import subprocess
import sys

import pytest

import crossdock as xd


@pytest.mark.parametrize("name", sorted(set(xd.__all__)))
def test_every_public_name_is_there_and_stays_the_same(name: str) -> None:
    assert getattr(xd, name) is getattr(xd, name)
    assert name in dir(xd)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="'crossdock' has no attribute 'nope'"):
        _ = xd.nope


FIRST = """
import crossdock as xd
assert xd.devices()[0].id == "cpu:0"
import crossdock.devices.sim
from crossdock.devices import registry
assert callable(xd.devices) and xd.devices.registry is registry
assert xd.devices()[0].id == "cpu:0"
"""
LAST = """
import crossdock.devices.registry
import crossdock.runtime.compiling
import crossdock as xd
assert xd.devices()[0].id == "cpu:0"
assert xd.compile is crossdock.runtime.compiling.compile
"""
STARRED = """
from crossdock import *
assert devices()[0].id == "cpu:0"
assert issubclass(Error, Exception) and scheduler.solve
"""


@pytest.mark.parametrize("code", [FIRST, LAST, STARRED], ids=["first", "last", "starred"])
def test_devices_is_a_function_and_a_package_in_any_order_of_imports(code: str) -> None:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
