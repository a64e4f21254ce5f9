//! AVX-512 with VNNI: registers of sixteen lanes, and permutations that look sixteen levels up.

use std::arch::x86_64::{
    _mm_cvtsi32_si128, _mm512_and_si512, _mm512_cvtepi32_ps, _mm512_dpbusd_epi32, _mm512_fmadd_ps,
    _mm512_loadu_ps, _mm512_loadu_si512, _mm512_permutexvar_ps, _mm512_set1_epi32, _mm512_set1_ps,
    _mm512_setzero_si512, _mm512_slli_epi32, _mm512_srai_epi32, _mm512_srl_epi32,
    _mm512_srli_epi32, _mm512_storeu_ps, _mm512_storeu_si512, _mm512_sub_ps,
};

use super::{four, steps_of};
use crate::dot::{Dot, Fours, INPUTS, Line, NIBBLES, OUTPUTS, Row, Sums, nibble_shift};

/// Only [`at_avx512`] names it.
pub(super) struct Avx512Vnni;

impl Dot for Avx512Vnni {
    const FEW_ROWS: usize = 16;

    #[inline(always)]
    fn tile<const R: usize, const C: usize>(
        rows: Fours<'_>,
        blocks: [&[Line]; C],
    ) -> [[Sums; C]; R] {
        let (rows, steps) = (rows.rows::<R>(), steps_of(rows, &blocks));
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
        rows: Fours<'_>,
        blocks: [&[Line]; C],
    ) -> [[Sums; C]; R] {
        let (rows, steps) = (rows.rows::<R>(), blocks[0].len());
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
