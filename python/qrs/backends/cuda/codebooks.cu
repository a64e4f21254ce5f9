// Codes of the nearest levels of a table, with and without scales, and levels of codes. Kernels
// that take any array go through it octet by octet, and value by value where an octet is short,
// spans groups or is not aligned; those for whole groups at aligned addresses and one table,
// quantize_codebook_packed and dequantize_codebook_packed, touch memory once. Which one runs, the
// host decides.

// Of several tables there is one for each row, or for each group.
DEVICE i64 book_of(const Place& place, bool by_row) { return by_row ? place.row : place.group; }

// Eight codes of `bits` bits, lowest first. Four and eight bits are common, and have constant
// shifts.
DEVICE u64 pack_octet(const u32* code, int bits) {
    u32 low = 0, high = 0;
    u64 packed = 0;
    if (bits == 4) {
#pragma unroll
        for (int k = 0; k < 8; k++) low |= code[k] << 4 * k;
        return low;
    }
    if (bits == 8) {
#pragma unroll
        for (int k = 0; k < 4; k++) low |= code[k] << 8 * k, high |= code[4 + k] << 8 * k;
        return u64(high) << 32 | low;
    }
#pragma unroll
    for (int k = 0; k < 8; k++) packed |= u64(code[k]) << bits * k;
    return packed;
}

DEVICE void unpack_octet(u64 packed, int bits, u32* code) {
    const u32 low = u32(packed), high = u32(packed >> 32), mask = (1u << bits) - 1;
#pragma unroll
    for (int k = 0; k < 8; k++) {
        if (bits == 4) code[k] = low >> 4 * k & 0xf;
        if (bits == 8) code[k] = (k < 4 ? low : high) >> 8 * (k % 4) & 0xff;
        if (bits != 4 && bits != 8) code[k] = u32(packed >> bits * k) & mask;
    }
}

// To and from an address that BITS, 4 or 8, divides.
template <int BITS>
DEVICE void store_octet(u8* p, u64 word) {
    if (BITS == 4) __stcs(reinterpret_cast<u32*>(p), u32(word));
    if (BITS == 8) __stcs(reinterpret_cast<uint2*>(p), make_uint2(u32(word), u32(word >> 32)));
}
template <int BITS>
DEVICE u64 load_octet(const u8* p) {
    if (BITS == 4) return __ldcs(reinterpret_cast<const u32*>(p));
    const uint2 v = __ldcs(reinterpret_cast<const uint2*>(p));
    return u64(v.y) << 32 | v.x;
}

// For all threads of a block, which meet before they read. A code that comes from elsewhere and is
// beyond the table means the last level.
DEVICE void share_levels(float* memory, const float* book, int levels) {
    for (int i = threadIdx.x; i < kMostLevels; i += blockDim.x)
        memory[i] = book[min(i, levels - 1)];
}

// -0 is the offset that changes no number.
DEVICE float decoded(float level, float scale, float offset) {
    return __fadd_rn(__fmul_rn(level, scale), offset);
}

// ---- Any array ----------------------------------------------------------------------------------

// Codes that are not packed are codes of 8 bits. LEVELS is that of Thresholds; `count` is how many
// of those a book has, and `codes` are for the ranks where they are `mapped`.
// values per thread and turn: 8
template <class T, int LEVELS>
__global__ void quantize_codebook(const typename T::Bits* x, i64 rows, i64 cols, i64 group_size,
                                  const float* scale, i32 scaled, const float* thresholds,
                                  i32 count, i32 by_row, const u8* codes, i32 mapped, i32 bits,
                                  u8* out, u64* faults) {
    const Shape shape(rows, cols, group_size);
    const i64 row_bytes = (cols * bits + 7) / 8;
    __shared__ u8 code_of[kMostLevels];
    __shared__ float memory[LEVELS ? LEVELS : 1];
    Thresholds<LEVELS> limits{thresholds, count};
    if (LEVELS) limits = Thresholds<LEVELS>::shared(memory, thresholds, count);
    if (mapped) {
        for (int i = threadIdx.x; i <= count; i += blockDim.x) code_of[i] = codes[i];
    }
    __syncthreads();
    bool finite = true;
    for (i64 unit = first_unit(); unit < shape.units(); unit += stride()) {
        Place place(unit, shape);
        const typename T::Bits* values = x + place.index(shape);
        u64 packed = 0;
        if (place.is_whole() && is_aligned(values, 16)) {
            const float inverse = scaled ? reciprocal(scale[place.group]) : 1.0f;
            if (!LEVELS) limits.limit = thresholds + book_of(place, by_row) * count;
            const Octet<T> octet = Octet<T>::load(values);
            float v[8];
            u32 code[8];
#pragma unroll
            for (int k = 0; k < 8; k++) {
                finite = finite && is_finite(octet[k]);
                v[k] = __fmul_rn(octet[k], inverse);
            }
            limits.rank(v, code);
            if (mapped) {
#pragma unroll
                for (int k = 0; k < 8; k++) code[k] = code_of[code[k]];
            }
            packed = pack_octet(code, bits);
        } else {
#pragma unroll 1
            for (int k = 0; k < place.count; k++, place.next(shape)) {
                const float inverse = scaled ? reciprocal(scale[place.group]) : 1.0f;
                if (!LEVELS) limits.limit = thresholds + book_of(place, by_row) * count;
                const float value = T::widen(values[k]), v[1] = {__fmul_rn(value, inverse)};
                finite = finite && is_finite(value);
                u32 code[1];
                limits.rank(v, code);
                packed |= u64(mapped ? code_of[code[0]] : code[0]) << bits * k;
            }
        }
        store_bytes(out + place.row * row_bytes + place.col / 8 * bits, packed,
                    (place.count * bits + 7) / 8);
    }
    if (!finite) report(faults, kNonfinite);
}

// With ONE the table is one for all.
// values per thread and turn: 8
template <class T, bool ONE>
__global__ void dequantize_codebook(const u8* packed, i64 rows, i64 cols, i64 group_size, i32 bits,
                                    const float* books, i32 levels, i32 by_row, const float* scale,
                                    i32 scaled, const float* offset, i32 shifted,
                                    typename T::Bits* out) {
    const Shape shape(rows, cols, group_size);
    const i64 row_bytes = (cols * bits + 7) / 8;
    const float added = shifted ? *offset : -0.0f;
    __shared__ float memory[ONE ? kMostLevels : 1];
    if (ONE) share_levels(memory, books, levels);
    __syncthreads();
    const auto level_of = [&](const Place& place, u32 code) {
        if (ONE) return memory[code];
        return books[book_of(place, by_row) * levels + min(code, u32(levels - 1))];
    };
    for (i64 unit = first_unit(); unit < shape.units(); unit += stride()) {
        Place place(unit, shape);
        typename T::Bits* values = out + place.index(shape);
        const u64 codes = load_bytes(packed + place.row * row_bytes + place.col / 8 * bits,
                                     (place.count * bits + 7) / 8);
        if (place.is_whole() && is_aligned(values, 16)) {
            const float step = scaled ? scale[place.group] : 1.0f;
            u32 code[8];
            float x[8];
            unpack_octet(codes, bits, code);
#pragma unroll
            for (int k = 0; k < 8; k++) x[k] = decoded(level_of(place, code[k]), step, added);
            Octet<T>::narrow(x).store(values);
        } else {
#pragma unroll 1
            for (int k = 0; k < place.count; k++, place.next(shape)) {
                const float step = scaled ? scale[place.group] : 1.0f;
                const u32 code = u32(codes >> bits * k) & ((1u << bits) - 1);
                values[k] = T::narrow(decoded(level_of(place, code), step, added));
            }
        }
    }
}

// ---- Whole groups, one table for all ------------------------------------------------------------

constexpr int kOctets = 4;

// Ranges, scales and codes in one pass over memory, for groups of whole octets at aligned
// addresses. A team of `lanes` threads, a power of two up to 32, keeps one group in registers,
// kOctets a thread, those of one index side by side. Codes of 16 LEVELS have 4 bits, those of 256
// have 8.
// values per thread and turn: 32
template <class T, int LEVELS>
__global__ void __launch_bounds__(256)
    quantize_codebook_packed(const typename T::Bits* x, i64 groups, i32 octets, i32 lanes,
                             float low, float high, i32 scale_dtype, const float* thresholds,
                             i32 count, const u8* codes, i32 mapped, u8* packed, float* scale,
                             u64* faults) {
    constexpr int bits = LEVELS == 16 ? 4 : 8;
    __shared__ float memory[LEVELS];
    __shared__ u8 code_of[LEVELS];
    const auto limits = Thresholds<LEVELS>::shared(memory, thresholds, count);
    for (int i = threadIdx.x; i <= count; i += blockDim.x) code_of[i] = mapped ? codes[i] : u8(i);
    __syncthreads();
    const int teams = blockDim.x / lanes, team = threadIdx.x / lanes, lane = threadIdx.x % lanes;
    bool finite = true;
    // All threads make the same number of turns: they meet in shuffles.
    for (i64 first = i64(blockIdx.x) * teams; first < groups; first += i64(gridDim.x) * teams) {
        const i64 group = first + team;
        const bool here = group < groups;
        Octet<T> octet[kOctets];
        Extremes<T, false> extremes;
#pragma unroll
        for (int i = 0; i < kOctets; i++) {
            const int k = lane + i * lanes;
            octet[i] = here && k < octets ? Octet<T>::load(x + (group * octets + k) * 8)
                                          : Octet<T>::zeros();
        }
#pragma unroll
        for (int i = 0; i < kOctets; i++) extremes.add(octet[i]);
        extremes.reduce(lanes);
        const Range range = extremes.range();
        finite = finite && range.finite();
        const float chosen = scale_reaching(range.lo, range.hi, low, high, scale_dtype);
        const float inverse = reciprocal(chosen);
        if (lane == 0 && here) {
            scale[group] = chosen;
            report(faults, group, fault_of(chosen, low, high));
        }
#pragma unroll
        for (int i = 0; i < kOctets; i++) {
            float v[8];
            u32 code[8];
#pragma unroll
            for (int k = 0; k < 8; k++) v[k] = __fmul_rn(octet[i][k], inverse);
            limits.rank(v, code);
            if (mapped) {
#pragma unroll
                for (int k = 0; k < 8; k++) code[k] = code_of[code[k]];
            }
            const int k = lane + i * lanes;
            if (!here || k >= octets) continue;
            store_octet<bits>(packed + (group * octets + k) * bits, pack_octet(code, bits));
        }
    }
    if (!finite) report(faults, kNonfinite);
}

// Groups of whole octets, fewer than 2^31 of those; `magic` and `shift` divide by the octets of a
// group. Two octets a turn, of which lanes read and write theirs side by side.
// values per thread and turn: 16
template <class T, int BITS>
__global__ void dequantize_codebook_packed(const u8* packed, u32 octets, u32 magic, u32 shift,
                                           const float* book, i32 levels, const float* scale,
                                           i32 scaled, const float* offset, i32 shifted,
                                           typename T::Bits* out) {
    constexpr int kPair = 2;
    const FastDivisor group_octets{magic, shift};
    const float added = shifted ? *offset : -0.0f;
    __shared__ float level[kMostLevels];
    share_levels(level, book, levels);
    __syncthreads();
    const u32 step = u32(stride());
    for (u32 first = u32(first_unit()); first < octets; first += kPair * step) {
        u64 codes[kPair] = {};
        float group_scale[kPair];
#pragma unroll
        for (int i = 0; i < kPair; i++) {
            const u32 octet = first + i * step;
            group_scale[i] = 1.0f;
            if (octet >= octets) break;
            codes[i] = load_octet<BITS>(packed + i64(octet) * BITS);
            if (scaled) group_scale[i] = scale[group_octets.divide(octet)];
        }
#pragma unroll
        for (int i = 0; i < kPair; i++) {
            const u32 octet = first + i * step;
            u32 code[8];
            float x[8];
            unpack_octet(codes[i], BITS, code);
#pragma unroll
            for (int k = 0; k < 8; k++) x[k] = decoded(level[code[k]], group_scale[i], added);
            if (i == 0 || octet < octets) Octet<T>::narrow(x).store(out + i64(octet) * 8);
        }
    }
}
