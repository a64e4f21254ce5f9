//! AVX2, alone and with VNNI: registers of eight lanes.

use std::arch::x86_64::{
    __m128i, __m256i, _mm_loadu_si128, _mm_set1_epi32, _mm256_add_epi32, _mm256_and_si256,
    _mm256_blendv_ps, _mm256_castsi256_ps, _mm256_cvtepi8_epi16, _mm256_cvtepi32_ps,
    _mm256_cvtepu8_epi16, _mm256_dpbusd_avx_epi32, _mm256_hadd_epi32, _mm256_loadu_si256,
    _mm256_madd_epi16, _mm256_permute4x64_epi64, _mm256_permutevar8x32_ps, _mm256_set1_epi32,
    _mm256_setzero_si256, _mm256_slli_epi32, _mm256_srai_epi32, _mm256_srli_epi32,
    _mm256_storeu_ps, _mm256_storeu_si256, _mm256_sub_ps,
};

use super::{four, steps_of};
use crate::dot::{Dot, Fours, INPUTS, Line, NIBBLES, OUTPUTS, Row, Sums, nibble_shift};

/// Only `run` of [`at_avxvnni`] names it.
pub(super) struct AvxVnni;

impl Dot for AvxVnni {
    #[inline(always)]
    fn tile<const R: usize, const C: usize>(
        rows: Fours<'_>,
        blocks: [&[Line]; C],
    ) -> [[Sums; C]; R] {
        let (rows, steps) = (rows.rows::<R>(), steps_of(rows, &blocks));
        let mut out = [[[0; OUTPUTS]; C]; R];
        for c in 0..C {
            // SAFETY: this is inlined into `run`, which has the features; all slices have `steps`
            // elements, and lines, like sums, have the 64 bytes of two registers.
            unsafe {
                let mut sums = [[_mm256_setzero_si256(); 2]; R];
                for step in 0..steps {
                    let line: *const __m256i = blocks[c].as_ptr().add(step).cast();
                    let line = [_mm256_loadu_si256(line), _mm256_loadu_si256(line.add(1))];
                    for r in 0..R {
                        let x = _mm256_set1_epi32(four(rows[r], step));
                        for half in 0..2 {
                            sums[r][half] = _mm256_dpbusd_avx_epi32(sums[r][half], x, line[half]);
                        }
                    }
                }
                for r in 0..R {
                    store(&mut out[r][c], sums[r]);
                }
            }
        }
        out
    }

    #[inline(always)]
    fn split_nibbles(line: &Line) -> [Line; 2] {
        // SAFETY: this is inlined into `run`, which has the features.
        unsafe { split_nibbles(line) }
    }

    #[inline(always)]
    fn nibble_levels(line: &Line, table: &Row, zero_point: &Row, levels: &mut [Row; NIBBLES]) {
        // SAFETY: as above.
        unsafe { nibble_levels(line, table, zero_point, levels) }
    }

    #[inline(always)]
    fn byte_levels(line: &Line, zero_point: &Row, levels: &mut [Row; INPUTS]) {
        // SAFETY: as above.
        unsafe { byte_levels(line, zero_point, levels) }
    }
}

/// Only `run` of [`at_avx2`] names it.
pub(super) struct Avx2;

impl Dot for Avx2 {
    #[inline(always)]
    fn tile<const R: usize, const C: usize>(
        rows: Fours<'_>,
        blocks: [&[Line]; C],
    ) -> [[Sums; C]; R] {
        let (rows, steps) = (rows.rows::<R>(), steps_of(rows, &blocks));
        let mut out = [[[0; OUTPUTS]; C]; R];
        for c in 0..C {
            let mut r = 0;
            while r + 2 <= R {
                // SAFETY: this is inlined into `run`, which has the features; all slices have
                // `steps` elements.
                let sums = unsafe { widened::<2>([rows[r], rows[r + 1]], blocks[c], steps) };
                [out[r][c], out[r + 1][c]] = sums;
                r += 2;
            }
            if r < R {
                // SAFETY: as above.
                [out[r][c]] = unsafe { widened::<1>([rows[r]], blocks[c], steps) };
            }
        }
        out
    }

    #[inline(always)]
    fn split_nibbles(line: &Line) -> [Line; 2] {
        // SAFETY: this is inlined into `run`, which has the features.
        unsafe { split_nibbles(line) }
    }

    #[inline(always)]
    fn nibble_levels(line: &Line, table: &Row, zero_point: &Row, levels: &mut [Row; NIBBLES]) {
        // SAFETY: as above.
        unsafe { nibble_levels(line, table, zero_point, levels) }
    }

    #[inline(always)]
    fn byte_levels(line: &Line, zero_point: &Row, levels: &mut [Row; INPUTS]) {
        // SAFETY: as above.
        unsafe { byte_levels(line, zero_point, levels) }
    }
}

/// The two halves of a line or a row.
///
/// # Safety
/// The CPU must have AVX, and `place` 64 bytes.
#[inline(always)]
unsafe fn halves_of<T>(place: *const T) -> [__m256i; 2] {
    let place: *const __m256i = place.cast();
    // SAFETY: the caller vouches for it.
    unsafe { [_mm256_loadu_si256(place), _mm256_loadu_si256(place.add(1))] }
}

/// [`Dot::split_nibbles`] with AVX2.
///
/// # Safety
/// The CPU must have AVX2.
#[inline(always)]
unsafe fn split_nibbles(line: &Line) -> [Line; 2] {
    let mut halves = [Line::ZERO; 2];
    // SAFETY: a line has the 64 bytes of two registers; the caller vouches for the rest.
    unsafe {
        let mask = _mm256_set1_epi32(0x0f0f_0f0f);
        for (half, nibbles) in halves_of(line).into_iter().enumerate() {
            for (bytes, to) in
                [nibbles, _mm256_srli_epi32::<4>(nibbles)].into_iter().zip(&mut halves)
            {
                let place: *mut __m256i = to.0.as_mut_ptr().cast();
                _mm256_storeu_si256(place.add(half), _mm256_and_si256(bytes, mask));
            }
        }
    }
    halves
}

/// [`Dot::nibble_levels`] with AVX2.
///
/// # Safety
/// The CPU must have AVX2.
#[inline(always)]
unsafe fn nibble_levels(line: &Line, table: &Row, zero_point: &Row, levels: &mut [Row; NIBBLES]) {
    // SAFETY: lines and rows have the 64 bytes of two registers; the caller vouches for the rest.
    unsafe {
        let codes = halves_of(line);
        let [low, high] = halves_of(table);
        let (low, high) = (_mm256_castsi256_ps(low), _mm256_castsi256_ps(high));
        let zero_points = halves_of(zero_point);
        macro_rules! level {
            ($($input:literal)*) => {$(
                for half in 0..2 {
                    // The lowest three bits of a lane are its index, and the next one says where.
                    let index = _mm256_srli_epi32::<{ nibble_shift($input) as i32 }>(codes[half]);
                    let is_high = _mm256_castsi256_ps(_mm256_slli_epi32::<28>(index));
                    let level = _mm256_blendv_ps(
                        _mm256_permutevar8x32_ps(low, index),
                        _mm256_permutevar8x32_ps(high, index),
                        is_high,
                    );
                    let level = _mm256_sub_ps(level, _mm256_castsi256_ps(zero_points[half]));
                    _mm256_storeu_ps(levels[$input].as_mut_ptr().add(8 * half), level);
                }
            )*};
        }
        level!(0 1 2 3 4 5 6 7);
    }
}

/// [`Dot::byte_levels`] with AVX2.
///
/// # Safety
/// The CPU must have AVX2.
#[inline(always)]
unsafe fn byte_levels(line: &Line, zero_point: &Row, levels: &mut [Row; INPUTS]) {
    // SAFETY: lines and rows have the 64 bytes of two registers; the caller vouches for the rest.
    unsafe {
        let (codes, zero_points) = (halves_of(line), halves_of(zero_point));
        macro_rules! level {
            ($($input:literal)*) => {$(
                for half in 0..2 {
                    let code = _mm256_slli_epi32::<{ 24 - 8 * $input }>(codes[half]);
                    let code = _mm256_cvtepi32_ps(_mm256_srai_epi32::<24>(code));
                    let level = _mm256_sub_ps(code, _mm256_castsi256_ps(zero_points[half]));
                    _mm256_storeu_ps(levels[$input].as_mut_ptr().add(8 * half), level);
                }
            )*};
        }
        level!(0 1 2 3);
    }
}

/// The sums of `R` rows with one block, by products of i16.
///
/// # Safety
/// The CPU must have AVX2, and all slices `steps` elements.
#[inline(always)]
unsafe fn widened<const R: usize>(
    rows: [&[[u8; INPUTS]]; R],
    block: &[Line],
    steps: usize,
) -> [Sums; R] {
    let mut out = [[0; OUTPUTS]; R];
    // SAFETY: lines have the 64 bytes of four loads; the caller vouches for the rest.
    unsafe {
        // Each quarter of a block: four outputs, of which two sums of two products lie side by side.
        let mut sums = [[_mm256_setzero_si256(); 4]; R];
        for step in 0..steps {
            let line: *const __m128i = block.as_ptr().add(step).cast();
            let mut x = [_mm256_setzero_si256(); R];
            for r in 0..R {
                x[r] = _mm256_cvtepu8_epi16(_mm_set1_epi32(four(rows[r], step)));
            }
            for quarter in 0..4 {
                let w = _mm256_cvtepi8_epi16(_mm_loadu_si128(line.add(quarter)));
                for r in 0..R {
                    let products = _mm256_madd_epi16(x[r], w);
                    sums[r][quarter] = _mm256_add_epi32(sums[r][quarter], products);
                }
            }
        }
        for r in 0..R {
            // Adding neighbours takes quarters in turn for each half of a register.
            let mut halves = [_mm256_setzero_si256(); 2];
            for half in 0..2 {
                let both = _mm256_hadd_epi32(sums[r][2 * half], sums[r][2 * half + 1]);
                halves[half] = _mm256_permute4x64_epi64::<0b11_01_10_00>(both);
            }
            store(&mut out[r], halves);
        }
    }
    out
}

/// Writes the sums of a block.
///
/// # Safety
/// The CPU must have AVX.
#[inline(always)]
unsafe fn store(out: &mut Sums, halves: [__m256i; 2]) {
    let place: *mut __m256i = out.as_mut_ptr().cast();
    // SAFETY: the sums have the 64 bytes of two registers.
    unsafe {
        _mm256_storeu_si256(place, halves[0]);
        _mm256_storeu_si256(place.add(1), halves[1]);
    }
}
