//! Float activations: levels of a group decoded into a cache, and chains of fused multiply-adds.
//!
//! Of an output and a row, s = fma(x, level, s) over the inputs of a group, from 0, and
//! y = fma(s, scale, y) over the groups, from 0. Chains of many outputs and rows run side by side;
//! how many does not change any.

use std::ops::Range;

use super::GroupedWeights;
use super::bf16x2::matmul_bf16x2;
use super::levels::{decode_floats, zero_point};
use crate::dot::{Dot, HALF_MATRIX_ROWS, Line, OUTPUTS, Row, Work, at_level, has_matrices};
use crate::numeric::{Element, rectify};
use crate::rows::for_each_job;
use crate::simd::multiversion;
use crate::tiles::{Tile, block_of, cut, put_block};

/// Inputs whose levels are decoded at once, for one block of outputs; with more blocks, fewer.
const INPUTS_AT_ONCE: usize = 256;

/// Rows of a tile of the result, and tiles that are worth having.
const TILE_ROWS: usize = 256;
const JOBS: usize = 16;

/// Numbers that a job widens.
const WIDEN: usize = 1 << 15;

/// Products (m, n) of rows `x` of `k` numbers with the decoded weights, plus a bias. With
/// `as_bf16x2`, numbers may become sums of two bfloat16, where matrix instructions make that faster.
pub fn matmul_grouped<E: Element>(
    x: &[E::Repr],
    weights: &GroupedWeights,
    bias: Option<&[f32]>,
    as_bf16x2: bool,
    y: &mut [f32],
) {
    let (n, k) = (weights.n, weights.k);
    if n == 0 || k == 0 {
        y.chunks_mut(n.max(1)).for_each(|y| y.copy_from_slice(bias.unwrap_or(&vec![0.0; n])));
        return;
    }
    let m = y.len() / n;
    assert!(x.len() == m * k && y.len() == m * n);
    let is_wide = size_of::<E::Repr>() == size_of::<f32>();
    let mut room = vec![0.0; if is_wide { 0 } else { x.len() }];
    let x = widened::<E>(x, &mut room);
    if as_bf16x2 && m >= HALF_MATRIX_ROWS && has_matrices() && weights.suits_bf16x2 {
        return matmul_bf16x2(x, weights, bias, y);
    }
    // More blocks side by side where there are few rows.
    let side_by_side = match m {
        1 => 8,
        2..=16 => 4,
        _ => 2,
    };
    let blocks = weights.blocks();
    let tile_blocks = blocks.div_ceil(JOBS).next_multiple_of(side_by_side);
    let jobs = cut(y, n, TILE_ROWS, tile_blocks * OUTPUTS);
    for_each_job(jobs.into_iter(), |tile| {
        let rows = &x[tile.rows.start * k..tile.rows.end * k];
        at_level(Product { x: rows, weights, bias, tile, side_by_side });
        Ok(())
    })
    .expect("no faults");
}

/// `x` as float32: itself, or widened into `room`.
fn widened<'a, E: Element>(x: &'a [E::Repr], room: &'a mut [f32]) -> &'a [f32] {
    if room.is_empty() {
        return E::widened(x, room);
    }
    let jobs = x.chunks(WIDEN).zip(room.chunks_mut(WIDEN));
    for_each_job(jobs, |(x, wide)| {
        widen::<E>(x, wide);
        Ok(())
    })
    .expect("no faults");
    room
}

multiversion! {
    fn widen<E: Element>(x: &[E::Repr], wide: &mut [f32]) {
        E::widen_all(x, wide);
    }
}

/// Some rows times some outputs.
struct Product<'a, 'o> {
    x: &'a [f32],
    weights: &'a GroupedWeights,
    bias: Option<&'a [f32]>,
    tile: Tile<'o, f32>,
    side_by_side: usize,
}

impl Work for Product<'_, '_> {
    #[inline(always)]
    fn run<D: Dot>(mut self) {
        let blocks = self.tile.columns.start / OUTPUTS..self.tile.columns.end.div_ceil(OUTPUTS);
        let mut block = blocks.start;
        while block < blocks.end {
            let rest = blocks.end - block;
            block += match self.side_by_side {
                8 if rest >= 8 => self.blocks::<D, 8>(block),
                4 | 8 if rest >= 4 => self.blocks::<D, 4>(block),
                _ if rest >= 2 => self.blocks::<D, 2>(block),
                _ => self.blocks::<D, 1>(block),
            };
        }
    }
}

/// Sums of a row with `C` blocks.
pub(super) type State<const C: usize> = [Row; C];

impl Product<'_, '_> {
    /// All rows with `C` blocks; returns `C`.
    #[inline(always)]
    fn blocks<D: Dot, const C: usize>(&mut self, block: usize) -> usize {
        let weights = self.weights;
        let count = self.tile.places.len();
        let (mut sums, mut totals) =
            (vec![[[0.0; OUTPUTS]; C]; count], vec![[[0.0; OUTPUTS]; C]; count]);
        let at_once = (INPUTS_AT_ONCE / C).min(weights.group_size.next_multiple_of(8));
        let mut room = vec![[0.0; OUTPUTS]; C * at_once];
        for group in 0..weights.groups() {
            let inputs = weights.inputs(group);
            if let (Some((table, takes_off)), true) = (weights.table, count <= D::FEW_ROWS) {
                self.few_rows::<D, C>(block, group, (&table, takes_off), &mut sums);
                fold(&mut sums, &mut totals, &scales(weights, block, group));
                continue;
            }
            for start in inputs.clone().step_by(at_once) {
                let part = start..inputs.end.min(start + at_once);
                for (c, room) in room.chunks_exact_mut(at_once).enumerate() {
                    let len = part.len().next_multiple_of(8);
                    decode_floats::<D>(
                        weights,
                        block + c,
                        group,
                        start - inputs.start,
                        &mut room[..len],
                    );
                }
                self.add_products(&part, &room, at_once, &mut sums);
            }
            fold(&mut sums, &mut totals, &scales(weights, block, group));
        }
        store(&mut self.tile, self.bias, block, &totals);
        C
    }

    /// The sums of a few rows, with nibbles as they lie.
    #[inline(always)]
    fn few_rows<D: Dot, const C: usize>(
        &self,
        block: usize,
        group: usize,
        (table, takes_off): (&Row, bool),
        sums: &mut [State<C>],
    ) {
        let mut lines: [&[Line]; C] = [&[]; C];
        let mut zero_points = [[0.0; OUTPUTS]; C];
        for c in 0..C {
            lines[c] = self.weights.lines(block + c, group);
            zero_points[c] = zero_point(self.weights, block + c, group);
        }
        let mut z = [table; C];
        for c in 0..C {
            z[c] = &zero_points[c];
        }
        let z = takes_off.then_some(z);
        let inputs = self.weights.inputs(group);
        let x = |row: usize| &self.x[row * self.weights.k..][inputs.clone()];
        let (fours, rest) = if C <= 4 { sums.as_chunks_mut::<4>() } else { (&mut [][..], sums) };
        let mut row = 0;
        for four in fours {
            let x = [x(row), x(row + 1), x(row + 2), x(row + 3)];
            *four = D::nibble_chains::<4, C>(x, lines, table, z, *four);
            row += 4;
        }
        for one in rest {
            [*one] = D::nibble_chains::<1, C>([x(row)], lines, table, z, [*one]);
            row += 1;
        }
    }

    /// Adds the products of some inputs to the sums of all rows.
    #[inline(always)]
    fn add_products<const C: usize>(
        &self,
        part: &Range<usize>,
        room: &[Row],
        at_once: usize,
        sums: &mut [State<C>],
    ) {
        let mut levels = [&room[..0]; C];
        for c in 0..C {
            levels[c] = &room[c * at_once..][..part.len()];
        }
        let mut row = 0;
        if C <= 2 {
            while row + 8 <= sums.len() {
                self.rows::<8, C>(row, part, levels, sums);
                row += 8;
            }
        }
        if C <= 4 {
            while row + 2 <= sums.len() {
                self.rows::<2, C>(row, part, levels, sums);
                row += 2;
            }
        }
        while row < sums.len() {
            self.rows::<1, C>(row, part, levels, sums);
            row += 1;
        }
    }

    #[inline(always)]
    fn rows<const R: usize, const C: usize>(
        &self,
        row: usize,
        part: &Range<usize>,
        levels: [&[Row]; C],
        sums: &mut [State<C>],
    ) {
        let mut x = [&self.x[..0]; R];
        for r in 0..R {
            x[r] = &self.x[(row + r) * self.weights.k..][part.clone()];
        }
        let sums: &mut [State<C>; R] =
            sums[row..].first_chunk_mut().expect("as many rows are left");
        *sums = chains(x, levels, *sums);
    }
}

/// Writes the totals of `C` blocks, plus the bias, where they belong.
#[inline(always)]
pub(super) fn store<const C: usize>(
    tile: &mut Tile<'_, f32>,
    bias: Option<&[f32]>,
    block: usize,
    totals: &[State<C>],
) {
    let first = tile.columns.start;
    for (place, totals) in tile.places.iter_mut().zip(totals) {
        for c in 0..C {
            let (column, mut y) = ((block + c) * OUTPUTS, totals[c]);
            if let Some(bias) = bias {
                let bias = block_of(&bias[column..]);
                for lane in 0..OUTPUTS {
                    y[lane] += bias[lane];
                }
            }
            put_block(&mut place[column - first..], &y);
        }
    }
}

/// y = fma(s, scale, y) for the sums of a group, which begin anew.
#[inline(always)]
pub(super) fn fold<const C: usize>(
    sums: &mut [State<C>],
    totals: &mut [State<C>],
    scales: &[Row; C],
) {
    for (sums, totals) in sums.iter_mut().zip(totals) {
        for c in 0..C {
            for lane in 0..OUTPUTS {
                totals[c][lane] = sums[c][lane].mul_add(scales[c][lane], totals[c][lane]);
            }
        }
        *sums = [[0.0; OUTPUTS]; C];
    }
}

/// The scales of `C` blocks for a group.
#[inline(always)]
pub(super) fn scales<const C: usize>(
    weights: &GroupedWeights,
    block: usize,
    group: usize,
) -> [Row; C] {
    let mut scales = [[0.0; OUTPUTS]; C];
    for c in 0..C {
        scales[c] = weights.terms(block + c, group).scale;
    }
    scales
}

/// s = fma(x, level, s) over the inputs, for `R` rows and `C` blocks side by side.
#[inline(always)]
fn chains<const R: usize, const C: usize>(
    x: [&[f32]; R],
    levels: [&[Row]; C],
    mut sums: [State<C>; R],
) -> [State<C>; R] {
    let len = levels[0].len();
    for r in 0..R {
        assert_eq!(x[r].len(), len);
    }
    for c in 0..C {
        assert_eq!(levels[c].len(), len);
    }
    for i in 0..len {
        for c in 0..C {
            let level = levels[c][i];
            for r in 0..R {
                let x = x[r][i];
                for lane in 0..OUTPUTS {
                    sums[r][c][lane] = x.mul_add(level[lane], sums[r][c][lane]);
                }
            }
        }
    }
    sums
}

/// `y` plus the products of few columns `x` (m, o) with weights `w` (n, o), a chain of fused
/// multiply-adds from `y` on; plus a bias, and with `relu` 0 for what is negative.
pub fn add_matmul<E: Element>(
    y: &[f32],
    x: &[E::Repr],
    w: &[f32],
    n: usize,
    bias: Option<&[f32]>,
    relu: bool,
    out: &mut [f32],
) {
    if n == 0 || y.is_empty() {
        return;
    }
    let (m, columns) = (y.len() / n, w.len() / n);
    assert!(x.len() == m * columns && w.len() == n * columns && out.len() == y.len());
    let mut by_column = vec![0.0; w.len()];
    for (output, row) in w.chunks(columns.max(1)).enumerate() {
        row.iter().enumerate().for_each(|(column, w)| by_column[column * n + output] = *w);
    }
    let rows = (WIDEN / n).max(1);
    let jobs = y.chunks(rows * n).zip(out.chunks_mut(rows * n)).enumerate();
    for_each_job(jobs, |(job, (y, out))| {
        for (i, (y, out)) in y.chunks(n).zip(out.chunks_mut(n)).enumerate() {
            let x = &x[(job * rows + i) * columns..][..columns];
            out.copy_from_slice(y);
            add_columns::<E>(x, &by_column, bias, relu, out);
        }
        Ok(())
    })
    .expect("no faults");
}

multiversion! {
    fn add_columns<E: Element>(
        x: &[E::Repr], w: &[f32], bias: Option<&[f32]>, relu: bool, y: &mut [f32],
    ) {
        for (x, w) in x.iter().zip(w.chunks(y.len())) {
            let x = E::widen(*x);
            y.iter_mut().zip(w).for_each(|(y, w)| *y = x.mul_add(*w, *y));
        }
        if let Some(bias) = bias {
            y.iter_mut().zip(bias).for_each(|(y, bias)| *y += bias);
        }
        if relu {
            rectify(y);
        }
    }
}
