// CUDA C++ for the CPU, as far as the kernels of qrs use it: g++ compiles a .cu file with this header
// in front. What a GPU does with NaN, signed zeros and conversions out of range is done here too;
// what could differ between a GPU and a CPU (sinf, __expf, float atomics) is left out.
// Threads are the fibers of fibers.h. Inline PTX is not here: `#ifdef __CUDA_ARCH__` guards it.
#pragma once
#include <cassert>
#include <cmath>
#include <type_traits>
#include <utility>

#include "fibers.h"

#define __global__
#define __device__
#define __host__
#define __constant__
#define __forceinline__ inline __attribute__((always_inline))
#define __noinline__ __attribute__((noinline))
#define __launch_bounds__(...)
#define __grid_constant__
#define __align__(n) __attribute__((aligned(n)))
#define __shared__ static __attribute__((section("qrs_shared")))

// ---- Vectors, aligned as on a GPU ------------------------------------------------------------------

#define QRS_VECTORS(T, N, A1, A2)                                                            \
    struct alignas(2 * A1) N##2 { T x, y; };                                                 \
    struct N##3 { T x, y, z; };                                                              \
    struct alignas(A2) N##4 { T x, y, z, w; };                                               \
    inline N##2 make_##N##2(T x, T y) { return {x, y}; }                                     \
    inline N##3 make_##N##3(T x, T y, T z) { return {x, y, z}; }                             \
    inline N##4 make_##N##4(T x, T y, T z, T w) { return {x, y, z, w}; }
#define QRS_UINT_VECTORS(T, N)                                                               \
    struct alignas(8) N##2 { T x, y; };                                                      \
    struct alignas(16) N##4 { T x, y, z, w; };                                               \
    inline N##2 make_##N##2(T x, T y) { return {x, y}; }                                     \
    inline uint3 make_##N##3(T x, T y, T z) { return {x, y, z}; }                            \
    inline N##4 make_##N##4(T x, T y, T z, T w) { return {x, y, z, w}; }
QRS_VECTORS(signed char, char, 1, 4)
QRS_VECTORS(unsigned char, uchar, 1, 4)
QRS_VECTORS(short, short, 2, 8)
QRS_VECTORS(unsigned short, ushort, 2, 8)
QRS_VECTORS(int, int, 4, 16)
QRS_VECTORS(float, float, 4, 16)
QRS_VECTORS(double, double, 8, 16)
QRS_VECTORS(long long, longlong, 8, 16)
QRS_VECTORS(unsigned long long, ulonglong, 8, 16)
QRS_UINT_VECTORS(unsigned, uint)

// ---- Bits ------------------------------------------------------------------------------------------

template <typename To, typename From>
inline To qrs_bits(From from) {
    static_assert(sizeof(To) == sizeof(From));
    To to;
    memcpy(&to, &from, sizeof to);
    return to;
}
inline unsigned __float_as_uint(float x) { return qrs_bits<unsigned>(x); }
inline int __float_as_int(float x) { return qrs_bits<int>(x); }
inline float __uint_as_float(unsigned x) { return qrs_bits<float>(x); }
inline float __int_as_float(int x) { return qrs_bits<float>(x); }
inline long long __double_as_longlong(double x) { return qrs_bits<long long>(x); }
inline double __longlong_as_double(long long x) { return qrs_bits<double>(x); }

inline int __clz(int x) { return x ? __builtin_clz(x) : 32; }
inline int __clzll(long long x) { return x ? __builtin_clzll(x) : 64; }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __ffsll(long long x) { return __builtin_ffsll(x); }
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
inline unsigned __brev(unsigned x) {
    unsigned y = 0;
    for (int i = 0; i < 32; i++) y |= (x >> i & 1) << (31 - i);
    return y;
}
inline unsigned __funnelshift_l(unsigned lo, unsigned hi, unsigned n) {
    return unsigned((uint64_t(hi) << 32 | lo) << (n & 31) >> 32);
}
inline unsigned __funnelshift_r(unsigned lo, unsigned hi, unsigned n) {
    return unsigned((uint64_t(hi) << 32 | lo) >> (n & 31));
}
// Byte i of the result is the byte of y:x that nibble i of s names; bit 3 spreads its sign instead.
inline unsigned __byte_perm(unsigned x, unsigned y, unsigned s) {
    const uint64_t bytes = uint64_t(y) << 32 | x;
    unsigned result = 0;
    for (int i = 0; i < 4; i++) {
        const unsigned nibble = s >> 4 * i & 15;
        unsigned byte = bytes >> 8 * (nibble & 7) & 255;
        if (nibble & 8) byte = byte & 128 ? 255 : 0;
        result |= byte << 8 * i;
    }
    return result;
}
inline int __mulhi(int a, int b) { return int(int64_t(a) * b >> 32); }
inline unsigned __umulhi(unsigned a, unsigned b) { return unsigned(uint64_t(a) * b >> 32); }
inline unsigned long long __umul64hi(unsigned long long a, unsigned long long b) {
    return (unsigned long long)((unsigned __int128)a * b >> 64);
}

// ---- Floats ----------------------------------------------------------------------------------------

// A NaN made by a float32 instruction of a GPU is always this one.
inline float qrs_nan(float x) { return x != x ? __uint_as_float(0x7fffffffu) : x; }

inline float __fadd_rn(float a, float b) { return qrs_nan(a + b); }
inline float __fsub_rn(float a, float b) { return qrs_nan(a - b); }
inline float __fmul_rn(float a, float b) { return qrs_nan(a * b); }
inline float __fdiv_rn(float a, float b) { return qrs_nan(a / b); }
inline float __frcp_rn(float a) { return qrs_nan(1.0f / a); }
inline float __fsqrt_rn(float a) { return qrs_nan(__builtin_sqrtf(a)); }
inline float __fmaf_rn(float a, float b, float c) { return qrs_nan(__builtin_fmaf(a, b, c)); }
inline double __dadd_rn(double a, double b) { return a + b; }
inline double __dsub_rn(double a, double b) { return a - b; }
inline double __dmul_rn(double a, double b) { return a * b; }
inline double __ddiv_rn(double a, double b) { return a / b; }
inline double __fma_rn(double a, double b, double c) { return __builtin_fma(a, b, c); }

// A NaN loses against a number, and -0 is below +0, in whichever order they come.
template <typename F>
inline F qrs_min(F a, F b) {
    if (a != a) return b;
    if (b != b) return a;
    return a == b ? (std::signbit(a) ? a : b) : a < b ? a : b;
}
template <typename F>
inline F qrs_max(F a, F b) {
    if (a != a) return b;
    if (b != b) return a;
    return a == b ? (std::signbit(a) ? b : a) : a > b ? a : b;
}
inline float qrs_fminf(float a, float b) { return qrs_nan(qrs_min(a, b)); }
inline float qrs_fmaxf(float a, float b) { return qrs_nan(qrs_max(a, b)); }
inline float qrs_fabsf(float a) { return __uint_as_float(__float_as_uint(a) & 0x7fffffffu); }
inline float qrs_rintf(float a) { return qrs_nan(__builtin_rintf(a)); }
inline float qrs_fmaf(float a, float b, float c) { return __fmaf_rn(a, b, c); }
#define fminf qrs_fminf
#define fmaxf qrs_fmaxf
#define fabsf qrs_fabsf
#define rintf qrs_rintf
#define fmaf qrs_fmaf

template <typename T, typename = std::enable_if_t<std::is_integral_v<T>>>
inline T min(T a, T b) { return b < a ? b : a; }
template <typename T, typename = std::enable_if_t<std::is_integral_v<T>>>
inline T max(T a, T b) { return a < b ? b : a; }
inline float min(float a, float b) { return fminf(a, b); }
inline float max(float a, float b) { return fmaxf(a, b); }

// To an integer: out of range saturates, NaN is 0 (for 64-bit results the sign bit alone).
template <typename I, typename F>
inline I qrs_to_integer(F rounded) {
    constexpr int digits = 8 * sizeof(I) - std::is_signed_v<I>;
    const F end = std::ldexp(F(1), digits);
    if (rounded != rounded) return sizeof(I) == 8 ? I(1ull << 63) : I(0);
    if (rounded >= end) return std::is_signed_v<I> ? I(~I(0) ^ I(1ull << digits)) : I(~I(0));
    if (std::is_signed_v<I> ? rounded < -end : rounded < 0) {
        return std::is_signed_v<I> ? I(1ull << (digits & 63)) : I(0);
    }
    return I(rounded);
}
inline int __float2int_rn(float x) { return qrs_to_integer<int>(__builtin_rintf(x)); }
inline int __float2int_rz(float x) { return qrs_to_integer<int>(__builtin_truncf(x)); }
inline int __float2int_rd(float x) { return qrs_to_integer<int>(__builtin_floorf(x)); }
inline int __float2int_ru(float x) { return qrs_to_integer<int>(__builtin_ceilf(x)); }
inline unsigned __float2uint_rn(float x) { return qrs_to_integer<unsigned>(__builtin_rintf(x)); }
inline unsigned __float2uint_rz(float x) { return qrs_to_integer<unsigned>(__builtin_truncf(x)); }
inline long long __float2ll_rn(float x) { return qrs_to_integer<long long>(__builtin_rintf(x)); }
inline float __int2float_rn(int x) { return float(x); }
inline float __uint2float_rn(unsigned x) { return float(x); }
inline float __ll2float_rn(long long x) { return float(x); }
inline float __double2float_rn(double x) { return qrs_nan(float(x)); }

// ---- Memory ----------------------------------------------------------------------------------------

template <typename T> inline T __ldg(const T* p) { return *p; }
template <typename T> inline T __ldcg(const T* p) { return *p; }
template <typename T> inline T __ldca(const T* p) { return *p; }
template <typename T> inline T __ldcs(const T* p) { return *p; }
template <typename T> inline T __ldlu(const T* p) { return *p; }
template <typename T> inline void __stcg(T* p, T value) { *p = value; }
template <typename T> inline void __stcs(T* p, T value) { *p = value; }
template <typename T> inline void __stwb(T* p, T value) { *p = value; }
inline void __threadfence() {}
inline void __threadfence_block() {}

// Blocks and threads take turns on one CPU thread, so that plain code is atomic. Integers only: the
// result of a float atomic depends on the order of threads.
template <typename T> struct qrs_atomic_type {
    static_assert(std::is_integral_v<T> && sizeof(T) >= 4, "atomics are for 32 and 64 bit integers");
    using type = T;
};
template <typename T> using qrs_atomic = typename qrs_atomic_type<T>::type;
#define QRS_ATOMIC(NAME, EXPRESSION)                                   \
    template <typename T>                                              \
    inline qrs_atomic<T> NAME(T* p, std::common_type_t<T> value) {     \
        const T old = *p;                                              \
        *p = EXPRESSION;                                               \
        return old;                                                    \
    }
QRS_ATOMIC(atomicAdd, T(std::make_unsigned_t<T>(old) + std::make_unsigned_t<T>(value)))
QRS_ATOMIC(atomicSub, T(std::make_unsigned_t<T>(old) - std::make_unsigned_t<T>(value)))
QRS_ATOMIC(atomicMin, value < old ? value : old)
QRS_ATOMIC(atomicMax, value > old ? value : old)
QRS_ATOMIC(atomicAnd, old & value)
QRS_ATOMIC(atomicOr, old | value)
QRS_ATOMIC(atomicXor, old ^ value)
QRS_ATOMIC(atomicExch, value)
template <typename T>
inline qrs_atomic<T> atomicCAS(T* p, std::common_type_t<T> expected, std::common_type_t<T> value) {
    const T old = *p;
    if (old == expected) *p = value;
    return old;
}

// ---- Barriers and warp operations ------------------------------------------------------------------

#define QRS_HERE const char *file = __builtin_FILE(), int line = __builtin_LINE()

inline void __syncthreads(QRS_HERE) { cuda_cpu::barrier({"__syncthreads", file, line, 0}); }

namespace cuda_cpu {

template <typename T>
uint64_t widen(T value) {
    static_assert(sizeof(T) == 4 || sizeof(T) == 8, "shuffles move 32 or 64 bits");
    uint64_t wide = 0;
    memcpy(&wide, &value, sizeof value);
    return wide;
}
template <typename T>
T narrow(uint64_t wide) {
    T value;
    memcpy(&value, &wide, sizeof value);
    return value;
}

// The lane that `lane` reads from, by the rule of shfl.sync: its own where the source is outside of
// its segment of `width` lanes; `inside` says which.
inline unsigned source(char kind, unsigned lane, unsigned other, unsigned width, bool* inside) {
    const unsigned first = lane & ~(width - 1), last = first + width - 1;
    unsigned from = kind == 'i' ? first | (other & (width - 1))
                  : kind == 'x' ? lane ^ (other & 31)
                  : kind == 'u' ? lane - (other & 31)
                                : lane + (other & 31);
    *inside = kind == 'u' ? int(from) >= int(first) : from <= last;
    return *inside ? from : lane;
}

inline uint64_t shuffle(const Operation& here, char kind, uint64_t value, unsigned other,
                        unsigned width) {
    if (width == 0 || width > 32 || (width & (width - 1))) fail(describe(here) + ": bad width");
    return meet(here, value, other | width << 16, [&](Thread* lanes) {
        uint64_t values[32];
        for (unsigned i = 0; i < 32; i++) values[i] = lanes[i].value;
        for (unsigned i = 0; i < 32; i++) {
            if (!(here.mask >> i & 1)) continue;
            bool inside;
            const unsigned from =
                source(kind, i, lanes[i].other & 0xffff, lanes[i].other >> 16, &inside);
            if (!(here.mask >> from & 1)) fail(describe(here) + ": reads a lane outside of the mask");
            lanes[i].value = values[from];
        }
    });
}

// All lanes of the mask get the same: the values folded, from the lowest lane.
template <typename T, typename Fold>
T fold(const Operation& here, T value, Fold f) {
    return narrow<T>(meet(here, widen(value), 0, [&](Thread* lanes) {
        bool any = false;
        T result{};
        for (unsigned i = 0; i < 32; i++) {
            if (!(here.mask >> i & 1)) continue;
            const T next = narrow<T>(lanes[i].value);
            result = any ? f(result, next) : next;
            any = true;
        }
        for (unsigned i = 0; i < 32; i++)
            if (here.mask >> i & 1) lanes[i].value = widen(result);
    }));
}

inline unsigned lane_id() { return current % 32; }

}  // namespace cuda_cpu

#define QRS_SHUFFLE(NAME, KIND)                                                                   \
    template <typename T>                                                                         \
    inline T NAME(unsigned mask, T value, unsigned other, int width = 32, QRS_HERE) {             \
        using namespace cuda_cpu;                                                                 \
        return narrow<T>(                                                                         \
            shuffle({#NAME, file, line, mask}, KIND, widen(value), other & 0xffff, width));       \
    }
QRS_SHUFFLE(__shfl_sync, 'i')
QRS_SHUFFLE(__shfl_xor_sync, 'x')
QRS_SHUFFLE(__shfl_up_sync, 'u')
QRS_SHUFFLE(__shfl_down_sync, 'd')

inline void __syncwarp(unsigned mask = 0xffffffffu, QRS_HERE) {
    cuda_cpu::meet({"__syncwarp", file, line, mask}, 0, 0, [](cuda_cpu::Thread*) {});
}
inline unsigned __ballot_sync(unsigned mask, int predicate, QRS_HERE) {
    const unsigned bit = predicate ? 1u << cuda_cpu::lane_id() : 0;
    return cuda_cpu::fold({"__ballot_sync", file, line, mask}, bit, std::bit_or<unsigned>());
}
inline int __any_sync(unsigned mask, int predicate, QRS_HERE) {
    return cuda_cpu::fold({"__any_sync", file, line, mask}, int(predicate != 0), std::bit_or<int>());
}
inline int __all_sync(unsigned mask, int predicate, QRS_HERE) {
    return cuda_cpu::fold({"__all_sync", file, line, mask}, int(predicate != 0), std::bit_and<int>());
}
#define QRS_REDUCE(NAME, EXPRESSION)                                                              \
    template <typename T, typename = std::enable_if_t<std::is_integral_v<T> && sizeof(T) == 4>>   \
    inline T NAME(unsigned mask, T value, QRS_HERE) {                                             \
        return cuda_cpu::fold({#NAME, file, line, mask}, value, [](T a, T b) { return EXPRESSION; }); \
    }
QRS_REDUCE(__reduce_add_sync, T(unsigned(a) + unsigned(b)))
QRS_REDUCE(__reduce_min_sync, a < b ? a : b)
QRS_REDUCE(__reduce_max_sync, a > b ? a : b)
QRS_REDUCE(__reduce_and_sync, T(a & b))
QRS_REDUCE(__reduce_or_sync, T(a | b))
QRS_REDUCE(__reduce_xor_sync, T(a ^ b))

template <typename T>
inline unsigned __match_any_sync(unsigned mask, T value, QRS_HERE) {
    using namespace cuda_cpu;
    return unsigned(meet({"__match_any_sync", file, line, mask}, widen(value), 0, [&](Thread* lanes) {
        uint64_t equal[32] = {};
        for (unsigned i = 0; i < 32; i++)
            for (unsigned k = 0; k < 32; k++)
                if ((mask >> k & 1) && lanes[k].value == lanes[i].value) equal[i] |= 1u << k;
        for (unsigned i = 0; i < 32; i++)
            if (mask >> i & 1) lanes[i].value = equal[i];
    }));
}

// As if the lanes of a warp that are still there ran together.
inline unsigned __activemask() {
    const unsigned base = cuda_cpu::current - cuda_cpu::lane_id();
    unsigned mask = 0;
    for (unsigned i = 0; i < 32 && base + i < cuda_cpu::count; i++)
        if (cuda_cpu::threads[base + i].state != cuda_cpu::State::exited) mask |= 1u << i;
    return mask;
}

inline int __syncthreads_or(int predicate, QRS_HERE) {
    using namespace cuda_cpu;
    self().value = predicate != 0;
    barrier({"__syncthreads_or", file, line, 0});
    int any = 0;
    for (unsigned i = 0; i < count; i++) any |= int(threads[i].value);
    barrier({"__syncthreads_or", file, line, 1});
    return any;
}
[[noreturn]] inline void __trap() { cuda_cpu::fail("__trap()"); }
