"""Leave to use the tile registers of Intel's AMX, which Linux gives a process that asks for it."""

from __future__ import annotations

import ctypes
import functools
import platform
import sys

from crossdock.devices.cpu_llvm import host_features

_SYS_ARCH_PRCTL = 158  # x86-64
_ARCH_REQ_XCOMP_PERM = 0x1023
_XFEATURE_XTILEDATA = 18


@functools.cache
def tiles_allowed() -> bool:
    """True where products of int8 tiles can be used by every thread of this process.

    The first call asks the kernel (Documentation/arch/x86/xstate.rst of Linux); threads that are
    there already get the leave too.
    """
    if not {"amx-tile", "amx-int8"} <= host_features() or sys.platform != "linux":
        return False
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return False
    request = ctypes.CDLL(None, use_errno=True).syscall
    arguments = (_SYS_ARCH_PRCTL, _ARCH_REQ_XCOMP_PERM, _XFEATURE_XTILEDATA)
    return int(request(*(ctypes.c_long(a) for a in arguments))) == 0
