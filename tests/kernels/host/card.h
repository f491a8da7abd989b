// What CUDA C++ has beyond C++, for texts that begin with CUDA_HEADER and run on the host: one work
// item at a time, each of a block in a fiber of its own, so that barriers can stop it half-way.
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct x_dim3 { unsigned x, y, z; };
static x_dim3 blockIdx, threadIdx, blockDim, gridDim;

#define __global__
#define __device__
#define __forceinline__ inline
#define __launch_bounds__(n)
#define __restrict__ __restrict
#define __align__(n) __attribute__((aligned(n)))
// One block runs at a time. The section lets the runner fill the memory with NaN between blocks.
#define __shared__ static __attribute__((section("x_shared")))
#define __syncthreads() x_barrier(__LINE__)
void x_barrier(int line);
// Of the bits of a value. Whoever names other lanes than all of them gets NaN, as from none.
unsigned long long x_shuffle(unsigned long long bits, int gap, int line);
template <class T> static T x_shuffled(unsigned mask, T v, int gap, int line) {
    unsigned long long bits = 0;
    memcpy(&bits, &v, sizeof v);
    bits = x_shuffle(mask == ~0u ? bits : ~0ull, gap, line);
    memcpy(&v, &bits, sizeof v);
    return v;
}
#define __shfl_xor_sync(mask, v, gap) x_shuffled((mask), (v), (gap), __LINE__)

static inline float __int_as_float(int bits) { float x; memcpy(&x, &bits, 4); return x; }
static inline float __uint_as_float(unsigned bits) { float x; memcpy(&x, &bits, 4); return x; }
static inline unsigned __float_as_uint(float x) { unsigned bits; memcpy(&bits, &x, 4); return bits; }
static inline float __fmul_rn(float a, float b) { return a * b; }
static inline float normcdff(float a) { return (float)(0.5 * erfc(-0.70710678118654752 * a)); }
static inline double normcdf(double a) { return 0.5 * erfc(-0.70710678118654752 * a); }

// Half precision by its bits (IEEE 754 binary16), rounded to nearest even.
static inline float x_from_half(unsigned short h) {
    const float sign = h & 0x8000 ? -1.0f : 1.0f;
    const int power = (h >> 10) & 31, part = h & 1023;
    if (power == 31) return part ? NAN : sign * INFINITY;
    return sign * (power ? ldexpf(1024 + part, power - 25) : ldexpf(part, -24));
}
static inline unsigned short x_to_half(float x) {
    const unsigned short sign = signbit(x) ? 0x8000 : 0;
    const float size = fabsf(x);
    if (x != x) return 0x7fff;
    if (size >= 65520.0f) return sign | 0x7c00;
    if (size < 6.103515625e-5f) return sign | (unsigned short)nearbyintf(size * 16777216.0f);
    int power;
    const float part = frexpf(size, &power);
    return sign | (unsigned short)(((power + 14) << 10) + (int)nearbyintf(part * 2048.0f) - 1024);
}
