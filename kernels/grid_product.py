"""The tiled matrix product that matmul, gemm and convolution share.

A work-group makes a TM x TN tile of the result from tiles of both factors in local memory, TK deep
at a time; a work item makes RM rows of RN columns of it in registers, in vectors of W columns.
What differs between ops is how the right factor is read and where results go: the parts of the
text that a caller fills in. The scheme is the blocked product of Goto and van de Geijn (ACM
Transactions on Mathematical Software 34, 2008) with local memory in the place of the packed panels.

A processor gets another text of the same scheme, ``grid_panels``.
"""

from __future__ import annotations

from collections.abc import Sequence

from crossdock.devices.base import DeviceInfo
from crossdock.devices.program import Argument, GridLaunch
from crossdock.kernels.grid_common import Defines, accessors, define, launch
from crossdock.kernels.grid_tile import Parts, Tile

_HEAD = r"""
#define ITEMS_X (TN / RN)
#define ITEMS_Y (TM / RM)
#define ITEMS (ITEMS_X * ITEMS_Y)
#define W 4
#define VECS (RN / W)
#define LDA (TK + 4)
#define STORE_LOOP UNROLL
#define PUT4(to, step, p, left, aligned) \
    if ((left) > 3) { \
        float v0, v1, v2, v3; \
        READ4(p, aligned) \
        (to)[0] = v0; (to)[step] = v1; (to)[2 * (step)] = v2; (to)[3 * (step)] = v3; \
    } else { \
        for (i32 l = 0; l < 4; ++l) (to)[l * (step)] = l < (left) ? T_LOAD(p, l) : 0.0f; \
    }
#define READ_EACH(p) v0 = T_LOAD(p, 0); v1 = T_LOAD(p, 1); v2 = T_LOAD(p, 2); v3 = T_LOAD(p, 3);
#if VECTOR_LOADS
#define READ4(p, aligned) \
    if (aligned) { \
        const f32x4 v = VLOAD4(p); \
        v0 = v.s0; v1 = v.s1; v2 = v.s2; v3 = v.s3; \
    } else { \
        READ_EACH(p) \
    }
#else
#define READ4(p, aligned) READ_EACH(p)
#endif
"""

_KERNEL = r"""
KERNEL BLOCK_SIZE(ITEMS_X, ITEMS_Y, 1)
void product(@PARAMS@)
{
    LOCAL f32x4 a_tile[TM * LDA / 4];
    LOCAL f32x4 b_tile[TK * TN / W];
    LOCAL_PTR float *as = (LOCAL_PTR float *)a_tile;
    LOCAL_PTR float *bs = (LOCAL_PTR float *)b_tile;
    const i32 tx = LOCAL_ID(0), ty = LOCAL_ID(1), t = ty * ITEMS_X + tx;
    const i32 m0 = GROUP_ID(1) * TM, n0 = GROUP_ID(0) * TN, z = GROUP_ID(2);
    f32x4 acc[RM][VECS];
    @SETUP@
    UNROLL for (i32 i = 0; i < RM; ++i)
        UNROLL for (i32 j = 0; j < VECS; ++j)
            acc[i][j] = SPLAT4(0.0f);
    for (i32 k0 = 0; k0 < K; k0 += TK) {
        const i32 rest = K - k0;
        @FILL_A@
        @FILL_B@
        BARRIER();
#define ONE_DEEP(s, c) \
        UNROLL for (i32 j = 0; j < VECS; ++j) \
            b[j] = b_tile[(k + c) * (TN / W) + j * ITEMS_X + tx]; \
        UNROLL for (i32 i = 0; i < RM; ++i) \
            UNROLL for (i32 j = 0; j < VECS; ++j) \
                acc[i][j] = FMA4(SPLAT4(a[i].s), b[j], acc[i][j]);
        UNROLL for (i32 k = 0; k < TK; k += 4) {
            f32x4 a[RM];
            f32x4 b[VECS];
            UNROLL for (i32 i = 0; i < RM; ++i)
                a[i] = a_tile[((i * ITEMS_Y + ty) * LDA + k) / 4];
            ONE_DEEP(s0, 0) ONE_DEEP(s1, 1) ONE_DEEP(s2, 2) ONE_DEEP(s3, 3)
        }
        BARRIER();
    }
    UNROLL for (i32 i = 0; i < RM; ++i) {
        const i32 m = m0 + i * ITEMS_Y + ty;
        if (m < M) {
            UNROLL for (i32 j = 0; j < VECS; ++j) {
                const i32 n = n0 + (j * ITEMS_X + tx) * W, left = N - n < W ? N - n : W;
                const f32x4 sums = acc[i][j];
                const float *sum = (const float *)&sums;
                @STORE@
            }
        }
    }
}
"""

ROWS_OF_A = r"""
        for (i32 e = t; e < TM * (TK / 4); e += ITEMS) {
            const i32 m = e / (TK / 4), k = e % (TK / 4) * 4;
            CONSTANT T *p = a + (m0 + m) * lda + k0 + k;
            const i32 left = m0 + m < M ? rest - k : 0;
            PUT4(as + m * LDA + k, 1, p, left, ALIGNED_A)
        }
"""
"""Reads a tile of the left factor, whose rows are dense."""

COLUMNS_OF_A = r"""
        for (i32 e = t; e < TK * (TM / 4); e += ITEMS) {
            const i32 k = e / (TM / 4), m = e % (TM / 4) * 4;
            CONSTANT T *p = a + (k0 + k) * lda + m0 + m;
            const i32 left = k < rest ? M - m0 - m : 0;
            PUT4(as + m * LDA + k, LDA, p, left, ALIGNED_A)
        }
"""
"""Reads a tile of a left factor that is stored transposed."""

ROWS_OF_B = r"""
        for (i32 e = t; e < TK * (TN / 4); e += ITEMS) {
            const i32 k = e / (TN / 4), n = e % (TN / 4) * 4;
            CONSTANT T *p = b + (k0 + k) * ldb + n0 + n;
            const i32 left = k < rest ? N - n0 - n : 0;
            PUT4(bs + k * TN + n, 1, p, left, ALIGNED_B)
        }
"""
"""Reads a tile of the right factor, whose rows are dense."""

COLUMNS_OF_B = r"""
        for (i32 e = t; e < TN * (TK / 4); e += ITEMS) {
            const i32 n = e / (TK / 4), k = e % (TK / 4) * 4;
            CONSTANT T *p = b + (n0 + n) * ldb + k0 + k;
            const i32 left = n0 + n < N ? rest - k : 0;
            PUT4(bs + k * TN + n, TN, p, left, ALIGNED_B)
        }
"""
"""Reads a tile of a right factor that is stored transposed."""


TILES = (
    Tile(128, 128, 16, 8, 8, 1.0),
    Tile(64, 64, 16, 4, 4, 0.6),
    Tile(16, 128, 16, 2, 8, 0.4),
)
"""Fastest first where all fill the device."""


def fitting(device: DeviceInfo) -> tuple[Tile, ...]:
    """The tiles that fit a device."""
    return tuple(
        t
        for t in TILES
        if 4 * (t.tm * (t.tk + 4) + t.tk * t.tn) <= (device.local_memory or 32 << 10)
        and t.tm * t.tn // (t.rm * t.rn) <= (device.max_work_group or 256)
    )


def product(
    tile: Tile,
    parts: Parts,
    sizes: tuple[int, int, int],
    args: Sequence[Argument],
    dtype: str,
    *,
    aligned: tuple[bool, bool] = (False, False),
    defines: Defines = (),
) -> GridLaunch:
    """The launch of a product of ``sizes`` (rows, columns, batch).

    ``aligned`` says whether every run of four elements of a factor starts at a multiple of four.
    """
    text = parts.into(_KERNEL)
    vector = dtype == "float32" and any(aligned)
    known = define(
        TM=tile.tm, TN=tile.tn, TK=tile.tk, RM=tile.rm, RN=tile.rn, VECTOR_LOADS=int(vector),
        ALIGNED_A=int(vector and aligned[0]), ALIGNED_B=int(vector and aligned[1]),
    )  # fmt: skip
    m, n, batch = sizes
    block = (tile.tn // tile.rn, tile.tm // tile.rm, 1)
    items = (-(-n // tile.tn) * block[0], -(-m // tile.tm) * block[1], batch)
    return launch(
        _HEAD + text, "product", args, items, block, (*known, *accessors(dtype), *defines)
    )
