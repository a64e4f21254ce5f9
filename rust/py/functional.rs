//! Bindings of `functional`: what stands between layers.

use pyo3::prelude::*;

use super::Object;
use super::arrays::{Array, finished, input, output, shape_of, slice, slice_mut};
use super::errors::compute;
use super::params::with_dtype;
use crate::functional;

#[pyfunction]
#[pyo3(signature = (x, dtype, out=None))]
pub fn gelu(
    py: Python<'_>,
    x: &Array<'_>,
    dtype: &str,
    out: Option<&Array<'_>>,
) -> PyResult<Object> {
    let shape = shape_of("x", x)?;
    with_dtype!(dtype, E => {
        let x = input("x", x, None)?;
        let mut out = output(py, out, shape)?;
        let (x, y) = (slice(&x), slice_mut(&mut out));
        compute(py, || functional::gelu::<E>(x, y))?;
        Ok(finished(&out))
    })
}

#[pyfunction]
#[pyo3(signature = (x, dtype, out=None))]
pub fn softmax(
    py: Python<'_>,
    x: &Array<'_>,
    dtype: &str,
    out: Option<&Array<'_>>,
) -> PyResult<Object> {
    let shape = shape_of("x", x)?;
    with_dtype!(dtype, E => {
        let x = input("x", x, None)?;
        let mut out = output(py, out, shape)?;
        let (x, y) = (slice(&x), slice_mut(&mut out));
        compute(py, || functional::softmax::<E>(x, shape.1, y))?;
        Ok(finished(&out))
    })
}

#[pyfunction]
#[pyo3(signature = (x, dtype, weight, bias, eps, out=None))]
pub fn layer_norm(
    py: Python<'_>,
    x: &Array<'_>,
    dtype: &str,
    weight: &Array<'_>,
    bias: &Array<'_>,
    eps: f32,
    out: Option<&Array<'_>>,
) -> PyResult<Object> {
    let shape = shape_of("x", x)?;
    let weight = input("weight", weight, Some((1, shape.1)))?;
    let bias = input("bias", bias, Some((1, shape.1)))?;
    with_dtype!(dtype, E => {
        let x = input("x", x, None)?;
        let mut out = output(py, out, shape)?;
        let (x, weight, bias) = (slice(&x), slice(&weight), slice(&bias));
        let y = slice_mut(&mut out);
        compute(py, || functional::layer_norm::<E>(x, weight, bias, eps, y))?;
        Ok(finished(&out))
    })
}
