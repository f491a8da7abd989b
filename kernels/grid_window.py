"""Convolution as an implicit matrix product: the right factor is gathered from the image.

Row k of the right factor is one tap of the window in one channel, column n one place of the
result in one image; a table gives how far each tap lies from a window's origin, so that layouts,
dilation and the phases of a transposed convolution are data. On a processor the image has been
padded before, so that nothing is checked and neighbours are read as vectors; on a GPU each read
is checked, which costs less than a padded copy.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from crossdock.devices.base import DeviceInfo
from crossdock.devices.program import (
    Argument,
    GridLaunch,
    In,
    Lowered,
    Out,
    Pack,
    Packed,
    Scalar,
    Scratch,
    Slot,
    Step,
)
from crossdock.kernels import grid_panels, grid_product
from crossdock.kernels.grid_common import define, i32, on_cpu
from crossdock.kernels.grid_move import copy
from crossdock.kernels.grid_pointwise import Target
from crossdock.kernels.grid_tile import Parts, Tile, launched
from crossdock.kernels.spec import OpCall
from crossdock.runtime.tensor import Array, TensorSpec

_PARAMS = (
    "CONSTANT @X@ *RESTRICT x, CONSTANT @A@ *RESTRICT a, CONSTANT i32 *RESTRICT taps, @BETWEEN@ "
    "GLOBAL @Y@ *RESTRICT y, i32 M, i32 N, i32 K, i32 lda, i32 out_h, i32 out_w, "
    "i32 step_h, i32 step_w, i32 top, i32 left_pad, i32 in_h, i32 in_w, "
    "i32 xg, i32 xn, i32 xh, i32 xw, i32 yg, i32 yn, i32 ym, i32 yh, i32 yw, i32 yo"
)

SETUP = r"""
#define COLUMN(j) (quad + j * (TN / 4))
#define PLACE(j) \
    const i32 c##j = n0 + COLUMN(j), q##j = c##j < N ? c##j : N - 1; \
    const i32 r##j = q##j / out_w, i##j = r##j / out_h; \
    const i32 h##j = (r##j - i##j * out_h) * step_h - top; \
    const i32 w##j = (q##j - r##j * out_w) * step_w - left_pad; \
    const i32 x##j = i##j * xn + h##j * xh + w##j * xw;
    const i32 quad = t % (TN / 4), first = t / (TN / 4);
    PLACE(0) PLACE(1) PLACE(2) PLACE(3)
    x += z * xg;
    a += z * M * lda;
    y += z * yg + yo;
"""

_FILL_B = r"""
        for (i32 k = first; k < TK; k += ITEMS / (TN / 4)) {
            LOCAL_PTR float *to = bs + k * TN;
            float v0 = 0.0f, v1 = 0.0f, v2 = 0.0f, v3 = 0.0f;
            if (k < rest) {
                const i32 from = taps[k0 + k], tap = taps[K + k0 + k];
                const i32 dy = (i32)((u32)tap >> 16) - 32768, dx = (tap & 0xffff) - 32768;
#if CHECKED
#define INSIDE(j) ((u32)(h##j + dy) < (u32)in_h && (u32)(w##j + dx) < (u32)in_w)
#else
#define INSIDE(j) 1
#endif
                if (INSIDE(0)) v0 = T_LOAD(x, x0 + from);
                if (INSIDE(1)) v1 = T_LOAD(x, x1 + from);
                if (INSIDE(2)) v2 = T_LOAD(x, x2 + from);
                if (INSIDE(3)) v3 = T_LOAD(x, x3 + from);
            }
            to[COLUMN(0)] = v0; to[COLUMN(1)] = v1; to[COLUMN(2)] = v2; to[COLUMN(3)] = v3;
        }
"""

SETUP_PANELS = r"""
#define ONE_OF_8(s, p, n, index) { const i32 l = n; v.s = T_LOAD(p, index); }
#define EACH8(p, index) \
    ONE_OF_8(s0, p, 0, index) ONE_OF_8(s1, p, 1, index) ONE_OF_8(s2, p, 2, index) \
    ONE_OF_8(s3, p, 3, index) ONE_OF_8(s4, p, 4, index) ONE_OF_8(s5, p, 5, index) \
    ONE_OF_8(s6, p, 6, index) ONE_OF_8(s7, p, 7, index)
    i32 place[TN], dense[TN / 8];
    for (i32 c = 0; c < TN; ++c) {
        const i32 q = n0 + c < N ? n0 + c : N - 1, r = q / out_w, i = r / out_h;
        const i32 h = (r - i * out_h) * step_h - top, w = (q - r * out_w) * step_w - left_pad;
        place[c] = i * xn + h * xh + w * xw;
    }
    for (i32 g = 0; g < TN / 8; ++g) {
        dense[g] = 1;
        for (i32 l = 1; l < 8; ++l)
            if (place[g * 8 + l] != place[g * 8] + l) dense[g] = 0;
    }
    x += z * xg;
    a += z * M * lda;
    y += z * yg + yo;
"""

FILL_B_PANELS = r"""
        for (i32 k = 0; k < depth; ++k) {
            CONSTANT T *from = x + taps[k0 + k];
            for (i32 g = 0; g * 8 < columns; ++g) {
                f32x8 v;
                LOCAL_PTR float *to = bs + (g * 8 / RN * TK + k) * RN + g * 8 % RN;
                if (dense[g]) {
                    CONSTANT T *run = from + place[g * 8];
                    EACH8(run, l)
                } else {
                    EACH8(from, place[g * 8 + l])
                }
                VSTORE8(to, v);
            }
        }
"""

STORE = r"""
                const i32 size = out_h * out_w, whole = n / size, at = n - whole * size;
                const i32 row = whole * yn + m * ym;
                if (yh == out_w * yw && at + left <= size) {
                    STORE_LOOP for (i32 l = 0; l < W; ++l)
                        if (l < left) PUT(row + (at + l) * yw, sum[l]);
                } else {
                    i32 down = at / out_w, right = at - down * out_w, image = whole;
                    STORE_LOOP for (i32 l = 0; l < W; ++l) {
                        if (l < left)
                            PUT(image * yn + m * ym + down * yh + right * yw, sum[l]);
                        right += 1;
                        if (right == out_w) { right = 0; down += 1; }
                        if (down == out_h) { down = 0; image += 1; }
                    }
                }
"""
"""Writes results by ``PUT(at, sum)``."""


def params(between: str, x: str = "T", a: str = "T", y: str = "T") -> str:
    """Kernel parameters, with the element types of image, weights and result."""
    text = _PARAMS.replace("@BETWEEN@", between)
    return text.replace("@X@", x).replace("@A@", a).replace("@Y@", y)


@dataclass(frozen=True)
class Lattice:
    """Strides, in elements, of the images, channels, rows and columns of a 4-D tensor."""

    n: int
    c: int
    h: int
    w: int

    @classmethod
    def of(cls, channels: int, height: int, width: int, layout: str) -> Lattice:
        """Of a dense tensor."""
        size = channels * height * width
        if layout == "nchw":
            return cls(size, height * width, width, 1)
        return cls(size, 1, width * channels, channels)


@dataclass(frozen=True)
class Taps:
    """The reduction: for each k, an offset in the image and how far down and right it lies."""

    offsets: Array
    down: Array
    right: Array

    @property
    def count(self) -> int:
        """Length of the reduction."""
        return int(self.offsets.size)

    def table(self) -> Array:
        """What the kernel reads: offsets, then both distances in one word."""
        words = ((self.down + 32768) << 16) | (self.right + 32768)
        both = np.concatenate((self.offsets, words)).astype(np.uint32).view(np.int32)
        return both if both.size else np.zeros(1, np.int32)


@dataclass(frozen=True)
class Window:
    """One implicit product: ``groups`` times M = ``m`` rows, a column for each place of ``out``.

    ``steps`` is how far a window moves in the image for each place, ``origin`` where the first one
    begins (negative in the padding); ``bounds`` is the image's height and width.
    """

    m: int
    groups: int
    images: int
    out: tuple[int, int]
    steps: tuple[int, int]
    origin: tuple[int, int]
    bounds: tuple[int, int]
    taps: Taps
    x: Lattice
    x_group: int
    y: Lattice
    y_group: int
    y_offset: int
    dtype: str

    @property
    def sizes(self) -> tuple[int, int, int]:
        """Rows, columns and batch of the product."""
        return self.m, self.images * self.out[0] * self.out[1], self.groups

    def numbers(self) -> tuple[Scalar, ...]:
        """The kernel's arguments after the buffers."""
        k = self.taps.count
        return i32(
            self.m, self.sizes[1], k, k, *self.out, *self.steps, -self.origin[0], -self.origin[1],
            *self.bounds, self.x_group, self.x.n, self.x.h, self.x.w, self.y_group,
            self.y.n, self.y.c, self.y.h, self.y.w, self.y_offset,
        )  # fmt: skip


def implicit(
    window: Window,
    device: DeviceInfo,
    *,
    x: Slot,
    weights: Slot,
    table: Slot,
    bias: Slot | None,
    y: Slot = Out(0),  # noqa: B008 - immutable
    checked: bool,
) -> GridLaunch:
    """The launch; ``weights`` are dense [groups * m, taps], ``table`` is ``Taps.table()``."""
    slots: tuple[Argument, ...] = (x, weights, table, *((bias,) if bias else ()), y)
    given = params("CONSTANT T *RESTRICT bias," if bias else "")
    put = "T_STORE(y, at, sum + T_LOAD(bias, z * M + m))" if bias else "T_STORE(y, at, sum)"
    sizes, k = window.sizes, window.taps.count
    args, dtype = (*slots, *window.numbers()), window.dtype
    defines = (*define(CHECKED=int(checked)), ("PUT(at, sum)", put))
    if on_cpu(device):
        assert not checked
        parts = Parts(given, SETUP_PANELS, grid_panels.ROWS_OF_A, FILL_B_PANELS, STORE)

        def panels(tile: Tile) -> GridLaunch:
            return grid_panels.product(tile, parts, sizes, args, dtype, defines=defines)

        return launched(grid_panels.fitting(device), sizes, k, device, panels)
    parts = Parts(given, SETUP, grid_product.ROWS_OF_A, _FILL_B, STORE)
    aligned = (k % 4 == 0, False)

    def tiled(tile: Tile) -> GridLaunch:
        return grid_product.product(
            tile, parts, sizes, args, dtype, aligned=aligned, defines=defines
        )

    return launched(grid_product.fitting(device), sizes, k, device, tiled)


@dataclass
class Assembly:
    """Steps, scratch and packed constants of a lowering, as they are put together."""

    call: OpCall
    device: DeviceInfo
    steps: list[Step] = field(default_factory=list)
    scratch: list[int] = field(default_factory=list)
    packs: list[Pack] = field(default_factory=list)
    unused: set[int] = field(default_factory=set)

    def pack(self, make: Callable[[], Array], spec: TensorSpec) -> Slot:
        """A packed constant's slot."""
        self.packs.append(Pack(make, spec))
        return Packed(len(self.packs) - 1)

    def table(self, taps: Taps) -> Slot:
        """The taps' table as a packed constant."""
        array = taps.table()
        return self.pack(lambda: array, TensorSpec.of(array))

    def buffer(self, nbytes: int) -> Slot:
        """A scratch buffer's slot."""
        self.scratch.append(nbytes)
        return Scratch(len(self.scratch) - 1)

    def arranged(
        self, at: int, dims: Sequence[int], strides: Sequence[int], offset: int = 0
    ) -> Slot:
        """Operand ``at`` read with ``strides``, dense: packed where constant, else copied."""
        spec = self.call.inputs[at]
        assert spec is not None
        result = TensorSpec(spec.dtype, tuple(dims))
        known = self.call.constants.get(at)
        if known is None:
            slot = self.buffer(result.nbytes)
            self.steps.append(
                copy(
                    spec.dtype,
                    dims,
                    self.device,
                    source=In(at),
                    strides=strides,
                    offset=offset,
                    target=Target(slot),
                )
            )
            return slot
        array = np.ascontiguousarray(known).reshape(-1)[offset:]
        self.unused.add(at)
        size = array.itemsize
        return self.pack(
            lambda: np.ascontiguousarray(
                np.lib.stride_tricks.as_strided(array, tuple(dims), [s * size for s in strides])
            ),
            result,
        )

    def lowered(self) -> Lowered:
        """The result."""
        return Lowered(
            tuple(self.steps), tuple(self.scratch), tuple(self.packs), frozenset(self.unused)
        )


def prepads(device: DeviceInfo) -> bool:
    """Whether images are padded before, rather than checked at each read."""
    return on_cpu(device)
