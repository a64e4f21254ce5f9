//! What solvers that look at second moments repeat, in float64: a factorization, products, and
//! rounding with feedback.
//!
//! Every sum is a chain of fused multiply-adds in an order of its own, whatever is cut into blocks:
//! outputs lie side by side in lanes, and no sum is split. So results depend neither on the
//! instruction set nor on the number of threads.

mod cholesky;
mod levels;

use crate::rows::for_each_job;
use crate::simd::{Level, multiversion, reaches};
pub use cholesky::cholesky;
use levels::NearestOfLanes;
pub use levels::{Integers, Nearest, Table};

/// Sums side by side: outputs, and inputs. With AVX-512 they fill 24 of 32 registers.
const LANES: usize = 24;
const INPUTS: usize = 8;

/// Numbers of so many outputs, and of so many inputs.
type Lanes = [f64; LANES];
type Coefficients = [f64; INPUTS];
type Sums = [Lanes; INPUTS];

/// sum = fma(coefficient, lane, sum) over the rows of both, in their order.
#[inline(always)]
fn add_chains(lanes: &[Lanes], coefficients: &[Coefficients], sums: &mut Sums) {
    assert_eq!(lanes.len(), coefficients.len());
    if reaches(Level::Avx512) {
        add_part::<LANES, INPUTS>(lanes, coefficients, sums, 0, 0);
    } else {
        // As much as 16 registers of four hold.
        for lane in (0..LANES).step_by(8) {
            for input in (0..INPUTS).step_by(4) {
                add_part::<8, 4>(lanes, coefficients, sums, lane, input);
            }
        }
    }
}

#[inline(always)]
fn add_part<const L: usize, const I: usize>(
    lanes: &[Lanes],
    coefficients: &[Coefficients],
    sums: &mut Sums,
    lane: usize,
    input: usize,
) {
    let mut part = [[0.0; L]; I];
    for i in 0..I {
        for l in 0..L {
            part[i][l] = sums[input + i][lane + l];
        }
    }
    for row in 0..lanes.len() {
        let (x, c) = (&lanes[row], &coefficients[row]);
        for i in 0..I {
            for l in 0..L {
                part[i][l] = c[input + i].mul_add(x[lane + l], part[i][l]);
            }
        }
    }
    for i in 0..I {
        for l in 0..L {
            sums[input + i][lane + l] = part[i][l];
        }
    }
}

/// Rows of `matrix` (k, n) in blocks of columns; zeros behind the last column.
fn packed<const W: usize>(
    matrix: &[f64],
    n: usize,
    rows_of: impl Fn(usize) -> usize + Sync,
) -> Vec<Vec<[f64; W]>> {
    let mut blocks: Vec<Vec<[f64; W]>> = vec![vec![]; n.div_ceil(W)];
    for_each_job(blocks.iter_mut().enumerate(), |(block, to)| {
        let first = block * W;
        let width = W.min(n - first);
        *to = vec![[0.0; W]; rows_of(block)];
        for (row, to) in to.iter_mut().enumerate() {
            to[..width].copy_from_slice(&matrix[row * n + first..][..width]);
        }
        Ok(())
    })
    .expect("no faults");
    blocks
}

/// `a` (n, k) times `b` (k, m): chains from 0 in the order of k.
pub fn matmul_float64(a: &[f64], b: &[f64], (n, k, m): (usize, usize, usize), out: &mut [f64]) {
    assert!(a.len() == n * k && b.len() == k * m && out.len() == n * m);
    if m == 0 {
        return;
    }
    let blocks = packed::<INPUTS>(b, m, |_| k);
    let jobs = out.chunks_mut(LANES * m).enumerate();
    for_each_job(jobs, |(job, out)| {
        let count = out.len() / m;
        let mut lanes = vec![[0.0; LANES]; k];
        turn(&a[job * LANES * k..][..count * k], k, &mut lanes);
        for (block, coefficients) in blocks.iter().enumerate() {
            let mut sums = [[0.0; LANES]; INPUTS];
            chains(&lanes, coefficients, &mut sums);
            for (sums, column) in sums.iter().zip(block * INPUTS..m) {
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
    fn chains(lanes: &[Lanes], coefficients: &[Coefficients], sums: &mut Sums) {
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

/// Codes (n, k): input j is rounded to what is nearest to w_j + sum over i < j of d_i R_ij / R_jj,
/// with the errors d and the upper triangle R = `factor` (k, k).
pub fn round_with_feedback<N: Nearest>(
    weight: Weight<'_>,
    factor: &[f64],
    nearest: &N,
    codes: &mut [u8],
) {
    let k = weight.k;
    assert_eq!(factor.len(), k * k);
    let blocks = packed::<INPUTS>(factor, k, |block| k.min((block + 1) * INPUTS));
    for_each_lanes(weight, nearest, codes, |mut outputs| {
        turn(outputs.w, k, &mut outputs.errors);
        outputs.round(&blocks);
    });
}

/// Codes (n, k) after a round of coordinate descent from `w_hat`: input j becomes what is nearest to
/// w_j + sum over i != j of d_i h_ij / h_jj, with `h` (k, k) symmetric.
pub fn descend<N: Nearest>(
    weight: Weight<'_>,
    h: &[f64],
    w_hat: &[f32],
    nearest: &N,
    codes: &mut [u8],
) {
    let k = weight.k;
    assert!(h.len() == k * k && w_hat.len() == weight.w.len());
    let blocks = packed::<INPUTS>(h, k, |_| k);
    for_each_lanes(weight, nearest, codes, |mut outputs| {
        turn(outputs.w, k, &mut outputs.errors);
        let first = outputs.first * k;
        for (lane, row) in w_hat[first..first + outputs.w.len()].chunks(k).enumerate() {
            for (error, near) in outputs.errors.iter_mut().zip(row) {
                error[lane] -= f64::from(*near);
            }
        }
        outputs.descend(&blocks);
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
    /// [`round_with_feedback`], of which `blocks` has the factor.
    fn round(&mut self, blocks: &[Vec<Coefficients>]) {
        for (block, factor) in blocks.iter().enumerate() {
            let first = block * INPUTS;
            let (done, rest) = self.errors.split_at_mut(first);
            let mut sums = [[0.0; LANES]; INPUTS];
            let mut found = [[0; LANES]; INPUTS];
            let count = INPUTS.min(rest.len());
            let groups = &self.group_of[first..first + count];
            chains(done, &factor[..first], &mut sums);
            round_block(&self.levels, &factor[first..], groups, &mut sums, rest, &mut found);
            self.put(first, &found[..count]);
        }
    }

    /// [`descend`], of which `blocks` has the matrix.
    fn descend(&mut self, blocks: &[Vec<Coefficients>]) {
        let k = self.errors.len();
        for (block, h) in blocks.iter().enumerate() {
            let first = block * INPUTS;
            let count = INPUTS.min(k - first);
            let mut sums = [[0.0; LANES]; INPUTS];
            let mut found = [[0; LANES]; INPUTS];
            let mut weights = [[0.0; LANES]; INPUTS];
            turn_columns(self.w, k, first, &mut weights[..count]);
            // The errors of the block itself come in last, since they change.
            let own = first..first + count;
            chains(&self.errors[..own.start], &h[..own.start], &mut sums);
            chains(&self.errors[own.end..], &h[own.end..], &mut sums);
            let (errors, groups) = (&mut self.errors[own.clone()], &self.group_of[own.clone()]);
            descend_block(&self.levels, &h[own], groups, (&sums, &weights), errors, &mut found);
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
        levels: &L, factor: &[Coefficients], groups: &[i32], sums: &mut Sums, rest: &mut [Lanes],
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
                    sums[later][lane] = factor[i][later].mul_add(errors[lane], sums[later][lane]);
                }
            }
            rest[i] = errors;
        }
    }
}

multiversion! {
    /// Improves the inputs of a block one by one; `sums` are over all others.
    fn descend_block<L: NearestOfLanes>(
        levels: &L, h: &[Coefficients], groups: &[i32], state: (&Sums, &Sums), errors: &mut [Lanes],
        codes: &mut [[u8; LANES]; INPUTS],
    ) {
        let (sums, weights) = state;
        for i in 0..groups.len() {
            let mut pull = sums[i];
            for other in 0..groups.len() {
                if other != i {
                    for lane in 0..LANES {
                        pull[lane] = h[other][i].mul_add(errors[other][lane], pull[lane]);
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
