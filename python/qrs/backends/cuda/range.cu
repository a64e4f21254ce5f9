// The least and the greatest value of groups of any length, anywhere.

// Values of a chunk: what one team of lanes searches before it meets others in memory.
constexpr i64 kChunk = 4096;

// The range of values[from] to values[to - 1] as far as lane `lane` of `lanes` looks at it.
template <class T>
DEVICE Range range_of(const typename T::Bits* values, i64 from, i64 to, int lane, int lanes) {
    Range range;
    if (is_aligned(values + from, 16)) {
        Extremes<T, false> extremes;
        for (i64 col = from + 8 * lane; col + 8 <= to; col += 8 * lanes) {
            extremes.add(Octet<T>::load(values + col));
        }
        extremes.reduce(1);
        range.add(extremes.range());
        from += (to - from) / 8 * 8;
    }
    for (i64 col = from + lane; col < to; col += lanes) range.add(T::widen(values[col]));
    return range;
}

// `lo` and `hi` start as zeros. Positive floats are ordered as their bits are, and so are the
// magnitudes of negative ones: the maxima are integer atomics, which know no order of threads.
// `lanes`, a power of two up to 32, are a team, and have one chunk of a group.
// values per thread and turn: 8
template <class T>
__global__ void group_range(const typename T::Bits* x, i64 rows, i64 cols, i64 group_size,
                            i32 lanes, u32* lo, u32* hi, u64* faults) {
    const Shape shape(rows, cols, group_size);
    const i64 chunks = (group_size + kChunk - 1) / kChunk, units = rows * shape.groups * chunks;
    const int teams = blockDim.x / lanes, team = threadIdx.x / lanes, lane = threadIdx.x % lanes;
    // All threads make the same number of turns: they meet in shuffles.
    for (i64 first = i64(blockIdx.x) * teams; first < units; first += i64(gridDim.x) * teams) {
        const i64 unit = first + team;
        const i64 group = quotient(unit, chunks), row = quotient(group, shape.groups);
        Range range;
        if (unit < units) {
            const i64 begin = (group - row * shape.groups) * group_size;
            const i64 end = begin + group_size < cols ? begin + group_size : cols;
            const i64 from = begin + (unit - group * chunks) * kChunk;
            const i64 to = from + kChunk < end ? from + kChunk : end;
            if (from < to) range = range_of<T>(x + row * cols, from, to, lane, lanes);
        }
        for (int distance = 1; distance < lanes; distance *= 2) {
            Range other;
            other.lo = __shfl_xor_sync(kAllLanes, range.lo, distance);
            other.hi = __shfl_xor_sync(kAllLanes, range.hi, distance);
            range.add(other);
        }
        if (lane != 0 || unit >= units) continue;
        if (range.lo < 0.0f) atomicMax(lo + group, bits_of(range.lo));
        if (range.hi > 0.0f) atomicMax(hi + group, bits_of(range.hi));
        if (!range.finite()) report(faults, kNonfinite);
    }
}
