// What all kernels share. The numeric contract, as in reference/__init__.py and rust/numeric.rs:
//
// 1. Arithmetic is float32. float16 and bfloat16 inputs widen exactly.
// 2. Rounding is to nearest, ties to even. Encode is q = clip(rne(x / scale) + zero_point, qmin,
//    qmax): a true division; the clamp is done in float, before rounding and before the conversion
//    to integer. Any implementation that gives the same bits as the division will do.
//    Decode is x_hat = (q - zero_point) * scale.
// 3. Symmetric: scale = max(hi / qmax, lo / qmin), zero_point = 0. Asymmetric: the range is widened
//    to hold 0, scale = (hi - lo) / (qmax - qmin), or hi / n - lo / n where hi - lo overflows, and
//    zero_point = clip(rne(qmin - lo / scale), qmin, qmax). A range whose extreme codes would
//    decode to infinity is a fault.
// 4. A scale that comes out as zero becomes 1. Subnormals are kept.
// 5. NaN and infinities are a fault.
// 6. In sums, the lane of element i is i mod 16, and the lanes fold as (l, l + 8), (l, l + 4),
//    (l, l + 2), (l, l + 1). What is longer than 65,536 is cut into chunks of 65,536, and the chunk
//    sums, in order, are summed by the same rule. No fused multiply-add.
// 7. Scales are rounded to their stored dtype first; zero points and codes use the rounded ones. A
//    scale that overflows its dtype is a fault.
// 8. Codebooks encode as bitsandbytes does: v = x * (1 / max(|scale|, 1e-38)), with the sign of the
//    scale, or v = 0 where that is 0; the code counts the thresholds that v reaches. scale =
//    max(hi / highest level, lo / lowest level); one that comes out as zero stays zero, and its
//    group decodes to zeros.
// 9. Conversions between float formats keep NaN, as the canonical quiet one with the sign of the
//    input, and infinities where the format has them.
// 10. MX scales are 2^(floor(log2 absmax) - max_exponent), at least 2^-127.
//
// Nothing is included: NVRTC has the built-in functions, and half precision is inline PTX (sm_80
// and later) with a twin in plain C++ beside it, for compilers that target no GPU. Where a rounding
// matters it is spelled: __fmul_rn and the like are never fused. All indices have 64 bits.

using i8 = signed char;
using i32 = int;
using i64 = long long;
using u8 = unsigned char;
using u16 = unsigned short;
using u32 = unsigned int;
using u64 = unsigned long long;

#define DEVICE __device__ __forceinline__

constexpr u32 kAllLanes = 0xffffffffu;

DEVICE u32 bits_of(float x) { return __float_as_uint(x); }
DEVICE float float_of(u32 bits) { return __uint_as_float(bits); }
DEVICE bool is_finite(float x) { return fabsf(x) <= 0x1.fffffep127f; }

// ---- Minima and maxima that keep NaN, and magnitudes, of one float32 or two halves --------------

#ifdef __CUDA_ARCH__
#define NAN_KEEPING(NAME, INSTRUCTION, TYPE, C)                       \
    DEVICE TYPE NAME(TYPE a, TYPE b) {                                \
        TYPE result;                                                  \
        asm(INSTRUCTION " %0, %1, %2;" : "=" C(result) : C(a), C(b)); \
        return result;                                                \
    }
#define MAGNITUDES(NAME, INSTRUCTION)                        \
    DEVICE u32 NAME(u32 x) {                                 \
        u32 result;                                          \
        asm(INSTRUCTION " %0, %1;" : "=r"(result) : "r"(x)); \
        return result;                                       \
    }
NAN_KEEPING(min_nan, "min.NaN.f32", float, "f")
NAN_KEEPING(max_nan, "max.NaN.f32", float, "f")
NAN_KEEPING(min_nan_f16x2, "min.NaN.f16x2", u32, "r")
NAN_KEEPING(max_nan_f16x2, "max.NaN.f16x2", u32, "r")
NAN_KEEPING(min_nan_bf16x2, "min.NaN.bf16x2", u32, "r")
NAN_KEEPING(max_nan_bf16x2, "max.NaN.bf16x2", u32, "r")
MAGNITUDES(abs_f16x2, "abs.f16x2")
MAGNITUDES(abs_bf16x2, "abs.bf16x2")
#else
DEVICE float min_nan(float a, float b) { return a != a ? a : b != b ? b : a < b ? a : b; }
DEVICE float max_nan(float a, float b) { return a != a ? a : b != b ? b : a > b ? a : b; }
#endif

// ---- The three dtypes of arrays -----------------------------------------------------------------

// Elements are `Bits` in memory. An octet is eight of them, in 32-bit words. `extreme_exponents` is
// false where no finite value but zero is near the ends of float32's exponents.
struct f32 {
    using Bits = float;
    static constexpr bool extreme_exponents = true;
    static constexpr int words = 8;
    static DEVICE float widen(float x) { return x; }
    static DEVICE float narrow(float x) { return x; }
    static constexpr u32 nan = 0x7fc00000u;
    static DEVICE u32 raw(const u32* words, int k) { return words[k]; }
    static DEVICE void put(u32* words, int k, u32 raw) { words[k] = raw; }
    static DEVICE float value(u32 raw) { return float_of(raw); }
    static DEVICE u32 to_raw(float x) { return bits_of(x); }
    static DEVICE float from_raw(u32 raw) { return float_of(raw); }
    static DEVICE u32 smaller(u32 a, u32 b) { return bits_of(min_nan(float_of(a), float_of(b))); }
    static DEVICE u32 larger(u32 a, u32 b) { return bits_of(max_nan(float_of(a), float_of(b))); }
    static DEVICE u32 magnitude(u32 word) { return word & 0x7fffffffu; }
    static DEVICE u32 ends(u32 high, u32) { return high; }
    static DEVICE void narrow_octet(const float* x, u32* words) {
        for (int k = 0; k < 8; k++) words[k] = bits_of(x[k]);
    }
};

// What the two dtypes of 16 bits have in common; `H` is the dtype itself.
template <class H>
struct Halves {
    using Bits = u16;
    static constexpr int words = 4;
    static DEVICE u32 raw(const u32* words, int k) { return words[k / 2] >> 16 * (k & 1) & 0xffff; }
    static DEVICE void put(u32* words, int k, u32 raw) {
        const int shift = 16 * (k & 1);
        words[k / 2] = (words[k / 2] & ~(0xffffu << shift)) | raw << shift;
    }
    static DEVICE float value(u32 raw) { return H::widen(u16(raw)); }
    static DEVICE u32 to_raw(u16 x) { return x; }
    static DEVICE u16 from_raw(u32 raw) { return u16(raw); }
    // The larger half of `high`, and beside it minus the smaller half of `low`.
    static DEVICE u32 ends(u32 high, u32 low) {
        low ^= 0x80008000u;
        return H::larger(__byte_perm(high, low, 0x5410), __byte_perm(high, low, 0x7632));
    }
    static DEVICE void narrow_octet(const float* x, u32* words) {
        for (int k = 0; k < 4; k++) words[k] = H::narrow_pair(x[2 * k], x[2 * k + 1]);
    }
#ifndef __CUDA_ARCH__
    static u16 pick(u32 a, u32 b, int shift, bool largest) {
        const u16 first = u16(a >> shift), second = u16(b >> shift);
        const float x = H::widen(first), y = H::widen(second);
        const bool take_first = x != x || !(y != y || (largest ? y > x : y < x));
        return take_first ? first : second;
    }
    static u32 smaller(u32 a, u32 b) {
        return pick(a, b, 0, false) | u32(pick(a, b, 16, false)) << 16;
    }
    static u32 larger(u32 a, u32 b) {
        return pick(a, b, 0, true) | u32(pick(a, b, 16, true)) << 16;
    }
    static u32 magnitude(u32 word) { return word & 0x7fff7fffu; }
    static u32 narrow_pair(float a, float b) { return H::narrow(a) | u32(H::narrow(b)) << 16; }
#endif
};

struct f16 : Halves<f16> {
    static constexpr u32 nan = 0x7e00;
    static constexpr bool extreme_exponents = false;
#ifdef __CUDA_ARCH__
    static DEVICE float widen(u16 x) {
        float y;
        asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(x));
        return y;
    }
    // NaN may come out as any NaN: those who can meet one write it by themselves.
    static DEVICE u16 narrow(float x) {
        u16 y;
        asm("cvt.rn.f16.f32 %0, %1;" : "=h"(y) : "f"(x));
        return y;
    }
    static DEVICE u32 narrow_pair(float a, float b) {
        u32 y;
        asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(y) : "f"(b), "f"(a));
        return y;
    }
    static DEVICE u32 magnitude(u32 word) { return abs_f16x2(word); }
    static DEVICE u32 smaller(u32 a, u32 b) { return min_nan_f16x2(a, b); }
    static DEVICE u32 larger(u32 a, u32 b) { return max_nan_f16x2(a, b); }
#else
    static float widen(u16 x) {
        const u32 magnitude = u32(x & 0x7fff) << 13, sign = u32(x & 0x8000) << 16;
        // 2^-14 as an exponent makes a subnormal significand the fraction of a normal number.
        const u32 small =
            bits_of(__fsub_rn(float_of(magnitude + (113u << 23)), float_of(113u << 23)));
        if (magnitude >= 31u << 23) return float_of(sign | (magnitude + (224u << 23)));
        return float_of(sign | (magnitude < 1u << 23 ? small : magnitude + (112u << 23)));
    }
    static u16 narrow(float x) {
        const u32 bits = bits_of(x), magnitude = bits & 0x7fffffffu, odd = magnitude >> 13 & 1;
        const u16 sign = u16(bits >> 16 & 0x8000);
        if (magnitude > 0x7f800000u) return sign | 0x7e00;
        if (magnitude >= 143u << 23) return sign | 0x7c00;
        if (magnitude >= 113u << 23)
            return sign | u16((magnitude - (112u << 23) + 0xfff + odd) >> 13);
        return sign | u16(bits_of(__fadd_rn(float_of(magnitude), 0.5f)) - 0x3f000000u);
    }
#endif
};

struct bf16 : Halves<bf16> {
    static constexpr u32 nan = 0x7fc0;
    static constexpr bool extreme_exponents = true;
    static DEVICE float widen(u16 x) { return float_of(u32(x) << 16); }
    static DEVICE u16 narrow(float x) {
        const u32 bits = bits_of(x);
        return u16((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
    }
#ifdef __CUDA_ARCH__
    static DEVICE u32 narrow_pair(float a, float b) {
        u32 y;
        asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(y) : "f"(b), "f"(a));
        return y;
    }
    static DEVICE u32 magnitude(u32 word) { return abs_bf16x2(word); }
    static DEVICE u32 smaller(u32 a, u32 b) { return min_nan_bf16x2(a, b); }
    static DEVICE u32 larger(u32 a, u32 b) { return max_nan_bf16x2(a, b); }
#endif
};

// ---- Octets in memory ---------------------------------------------------------------------------

DEVICE bool is_aligned(const void* p, u64 bytes) {
    return (reinterpret_cast<u64>(p) & (bytes - 1)) == 0;
}

template <class T>
struct Octet {
    u32 word[T::words];

    DEVICE u32 raw(int k) const { return T::raw(word, k); }
    DEVICE void put(int k, u32 raw) { T::put(word, k, raw); }
    DEVICE float operator[](int k) const { return T::value(raw(k)); }

    // From an address that 16 divides. Nothing is read twice: the cache may forget it.
    static DEVICE Octet load(const typename T::Bits* p) {
        Octet octet;
#pragma unroll
        for (int i = 0; i < T::words; i += 4) {
            const uint4 v = __ldcs(reinterpret_cast<const uint4*>(p) + i / 4);
            octet.word[i] = v.x, octet.word[i + 1] = v.y;
            octet.word[i + 2] = v.z, octet.word[i + 3] = v.w;
        }
        return octet;
    }
    static DEVICE Octet zeros() {
        Octet octet;
#pragma unroll
        for (int i = 0; i < T::words; i++) octet.word[i] = 0;
        return octet;
    }
    // To an address that 16 divides.
    DEVICE void store(typename T::Bits* p) const {
#pragma unroll
        for (int i = 0; i < T::words; i += 4) {
            const uint4 v = make_uint4(word[i], word[i + 1], word[i + 2], word[i + 3]);
            __stcs(reinterpret_cast<uint4*>(p) + i / 4, v);
        }
    }
    static DEVICE Octet narrow(const float* x) {
        Octet octet;
        T::narrow_octet(x, octet.word);
        return octet;
    }
};

// `bytes` of the 8 in `word`, lowest first, to any address, in one store where that is possible.
DEVICE void store_bytes(u8* p, u64 word, int bytes) {
    if (bytes == 8 && is_aligned(p, 8)) {
        __stcs(reinterpret_cast<uint2*>(p), make_uint2(u32(word), u32(word >> 32)));
    } else if (bytes == 4 && is_aligned(p, 4)) {
        __stcs(reinterpret_cast<u32*>(p), u32(word));
    } else {
        for (int i = 0; i < bytes; i++) p[i] = u8(word >> 8 * i);
    }
}

DEVICE u64 load_bytes(const u8* p, int bytes) {
    if (bytes == 8 && is_aligned(p, 8)) {
        const uint2 v = __ldcs(reinterpret_cast<const uint2*>(p));
        return u64(v.y) << 32 | v.x;
    }
    if (bytes == 4 && is_aligned(p, 4)) return __ldcs(reinterpret_cast<const u32*>(p));
    u64 word = 0;
    for (int i = 0; i < bytes; i++) word |= u64(p[i]) << 8 * i;
    return word;
}

// ---- Where an octet lies ------------------------------------------------------------------------

// a / b for numbers that are not negative. Most fit 32 bits, where a division takes a fraction.
DEVICE i64 quotient(i64 a, i64 b) {
    if (((a | b) >> 32) == 0) return u32(a) / u32(b);
    return a / b;
}

// n / divisor for n below 2^31, where the host has made `magic` = ceil(2^(31 + shift) / divisor)
// with 2^shift >= divisor (Granlund and Montgomery, "Division by invariant integers using
// multiplication").
struct FastDivisor {
    u32 magic, shift;
    DEVICE u32 divide(u32 n) const { return __umulhi(2 * n, magic) >> shift; }
};

// An array (rows, cols) cut into groups, and its rows into octets, eight values each; the last
// group and the last octet of a row may be shorter.
struct Shape {
    i64 rows, cols, group_size, groups, octets;

    DEVICE Shape(i64 rows, i64 cols, i64 group_size)
        : rows(rows), cols(cols), group_size(group_size) {
        groups = quotient(cols + group_size - 1, group_size);
        octets = (cols + 7) / 8;
    }
    DEVICE i64 units() const { return rows * octets; }
};

// Where octet number `unit` lies: it has `count` values, from (row, col) on, the first `left` of
// them in `group`, which counts along all rows.
struct Place {
    i64 row, col, group, left;
    int count;

    DEVICE Place(i64 unit, const Shape& shape) {
        row = quotient(unit, shape.octets);
        col = (unit - row * shape.octets) * 8;
        count = int(shape.cols - col < 8 ? shape.cols - col : 8);
        const i64 in_row = quotient(col, shape.group_size);
        group = row * shape.groups + in_row;
        left = (in_row + 1) * shape.group_size - col;
    }
    DEVICE i64 index(const Shape& shape) const { return row * shape.cols + col; }
    // Eight values, all of one group.
    DEVICE bool is_whole() const { return count == 8 && left >= 8; }
    // From one value to the next one, where the octet is not whole.
    DEVICE void next(const Shape& shape) {
        if (--left == 0) group++, left = shape.group_size;
    }
};

// Which numbers a thread takes of a range: its own, and every next one a whole grid later.
DEVICE i64 first_unit() { return i64(blockIdx.x) * blockDim.x + threadIdx.x; }
DEVICE i64 stride() { return i64(gridDim.x) * blockDim.x; }

// ---- Faults -------------------------------------------------------------------------------------

// Words that start as zero. A group at fault is written as the complement of 2 * group + reason:
// the greatest such number is the lowest group, and there an overflowing scale goes first.
enum FaultWord { kNonfinite, kGroup, kNan };
enum Reason : u32 { kNone, kScaleOverflow, kDecodeOverflow };

DEVICE void report(u64* faults, FaultWord word) { atomicMax(faults + word, u64(1)); }
DEVICE void report(u64* faults, i64 group, Reason reason) {
    if (reason != kNone) atomicMax(faults + kGroup, ~(2 * u64(group) + (reason - kScaleOverflow)));
}
