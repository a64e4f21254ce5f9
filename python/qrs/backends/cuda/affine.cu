// Linear quantization: codes of values, and values of codes. Kernels that take any array go through it
// octet by octet, and value by value where an octet is short, spans groups or is not aligned; those
// for whole groups at aligned addresses, quantize_affine_packed and dequantize_affine_packed, touch
// memory once. Which one runs, the host decides. There are no axes here.

// Values of one group to codes. Clamping x to [low, high] * scale is clamping the quotient: a bound
// of x divided by the scale again rounds to the integer that it came from, and what is within the
// bounds has no larger quotient.
template <bool MOVED>
struct Encoder {
    Divisor<MOVED> divisor;
    float low, high;

    DEVICE Encoder(float scale, int zero_point, int qmin, int qmax) : divisor(scale) {
        const float a = __fmul_rn(float(qmin - zero_point), divisor.scale);
        const float b = __fmul_rn(float(qmax - zero_point), divisor.scale);
        low = fminf(a, b), high = fmaxf(a, b);  // scales may be negative
    }
    DEVICE float quotient(float x) const {
        return divisor.divide(fminf(fmaxf(divisor.moved(x), low), high));
    }
    // q - zero_point + kRounderBits
    DEVICE u32 raw(float x) const { return bits_of(__fadd_rn(quotient(x), kRounder)); }
};

// From the raw codes of an octet to bytes. A code plus `offset` is never negative, and fits `bits`;
// flipping the sign bit takes the offset away again, as two's complement.
struct Packer {
    int bits;
    u32 offset, correction;

    DEVICE Packer(int bits, bool is_signed, int zero_point) : bits(bits) {
        offset = is_signed ? 1u << (bits - 1) : 0;
        correction = u32(zero_point) + offset - kRounderBits;
    }
    DEVICE u64 place(u32 raw, int k) const {
        return u64((raw + correction) ^ offset) << bits * k;
    }
    // All eight. There are no carries between codes, so that 4 and 8 bits are corrected at once.
    DEVICE u64 pack(const u32* raw) const {
        if (bits == 4) return word<4>(raw);
        if (bits == 8) return u64(word<8>(raw + 4)) << 32 | word<8>(raw);
        u64 packed = 0;
#pragma unroll
        for (int k = 0; k < 8; k++) packed |= place(raw[k], k);
        return packed;
    }
    template <int BITS>
    DEVICE u32 word(const u32* raw) const {
        constexpr u32 ones = BITS == 4 ? 0x11111111u : 0x01010101u;
        u32 sum = correction * ones;
#pragma unroll
        for (int k = 0; k < 32 / BITS; k++) sum += raw[k] << BITS * k;
        return sum ^ (offset * ones);
    }
};

// Codes of one group to values.
struct Decoder {
    float scale, bias;
    u32 offset;

    DEVICE Decoder(float scale, int zero_point, bool is_signed, int bits) : scale(scale) {
        offset = is_signed ? 1u << (bits - 1) : 0;
        bias = float(0x800000 + zero_point + int(offset));
    }
    // `code` has no bits beyond its own. Below 2^23 an integer is the fraction of 2^23 + integer.
    DEVICE float decode(u32 code) const { return decode_flipped(code ^ offset); }
    DEVICE float decode_flipped(u32 code) const {
        return __fmul_rn(__fsub_rn(float_of(0x4b000000u | code), bias), scale);
    }
    // BITS is 4 or 8.
    template <int BITS>
    DEVICE float decode_word(u32 word, int k) const {
        constexpr u32 ones = BITS == 4 ? 0x11111111u : 0x01010101u;
        return decode_flipped((word ^ offset * ones) >> BITS * k & ((1u << BITS) - 1));
    }
};

// ---- Any array, scales known ------------------------------------------------------------------------

DEVICE int zero_point_of(const i32* zero_point, i64 group, bool symmetric) {
    return symmetric ? 0 : zero_point[group];
}

// Codes that are not packed are codes of 8 bits.
// values per thread and turn: 8
template <class T>
__global__ void quantize_affine(const typename T::Bits* x, i64 rows, i64 cols, i64 group_size,
                                const float* scale, const i32* zero_point, i32 symmetric, i32 bits,
                                i32 qmin, i32 qmax, u8* out, u64* faults) {
    const Shape shape(rows, cols, group_size);
    const i64 row_bytes = (cols * bits + 7) / 8;
    bool finite = true;
    for (i64 unit = first_unit(); unit < shape.units(); unit += stride()) {
        Place place(unit, shape);
        const typename T::Bits* values = x + place.index(shape);
        u64 packed = 0;
        if (place.is_whole() && is_aligned(values, 16)) {
            const int z = zero_point_of(zero_point, place.group, symmetric);
            const Encoder<true> encoder(scale[place.group], z, qmin, qmax);
            const Octet<T> octet = Octet<T>::load(values);
            u32 raw[8];
#pragma unroll
            for (int k = 0; k < 8; k++) {
                finite = finite && is_finite(octet[k]);
                raw[k] = encoder.raw(octet[k]);
            }
            packed = Packer(bits, qmin < 0, z).pack(raw);
        } else {
#pragma unroll 1
            for (int k = 0; k < place.count; k++, place.next(shape)) {
                const int z = zero_point_of(zero_point, place.group, symmetric);
                const float value = T::widen(values[k]);
                finite = finite && is_finite(value);
                const u32 raw = Encoder<true>(scale[place.group], z, qmin, qmax).raw(value);
                packed |= Packer(bits, qmin < 0, z).place(raw, k);
            }
        }
        store_bytes(out + place.row * row_bytes + place.col / 8 * bits, packed,
                    (place.count * bits + 7) / 8);
    }
    if (!finite) report(faults, kNonfinite);
}

// values per thread and turn: 8
template <class T>
__global__ void dequantize_affine(const u8* packed, i64 rows, i64 cols, i64 group_size, i32 bits,
                                  i32 is_signed, const float* scale, const i32* zero_point,
                                  i32 symmetric, typename T::Bits* out) {
    const Shape shape(rows, cols, group_size);
    const u32 mask = (1u << bits) - 1;
    const i64 row_bytes = (cols * bits + 7) / 8;
    for (i64 unit = first_unit(); unit < shape.units(); unit += stride()) {
        Place place(unit, shape);
        typename T::Bits* values = out + place.index(shape);
        const u64 codes = load_bytes(packed + place.row * row_bytes + place.col / 8 * bits,
                                     (place.count * bits + 7) / 8);
        if (place.is_whole() && is_aligned(values, 16)) {
            const int z = zero_point_of(zero_point, place.group, symmetric);
            const Decoder decoder(scale[place.group], z, is_signed, bits);
            float x[8];
#pragma unroll
            for (int k = 0; k < 8; k++) x[k] = decoder.decode(u32(codes >> bits * k) & mask);
            Octet<T>::narrow(x).store(values);
        } else {
#pragma unroll 1
            for (int k = 0; k < place.count; k++, place.next(shape)) {
                const int z = zero_point_of(zero_point, place.group, symmetric);
                const u32 code = u32(codes >> bits * k) & mask;
                values[k] = T::narrow(Decoder(scale[place.group], z, is_signed, bits).decode(code));
            }
        }
    }
}

// values per thread and turn: 8
template <class T>
__global__ void fake_quantize_affine(const typename T::Bits* x, i64 rows, i64 cols, i64 group_size,
                                     const float* scale, const i32* zero_point, i32 symmetric,
                                     i32 qmin, i32 qmax, typename T::Bits* out, u64* faults) {
    const Shape shape(rows, cols, group_size);
    bool finite = true;
    for (i64 unit = first_unit(); unit < shape.units(); unit += stride()) {
        Place place(unit, shape);
        const typename T::Bits* values = x + place.index(shape);
        typename T::Bits* results = out + place.index(shape);
        if (place.is_whole() && is_aligned(values, 16) && is_aligned(results, 16)) {
            const int z = zero_point_of(zero_point, place.group, symmetric);
            const float step = scale[place.group];
            const Encoder<true> encoder(step, z, qmin, qmax);
            const Octet<T> octet = Octet<T>::load(values);
            float x_hat[8];
#pragma unroll
            for (int k = 0; k < 8; k++) {
                finite = finite && is_finite(octet[k]);
                x_hat[k] = __fmul_rn(rounded(encoder.quotient(octet[k])), step);
            }
            Octet<T>::narrow(x_hat).store(results);
        } else {
#pragma unroll 1
            for (int k = 0; k < place.count; k++, place.next(shape)) {
                const int z = zero_point_of(zero_point, place.group, symmetric);
                const float value = T::widen(values[k]), step = scale[place.group];
                finite = finite && is_finite(value);
                const float q = rounded(Encoder<true>(step, z, qmin, qmax).quotient(value));
                results[k] = T::narrow(__fmul_rn(q, step));
            }
        }
    }
    if (!finite) report(faults, kNonfinite);
}

// ---- Whole groups, scales chosen here ---------------------------------------------------------------

// Over all threads of a block whose warps have reduced their own; `turns` are the same for all.
template <bool ABSMAX>
DEVICE Range reduce_block(Range range) {
    __shared__ float lows[32], highs[32];
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, warps = blockDim.x / 32;
    if (lane == 0) lows[warp] = range.lo, highs[warp] = range.hi;
    __syncthreads();
    range.lo = lane < warps ? lows[lane] : 0.0f;
    range.hi = lane < warps ? highs[lane] : 0.0f;
    range.reduce<ABSMAX>(32);
    __syncthreads();  // the next turn writes there again
    return range;
}

constexpr int kOctets = 4;

// A team of `lanes` threads keeps one group in registers, kOctets a thread, those of one index side by
// side. `lanes` is a power of two up to 32, or the whole block. BITS is 4 or 8.
// values per thread and turn: 32
template <class T, int BITS, bool ABSMAX>
__global__ void __launch_bounds__(512)
quantize_affine_packed(const typename T::Bits* x, i64 groups, i32 octets, i32 lanes, i32 qmin, i32 qmax,
                       i32 symmetric, i32 scale_dtype, u8* packed, float* scale, i32* zero_point,
                       u64* faults) {
    const int teams = blockDim.x / lanes, team = threadIdx.x / lanes, lane = threadIdx.x % lanes;
    // All threads make the same number of turns: they meet in shuffles and at barriers.
    for (i64 first = i64(blockIdx.x) * teams; first < groups; first += i64(gridDim.x) * teams) {
        const i64 group = first + team, start = group * octets + lane;
        Octet<T> octet[kOctets];
        Extremes<T, ABSMAX> extremes;
#pragma unroll
        for (int i = 0; i < kOctets; i++) {
            const bool mine = group < groups && lane + i * lanes < octets;
            octet[i] = mine ? Octet<T>::load(x + (start + i * lanes) * 8) : Octet<T>::zeros();
        }
#pragma unroll
        for (int i = 0; i < kOctets; i++) extremes.add(octet[i]);
        Range range;
        range.add(extremes);
        range.reduce<ABSMAX>(lanes);
        if (lanes > 32) range = reduce_block<ABSMAX>(range);

        const Chosen chosen = choose_params<T, ABSMAX>(range.without_negative_zero(), qmin, qmax,
                                                       symmetric, scale_dtype);
        if (lane == 0 && group < groups) {
            if (!range.finite()) report(faults, kNonfinite);
            report(faults, group, chosen.fault);
            scale[group] = chosen.scale;
            if (!ABSMAX && !symmetric) zero_point[group] = chosen.zero_point;
        }
        const Encoder<T::extreme_exponents> encoder(chosen.scale, chosen.zero_point, qmin, qmax);
        const Packer packer(BITS, qmin < 0, chosen.zero_point);
#pragma unroll
        for (int i = 0; i < kOctets; i++) {
            u32 raw[8];
#pragma unroll
            for (int k = 0; k < 8; k++) raw[k] = encoder.raw(octet[i][k]);
            u8* p = packed + (start + i * lanes) * BITS;
            if (group >= groups || lane + i * lanes >= octets) continue;
            const u32 word = packer.word<BITS>(raw);
            if (BITS == 4) __stcs(reinterpret_cast<u32*>(p), word);
            if (BITS == 8) __stcs(reinterpret_cast<uint2*>(p), make_uint2(word, packer.word<8>(raw + 4)));
        }
    }
}

// ---- Whole groups to values -------------------------------------------------------------------------

// Groups of whole octets, 2^log2_octets of them, or `octets` where log2_octets is -1. Two octets a
// turn, half a range apart, so that lanes read and write side by side.
// values per thread and turn: 16
template <class T, int BITS>
__global__ void dequantize_affine_packed(const u8* packed, i64 units, i64 octets, i32 log2_octets,
                                         i32 is_signed, const float* scale, const i32* zero_point,
                                         i32 symmetric, typename T::Bits* out) {
    for (i64 first = first_unit(); first < units; first += 2 * stride()) {
#pragma unroll
        for (int i = 0; i < 2; i++) {
            const i64 unit = first + i * stride();
            if (unit >= units) break;
            u32 words[2] = {};
            if (BITS == 8) {
                const uint2 v = __ldcs(reinterpret_cast<const uint2*>(packed) + unit);
                words[0] = v.x, words[1] = v.y;
            } else {
                words[0] = __ldcs(reinterpret_cast<const u32*>(packed) + unit);
            }
            const i64 group = log2_octets < 0 ? quotient(unit, octets) : unit >> log2_octets;
            const int z = zero_point_of(zero_point, group, symmetric);
            const Decoder decoder(scale[group], z, is_signed, BITS);
            constexpr int per_word = 32 / BITS;
            float x[8];
#pragma unroll
            for (int k = 0; k < 8; k++) {
                x[k] = decoder.decode_word<BITS>(words[k / per_word], k % per_word);
            }
            Octet<T>::narrow(x).store(out + unit * 8);
        }
    }
}
