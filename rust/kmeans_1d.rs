//! The global optimum of 1-D k-means for each row, in the steps and with the arithmetic of the
//! reference (`python/qrs/backends/reference/kmeans_1d.py`, which explains them). All of it is
//! float64; every sum runs from one end to the other.
//!
//! A row is one job of a thread. Where there is one row alone, threads share what can be cut into
//! pieces: counting values of 16 bits, and labels.

mod labels;
mod optimum;
mod path;
mod values;

pub use values::{Float64, Number};

use crate::error::Fault;
use crate::rows::{for_each_job, take, take_mut};
use labels::{Labeller, label};
use optimum::optimum;
use values::distinct;

/// Elements in a piece of a row that is the only one.
const PIECE: usize = 1 << 18;

/// Where results go: for each row `k` centers, a label for each value, the inertia, and the number
/// of passes.
pub struct Clusters<'a> {
    /// Ascending; the last one is repeated where there are fewer distinct values than `k`.
    pub centers: &'a mut [f64],
    /// Indices of the nearest centers, the lower one of two.
    pub labels: Option<&'a mut [i32]>,
    /// Weighted sums of squared distances.
    pub inertia: &'a mut [f64],
    /// Passes over all distinct values.
    pub passes: &'a mut [i32],
}

/// One row of the input with its results.
struct Row<'a, N: Number> {
    x: &'a [N::Repr],
    weights: Option<&'a [f64]>,
    centers: &'a mut [f64],
    labels: Option<&'a mut [i32]>,
    inertia: &'a mut f64,
    passes: &'a mut i32,
}

/// Clusters the values of each row of `cols`; `weights` are those of each row, or of all rows.
///
/// # Errors
/// `NonFinite` if `x` holds NaN or an infinity.
pub fn kmeans_1d<N: Number>(
    x: &[N::Repr],
    cols: usize,
    weights: Option<&[f64]>,
    out: Clusters,
) -> Result<(), Fault> {
    let rows = out.inertia.len();
    if rows == 0 {
        return Ok(());
    }
    assert_eq!((x.len(), out.passes.len()), (rows * cols, rows));
    let k = out.centers.len() / rows;
    let (mut x, mut labels) = (x, out.labels);
    let results = out.centers.chunks_exact_mut(k).zip(out.inertia).zip(out.passes);
    let jobs = results.enumerate().map(move |(row, ((centers, inertia), passes))| {
        let weights = weights.map(|all| &all[row * cols % all.len()..][..cols]);
        let labels = labels.as_mut().map(|labels| take_mut(labels, cols));
        Row::<N> { x: take(&mut x, cols), weights, centers, labels, inertia, passes }
    });
    for_each_job(jobs, |row| cluster_row(row, if rows == 1 { PIECE } else { usize::MAX }))
}

/// Clusters one row, `piece` of its elements at a time where threads can share the work.
fn cluster_row<N: Number>(row: Row<N>, piece: usize) -> Result<(), Fault> {
    let k = row.centers.len();
    let values = distinct::<N>(row.x, row.weights, piece)?;
    let scale = values.scale;
    let (centers, inertia, passes) = if values.x.len() <= k {
        (values.x, 0.0, 0)
    } else {
        optimum(&values.x, &values.w, k)
    };
    *row.inertia = inertia * values.weight_scale * scale * scale;
    *row.passes = passes;
    if let Some(labels) = row.labels {
        let middles: Vec<f64> =
            centers.windows(2).map(|pair| optimum::middle(pair) * scale).collect();
        label(&Labeller::<N>::new(&middles, values.short), row.x, labels, piece)?;
    }
    for (index, center) in row.centers.iter_mut().enumerate() {
        *center = centers[index.min(centers.len() - 1)] * scale + 0.0;
    }
    Ok(())
}
