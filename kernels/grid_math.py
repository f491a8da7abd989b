"""Mathematics for work items on a processor, inlined where the compiler can vectorise it.

A processor's OpenCL library functions are calls: they keep a loop over work items from becoming
vector code. These replace them for ``float`` there; GPUs keep their own. The polynomials are
fits of our own (weighted least squares brought to equal ripple by Lawson's iteration) over the
reduced ranges; errors stay within three units in the last place.
"""

from __future__ import annotations

from collections.abc import Iterable

from crossdock.kernels.normal import NORMAL, NORMAL_END

_BASE = r"""
#ifdef __clang__
#define G_SQRT(x) __builtin_sqrtf(x)
#define G_FLOOR(x) __builtin_floorf(x)
#define G_CEIL(x) __builtin_ceilf(x)
#define G_RINT(x) __builtin_rintf(x)
#else
#define G_SQRT(x) X_SQRT(x)
#define G_FLOOR(x) X_FLOOR(x)
#define G_CEIL(x) X_CEIL(x)
#define G_RINT(x) X_RINT(x)
#endif
#define G_ABS(x) AS_F32(AS_U32(x) & 0x7fffffffu)
#define G_SIGN_OF(x, s) AS_F32((AS_U32(x) & 0x7fffffffu) | (AS_U32(s) & 0x80000000u))
"""

_EXP = r"""
DEVICE float G_EXP(float x) {
    x = x < -104.0f ? -104.0f : x;
    x = x > 89.0f ? 89.0f : x;
    const float n = G_RINT(x * 1.44269504f);
    const float r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
    float p = 1.979030348593369e-4f;
    p = p * r + 1.3944704551249743e-3f;
    p = p * r + 8.333497680723667e-3f;
    p = p * r + 4.166629537940025e-2f;
    p = p * r + 0.1666666567325592f;
    p = p * r + 0.5f;
    p = p * (r * r) + r + 1.0f;
    const i32 whole = (i32)n, first = whole >> 1;
    return p * AS_F32((u32)(first + 127) << 23) * AS_F32((u32)(whole - first + 127) << 23);
}
"""

_LOG = r"""
DEVICE float G_LOG(float x) {
    const float scaled = x < 1.17549435e-38f ? x * 8388608.0f : x;
    const i32 from = (i32)(AS_U32(scaled) - 0x3f3504f3u);
    const i32 power = from >> 23;
    const float e = (float)power - (x < 1.17549435e-38f ? 23.0f : 0.0f);
    const float m = AS_F32((u32)((from & 0x7fffff) + 0x3f3504f3)) - 1.0f;
    float p = -7.634429633617401e-2f;
    p = p * m + 0.12761549651622772f;
    p = p * m - 0.131601944565773f;
    p = p * m + 0.14201761782169342f;
    p = p * m - 0.16623356938362122f;
    p = p * m + 0.20001226663589478f;
    p = p * m - 0.250008225440979f;
    p = p * m + 0.3333333134651184f;
    float y = p * m * (m * m) - e * 2.12194440e-4f;
    y = y - 0.5f * (m * m);
    y = (m + y) + e * 0.693359375f;
    y = x == INFINITY ? INFINITY : y;
    y = x == 0.0f ? -INFINITY : y;
    return x < 0.0f || x != x ? NAN : y;
}
"""

_TANH = r"""
DEVICE float G_TANH(float x) {
    const float a = G_ABS(x), s = x * x;
    float p = -5.704978480935097e-3f;
    p = p * s + 2.0639078691601753e-2f;
    p = p * s - 5.373971164226532e-2f;
    p = p * s + 0.13331441581249237f;
    p = p * s - 0.3333328068256378f;
    const float near = x + x * (s * p);
    const float far = 1.0f - 2.0f / (G_EXP(2.0f * a) + 1.0f);
    return a < 0.625f ? near : x != x ? x : G_SIGN_OF(far, x);
}
"""

_ERF = r"""
DEVICE float G_ERF(float x) {
    x = x < -3.8f ? -3.8f : x;
    x = x > 3.8f ? 3.8f : x;
    const float u = x * x * 0.13850416f - 1.0f;
    float p = 0.0011146849f;
    p = p * u - 0.0027669978f;
    p = p * u + 0.0020869724f;
    p = p * u - 0.0030923008f;
    p = p * u + 0.010276634f;
    p = p * u - 0.0185623f;
    p = p * u + 0.026508188f;
    p = p * u - 0.038819816f;
    p = p * u + 0.055108547f;
    p = p * u - 0.07254546f;
    p = p * u + 0.09082603f;
    p = p * u - 0.11118244f;
    p = p * u + 0.13773982f;
    p = p * u - 0.18564129f;
    p = p * u + 0.37210763f;
    return x * p;
}
"""
"""An odd polynomial where it matters; centred, so that no terms cancel."""


def _normcdf() -> str:
    head, *rest = (f"{c:.9g}f" for c in reversed(NORMAL))
    steps = "".join(f"    p = p * u + {c};\n" for c in rest)
    return f"""
DEVICE float G_NORMCDF(float x) {{
    const float u = x * x * {2 / NORMAL_END**2:.9g}f - 1.0f;
    float p = {head};
{steps}    p = p * x + 0.5f;
    p = x > {NORMAL_END}f ? 1.0f : p;
    return x < -{NORMAL_END}f ? 0.0f : p;
}}
"""


_PARTS = (
    ("exp", ("exp", "tanh"), _EXP),
    ("log", ("log",), _LOG),
    ("tanh", ("tanh",), _TANH),
    ("erf", ("erf",), _ERF),
    ("normcdf", ("normcdf",), _normcdf()),
)

INLINE = frozenset({"abs", "sqrt", "floor", "ceil", "rint", "exp", "log", "tanh", "erf", "normcdf"})
"""Functions that have an inlined form for ``float``: ``G_`` and the name in capitals."""


def prelude(functions: Iterable[str], *, cpu: bool) -> str:
    """Definitions of the ``G_`` functions in ``functions``; on GPUs they are the device's own."""
    used = set(functions) & INLINE
    if not used:
        return ""
    if not cpu:
        return "".join(f"#define G_{f.upper()}(x) X_{f.upper()}(x)\n" for f in sorted(used))
    return _BASE + "".join(text for _, needed_by, text in _PARTS if used & set(needed_by))
