//! Products of integer codes: packed weights, and matrices multiplied with them.
//!
//! Rows become u8 in a panel (int8 by adding 128), zero points are folded into terms for each row and
//! each output, and what is summed is u8 times i8 (`dot`):
//! sum (x - zx)(w - zw) = sum x w - zx sum w - zw (sum x - k zx).

mod panel;
mod store;

use std::ops::Range;

use crate::dot::{
    Dot, HALF_MATRIX_ROWS, INPUTS, Line, MATRIX_BLOCKS, MATRIX_ROWS, OUTPUTS, Sums, TILE_BLOCKS,
    TILE_ROWS, Work, at_level, tile_rows,
};
use crate::rows::for_each_job;
use crate::tiles::{Tile, cut};
pub use panel::Rows;
pub(crate) use panel::{Panel, RowTerms, finish, moved};
pub(crate) use store::Store;
use store::{FloatStore, IntStore};

/// Rows whose panel is made at once, and rows and jobs that it is cut into at the least.
const PANEL_ROWS: usize = 1008;
const JOB_ROWS: usize = 24;
const JOBS: usize = 16;

/// Bytes of weights that a second-level cache holds beside other things, and rows of a job that has
/// all of them: no more than are copied at once.
const SMALL_WEIGHTS: usize = 3 << 18;
const MOST_JOB_ROWS: usize = 64;

/// Weights made ready by [`pack_int8`].
#[derive(Debug)]
pub struct Int8Weights {
    /// Outputs.
    pub n: usize,
    /// Inputs of each.
    pub k: usize,
    /// Parts of the outputs that are blocks of their own.
    pub groups: usize,
    lines: Vec<Line>,
    terms: Vec<OutputTerms>,
    has_zero_points: bool,
}

/// What the sums of a block of outputs need besides products.
#[derive(Clone, Copy, Debug)]
struct OutputTerms {
    sums: Sums,
    zero_points: Sums,
}

/// Int8 weights (n, k) of outputs in `groups`, with a zero point for each output unless there are
/// none: 16 outputs of four inputs side by side, zeros behind both.
#[must_use]
pub fn pack_int8(
    codes: &[i8],
    n: usize,
    k: usize,
    zero_points: Option<&[i32]>,
    groups: usize,
) -> Int8Weights {
    assert!(codes.len() == n * k && n.is_multiple_of(groups));
    assert!(zero_points.is_none_or(|z| z.len() == n));
    let (outputs, steps) = (n / groups, k.div_ceil(INPUTS));
    let mut lines = vec![Line::ZERO; groups * outputs.div_ceil(OUTPUTS) * steps];
    let mut terms = vec![];
    for first in (0..n).step_by(outputs.max(1)) {
        for block in (first..first + outputs).step_by(OUTPUTS) {
            let mut of_block = OutputTerms { sums: [0; OUTPUTS], zero_points: [0; OUTPUTS] };
            let at = terms.len() * steps;
            for (lane, output) in (block..(first + outputs).min(block + OUTPUTS)).enumerate() {
                let row = &codes[output * k..][..k];
                for (input, &code) in row.iter().enumerate() {
                    lines[at + input / INPUTS].set(lane, input % INPUTS, code);
                }
                let sum = row.iter().fold(0_i32, |sum, &w| sum.wrapping_add(i32::from(w)));
                of_block.sums[lane] = sum;
                of_block.zero_points[lane] = zero_points.map_or(0, |z| z[output]);
            }
            terms.push(of_block);
        }
    }
    let has_zero_points = zero_points.is_some_and(|z| z.iter().any(|&z| z != 0));
    Int8Weights { n, k, groups, lines, terms, has_zero_points }
}

impl Int8Weights {
    /// Lines of a block: one for each four inputs.
    pub(crate) fn steps(&self) -> usize {
        self.k.div_ceil(INPUTS)
    }

    /// Outputs of each group.
    pub(crate) fn outputs_per_group(&self) -> usize {
        self.n / self.groups
    }

    /// Blocks of each group.
    pub(crate) fn blocks_per_group(&self) -> usize {
        self.outputs_per_group().div_ceil(OUTPUTS)
    }

    /// The code of an input of an output.
    pub(crate) fn code(&self, output: usize, input: usize) -> i8 {
        let (group, place) = (output / self.outputs_per_group(), output % self.outputs_per_group());
        let block = group * self.blocks_per_group() + place / OUTPUTS;
        self.lines[block * self.steps() + input / INPUTS].get(place % OUTPUTS, input % INPUTS)
    }

    /// The zero point of an output.
    pub(crate) fn zero_point(&self, output: usize) -> i32 {
        let (group, place) = (output / self.outputs_per_group(), output % self.outputs_per_group());
        let block = group * self.blocks_per_group() + place / OUTPUTS;
        self.terms[block].zero_points[place % OUTPUTS]
    }

    /// Whether sums need those of the rows.
    pub(crate) fn has_zero_points(&self) -> bool {
        self.has_zero_points
    }
}

/// Rows of a panel times blocks of outputs, stored where `store` says.
pub(crate) struct Product<'a, S> {
    pub weights: &'a Int8Weights,
    pub panel: &'a Panel,
    pub rows: Range<usize>,
    /// Of all groups.
    pub blocks: Range<usize>,
    pub store: S,
}

impl<S: Store> Work for Product<'_, S> {
    #[inline(always)]
    fn run<D: Dot>(mut self) {
        let mut block = self.blocks.start;
        if D::HAS_MATRICES && self.rows.len() >= HALF_MATRIX_ROWS {
            while block + MATRIX_BLOCKS <= self.blocks.end {
                self.columns::<D, MATRIX_BLOCKS>(block);
                block += MATRIX_BLOCKS;
            }
        }
        while block + TILE_BLOCKS <= self.blocks.end {
            self.columns::<D, TILE_BLOCKS>(block);
            block += TILE_BLOCKS;
        }
        while block < self.blocks.end {
            self.columns::<D, 1>(block);
            block += 1;
        }
    }
}

impl<S: Store> Product<'_, S> {
    /// All rows with `C` blocks, whose weights stay in a second-level cache meanwhile.
    #[inline(always)]
    fn columns<D: Dot, const C: usize>(&mut self, block: usize) {
        let mut row = self.rows.start;
        if D::HAS_MATRICES && C == MATRIX_BLOCKS {
            while row + MATRIX_ROWS <= self.rows.end {
                self.tile::<D, MATRIX_ROWS, C>(row, block);
                row += MATRIX_ROWS;
            }
            if row + HALF_MATRIX_ROWS <= self.rows.end {
                self.tile::<D, HALF_MATRIX_ROWS, C>(row, block);
                row += HALF_MATRIX_ROWS;
            }
        }
        while row + TILE_ROWS <= self.rows.end {
            self.tile::<D, TILE_ROWS, C>(row, block);
            row += TILE_ROWS;
        }
        while row + 2 <= self.rows.end {
            self.tile::<D, 2, C>(row, block);
            row += 2;
        }
        if row < self.rows.end {
            self.tile::<D, 1, C>(row, block);
        }
    }

    #[inline(always)]
    fn tile<D: Dot, const R: usize, const C: usize>(&mut self, row: usize, block: usize) {
        let steps = self.weights.steps();
        let rows = self.panel.rows(row, 1, steps);
        let blocks = std::array::from_fn(|c| &self.weights.lines[(block + c) * steps..][..steps]);
        let raw = D::tile::<R, C>(rows, blocks);
        for (r, raw) in raw.iter().enumerate() {
            let of_row = self.panel.terms(row + r);
            for (c, raw) in raw.iter().enumerate() {
                let of_block = &self.weights.terms[block + c];
                let sums = corrected(raw, of_row, &of_block.sums, &of_block.zero_points);
                self.store.put(row + r - self.rows.start, block + c - self.blocks.start, &sums);
            }
        }
    }
}

/// What sums of products of bytes become by the zero points of both: `w_sums` and `w_zeros` are
/// those of the outputs.
#[inline(always)]
pub(crate) fn corrected(raw: &Sums, of_row: RowTerms, w_sums: &Sums, w_zeros: &Sums) -> Sums {
    let mut sums = *raw;
    for lane in 0..OUTPUTS {
        sums[lane] = sums[lane].wrapping_sub(of_row.zero_point.wrapping_mul(w_sums[lane]));
    }
    if of_row.rest != 0 {
        for lane in 0..OUTPUTS {
            sums[lane] = sums[lane].wrapping_sub(of_row.rest.wrapping_mul(w_zeros[lane]));
        }
    }
    sums
}

/// Sums (m, n) over k of (x - zero point)(w - zero point), plus a bias for each output.
pub fn matmul_int8(rows: Rows<'_>, weights: &Int8Weights, bias: Option<&[i32]>, out: &mut [i32]) {
    for_each_tile(rows, weights, out, |_, columns, out| IntStore {
        rows: out,
        bias: bias.map(|bias| &bias[columns]),
    });
}

/// Sums as float32, times the scale of the row times that of the output, plus a bias for each
/// output; negative results become 0 with `relu`. `x_scale` has one number, or one for each row.
pub fn linear_int8(
    rows: Rows<'_>,
    weights: &Int8Weights,
    x_scale: &[f32],
    w_scale: &[f32],
    bias: Option<&[f32]>,
    relu: bool,
    out: &mut [f32],
) {
    for_each_tile(rows, weights, out, |rows, columns, out| FloatStore {
        rows: out,
        x_scale: if x_scale.len() == 1 { x_scale } else { &x_scale[rows] },
        w_scale: &w_scale[columns.clone()],
        bias: bias.map(|bias| &bias[columns]),
        relu,
    });
}

/// Cuts the product of `rows` with weights of one group into jobs; `store` makes that of a job from
/// its rows, its outputs, and their places in `out`.
fn for_each_tile<'o, T: Send, S: Store + Send>(
    rows: Rows<'_>,
    weights: &Int8Weights,
    out: &'o mut [T],
    store: impl Fn(Range<usize>, Range<usize>, Vec<&'o mut [T]>) -> S + Sync,
) {
    let (n, m) = (weights.n, rows.count());
    assert!(weights.groups == 1 && rows.k == weights.k && out.len() == m * n);
    if n == 0 {
        return;
    }
    let blocks = weights.blocks_per_group();
    if m >= 2 * JOB_ROWS && size_of_val(&*weights.lines) <= SMALL_WEIGHTS {
        // Each job makes the panel of its own rows, so that nothing waits for a panel of all.
        let tiles = m.div_ceil(JOBS).clamp(JOB_ROWS, MOST_JOB_ROWS) / tile_rows();
        let job_rows = tiles.max(1) * tile_rows();
        let run = |tile: Tile<'o, T>| {
            let Tile { rows: range, columns, places } = tile;
            let panel = Panel::new(&rows, range.clone(), weights.has_zero_points);
            let count = 0..range.len();
            let store = store(range, columns, places);
            at_level(Product { weights, panel: &panel, rows: count, blocks: 0..blocks, store });
            Ok(())
        };
        for_each_job(cut(out, n, job_rows, n).into_iter(), run).expect("no faults");
        return;
    }
    // Several tiles of outputs for each job, and if there are few jobs then, fewer rows.
    let job_blocks = blocks.div_ceil(JOBS).next_multiple_of(TILE_BLOCKS);
    for (chunk, out) in out.chunks_mut(PANEL_ROWS * n).enumerate() {
        let first = chunk * PANEL_ROWS;
        let count = out.len() / n;
        let panel = Panel::new(&rows, first..first + count, weights.has_zero_points);
        let parts = JOBS.div_ceil(blocks.div_ceil(job_blocks));
        let job_rows = count.div_ceil(parts).max(JOB_ROWS).next_multiple_of(tile_rows());
        let jobs = cut(out, n, job_rows, job_blocks * OUTPUTS);
        let run = |tile: Tile<'o, T>| {
            let Tile { rows, columns, places } = tile;
            let blocks = columns.start / OUTPUTS..columns.end.div_ceil(OUTPUTS);
            let store = store(first + rows.start..first + rows.end, columns, places);
            at_level(Product { weights, panel: &panel, rows, blocks, store });
            Ok(())
        };
        for_each_job(jobs.into_iter(), run).expect("no faults");
    }
}
