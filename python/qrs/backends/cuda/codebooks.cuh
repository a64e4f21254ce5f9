// Rule 8: levels of a table, and how a number finds the nearest one. A book has k levels, 2 to 256,
// and k - 1 thresholds. Those ascend, and NaN may stand behind them, which nothing reaches.

constexpr int kMostLevels = 256;

// 1 / max(|scale|, 1e-38), with the sign of the scale, or 0: finite, whatever the scale is.
DEVICE float reciprocal(float scale) {
    const float magnitude = fabsf(scale), smallest = 1e-38f;
    const float inverse = __frcp_rn(magnitude > smallest ? magnitude : smallest);
    return scale > 0.0f ? inverse : scale < 0.0f ? -inverse : 0.0f;
}

// The scale with which the levels `low` and `high` reach a range, as stored.
DEVICE float scale_reaching(float lo, float hi, float low, float high, int scale_dtype) {
    const float up = high > 0.0f ? __fdiv_rn(hi, high) : 0.0f;
    const float down = low < 0.0f ? __fdiv_rn(lo, low) : 0.0f;
    return stored(__fadd_rn(fmaxf(up, down), 0.0f), scale_dtype);
}

// What is wrong with it.
DEVICE Reason fault_of(float scale, float low, float high) {
    if (!is_finite(scale)) return kScaleOverflow;
    return is_finite(__fmul_rn(scale, fmaxf(high, -low))) ? kNone : kDecodeOverflow;
}

// The thresholds of a book. With LEVELS, 16 or 256, it is one for all, in shared memory, with NaN
// up to LEVELS - 1 thresholds, so that a search takes the same steps for all tables, and checks no
// index; with 0 it is where the caller has it.
template <int LEVELS>
struct Thresholds {
    const float* limit;
    int count;

    // For all threads of a block, which meet before they search.
    static DEVICE Thresholds shared(float* memory, const float* limit, int count) {
        for (int i = threadIdx.x; i < LEVELS; i += blockDim.x) {
            memory[i] = i < count ? limit[i] : float_of(f32::nan);
        }
        return Thresholds{memory, count};
    }
    // How many thresholds each of N numbers reaches: a binary search without branches, which counts
    // in bytes, as addresses do.
    template <int N>
    DEVICE void rank(const float (&v)[N], u32 (&rank)[N]) const {
        const u32 first = LEVELS ? 2 * LEVELS : 4u << (31 - __clz(count));
#pragma unroll
        for (int k = 0; k < N; k++) rank[k] = 0;
#pragma unroll(LEVELS ? 8 : 1)
        for (u32 step = first; step >= 4; step /= 2) {
#pragma unroll
            for (int k = 0; k < N; k++) {
                if (!LEVELS && rank[k] + step > 4 * u32(count)) continue;
                if (v[k] >= at(rank[k] + step - 4)) rank[k] += step;
            }
        }
#pragma unroll
        for (int k = 0; k < N; k++) rank[k] /= 4;
    }
    DEVICE float at(u32 byte) const {
        return *reinterpret_cast<const float*>(reinterpret_cast<const char*>(limit) + byte);
    }
};
