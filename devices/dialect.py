"""One C dialect for OpenCL C 1.2 and CUDA C++: the macro headers put before every kernel text.

A kernel text uses these names and plain C; the same text then builds on every OpenCL compiler and
with NVRTC, which gets no include path. What the names mean:

* ``KERNEL BLOCK_SIZE(x, y, z) void f(...)`` an entry point of a fixed work-group size (integer
  literals or defines); ``DEVICE float g(...)`` a helper function.
* Pointers: ``GLOBAL float *``, ``CONSTANT float *`` (global memory that is only read),
  ``LOCAL_PTR float *`` (shared memory as a helper's parameter); ``RESTRICT`` after the star.
  ``LOCAL float tile[16][17];`` declares shared memory, at the top of a kernel.
* ``GLOBAL_ID(d) LOCAL_ID(d) GROUP_ID(d) NUM_GROUPS(d) LOCAL_SIZE(d) GLOBAL_SIZE(d)`` are ``int``;
  ``d`` is a literal 0, 1 or 2. ``BARRIER()`` waits for the work-group, local memory included.
* ``TEAM_REDUCE(T, v, n, room, JOIN);`` joins the values that the variable ``v`` of type ``T`` has
  in the ``n`` work items of a team, and gives each of them the result: in registers within a
  sub-group, then one value of each sub-group through ``room``. ``TEAM_ROOM(T, room, n, teams);``
  declares that at the top of the kernel, another one for each reduction. ``JOIN`` is a macro or
  function of two variables, associative and commutative. Every item of the group has to come there.
  Groups have one dimension; a team is ``n`` items whose numbers ``ITEM_ID`` are neighbours. Where a
  group is several teams, ``n`` is a multiple of 32 or a power of two. The kernel is marked:
  ``KERNEL BLOCK_SIZE(x, 1, 1) IN_SUBGROUPS void f(...)``.
* ``SUBGROUP_SIZE``, ``SUBGROUP_ID``, ``SUBGROUP_LANE``; ``SUBGROUP_XOR(v, gap)`` is the value of
  lane ``SUBGROUP_LANE ^ gap``. The size is 1 where no other is known.
* Types: ``i8 u8 i16 u16 i32 u32 i64 u64 f32 f64``; in storage only: ``b8`` (bool, one byte),
  ``f16`` and ``bf16``, read and written as float with ``LOAD_HALF(p, i)``,
  ``STORE_HALF(p, i, x)``, ``LOAD_BF16`` and ``STORE_BF16`` (nearest even). ``f64`` exists where
  the device has it: the macro ``HAS_F64``.
* Vectors ``f32x4 f32x8 f32x16`` with members ``s0`` to ``sf`` and + - * / between them and with
  scalars: ``VLOAD4(p)``, ``VSTORE4(p, v)``, ``SPLAT4(x)``, ``FMA4(a, b, c)``, and the same with 8
  and 16. Addresses are multiples of 16 bytes.
* Maths, on float or double by the arguments' type: ``X_EXP`` and so on, one for each function of
  the expression language. ``X_MIN X_MAX`` propagate NaN and take integers too, as ``X_SIGN``
  does; these three evaluate their arguments more than once. Integers have ``X_NEG`` and ``X_IABS``
  (the least number stays), ``X_IDIV`` (truncates) and ``X_IMOD`` (Python's sign); dividing by zero
  gives 0 instead of a trap. Signed integers must not overflow: what wraps is computed unsigned.
* ``FMA(a, b, c)``: fused where that is fast; the float ``X_MUL(a, b)`` never is part of one.
  ``AS_U32(x) AS_F32(u)`` move bits. ``DOT4(a, b, c)`` is the i32 ``c`` plus the products of the
  four signed bytes of two u32; it wraps.
  ``UNROLL`` before a loop; ``UNROLL_N(4)``; ``VECTORIZE(16)`` before one whose rounds may be lanes;
  ``INTERLEAVE(16, 4)`` where so many vectors are to be in flight, too.
  ``INFINITY`` and ``NAN`` are float.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

_SHARED = r"""
#define X_PRAGMA(text) _Pragma(#text)
#define UNROLL X_PRAGMA(unroll)
#define UNROLL_N(n) X_PRAGMA(unroll n)
#ifdef __clang__ // by itself it takes half vectors on AVX-512; where it can take none, so be it
#pragma clang diagnostic ignored "-Wpass-failed"
#define VECTORIZE(n) X_PRAGMA(clang loop vectorize_width(n))
#define INTERLEAVE(n, m) X_PRAGMA(clang loop vectorize_width(n) interleave_count(m))
#else
#define VECTORIZE(n)
#define INTERLEAVE(n, m)
#endif
typedef u16 f16;
typedef u16 bf16;
typedef u8 b8;
typedef float f32;
#ifdef HAS_F64
typedef double f64;
#endif
#ifndef DOT4
#define X_BYTES(a, b, l) ((i8)((a) >> (l)) * (i8)((b) >> (l)))
DEVICE i32 DOT4(u32 a, u32 b, i32 c) {
    const i32 sum = X_BYTES(a, b, 0) + X_BYTES(a, b, 8) + X_BYTES(a, b, 16) + X_BYTES(a, b, 24);
    return (i32)((u32)c + (u32)sum);
}
#endif
#define X_MIN(a, b) (((a) < (b) || (a) != (a)) ? (a) : (b))
#define X_MAX(a, b) (((a) > (b) || (a) != (a)) ? (a) : (b))
#define X_SIGN(a) ((a) > 0 ? 1 : (a) < 0 ? -1 : (a) != (a) ? (a) : 0)
#define X_ISNAN(a) ((a) != (a))
#define X_ISINF(a) (X_ABS(a) == INFINITY)
#define X_DEFINE_NEG(T, U) \
    DEVICE OVERLOAD T X_NEG(T a) { return (T)((U)0 - (U)a); }
X_DEFINE_NEG(i32, u32)
X_DEFINE_NEG(u32, u32)
X_DEFINE_NEG(i64, u64)
X_DEFINE_NEG(u64, u64)
#define X_IABS(a) ((a) < 0 ? X_NEG(a) : (a))
#define X_TRAPS(b) ((b) == 0 || ((b) < 0 && (b) == -1))
#define X_IDIV(a, b) ((b) == 0 ? 0 : X_TRAPS(b) ? X_NEG(a) : (a) / (b))
#define X_IREM(a, b) (X_TRAPS(b) ? 0 : (a) % (b))
#define X_IMOD(a, b) \
    (X_IREM(a, b) + ((X_IREM(a, b) != 0 && (X_IREM(a, b) < 0) != ((b) < 0)) ? (b) : 0))
#define LOAD_BF16(p, i) AS_F32((u32)(p)[i] << 16)
DEVICE bf16 x_to_bf16(float x) {
    u32 bits = AS_U32(x);
    if (x != x) return (bf16)((bits >> 16) | 64u);
    return (bf16)((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}
#define STORE_BF16(p, i, x) ((p)[i] = x_to_bf16(x))
#define ITEM_ID (SUBGROUP_ID * SUBGROUP_SIZE + SUBGROUP_LANE)
#define X_SLOTS(n) (((n) + SUBGROUP_SIZE - 1) / SUBGROUP_SIZE)
#define X_WITHIN(n) (SUBGROUP_SIZE % (n) == 0) // shuffles reach every item of a team
#define X_FULL(n) (X_WITHIN(n) || (n) % SUBGROUP_SIZE == 0)
#define TEAM_ROOM(T, room, n, teams) LOCAL T room[X_SLOTS(n) * (teams)]
#define TEAM_REDUCE(T, v, n, room, JOIN) \
    do { \
        UNROLL for (i32 x_gap = (X_WITHIN(n) ? (n) : SUBGROUP_SIZE) / 2; x_gap > 0; x_gap /= 2) { \
            const T x_other = SUBGROUP_XOR(v, x_gap); \
            if (X_FULL(n) || (ITEM_ID ^ x_gap) < (n)) v = JOIN(v, x_other); \
        } \
        if (!X_WITHIN(n)) { \
            const i32 x_at = SUBGROUP_ID % X_SLOTS(n); \
            LOCAL_PTR T *x_room = room + (SUBGROUP_ID - x_at); \
            i32 x_left = X_SLOTS(n); \
            if (SUBGROUP_LANE == 0) x_room[x_at] = v; \
            BARRIER(); \
            for (; x_left > X_ALONE; x_left = (x_left + 1) / 2) { \
                const i32 x_far = x_at + (x_left + 1) / 2; \
                if (SUBGROUP_LANE == 0 && x_far < x_left) { \
                    const T x_here = x_room[x_at], x_there = x_room[x_far]; \
                    x_room[x_at] = JOIN(x_here, x_there); \
                } \
                BARRIER(); \
            } \
            v = x_room[0]; \
            for (i32 x_i = 1; x_i < x_left; ++x_i) { \
                const T x_other = x_room[x_i]; \
                v = JOIN(v, x_other); \
            } \
        } \
    } while (0)
#define X_ALONE 4 // values that an item reads by itself sooner than it waits once more
#define X_DEFINE_MOD(T) \
    DEVICE OVERLOAD T X_MOD(T a, T b) { \
        T rest = fmod(a, b); \
        if (rest == 0) return copysign((T)0, b); \
        return (rest < 0) != (b < 0) ? rest + b : rest; \
    }
X_DEFINE_MOD(float)
#ifdef HAS_F64
X_DEFINE_MOD(double)
#endif
"""

OPENCL_HEADER = (
    r"""
#if defined(cl_khr_fp64) || defined(__opencl_c_fp64)
#ifdef cl_khr_fp64
#pragma OPENCL EXTENSION cl_khr_fp64 : enable
#endif
#define HAS_F64 1
#endif
#define KERNEL __kernel
#define DEVICE static inline
#define OVERLOAD __attribute__((overloadable))
#define BLOCK_SIZE(x, y, z) __attribute__((reqd_work_group_size(x, y, z)))
#define GLOBAL __global
#define CONSTANT __global const
#define LOCAL __local
#define LOCAL_PTR __local
#define RESTRICT restrict
#define BARRIER() barrier(CLK_LOCAL_MEM_FENCE)
#define GLOBAL_ID(d) ((int)get_global_id(d))
#define LOCAL_ID(d) ((int)get_local_id(d))
#define GROUP_ID(d) ((int)get_group_id(d))
#define NUM_GROUPS(d) ((int)get_num_groups(d))
#define LOCAL_SIZE(d) ((int)get_local_size(d))
#define GLOBAL_SIZE(d) ((int)get_global_size(d))
#ifdef SUBGROUP_SIZE // a size that the device can be held to
#define IN_SUBGROUPS __attribute__((intel_reqd_sub_group_size(SUBGROUP_SIZE)))
#define SUBGROUP_ID ((int)get_sub_group_id())
#define SUBGROUP_LANE ((int)get_sub_group_local_id())
#define SUBGROUP_XOR(v, gap) sub_group_shuffle_xor((v), (uint)(gap))
#else
#define IN_SUBGROUPS
#define SUBGROUP_SIZE 1
#define SUBGROUP_ID LOCAL_ID(0)
#define SUBGROUP_LANE 0
#define SUBGROUP_XOR(v, gap) (v)
#endif
typedef char i8;
typedef uchar u8;
typedef short i16;
typedef ushort u16;
typedef int i32;
typedef uint u32;
typedef long i64;
typedef ulong u64;
#define AS_F32(u) as_float(u)
#define AS_U32(x) as_uint(x)
typedef float4 f32x4;
typedef float8 f32x8;
typedef float16 f32x16;
#ifdef __clang__ // the library's functions put a vector together piece by piece on PoCL
#pragma clang diagnostic ignored "-Wpsabi" // of vectors wider than the device's, between its own
#define X_VECTOR_IN(W, SPACE) \
    DEVICE OVERLOAD f32x##W x_load##W(SPACE const float *p) { \
        return *(SPACE const x_any##W *)p; \
    } \
    DEVICE OVERLOAD void x_store##W(SPACE float *p, f32x##W v) { *(SPACE x_any##W *)p = v; }
#define X_VECTOR(W) \
    typedef f32x##W __attribute__((aligned(4))) x_any##W; \
    X_VECTOR_IN(W, __global) X_VECTOR_IN(W, __local) X_VECTOR_IN(W, __private)
X_VECTOR(4)
X_VECTOR(8)
X_VECTOR(16)
#define VLOAD4(p) x_load4(p)
#define VLOAD8(p) x_load8(p)
#define VLOAD16(p) x_load16(p)
#define VSTORE4(p, v) x_store4((p), (v))
#define VSTORE8(p, v) x_store8((p), (v))
#define VSTORE16(p, v) x_store16((p), (v))
#else
#define VLOAD4(p) vload4(0, (p))
#define VLOAD8(p) vload8(0, (p))
#define VLOAD16(p) vload16(0, (p))
#define VSTORE4(p, v) vstore4((v), 0, (p))
#define VSTORE8(p, v) vstore8((v), 0, (p))
#define VSTORE16(p, v) vstore16((v), 0, (p))
#endif
#define SPLAT4(x) ((float4)(x))
#define SPLAT8(x) ((float8)(x))
#define SPLAT16(x) ((float16)(x))
#pragma OPENCL FP_CONTRACT ON
#ifdef FP_FAST_FMAF
#define FMA(a, b, c) fma((a), (b), (c))
#else // contracted where the device has the instruction; mad() is a call, ten times slower, on PoCL
#define FMA(a, b, c) ((a) * (b) + (c))
#endif
#ifdef cl_arm_integer_dot_product_int8
#pragma OPENCL EXTENSION cl_arm_integer_dot_product_int8 : enable
#define DOT4(a, b, c) ((i32)((u32)(c) + (u32)arm_dot(as_char4(a), as_char4(b))))
#endif
DEVICE float X_MUL(float a, float b) { return a * b; } // contracted in one expression alone
#define FMA4 FMA
#define FMA8 FMA
#define FMA16 FMA
#define LOAD_HALF(p, i) vload_half((i), (CONSTANT half *)(p))
#define STORE_HALF(p, i, x) vstore_half_rte((x), (i), (GLOBAL half *)(p))
#define X_ABS(a) fabs(a)
#define X_EXP(a) exp(a)
#define X_LOG(a) log(a)
#define X_SQRT(a) sqrt(a)
#define X_SIN(a) sin(a)
#define X_COS(a) cos(a)
#define X_TAN(a) tan(a)
#define X_ACOS(a) acos(a)
#define X_ASIN(a) asin(a)
#define X_ATAN(a) atan(a)
#define X_TANH(a) tanh(a)
#define X_ERF(a) erf(a)
DEVICE OVERLOAD float X_NORMCDF(float a) { return 0.5f * erfc(-0.70710678f * a); }
#ifdef HAS_F64
DEVICE OVERLOAD double X_NORMCDF(double a) { return 0.5 * erfc(-0.70710678118654752 * a); }
#endif
#define X_FLOOR(a) floor(a)
#define X_CEIL(a) ceil(a)
#define X_RINT(a) rint(a)
#define X_POW(a, b) pow((a), (b))
#define X_FMA(a, b, c) fma((a), (b), (c))
"""
    + _SHARED
)


def _cuda_maths() -> str:
    """Overloads on float and double, since C++ would convert a float silently to double."""
    unary = ("abs", "exp", "log", "sqrt", "sin", "cos", "tan", "tanh", "erf", "floor", "ceil")
    lines = []
    for name in (*unary, "rint", "acos", "asin", "atan", "normcdf"):
        plain = "fabs" if name == "abs" else name
        lines.append(f"DEVICE float X_{name.upper()}(float a) {{ return {plain}f(a); }}")
        lines.append(f"DEVICE double X_{name.upper()}(double a) {{ return {plain}(a); }}")
    for kind, suffix in (("float", "f"), ("double", "")):
        lines.append(f"DEVICE {kind} X_POW({kind} a, {kind} b) {{ return pow{suffix}(a, b); }}")
        lines.append(
            f"DEVICE {kind} X_FMA({kind} a, {kind} b, {kind} c) {{ return fma{suffix}(a, b, c); }}"
        )
    return "\n".join(lines) + "\n"


def _cuda_vector(width: int) -> str:
    """A struct of ``width`` floats with OpenCL's member names, operators, loads and stores."""
    members = [f"s{i:x}" for i in range(width)]
    name = f"f32x{width}"
    lines = [f"struct __align__(16) {name} {{ float {', '.join(members)}; }};"]
    lines.append(f"DEVICE {name} SPLAT{width}(float x) {{ return {{{', '.join('x' * width)}}}; }}")
    for op in "+-*/":
        both = ", ".join(f"a.{m} {op} b.{m}" for m in members)
        lines.append(f"DEVICE {name} operator{op}({name} a, {name} b) {{ return {{{both}}}; }}")
        lines.append(
            f"DEVICE {name} operator{op}({name} a, float b) {{ return a {op} SPLAT{width}(b); }}"
        )
        lines.append(
            f"DEVICE {name} operator{op}(float a, {name} b) {{ return SPLAT{width}(a) {op} b; }}"
        )
        lines.append(
            f"DEVICE {name} &operator{op}=({name} &a, {name} b) {{ return a = a {op} b; }}"
        )
    fused = ", ".join(f"fmaf(a.{m}, b.{m}, c.{m})" for m in members)
    lines.append(
        f"DEVICE {name} FMA{width}({name} a, {name} b, {name} c) {{ return {{{fused}}}; }}"
    )
    lines.append(f"#define VLOAD{width}(p) (*(const {name} *)(p))")
    lines.append(f"#define VSTORE{width}(p, v) (*({name} *)(p) = (v))")
    return "\n".join(lines) + "\n"


CUDA_HALF = r"""
DEVICE float x_from_half(u16 h) {
    float x;
    asm("cvt.f32.f16 %0, %1;" : "=f"(x) : "h"(h));
    return x;
}
DEVICE u16 x_to_half(float x) {
    u16 h;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(h) : "f"(x));
    return h;
}
"""
"""Half precision in PTX: the one part of the header that no other C++ compiler takes."""

CUDA_HEADER = (
    r"""
#define HAS_F64 1
#define KERNEL extern "C" __global__
#define DEVICE static __device__ __forceinline__
#define OVERLOAD
#define BLOCK_SIZE(x, y, z) __launch_bounds__((x) * (y) * (z))
#define GLOBAL
#define CONSTANT const
#define LOCAL __shared__
#define LOCAL_PTR
#define RESTRICT __restrict__
#define BARRIER() __syncthreads()
#define X_DIM_0 x
#define X_DIM_1 y
#define X_DIM_2 z
#define GLOBAL_ID(d) ((int)(blockIdx.X_DIM_##d * blockDim.X_DIM_##d + threadIdx.X_DIM_##d))
#define LOCAL_ID(d) ((int)threadIdx.X_DIM_##d)
#define GROUP_ID(d) ((int)blockIdx.X_DIM_##d)
#define NUM_GROUPS(d) ((int)gridDim.X_DIM_##d)
#define LOCAL_SIZE(d) ((int)blockDim.X_DIM_##d)
#define GLOBAL_SIZE(d) ((int)(gridDim.X_DIM_##d * blockDim.X_DIM_##d))
#define IN_SUBGROUPS
#define SUBGROUP_SIZE 32
#define SUBGROUP_ID (LOCAL_ID(0) / 32)
#define SUBGROUP_LANE (LOCAL_ID(0) % 32)
#define SUBGROUP_XOR(v, gap) __shfl_xor_sync(0xffffffffu, (v), (gap))
typedef signed char i8;
typedef unsigned char u8;
typedef short i16;
typedef unsigned short u16;
typedef int i32;
typedef unsigned int u32;
typedef long long i64;
typedef unsigned long long u64;
#ifndef INFINITY
#define INFINITY __int_as_float(0x7f800000)
#endif
#ifndef NAN
#define NAN __int_as_float(0x7fffffff)
#endif
#define AS_F32(u) __uint_as_float(u)
#define AS_U32(x) __float_as_uint(x)
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 610
#define DOT4(a, b, c) __dp4a((int)(a), (int)(b), (c))
#endif
DEVICE float X_MUL(float a, float b) { return __fmul_rn(a, b); }
DEVICE float FMA(float a, float b, float c) { return fmaf(a, b, c); }
DEVICE double FMA(double a, double b, double c) { return fma(a, b, c); }
"""
    + CUDA_HALF
    + r"""
#define LOAD_HALF(p, i) x_from_half((p)[i])
#define STORE_HALF(p, i, x) ((p)[i] = x_to_half(x))
"""
    + _cuda_maths()
    + "".join(_cuda_vector(width) for width in (4, 8, 16))
    + _SHARED
)


def opencl_header(subgroup: int) -> str:
    """The header for a device that runs kernels in sub-groups of so many work items; 1: of none."""
    size = f"#define SUBGROUP_SIZE {subgroup}\n" if subgroup > 1 else ""
    return size + OPENCL_HEADER


def assemble(header: str, defines: Iterable[tuple[str, str]], source: str) -> str:
    """The whole text for a compiler: the header, the defines, then the kernel text."""
    lines = "".join(f"#define {name} {value}\n" for name, value in defines)
    return f"{header}{lines}#line 1\n{source}"


def misfit(grid: tuple[int, ...], block: tuple[int, ...], most: int) -> str:
    """Why a grid cannot be run in blocks of at most ``most`` work items, or nothing."""
    if len(grid) != len(block) or any(g % b for g, b in zip(grid, block, strict=True)):
        return f"grid {grid} is no multiple of block {block}"
    if math.prod(block) > most:
        return f"block {block} is over the limit of {most} work items"
    return ""
