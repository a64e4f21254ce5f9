// Linear quantization: codes of values, and values of codes. Kernels that take any array go through
// it octet by octet, and value by value where an octet is short, spans groups or is not aligned;
// those for whole groups at aligned addresses, quantize_affine_packed and dequantize_affine_packed,
// touch memory once. Which one runs, the host decides. There are no axes here.

// Values of one group to codes. Clamping x to [low, high] * scale is clamping the quotient: a bound
// of x divided by the scale again rounds to the integer that it came from, and what is within the
// bounds has no larger quotient.
template <bool MOVED>
struct Encoder {
    Divisor<MOVED> divisor;
    float low, high;

    DEVICE Encoder(float scale, int zero_point, int qmin, int qmax) : divisor(scale) {
        low = __fmul_rn(float(qmin - zero_point), divisor.scale);
        high = __fmul_rn(float(qmax - zero_point), divisor.scale);
    }
    // For scales that come from elsewhere: they may be negative.
    static DEVICE Encoder of_any_sign(float scale, int zero_point, int qmin, int qmax) {
        Encoder encoder(scale, zero_point, qmin, qmax);
        const float a = encoder.low, b = encoder.high;
        encoder.low = fminf(a, b), encoder.high = fmaxf(a, b);
        return encoder;
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
    DEVICE u64 place(u32 raw, int k) const { return u64((raw + correction) ^ offset) << bits * k; }
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
    u32 offset, zero;

    // A code plus `offset`, which flipping the sign bit adds, is an unsigned integer. Below 2^23
    // such an integer is the fraction of 2^23 + integer.
    DEVICE Decoder(float scale, int zero_point, bool is_signed, int bits) : scale(scale) {
        offset = is_signed ? 1u << (bits - 1) : 0;
        zero = 0x4b000000u + offset;
        bias = float_of(zero + u32(zero_point));
    }
    DEVICE float decode_fraction(u32 bits) const {
        return __fmul_rn(__fsub_rn(float_of(bits), bias), scale);
    }
    // `code` has no bits beyond its own.
    DEVICE float decode(u32 code) const { return decode_fraction(0x4b000000u | (code ^ offset)); }
    // All of a word; BITS is 4 or 8. Four bits are spread to bytes, and bytes take the place of the
    // lowest one of `zero`, the code of 0, whose upper ones are those of 2^23.
    template <int BITS>
    DEVICE void decode_word(u32 word, float* x) const {
        word ^= offset * (BITS == 4 ? 0x11111111u : 0x01010101u);
        const u32 even = BITS == 4 ? word & 0x0f0f0f0fu : word, odd = word >> 4 & 0x0f0f0f0fu;
#pragma unroll
        for (int k = 0; k < 32 / BITS; k++) {
            const u32 bytes = BITS == 4 && k % 2 == 1 ? odd : even;
            const int byte = BITS == 4 ? k / 2 : k;
            x[k] = decode_fraction(__byte_perm(bytes, zero, 0x7650 | byte));
        }
    }
};

// ---- Any array, scales known --------------------------------------------------------------------

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
            const auto encoder = Encoder<true>::of_any_sign(scale[place.group], z, qmin, qmax);
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
                const u32 raw =
                    Encoder<true>::of_any_sign(scale[place.group], z, qmin, qmax).raw(value);
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
            const auto encoder = Encoder<true>::of_any_sign(step, z, qmin, qmax);
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
                const float q =
                    rounded(Encoder<true>::of_any_sign(step, z, qmin, qmax).quotient(value));
                results[k] = T::narrow(__fmul_rn(q, step));
            }
        }
    }
    if (!finite) report(faults, kNonfinite);
}

// ---- Whole groups, scales chosen here -----------------------------------------------------------

// The range of a block whose warps have reduced their own. Neither end is negative once lo is
// negated, so that integer maxima will do. Four turns in a row have slots of their own; one is
// cleared two turns after it was read, and two before it is written to again: one barrier a turn.
struct BlockRange {
    u32 slot[4][2];

    DEVICE void clear() {
        if (threadIdx.x < 8) slot[threadIdx.x / 2][threadIdx.x % 2] = 0;
        __syncthreads();
    }
    template <bool ABSMAX>
    DEVICE Range reduce(Range range, u32 turn) {
        u32* here = slot[turn % 4];
        if (threadIdx.x % 32 == 0) {
            atomicMax(here, bits_of(range.hi) & 0x7fffffffu);
            if (!ABSMAX) atomicMax(here + 1, bits_of(range.lo) & 0x7fffffffu);
        }
        __syncthreads();
        if (threadIdx.x < 2) slot[(turn + 2) % 4][threadIdx.x] = 0;
        range.hi = float_of(here[0]);
        range.lo = -(ABSMAX ? range.hi : float_of(here[1]));
        return range;
    }
};

constexpr int kOctets = 4;

// A team of `lanes` threads keeps one group in registers, kOctets a thread, those of one index side
// by side. `lanes` is a power of two up to 32, or the whole block. BITS is 4 or 8.
// values per thread and turn: 32
template <class T, int BITS, bool ABSMAX>
__global__ void __launch_bounds__(512)
    quantize_affine_packed(const typename T::Bits* x, i64 groups, i32 octets, i32 lanes, i32 qmin,
                           i32 qmax, i32 symmetric, i32 scale_dtype, u8* packed, float* scale,
                           i32* zero_point, u64* faults) {
    const u32 teams = blockDim.x / lanes, team = threadIdx.x / lanes, lane = threadIdx.x % lanes;
    const i64 apart = 8 * i64(lanes), turn = i64(gridDim.x) * teams;
    i64 group = i64(blockIdx.x) * teams + team;
    x += (group * octets + lane) * 8;
    packed += (group * octets + lane) * BITS;
    float worst = 0.0f;  // NaN or infinity once there was one
    __shared__ BlockRange block;
    if (lanes > 32) block.clear();
    // All threads make the same number of turns: they meet in shuffles and at barriers.
    for (i64 left = quotient(groups - i64(blockIdx.x) * teams + turn - 1, turn); left > 0; left--) {
        const bool here = group < groups;
        Octet<T> octet[kOctets];
        Extremes<T, ABSMAX> extremes;
#pragma unroll
        for (int i = 0; i < kOctets; i++) {
            const bool mine = here && int(lane) + i * lanes < octets;
            octet[i] = mine ? Octet<T>::load(x + i * apart) : Octet<T>::zeros();
        }
#pragma unroll
        for (int i = 0; i < kOctets; i++) extremes.add(octet[i]);
        extremes.reduce(lanes);
        Range range = extremes.range();
        if (lanes > 32) range = block.reduce<ABSMAX>(range, u32(left));
        worst = max_nan(worst, range.hi);
        if (!ABSMAX) worst = max_nan(worst, -range.lo);

        const Chosen chosen = choose_params<T, ABSMAX>(range, qmin, qmax, symmetric, scale_dtype);
        if (lane == 0 && here) {
            report(faults, group, chosen.fault);
            scale[group] = chosen.scale;
            if (!ABSMAX && !symmetric) zero_point[group] = chosen.zero_point;
        }
        const Encoder<T::extreme_exponents> encoder(chosen.scale, chosen.zero_point, qmin, qmax);
        const Packer packer(BITS, qmin < 0, chosen.zero_point);
        u32 word[kOctets][2];
#pragma unroll
        for (int i = 0; i < kOctets; i++) {
            u32 raw[8];
#pragma unroll
            for (int k = 0; k < 8; k++) raw[k] = encoder.raw(octet[i][k]);
            word[i][0] = packer.word<BITS>(raw);
            if (BITS == 8) word[i][1] = packer.word<8>(raw + 4);
        }
#pragma unroll
        for (int i = 0; i < kOctets; i++) {
            u8* p = packed + i * apart / 8 * BITS;
            if (!here || int(lane) + i * lanes >= octets) continue;
            if (BITS == 4) __stcs(reinterpret_cast<u32*>(p), word[i][0]);
            if (BITS == 8) __stcs(reinterpret_cast<uint2*>(p), make_uint2(word[i][0], word[i][1]));
        }
        group += turn;
        x += turn * octets * 8;
        packed += turn * octets * BITS;
    }
    if (!is_finite(worst)) report(faults, kNonfinite);
}

// ---- Whole groups to values ---------------------------------------------------------------------

// Groups of whole octets, fewer than 2^31 of those; `magic` and `shift` divide by the octets of a
// group. Two octets a turn, of which lanes read and write theirs side by side.
// values per thread and turn: 16
template <class T, int BITS, bool SYMMETRIC>
__global__ void dequantize_affine_packed(const u8* packed, u32 octets, u32 magic, u32 shift,
                                         i32 is_signed, const float* scale, const i32* zero_point,
                                         typename T::Bits* out) {
    constexpr int kPair = 2, per_word = 32 / BITS;
    const FastDivisor group_octets{magic, shift};
    const u32 step = u32(stride());
    for (u32 first = u32(first_unit()); first < octets; first += kPair * step) {
        u32 word[kPair][2] = {};
        float group_scale[kPair] = {};
        int z[kPair] = {};
#pragma unroll
        for (int i = 0; i < kPair; i++) {
            const u32 octet = first + i * step;
            if (i > 0 && octet >= octets) break;
            const u32 group = group_octets.divide(octet);
            const u8* codes = packed + i64(octet) * BITS;
            if (BITS == 4) word[i][0] = __ldcs(reinterpret_cast<const u32*>(codes));
            if (BITS == 8) {
                const uint2 v = __ldcs(reinterpret_cast<const uint2*>(codes));
                word[i][0] = v.x, word[i][1] = v.y;
            }
            group_scale[i] = scale[group];
            z[i] = zero_point_of(zero_point, group, SYMMETRIC);
        }
#pragma unroll
        for (int i = 0; i < kPair; i++) {
            const u32 octet = first + i * step;
            const Decoder decoder(group_scale[i], z[i], is_signed, BITS);
            float x[8];
#pragma unroll
            for (int k = 0; k < 8; k += per_word)
                decoder.decode_word<BITS>(word[i][k / per_word], x + k);
            if (i == 0 || octet < octets) Octet<T>::narrow(x).store(out + i64(octet) * 8);
        }
    }
}
