"""Device contracts, kinds, registry and probe.

The package is also the public function ``crossdock.devices()``: a package and a function of one
name can only be the same object, so the module is made callable.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from crossdock.devices.base import DeviceInfo


class _Devices(ModuleType):
    """This package, callable."""

    def __call__(self) -> list[DeviceInfo]:
        """List the devices of this machine, the host's processor first."""
        from crossdock.devices import registry

        return registry.devices()


sys.modules[__name__].__class__ = _Devices
