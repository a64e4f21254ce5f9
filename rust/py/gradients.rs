//! Bindings of `gradients`.

use pyo3::prelude::*;

use super::Object;
use super::arrays::{Array, finished, input, optional_input, output, shape_of, slice, slice_mut};
use super::errors::{bad, compute};
use super::params::{codes_of, given, grid_of, groups, with_dtype};
use crate::gradients::{self, StepGradients};

#[pyfunction]
#[pyo3(signature = (dy, x, dtype, group_size, scale, zero_point, qmin, qmax, out=None))]
pub fn clip_gradient_affine(
    py: Python<'_>,
    dy: &Array<'_>,
    x: &Array<'_>,
    dtype: &str,
    group_size: usize,
    scale: &Array<'_>,
    zero_point: Option<&Array<'_>>,
    qmin: i32,
    qmax: i32,
    out: Option<&Array<'_>>,
) -> PyResult<Object> {
    let shape = shape_of("x", x)?;
    let grid = grid_of(shape, group_size)?;
    let codes = codes_of(qmin, qmax, zero_point.is_none(), 8)?;
    let scale = input("scale", scale, Some(groups(grid)))?;
    let zero_point = optional_input("zero_point", zero_point, groups(grid))?;
    with_dtype!(dtype, E => {
        let (dy, x) = (input("dy", dy, Some(shape))?, input("x", x, None)?);
        let mut out = output(py, out, shape)?;
        let params = given(&scale, zero_point.as_ref());
        let (dy, x, clipped) = (slice(&dy), slice(&x), slice_mut(&mut out));
        compute(py, || {
            gradients::clip_gradient_affine::<E>(dy, x, grid, codes, params, clipped);
            Ok(())
        })?;
        Ok(finished(&out))
    })
}

#[pyfunction]
#[pyo3(signature = (dy, x, dtype, group_size, scale, zero_point, qmin, qmax, out=None))]
pub fn step_gradients_affine(
    py: Python<'_>,
    dy: &Array<'_>,
    x: &Array<'_>,
    dtype: &str,
    group_size: usize,
    scale: &Array<'_>,
    zero_point: Option<&Array<'_>>,
    qmin: i32,
    qmax: i32,
    out: Option<&Array<'_>>,
) -> PyResult<(Object, Object, Object)> {
    let shape = shape_of("x", x)?;
    let grid = grid_of(shape, group_size)?;
    if shape.1 % group_size != 0 {
        return Err(bad(py, "group_size", group_size, "a divisor of the columns"));
    }
    let codes = codes_of(qmin, qmax, zero_point.is_none(), 8)?;
    let scale = input("scale", scale, Some(groups(grid)))?;
    let zero_point = optional_input("zero_point", zero_point, groups(grid))?;
    with_dtype!(dtype, E => {
        let (dy, x) = (input("dy", dy, Some(shape))?, input("x", x, None)?);
        let mut dx = output(py, out, shape)?;
        let mut of_scale = output(py, None, groups(grid))?;
        let mut of_zero = output(py, None, groups(grid))?;
        let params = given(&scale, zero_point.as_ref());
        let (dy, x) = (slice(&dy), slice(&x));
        let written = StepGradients::<E> {
            x: slice_mut(&mut dx),
            scale: slice_mut(&mut of_scale),
            zero_point: slice_mut(&mut of_zero),
        };
        compute(py, || {
            gradients::step_gradients_affine::<E>(dy, x, group_size, codes, params, written);
            Ok(())
        })?;
        Ok((finished(&dx), finished(&of_scale), finished(&of_zero)))
    })
}
