//! Int8 activations: products of bytes of each group, whose sums the scales multiply.

use super::GroupedWeights;
use super::levels::decode_integers;
use crate::dot::{
    Dot, Fours, HALF_MATRIX_ROWS, INPUTS, Line, MATRIX_BLOCKS, MATRIX_ROWS, OUTPUTS, Sums,
    TILE_BLOCKS, TILE_ROWS, Work, at_level, tile_rows,
};
use crate::int8::{Panel, RowTerms, corrected, finish};
use crate::rows::for_each_job;
use crate::tiles::{Tile, block_of, cut, put_block};

/// Rows of a tile of the result, and tiles that are worth having.
const PANEL_ROWS: usize = 240;
const JOBS: usize = 16;

/// `x_scale` times the sum over groups of float32(sum of products) * scale, plus a bias: rows of int8
/// codes `x` (m, k) with integer weights.
pub fn linear_grouped_int8(
    x: &[i8],
    weights: &GroupedWeights,
    x_scale: &[f32],
    bias: Option<&[f32]>,
    y: &mut [f32],
) {
    let (n, k) = (weights.n, weights.k);
    let m = x_scale.len();
    assert!(x.len() == m * k && y.len() == m * n && weights.are_integers());
    if n == 0 || k == 0 {
        y.chunks_mut(n.max(1)).for_each(|y| y.copy_from_slice(bias.unwrap_or(&vec![0.0; n])));
        return;
    }
    let tile_blocks = weights.blocks().div_ceil(JOBS).next_multiple_of(TILE_BLOCKS);
    for (chunk, y) in y.chunks_mut(PANEL_ROWS * n).enumerate() {
        let rows = y.len() / n;
        let first = chunk * PANEL_ROWS;
        let rows_x = &x[first * k..][..rows * k];
        let panel = GroupedPanel::new(rows_x, weights, rows);
        let x_scale = &x_scale[first..][..rows];
        // Rows are cut too where there are few outputs.
        let parts = JOBS.div_ceil(weights.blocks().div_ceil(tile_blocks));
        let tile_rows = rows.div_ceil(parts).max(4 * TILE_ROWS).next_multiple_of(tile_rows());
        let jobs = cut(y, n, tile_rows, tile_blocks * OUTPUTS);
        for_each_job(jobs.into_iter(), |tile| {
            at_level(Product { panel: &panel, weights, x_scale, bias, tile });
            Ok(())
        })
        .expect("no faults");
    }
}

/// Rows as u8, each group a whole number of eights, with the terms of each group.
struct GroupedPanel {
    /// A row of the panel is a group of a row, as long as the longest.
    panel: Panel,
    groups: usize,
}

impl GroupedPanel {
    fn new(x: &[i8], weights: &GroupedWeights, rows: usize) -> Self {
        let groups = weights.groups();
        let padded = weights.group_size.next_multiple_of(2 * INPUTS);
        let mut panel = Panel::empty(rows * groups, padded);
        let mut all: Vec<_> = panel.rows_mut().collect();
        let jobs = all.chunks_mut(groups).zip(x.chunks(weights.k));
        for_each_job(jobs, |(to, from)| {
            for (group, (to, terms)) in to.iter_mut().enumerate() {
                let from = &from[weights.inputs(group)];
                let to = &mut to.as_flattened_mut()[..from.len()];
                to.iter_mut().zip(from).for_each(|(to, from)| *to = *from as u8);
                **terms = finish(to, true, 128, true);
            }
            Ok(())
        })
        .expect("no faults");
        drop(all);
        Self { panel, groups }
    }

    /// A group of every row from `row` on.
    #[inline(always)]
    fn group(&self, row: usize, group: usize, steps: usize) -> Fours<'_> {
        self.panel.rows(row * self.groups + group, self.groups, steps)
    }

    fn terms(&self, row: usize, group: usize) -> RowTerms {
        self.panel.terms(row * self.groups + group)
    }
}

/// Some rows times some outputs.
struct Product<'a, 'o> {
    panel: &'a GroupedPanel,
    weights: &'a GroupedWeights,
    x_scale: &'a [f32],
    bias: Option<&'a [f32]>,
    tile: Tile<'o, f32>,
}

impl Work for Product<'_, '_> {
    #[inline(always)]
    fn run<D: Dot>(mut self) {
        let blocks = self.tile.columns.start / OUTPUTS..self.tile.columns.end.div_ceil(OUTPUTS);
        let mut block = blocks.start;
        let by_matrices = D::HAS_MATRICES && self.tile.places.len() >= HALF_MATRIX_ROWS;
        while block < blocks.end {
            let rest = blocks.end - block;
            block += match rest {
                MATRIX_BLOCKS.. if by_matrices => self.blocks::<D, MATRIX_BLOCKS>(block),
                TILE_BLOCKS.. => self.blocks::<D, TILE_BLOCKS>(block),
                _ => self.blocks::<D, 1>(block),
            };
        }
    }
}

impl Product<'_, '_> {
    /// All rows with `C` blocks; returns `C`.
    #[inline(always)]
    fn blocks<D: Dot, const C: usize>(&mut self, block: usize) -> usize {
        let count = self.tile.places.len();
        let mut totals = vec![[[0.0; OUTPUTS]; C]; count];
        let steps = self.weights.group_size.div_ceil(2 * INPUTS) * 2;
        let mut rooms = vec![Line::ZERO; C * steps];
        for group in 0..self.weights.groups() {
            if count <= D::FEW_ROWS && self.weights.has_nibbles() {
                self.few_rows::<D, C>(block, group, &mut totals);
                continue;
            }
            let mut lines: [&[Line]; C] = [&[]; C];
            for (c, room) in rooms.chunks_exact_mut(steps).enumerate() {
                lines[c] = decode_integers::<D>(self.weights, block + c, group, room);
            }
            let mut row = 0;
            if D::HAS_MATRICES && C == MATRIX_BLOCKS {
                while row + MATRIX_ROWS <= count {
                    self.rows::<D, MATRIX_ROWS, C>(row, block, group, lines, &mut totals);
                    row += MATRIX_ROWS;
                }
                if row + HALF_MATRIX_ROWS <= count {
                    self.rows::<D, HALF_MATRIX_ROWS, C>(row, block, group, lines, &mut totals);
                    row += HALF_MATRIX_ROWS;
                }
            }
            while row + TILE_ROWS <= count {
                self.rows::<D, TILE_ROWS, C>(row, block, group, lines, &mut totals);
                row += TILE_ROWS;
            }
            while row + 2 <= count {
                self.rows::<D, 2, C>(row, block, group, lines, &mut totals);
                row += 2;
            }
            if row < count {
                self.rows::<D, 1, C>(row, block, group, lines, &mut totals);
            }
        }
        self.store(block, &totals);
        C
    }

    #[inline(always)]
    fn rows<D: Dot, const R: usize, const C: usize>(
        &self,
        row: usize,
        block: usize,
        group: usize,
        lines: [&[Line]; C],
        totals: &mut [[[f32; OUTPUTS]; C]],
    ) {
        let x = self.panel.group(self.tile.rows.start + row, group, lines[0].len());
        self.add(row, block, group, &D::tile::<R, C>(x, lines), totals);
    }

    /// A few rows, with nibbles as they lie.
    #[inline(always)]
    fn few_rows<D: Dot, const C: usize>(
        &self,
        block: usize,
        group: usize,
        totals: &mut [[[f32; OUTPUTS]; C]],
    ) {
        let mut lines: [&[Line]; C] = [&[]; C];
        for c in 0..C {
            lines[c] = self.weights.lines(block + c, group);
        }
        let first = self.tile.rows.start;
        let x = |row| self.panel.group(first + row, group, 2 * lines[0].len());
        let mut row = 0;
        while row + 4 <= totals.len() {
            let raw = D::nibble_tile::<4, C>(x(row), lines);
            self.add(row, block, group, &raw, totals);
            row += 4;
        }
        while row < totals.len() {
            self.add(row, block, group, &D::nibble_tile::<1, C>(x(row), lines), totals);
            row += 1;
        }
    }

    /// Adds the sums of a group to the totals.
    #[inline(always)]
    fn add<const R: usize, const C: usize>(
        &self,
        row: usize,
        block: usize,
        group: usize,
        raw: &[[Sums; C]; R],
        totals: &mut [[[f32; OUTPUTS]; C]],
    ) {
        for r in 0..R {
            let of_row = self.panel.terms(self.tile.rows.start + row + r, group);
            for c in 0..C {
                let of_group = self.weights.terms(block + c, group);
                let sums = corrected(&raw[r][c], of_row, &of_group.sums, &of_group.zero_point);
                let totals = &mut totals[row + r][c];
                for lane in 0..OUTPUTS {
                    totals[lane] += sums[lane] as f32 * of_group.scale[lane];
                }
            }
        }
    }

    #[inline(always)]
    fn store<const C: usize>(&mut self, block: usize, totals: &[[[f32; OUTPUTS]; C]]) {
        let first = self.tile.columns.start;
        let places = self.tile.places.iter_mut().zip(totals).zip(self.tile.rows.clone());
        for ((place, totals), row) in places {
            for c in 0..C {
                let (column, mut y) = ((block + c) * OUTPUTS, totals[c]);
                for lane in 0..OUTPUTS {
                    y[lane] *= self.x_scale[row];
                }
                if let Some(bias) = self.bias {
                    let bias = block_of(&bias[column..]);
                    for lane in 0..OUTPUTS {
                        y[lane] += bias[lane];
                    }
                }
                put_block(&mut place[column - first..], &y);
            }
        }
    }
}
