// Products of codes, and the way back from their sums. A thread has some rows and one output, so that
// a warp reads weights side by side and shares what it reads of rows. Sums of integers wrap.

constexpr int kRows = 4;

// Which rows and which output a thread has.
struct Tile {
    i64 row, col;
    int count;

    DEVICE Tile(i64 unit, i64 rows, i64 cols) {
        const i64 strip = quotient(unit, cols);
        row = strip * kRows, col = unit - strip * cols;
        count = int(rows - row < kRows ? rows - row : kRows);
    }
    static DEVICE i64 units(i64 rows, i64 cols) { return (rows + kRows - 1) / kRows * cols; }
};

template <bool SIGNED>
DEVICE i32 code_of(u8 byte) { return SIGNED ? i32(i8(byte)) : i32(byte); }

// ---- Int8 weights -------------------------------------------------------------------------------

// `columns` are the weights (k, n); `zeros` says how many zero points rows have: none, one, each.
// values per thread and turn: 4
template <bool SIGNED>
__global__ void matmul_int8(const u8* x, i64 m, i64 n, i64 k, const i8* columns,
                            const i32* zero_point, const i32* x_zero_point, i32 zeros,
                            const i32* bias, i32 has_bias, i32* out) {
    for (i64 unit = first_unit(); unit < Tile::units(m, n); unit += stride()) {
        const Tile tile(unit, m, n);
        u32 sums[kRows];
        i32 z[kRows];
#pragma unroll
        for (int r = 0; r < kRows; r++) {
            const i64 row = tile.row + (r < tile.count ? r : 0);
            sums[r] = has_bias ? u32(bias[tile.col]) : 0;
            z[r] = zeros == 0 ? 0 : x_zero_point[zeros == 1 ? 0 : row];
        }
        const i32 w_zero = zero_point[tile.col];
#pragma unroll 1
        for (i64 i = 0; i < k; i++) {
            const u32 w = u32(columns[i * n + tile.col]) - u32(w_zero);
#pragma unroll
            for (int r = 0; r < kRows; r++) {
                const i64 row = tile.row + (r < tile.count ? r : 0);
                sums[r] += (u32(code_of<SIGNED>(x[row * k + i])) - u32(z[r])) * w;
            }
        }
#pragma unroll
        for (int r = 0; r < kRows; r++) {
            if (r < tile.count) out[(tile.row + r) * n + tile.col] = i32(sums[r]);
        }
    }
}

// The shape of a convolution; pairs are (height, width).
struct Windows {
    i64 channels, height, width, kh, kw, sh, sw, top, left, dh, dw, groups, rows, cols;
};

// values per thread and turn: 1
template <bool SIGNED>
__global__ void conv_int8(const u8* x, i64 batch, i64 n, i64 k, const i8* codes,
                          const i32* zero_point, i64 channels, i64 height, i64 width, i64 kh,
                          i64 kw, i64 sh, i64 sw, i64 top, i64 left, i64 dh, i64 dw, i64 groups,
                          i64 rows, i64 cols, i32 x_zero_point, const i32* bias, i32 has_bias,
                          i32* out) {
    const Windows w = {channels, height, width, kh, kw, sh, sw, top, left, dh, dw, groups, rows, cols};
    const i64 positions = w.rows * w.cols, per_group = w.channels / w.groups;
    for (i64 unit = first_unit(); unit < batch * n * positions; unit += stride()) {
        const i64 plane = quotient(unit, positions), position = unit - plane * positions;
        const i64 image = quotient(plane, n), output = plane - image * n;
        const i64 oy = quotient(position, w.cols), ox = position - oy * w.cols;
        const i64 group = quotient(output, n / w.groups);
        const i8* weights = codes + output * k;
        u32 sum = has_bias ? u32(bias[output]) : 0;
#pragma unroll 1
        for (i64 c = 0; c < per_group; c++) {
            const i64 channel = image * w.channels + group * per_group + c;
#pragma unroll 1
            for (i64 i = 0; i < w.kh; i++) {
                const i64 y = oy * w.sh + i * w.dh - w.top;
#pragma unroll 1
                for (i64 j = 0; j < w.kw; j++) {
                    const i64 at = ox * w.sw + j * w.dw - w.left;
                    if (y < 0 || y >= w.height || at < 0 || at >= w.width) continue;
                    const u8 code = x[(channel * w.height + y) * w.width + at];
                    const u32 weight = u32(weights[(c * w.kh + i) * w.kw + j]);
                    sum += (u32(code_of<SIGNED>(code)) - u32(x_zero_point)) *
                           (weight - u32(zero_point[output]));
                }
            }
        }
        out[unit] = i32(sum);
    }
}

// ---- From sums ----------------------------------------------------------------------------------

// Of numbers that spread over rows and columns: steps of 0 where there is one for all.
template <class N>
DEVICE N spread(const N* values, i64 row_step, i64 col_step, i64 i, i64 j) {
    return values[i * row_step + j * col_step];
}

// values per thread and turn: 1
__global__ void dequantize_sums(const i32* sums, i64 rows, i64 cols, const float* scale,
                                i64 scale_row, i64 scale_col, const float* factor, i64 factor_row,
                                i64 factor_col, i32 has_factor, const float* bias, i64 bias_row,
                                i64 bias_col, i32 has_bias, i32 relu, float* out) {
    for (i64 unit = first_unit(); unit < rows * cols; unit += stride()) {
        const i64 i = quotient(unit, cols), j = unit - i * cols;
        float step = spread(scale, scale_row, scale_col, i, j);
        if (has_factor) step = __fmul_rn(step, spread(factor, factor_row, factor_col, i, j));
        float y = __fmul_rn(__int2float_rn(sums[unit]), step);
        if (has_bias) y = __fadd_rn(y, spread(bias, bias_row, bias_col, i, j));
        out[unit] = relu && !(y > 0) ? 0.0f : y;
    }
}

// values per thread and turn: 1
__global__ void requantize(const i32* sums, i64 rows, i64 cols, const float* scale,
                           i64 scale_row, i64 scale_col, i32 zero_point, i32 qmin, i32 qmax,
                           u8* out) {
    // Adding this rounds to nearest, ties to even, what is far below 2^51.
    constexpr double rounder = 6755399441055744.0;
    for (i64 unit = first_unit(); unit < rows * cols; unit += stride()) {
        const i64 i = quotient(unit, cols), j = unit - i * cols;
        double v = __dadd_rn(__dmul_rn(double(sums[unit]), double(spread(scale, scale_row, scale_col, i, j))),
                             double(zero_point));
        v = v > double(qmin) ? v : double(qmin);
        v = v < double(qmax) ? v : double(qmax);
        out[unit] = u8(i32(__dsub_rn(__dadd_rn(v, rounder), rounder)));
    }
}

// values per thread and turn: 1
__global__ void requantize_fixed_point(const i32* sums, i64 rows, i64 cols, const i32* multiplier,
                                       i64 multiplier_row, i64 multiplier_col, const i32* shift,
                                       i64 shift_row, i64 shift_col, i32 zero_point, i32 qmin,
                                       i32 qmax, u8* out) {
    constexpr i64 half = i64(1) << 30, low = -(i64(1) << 31), high = (i64(1) << 31) - 1;
    for (i64 unit = first_unit(); unit < rows * cols; unit += stride()) {
        const i64 i = quotient(unit, cols), j = unit - i * cols;
        const i32 by = spread(shift, shift_row, shift_col, i, j), left = by > 0 ? by : 0, right = by < 0 ? -by : 0;
        i64 v = i64(sums[unit]) * (i64(1) << left);
        v = v < low ? low : v > high ? high : v;
        const i64 product = v * spread(multiplier, multiplier_row, multiplier_col, i, j);
        const i64 nudged = product + (product >= 0 ? half : 1 - half);
        const i64 rounded = nudged >= 0 ? nudged >> 31 : -(-nudged >> 31);
        const i64 mask = (i64(1) << right) - 1;
        v = (rounded >> right) + ((rounded & mask) > (mask >> 1) + (rounded < 0)) + zero_point;
        out[unit] = u8(v < qmin ? qmin : v > qmax ? qmax : v);
    }
}

// ---- Packed weights -----------------------------------------------------------------------------

// Codes as pack_bits packs them; `books` says how many tables there are: none, one, one per output.
struct Packed {
    const u8* packed;
    i64 n, k, group_size, row_bytes;
    const float* scale;
    const i32* zero_point;
    const float* book;
    i64 width, bits, is_signed, has_zero_point, books;

    DEVICE i64 groups() const { return quotient(k + group_size - 1, group_size); }
    DEVICE i32 code(i64 output, i64 input) const {
        const i64 bit = input * bits;
        const u8* bytes = packed + output * row_bytes + (bit >> 3);
        const int shift = int(bit & 7);
        u32 two = bytes[0];
        if (shift + bits > 8) two |= u32(bytes[1]) << 8;
        const u32 code = two >> shift & ((1u << bits) - 1);
        const int unused = 32 - int(bits);
        return is_signed ? i32(code << unused) >> unused : i32(code);
    }
    DEVICE i32 zero(i64 output, i64 group) const {
        return has_zero_point ? zero_point[output * groups() + group] : 0;
    }
    DEVICE float level(i64 output, i64 input, i32 zero) const {
        const i32 q = code(output, input);
        if (books == 0) return __int2float_rn(q - zero);
        return book[(books == 1 ? 0 : output * width) + q];
    }
};

// values per thread and turn: 4
template <class T>
__global__ void matmul_grouped(const typename T::Bits* x, i64 m, const u8* packed, i64 n, i64 k,
                               i64 group_size, i64 row_bytes, const float* scales,
                               const i32* zero_point, const float* book, i64 width, i64 bits,
                               i64 is_signed, i64 has_zero_point, i64 books, const float* bias,
                               i32 has_bias, float* out) {
    const Packed w = {packed, n, k, group_size, row_bytes, scales, zero_point,
                      book, width, bits, is_signed, has_zero_point, books};
    for (i64 unit = first_unit(); unit < Tile::units(m, w.n); unit += stride()) {
        const Tile tile(unit, m, w.n);
        float y[kRows] = {};
#pragma unroll 1
        for (i64 group = 0, start = 0; start < w.k; group++, start += w.group_size) {
            const i64 end = min(start + w.group_size, w.k);
            const i32 zero = w.zero(tile.col, group);
            float sums[kRows] = {};
#pragma unroll 1
            for (i64 i = start; i < end; i++) {
                const float level = w.level(tile.col, i, zero);
#pragma unroll
                for (int r = 0; r < kRows; r++) {
                    const i64 row = tile.row + (r < tile.count ? r : 0);
                    sums[r] = __fmaf_rn(T::widen(x[row * w.k + i]), level, sums[r]);
                }
            }
            const float scale = w.scale[tile.col * w.groups() + group];
#pragma unroll
            for (int r = 0; r < kRows; r++) y[r] = __fmaf_rn(sums[r], scale, y[r]);
        }
#pragma unroll
        for (int r = 0; r < kRows; r++) {
            if (r >= tile.count) break;
            const float result = has_bias ? __fadd_rn(y[r], bias[tile.col]) : y[r];
            out[(tile.row + r) * w.n + tile.col] = result;
        }
    }
}

// values per thread and turn: 4
__global__ void linear_grouped_int8(const i8* x, i64 m, const u8* packed, i64 n, i64 k,
                                    i64 group_size, i64 row_bytes, const float* scales,
                                    const i32* zero_point, const float* book, i64 width, i64 bits,
                                    i64 is_signed, i64 has_zero_point, i64 books,
                                    const float* x_scale, const float* bias, i32 has_bias,
                                    float* out) {
    const Packed w = {packed, n, k, group_size, row_bytes, scales, zero_point,
                      book, width, bits, is_signed, has_zero_point, books};
    for (i64 unit = first_unit(); unit < Tile::units(m, w.n); unit += stride()) {
        const Tile tile(unit, m, w.n);
        float y[kRows] = {};
#pragma unroll 1
        for (i64 group = 0, start = 0; start < w.k; group++, start += w.group_size) {
            const i64 end = min(start + w.group_size, w.k);
            const i32 zero = w.zero(tile.col, group);
            u32 sums[kRows] = {};
#pragma unroll 1
            for (i64 i = start; i < end; i++) {
                const u32 level = u32(w.code(tile.col, i) - zero);
#pragma unroll
                for (int r = 0; r < kRows; r++) {
                    const i64 row = tile.row + (r < tile.count ? r : 0);
                    sums[r] += u32(i32(x[row * w.k + i])) * level;
                }
            }
            const float scale = w.scale[tile.col * w.groups() + group];
#pragma unroll
            for (int r = 0; r < kRows; r++) {
                const float sum = __int2float_rn(i32(sums[r]));
                y[r] = __fadd_rn(y[r], __fmul_rn(sum, scale));
            }
        }
#pragma unroll
        for (int r = 0; r < kRows; r++) {
            if (r >= tile.count) break;
            float result = __fmul_rn(x_scale[tile.row + r], y[r]);
            if (has_bias) result = __fadd_rn(result, bias[tile.col]);
            out[(tile.row + r) * w.n + tile.col] = result;
        }
    }
}

// ---- Few columns --------------------------------------------------------------------------------

// values per thread and turn: 1
template <class T>
__global__ void add_matmul(const float* y, i64 m, i64 n, const typename T::Bits* x, i64 columns,
                           const float* w, const float* bias, i32 has_bias, i32 relu, float* out) {
    for (i64 unit = first_unit(); unit < m * n; unit += stride()) {
        const i64 i = quotient(unit, n), j = unit - i * n;
        float sum = y[unit];
#pragma unroll 1
        for (i64 c = 0; c < columns; c++) {
            sum = __fmaf_rn(T::widen(x[i * columns + c]), w[j * columns + c], sum);
        }
        if (has_bias) sum = __fadd_rn(sum, bias[j]);
        out[unit] = relu && !(sum > 0) ? 0.0f : sum;
    }
}

// values per thread and turn: 1
template <class T>
__global__ void column_absmax(const typename T::Bits* x, i64 rows, i64 cols, float* out,
                              u64* faults) {
    for (i64 col = first_unit(); col < cols; col += stride()) {
        float greatest = 0;
#pragma unroll 1
        for (i64 row = 0; row < rows; row++) {
            greatest = max_nan(greatest, fabsf(T::widen(x[row * cols + col])));
        }
        if (!is_finite(greatest)) report(faults, kNonfinite);
        out[col] = greatest;
    }
}
