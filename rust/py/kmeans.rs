//! Bindings of `kmeans`: what Lloyd's algorithm repeats.

use pyo3::prelude::*;

use super::Object;
use super::arrays::{Array, finished, input, optional_input, output, shape_of, slice, slice_mut};
use super::errors::{ArgValueError, compute};
use crate::kmeans;

#[pyfunction]
#[pyo3(signature = (x, centers, labels=None, distances=None))]
pub fn kmeans_assign(
    py: Python<'_>,
    x: &Array<'_>,
    centers: &Array<'_>,
    labels: Option<&Array<'_>>,
    distances: Option<&Array<'_>>,
) -> PyResult<(Object, Object)> {
    let (n, d) = points_of(x)?;
    let (x, centers) = (input("x", x, None)?, several("centers", centers, d)?);
    let (mut labels, mut distances) = (output(py, labels, (n, 1))?, output(py, distances, (n, 1))?);
    let (x, centers) = (slice(&x), slice(&centers));
    let (labels_out, distances_out) = (slice_mut(&mut labels), slice_mut(&mut distances));
    compute(py, || {
        kmeans::kmeans_assign(x, d, centers, labels_out, distances_out);
        Ok(())
    })?;
    Ok((finished(&labels), finished(&distances)))
}

#[pyfunction]
pub fn kmeans_update(
    py: Python<'_>,
    x: &Array<'_>,
    labels: &Array<'_>,
    weights: Option<&Array<'_>>,
    k: usize,
) -> PyResult<(Object, Object)> {
    let (n, d) = points_of(x)?;
    let (x, labels) = (input("x", x, None)?, input("labels", labels, Some((n, 1)))?);
    let weights = optional_input("weights", weights, (n, 1))?;
    let (mut sums, mut totals) = (output(py, None, (k, d))?, output(py, None, (k, 1))?);
    let (x, labels, weights) = (slice(&x), slice(&labels), weights.as_ref().map(slice));
    let (sums_out, totals_out) = (slice_mut(&mut sums), slice_mut(&mut totals));
    compute(py, || {
        kmeans::kmeans_update(x, d, labels, weights, sums_out, totals_out);
        Ok(())
    })?;
    Ok((finished(&sums), finished(&totals)))
}

#[pyfunction]
pub fn kmeans_potentials(
    py: Python<'_>,
    x: &Array<'_>,
    candidates: &Array<'_>,
    closest: &Array<'_>,
    weights: Option<&Array<'_>>,
) -> PyResult<Object> {
    let (n, d) = points_of(x)?;
    let count = shape_of("candidates", candidates)?.0;
    let (x, candidates) = (input("x", x, None)?, several("candidates", candidates, d)?);
    let closest = input("closest", closest, Some((n, 1)))?;
    let weights = optional_input("weights", weights, (n, 1))?;
    let mut potentials = output(py, None, (count, n.div_ceil(kmeans::BLOCK)))?;
    let (x, candidates, closest) = (slice(&x), slice(&candidates), slice(&closest));
    let (weights, out) = (weights.as_ref().map(slice), slice_mut(&mut potentials));
    compute(py, || {
        kmeans::kmeans_potentials(x, d, candidates, closest, weights, out);
        Ok(())
    })?;
    Ok(finished(&potentials))
}

/// The shape of points, which have a column at least.
fn points_of(x: &Array<'_>) -> PyResult<(usize, usize)> {
    let shape = shape_of("x", x)?;
    if shape.1 == 0 {
        return Err(ArgValueError::new_err(format!("x must have columns: shape={shape:?}")));
    }
    Ok(shape)
}

/// One center or more, of `d` columns.
fn several<'py>(
    name: &str,
    array: &Array<'py>,
    d: usize,
) -> PyResult<numpy::PyReadonlyArray2<'py, f32>> {
    let count = shape_of(name, array)?.0;
    if count == 0 {
        return Err(ArgValueError::new_err(format!("{name} must not be empty")));
    }
    input(name, array, Some((count, d)))
}
