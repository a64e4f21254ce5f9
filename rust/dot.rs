//! Sums of products of bytes: rows of u8 with outputs of i8, a tile of both at a time.
//!
//! One trait for the instruction sets, and [`at_level`] that picks one. All of them are exact:
//! where an instruction would saturate (VPMADDUBSW), it is not used. Sums wrap as i32 does.

use std::ops::Range;

#[cfg(target_arch = "x86_64")]
use crate::dot_x86;
use crate::simd::{Level, level};

/// Outputs whose weights lie side by side.
pub(crate) const OUTPUTS: usize = 16;

/// Inputs of one output that lie side by side: what a 32-bit lane multiplies at once.
pub(crate) const INPUTS: usize = 4;

/// Most rows, and blocks of outputs, of a tile: their sums fill 24 of 32 registers.
pub(crate) const TILE_ROWS: usize = 6;
pub(crate) const TILE_BLOCKS: usize = 4;

/// Rows and blocks of the tiles of [`Dot::HAS_MATRICES`]; also half as many rows.
pub(crate) const MATRIX_ROWS: usize = 32;
pub(crate) const HALF_MATRIX_ROWS: usize = MATRIX_ROWS / 2;
pub(crate) const MATRIX_BLOCKS: usize = 2;

/// Inputs of [`Dot::bf16_tile`] come in multiples of these.
pub(crate) const BF16_INPUTS: usize = 32;

/// Weights of 16 outputs for four inputs: a cache line, and a register. An output has a lane, its
/// first input the lowest byte.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
pub(crate) struct Line(pub [u32; OUTPUTS]);

impl Line {
    pub(crate) const ZERO: Self = Self([0; OUTPUTS]);

    /// Sets a weight that is still 0.
    pub(crate) fn set(&mut self, output: usize, input: usize, code: i8) {
        self.0[output] |= u32::from(code as u8) << (8 * input);
    }

    /// A weight.
    #[inline(always)]
    pub(crate) fn get(&self, output: usize, input: usize) -> i8 {
        (self.0[output] >> (8 * input)) as i8
    }
}

/// Rows of bytes in fours, each `steps` of them, that begin `stride` fours behind one another.
#[derive(Clone, Copy)]
pub(crate) struct Fours<'a> {
    pub bytes: &'a [[u8; INPUTS]],
    pub stride: usize,
    pub steps: usize,
}

impl<'a> Fours<'a> {
    /// The first `R` rows.
    #[inline(always)]
    pub(crate) fn rows<const R: usize>(self) -> [&'a [[u8; INPUTS]]; R] {
        let mut rows: [&[[u8; INPUTS]]; R] = [&[]; R];
        for r in 0..R {
            rows[r] = &self.bytes[r * self.stride..][..self.steps];
        }
        rows
    }

    /// Some fours of every row.
    #[inline(always)]
    pub(crate) fn part(self, steps: Range<usize>) -> Self {
        Self { bytes: &self.bytes[steps.start..], stride: self.stride, steps: steps.len() }
    }
}

/// Sums of a block of outputs.
pub(crate) type Sums = [i32; OUTPUTS];

/// Codes of a lane of four bits each: that of input i in the low half of byte i, of input i + 4 in
/// the high half.
pub(crate) const NIBBLES: usize = 2 * INPUTS;

/// Where the code of an input begins in a lane of nibbles.
pub(crate) const fn nibble_shift(input: usize) -> usize {
    input % INPUTS * 8 + input / INPUTS * 4
}

/// Numbers of 16 outputs.
pub(crate) type Row = [f32; OUTPUTS];

/// How an instruction set multiplies, and unpacks what it multiplies. The bodies here are plain Rust;
/// compilers make vectors of neither.
pub(crate) trait Dot {
    /// Rows for which it is faster to take nibbles as they lie than to unpack them first.
    const FEW_ROWS: usize = 0;

    /// Whether registers hold matrices: tiles of [`MATRIX_ROWS`], or half as many, by
    /// [`MATRIX_BLOCKS`] are fastest then.
    const HAS_MATRICES: bool = false;

    /// The sums of `R` rows with `C` blocks of weights, a line for each four bytes of a row.
    fn tile<const R: usize, const C: usize>(
        rows: Fours<'_>,
        blocks: [&[Line]; C],
    ) -> [[Sums; C]; R];

    /// As [`Dot::tile`], with blocks of nibbles: a line for each eight bytes of a row.
    #[inline(always)]
    fn nibble_tile<const R: usize, const C: usize>(
        rows: Fours<'_>,
        blocks: [&[Line]; C],
    ) -> [[Sums; C]; R] {
        let mut sums: [[Sums; C]; R] = [[[0; OUTPUTS]; C]; R];
        for step in 0..blocks[0].len() {
            let eights = rows.part(2 * step..2 * step + 2);
            for c in 0..C {
                let products = Self::tile::<R, 1>(eights, [&Self::split_nibbles(&blocks[c][step])]);
                for r in 0..R {
                    for lane in 0..OUTPUTS {
                        let sum = &mut sums[r][c][lane];
                        *sum = sum.wrapping_add(products[r][0][lane]);
                    }
                }
            }
        }
        sums
    }

    /// s = fma(x, level, s) over the inputs `x` of `R` rows, with blocks of nibbles that name entries
    /// of `table`, less the zero points if there are any.
    #[inline(always)]
    fn nibble_chains<const R: usize, const C: usize>(
        x: [&[f32]; R],
        blocks: [&[Line]; C],
        table: &Row,
        zero_points: Option<[&Row; C]>,
        mut sums: [[Row; C]; R],
    ) -> [[Row; C]; R] {
        let mut levels = [[0.0; OUTPUTS]; NIBBLES];
        for c in 0..C {
            let zero_point = zero_points.map_or(&[0.0; OUTPUTS], |z| z[c]);
            for (step, line) in blocks[c].iter().enumerate() {
                Self::nibble_levels(line, table, zero_point, &mut levels);
                for r in 0..R {
                    for (x, level) in x[r][step * NIBBLES..].iter().zip(&levels) {
                        for lane in 0..OUTPUTS {
                            sums[r][c][lane] = x.mul_add(level[lane], sums[r][c][lane]);
                        }
                    }
                }
            }
        }
        sums
    }

    /// Sums of float32 in the order that is fastest, of two parts of `R` rows with `C` blocks, all of
    /// them pairs of bfloat16 numbers.
    #[inline(always)]
    fn bf16_tile<const R: usize, const C: usize>(
        parts: [Fours<'_>; 2],
        blocks: [&[Line]; C],
    ) -> [[Row; C]; R] {
        let mut sums = [[[0.0; OUTPUTS]; C]; R];
        for part in parts {
            for (row, sums) in part.rows::<R>().into_iter().zip(&mut sums) {
                for (block, sums) in blocks.iter().zip(sums) {
                    for (x, line) in row.iter().zip(*block) {
                        let x = u32::from_le_bytes(*x);
                        for (sum, w) in sums.iter_mut().zip(line.0) {
                            for (x, w) in [(x << 16, w << 16), (x, w)] {
                                let high = |pair: u32| f32::from_bits(pair & 0xffff_0000);
                                *sum = high(x).mul_add(high(w), *sum);
                            }
                        }
                    }
                }
            }
        }
        sums
    }

    /// A line of nibbles as two lines of bytes.
    #[inline(always)]
    fn split_nibbles(line: &Line) -> [Line; 2] {
        let half = |shift: usize| Line(line.0.map(|lane| (lane >> shift) & 0x0f0f_0f0f));
        [half(0), half(4)]
    }

    /// For each input the entries of `table` that a line of nibbles names, less `zero_point`.
    #[inline(always)]
    fn nibble_levels(line: &Line, table: &Row, zero_point: &Row, levels: &mut [Row; NIBBLES]) {
        for (input, levels) in levels.iter_mut().enumerate() {
            for lane in 0..OUTPUTS {
                let code = (line.0[lane] >> nibble_shift(input)) & 15;
                levels[lane] = table[code as usize] - zero_point[lane];
            }
        }
    }

    /// For each input the codes of a line, less `zero_point`.
    #[inline(always)]
    fn byte_levels(line: &Line, zero_point: &Row, levels: &mut [Row; INPUTS]) {
        for (input, levels) in levels.iter_mut().enumerate() {
            for lane in 0..OUTPUTS {
                levels[lane] = f32::from(line.get(lane, input)) - zero_point[lane];
            }
        }
    }
}

/// What is to be run with the best instruction set of the level in use.
pub(crate) trait Work {
    /// Runs it; `#[inline(always)]`, as everything that it calls with `D`.
    fn run<D: Dot>(self);
}

/// Runs `work` at the level in use.
pub(crate) fn at_level(work: impl Work) {
    #[cfg(target_arch = "x86_64")]
    match level() {
        Level::Amx => return dot_x86::at_amx(work),
        Level::Avx512 => return dot_x86::at_avx512(work),
        Level::AvxVnni => return dot_x86::at_avxvnni(work),
        Level::Avx2 => return dot_x86::at_avx2(work),
        Level::Baseline => {}
    }
    work.run::<Portable>();
}

/// [`Dot::HAS_MATRICES`] of the level in use.
pub(crate) fn has_matrices() -> bool {
    level() == Level::Amx
}

/// Rows of the largest tile of the level in use: a job has whole multiples of them.
pub(crate) fn tile_rows() -> usize {
    if has_matrices() { MATRIX_ROWS } else { TILE_ROWS }
}

/// Plain Rust, for CPUs of which nothing is known.
pub(crate) struct Portable;

impl Dot for Portable {
    #[inline(always)]
    fn tile<const R: usize, const C: usize>(
        rows: Fours<'_>,
        blocks: [&[Line]; C],
    ) -> [[Sums; C]; R] {
        let mut sums: [[Sums; C]; R] = [[[0; OUTPUTS]; C]; R];
        for (row, sums) in rows.rows::<R>().into_iter().zip(&mut sums) {
            for (block, sums) in blocks.iter().zip(sums) {
                for (x, line) in row.iter().zip(*block) {
                    for lane in 0..OUTPUTS {
                        for input in 0..INPUTS {
                            let w = (line.0[lane] << (24 - 8 * input)) as i32 >> 24;
                            let product = i32::from(x[input]) * w;
                            sums[lane] = sums[lane].wrapping_add(product);
                        }
                    }
                }
            }
        }
        sums
    }
}
