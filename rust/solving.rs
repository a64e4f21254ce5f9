//! What solvers that look at second moments repeat, in float64: a factorization, products, and
//! rounding with feedback.
//!
//! Every sum is a chain of fused multiply-adds in an order of its own, whatever is cut into blocks:
//! outputs lie side by side in lanes, and no sum is split. So results depend neither on the
//! instruction set nor on the number of threads.

mod cholesky;
mod levels;

use std::ops::Range;

use crate::rows::for_each_job;
use crate::simd::{Level, multiversion, reaches};
pub use cholesky::cholesky;
use levels::NearestOfLanes;
pub use levels::{Integers, Nearest, Table};

/// Sums side by side: outputs, and inputs. With AVX-512 they fill 24 of 32 registers.
const LANES: usize = 24;
const INPUTS: usize = 8;

/// Numbers of so many outputs.
type Lanes = [f64; LANES];
type Sums = [Lanes; INPUTS];

/// For each input of a block, its coefficients along a chain.
type Coefficients<'a> = [&'a [f64]; INPUTS];

/// sum = fma(coefficient, lane, sum) along the lanes, in their order.
#[inline(always)]
fn add_chains(lanes: &[Lanes], coefficients: Coefficients<'_>, sums: &mut Sums) {
    if reaches(Level::Avx512) {
        add_part::<3, INPUTS>(lanes, coefficients, sums, 0, 0);
    } else {
        // As much as 16 registers of four hold.
        for lane in (0..LANES).step_by(EIGHT) {
            for input in (0..INPUTS).step_by(4) {
                add_part::<1, 4>(lanes, coefficients, sums, lane, input);
            }
        }
    }
}

/// Numbers that compilers keep in one register, or two.
const EIGHT: usize = 8;

/// [`add_chains`] for `V` times [`EIGHT`] lanes and `I` inputs.
#[inline(always)]
fn add_part<const V: usize, const I: usize>(
    lanes: &[Lanes],
    coefficients: Coefficients<'_>,
    sums: &mut Sums,
    lane: usize,
    input: usize,
) {
    let (mut x, mut part) = ([&[][..]; I], [[[0.0; EIGHT]; V]; I]);
    for i in 0..I {
        x[i] = &coefficients[input + i][..lanes.len()];
        for v in 0..V {
            part[i][v] = sums[input + i].as_chunks().0[lane / EIGHT + v];
        }
    }
    let part = chains_of_eight(x, lanes, lane, part);
    for i in 0..I {
        for v in 0..V {
            sums[input + i].as_chunks_mut().0[lane / EIGHT + v] = part[i][v];
        }
    }
}

/// The sums stay in registers.
#[inline(always)]
fn chains_of_eight<const V: usize, const I: usize>(
    x: [&[f64]; I],
    lanes: &[Lanes],
    lane: usize,
    mut sums: [[[f64; EIGHT]; V]; I],
) -> [[[f64; EIGHT]; V]; I] {
    for row in 0..lanes.len() {
        let mut y = [[0.0; EIGHT]; V];
        for v in 0..V {
            y[v] = lanes[row].as_chunks().0[lane / EIGHT + v];
        }
        for i in 0..I {
            let x = x[i][row];
            for v in 0..V {
                for l in 0..EIGHT {
                    sums[i][v][l] = x.mul_add(y[v][l], sums[i][v][l]);
                }
            }
        }
    }
    sums
}

/// Rows `first ..` of a matrix as coefficients, from `skip` on and `len` of them; behind the last
/// row the last once more.
fn rows_of(matrix: &[f64], columns: usize, first: usize, part: Range<usize>) -> Coefficients<'_> {
    let last = (matrix.len() / columns.max(1)).max(1) - 1;
    let mut rows = [&matrix[..0]; INPUTS];
    for i in 0..INPUTS {
        rows[i] = &matrix[(first + i).min(last) * columns..][part.clone()];
    }
    rows
}

/// The transpose of a matrix (n, k).
fn transposed(matrix: &[f64], n: usize, k: usize) -> Vec<f64> {
    let mut columns = vec![0.0; n * k];
    for_each_job(columns.chunks_mut(n.max(1) * INPUTS).enumerate(), |(job, to)| {
        for (row, from) in matrix.chunks(k).enumerate() {
            for (column, x) in from[job * INPUTS..].iter().take(to.len() / n).enumerate() {
                to[column * n + row] = *x;
            }
        }
        Ok(())
    })
    .expect("no faults");
    columns
}

/// `a` (n, k) times `b` (k, m): chains from 0 in the order of k.
pub fn matmul_float64(a: &[f64], b: &[f64], (n, k, m): (usize, usize, usize), out: &mut [f64]) {
    assert!(a.len() == n * k && b.len() == k * m && out.len() == n * m);
    if m == 0 {
        return;
    }
    let columns = transposed(b, k, m);
    let jobs = out.chunks_mut(LANES * m).enumerate();
    for_each_job(jobs, |(job, out)| {
        let count = out.len() / m;
        let mut lanes = vec![[0.0; LANES]; k];
        turn(&a[job * LANES * k..][..count * k], k, &mut lanes);
        for first in (0..m).step_by(INPUTS) {
            let mut sums = [[0.0; LANES]; INPUTS];
            chains(&lanes, rows_of(&columns, k, first, 0..k), &mut sums);
            for (sums, column) in sums.iter().zip(first..m) {
                for lane in 0..count {
                    out[lane * m + column] = sums[lane];
                }
            }
        }
        Ok(())
    })
    .expect("no faults");
}

multiversion! {
    fn chains(lanes: &[Lanes], coefficients: Coefficients<'_>, sums: &mut Sums) {
        add_chains(lanes, coefficients, sums);
    }
}

/// Rows of `k` numbers, side by side.
fn turn<T: Copy + Into<f64>>(rows: &[T], k: usize, lanes: &mut [Lanes]) {
    for (lane, row) in rows.chunks(k.max(1)).enumerate() {
        for (to, x) in lanes.iter_mut().zip(row) {
            to[lane] = (*x).into();
        }
    }
}

/// A weight (n, k) of float32, and the group of each input.
#[derive(Clone, Copy, Debug)]
pub struct Weight<'a> {
    /// The numbers.
    pub w: &'a [f32],
    /// Inputs.
    pub k: usize,
    /// For each input.
    pub group_of: &'a [i32],
}

/// Codes (n, k): input j is rounded to what is nearest to
/// `w[j] + sum over i < j of d[i] R[i][j] / R[j][j]`,
/// with the errors d and the upper triangle R = `factor` (k, k).
pub fn round_with_feedback<N: Nearest>(
    weight: Weight<'_>,
    factor: &[f64],
    nearest: &N,
    codes: &mut [u8],
) {
    let k = weight.k;
    assert_eq!(factor.len(), k * k);
    let columns = transposed(factor, k, k);
    for_each_lanes(weight, nearest, codes, |mut outputs| {
        turn(outputs.w, k, &mut outputs.errors);
        outputs.round(&columns);
    });
}

/// Codes (n, k) after a round of coordinate descent from `w_hat`: input j becomes what is nearest to
/// `w[j] + sum over i != j of d[i] h[i][j] / h[j][j]`, with `h` (k, k) symmetric.
pub fn descend<N: Nearest>(
    weight: Weight<'_>,
    h: &[f64],
    w_hat: &[f32],
    nearest: &N,
    codes: &mut [u8],
) {
    let k = weight.k;
    assert!(h.len() == k * k && w_hat.len() == weight.w.len());
    for_each_lanes(weight, nearest, codes, |mut outputs| {
        turn(outputs.w, k, &mut outputs.errors);
        let first = outputs.first * k;
        for (lane, row) in w_hat[first..first + outputs.w.len()].chunks(k).enumerate() {
            for (error, near) in outputs.errors.iter_mut().zip(row) {
                error[lane] -= f64::from(*near);
            }
        }
        outputs.descend(h);
    });
}

/// Some outputs side by side.
struct Outputs<'a, L> {
    /// Of the first output.
    first: usize,
    w: &'a [f32],
    group_of: &'a [i32],
    levels: L,
    /// Of each input: its weights until it is rounded, and its errors from then on.
    errors: Vec<Lanes>,
    codes: &'a mut [u8],
}

/// Runs `work` for each [`LANES`] outputs, on all threads.
fn for_each_lanes<N: Nearest>(
    weight: Weight<'_>,
    nearest: &N,
    codes: &mut [u8],
    work: impl Fn(Outputs<'_, N::ForLanes>) + Sync,
) {
    let Weight { w, k, group_of } = weight;
    assert!(codes.len() == w.len() && group_of.len() == k);
    if k == 0 {
        return;
    }
    let jobs = w.chunks(LANES * k).zip(codes.chunks_mut(LANES * k)).enumerate();
    for_each_job(jobs, |(job, (w, codes))| {
        let first = job * LANES;
        let levels = nearest.for_lanes(first, w.len() / k);
        let errors = vec![[0.0; LANES]; k];
        work(Outputs { first, w, group_of, levels, errors, codes });
        Ok(())
    })
    .expect("no faults");
}

impl<L: NearestOfLanes> Outputs<'_, L> {
    /// [`round_with_feedback`], with the columns of the factor.
    fn round(&mut self, columns: &[f64]) {
        let k = self.errors.len();
        for first in (0..k).step_by(INPUTS) {
            let (done, rest) = self.errors.split_at_mut(first);
            let mut sums = [[0.0; LANES]; INPUTS];
            let mut found = [[0; LANES]; INPUTS];
            let count = INPUTS.min(rest.len());
            let groups = &self.group_of[first..first + count];
            chains(done, rows_of(columns, k, first, 0..first), &mut sums);
            let own = rows_of(columns, k, first, first..first + count);
            round_block(&self.levels, own, groups, &mut sums, rest, &mut found);
            self.put(first, &found[..count]);
        }
    }

    /// [`descend`], with the matrix.
    fn descend(&mut self, h: &[f64]) {
        let k = self.errors.len();
        for first in (0..k).step_by(INPUTS) {
            let count = INPUTS.min(k - first);
            let mut sums = [[0.0; LANES]; INPUTS];
            let mut found = [[0; LANES]; INPUTS];
            let mut weights = [[0.0; LANES]; INPUTS];
            turn_columns(self.w, k, first, &mut weights[..count]);
            // The errors of the block itself come in last, since they change.
            let own = first..first + count;
            for part in [0..own.start, own.end..k] {
                let h = rows_of(h, k, first, part.clone());
                chains(&self.errors[part], h, &mut sums);
            }
            let (errors, groups) = (&mut self.errors[own.clone()], &self.group_of[own.clone()]);
            let h = rows_of(h, k, first, own);
            descend_block(&self.levels, h, groups, (&sums, &weights), errors, &mut found);
            self.put(first, &found[..count]);
        }
    }

    /// Writes the codes of some inputs, from `first` on.
    fn put(&mut self, first: usize, found: &[[u8; LANES]]) {
        for (lane, row) in self.codes.chunks_mut(self.errors.len()).enumerate() {
            for (to, found) in row[first..].iter_mut().zip(found) {
                *to = found[lane];
            }
        }
    }
}

/// Some inputs of rows of `k` numbers, side by side.
fn turn_columns(rows: &[f32], k: usize, first: usize, lanes: &mut [Lanes]) {
    for (lane, row) in rows.chunks(k).enumerate() {
        for (to, x) in lanes.iter_mut().zip(&row[first..]) {
            to[lane] = f64::from(*x);
        }
    }
}

multiversion! {
    /// Rounds the inputs of a block; `sums` are over all before it, `rest` becomes errors.
    fn round_block<L: NearestOfLanes>(
        levels: &L, factor: Coefficients<'_>, groups: &[i32], sums: &mut Sums, rest: &mut [Lanes],
        codes: &mut [[u8; LANES]; INPUTS],
    ) {
        for i in 0..groups.len() {
            let weights = rest[i];
            let mut near = [0.0; LANES];
            for lane in 0..LANES {
                near[lane] = weights[lane] + sums[i][lane] / factor[i][i];
            }
            levels.nearest(groups[i] as usize, &mut near, &mut codes[i]);
            let mut errors = [0.0; LANES];
            for lane in 0..LANES {
                errors[lane] = weights[lane] - near[lane];
            }
            for later in i + 1..groups.len() {
                for lane in 0..LANES {
                    sums[later][lane] = factor[later][i].mul_add(errors[lane], sums[later][lane]);
                }
            }
            rest[i] = errors;
        }
    }
}

multiversion! {
    /// Improves the inputs of a block one by one; `sums` are over all others.
    fn descend_block<L: NearestOfLanes>(
        levels: &L, h: Coefficients<'_>, groups: &[i32], state: (&Sums, &Sums), errors: &mut [Lanes],
        codes: &mut [[u8; LANES]; INPUTS],
    ) {
        let (sums, weights) = state;
        for i in 0..groups.len() {
            let mut pull = sums[i];
            for other in 0..groups.len() {
                if other != i {
                    for lane in 0..LANES {
                        pull[lane] = h[i][other].mul_add(errors[other][lane], pull[lane]);
                    }
                }
            }
            let mut near = weights[i];
            if h[i][i] > 0.0 {
                for lane in 0..LANES {
                    near[lane] += pull[lane] / h[i][i];
                }
            }
            levels.nearest(groups[i] as usize, &mut near, &mut codes[i]);
            for lane in 0..LANES {
                errors[i][lane] = weights[i][lane] - near[lane];
            }
        }
    }
}
