//! Rows of codes as the products take them: u8, in fours, with what their zero points need.

use std::ops::Range;

use crate::dot::{Fours, INPUTS};
use crate::rows::for_each_job;
use crate::simd::multiversion;

/// Rows that a job copies.
const JOB_ROWS: usize = 64;

/// Adding 128 to an int8 code is flipping its sign bit.
const FLIP: u8 = 0x80;

/// A matrix of codes (m, k) and its zero points.
#[derive(Clone, Copy, Debug)]
pub struct Rows<'a> {
    /// The codes, int8 or uint8.
    pub codes: &'a [u8],
    /// Whether they are int8.
    pub signed: bool,
    /// Codes in a row.
    pub k: usize,
    /// Rows.
    pub m: usize,
    /// None, one for all, or one for each row.
    pub zero_points: &'a [i32],
}

impl Rows<'_> {
    pub(crate) fn count(&self) -> usize {
        assert!(self.codes.len() == self.m * self.k);
        assert!(self.zero_points.len() <= 1 || self.zero_points.len() == self.m);
        self.m
    }

    fn zero_point(&self, row: usize) -> i32 {
        let z = match self.zero_points {
            [] => 0,
            [one] => *one,
            each => each[row],
        };
        moved(z, self.signed)
    }
}

/// The zero point of codes that became u8.
pub(crate) fn moved(zero_point: i32, signed: bool) -> i32 {
    zero_point.wrapping_add(if signed { i32::from(FLIP) } else { 0 })
}

/// What a row adds to its sums: zx, and sum x - k zx.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct RowTerms {
    pub zero_point: i32,
    pub rest: i32,
}

/// Rows side by side, each a whole number of fours, zeros behind.
pub(crate) struct Panel {
    bytes: Vec<[u8; INPUTS]>,
    terms: Vec<RowTerms>,
    steps: usize,
}

impl Panel {
    /// Room for `rows` rows of `k` codes.
    pub(crate) fn empty(rows: usize, k: usize) -> Self {
        let steps = k.div_ceil(INPUTS);
        let bytes = vec![[0; INPUTS]; rows * steps];
        Self { bytes, terms: vec![RowTerms::default(); rows], steps }
    }

    /// The panel of some rows of a matrix; sums of rows only where they are needed. Of few rows it is
    /// made on the calling thread.
    pub(crate) fn new(rows: &Rows<'_>, range: Range<usize>, with_sums: bool) -> Self {
        let mut panel = Self::empty(range.len(), rows.k);
        let steps = panel.steps.max(1);
        let jobs = panel.bytes.chunks_mut(JOB_ROWS * steps).zip(panel.terms.chunks_mut(JOB_ROWS));
        for_each_job(jobs.enumerate(), |(job, (bytes, terms))| {
            for (i, (to, terms)) in bytes.chunks_mut(steps).zip(terms).enumerate() {
                let row = range.start + job * JOB_ROWS + i;
                let from = &rows.codes[row * rows.k..][..rows.k];
                let to = to.as_flattened_mut();
                to[..rows.k].copy_from_slice(from);
                *terms = finish(&mut to[..rows.k], rows.signed, rows.zero_point(row), with_sums);
            }
            Ok(())
        })
        .expect("no faults");
        panel
    }

    /// The first `steps` fours of every `every`-th row from `row` on.
    #[inline(always)]
    pub(crate) fn rows(&self, row: usize, every: usize, steps: usize) -> Fours<'_> {
        Fours { bytes: &self.bytes[row * self.steps..], stride: every * self.steps, steps }
    }

    /// All rows to be written, and their terms.
    pub(crate) fn rows_mut(
        &mut self,
    ) -> impl Iterator<Item = (&mut [[u8; INPUTS]], &mut RowTerms)> {
        self.bytes.chunks_mut(self.steps.max(1)).zip(&mut self.terms)
    }

    pub(crate) fn terms(&self, row: usize) -> RowTerms {
        self.terms[row]
    }

    /// A row to be written, and its terms.
    pub(crate) fn row_mut(&mut self, row: usize) -> (&mut [u8], &mut RowTerms) {
        let bytes = self.bytes[row * self.steps..][..self.steps].as_flattened_mut();
        (bytes, &mut self.terms[row])
    }
}

multiversion! {
    /// Turns the codes of a row into u8, in place; the terms of the row.
    pub(crate) fn finish(
        codes: &mut [u8], signed: bool, zero_point: i32, with_sums: bool,
    ) -> RowTerms {
        if signed {
            for code in codes.iter_mut() {
                *code ^= FLIP;
            }
        }
        let mut rest = 0;
        if with_sums {
            let sum = codes.iter().fold(0_u32, |sum, &x| sum.wrapping_add(u32::from(x)));
            rest = (sum as i32).wrapping_sub(zero_point.wrapping_mul(codes.len() as i32));
        }
        RowTerms { zero_point, rest }
    }
}
