// What is made of sums over scales and groups.

// ---- Scales around their mean -------------------------------------------------------------------

// values per thread and turn: 1
template <class F>
__global__ void sum_chunks(const F* x, i64 length, double* sums) {
    const Team team;
    for (i64 chunk = Team::first(); chunk * kSummed < length; chunk += Team::count()) {
        const F* values = x + chunk * kSummed;
        double total[1];
        team.sums(min(kSummed, length - chunk * kSummed), total,
                  [&](i64 i, double* term) { term[0] = double(values[i]); });
        if (team.lane == 0) sums[chunk] = total[0];
    }
}

// values per thread and turn: 1
__global__ void center_scales(const float* scale, i64 length, const double* total, float* mean,
                              float* centered) {
    const float middle = __double2float_rn(__ddiv_rn(*total, double(length)));
    if (first_unit() == 0) *mean = middle;
    for (i64 i = first_unit(); i < length; i += stride()) {
        centered[i] = __fsub_rn(scale[i], middle);
    }
}

// ---- The scale of the least squared error -------------------------------------------------------

// One group of values, its weights, and the table.
template <class T, int LEVELS>
struct ScaleSearch {
    Team team;
    const typename T::Bits* values;
    const float* weights;  // null where all are 1
    i64 length;
    Thresholds<LEVELS> thresholds;
    const float* level;

    DEVICE float weight(i64 i) const { return weights ? weights[i] : 1.0f; }
    DEVICE float nearest(float v) const {
        const float one[1] = {v};
        u32 rank[1];
        thresholds.rank(one, rank);
        return level[rank[0]];
    }
    // Or NaN, or infinity, where there is such a value.
    DEVICE float absmax() const {
        float largest = 0.0f;
        for (i64 i = team.lane; i < length; i += kLanes) {
            largest = max_nan(largest, fabsf(T::widen(values[i])));
        }
        return team.largest(largest);
    }
    // The scale after two rounds of least squares, as stored; sum(w x L) and sum(w L L) are then
    // those of the levels nearest before the last one.
    DEVICE float refined(float scale, int scale_dtype, float (&moments)[2]) const {
#pragma unroll 1
        for (int round = 0; round < 2; round++) {
            const float inverse = reciprocal(scale);
            team.sums(length, moments, [&](i64 i, float* term) {
                const float x = T::widen(values[i]), near = nearest(__fmul_rn(x, inverse));
                const float weighted = __fmul_rn(weight(i), near);
                term[0] = __fmul_rn(weighted, x), term[1] = __fmul_rn(weighted, near);
            });
            scale = moments[1] > 0.0f ? __fdiv_rn(moments[0], moments[1]) : 0.0f;
        }
        return stored(scale, scale_dtype);
    }
    // sum(w (x - scale L)^2)
    DEVICE double error(float scale) const {
        const float inverse = reciprocal(scale);
        double total[1];
        team.sums(length, total, [&](i64 i, double* term) {
            const float x = T::widen(values[i]), near = nearest(__fmul_rn(x, inverse));
            const double rest = __dsub_rn(double(x), double(__fmul_rn(near, scale)));
            term[0] = __dmul_rn(__dmul_rn(rest, double(weight(i))), rest);
        });
        return total[0];
    }
};

// values per thread and turn: 1
template <class T, int LEVELS>
__global__ void choose_scale_lsq(const typename T::Bits* x, i64 rows, i64 cols, i64 group_size,
                                 const float* weights, i32 weighted, const float* levels,
                                 const float* thresholds, i32 count, const float* factors,
                                 i32 trials, const float* scale, i32 scale_dtype, float* chosen,
                                 double* errors, u64* faults) {
    __shared__ float level[LEVELS], limit[LEVELS];
    ScaleSearch<T, LEVELS> search;
    search.thresholds = Thresholds<LEVELS>::shared(limit, thresholds, count);
    search.level = level;
    for (int i = threadIdx.x; i <= count; i += blockDim.x) level[i] = levels[i];
    __syncthreads();
    const float reach = fmaxf(-level[0], level[count]);
    const Shape shape(rows, cols, group_size);
    bool finite = true;
    for (i64 group = Team::first(); group < rows * shape.groups; group += Team::count()) {
        const i64 row = quotient(group, shape.groups);
        const i64 begin = (group - row * shape.groups) * group_size;
        search.values = x + row * cols + begin;
        search.weights = weighted ? weights + row * cols + begin : nullptr;
        search.length = min(group_size, cols - begin);
        const float absmax = search.absmax(), base = __fdiv_rn(absmax, reach);
        finite = finite && is_finite(absmax);
        const float before = scale[group];
        float best = before, most = 0.0f;
        for (int i = 0; i < trials; i++) {
            float moments[2];
            const float found = search.refined(__fmul_rn(base, factors[i]), scale_dtype, moments);
            const float gain = __fmul_rn(
                found, __fsub_rn(__fmul_rn(2.0f, moments[0]), __fmul_rn(found, moments[1])));
            if (gain > most && is_finite(__fmul_rn(found, reach))) best = found, most = gain;
        }
        const double after = search.error(best), given = search.error(before);
        if (search.team.lane == 0) {
            chosen[group] = after < given ? best : before;
            errors[group] = after < given ? after : given;
        }
    }
    if (!finite) report(faults, kNonfinite);
}
