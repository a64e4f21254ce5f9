// What PTX instructions do, for the C++ that ptx_cpu.py makes of them. Written from the PTX ISA, and
// apart from the kernels: nothing of common.cuh is used here.
// Registers hold bits: bool for .pred, else an unsigned integer; `as` reads them as what an
// instruction's type says, `set` writes them.
#pragma once
#include "cuda_cpu.h"

namespace ptx {

using cuda_cpu::fail;

template <typename T, typename R>
inline T as(R bits) {
    if constexpr (std::is_integral_v<T>) {
        return T(bits);
    } else {
        static_assert(sizeof(T) == sizeof(R), "a float is read from a register of its size");
        return qrs_bits<T>(bits);
    }
}
template <typename R, typename T>
inline void set(R& to, T value) {
    if constexpr (std::is_integral_v<T>) {
        to = R(value);  // a signed value spreads its sign into a wider register
    } else {
        to = qrs_bits<R>(value);
    }
}

// ---- Memory: every vector is aligned to its whole size ---------------------------------------------

template <typename T, int N>
inline T* aligned(uint64_t address) {
    if (address % (sizeof(T) * N)) fail("misaligned address");
    return reinterpret_cast<T*>(address);
}

// Addresses of the shared state space are offsets into one array, without its first bytes.
constexpr uint64_t SHARED_NULL = 256;
template <size_t SIZE>
inline uint64_t from_shared(unsigned char (&space)[SIZE], uint64_t offset, uint64_t size) {
    if (offset < SHARED_NULL || offset + size > SIZE) fail("out of bounds of shared memory");
    return uint64_t(space) + offset;
}

// ---- Integers --------------------------------------------------------------------------------------

template <typename T> using U = std::make_unsigned_t<T>;
template <typename T> using Wide = std::conditional_t<
    sizeof(T) == 2, std::conditional_t<std::is_signed_v<T>, int32_t, uint32_t>,
    std::conditional_t<sizeof(T) == 4, std::conditional_t<std::is_signed_v<T>, int64_t, uint64_t>,
                       std::conditional_t<std::is_signed_v<T>, __int128, unsigned __int128>>>;

// 16-bit operands would become int, whose overflow is no modulo.
template <typename T> inline T add(T a, T b) { return T(uint64_t(U<T>(a)) + U<T>(b)); }
template <typename T> inline T sub(T a, T b) { return T(uint64_t(U<T>(a)) - U<T>(b)); }
template <typename T> inline T mul_lo(T a, T b) { return T(uint64_t(U<T>(a)) * U<T>(b)); }
template <typename T> inline T mul_hi(T a, T b) { return T(Wide<T>(a) * Wide<T>(b) >> 8 * sizeof(T)); }
template <typename T> inline Wide<T> mul_wide(T a, T b) { return Wide<T>(a) * Wide<T>(b); }
template <typename T> inline T mad_lo(T a, T b, T c) { return add(mul_lo(a, b), c); }
template <typename T> inline Wide<T> mad_wide(T a, T b, Wide<T> c) { return add(mul_wide(a, b), c); }
template <typename T> inline T div(T a, T b) {
    if (b == 0) fail("division by zero");
    return std::is_signed_v<T> && b == T(-1) ? T(0 - U<T>(a)) : T(a / b);
}
template <typename T> inline T rem(T a, T b) {
    if (b == 0) fail("division by zero");
    return std::is_signed_v<T> && b == T(-1) ? T(0) : T(a % b);
}
template <typename T> inline T neg(T a) { return sub(T(0), a); }
template <typename T> inline T abs(T a) { return a < 0 ? neg(a) : a; }
template <typename T> inline T min(T a, T b) { return b < a ? b : a; }
template <typename T> inline T max(T a, T b) { return a < b ? b : a; }
template <typename T> inline T and_(T a, T b) { return T(a & b); }
template <typename T> inline T or_(T a, T b) { return T(a | b); }
template <typename T> inline T xor_(T a, T b) { return T(a ^ b); }
template <typename T> inline T not_(T a) { return T(~a); }
template <> inline bool not_(bool a) { return !a; }
template <typename T> inline T shl(T a, uint32_t n) { return n < 8 * sizeof(T) ? T(a << n) : T(0); }
template <typename T> inline T shr(T a, uint32_t n) {
    constexpr uint32_t last = 8 * sizeof(T) - 1;
    return n <= last ? T(a >> n) : std::is_signed_v<T> ? T(a >> last) : T(0);
}
inline uint32_t shf_l(uint32_t lo, uint32_t hi, uint32_t n) { return __funnelshift_l(lo, hi, n); }
inline uint32_t shf_r(uint32_t lo, uint32_t hi, uint32_t n) { return __funnelshift_r(lo, hi, n); }
inline uint32_t lop3(uint32_t a, uint32_t b, uint32_t c, uint32_t table) {
    uint32_t result = 0;
    for (int i = 0; i < 8; i++) {
        if (!(table >> i & 1)) continue;
        result |= (i & 4 ? a : ~a) & (i & 2 ? b : ~b) & (i & 1 ? c : ~c);
    }
    return result;
}
template <typename T> inline T bfe(T a, uint32_t position, uint32_t length) {
    position &= 255, length &= 255;
    constexpr uint32_t bits = 8 * sizeof(T);
    if (length == 0) return 0;
    const uint32_t top = std::min(position + length, bits) - 1;
    U<T> value = position < bits ? U<T>(a) >> position : 0;
    if (length < bits) value &= (U<T>(1) << length) - 1;
    if (std::is_signed_v<T> && (U<T>(a) >> top & 1) && length < bits)
        value |= position < bits ? ~U<T>(0) << std::min(length, bits - position) : ~U<T>(0);
    return T(value);
}
template <typename T> inline T bfi(T field, T into, uint32_t position, uint32_t length) {
    position &= 255, length &= 255;
    if (length == 0 || position >= 8 * sizeof(T)) return into;
    const T mask = T((length < 8 * sizeof(T) ? (T(1) << length) - 1 : ~T(0)) << position);
    return T((into & ~mask) | (T(field << position) & mask));
}
inline uint32_t bfind_shiftamt(uint32_t a) { return a ? __builtin_clz(a) : 0xffffffffu; }
inline uint32_t bfind(uint32_t a) { return a ? 31 - __builtin_clz(a) : 0xffffffffu; }
template <typename T> inline T selp(T a, T b, bool p) { return p ? a : b; }
template <bool a_signed, bool b_signed> inline uint32_t dp4a(uint32_t a, uint32_t b, uint32_t c) {
    for (int i = 0; i < 32; i += 8) {
        const int64_t x = a_signed ? int64_t(int8_t(a >> i)) : uint8_t(a >> i);
        const int64_t y = b_signed ? int64_t(int8_t(b >> i)) : uint8_t(b >> i);
        c += uint32_t(x * y);
    }
    return c;
}

// ---- Floats ----------------------------------------------------------------------------------------

inline double canonical(double x) { return x; }
inline float canonical(float x) { return qrs_nan(x); }
template <typename F> inline F add_rn(F a, F b) { return canonical(a + b); }
template <typename F> inline F sub_rn(F a, F b) { return canonical(a - b); }
template <typename F> inline F mul_rn(F a, F b) { return canonical(a * b); }
template <typename F> inline F div_rn(F a, F b) { return canonical(a / b); }
template <typename F> inline F rcp_rn(F a) { return canonical(1 / a); }
template <typename F> inline F sqrt_rn(F a) { return canonical(std::sqrt(a)); }
template <typename F> inline F fma_rn(F a, F b, F c) { return canonical(std::fma(a, b, c)); }
template <typename F> inline F min_f(F a, F b) { return canonical(qrs_min(a, b)); }
template <typename F> inline F max_f(F a, F b) { return canonical(qrs_max(a, b)); }
template <typename F> inline F min_nan(F a, F b) { return a != a || b != b ? canonical(F(NAN)) : qrs_min(a, b); }
template <typename F> inline F max_nan(F a, F b) { return a != a || b != b ? canonical(F(NAN)) : qrs_max(a, b); }
template <typename F> inline F abs_f(F a) { return canonical(std::fabs(a)); }
template <typename F> inline F neg_f(F a) { return canonical(-a); }
template <typename F> inline F copysign(F sign, F a) { return std::copysign(a, sign); }

// The comparisons without a `u` are false for NaN, those with one are true.
template <typename T> inline bool eq(T a, T b) { return a == b; }
template <typename T> inline bool ne(T a, T b) { return a != b && a == a && b == b; }
template <typename T> inline bool lt(T a, T b) { return a < b; }
template <typename T> inline bool le(T a, T b) { return a <= b; }
template <typename T> inline bool gt(T a, T b) { return a > b; }
template <typename T> inline bool ge(T a, T b) { return a >= b; }
template <typename T> inline bool equ(T a, T b) { return !ne(a, b); }
template <typename T> inline bool neu(T a, T b) { return !eq(a, b); }
template <typename T> inline bool ltu(T a, T b) { return !ge(a, b); }
template <typename T> inline bool leu(T a, T b) { return !gt(a, b); }
template <typename T> inline bool gtu(T a, T b) { return !le(a, b); }
template <typename T> inline bool geu(T a, T b) { return !lt(a, b); }
template <typename T> inline bool num(T a, T b) { return a == a && b == b; }
template <typename T> inline bool nan(T a, T b) { return !num(a, b); }

template <typename F> inline F rni(F a) { return canonical(std::rint(a)); }
template <typename F> inline F rzi(F a) { return canonical(std::trunc(a)); }
template <typename F> inline F rmi(F a) { return canonical(std::floor(a)); }
template <typename F> inline F rpi(F a) { return canonical(std::ceil(a)); }
template <typename I, typename F> inline I to_integer_rni(F a) { return qrs_to_integer<I>(std::rint(a)); }
template <typename I, typename F> inline I to_integer_rzi(F a) { return qrs_to_integer<I>(std::trunc(a)); }
template <typename I, typename F> inline I to_integer_rmi(F a) { return qrs_to_integer<I>(std::floor(a)); }
template <typename I, typename F> inline I to_integer_rpi(F a) { return qrs_to_integer<I>(std::ceil(a)); }
template <typename To, typename From> inline To convert(From a) {
    if constexpr (std::is_floating_point_v<To>) {
        return canonical(To(a));
    } else {
        return To(a);
    }
}

// ---- Half precision --------------------------------------------------------------------------------

inline float from_f16(uint16_t h) {
    const int exponent = h >> 10 & 31, fraction = h & 1023;
    if (exponent == 31 && fraction) return qrs_nan(NAN);
    const float magnitude = exponent == 31 ? INFINITY
                          : exponent       ? std::ldexp(1024.0f + fraction, exponent - 25)
                                           : std::ldexp(float(fraction), -24);
    return h & 0x8000 ? -magnitude : magnitude;
}
inline float from_bf16(uint16_t h) { return qrs_bits<float>(uint32_t(h) << 16); }

// The f16 next to x, ties to even: rint in units of the last place, which std::ldexp makes 1.
inline uint16_t to_f16(float x) {
    if (x != x) return 0x7fff;
    const uint16_t sign = std::signbit(x) ? 0x8000 : 0;
    const double magnitude = std::fabs(double(x));
    if (magnitude == 0) return sign;
    if (magnitude >= 65520) return sign | 0x7c00;
    const int exponent = std::max(std::ilogb(magnitude), -14);
    const int units = int(std::rint(std::ldexp(magnitude, 10 - exponent)));
    return sign | uint16_t(units + ((exponent + 14) << 10));
}
inline uint16_t to_bf16(float x) {
    if (x != x) return 0x7fff;
    const uint32_t bits = qrs_bits<uint32_t>(x);
    return uint16_t((uint64_t(bits) + 0x7fff + (bits >> 16 & 1)) >> 16);
}
inline uint32_t to_f16x2(float hi, float lo) { return uint32_t(to_f16(hi)) << 16 | to_f16(lo); }
inline uint32_t to_bf16x2(float hi, float lo) { return uint32_t(to_bf16(hi)) << 16 | to_bf16(lo); }

struct F16 {
    static float widen(uint16_t h) { return from_f16(h); }
    static constexpr uint16_t nan = 0x7fff, absolute = 0x7fff;
};
struct BF16 {
    static float widen(uint16_t h) { return from_bf16(h); }
    static constexpr uint16_t nan = 0x7fff, absolute = 0x7fff;
};
template <typename H, bool MAX, bool KEEP_NAN> inline uint16_t extreme(uint16_t a, uint16_t b) {
    const float x = H::widen(a), y = H::widen(b);
    if ((x != x && y != y) || (KEEP_NAN && (x != x || y != y))) return H::nan;
    if (x != x || y != y) return x != x ? b : a;
    const float result = MAX ? qrs_max(x, y) : qrs_min(x, y);
    return qrs_bits<uint32_t>(result) == qrs_bits<uint32_t>(x) ? a : b;
}
template <typename H, bool MAX, bool KEEP_NAN> inline uint32_t extreme2(uint32_t a, uint32_t b) {
    const uint16_t hi = extreme<H, MAX, KEEP_NAN>(uint16_t(a >> 16), uint16_t(b >> 16));
    return uint32_t(hi) << 16 | extreme<H, MAX, KEEP_NAN>(uint16_t(a), uint16_t(b));
}
inline uint16_t abs_half(uint16_t a) { return a & 0x7fff; }
inline uint32_t abs_half2(uint32_t a) { return a & 0x7fff7fffu; }
inline uint16_t neg_half(uint16_t a) { return a ^ 0x8000; }
inline uint32_t neg_half2(uint32_t a) { return a ^ 0x80008000u; }

// ---- Warps and blocks ------------------------------------------------------------------------------

// The last operand of shfl: a clamp in bits 0-4, the segments in bits 8-12. What CUDA C++ can say is
// a width, a power of two; `inside`: whether the source is in the segment.
inline uint32_t shfl(char kind, uint32_t value, uint32_t other, uint32_t c, uint32_t mask, bool* inside,
                     int line) {
    const uint32_t width = 32 - (c >> 8 & 31);
    if ((c & 31) != (kind == 'u' ? 0u : 31u)) fail("shfl.sync: an unusual clamp");
    cuda_cpu::source(kind, cuda_cpu::lane_id(), other & 31, width, inside);
    return uint32_t(cuda_cpu::shuffle({"shfl.sync", "ptx", line, mask}, kind, value, other & 31, width));
}

// Ask for the shim's own functions with the line of the PTX as the place.
inline void bar(int line) { __syncthreads("ptx", line); }
inline void bar_warp(uint32_t mask, int line) { __syncwarp(mask, "ptx", line); }
inline uint32_t ballot(bool p, uint32_t mask, int line) { return __ballot_sync(mask, p, "ptx", line); }
inline bool any(bool p, uint32_t mask, int line) { return __any_sync(mask, p, "ptx", line); }
inline bool all(bool p, uint32_t mask, int line) { return __all_sync(mask, p, "ptx", line); }
inline bool bar_or(bool p, int line) { return __syncthreads_or(p, "ptx", line); }
inline bool bar_and(bool p, int line) { return !__syncthreads_or(!p, "ptx", line); }

}  // namespace ptx
