//! Bindings of `grouped`: products with packed weights.

use numpy::PyUntypedArrayMethods;
use pyo3::prelude::*;

use super::Object;
use super::arrays::{Array, finished, input, optional_input, output, shape_of, slice, slice_mut};
use super::errors::{ArgValueError, compute};
use super::params::{bits_of, with_dtype};
use crate::grid::packed_len;
use crate::grouped;

/// Weights that `pack_grouped` made ready.
#[pyclass(frozen, module = "qrs._qrs")]
pub struct GroupedWeights(grouped::GroupedWeights);

#[pyfunction]
#[pyo3(signature = (packed, cols, group_size, bits, signed, scale, zero_point=None, books=None))]
pub fn pack_grouped(
    py: Python<'_>,
    packed: &Array<'_>,
    cols: usize,
    group_size: usize,
    bits: u32,
    signed: bool,
    scale: &Array<'_>,
    zero_point: Option<&Array<'_>>,
    books: Option<&Array<'_>>,
) -> PyResult<GroupedWeights> {
    let bits = bits_of(bits)?;
    let n = shape_of("packed", packed)?.0;
    if group_size == 0 {
        return Err(ArgValueError::new_err("group_size must be 1 or more: 0"));
    }
    let groups = cols.div_ceil(group_size);
    let packed = input("packed", packed, Some((n, packed_len(cols, bits))))?;
    let scale = input("scale", scale, Some((n, groups)))?;
    let zero_point = optional_input("zero_point", zero_point, (n, groups))?;
    let books = books.map(|books| books_of(books, n)).transpose()?;
    let (packed, scale) = (slice(&packed), slice(&scale));
    let zero_point = zero_point.as_ref().map(slice);
    let books = books.as_ref().map(|books| (slice(books), books.shape()[1]));
    let shape = (n, cols);
    compute(py, || {
        grouped::pack_grouped(packed, shape, group_size, (bits, signed), scale, zero_point, books)
    })
    .map(GroupedWeights)
}

#[pyfunction]
#[pyo3(signature = (x, dtype, weights, bias=None, as_bf16x2=false, out=None))]
pub fn matmul_grouped(
    py: Python<'_>,
    x: &Array<'_>,
    dtype: &str,
    weights: &GroupedWeights,
    bias: Option<&Array<'_>>,
    as_bf16x2: bool,
    out: Option<&Array<'_>>,
) -> PyResult<Object> {
    let weights = &weights.0;
    let m = shape_of("x", x)?.0;
    with_dtype!(dtype, E => {
        let x = input("x", x, Some((m, weights.k)))?;
        let bias = optional_input("bias", bias, (1, weights.n))?;
        let mut out = output(py, out, (m, weights.n))?;
        let (x, bias, y) = (slice(&x), bias.as_ref().map(slice), slice_mut(&mut out));
        compute(py, || {
            grouped::matmul_grouped::<E>(x, weights, bias, as_bf16x2, y);
            Ok(())
        })?;
        Ok(finished(&out))
    })
}

#[pyfunction]
#[pyo3(signature = (x, weights, x_scale, bias=None, out=None))]
pub fn linear_grouped_int8(
    py: Python<'_>,
    x: &Array<'_>,
    weights: &GroupedWeights,
    x_scale: &Array<'_>,
    bias: Option<&Array<'_>>,
    out: Option<&Array<'_>>,
) -> PyResult<Object> {
    let weights = &weights.0;
    if !weights.are_integers() {
        return Err(ArgValueError::new_err("weights must be integers, not entries of a book"));
    }
    let m = shape_of("x", x)?.0;
    let x = input::<i8>("x", x, Some((m, weights.k)))?;
    let x_scale = input("x_scale", x_scale, Some((m, 1)))?;
    let bias = optional_input("bias", bias, (1, weights.n))?;
    let mut out = output(py, out, (m, weights.n))?;
    let (x, x_scale, bias) = (slice(&x), slice(&x_scale), bias.as_ref().map(slice));
    let y = slice_mut(&mut out);
    compute(py, || {
        grouped::linear_grouped_int8(x, weights, x_scale, bias, y);
        Ok(())
    })?;
    Ok(finished(&out))
}

#[pyfunction]
#[pyo3(signature = (y, x, dtype, w, bias=None, relu=false, out=None))]
pub fn add_matmul(
    py: Python<'_>,
    y: &Array<'_>,
    x: &Array<'_>,
    dtype: &str,
    w: &Array<'_>,
    bias: Option<&Array<'_>>,
    relu: bool,
    out: Option<&Array<'_>>,
) -> PyResult<Object> {
    let (m, n) = shape_of("y", y)?;
    let columns = shape_of("x", x)?.1;
    with_dtype!(dtype, E => {
        let (y, x) = (input("y", y, None)?, input("x", x, Some((m, columns)))?);
        let w = input("w", w, Some((n, columns)))?;
        let bias = optional_input("bias", bias, (1, n))?;
        let mut out = output(py, out, (m, n))?;
        let (y, x, w, bias) = (slice(&y), slice(&x), slice(&w), bias.as_ref().map(slice));
        let sums = slice_mut(&mut out);
        compute(py, || {
            grouped::add_matmul::<E>(y, x, w, n, bias, relu, sums);
            Ok(())
        })?;
        Ok(finished(&out))
    })
}

/// Tables of levels: one, or one for each output.
fn books_of<'py>(books: &Array<'py>, n: usize) -> PyResult<numpy::PyReadonlyArray2<'py, f32>> {
    let (count, width) = shape_of("books", books)?;
    if (count != 1 && count != n) || !(1..=256).contains(&width) {
        let text = format!("books must be 1 or {n} of 1 to 256 levels: {:?}", (count, width));
        return Err(ArgValueError::new_err(text));
    }
    input("books", books, None)
}
