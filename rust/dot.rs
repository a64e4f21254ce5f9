//! Sums of products of bytes: rows of u8 with outputs of i8, a tile of both at a time.
//!
//! One trait for the instruction sets, and [`at_level`] that picks one. All of them are exact:
//! where an instruction would saturate (VPMADDUBSW), it is not used. Sums wrap as i32 does.

#[cfg(target_arch = "x86_64")]
use crate::dot_x86;
#[cfg(target_arch = "x86_64")]
use crate::simd::{Level, level};

/// Outputs whose weights lie side by side.
pub(crate) const OUTPUTS: usize = 16;

/// Inputs of one output that lie side by side: what a 32-bit lane multiplies at once.
pub(crate) const INPUTS: usize = 4;

/// Most rows, and blocks of outputs, of a tile: their sums fill 24 of 32 registers.
pub(crate) const TILE_ROWS: usize = 6;
pub(crate) const TILE_BLOCKS: usize = 4;

/// Weights of 16 outputs for four inputs: a cache line, and a register.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub(crate) struct Line(pub [[i8; INPUTS]; OUTPUTS]);

impl Line {
    pub(crate) const ZERO: Self = Self([[0; INPUTS]; OUTPUTS]);
}

/// Sums of a block of outputs.
pub(crate) type Sums = [i32; OUTPUTS];

/// How an instruction set multiplies.
pub(crate) trait Dot {
    /// The sums of `R` rows with `C` blocks of weights, a line for each four bytes of a row.
    fn tile<const R: usize, const C: usize>(
        rows: [&[[u8; INPUTS]]; R],
        blocks: [&[Line]; C],
    ) -> [[Sums; C]; R];
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
        Level::Amx | Level::Avx512 => return dot_x86::at_avx512(work),
        Level::AvxVnni => return dot_x86::at_avxvnni(work),
        Level::Avx2 => return dot_x86::at_avx2(work),
        Level::Baseline => {}
    }
    work.run::<Portable>();
}

/// Plain Rust, for CPUs of which nothing is known.
pub(crate) struct Portable;

impl Dot for Portable {
    #[inline(always)]
    fn tile<const R: usize, const C: usize>(
        rows: [&[[u8; INPUTS]]; R],
        blocks: [&[Line]; C],
    ) -> [[Sums; C]; R] {
        let mut sums: [[Sums; C]; R] = [[[0; OUTPUTS]; C]; R];
        for (row, sums) in rows.iter().zip(&mut sums) {
            for (block, sums) in blocks.iter().zip(sums) {
                for (x, line) in row.iter().zip(*block) {
                    for (sum, w) in sums.iter_mut().zip(&line.0) {
                        // Two products of i16 fit: |x w| <= 255 * 128.
                        let pair = |i: usize| i32::from(x[i]) * i32::from(w[i]);
                        *sum = sum.wrapping_add(pair(0) + pair(1) + pair(2) + pair(3));
                    }
                }
            }
        }
        sums
    }
}
