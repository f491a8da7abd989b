"""Products of bytes by known weights on processors: rows of words by panels of words.

Bytes less their zero points take nine bits. A word is two of them, neighbours along the sum, for
the instruction that multiplies pairs of 16 bits and adds each pair's products (x86's PMADDWD), of
which a driver's compiler must know; elsewhere it is one of them as a float, and sums of as many as
are exact in float are added up in int32. Weights are packed ahead in panels as wide as two vectors,
as ``grid_weights`` has them; the left factor is copied before.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from crossdock.devices.base import DeviceInfo
from crossdock.devices.program import Argument, GridLaunch
from crossdock.kernels.grid_common import Defines, define, i32, launch, vector_width, vectors
from crossdock.kernels.grid_quantized_ending import Ending
from crossdock.runtime.tensor import Array

FLOAT_TERMS = 2**24 // 255**2
"""Products of bytes less their zero points whose sum is exact in float32."""
POCL = "Portable Computing Language"

_WORDS = r"""
#if PER_WORD == 2
typedef short SHORTS __attribute__((ext_vector_type(2 * VW)));
typedef SHORTS __attribute__((aligned(4))) ANY_SHORTS;
typedef uint SUMS __attribute__((ext_vector_type(VW)));
#if VW == 16 && defined(__AVX512BW__)
typedef short OWN __attribute__((vector_size(64)));
#define PAIRS(a, b) __builtin_ia32_pmaddwd512(a, b)
#elif VW == 8 && defined(__AVX2__)
typedef short OWN __attribute__((vector_size(32)));
#define PAIRS(a, b) __builtin_ia32_pmaddwd256(a, b)
#elif VW == 4 && defined(__SSE2__)
typedef short OWN __attribute__((vector_size(16)));
#define PAIRS(a, b) __builtin_ia32_pmaddwd128(a, b)
#endif
#ifdef PAIRS
#define PRODUCTS(a, b) \
    __builtin_astype(PAIRS(__builtin_astype((a), OWN), __builtin_astype((b), OWN)), SUMS)
#else
#define PRODUCTS(a, b) __builtin_astype( \
    WIDEN((a).even) * WIDEN((b).even) + WIDEN((a).odd) * WIDEN((b).odd), SUMS)
#endif
#endif
KERNEL BLOCK_SIZE(1, 1, 1)
void words(CONSTANT E *RESTRICT x, CONSTANT E *RESTRICT w, @BETWEEN@ GLOBAL Y *RESTRICT y,
           i32 M, i32 N, i32 K, i32 per, @PARAMS@)
{
    const i32 z = GROUP_ID(2), n0 = GROUP_ID(1) * RN, end = N - n0 < RN ? N - n0 : RN;
    const i32 blocks = (M + RM - 1) / RM, first = GROUP_ID(0) * per;
    const i32 last = first + per < blocks ? first + per : blocks;
    CONSTANT E *panel = w + (z * ((N + RN - 1) / RN) + GROUP_ID(1)) * K * RN * PER_WORD;
    for (i32 r = first; r < last; ++r) {
        CONSTANT E *from[RM];
        i32 sums[RM * RN];
        for (i32 i = 0; i < RM; ++i) {
            const i32 m = r * RM + i < M ? r * RM + i : M - 1;
            @PLACE@
            from[i] = x + place;
        }
#if PER_WORD == 2
        SUMS acc[RM][2];
        UNROLL for (i32 i = 0; i < RM; ++i) acc[i][0] = acc[i][1] = (SUMS)(0);
        for (i32 k = 0; k < K; ++k) {
            const SHORTS b0 = *(CONSTANT ANY_SHORTS *)(panel + 2 * k * RN);
            const SHORTS b1 = *(CONSTANT ANY_SHORTS *)(panel + 2 * (k * RN + VW));
            const i32 at = AT(k);
            UNROLL for (i32 i = 0; i < RM; ++i) {
                const SUMS pair = (SUMS)(*(CONSTANT u32 *)(from[i] + at));
                const SHORTS a = __builtin_astype(pair, SHORTS);
                acc[i][0] += PRODUCTS(a, b0);
                acc[i][1] += PRODUCTS(a, b1);
            }
        }
        SUMS held[RM][2];
        UNROLL for (i32 i = 0; i < RM; ++i) { held[i][0] = acc[i][0]; held[i][1] = acc[i][1]; }
        const u32 *each = (const u32 *)held;
        for (i32 e = 0; e < RM * RN; ++e) sums[e] = (i32)each[e];
#else
        for (i32 e = 0; e < RM * RN; ++e) sums[e] = 0;
        for (i32 k0 = 0; k0 < K; k0 += DEPTH) {
            const i32 k1 = K - k0 < DEPTH ? K : k0 + DEPTH;
            VEC acc[RM][2], held[RM][2];
            UNROLL for (i32 i = 0; i < RM; ++i) acc[i][0] = acc[i][1] = VSPLAT(0.0f);
            for (i32 k = k0; k < k1; ++k) {
                const VEC b0 = VLOAD(panel + k * RN), b1 = VLOAD(panel + k * RN + VW);
                const i32 at = AT(k);
                UNROLL for (i32 i = 0; i < RM; ++i) {
                    const VEC a = VSPLAT(from[i][at]);
                    acc[i][0] = VFMA(a, b0, acc[i][0]);
                    acc[i][1] = VFMA(a, b1, acc[i][1]);
                }
            }
            UNROLL for (i32 i = 0; i < RM; ++i) { held[i][0] = acc[i][0]; held[i][1] = acc[i][1]; }
            const float *each = (const float *)held;
            for (i32 e = 0; e < RM * RN; ++e) sums[e] = (i32)((u32)sums[e] + (u32)(i32)each[e]);
        }
#endif
        for (i32 i = 0; i < RM && r * RM + i < M; ++i) {
            const i32 m = r * RM + i, *sum = sums + i * RN;
            Y done[RN];
            if (end == RN) {
                for (i32 l = 0; l < RN; ++l) done[l] = FINISHED(sum[l], z * N + n0 + l);
            } else {
                for (i32 l = 0; l < end; ++l) done[l] = FINISHED(sum[l], z * N + n0 + l);
            }
            @TO@
            for (i32 l = 0; l < end; ++l) y[to + l * APART] = done[l];
        }
    }
}
"""


@dataclass(frozen=True)
class Words:
    """What a word is on a device, and the blocks that fill its registers."""

    per: int
    vector: int

    @classmethod
    def of(cls, device: DeviceInfo) -> Words:
        """The words for a processor's device.

        PoCL compiles texts for the processor that it runs on; others for one that they know later.
        """
        knows = device.details.get("platform") == POCL
        return cls(2 if knows else 1, vector_width(device))

    @property
    def dtype(self) -> str:
        """Element type of the factors."""
        return "int16" if self.per == 2 else "float32"

    @property
    def wide(self) -> int:
        """Columns of a panel."""
        return 2 * self.vector

    @property
    def tall(self) -> int:
        """Rows of a block."""
        if self.vector == 16:
            return 12
        return 4 if self.per == 2 else 6

    def padded(self, terms: int) -> int:
        """Elements in whole words."""
        return -(-terms // self.per) * self.per

    def panels(self, weights: Array) -> Array:
        """Weights [groups, terms, n] of whole words as [groups, panels, words, columns, word]."""
        groups, terms, n = weights.shape
        count = -(-n // self.wide)
        full = np.zeros((groups, terms, count * self.wide), self.dtype)
        full[..., :n] = weights
        split = full.reshape(groups, terms // self.per, self.per, count, self.wide)
        return np.ascontiguousarray(split.transpose(0, 3, 1, 4, 2))


@dataclass(frozen=True)
class Form:
    """How the rows of an op lie, in C.

    ``place`` and ``to`` are statements that set where row ``m`` of the left factor and of the
    result begins; ``at`` is where its word ``k`` lies from there, ``apart`` how far apart its
    results are.
    """

    params: str
    place: str
    to: str
    at: str
    apart: str


def product(
    words: Words,
    form: Form,
    end: Ending,
    sizes: tuple[int, int, int, int],
    slots: tuple[Sequence[Argument], Argument],
    numbers: Sequence[Argument],
    device: DeviceInfo,
    *,
    between: str = "",
    defines: Defines = (),
) -> GridLaunch:
    """The launch of a product of ``sizes`` (rows, columns, words, groups).

    ``slots`` are the factors with what is ``between`` them and the ending's, and the result.
    """
    m, n, k, groups = sizes
    tall = min(m, words.tall)
    blocks, count = -(-m // tall), -(-n // words.wide)
    per = max(1, blocks // max(1, 12 * max(1, device.compute_units) // (count * groups)))
    text = _WORDS.replace("@BETWEEN@", between + end.params).replace("@PARAMS@", form.params)
    text = text.replace("@PLACE@", form.place).replace("@TO@", form.to)
    known = define(
        PER_WORD=words.per, E="i16" if words.per == 2 else "f32", RM=tall, RN=words.wide,
        DEPTH=FLOAT_TERMS, APART=form.apart, WIDEN=f"convert_int{words.vector}",
    )  # fmt: skip
    factors, result = slots
    args = (*factors, *end.args, result, *i32(m, n, k, per), *numbers)
    defines = (*known, ("AT(k)", form.at), *vectors(words.vector), *defines)
    return launch(
        end.text + text, "words", args, (-(-blocks // per), count, groups), (1, 1, 1), defines
    )
