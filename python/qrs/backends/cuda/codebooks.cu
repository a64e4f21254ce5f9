// Codes of the nearest levels of a table, with and without scales, and levels of codes. Rows go
// octet by octet, and value by value where an octet is short, spans groups or is not aligned. A
// table is one for all, or one for each row or group; `by_row` says which, of several.

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

// With ONE the table is one for all. -0 is what changes no number when it is added.
// values per thread and turn: 8
template <class T, bool ONE>
__global__ void dequantize_codebook(const u8* packed, i64 rows, i64 cols, i64 group_size, i32 bits,
                                    const float* books, i32 levels, i32 by_row, const float* scale,
                                    i32 scaled, const float* offset, i32 shifted,
                                    typename T::Bits* out) {
    const Shape shape(rows, cols, group_size);
    const i64 row_bytes = (cols * bits + 7) / 8;
    const float shift = shifted ? *offset : -0.0f;
    const u32 last = levels - 1;  // no code that comes from elsewhere may read beyond the table
    __shared__ float memory[ONE ? kMostLevels : 1];
    if (ONE) {
        for (u32 i = threadIdx.x; i < kMostLevels; i += blockDim.x) memory[i] = books[min(i, last)];
    }
    __syncthreads();
    const auto level_of = [&](const Place& place, u32 code) {
        if (ONE) return memory[code];
        return books[book_of(place, by_row) * levels + min(code, last)];
    };
    const auto decode = [&](float level, float step) {
        return __fadd_rn(__fmul_rn(level, step), shift);
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
            for (int k = 0; k < 8; k++) x[k] = decode(level_of(place, code[k]), step);
            Octet<T>::narrow(x).store(values);
        } else {
#pragma unroll 1
            for (int k = 0; k < place.count; k++, place.next(shape)) {
                const float step = scaled ? scale[place.group] : 1.0f;
                const u32 code = u32(codes >> bits * k) & ((1u << bits) - 1);
                values[k] = T::narrow(decode(level_of(place, code), step));
            }
        }
    }
}
