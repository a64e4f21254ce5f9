//! Bindings of `int8`, `conv` and `requantize`: products of codes, and the way back from sums.

use numpy::{
    Element as NumpyElement, PyArrayDescrMethods, PyReadonlyArray2, PyUntypedArrayMethods,
};
use pyo3::prelude::*;

use super::arrays::{
    Array, Code, finished, input, optional_input, output, shape_of, slice, slice_mut,
};
use super::errors::{ArgValueError, compute};
use super::params::with_dtype;
use super::{Object, with_code};
use crate::conv::{self, Convolution, Images};
use crate::int8::{self, Rows};
use crate::requantize::{self as sums_to, Spread, Target};

/// Weights that `pack_int8` made ready.
#[pyclass(frozen, module = "qrs._qrs")]
pub struct Int8Weights(int8::Int8Weights);

#[pyfunction]
#[pyo3(signature = (codes, zero_point=None, groups=1))]
pub fn pack_int8(
    py: Python<'_>,
    codes: &Array<'_>,
    zero_point: Option<&Array<'_>>,
    groups: usize,
) -> PyResult<Int8Weights> {
    let (n, k) = shape_of("codes", codes)?;
    if groups == 0 || !n.is_multiple_of(groups) {
        return Err(ArgValueError::new_err(format!("groups must divide {n}: {groups}")));
    }
    let codes = input::<i8>("codes", codes, None)?;
    let zero_point = optional_input("zero_point", zero_point, (n, 1))?;
    let (codes, zero_point) = (slice(&codes), zero_point.as_ref().map(slice));
    compute(py, || Ok(int8::pack_int8(codes, n, k, zero_point, groups))).map(Int8Weights)
}

/// Runs a body with `$rows` as the rows of codes that an array and its zero points are.
macro_rules! with_rows {
    ($py:ident, $x:ident, $zero_point:ident, $weights:ident, $rows:ident => $body:expr) => {{
        let (m, k) = product_shape($x, &$weights.0)?;
        let signed = $x.dtype().is_equiv_to(&numpy::dtype::<i8>($py));
        let zero_points = $zero_point.map(|z| one_or_each("x_zero_point", z, m)).transpose()?;
        let zero_points = zero_points.as_ref().map_or(&[][..], slice);
        with_code!(signed, C => {
            let codes = input::<C>("x", $x, None)?;
            let $rows = Rows { codes: C::bytes(slice(&codes)), signed, k, m, zero_points };
            $body
        })
    }};
}

#[pyfunction]
#[pyo3(signature = (x, weights, x_zero_point=None, bias=None, out=None))]
pub fn matmul_int8(
    py: Python<'_>,
    x: &Array<'_>,
    weights: &Int8Weights,
    x_zero_point: Option<&Array<'_>>,
    bias: Option<&Array<'_>>,
    out: Option<&Array<'_>>,
) -> PyResult<Object> {
    let n = weights.0.n;
    with_rows!(py, x, x_zero_point, weights, rows => {
        let bias = optional_input("bias", bias, (1, n))?;
        let mut out = output(py, out, (rows.m, n))?;
        let (bias, sums) = (bias.as_ref().map(slice), slice_mut(&mut out));
        compute(py, || {
            int8::matmul_int8(rows, &weights.0, bias, sums);
            Ok(())
        })?;
        Ok(finished(&out))
    })
}

#[pyfunction]
#[pyo3(signature = (x, weights, x_scale, x_zero_point, w_scale, bias=None, relu=false, out=None))]
pub fn linear_int8(
    py: Python<'_>,
    x: &Array<'_>,
    weights: &Int8Weights,
    x_scale: &Array<'_>,
    x_zero_point: Option<&Array<'_>>,
    w_scale: &Array<'_>,
    bias: Option<&Array<'_>>,
    relu: bool,
    out: Option<&Array<'_>>,
) -> PyResult<Object> {
    let n = weights.0.n;
    with_rows!(py, x, x_zero_point, weights, rows => {
        let x_scale = one_or_each("x_scale", x_scale, rows.m)?;
        let w_scale = input("w_scale", w_scale, Some((1, n)))?;
        let bias = optional_input("bias", bias, (1, n))?;
        let mut out = output(py, out, (rows.m, n))?;
        let (x_scale, w_scale) = (slice(&x_scale), slice(&w_scale));
        let (bias, y) = (bias.as_ref().map(slice), slice_mut(&mut out));
        compute(py, || {
            int8::linear_int8(rows, &weights.0, x_scale, w_scale, bias, relu, y);
            Ok(())
        })?;
        Ok(finished(&out))
    })
}

/// `shape` is (channels, height, width, kernel, stride, padding, dilation: each height and width,
/// groups, out height and width).
#[pyfunction]
#[pyo3(signature = (x, weights, shape, x_zero_point, bias=None, out=None))]
pub fn conv_int8(
    py: Python<'_>,
    x: &Array<'_>,
    weights: &Int8Weights,
    shape: [usize; 14],
    x_zero_point: i32,
    bias: Option<&Array<'_>>,
    out: Option<&Array<'_>>,
) -> PyResult<Object> {
    let conv = convolution_of(shape);
    let batch = images_of(x, &weights.0, &conv)?;
    let n = weights.0.n;
    let signed = x.dtype().is_equiv_to(&numpy::dtype::<i8>(py));
    with_code!(signed, C => {
        let codes = input::<C>("x", x, None)?;
        let bias = optional_input("bias", bias, (1, n))?;
        let mut out = output(py, out, (batch * n, conv.out_size[0] * conv.out_size[1]))?;
        let images = Images { codes: C::bytes(slice(&codes)), signed, zero_point: x_zero_point };
        let (bias, sums) = (bias.as_ref().map(slice), slice_mut(&mut out));
        compute(py, || {
            conv::conv_int8(images, &weights.0, conv, bias, sums);
            Ok(())
        })?;
        Ok(finished(&out))
    })
}

#[pyfunction]
#[pyo3(signature = (sums, scale, bias=None, relu=false, out=None))]
pub fn dequantize_sums(
    py: Python<'_>,
    sums: &Array<'_>,
    scale: &Array<'_>,
    bias: Option<&Array<'_>>,
    relu: bool,
    out: Option<&Array<'_>>,
) -> PyResult<Object> {
    let shape = shape_of("sums", sums)?;
    let sums = input("sums", sums, None)?;
    let scale = Spreadable::new("scale", scale, shape)?;
    let bias = bias.map(|bias| Spreadable::new("bias", bias, shape)).transpose()?;
    let mut out = output(py, out, shape)?;
    let (sums, scale, y) = (slice(&sums), scale.spread(), slice_mut(&mut out));
    let bias = bias.as_ref().map(Spreadable::spread);
    compute(py, || {
        sums_to::dequantize_sums(sums, shape.1, scale, bias, relu, y);
        Ok(())
    })?;
    Ok(finished(&out))
}

#[pyfunction]
#[pyo3(signature = (sums, scale, zero_point, qmin, qmax, out=None))]
pub fn requantize(
    py: Python<'_>,
    sums: &Array<'_>,
    scale: &Array<'_>,
    zero_point: i32,
    qmin: i32,
    qmax: i32,
    out: Option<&Array<'_>>,
) -> PyResult<Object> {
    let shape = shape_of("sums", sums)?;
    let sums = input("sums", sums, None)?;
    let scale = Spreadable::new("scale", scale, shape)?;
    let target = Target { zero_point, qmin, qmax };
    with_code!(qmin < 0, C => {
        let mut out = output::<C>(py, out, shape)?;
        let (sums, scale) = (slice(&sums), scale.spread());
        let codes = C::bytes_mut(slice_mut(&mut out));
        compute(py, || {
            sums_to::requantize(sums, shape.1, scale, target, codes);
            Ok(())
        })?;
        Ok(finished(&out))
    })
}

#[pyfunction]
#[pyo3(signature = (sums, multiplier, shift, zero_point, qmin, qmax, out=None))]
pub fn requantize_fixed_point(
    py: Python<'_>,
    sums: &Array<'_>,
    multiplier: &Array<'_>,
    shift: &Array<'_>,
    zero_point: i32,
    qmin: i32,
    qmax: i32,
    out: Option<&Array<'_>>,
) -> PyResult<Object> {
    let shape = shape_of("sums", sums)?;
    let sums = input("sums", sums, None)?;
    let multiplier = Spreadable::new("multiplier", multiplier, shape)?;
    let shift = Spreadable::new("shift", shift, shape)?;
    let target = Target { zero_point, qmin, qmax };
    with_code!(qmin < 0, C => {
        let mut out = output::<C>(py, out, shape)?;
        let (multiplier, shift) = (multiplier.spread(), shift.spread());
        let (sums, codes) = (slice(&sums), C::bytes_mut(slice_mut(&mut out)));
        compute(py, || {
            sums_to::requantize_fixed_point(sums, shape.1, multiplier, shift, target, codes);
            Ok(())
        })?;
        Ok(finished(&out))
    })
}

#[pyfunction]
pub fn column_absmax(py: Python<'_>, x: &Array<'_>, dtype: &str) -> PyResult<Object> {
    let (_, cols) = shape_of("x", x)?;
    with_dtype!(dtype, E => {
        let x = input("x", x, None)?;
        let mut out = output(py, None, (1, cols))?;
        let (x, absmax) = (slice(&x), slice_mut(&mut out));
        compute(py, || sums_to::column_absmax::<E>(x, absmax))?;
        Ok(finished(&out))
    })
}

/// The shape (m, k) of rows that fit the weights.
fn product_shape(x: &Array<'_>, weights: &int8::Int8Weights) -> PyResult<(usize, usize)> {
    let (m, k) = shape_of("x", x)?;
    if k != weights.k || weights.groups != 1 {
        let (inputs, groups) = (weights.k, weights.groups);
        let text = format!("x has {k} columns for weights of {inputs} inputs in {groups} groups");
        return Err(ArgValueError::new_err(text));
    }
    Ok((m, k))
}

/// How many images there are.
fn images_of(x: &Array<'_>, weights: &int8::Int8Weights, conv: &Convolution) -> PyResult<usize> {
    let (rows, area) = shape_of("x", x)?;
    let [kh, kw] = conv.kernel;
    let fits = conv.channels > 0
        && conv.groups == weights.groups
        && rows.is_multiple_of(conv.channels)
        && conv.channels.is_multiple_of(conv.groups)
        && area == conv.size[0] * conv.size[1]
        && weights.k == conv.channels / conv.groups * kh * kw;
    if !fits {
        let text = format!("x of shape {:?} does not fit {conv:?}", (rows, area));
        return Err(ArgValueError::new_err(text));
    }
    Ok(rows / conv.channels)
}

fn convolution_of(shape: [usize; 14]) -> Convolution {
    let [channels, h, w, kh, kw, sh, sw, top, left, dh, dw, groups, rows, cols] = shape;
    Convolution {
        channels,
        size: [h, w],
        kernel: [kh, kw],
        stride: [sh, sw],
        padding: [top, left],
        dilation: [dh, dw],
        groups,
        out_size: [rows, cols],
    }
}

/// A column of one number, or of one for each row.
fn one_or_each<'py, T: NumpyElement>(
    name: &str,
    array: &Array<'py>,
    rows: usize,
) -> PyResult<PyReadonlyArray2<'py, T>> {
    let one = shape_of(name, array)?.0 == 1;
    input(name, array, Some((if one { 1 } else { rows }, 1)))
}

/// An array that spreads over rows and columns.
struct Spreadable<'py, T: NumpyElement>(PyReadonlyArray2<'py, T>, (usize, usize));

impl<'py, T: NumpyElement> Spreadable<'py, T> {
    fn new(name: &str, array: &Array<'py>, (rows, cols): (usize, usize)) -> PyResult<Self> {
        let shape = shape_of(name, array)?;
        if (shape.0 != 1 && shape.0 != rows) || (shape.1 != 1 && shape.1 != cols) {
            let text = format!("{name} must spread over {:?}: {shape:?}", (rows, cols));
            return Err(ArgValueError::new_err(text));
        }
        Ok(Self(input(name, array, None)?, shape))
    }

    fn spread(&self) -> Spread<'_, T> {
        let (rows, cols) = self.1;
        Spread { values: slice(&self.0), by_row: rows != 1, by_column: cols != 1 }
    }
}
