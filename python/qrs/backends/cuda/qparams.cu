// From ranges to scales and zero points.

// values per thread and turn: 1
__global__ void choose_qparams_affine(const float* lo, const float* hi, i64 groups, i32 qmin, i32 qmax,
                                      i32 symmetric, i32 scale_dtype, float* scale, i32* zero_point,
                                      u64* faults) {
    for (i64 group = first_unit(); group < groups; group += stride()) {
        Range range;
        range.lo = lo[group], range.hi = hi[group];
        const Chosen chosen = choose_params<f32, false>(range, qmin, qmax, symmetric, scale_dtype);
        scale[group] = chosen.scale;
        if (!symmetric) zero_point[group] = chosen.zero_point;
        report(faults, group, chosen.fault);
    }
}
