"""The tiled product for processors: a work-group is one item that runs plain loops.

OpenCL drivers for processors make loops over the items of a work-group. Around barriers those keep
each item's registers in memory, so a text written for a GPU runs at a third of the speed of this
one, which is the classic blocked product: the right factor is packed in panels of RN columns that
stay in the first-level cache, and a block of RM x RN sums stays in registers.
"""

from __future__ import annotations

from collections.abc import Sequence

from crossdock.devices.base import DeviceInfo
from crossdock.devices.program import Argument, GridLaunch
from crossdock.kernels.grid_common import Defines, accessors, define, launch, vector_width, vectors
from crossdock.kernels.grid_tile import Parts, Tile

_KERNEL = r"""
#define PANELS (TN / RN)
#define VECS (RN / VW)
#define W RN
#define STORE_LOOP
#if WHOLE
#define PANEL_SUM i32
#define PANEL_SUMS i32
#define PANEL_PER 1
#define PANEL_ZERO 0
#define PANEL_BEGIN(held) VSPLAT(0.0f)
#define PANEL_END \
    VEC part[RM][VECS]; \
    const float *each = (const float *)part; \
    UNROLL for (i32 i = 0; i < RM; ++i) \
        UNROLL for (i32 j = 0; j < VECS; ++j) part[i][j] = acc[i][j]; \
    for (i32 e = 0; e < RM * RN; ++e) block[e] = (i32)((u32)block[e] + (u32)(i32)each[e]);
#else
#define PANEL_SUM float
#define PANEL_SUMS VEC
#define PANEL_PER VW
#define PANEL_ZERO VSPLAT(0.0f)
#define PANEL_BEGIN(held) (held)
#define PANEL_END \
    UNROLL for (i32 i = 0; i < RM; ++i) \
        UNROLL for (i32 j = 0; j < VECS; ++j) block[i * VECS + j] = acc[i][j];
#endif
KERNEL BLOCK_SIZE(1, 1, 1)
void product(@PARAMS@)
{
    LOCAL VEC a_tile[TM * TK / VW];
    LOCAL VEC b_tile[TN * TK / VW];
    LOCAL_PTR float *as = (LOCAL_PTR float *)a_tile;
    LOCAL_PTR float *bs = (LOCAL_PTR float *)b_tile;
    PANEL_SUMS sums[TM * TN / PANEL_PER];
    const i32 m0 = GROUP_ID(1) * TM, n0 = GROUP_ID(0) * TN, z = GROUP_ID(2);
    const i32 rows = M - m0 < TM ? M - m0 : TM, columns = N - n0 < TN ? N - n0 : TN;
    @SETUP@
    for (i32 i = 0; i < TM * TN / PANEL_PER; ++i) sums[i] = PANEL_ZERO;
    for (i32 k0 = 0; k0 < K; k0 += TK) {
        const i32 depth = K - k0 < TK ? K - k0 : TK;
        @FILL_A@
        @FILL_B@
        for (i32 r = 0; r * RM < rows; ++r) {
            for (i32 p = 0; p * RN < columns; ++p) {
                PANEL_SUMS *block = sums + (r * PANELS + p) * RM * RN / PANEL_PER;
                VEC acc[RM][VECS];
                UNROLL for (i32 i = 0; i < RM; ++i)
                    UNROLL for (i32 j = 0; j < VECS; ++j)
                        acc[i][j] = PANEL_BEGIN(block[i * VECS + j]);
                for (i32 k = 0; k < depth; ++k) {
                    VEC b[VECS];
                    UNROLL for (i32 j = 0; j < VECS; ++j)
                        b[j] = b_tile[(p * TK + k) * VECS + j];
                    UNROLL for (i32 i = 0; i < RM; ++i) {
                        const VEC a = VSPLAT(as[(r * RM + i) * TK + k]);
                        UNROLL for (i32 j = 0; j < VECS; ++j)
                            acc[i][j] = VFMA(a, b[j], acc[i][j]);
                    }
                }
                PANEL_END
            }
        }
    }
    for (i32 r = 0; r * RM < rows; ++r) {
        for (i32 p = 0; p * RN < columns; ++p) {
            for (i32 i = 0; i < RM && m0 + r * RM + i < M; ++i) {
                const PANEL_SUM *sum =
                    (const PANEL_SUM *)(sums + ((r * PANELS + p) * RM + i) * RN / PANEL_PER);
                const i32 m = m0 + r * RM + i, n = n0 + p * RN, left = N - n < W ? N - n : W;
                @STORE@
            }
        }
    }
}
"""

ROWS_OF_A = r"""
        for (i32 m = 0; m < rows; ++m) {
            CONSTANT T *from = a + (m0 + m) * lda + k0;
            for (i32 k = 0; k < depth; ++k) as[m * TK + k] = T_LOAD(from, k);
        }
"""
"""Reads a tile of the left factor, whose rows are dense."""

COLUMNS_OF_A = r"""
        for (i32 k = 0; k < depth; ++k) {
            CONSTANT T *from = a + (k0 + k) * lda + m0;
            for (i32 m = 0; m < rows; ++m) as[m * TK + k] = T_LOAD(from, m);
        }
"""
"""Reads a tile of a left factor that is stored transposed."""

ROWS_OF_B = r"""
        for (i32 k = 0; k < depth; ++k) {
            CONSTANT T *from = b + (k0 + k) * ldb + n0;
            for (i32 p = 0; p * RN < columns; ++p) {
                LOCAL_PTR float *to = bs + (p * TK + k) * RN;
                if (columns - p * RN >= RN) {
                    for (i32 l = 0; l < RN; ++l) to[l] = T_LOAD(from, p * RN + l);
                } else {
                    for (i32 l = 0; l < columns - p * RN; ++l) to[l] = T_LOAD(from, p * RN + l);
                }
            }
        }
"""
"""Reads a tile of the right factor, whose rows are dense."""

COLUMNS_OF_B = r"""
        for (i32 n = 0; n < columns; ++n) {
            CONSTANT T *from = b + (n0 + n) * ldb + k0;
            LOCAL_PTR float *to = bs + n / RN * TK * RN + n % RN;
            for (i32 k = 0; k < depth; ++k) to[k * RN] = T_LOAD(from, k);
        }
"""
"""Reads a tile of a right factor that is stored transposed."""


def fitting(device: DeviceInfo) -> tuple[Tile, ...]:
    """The tiles that fit a device: sums of a block fill the registers of its vector width."""
    width = vector_width(device)
    tall, wide = (12, 32) if width == 16 else (6, 2 * width)
    tiles = (
        Tile(96, 64, 128, tall, wide, 1.0, cut=True),
        Tile(144, 64, 128, tall, wide, 0.98, cut=True),
        Tile(48, 32, 64, tall, wide, 0.8, cut=True),
    )
    local = device.local_memory or 32 << 10
    return tuple(t for t in tiles if 4 * t.tk * (t.tm + t.tn) <= local)


def product(
    tile: Tile,
    parts: Parts,
    sizes: tuple[int, int, int],
    args: Sequence[Argument],
    dtype: str,
    *,
    whole: bool = False,
    head: str = "",
    defines: Defines = (),
) -> GridLaunch:
    """The launch of a product of ``sizes`` (rows, columns, batch).

    ``whole``: factors are whole numbers, of which no sum of TK products passes 2^24; those sums are
    exact in float, and are added up in int32. ``head`` goes before the text.
    """
    known = define(TM=tile.tm, TN=tile.tn, TK=tile.tk, RM=tile.rm, RN=tile.rn, WHOLE=int(whole))
    known += vectors(tile.rn // 2)
    m, n, batch = sizes
    items = (-(-n // tile.tn), -(-m // tile.tm), batch)
    text = head + parts.into(_KERNEL)
    return launch(text, "product", args, items, (1, 1, 1), (*known, *accessors(dtype), *defines))
