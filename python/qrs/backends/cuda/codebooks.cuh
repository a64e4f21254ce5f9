// Rule 8: levels of a table, and how a number finds the nearest one. A book has k levels, 2 to 256,
// and k - 1 thresholds. Those ascend, and NaN may stand behind them, which nothing reaches.

constexpr int kMostLevels = 256;

// 1 / max(|scale|, 1e-38), with the sign of the scale: finite, whatever the scale is.
DEVICE float reciprocal(float scale) {
    const float magnitude = fabsf(scale), smallest = 1e-38f;
    const float inverse = __frcp_rn(magnitude > smallest ? magnitude : smallest);
    return scale < 0.0f ? -inverse : inverse;
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
    // How many thresholds each of N numbers reaches: a binary search without branches.
    template <int N>
    DEVICE void rank(const float (&v)[N], u32 (&rank)[N]) const {
        const int first = LEVELS ? LEVELS / 2 : 1 << (31 - __clz(count));
#pragma unroll
        for (int k = 0; k < N; k++) rank[k] = 0;
#pragma unroll(LEVELS ? 8 : 1)
        for (int step = first; step > 0; step /= 2) {
#pragma unroll
            for (int k = 0; k < N; k++) {
                const int next = int(rank[k]) + step;
                if ((LEVELS || next <= count) && v[k] >= limit[next - 1]) rank[k] = next;
            }
        }
    }
};
