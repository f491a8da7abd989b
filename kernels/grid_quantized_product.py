"""The tiled product of bytes for cards: quads of bytes in words, products of four at a time.

The scheme is that of ``grid_product``. A word holds four neighbours along the sum; bytes are signed
in it: unsigned ones have their sign bit flipped, which takes 128 from them, and 128 is taken from
their zero points, too. With the zero points u of a row and v of a column, and sums over k,

    sum (a - u)(b - v) = sum a b - v (sum a - K u) - u sum b,

so that tiles are read as they are, and a work-group adds up rows and columns of its tiles beside
the product where a zero point asks for it. All of it wraps in 32 bits.
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
#define QUADS (TK / 4)
#define LDA (QUADS + 1)
#define W 1
#define STORE_LOOP
#define ONES 0x01010101u
#define BYTE(x, flip, l) (((u32)(u8)(x) ^ (flip)) << (8 * (l)))
"""

_KERNEL = r"""
KERNEL BLOCK_SIZE(ITEMS_X, ITEMS_Y, 1)
void product(@PARAMS@)
{
    LOCAL u32 a_tile[TM * LDA];
    LOCAL u32 b_tile[QUADS * TN];
#if HAS_ZERO_B
    LOCAL i32 row_sums[TM];
#endif
#if HAS_ZERO_A
    LOCAL i32 column_sums[TN];
#endif
    const i32 tx = LOCAL_ID(0), ty = LOCAL_ID(1), t = ty * ITEMS_X + tx;
    const i32 m0 = GROUP_ID(1) * TM, n0 = GROUP_ID(0) * TN, z = GROUP_ID(2);
    i32 acc[RM][RN];
    @SETUP@
    UNROLL for (i32 i = 0; i < RM; ++i)
        UNROLL for (i32 j = 0; j < RN; ++j)
            acc[i][j] = 0;
#if HAS_ZERO_B
    for (i32 e = t; e < TM; e += ITEMS) row_sums[e] = 0;
#endif
#if HAS_ZERO_A
    for (i32 e = t; e < TN; e += ITEMS) column_sums[e] = 0;
#endif
    for (i32 k0 = 0; k0 < K; k0 += TK) {
        const i32 rest = K - k0;
        @FILL_A@
        @FILL_B@
        BARRIER();
        UNROLL_N(2) for (i32 q = 0; q < QUADS; ++q) {
            u32 a[RM], b[RN];
            UNROLL for (i32 i = 0; i < RM; ++i) a[i] = a_tile[(i * ITEMS_Y + ty) * LDA + q];
            UNROLL for (i32 j = 0; j < RN; ++j) b[j] = b_tile[q * TN + j * ITEMS_X + tx];
            UNROLL for (i32 i = 0; i < RM; ++i)
                UNROLL for (i32 j = 0; j < RN; ++j)
                    acc[i][j] = DOT4(a[i], b[j], acc[i][j]);
        }
#if HAS_ZERO_B
        for (i32 e = t; e < TM; e += ITEMS) {
            i32 own = row_sums[e];
            for (i32 q = 0; q < QUADS; ++q) own = DOT4(a_tile[e * LDA + q], ONES, own);
            row_sums[e] = own;
        }
#endif
#if HAS_ZERO_A
        for (i32 e = t; e < TN; e += ITEMS) {
            i32 own = column_sums[e];
            for (i32 q = 0; q < QUADS; ++q) own = DOT4(b_tile[q * TN + e], ONES, own);
            column_sums[e] = own;
        }
#endif
        BARRIER();
    }
    UNROLL for (i32 i = 0; i < RM; ++i) {
        const i32 m = m0 + i * ITEMS_Y + ty;
        if (m < M) {
#if HAS_ZERO_A
            const u32 zero_a = (u32)(ZERO_A(m));
#endif
#if HAS_ZERO_B && HAS_ZERO_A
            const u32 row_sum = (u32)row_sums[m - m0] - (u32)K * zero_a;
#elif HAS_ZERO_B
            const u32 row_sum = (u32)row_sums[m - m0];
#endif
            UNROLL for (i32 j = 0; j < RN; ++j) {
                const i32 n = n0 + j * ITEMS_X + tx, left = 1;
                if (n < N) {
                    u32 total = (u32)acc[i][j];
#if HAS_ZERO_A
                    total -= zero_a * (u32)column_sums[n - n0];
#endif
#if HAS_ZERO_B
                    total -= (u32)(ZERO_B(n)) * row_sum;
#endif
                    const i32 sum[1] = {(i32)total};
                    @STORE@
                }
            }
        }
    }
}
"""

ROWS_OF_A = r"""
        for (i32 e = t; e < TM * QUADS; e += ITEMS) {
            const i32 m = e / QUADS, q = e % QUADS, left = m0 + m < M ? rest - 4 * q : 0;
            CONSTANT A *p = a + (m0 + m) * lda + k0 + 4 * q;
            u32 quad = 0;
            if (ALIGNED_A && left > 3) quad = *(CONSTANT u32 *)p ^ (FLIP_A * ONES);
            else UNROLL for (i32 l = 0; l < 4; ++l) if (l < left) quad |= BYTE(p[l], FLIP_A, l);
            a_tile[m * LDA + q] = quad;
        }
"""
"""Reads a tile of the left factor, whose rows are dense."""

TILES = (
    Tile(128, 128, 32, 8, 8, 1.0),
    Tile(64, 64, 32, 4, 4, 0.6),
    Tile(16, 128, 64, 2, 4, 0.4),
)
"""Fastest first where all fill the device; paces are those of the tiles of ``grid_product``."""


def fitting(device: DeviceInfo) -> tuple[Tile, ...]:
    """The tiles that fit a device."""
    return tuple(
        t
        for t in TILES
        if 4 * (t.tm * (t.tk // 4 + 2) + (t.tk // 4 + 1) * t.tn)
        <= (device.local_memory or 32 << 10)
        and t.tm * t.tn // (t.rm * t.rn) <= (device.max_work_group or 256)
    )


def flip(dtype: str) -> str:
    """What makes a byte signed."""
    return "0x80u" if dtype == "uint8" else "0u"


def signed_zero(pointer: str | None, dtype: str) -> str:
    """A zero point in signed bytes as C text, "" where it is 0."""
    shift = " - 128" if dtype == "uint8" else ""
    return f"({pointer}{shift})" if pointer else "(-128)" if shift else ""


def product(
    tile: Tile,
    parts: Parts,
    sizes: tuple[int, int, int],
    args: Sequence[Argument],
    dtype: str,
    *,
    zeros: tuple[str, str],
    aligned: bool = False,
    head: str = "",
    defines: Defines = (),
) -> GridLaunch:
    """The launch of a product of ``sizes`` (rows, columns, batch).

    ``dtype`` is the left factor's. ``zeros`` are the zero points of a row ``m`` and a column ``n``
    as C expressions in signed bytes, "" where they are 0. ``aligned`` says whether every run of
    four bytes of a row starts at a multiple of four.
    """
    known = define(
        TM=tile.tm, TN=tile.tn, TK=tile.tk, RM=tile.rm, RN=tile.rn, ALIGNED_A=int(aligned),
        FLIP_A=flip(dtype), HAS_ZERO_A=int(bool(zeros[0])), HAS_ZERO_B=int(bool(zeros[1])),
    )  # fmt: skip
    known += (("ZERO_A(m)", zeros[0] or "0"), ("ZERO_B(n)", zeros[1] or "0"))
    m, n, batch = sizes
    block = (tile.tn // tile.rn, tile.tm // tile.rm, 1)
    items = (-(-n // tile.tn) * block[0], -(-m // tile.tm) * block[1], batch)
    text = head + _HEAD + parts.into(_KERNEL)
    return launch(text, "product", args, items, block, (*known, *accessors(dtype, "A"), *defines))
