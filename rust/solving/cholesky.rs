//! Cholesky's factorization from the last column to the first, a panel of columns at a time.
//!
//! Inside, rows and columns are counted from the end: U is upper triangular with h = U^T U there, and
//! `R[i][j] = U[k - 1 - j][k - 1 - i]`. Of column b,
//! `U[a][b] = (h[a][b] - sum over t < a of U[t][a] U[t][b]) / U[a][a]`, with t ascending.

use super::{INPUTS, LANES, Lanes, add_chains, rows_of};
use crate::error::Fault;
use crate::rows::for_each_job;
use crate::simd::multiversion;

/// Rows of a panel that depend on one another.
type Square = [Lanes; LANES];

/// R (k, k), upper triangular, with h = R R^T; of `h` the upper triangle is read.
///
/// # Errors
/// `NotPositive` with the column of the first pivot, from the last column on, that is not positive.
pub fn cholesky(h: &[f64], k: usize, factor: &mut [f64]) -> Result<(), Fault> {
    assert!(h.len() == k * k && factor.len() == k * k);
    let mut panels: Vec<Vec<Lanes>> = (0..k.div_ceil(LANES)).map(|p| from_end(h, k, p)).collect();
    for stage in 0..panels.len() {
        let first = stage * LANES;
        let coefficients = negated(&panels[stage][..first]);
        let (own, later) = panels[stage..].split_first_mut().expect("one panel at least");
        subtract(&coefficients, first, own);
        let square: &mut Square = own[first..].first_chunk_mut().expect("whole panels");
        let count = LANES.min(k - first);
        if let Err(row) = factorize(square, count) {
            return Err(Fault::NotPositive { column: k - 1 - first - row });
        }
        let square = *square;
        for_each_job(later.iter_mut(), |panel| {
            subtract(&coefficients, first, panel);
            let rows: &mut Square = panel[first..].first_chunk_mut().expect("whole panels");
            solve(&square, count, rows);
            Ok(())
        })
        .expect("no faults");
    }
    for_each_job(factor.chunks_mut(k.max(1)).enumerate(), |(i, row)| {
        let column = k - 1 - i;
        let panel = &panels[column / LANES];
        row[..i].fill(0.0);
        for (j, to) in row.iter_mut().enumerate().skip(i) {
            *to = panel[k - 1 - j][column % LANES];
        }
        Ok(())
    })
    .expect("no faults");
    Ok(())
}

/// The columns of a panel, down to its last row on the diagonal.
fn from_end(h: &[f64], k: usize, panel: usize) -> Vec<Lanes> {
    let first = panel * LANES;
    let mut rows = vec![[0.0; LANES]; first + LANES];
    for (a, row) in rows.iter_mut().enumerate().take(k) {
        for (b, to) in (first..k.min(first + LANES)).zip(row.iter_mut()) {
            // Rows of `h` above its diagonal are columns here.
            *to = if a <= b { h[(k - 1 - b) * k + k - 1 - a] } else { 0.0 };
        }
    }
    rows
}

/// Minus the columns of a panel, one after the other.
fn negated(rows: &[Lanes]) -> Vec<f64> {
    let mut columns = vec![0.0; LANES * rows.len()];
    for (row, lanes) in rows.iter().enumerate() {
        for (column, x) in lanes.iter().enumerate() {
            columns[column * rows.len() + row] = -x;
        }
    }
    columns
}

multiversion! {
    /// Subtracts from the rows `first ..` of a panel what those before have to do with them.
    fn subtract(coefficients: &[f64], first: usize, panel: &mut [Lanes]) {
        let (done, rows) = panel.split_at_mut(first);
        for block in (0..LANES).step_by(INPUTS) {
            let sums: &mut [Lanes; INPUTS] =
                rows[block..].first_chunk_mut().expect("whole panels");
            add_chains(done, rows_of(coefficients, first, block, 0..first), sums);
        }
    }
}

multiversion! {
    /// The rows of the diagonal; an error is the row whose pivot is not positive.
    fn factorize(rows: &mut Square, count: usize) -> Result<(), usize> {
        for a in 0..count {
            let pivot = rows[a][a];
            if !(pivot > 0.0 && pivot.is_finite()) {
                return Err(a);
            }
            let root = pivot.sqrt();
            for b in 0..LANES {
                rows[a][b] = if b < a { 0.0 } else { rows[a][b] / root };
            }
            rows[a][a] = root;
            let row = rows[a];
            for later in a + 1..count {
                for b in 0..LANES {
                    rows[later][b] = (-row[later]).mul_add(row[b], rows[later][b]);
                }
            }
        }
        Ok(())
    }
}

multiversion! {
    /// The same rows of another panel, with those of the diagonal done.
    fn solve(square: &Square, count: usize, rows: &mut Square) {
        for a in 0..count {
            for b in 0..LANES {
                rows[a][b] /= square[a][a];
            }
            let row = rows[a];
            for later in a + 1..count {
                for b in 0..LANES {
                    rows[later][b] = (-square[a][later]).mul_add(row[b], rows[later][b]);
                }
            }
        }
    }
}
