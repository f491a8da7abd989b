"""The probe's kernels as one dialect text, so that a driver builds one program for all of them.

A driver that compiles from source takes most of its time to begin; the entry points are told apart
by suffix: ``axpy_float32``, ``fma_float32x8``.
"""

from __future__ import annotations

# Neighbouring items copy neighbouring words. Each round writes the same bytes in another order, so
# that no compiler takes them for one.
_COPY = """
KERNEL BLOCK_SIZE(64, 1, 1)
void copy(CONSTANT f32 *RESTRICT x, GLOBAL f32 *RESTRICT y, i32 rounds)
{
    int base = GROUP_ID(0) * 2048 + LOCAL_ID(0) * 4;
    for (int r = 0; r < rounds; r++)
        for (int k = 0; k < 8; k++) {
            int i = base + ((k + r) & 7) * 256;
            VSTORE4(y + i, VLOAD4(x + i));
        }
}
"""

# For processors: a core goes along its whole share before it begins again, or it would copy what
# its first-level cache holds, whatever the size.
_SWEEP = """
KERNEL BLOCK_SIZE(1, 1, 1)
void sweep(CONSTANT f32 *RESTRICT x, GLOBAL f32 *RESTRICT y, i32 pieces, i32 rounds)
{
    const i32 share = (pieces + NUM_GROUPS(0) - 1) / NUM_GROUPS(0), begin = GROUP_ID(0) * share;
    const i32 mine = pieces - begin < share ? pieces - begin : share;
    for (int r = 0; r < rounds; r++)
        for (int p = 0; p < mine; p++) {
            const i32 from = (begin + (p + r) % mine) * 2048;
            for (int k = 0; k < 2048; k += 16)
                VSTORE16(y + from + k, VLOAD16(x + from + k));
        }
}
"""

_AXPY = """
KERNEL BLOCK_SIZE(64, 1, 1)
void axpy_NAME(CONSTANT STORED *RESTRICT x, CONSTANT STORED *RESTRICT y,
               GLOBAL STORED *RESTRICT z, i32 n)
{
    int i = GLOBAL_ID(0);
    if (i < n) {
        TYPE value = (TYPE)3 * LOAD(x, i) + LOAD(y, i);
        STORE(z, i, value);
    }
}
"""

_PRODUCT = """
KERNEL BLOCK_SIZE(8, 8, 1)
void product(CONSTANT f32 *RESTRICT a, CONSTANT f32 *RESTRICT b, GLOBAL f32 *RESTRICT c, i32 n)
{
    int col = GLOBAL_ID(0) * 8;
    int row = GLOBAL_ID(1) * 8;
    CONSTANT f32 *p = a + row * n;
    GLOBAL f32 *q = c + row * n + col;
    f32x8 s0 = SPLAT8(0.0f), s1 = s0, s2 = s0, s3 = s0, s4 = s0, s5 = s0, s6 = s0, s7 = s0;
    for (int k = 0; k < n; k++) {
        f32x8 v = VLOAD8(b + k * n + col);
        s0 = FMA8(SPLAT8(p[k]), v, s0);
        s1 = FMA8(SPLAT8(p[k + n]), v, s1);
        s2 = FMA8(SPLAT8(p[k + 2 * n]), v, s2);
        s3 = FMA8(SPLAT8(p[k + 3 * n]), v, s3);
        s4 = FMA8(SPLAT8(p[k + 4 * n]), v, s4);
        s5 = FMA8(SPLAT8(p[k + 5 * n]), v, s5);
        s6 = FMA8(SPLAT8(p[k + 6 * n]), v, s6);
        s7 = FMA8(SPLAT8(p[k + 7 * n]), v, s7);
    }
    VSTORE8(q, s0);
    VSTORE8(q + n, s1);
    VSTORE8(q + 2 * n, s2);
    VSTORE8(q + 3 * n, s3);
    VSTORE8(q + 4 * n, s4);
    VSTORE8(q + 5 * n, s5);
    VSTORE8(q + 6 * n, s6);
    VSTORE8(q + 7 * n, s7);
}
"""

_SUMS = """
KERNEL BLOCK_SIZE(64, 1, 1)
void sums(CONSTANT i32 *RESTRICT x, GLOBAL i32 *RESTRICT s)
{
    LOCAL i32 part[64];
    int l = LOCAL_ID(0);
    part[l] = x[GLOBAL_ID(0)];
    BARRIER();
    for (int step = 32; step > 0; step >>= 1) {
        if (l < step)
            part[l] += part[l + step];
        BARRIER();
    }
    if (l == 0)
        s[GROUP_ID(0)] = part[0];
}
"""

_FMA = """
KERNEL BLOCK_SIZE(64, 1, 1)
void fma_NAMExWIDTH(GLOBAL TYPE *RESTRICT y, TYPE a, TYPE b, i32 rounds)
{
    VECTOR m = SPLAT(a), p = SPLAT(b), s0 = SPLAT((TYPE)LOCAL_ID(0));
    STARTS
    for (int r = 0; r < rounds; r++) {
        ROUND
    }
    VECTOR all = SUM;
    y[GLOBAL_ID(0)] = TOTAL;
}
"""

_TINY = """
KERNEL BLOCK_SIZE(1, 1, 1)
void tiny(GLOBAL f32 *RESTRICT y)
{
    y[0] = 1.0f;
}
"""

WIDTHS = {"float32": (8, 16), "float64": (1,)}
"""Vector widths of the multiply-add kernels, by element type."""

CHAINS = 12
"""Multiply-adds that do not wait for one another: two units of a latency of four to six cycles."""


def _fill(text: str, words: dict[str, str]) -> str:
    for word, value in words.items():
        text = text.replace(word, value)
    return text


def _axpy(name: str, kind: str) -> str:
    words = {"NAME": name, "STORED": kind, "TYPE": kind, "LOAD": "AT", "STORE": "PUT"}
    return _fill(_AXPY, words)


def _axpy_half() -> str:
    words = {"NAME": "float16", "STORED": "f16", "TYPE": "f32"}
    return _fill(_AXPY, {**words, "LOAD": "LOAD_HALF", "STORE": "STORE_HALF"})


def _fma(name: str, kind: str, width: int) -> str:
    lanes = "" if width == 1 else str(width)
    total = " + ".join(f"all.s{i:x}" for i in range(width)) if lanes else "all"
    chains = [f"s{c}" for c in range(CHAINS)]
    starts = ", ".join(f"s{c} = s{c - 1} + p" for c in range(1, CHAINS))
    words = {
        "STARTS": f"VECTOR {starts};",
        "ROUND": "\n        ".join(f"{s} = CHAIN({s}, m, p);" for s in chains),
        "SUM": " + ".join(chains),
        "NAME": name,
        "WIDTH": str(width),
        "TYPE": kind,
        "VECTOR": f"{kind}x{lanes}" if lanes else kind,
        "SPLAT": f"SPLAT{lanes}",
        "CHAIN": f"FMA{lanes}",
        "TOTAL": total,
    }
    return _fill(_FMA, words)


SOURCE = "".join(
    (
        "#define AT(p, i) ((p)[i])\n",
        "#define PUT(p, i, x) ((p)[i] = (x))\n",
        "#define SPLAT(x) (x)\n",
        _TINY,
        _COPY,
        _SWEEP,
        _axpy("int32", "i32"),
        _axpy("float32", "f32"),
        _axpy_half(),
        _PRODUCT,
        _SUMS,
        *(_fma("float32", "f32", width) for width in WIDTHS["float32"]),
        "#ifdef HAS_F64\n",
        _axpy("float64", "f64"),
        *(_fma("float64", "f64", width) for width in WIDTHS["float64"]),
        "#endif\n",
    )
)
"""The program."""
