// The formulas of the contract that opens common.cuh: ranges, division, parameters, number formats.
// Each is here once. There is nothing here of arrays, and of memory.

// ---- Ranges -------------------------------------------------------------------------------------

struct Range {
    float lo = 0, hi = 0;

    DEVICE void add(float x) { lo = min_nan(lo, x), hi = max_nan(hi, x); }
    DEVICE void add(Range other) { lo = min_nan(lo, other.lo), hi = max_nan(hi, other.hi); }
    // A zero of a minimum or a maximum is +0, whatever the zeros were.
    DEVICE Range without_negative_zero() const {
        Range range;
        range.lo = __fadd_rn(lo, 0.0f), range.hi = __fadd_rn(hi, 0.0f);
        return range;
    }
    DEVICE bool finite() const { return is_finite(lo) && is_finite(hi); }
};

// The least and the greatest of octets, or with ABSMAX the greatest magnitude; 0 is always one of
// them. Halves are compared two at a time. NaN stays, so that one look at the end finds everything
// that is not finite.
template <class T, bool ABSMAX>
struct Extremes {
    u32 low = 0, high = 0;

    DEVICE void add(const Octet<T>& octet) {
#pragma unroll
        for (int i = 0; i < T::words; i++) {
            high = T::larger(high, ABSMAX ? T::magnitude(octet.word[i]) : octet.word[i]);
            if (!ABSMAX) low = T::smaller(low, octet.word[i]);
        }
    }
    // Over `lanes` lanes, a power of two, or a whole warp. Two halves become the greatest and minus
    // the least, which both want a maximum.
    DEVICE void reduce(int lanes) {
        if (!ABSMAX && T::words == 4) high = T::ends(high, low), low = 0;
        if (lanes > 32) lanes = 32;
#pragma unroll 1
        for (int distance = 1; distance < lanes; distance *= 2) {
            high = T::larger(high, __shfl_xor_sync(kAllLanes, high, distance));
            if (ABSMAX || T::words == 4) continue;
            low = T::smaller(low, __shfl_xor_sync(kAllLanes, low, distance));
        }
    }
    // Once reduced.
    DEVICE Range range() const {
        Range range;
        if (ABSMAX) {
            range.hi = T::words == 8 ? float_of(high)
                                     : max_nan(T::value(high & 0xffff), T::value(high >> 16));
            range.lo = -range.hi;
        } else {
            range.hi = T::words == 8 ? float_of(high) : T::value(high & 0xffff);
            range.lo = T::words == 8 ? float_of(low) : -T::value(high >> 16);
        }
        return range;
    }
};

// ---- Division -----------------------------------------------------------------------------------

// x / scale, with the bits of the division, for quotients from 2^-18 up to 2^22; smaller ones come
// out smaller than that too. Markstein's steps: q = x * inv, and one correction by the remainder.
// They hold for scales from 2^-100 to 2^100, so that others, and x with them, are moved by an exact
// power of two first; a narrower range leaves room for small quotients. Where `MOVED` is false the
// caller knows that the scale is within.
template <bool MOVED>
struct Divisor {
    float scale, inv, factor;

    explicit DEVICE Divisor(float unmoved) {
        factor = 1.0f;
        if (MOVED) {
            const float magnitude = fabsf(unmoved);
            if (magnitude < 0x1p-60f) factor = 0x1p100f;
            if (magnitude > 0x1p60f) factor = 0x1p-100f;
        }
        scale = moved(unmoved);
        inv = __frcp_rn(scale);
    }
    DEVICE float moved(float x) const { return MOVED ? __fmul_rn(x, factor) : x; }
    DEVICE float divide(float moved_x) const {
        const float q = __fmul_rn(moved_x, inv);
        return __fmaf_rn(__fmaf_rn(-q, scale, moved_x), inv, q);
    }
};

// ---- Affine codes -------------------------------------------------------------------------------

// 1.5 * 2^23. A float of this size has no fraction bits left, so adding it rounds to the nearest
// integer, ties to even, and leaves that integer in the low bits.
constexpr float kRounder = 12582912.0f;
constexpr u32 kRounderBits = 0x4b400000u;

DEVICE float rounded(float v) { return __fsub_rn(__fadd_rn(v, kRounder), kRounder); }

enum ScaleDtype { kFloat32, kFloat16, kBfloat16, kE8m0 };

DEVICE float stored(float scale, int dtype) {
    if (dtype == kFloat16) scale = f16::widen(f16::narrow(scale));
    if (dtype == kBfloat16) scale = bf16::widen(bf16::narrow(scale));
    return scale;
}

// The scale and the zero point of a group, as stored, and what is wrong with them.
struct Chosen {
    float scale;
    int zero_point;
    Reason fault;
};

// `T` is the dtype that the range comes from: float16 can overflow nothing. ABSMAX says that
// qmin = -qmax and lo = -hi, and that the codes are symmetric.
template <class T, bool ABSMAX>
DEVICE Chosen choose_params(Range range, int qmin, int qmax, bool symmetric, int scale_dtype) {
    const float low = float(qmin), high = float(qmax);
    float exact;
    if (ABSMAX) {
        exact = __fdiv_rn(range.hi, high);
    } else if (symmetric) {
        exact = fmaxf(__fdiv_rn(range.hi, high), __fdiv_rn(range.lo, low));
    } else {
        const float n = float(qmax - qmin), width = __fsub_rn(range.hi, range.lo);
        exact = __fdiv_rn(width, n);
        if (T::extreme_exponents && !is_finite(width)) {
            exact = __fsub_rn(__fdiv_rn(range.hi, n), __fdiv_rn(range.lo, n));
        }
    }
    Chosen chosen;
    const float scale = stored(exact, scale_dtype);
    chosen.scale = scale == 0.0f ? 1.0f : scale;
    chosen.zero_point = 0;
    if (!ABSMAX && !symmetric) {
        const Divisor<T::extreme_exponents> divisor(chosen.scale);
        const float v = __fsub_rn(low, divisor.divide(divisor.moved(range.lo)));
        chosen.zero_point =
            int(bits_of(__fadd_rn(fminf(fmaxf(v, low), high), kRounder)) - kRounderBits);
    }
    chosen.fault = kNone;
    if (T::extreme_exponents) {
        const float first = __fmul_rn(float(qmin - chosen.zero_point), chosen.scale);
        const float last = __fmul_rn(float(qmax - chosen.zero_point), chosen.scale);
        if (!is_finite(first) || !is_finite(last)) chosen.fault = kDecodeOverflow;
        if (!is_finite(chosen.scale)) chosen.fault = kScaleOverflow;
    }
    return chosen;
}

// ---- Number formats -----------------------------------------------------------------------------

// Codes are sign, exponent and mantissa, as in qrs/float_formats.py; INFINITE and NO_NUMBER are
// codes, 0 where the format has none.
template <class CODE, int EXPONENT_BITS, int MANTISSA_BITS, u32 MAX_CODE, u32 INFINITE,
          u32 NO_NUMBER>
struct Format {
    using Code = CODE;
    static constexpr int bits = 1 + EXPONENT_BITS + MANTISSA_BITS;
    static constexpr int bias = (1 << (EXPONENT_BITS - 1)) - 1;
    static constexpr u32 sign = 1u << (bits - 1), one = u32(bias) << MANTISSA_BITS, nan = NO_NUMBER;
    // From a mantissa here to one of float32, from an exponent field here to one of float32.
    static constexpr int shift = 23 - MANTISSA_BITS;
    static constexpr u32 rebias = u32(127 - bias) << 23, smallest_normal = u32(128 - bias) << 23;

    // The code nearest to the float32 with bits `x`; `saturate` is rule 9.
    static DEVICE u32 encode(u32 x, bool saturate) {
        const u32 magnitude = x & 0x7fffffffu;
        u32 code = magnitude;
        if (shift > 0 && magnitude >= smallest_normal) {
            const u32 odd = magnitude >> shift & 1, half = (1u << shift) / 2;
            code = (magnitude - rebias + half - 1 + odd) >> shift;
        } else if (shift > 0) {
            // One unit in the last place of this is the smallest subnormal, so the addition rounds.
            constexpr u32 rounder = u32(151 - bias - MANTISSA_BITS) << 23;
            code = bits_of(__fadd_rn(float_of(magnitude), float_of(rounder))) - rounder;
        }
        const u32 infinity_or_nan = INFINITE ? INFINITE : NO_NUMBER;
        const u32 beyond = saturate || !infinity_or_nan ? MAX_CODE : infinity_or_nan;
        if (code > MAX_CODE) code = beyond;
        if (magnitude == 0x7f800000u) code = INFINITE ? INFINITE : beyond;
        if (magnitude > 0x7f800000u) code = NO_NUMBER;
        return code | (x >> 31) * sign;
    }

    // The bits of the float32 that a code stands for; exact. NaN is the canonical one.
    static DEVICE u32 decode(u32 code) {
        const u32 magnitude = code & (sign - 1);
        u32 x = (magnitude << shift) + rebias;
        if (shift > 0 && magnitude < 1u << MANTISSA_BITS) {
            const float normal = float_of((magnitude << shift) + smallest_normal);
            x = bits_of(__fsub_rn(normal, float_of(smallest_normal)));
        }
        if (NO_NUMBER && magnitude > MAX_CODE) x = f32::nan;
        if (INFINITE && magnitude == INFINITE) x = 0x7f800000u;
        return x | (code & sign ? 0x80000000u : 0);
    }
    static DEVICE float largest() { return float_of(decode(MAX_CODE)); }
};

struct e5m2 {};
struct e4m3 {};
struct e2m1 {};
template <class F>
struct FormatOf;
template <>
struct FormatOf<f32> : Format<u32, 8, 23, 0x7f7fffff, 0x7f800000, 0x7fc00000> {};
template <>
struct FormatOf<f16> : Format<u16, 5, 10, 0x7bff, 0x7c00, 0x7e00> {};
template <>
struct FormatOf<bf16> : Format<u16, 8, 7, 0x7f7f, 0x7f80, 0x7fc0> {};
template <>
struct FormatOf<e5m2> : Format<u8, 5, 2, 0x7b, 0x7c, 0x7e> {};
template <>
struct FormatOf<e4m3> : Format<u8, 4, 3, 0x7e, 0, 0x7f> {};
template <>
struct FormatOf<e2m1> : Format<u8, 2, 1, 0x7, 0, 0> {};
