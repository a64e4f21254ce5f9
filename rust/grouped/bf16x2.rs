//! Float activations as sums of two bfloat16 numbers, for instructions that multiply matrices of
//! them. Levels of integer weights are bfloat16 numbers as they are.
//!
//! Of an output and a row, the sum of a group is one of float32 in the order of the instruction;
//! y = fma(s, scale, y) over the groups, from 0, as in `floats`.

use super::GroupedWeights;
use super::floats::{State, fold, scales, store};
use super::levels::decode_floats;
use crate::dot::{
    BF16_INPUTS, Dot, Fours, HALF_MATRIX_ROWS, INPUTS, Line, MATRIX_BLOCKS, MATRIX_ROWS, OUTPUTS,
    Row, Work, at_level,
};
use crate::numeric::{BFloat16, Element};
use crate::rows::for_each_job;
use crate::simd::multiversion;
use crate::tiles::{Tile, cut};

/// Rows that are split at once, and jobs that are worth having.
const PANEL_ROWS: usize = 512;
const JOBS: usize = 16;

/// Inputs in four bytes, and inputs that groups are padded to multiples of.
const PAIR: usize = 2;
const WHOLE: usize = BF16_INPUTS;

/// Products (m, n) of rows `x` with integer weights, plus a bias.
pub(crate) fn matmul_bf16x2(
    x: &[f32],
    weights: &GroupedWeights,
    bias: Option<&[f32]>,
    y: &mut [f32],
) {
    let (n, k) = (weights.n, weights.k);
    let tile_blocks = weights.blocks().div_ceil(JOBS).next_multiple_of(MATRIX_BLOCKS);
    for (x, y) in x.chunks(PANEL_ROWS * k).zip(y.chunks_mut(PANEL_ROWS * n)) {
        let panel = SplitPanel::new(x, weights);
        let jobs = cut(y, n, PANEL_ROWS, tile_blocks * OUTPUTS);
        for_each_job(jobs.into_iter(), |tile| {
            at_level(Product { panel: &panel, weights, bias, tile });
            Ok(())
        })
        .expect("no faults");
    }
}

/// Rows as pairs of bfloat16: of each group the high parts, then the low ones; zeros behind both,
/// and behind the last row up to a multiple of half a matrix.
struct SplitPanel {
    pairs: Vec<[u8; INPUTS]>,
    /// Pairs of a row, and of one part of a group.
    stride: usize,
    steps: usize,
}

impl SplitPanel {
    fn new(x: &[f32], weights: &GroupedWeights) -> Self {
        let steps = weights.group_size.next_multiple_of(WHOLE) / PAIR;
        let stride = weights.groups() * 2 * steps;
        let rows = (x.len() / weights.k).next_multiple_of(HALF_MATRIX_ROWS);
        let mut pairs = vec![[0; INPUTS]; rows * stride];
        let jobs = pairs.chunks_mut(stride).zip(x.chunks(weights.k));
        for_each_job(jobs, |(pairs, x)| {
            for (group, parts) in pairs.chunks_mut(2 * steps).enumerate() {
                let (high, low) = parts.split_at_mut(steps);
                split(&x[weights.inputs(group)], high.as_flattened_mut(), low.as_flattened_mut());
            }
            Ok(())
        })
        .expect("no faults");
        Self { pairs, stride, steps }
    }

    /// A group of every row from `row` on: its high parts, and its low ones.
    #[inline(always)]
    fn group(&self, row: usize, group: usize) -> [Fours<'_>; 2] {
        let at = row * self.stride + group * 2 * self.steps;
        let part =
            |at: usize| Fours { bytes: &self.pairs[at..], stride: self.stride, steps: self.steps };
        [part(at), part(at + self.steps)]
    }
}

multiversion! {
    /// x = high + low, but for the last 8 of 24 bits or so; numbers of which bfloat16 knows the size
    /// only have no low part.
    fn split(x: &[f32], high: &mut [u8], low: &mut [u8]) {
        for ((x, high), low) in x.iter().zip(high.as_chunks_mut().0).zip(low.as_chunks_mut().0) {
            // Towards zero, so that no finite number becomes infinite; a NaN that this would make
            // infinite stays one by its highest bit.
            let quiet = if x.is_nan() { 0x0040_0000 } else { 0 };
            let cut = (x.to_bits() | quiet) & 0xffff_0000;
            let rest = if x.is_finite() { x - f32::from_bits(cut) } else { 0.0 };
            *high = ((cut >> 16) as u16).to_le_bytes();
            *low = BFloat16::narrow(rest).to_le_bytes();
        }
    }
}

/// Some rows times some outputs.
struct Product<'a, 'o> {
    panel: &'a SplitPanel,
    weights: &'a GroupedWeights,
    bias: Option<&'a [f32]>,
    tile: Tile<'o, f32>,
}

impl Work for Product<'_, '_> {
    #[inline(always)]
    fn run<D: Dot>(mut self) {
        let mut block = self.tile.columns.start / OUTPUTS;
        let end = self.tile.columns.end.div_ceil(OUTPUTS);
        while block + MATRIX_BLOCKS <= end {
            self.blocks::<D, MATRIX_BLOCKS>(block);
            block += MATRIX_BLOCKS;
        }
        if block < end {
            self.blocks::<D, 1>(block);
        }
    }
}

impl Product<'_, '_> {
    /// All rows with `C` blocks.
    #[inline(always)]
    fn blocks<D: Dot, const C: usize>(&mut self, block: usize) {
        let count = self.tile.places.len();
        let rows = count.next_multiple_of(HALF_MATRIX_ROWS);
        let mut totals = vec![[[0.0; OUTPUTS]; C]; rows];
        let mut levels = vec![[0.0; OUTPUTS]; self.panel.steps * PAIR];
        let mut room = vec![Line::ZERO; C * self.panel.steps];
        for group in 0..self.weights.groups() {
            let mut lines: [&[Line]; C] = [&[]; C];
            for (c, room) in room.chunks_exact_mut(self.panel.steps).enumerate() {
                let inputs = self.weights.inputs(group).len();
                // What lies behind the inputs is finite, and there x has zeros.
                let known = &mut levels[..inputs.next_multiple_of(8)];
                decode_floats::<D>(self.weights, block + c, group, 0, known);
                pair(&levels, room);
                lines[c] = room;
            }
            let scales = scales(self.weights, block, group);
            let mut row = 0;
            while row < rows {
                row += if row + MATRIX_ROWS <= rows {
                    self.rows::<D, MATRIX_ROWS, C>(row, group, lines, &scales, &mut totals)
                } else {
                    self.rows::<D, HALF_MATRIX_ROWS, C>(row, group, lines, &scales, &mut totals)
                };
            }
        }
        store(&mut self.tile, self.bias, block, &totals);
    }

    /// Adds the sums of a group; returns `R`.
    #[inline(always)]
    fn rows<D: Dot, const R: usize, const C: usize>(
        &self,
        row: usize,
        group: usize,
        lines: [&[Line]; C],
        scales: &[Row; C],
        totals: &mut [State<C>],
    ) -> usize {
        let parts = self.panel.group(self.tile.rows.start + row, group);
        let mut sums = D::bf16_tile::<R, C>(parts, lines);
        fold(&mut sums, &mut totals[row..row + R], scales);
        R
    }
}

/// Levels as bfloat16, two inputs to a lane.
#[inline(always)]
fn pair(levels: &[Row], lines: &mut [Line]) {
    for (two, line) in levels.as_chunks::<PAIR>().0.iter().zip(lines) {
        let mut pairs = [0; OUTPUTS];
        for lane in 0..OUTPUTS {
            pairs[lane] = two[0][lane].to_bits() >> 16 | two[1][lane].to_bits() & 0xffff_0000;
        }
        line.0 = pairs;
    }
}
