//! Looking numbers up in small tables: the entry for the thresholds that a number reaches, and the
//! level of a code.
//!
//! Tables of up to sixteen entries fit into registers, where permutations look up eight numbers at
//! once; the compiler makes none of those of scalar code. Larger tables are read from memory. Both
//! give the same entries. `cargo bench -- nf4` measures kernels that use them.

use crate::numeric::{Element, Entry, clamp, round};
#[cfg(target_arch = "x86_64")]
pub(crate) use permuted::{PermutedLevels, PermutedSearch};

/// Entries of the largest table.
pub const MOST_LEVELS: usize = 256;

/// Numbers that are searched for at once.
const LANES: usize = 16;

/// Entries of a table in registers.
const FEW_LEVELS: usize = 16;

/// Finds the entry that belongs to a number: the one with as many before it as the number reaches
/// thresholds.
pub(crate) trait Search: Clone + Sync {
    /// The entries that belong to `x * inverse`, none of which is NaN.
    fn find<T: Entry>(&self, x: &[f32], inverse: f32, found: &mut [T]);
}

/// A search that goes from one book to the next.
pub(crate) trait ReloadableSearch: Search {
    /// Searches among other thresholds.
    fn load(&mut self, thresholds: &[f32]);
}

/// Levels by code.
pub(crate) trait Levels: Clone + Sync {
    /// Takes other levels.
    fn load(&mut self, levels: &[f32]);
    /// `level * scale + offset` of each code, rounded to `E`. Any code is safe, also without a level.
    fn find<E: Element>(&self, codes: &[u8], scale: f32, offset: f32, found: &mut [E::Repr]);
}

/// Thresholds in ascending order; behind them NaN, which no number reaches. How many are reached does
/// not depend on their order.
#[inline(always)]
fn ascending<const N: usize>(thresholds: &[f32]) -> [f32; N] {
    let mut all = [f32::NAN; N];
    all[..thresholds.len()].copy_from_slice(thresholds);
    let in_order = |a: &f32, b: &f32| a <= b || b.is_nan();
    if !all.is_sorted_by(in_order) {
        all.sort_unstable_by(|a, b| a.is_nan().cmp(&b.is_nan()).then(a.total_cmp(b)));
    }
    all
}

/// The first elements are `values`, the others are zeros.
#[inline(always)]
fn padded<T: Copy + Default, const N: usize>(values: &[T]) -> [T; N] {
    let mut all = [T::default(); N];
    all[..values.len()].copy_from_slice(values);
    all
}

/// Binary search, without branches.
#[derive(Clone)]
pub(crate) struct BinarySearch {
    thresholds: [f32; MOST_LEVELS],
    entries: [u32; MOST_LEVELS],
    /// Half of the smallest power of two that is not less than the number of entries.
    half: u8,
}

impl BinarySearch {
    pub(crate) fn new(entries: &[u32]) -> Self {
        let half = (entries.len().next_power_of_two() / 2) as u8;
        Self { thresholds: [f32::NAN; MOST_LEVELS], entries: padded(entries), half }
    }
}

impl Search for BinarySearch {
    #[inline(always)]
    fn find<T: Entry>(&self, x: &[f32], inverse: f32, found: &mut [T]) {
        for (x, found) in x.chunks(LANES).zip(found.chunks_mut(LANES)) {
            // Side by side, or each step would wait for the one before, and be a branch.
            let (v, mut ranks) = (padded::<f32, LANES>(x).map(|x| x * inverse), [0_u8; LANES]);
            let mut step = self.half;
            while step > 0 {
                for (rank, v) in ranks.iter_mut().zip(v) {
                    let reached = v >= self.thresholds[usize::from(*rank | (step - 1))];
                    *rank |= if reached { step } else { 0 };
                }
                step /= 2;
            }
            for (rank, found) in ranks.iter().zip(found) {
                *found = T::of_bits(self.entries[usize::from(*rank)]);
            }
        }
    }
}

impl ReloadableSearch for BinarySearch {
    #[inline(always)]
    fn load(&mut self, thresholds: &[f32]) {
        self.thresholds = ascending(thresholds);
    }
}

/// Levels that are consecutive integers, where ties go to the even one: rounding finds them.
#[derive(Clone)]
pub(crate) struct Integers {
    least: f32,
    greatest: f32,
}

impl Integers {
    /// None where levels or thresholds are others, to the last bit.
    pub(crate) fn new(levels: &[f32], thresholds: &[f32]) -> Option<Self> {
        let (least, greatest) = (*levels.first()?, *levels.last()?);
        // Far below what rounding is good for.
        let codes = -256.0 <= least && greatest <= 256.0;
        let level = |index: usize| (least + index as f32 + 0.0).to_bits();
        let mut found = levels.iter().enumerate();
        let integers = least == least.round() && found.all(|(i, l)| l.to_bits() == level(i));
        let halfway = levels.iter().zip(thresholds).all(|(&lower, &threshold)| {
            let (tie, even) = (lower + 0.5, lower % 2.0 == 0.0);
            threshold == if even { tie.next_up() } else { tie }
        });
        (codes && integers && halfway).then_some(Self { least, greatest })
    }
}

impl Search for Integers {
    #[inline(always)]
    fn find<T: Entry>(&self, x: &[f32], inverse: f32, found: &mut [T]) {
        for (x, found) in x.iter().zip(found) {
            *found = T::of_bits(round(clamp(x * inverse, self.least, self.greatest)).to_bits());
        }
    }
}

/// Levels that are loaded one by one.
#[derive(Clone)]
pub(crate) struct LoadedLevels([f32; MOST_LEVELS]);

impl LoadedLevels {
    pub(crate) fn new() -> Self {
        Self([0.0; MOST_LEVELS])
    }
}

impl Levels for LoadedLevels {
    #[inline(always)]
    fn load(&mut self, levels: &[f32]) {
        self.0 = padded(levels);
    }

    #[inline(always)]
    fn find<E: Element>(&self, codes: &[u8], scale: f32, offset: f32, found: &mut [E::Repr]) {
        for (&code, found) in codes.iter().zip(found) {
            *found = E::narrow(self.0[usize::from(code)] * scale + offset);
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod permuted {
    use std::arch::x86_64::{
        __m256, __m256i, _CMP_GE_OQ, _mm_cvtsi64_si128, _mm256_add_epi32, _mm256_blendv_ps,
        _mm256_castps_si256, _mm256_castsi256_ps, _mm256_cmp_ps, _mm256_cvtepu8_epi32,
        _mm256_loadu_ps, _mm256_mul_ps, _mm256_permutevar_ps, _mm256_permutevar8x32_ps,
        _mm256_set1_ps, _mm256_slli_epi32, _mm256_storeu_ps,
    };

    use super::{Entry, FEW_LEVELS, Levels, ReloadableSearch, Search, ascending, padded};
    use crate::numeric::Element;
    use crate::simd::{Level, reaches};

    /// Elements of a vector of AVX2.
    const LANES: usize = 8;
    /// Two vectors: what is narrowed at once.
    const SIXTEEN: usize = 2 * LANES;
    type Eight = [f32; LANES];

    /// Binary search, in which a permutation picks the threshold of each step. The steps before it
    /// say where: a comparison that holds is -1, so positions count down from 0, modulo the size.
    #[derive(Clone)]
    pub(crate) struct PermutedSearch {
        first: f32,
        second: Eight,
        third: Eight,
        fourth: Eight,
        /// Entries of even and odd ranks, as floats that are moved and never computed with.
        even: Eight,
        odd: Eight,
    }

    impl PermutedSearch {
        /// None where the CPU lacks AVX2, or there are too many entries.
        pub(crate) fn new(entries: &[u32]) -> Option<Self> {
            if entries.len() > FEW_LEVELS || !reaches(Level::Avx2) {
                return None;
            }
            let entries: [u32; FEW_LEVELS] = padded(entries);
            let every_second =
                |first: usize| downwards(|index| f32::from_bits(entries[2 * index + first]));
            let none = [f32::NAN; LANES];
            let (even, odd) = (every_second(0), every_second(1));
            Some(Self { first: f32::NAN, second: none, third: none, fourth: none, even, odd })
        }
    }

    /// A table in which the element `index` lies `index` places below 0, modulo the size.
    #[inline(always)]
    fn downwards(element: impl Fn(usize) -> f32) -> Eight {
        std::array::from_fn(|place| element((LANES - place) % LANES))
    }

    impl ReloadableSearch for PermutedSearch {
        #[inline(always)]
        fn load(&mut self, thresholds: &[f32]) {
            let all: [f32; FEW_LEVELS] = ascending(thresholds);
            self.first = all[7];
            self.second = downwards(|index| all[index % 2 * 8 + 3]);
            self.third = downwards(|index| all[index % 4 * 4 + 1]);
            self.fourth = downwards(|index| all[index * 2]);
        }
    }

    impl Search for PermutedSearch {
        #[inline(always)]
        fn find<T: Entry>(&self, x: &[f32], inverse: f32, found: &mut [T]) {
            // SAFETY: `new` makes none without AVX2.
            unsafe { find_entries(self, x, inverse, found) }
        }
    }

    #[target_feature(enable = "avx2")]
    fn find_entries<T: Entry>(s: &PermutedSearch, x: &[f32], inverse: f32, found: &mut [T]) {
        let (inverse, first) = (_mm256_set1_ps(inverse), _mm256_set1_ps(s.first));
        let (second, third, fourth) = (load(&s.second), load(&s.third), load(&s.fourth));
        let (even, odd) = (load(&s.even), load(&s.odd));
        for_each_sixteen(x, found, |x: &[f32; SIXTEEN]| {
            two(halves(x).map(|x| {
                let v = _mm256_mul_ps(load(x), inverse);
                let reached = |threshold: __m256| _mm256_cmp_ps::<_CMP_GE_OQ>(v, threshold);
                let then = |place: __m256i, reached: __m256| {
                    _mm256_add_epi32(_mm256_add_epi32(place, place), _mm256_castps_si256(reached))
                };
                let place = _mm256_castps_si256(reached(first));
                let place = then(place, reached(_mm256_permutevar_ps(second, place)));
                let place = then(place, reached(_mm256_permutevar_ps(third, place)));
                let last = reached(_mm256_permutevar8x32_ps(fourth, place));
                let even = _mm256_permutevar8x32_ps(even, place);
                let odd = _mm256_permutevar8x32_ps(odd, place);
                _mm256_blendv_ps(even, odd, last)
            }))
        });
    }

    /// Applies `f` to sixteen elements at a time; the last ones have zeros behind them.
    #[inline(always)]
    fn for_each_sixteen<A: Copy + Default, T: Entry>(
        from: &[A],
        to: &mut [T],
        f: impl Fn(&[A; SIXTEEN]) -> [f32; SIXTEEN],
    ) {
        let ((from, rest), (to, last)) = (from.as_chunks(), to.as_chunks_mut());
        for (from, to) in from.iter().zip(to) {
            *to = f(from).map(|entry| T::of_bits(entry.to_bits()));
        }
        if !rest.is_empty() {
            let found = f(&padded(rest));
            let found = found.iter().map(|entry| T::of_bits(entry.to_bits()));
            last.iter_mut().zip(found).for_each(|(last, found)| *last = found);
        }
    }

    #[inline(always)]
    fn halves<T>(sixteen: &[T; SIXTEEN]) -> [&[T; LANES]; 2] {
        let halves = sixteen.as_chunks().0;
        [&halves[0], &halves[1]]
    }

    #[target_feature(enable = "avx2")]
    #[inline]
    fn load(x: &Eight) -> __m256 {
        // SAFETY: eight float32 are read, wherever they lie.
        unsafe { _mm256_loadu_ps(x.as_ptr()) }
    }

    #[target_feature(enable = "avx2")]
    #[inline]
    fn two([low, high]: [__m256; 2]) -> [f32; SIXTEEN] {
        let mut sixteen = [0.0; SIXTEEN];
        // SAFETY: twice eight float32 are written, wherever they lie.
        unsafe {
            _mm256_storeu_ps(sixteen.as_mut_ptr(), low);
            _mm256_storeu_ps(sixteen.as_mut_ptr().add(LANES), high);
        }
        sixteen
    }

    /// Levels in registers.
    #[derive(Clone)]
    pub(crate) struct PermutedLevels([f32; FEW_LEVELS]);

    impl PermutedLevels {
        /// None where the CPU lacks AVX2, or there are too many levels.
        pub(crate) fn new(levels: usize) -> Option<Self> {
            (levels <= FEW_LEVELS && reaches(Level::Avx2)).then_some(Self([0.0; FEW_LEVELS]))
        }
    }

    impl Levels for PermutedLevels {
        #[inline(always)]
        fn load(&mut self, levels: &[f32]) {
            self.0 = padded(levels);
        }

        #[inline(always)]
        fn find<E: Element>(&self, codes: &[u8], scale: f32, offset: f32, found: &mut [E::Repr]) {
            // As many products and roundings as there are levels, and not numbers.
            let value = |level| f32::from_bits(E::narrow(level * scale + offset).bits());
            // SAFETY: `new` makes none without AVX2.
            unsafe { find_values(&self.0.map(value), codes, found) }
        }
    }

    /// Of each code, the value with the number of its lowest four bits.
    #[target_feature(enable = "avx2")]
    #[inline]
    fn find_values<T: Entry>(values: &[f32; FEW_LEVELS], codes: &[u8], found: &mut [T]) {
        let [low, high] = halves(values);
        for_each_sixteen(codes, found, |codes: &[u8; SIXTEEN]| {
            two(halves(codes).map(|codes| {
                let codes = _mm256_cvtepu8_epi32(_mm_cvtsi64_si128(i64::from_le_bytes(*codes)));
                let is_high = _mm256_castsi256_ps(_mm256_slli_epi32::<28>(codes));
                let low = _mm256_permutevar8x32_ps(load(low), codes);
                let high = _mm256_permutevar8x32_ps(load(high), codes);
                _mm256_blendv_ps(low, high, is_high)
            }))
        });
    }
}
