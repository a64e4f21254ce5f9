//! The bindings of the clustering operations.

use pyo3::prelude::*;

use super::Object;
use super::arrays::{Array, finished, input, output, shape_of, slice, slice_mut};
use super::errors::{ArgValueError, compute};
use super::params::with_dtype;
use crate::kmeans_1d::{self as kernel, Clusters, Float64, Number};

#[pyfunction]
pub fn kmeans_1d(
    py: Python<'_>,
    x: &Array<'_>,
    dtype: &str,
    k: usize,
    weights: Option<&Array<'_>>,
    with_labels: bool,
) -> PyResult<(Object, Option<Object>, Object, Object)> {
    if dtype == "float64" {
        return clustered::<Float64>(py, x, k, weights, with_labels);
    }
    with_dtype!(dtype, E => clustered::<E>(py, x, k, weights, with_labels))
}

/// A row of the weights belongs to one row of `x`, or to all.
fn clustered<N: Number<Repr: numpy::Element>>(
    py: Python<'_>,
    x: &Array<'_>,
    k: usize,
    weights: Option<&Array<'_>>,
    with_labels: bool,
) -> PyResult<(Object, Option<Object>, Object, Object)> {
    let (rows, cols) = shape_of("x", x)?;
    if k == 0 || cols == 0 {
        return Err(ArgValueError::new_err("k and the number of columns must be at least 1"));
    }
    let x = input::<N::Repr>("x", x, None)?;
    let weights = match weights {
        Some(array) => {
            let all = if shape_of("weights", array)?.0 == 1 { 1 } else { rows };
            Some(input::<f64>("weights", array, Some((all, cols)))?)
        }
        None => None,
    };
    let mut centers = output::<f64>(py, None, (rows, k))?;
    let mut labels = if with_labels { Some(output::<i32>(py, None, (rows, cols))?) } else { None };
    let mut inertia = output::<f64>(py, None, (rows, 1))?;
    let mut passes = output::<i32>(py, None, (rows, 1))?;
    let out = Clusters {
        centers: slice_mut(&mut centers),
        labels: labels.as_mut().map(slice_mut),
        inertia: slice_mut(&mut inertia),
        passes: slice_mut(&mut passes),
    };
    let (x, weights) = (slice(&x), weights.as_ref().map(slice));
    compute(py, || kernel::kmeans_1d::<N>(x, cols, weights, out))?;
    Ok((finished(&centers), labels.as_ref().map(finished), finished(&inertia), finished(&passes)))
}
