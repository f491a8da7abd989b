"""How far the Winograd transforms take a layer's results from their true values.

Measured on the layer's own filter: tiles of random pixels are convolved in float32 by way of the
transforms, as the kernel does it, and in float64 without them. What a layer may have is the setting
``CROSSDOCK_FAST_ERROR``.
"""

from __future__ import annotations

import hashlib
import struct
import threading
import weakref

import numpy as np

from crossdock.devices import cpu_cache
from crossdock.kernels.cpu_winograd_math import Filtering, as_array, filtering
from crossdock.kernels.kernel_set import kernel_set
from crossdock.runtime.tensor import Array

ERROR = struct.Struct("<d")
TILES = 16
OUTPUTS = 32
"""Random tiles, and output channels spread over the layer's, that the error is measured on."""

_KNOWN: dict[tuple[int, int, int], tuple[weakref.ref[Array], float]] = {}
_LOCK = threading.Lock()


def error_of(filters: Array, m: int, r: int) -> float:
    """Largest error of F(m, r) over the largest result for an ``oihw`` filter.

    Kept by array, and on disk by the values that it is measured on.
    """
    mark = (id(filters), m, r)
    with _LOCK:
        found = _KNOWN.get(mark)
    if found is not None and found[0]() is filters:
        return found[1]
    error = _kept(filters[:: -(-filters.shape[0] // OUTPUTS)], m, r)
    with _LOCK:
        _KNOWN[mark] = weakref.ref(filters), error
    return error


def _kept(some: Array, m: int, r: int) -> float:
    """The error on these filters, from an earlier process of the same sources if there was one."""
    values = hashlib.sha256(np.ascontiguousarray(some).data).hexdigest()
    name = cpu_cache.key("winograd error", kernel_set(), f"{m} {r} {some.shape}", values)
    found = cpu_cache.load(name)
    if found is not None and len(found) == ERROR.size:
        return float(ERROR.unpack(found)[0])
    error = _measured(some, filtering(m, r))
    cpu_cache.save(name, ERROR.pack(error))
    return error


def _measured(some: Array, f: Filtering) -> float:
    n, channels = f.n, some.shape[1]
    rng = np.random.default_rng(0)
    tiles = rng.standard_normal((TILES, channels, n, n)).astype(np.float32)
    want = _direct(tiles, some, f)
    most = float(np.abs(want).max(initial=0.0))
    if most == 0.0:
        return 0.0
    got = _transformed(tiles, some, f)
    return float(np.abs(got - want).max()) / most


def _direct(tiles: Array, filters: Array, f: Filtering) -> Array:
    """float64[outputs, tiles, m, m]."""
    flat = filters.reshape(filters.shape[0], -1).astype(np.float64)
    made = np.empty((filters.shape[0], len(tiles), f.m, f.m))
    for y in range(f.m):
        for x in range(f.m):
            patch = tiles[:, :, y : y + f.r, x : x + f.r].reshape(len(tiles), -1)
            made[:, :, y, x] = flat @ patch.astype(np.float64).T
    return made


def _transformed(tiles: Array, filters: Array, f: Filtering) -> Array:
    """float32[outputs, tiles, m, m]."""
    b, a = (as_array(x).astype(np.float32) for x in (f.image, f.result))
    g = as_array(f.filter)
    u = np.einsum("ia,ocab,jb->ijoc", g, filters.astype(np.float64), g, optimize=True)
    v = np.einsum("ia,tcab,jb->ijct", b, tiles, b, optimize=True)
    products = np.matmul(u.astype(np.float32), v)
    made: Array = np.einsum("ai,ijot,bj->otab", a, products, a, optimize=True)
    return made
