//! Looking numbers up in small tables: the entry for the thresholds that a number reaches, and the
//! level of a code.
//!
//! Tables of up to sixteen entries fit into registers, where permutations look up eight numbers at
//! once; the compiler makes none of those of scalar code. Larger tables are read from memory. Both
//! give the same entries. `cargo bench -- codebook` measures kernels that use them.

use crate::numeric::{clamp, round};
use crate::sums::LANES;
#[cfg(target_arch = "x86_64")]
pub(crate) use permuted::{PermutedLevels, PermutedSearch};

/// Entries of the largest table.
pub const MOST_LEVELS: usize = 256;

/// Entries of a table in registers.
const FEW_LEVELS: usize = 16;

/// Finds the entry that belongs to a number: the one with as many before it as the number reaches
/// thresholds, 32 bits of any meaning.
pub(crate) trait Search: Clone + Sync {
    /// The entries that belong to `v`, none of which is NaN.
    fn find(&self, v: [f32; LANES]) -> [u32; LANES];
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
    /// What finds `level * scale + offset`. Any code is safe, and 0 where it has no level.
    fn scaled(
        &self,
        scale: f32,
        offset: f32,
    ) -> impl Fn([u8; LANES]) -> [f32; LANES] + Copy + use<'_, Self>;
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
    fn find(&self, v: [f32; LANES]) -> [u32; LANES] {
        let (mut ranks, mut step) = ([0_u8; LANES], self.half);
        while step > 0 {
            for (rank, v) in ranks.iter_mut().zip(v) {
                let reached = v >= self.thresholds[usize::from(*rank | (step - 1))];
                *rank |= if reached { step } else { 0 };
            }
            step /= 2;
        }
        ranks.map(|rank| self.entries[usize::from(rank)])
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
    fn find(&self, v: [f32; LANES]) -> [u32; LANES] {
        v.map(|v| round(clamp(v, self.least, self.greatest)).to_bits())
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
    fn scaled(
        &self,
        scale: f32,
        offset: f32,
    ) -> impl Fn([u8; LANES]) -> [f32; LANES] + Copy + use<'_> {
        move |codes| codes.map(|code| self.0[usize::from(code)] * scale + offset)
    }
}

#[cfg(target_arch = "x86_64")]
mod permuted {
    use std::arch::x86_64::{
        __m128i, __m256, __m256i, _CMP_GE_OQ, _mm_loadu_si128, _mm256_add_epi32, _mm256_blendv_ps,
        _mm256_castps_si256, _mm256_castsi256_ps, _mm256_cmp_ps, _mm256_cvtepu8_epi32,
        _mm256_loadu_ps, _mm256_permutevar_ps, _mm256_permutevar8x32_ps, _mm256_set1_ps,
        _mm256_slli_epi32, _mm256_storeu_ps,
    };

    use super::{FEW_LEVELS, LANES, Levels, ReloadableSearch, Search, ascending, padded};
    use crate::simd::{Level, reaches};

    /// Elements of a vector of AVX2.
    const EIGHT: usize = 8;

    /// Binary search, in which a permutation picks the threshold of each step. The steps before it
    /// say where: a comparison that holds is -1, so positions count down from 0, modulo the size.
    #[derive(Clone)]
    pub(crate) struct PermutedSearch {
        first: f32,
        second: [f32; EIGHT],
        third: [f32; EIGHT],
        fourth: [f32; EIGHT],
        /// Entries of even and odd ranks, as floats that are moved and never computed with.
        even: [f32; EIGHT],
        odd: [f32; EIGHT],
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
            let none = [f32::NAN; EIGHT];
            let (even, odd) = (every_second(0), every_second(1));
            Some(Self { first: f32::NAN, second: none, third: none, fourth: none, even, odd })
        }

        /// # Safety
        /// The CPU has AVX2.
        #[inline(always)]
        unsafe fn find_eight(&self, v: &[f32; EIGHT], found: &mut [f32; EIGHT]) {
            // SAFETY: eight float32 are read from each array and eight are written, wherever they
            // lie; the caller has AVX2.
            unsafe {
                let load = |x: &[f32; EIGHT]| _mm256_loadu_ps(x.as_ptr());
                let v = load(v);
                let reached = |threshold: __m256| _mm256_cmp_ps::<_CMP_GE_OQ>(v, threshold);
                let then = |place: __m256i, reached: __m256| {
                    let twice = _mm256_add_epi32(place, place);
                    _mm256_add_epi32(twice, _mm256_castps_si256(reached))
                };
                let place = _mm256_castps_si256(reached(_mm256_set1_ps(self.first)));
                let place = then(place, reached(_mm256_permutevar_ps(load(&self.second), place)));
                let place = then(place, reached(_mm256_permutevar_ps(load(&self.third), place)));
                let pick = |x: &[f32; EIGHT]| _mm256_permutevar8x32_ps(load(x), place);
                let last = reached(pick(&self.fourth));
                let entries = _mm256_blendv_ps(pick(&self.even), pick(&self.odd), last);
                _mm256_storeu_ps(found.as_mut_ptr(), entries);
            }
        }
    }

    /// A table in which the element `index` lies `index` places below 0, modulo the size.
    #[inline(always)]
    fn downwards(element: impl Fn(usize) -> f32) -> [f32; EIGHT] {
        std::array::from_fn(|place| element((EIGHT - place) % EIGHT))
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
        fn find(&self, v: [f32; LANES]) -> [u32; LANES] {
            let mut found = [0.0; LANES];
            for (v, found) in v.as_chunks().0.iter().zip(found.as_chunks_mut().0) {
                // SAFETY: `new` makes none without AVX2.
                unsafe { self.find_eight(v, found) };
            }
            found.map(f32::to_bits)
        }
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
        fn scaled(
            &self,
            scale: f32,
            offset: f32,
        ) -> impl Fn([u8; LANES]) -> [f32; LANES] + Copy + use<'_> {
            // As many products as there are levels, and not numbers.
            let scaled = self.0.map(|level| level * scale + offset);
            move |codes| {
                let mut found = [0.0; LANES];
                // SAFETY: `new` makes none without AVX2.
                unsafe { pick_sixteen(&scaled, &codes, &mut found) };
                found
            }
        }
    }

    /// `found[i] = table[codes[i] % 16]`.
    ///
    /// # Safety
    /// The CPU has AVX2.
    #[inline(always)]
    unsafe fn pick_sixteen(table: &[f32; 16], codes: &[u8; 16], found: &mut [f32; 16]) {
        // SAFETY: halves of sixteen float32 and bytes are read and written, wherever they lie; the
        // caller has AVX2.
        unsafe {
            let low = _mm256_loadu_ps(table.as_ptr());
            let high = _mm256_loadu_ps(table.as_ptr().add(EIGHT));
            let codes = _mm_loadu_si128(codes.as_ptr().cast());
            let pick = |codes: __m128i| {
                let codes = _mm256_cvtepu8_epi32(codes);
                let is_high = _mm256_castsi256_ps(_mm256_slli_epi32::<28>(codes));
                let low = _mm256_permutevar8x32_ps(low, codes);
                let high = _mm256_permutevar8x32_ps(high, codes);
                _mm256_blendv_ps(low, high, is_high)
            };
            _mm256_storeu_ps(found.as_mut_ptr(), pick(codes));
            let upper = std::arch::x86_64::_mm_srli_si128::<8>(codes);
            _mm256_storeu_ps(found.as_mut_ptr().add(EIGHT), pick(upper));
        }
    }
}
