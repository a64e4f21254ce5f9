// From ranges to scales and zero points.

// values per thread and turn: 1
__global__ void choose_qparams_affine(const float* lo, const float* hi, i64 groups, i32 qmin,
                                      i32 qmax, i32 symmetric, i32 scale_dtype, float* scale,
                                      i32* zero_point, u64* faults) {
    for (i64 group = first_unit(); group < groups; group += stride()) {
        Range range;
        range.lo = lo[group], range.hi = hi[group];
        const Chosen chosen = choose_params<f32, false>(range, qmin, qmax, symmetric, scale_dtype);
        scale[group] = chosen.scale;
        if (!symmetric) zero_point[group] = chosen.zero_point;
        report(faults, group, chosen.fault);
    }
}

// The largest magnitude of a range; never -0.
DEVICE float absmax_of(float lo, float hi) { return __fadd_rn(fmaxf(hi, -lo), 0.0f); }

// `largest` and `max_exponent` are those of the format that values will have.
// values per thread and turn: 1
__global__ void choose_scale_float(const float* lo, const float* hi, i64 groups, float largest,
                                   i32 max_exponent, i32 scale_dtype, float* scale, u64* faults) {
    for (i64 group = first_unit(); group < groups; group += stride()) {
        const float absmax = absmax_of(lo[group], hi[group]);
        if (scale_dtype == kE8m0) {
            const int field = int(bits_of(absmax) >> 23) - max_exponent;
            const u32 power = field > 0 ? u32(field) << 23 : 1u << 22;  // 2^-127 at least
            scale[group] = absmax == 0.0f ? 1.0f : float_of(power);
            continue;
        }
        float chosen = stored(__fdiv_rn(absmax, largest), scale_dtype);
        if (chosen == 0.0f) chosen = 1.0f;
        scale[group] = chosen;
        const Reason reason = is_finite(__fmul_rn(largest, chosen)) ? kNone : kDecodeOverflow;
        report(faults, group, is_finite(chosen) ? reason : kScaleOverflow);
    }
}

// The largest magnitude of all ranges, into a word that starts as zero.
// values per thread and turn: 1
__global__ void absmax_of_all(const float* lo, const float* hi, i64 groups, u32* absmax) {
    u32 largest = 0;
    for (i64 group = first_unit(); group < groups; group += stride()) {
        largest = max(largest, bits_of(absmax_of(lo[group], hi[group])));
    }
    if (largest > 0) atomicMax(absmax, largest);
}

// `top_reach` is `largest` times the largest number of the format F that scales have.
// values per thread and turn: 1
template <class F>
__global__ void choose_scale_float_nested(const float* lo, const float* hi, i64 groups,
                                          float largest, float top_reach, const float* absmax,
                                          typename FormatOf<F>::Code* codes, float* top,
                                          u64* faults) {
    using Scale = FormatOf<F>;
    float step = __fdiv_rn(*absmax, top_reach);
    if (step == 0.0f) step = 1.0f;
    if (first_unit() == 0) *top = step;
    for (i64 group = first_unit(); group < groups; group += stride()) {
        const float exact = __fdiv_rn(__fdiv_rn(absmax_of(lo[group], hi[group]), largest), step);
        u32 code = Scale::encode(bits_of(exact), true);
        if (code == 0) code = Scale::one;
        codes[group] = typename Scale::Code(code);
        const float scale = __fmul_rn(float_of(Scale::decode(code)), step);
        if (!is_finite(__fmul_rn(largest, scale))) report(faults, group, kDecodeOverflow);
    }
}

// `low` and `high` are the least and the greatest level of a table.
// values per thread and turn: 1
__global__ void choose_scale_codebook(const float* lo, const float* hi, i64 groups, float low,
                                      float high, i32 scale_dtype, float* scale, u64* faults) {
    for (i64 group = first_unit(); group < groups; group += stride()) {
        const float chosen = scale_reaching(lo[group], hi[group], low, high, scale_dtype);
        scale[group] = chosen;
        report(faults, group, fault_of(chosen, low, high));
    }
}
