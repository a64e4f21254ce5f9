//! Sums of products of bytes by the instructions that x86 has for them.
//!
//! AVX-512 VNNI and AVX-VNNI multiply four u8 with four i8 and add the products to an i32, all in one
//! instruction, VPDPBUSD. AVX2 widens both to i16, of which VPMADDWD adds two products exactly.
//! `cargo bench -- matmul_int8` measures them.
//!
//! Loops count instead of iterating: closures and iterators are functions without these instruction
//! sets, into which intrinsics are not inlined.

#![expect(clippy::needless_range_loop, reason = "see above")]

use std::arch::x86_64::{
    __m128i, __m256i, _mm_cvtsi32_si128, _mm_loadu_si128, _mm_set1_epi32, _mm256_add_epi32,
    _mm256_and_si256, _mm256_blendv_ps, _mm256_castsi256_ps, _mm256_cvtepi8_epi16,
    _mm256_cvtepi32_ps, _mm256_cvtepu8_epi16, _mm256_dpbusd_avx_epi32, _mm256_hadd_epi32,
    _mm256_loadu_si256, _mm256_madd_epi16, _mm256_permute4x64_epi64, _mm256_permutevar8x32_ps,
    _mm256_set1_epi32, _mm256_setzero_si256, _mm256_slli_epi32, _mm256_srai_epi32,
    _mm256_srli_epi32, _mm256_storeu_ps, _mm256_storeu_si256, _mm256_sub_ps, _mm512_and_si512,
    _mm512_cvtepi32_ps, _mm512_dpbusd_epi32, _mm512_fmadd_ps, _mm512_loadu_ps, _mm512_loadu_si512,
    _mm512_permutexvar_ps, _mm512_set1_epi32, _mm512_set1_ps, _mm512_setzero_si512,
    _mm512_slli_epi32, _mm512_srai_epi32, _mm512_srl_epi32, _mm512_srli_epi32, _mm512_storeu_ps,
    _mm512_storeu_si512, _mm512_sub_ps,
};

use crate::dot::{Dot, INPUTS, Line, NIBBLES, OUTPUTS, Row, Sums, Work, nibble_shift};

/// Runs `work` with AVX-512 VNNI.
pub(crate) fn at_avx512<W: Work>(work: W) {
    #[target_feature(enable = "avx,avx2,fma,bmi1,bmi2,f16c,lzcnt,movbe,popcnt")]
    #[target_feature(enable = "avx512f,avx512bw,avx512cd,avx512dq,avx512vl")]
    #[target_feature(enable = "avx512vbmi,avx512vnni")]
    fn run<W: Work>(work: W) {
        work.run::<Avx512Vnni>();
    }
    // SAFETY: `at_level` calls this where the level has all these features.
    unsafe { run(work) }
}

/// Runs `work` with AVX-VNNI.
pub(crate) fn at_avxvnni<W: Work>(work: W) {
    #[target_feature(enable = "avx,avx2,fma,bmi1,bmi2,f16c,lzcnt,movbe,popcnt,avxvnni")]
    fn run<W: Work>(work: W) {
        work.run::<AvxVnni>();
    }
    // SAFETY: `at_level` calls this where the level has all these features.
    unsafe { run(work) }
}

/// Runs `work` with AVX2.
pub(crate) fn at_avx2<W: Work>(work: W) {
    #[target_feature(enable = "avx,avx2,fma,bmi1,bmi2,f16c,lzcnt,movbe,popcnt")]
    fn run<W: Work>(work: W) {
        work.run::<Avx2>();
    }
    // SAFETY: `at_level` calls this where the level has all these features.
    unsafe { run(work) }
}

/// Only `run` of [`at_avx512`] names it.
struct Avx512Vnni;

impl Dot for Avx512Vnni {
    const FEW_ROWS: usize = 2;

    #[inline(always)]
    fn tile<const R: usize, const C: usize>(
        rows: [&[[u8; INPUTS]]; R],
        blocks: [&[Line]; C],
    ) -> [[Sums; C]; R] {
        let steps = steps_of(&rows, &blocks);
        let mut out = [[[0; OUTPUTS]; C]; R];
        // SAFETY: this is inlined into `run`, which has the features; all slices have `steps`
        // elements, and lines, like sums, have the 64 bytes of a register.
        unsafe {
            let mut sums = [[_mm512_setzero_si512(); C]; R];
            for step in 0..steps {
                let mut lines = [_mm512_setzero_si512(); C];
                for c in 0..C {
                    lines[c] = _mm512_loadu_si512(blocks[c].as_ptr().add(step).cast());
                }
                for r in 0..R {
                    let x = _mm512_set1_epi32(four(rows[r], step));
                    for c in 0..C {
                        sums[r][c] = _mm512_dpbusd_epi32(sums[r][c], x, lines[c]);
                    }
                }
            }
            for r in 0..R {
                for c in 0..C {
                    _mm512_storeu_si512(out[r][c].as_mut_ptr().cast(), sums[r][c]);
                }
            }
        }
        out
    }

    #[inline(always)]
    fn nibble_tile<const R: usize, const C: usize>(
        rows: [&[[u8; INPUTS]]; R],
        blocks: [&[Line]; C],
    ) -> [[Sums; C]; R] {
        let steps = blocks[0].len();
        assert!(rows.iter().all(|row| row.len() == 2 * steps));
        assert!(blocks.iter().all(|block| block.len() == steps));
        let mut out = [[[0; OUTPUTS]; C]; R];
        // SAFETY: this is inlined into `run`, which has the features; rows have two fours for each
        // line, and lines, like sums, have the 64 bytes of a register.
        unsafe {
            let mask = _mm512_set1_epi32(0x0f0f_0f0f);
            let mut sums = [[_mm512_setzero_si512(); C]; R];
            for step in 0..steps {
                let mut halves = [[_mm512_setzero_si512(); 2]; C];
                for c in 0..C {
                    let line = _mm512_loadu_si512(blocks[c].as_ptr().add(step).cast());
                    halves[c][0] = _mm512_and_si512(line, mask);
                    halves[c][1] = _mm512_and_si512(_mm512_srli_epi32::<4>(line), mask);
                }
                for half in 0..2 {
                    for r in 0..R {
                        let x = _mm512_set1_epi32(four(rows[r], 2 * step + half));
                        for c in 0..C {
                            sums[r][c] = _mm512_dpbusd_epi32(sums[r][c], x, halves[c][half]);
                        }
                    }
                }
            }
            for r in 0..R {
                for c in 0..C {
                    _mm512_storeu_si512(out[r][c].as_mut_ptr().cast(), sums[r][c]);
                }
            }
        }
        out
    }

    #[inline(always)]
    fn nibble_chains<const R: usize, const C: usize>(
        x: [&[f32]; R],
        blocks: [&[Line]; C],
        table: &Row,
        zero_points: Option<[&Row; C]>,
        sums: [[Row; C]; R],
    ) -> [[Row; C]; R] {
        let len = x[0].len();
        assert!(x.iter().all(|x| x.len() == len));
        assert!(blocks.iter().all(|block| block.len() == len.div_ceil(NIBBLES)));
        // SAFETY: this is inlined into `run`, which has the features; the slices are as long as
        // `chains` needs.
        unsafe {
            match zero_points {
                None => chains::<R, C, false>(x, blocks, table, [table; C], sums),
                Some(zero_points) => chains::<R, C, true>(x, blocks, table, zero_points, sums),
            }
        }
    }

    #[inline(always)]
    fn split_nibbles(line: &Line) -> [Line; 2] {
        let mut halves = [Line::ZERO; 2];
        // SAFETY: this is inlined into `run`, which has the features; a line is a register.
        unsafe {
            let nibbles = _mm512_loadu_si512(line.0.as_ptr().cast());
            let mask = _mm512_set1_epi32(0x0f0f_0f0f);
            let (low, high) = (nibbles, _mm512_srli_epi32::<4>(nibbles));
            for (half, bytes) in halves.iter_mut().zip([low, high]) {
                let bytes = _mm512_and_si512(bytes, mask);
                _mm512_storeu_si512(half.0.as_mut_ptr().cast(), bytes);
            }
        }
        halves
    }

    #[inline(always)]
    fn nibble_levels(line: &Line, table: &Row, zero_point: &Row, levels: &mut [Row; NIBBLES]) {
        // SAFETY: this is inlined into `run`, which has the features; lines and rows are registers.
        unsafe {
            let codes = _mm512_loadu_si512(line.0.as_ptr().cast());
            let table = _mm512_loadu_ps(table.as_ptr());
            let zero_point = _mm512_loadu_ps(zero_point.as_ptr());
            macro_rules! level {
                ($($input:literal)*) => {$(
                    // The lowest four bits of a lane are its index.
                    let index = _mm512_srli_epi32::<{ nibble_shift($input) as u32 }>(codes);
                    let level = _mm512_permutexvar_ps(index, table);
                    let level = _mm512_sub_ps(level, zero_point);
                    _mm512_storeu_ps(levels[$input].as_mut_ptr(), level);
                )*};
            }
            level!(0 1 2 3 4 5 6 7);
        }
    }

    #[inline(always)]
    fn byte_levels(line: &Line, zero_point: &Row, levels: &mut [Row; INPUTS]) {
        // SAFETY: as above.
        unsafe {
            let codes = _mm512_loadu_si512(line.0.as_ptr().cast());
            let zero_point = _mm512_loadu_ps(zero_point.as_ptr());
            macro_rules! level {
                ($($input:literal)*) => {$(
                    let code = _mm512_slli_epi32::<{ 24 - 8 * $input }>(codes);
                    let code = _mm512_cvtepi32_ps(_mm512_srai_epi32::<24>(code));
                    let level = _mm512_sub_ps(code, zero_point);
                    _mm512_storeu_ps(levels[$input].as_mut_ptr(), level);
                )*};
            }
            level!(0 1 2 3);
        }
    }
}

/// [`Dot::nibble_chains`] with AVX-512; `Z` says whether there are zero points.
///
/// # Safety
/// The CPU must have AVX-512, all of `x` one length, and blocks a line for each eight of them.
#[inline(always)]
unsafe fn chains<const R: usize, const C: usize, const Z: bool>(
    x: [&[f32]; R],
    blocks: [&[Line]; C],
    table: &Row,
    zero_points: [&Row; C],
    mut sums: [[Row; C]; R],
) -> [[Row; C]; R] {
    // SAFETY: lines and rows are registers, and inputs are counted up to the length of all of them;
    // the caller vouches for the rest.
    unsafe {
        let table = _mm512_loadu_ps(table.as_ptr());
        let mut s = [[table; C]; R];
        let mut z = [table; C];
        for c in 0..C {
            z[c] = _mm512_loadu_ps(zero_points[c].as_ptr());
            for r in 0..R {
                s[r][c] = _mm512_loadu_ps(sums[r][c].as_ptr());
            }
        }
        macro_rules! add {
            ($index:expr, $c:ident, $input:expr) => {
                // The lowest four bits of a lane are its index.
                let mut level = _mm512_permutexvar_ps($index, table);
                if Z {
                    level = _mm512_sub_ps(level, z[$c]);
                }
                for r in 0..R {
                    let x = _mm512_set1_ps(*x[r].get_unchecked($input));
                    s[r][$c] = _mm512_fmadd_ps(x, level, s[r][$c]);
                }
            };
        }
        let len = x[0].len();
        for step in 0..len / NIBBLES {
            let mut lines = [_mm512_setzero_si512(); C];
            for c in 0..C {
                lines[c] = _mm512_loadu_si512(blocks[c].as_ptr().add(step).cast());
            }
            macro_rules! each {
                ($($input:literal)*) => {$(
                    for c in 0..C {
                        let index =
                            _mm512_srli_epi32::<{ nibble_shift($input) as u32 }>(lines[c]);
                        add!(index, c, step * NIBBLES + $input);
                    }
                )*};
            }
            each!(0 1 2 3 4 5 6 7);
        }
        for input in len / NIBBLES * NIBBLES..len {
            for c in 0..C {
                let line = blocks[c].as_ptr().add(input / NIBBLES).cast();
                let shift = _mm_cvtsi32_si128(nibble_shift(input % NIBBLES) as i32);
                let index = _mm512_srl_epi32(_mm512_loadu_si512(line), shift);
                add!(index, c, input);
            }
        }
        for r in 0..R {
            for c in 0..C {
                _mm512_storeu_ps(sums[r][c].as_mut_ptr(), s[r][c]);
            }
        }
    }
    sums
}

/// Only `run` of [`at_avxvnni`] names it.
struct AvxVnni;

impl Dot for AvxVnni {
    #[inline(always)]
    fn tile<const R: usize, const C: usize>(
        rows: [&[[u8; INPUTS]]; R],
        blocks: [&[Line]; C],
    ) -> [[Sums; C]; R] {
        let steps = steps_of(&rows, &blocks);
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
struct Avx2;

impl Dot for Avx2 {
    #[inline(always)]
    fn tile<const R: usize, const C: usize>(
        rows: [&[[u8; INPUTS]]; R],
        blocks: [&[Line]; C],
    ) -> [[Sums; C]; R] {
        let steps = steps_of(&rows, &blocks);
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

/// Four inputs of a row as one lane.
///
/// # Safety
/// `step` must be below the length of `row`.
#[inline(always)]
unsafe fn four(row: &[[u8; INPUTS]], step: usize) -> i32 {
    // SAFETY: the caller vouches for the index.
    i32::from_le_bytes(unsafe { *row.get_unchecked(step) })
}

/// How many lines the blocks have, checked to be the length of all slices.
#[inline(always)]
fn steps_of(rows: &[&[[u8; INPUTS]]], blocks: &[&[Line]]) -> usize {
    let steps = blocks[0].len();
    assert!(rows.iter().all(|row| row.len() == steps));
    assert!(blocks.iter().all(|block| block.len() == steps));
    steps
}
