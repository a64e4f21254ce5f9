// Sums in the order of rule 6: half a warp is its sixteen lanes, and what they fold to does not depend
// on how many threads there are.

constexpr int kLanes = 16;
constexpr i64 kSummed = 65536;

DEVICE float plus(float a, float b) { return __fadd_rn(a, b); }
DEVICE double plus(double a, double b) { return __dadd_rn(a, b); }

// The half of a warp that works together: its lanes may make other turns than the other half's.
struct Team {
    int lane;
    u32 mask;

    DEVICE Team() : lane(threadIdx.x % kLanes), mask(0xffffu << (threadIdx.x & kLanes)) {}
    static DEVICE i64 first() { return first_unit() / kLanes; }
    static DEVICE i64 count() { return stride() / kLanes; }

    // Addition commutes, so that every lane gets the same bits.
    template <class F>
    DEVICE F fold(F x) const {
#pragma unroll
        for (int half = kLanes / 2; half > 0; half /= 2) {
            x = plus(x, __shfl_xor_sync(mask, x, half));
        }
        return x;
    }
    DEVICE float largest(float x) const {
#pragma unroll
        for (int half = kLanes / 2; half > 0; half /= 2) {
            x = max_nan(x, __shfl_xor_sync(mask, x, half));
        }
        return x;
    }
    // N sums at once, of what `terms(i, term)` writes to term[0] to term[N - 1] for each i below
    // `length`, which is at most the square of kSummed.
    template <int N, class F, class Terms>
    DEVICE void sums(i64 length, F (&total)[N], const Terms& terms) const {
        for (int n = 0; n < N; n++) total[n] = 0;
#pragma unroll 1
        for (i64 chunk = 0; chunk * kSummed < length; chunk++) {
            const i64 end = min((chunk + 1) * kSummed, length);
            F sum[N] = {};
#pragma unroll 1
            for (i64 i = chunk * kSummed + lane; i < end; i += kLanes) {
                F term[N];
                terms(i, term);
                for (int n = 0; n < N; n++) sum[n] = plus(sum[n], term[n]);
            }
            for (int n = 0; n < N; n++) {
                const F folded = fold(sum[n]);
                if (chunk % kLanes == lane) total[n] = plus(total[n], folded);
            }
        }
        for (int n = 0; n < N; n++) total[n] = fold(total[n]);
    }
};
