// What stands between the layers of a network. exp and erf are the polynomials of
// reference/functional.py, operation by operation.

DEVICE float horner(float x, const float (&coefficients)[6]) {
    float y = coefficients[5];
#pragma unroll
    for (int i = 4; i >= 0; i--) y = __fadd_rn(__fmul_rn(y, x), coefficients[i]);
    return y;
}

DEVICE float power_of_two(int n) { return float_of(u32(n + 127) << 23); }

// e^x for x <= 0.
DEVICE float exponential(float x) {
    constexpr float powers[6] = {0.5f,           0.16666666f,  0.041666295f,
                                 0.0083334967f,  0.001394466f, 0.00019790346f};
    x = fmaxf(x, -104.0f);
    const float n = rounded(__fmul_rn(x, 1.442695f));
    const float r = __fsub_rn(__fsub_rn(x, __fmul_rn(n, 0.693359375f)),
                              __fmul_rn(n, -2.1219444e-4f));
    const float y = __fadd_rn(__fadd_rn(__fmul_rn(horner(r, powers), __fmul_rn(r, r)), r), 1.0f);
    // In two steps, of which the second alone may round: to a subnormal.
    const int whole = int(n), first = whole >> 1;
    return __fmul_rn(__fmul_rn(y, power_of_two(first)), power_of_two(whole - first));
}

DEVICE float error_function(float x) {
    constexpr float above[6] = {1.1283791f,    0.19354466f,  0.05310164f,
                                0.0038833099f, 0.0002845626f, 1.986755e-06f};
    constexpr float below[6] = {1.0f,         0.50485706f,   0.115349784f,
                                0.015207187f, 0.0011855579f, 3.741971e-05f};
    const float z = fminf(fmaxf(x, -4.0f), 4.0f), t = __fmul_rn(z, z);
    return __fdiv_rn(__fmul_rn(z, horner(t, above)), horner(t, below));
}

// values per thread and turn: 1
template <class T>
__global__ void gelu(const typename T::Bits* x, i64 count, typename T::Bits* out, u64* faults) {
    for (i64 unit = first_unit(); unit < count; unit += stride()) {
        const float value = T::widen(x[unit]);
        if (!is_finite(value)) report(faults, kNonfinite);
        const float half = __fmul_rn(value, 0.5f);
        const float phi = __fadd_rn(1.0f, error_function(__fmul_rn(value, 0.70710678118654752f)));
        out[unit] = T::narrow(__fmul_rn(half, phi));
    }
}

// Each row has sixteen threads. Exponentials are taken twice, which costs less than a row of memory.
// values per thread and turn: 1
template <class T>
__global__ void softmax(const typename T::Bits* x, i64 rows, i64 cols, typename T::Bits* out,
                        u64* faults) {
    const Team team;
    for (i64 row = Team::first(); row < rows; row += Team::count()) {
        const typename T::Bits* values = x + row * cols;
        float greatest = T::widen(values[0]);
        bool finite = true;
#pragma unroll 1
        for (i64 i = team.lane; i < cols; i += kLanes) {
            const float value = T::widen(values[i]);
            finite = finite && is_finite(value);
            greatest = fmaxf(greatest, value);
        }
        if (!finite) report(faults, kNonfinite);
        greatest = team.largest(greatest);
        float sum[1];
        team.sums(cols, sum, [&](i64 i, float* term) {
            term[0] = exponential(__fsub_rn(T::widen(values[i]), greatest));
        });
#pragma unroll 1
        for (i64 i = team.lane; i < cols; i += kLanes) {
            const float power = exponential(__fsub_rn(T::widen(values[i]), greatest));
            out[row * cols + i] = T::narrow(__fdiv_rn(power, sum[0]));
        }
    }
}

// values per thread and turn: 1
template <class T>
__global__ void layer_norm(const typename T::Bits* x, i64 rows, i64 cols, const float* weight,
                           const float* bias, float eps, typename T::Bits* out, u64* faults) {
    const Team team;
    const float count = __ll2float_rn(cols);
    for (i64 row = Team::first(); row < rows; row += Team::count()) {
        const typename T::Bits* values = x + row * cols;
        bool finite = true;
#pragma unroll 1
        for (i64 i = team.lane; i < cols; i += kLanes) {
            finite = finite && is_finite(T::widen(values[i]));
        }
        if (!finite) report(faults, kNonfinite);
        float sum[1];
        team.sums(cols, sum, [&](i64 i, float* term) { term[0] = T::widen(values[i]); });
        const float mean = __fdiv_rn(sum[0], count);
        team.sums(cols, sum, [&](i64 i, float* term) {
            const float centered = __fsub_rn(T::widen(values[i]), mean);
            term[0] = __fmul_rn(centered, centered);
        });
        const float variance = __fdiv_rn(sum[0], count);
        if (!is_finite(variance) && team.lane == 0) report(faults, row, kScaleOverflow);
        const float inverse = __fdiv_rn(1.0f, __fsqrt_rn(__fadd_rn(variance, eps)));
#pragma unroll 1
        for (i64 i = team.lane; i < cols; i += kLanes) {
            const float centered = __fsub_rn(T::widen(values[i]), mean);
            const float y = __fadd_rn(__fmul_rn(__fmul_rn(centered, inverse), weight[i]), bias[i]);
            out[row * cols + i] = T::narrow(y);
        }
    }
}
