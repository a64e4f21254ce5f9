//! The bindings of the float operations.
//!
//! Packed codes cross the border as codes, uint16 for the formats of 16 bits; `qrs.backends.rust`
//! makes bytes of them.

use pyo3::prelude::*;

use super::Object;
use super::arrays::{Array, finished, input, optional_input, output, shape_of, slice, slice_mut};
use super::errors::compute;
use super::params::{ScaleArray, grid_of, groups, scale_dtype_of, unknown, with_dtype};
use crate::float_formats::{E2M1, E4M3, E5M2, Format};
use crate::floats::{self, ScaleRule};
use crate::numeric::{BFloat16, Float16, Float32};

/// Runs a body with `$F` as the format that `$name` names.
macro_rules! with_format {
    ($name:expr, $F:ident => $body:expr) => {
        match $name {
            "f32" => with_format!(@ Float32, $F => $body),
            "f16" => with_format!(@ Float16, $F => $body),
            "bf16" => with_format!(@ BFloat16, $F => $body),
            "e5m2" => with_format!(@ E5M2, $F => $body),
            "e4m3" => with_format!(@ E4M3, $F => $body),
            "e2m1" => with_format!(@ E2M1, $F => $body),
            other => Err(unknown("format", other)),
        }
    };
    (@ $format:ident, $F:ident => $body:expr) => {{
        type $F = $format;
        $body
    }};
}

fn scale_rule_of(name: &str) -> PyResult<ScaleRule> {
    match name {
        "e8m0" => Ok(ScaleRule::PowerOfTwo),
        name => scale_dtype_of(name).map(ScaleRule::Quotient),
    }
}

#[pyfunction]
#[pyo3(signature = (x, dtype, format, saturate, out=None))]
pub fn encode_float(
    py: Python<'_>,
    x: &Array<'_>,
    dtype: &str,
    format: &str,
    saturate: bool,
    out: Option<&Array<'_>>,
) -> PyResult<Object> {
    let shape = shape_of("x", x)?;
    with_format!(format, F => with_dtype!(dtype, E => {
        let x = input("x", x, None)?;
        let mut out = output(py, out, shape)?;
        let (x, codes) = (slice(&x), slice_mut(&mut out));
        compute(py, || floats::encode_float::<E, F>(x, saturate, codes))?;
        Ok(finished(&out))
    }))
}

#[pyfunction]
#[pyo3(signature = (codes, format, dtype, out=None))]
pub fn decode_float(
    py: Python<'_>,
    codes: &Array<'_>,
    format: &str,
    dtype: &str,
    out: Option<&Array<'_>>,
) -> PyResult<Object> {
    let shape = shape_of("codes", codes)?;
    with_format!(format, F => with_dtype!(dtype, E => {
        let codes = input("codes", codes, None)?;
        let mut out = output(py, out, shape)?;
        let (codes, x) = (slice(&codes), slice_mut(&mut out));
        compute(py, || {
            floats::decode_float::<F, E>(codes, x);
            Ok(())
        })?;
        Ok(finished(&out))
    }))
}

#[pyfunction]
pub fn choose_scale_float(
    py: Python<'_>,
    lo: &Array<'_>,
    hi: &Array<'_>,
    format: &str,
    scale_dtype: &str,
) -> PyResult<Object> {
    let shape = shape_of("lo", lo)?;
    let rule = scale_rule_of(scale_dtype)?;
    let (lo, hi) = (input("lo", lo, None)?, input("hi", hi, Some(shape))?);
    let mut out = output(py, None, shape)?;
    let (lo, hi, scale) = (slice(&lo), slice(&hi), slice_mut(&mut out));
    with_format!(format, F => {
        compute(py, || floats::choose_scale_float::<F>(lo, hi, rule, scale))
    })?;
    Ok(finished(&out))
}

#[pyfunction]
pub fn choose_scale_float_nested(
    py: Python<'_>,
    lo: &Array<'_>,
    hi: &Array<'_>,
    format: &str,
    scale_format: &str,
) -> PyResult<(Object, Object)> {
    let shape = shape_of("lo", lo)?;
    let (lo, hi) = (input("lo", lo, None)?, input("hi", hi, Some(shape))?);
    let mut top = output(py, None, (1, 1))?;
    with_format!(format, F => with_format!(scale_format, S => {
        let mut out = output(py, None, shape)?;
        let (lo, hi, codes) = (slice(&lo), slice(&hi), slice_mut(&mut out));
        let found = compute(py, || floats::choose_scale_float_nested::<F, S>(lo, hi, codes))?;
        slice_mut(&mut top).fill(found);
        Ok((finished(&out), finished(&top)))
    }))
}

#[pyfunction]
#[pyo3(signature = (x, dtype, group_size, format, scale, out=None))]
pub fn quantize_float(
    py: Python<'_>,
    x: &Array<'_>,
    dtype: &str,
    group_size: usize,
    format: &str,
    scale: Option<&Array<'_>>,
    out: Option<&Array<'_>>,
) -> PyResult<Object> {
    let shape = shape_of("x", x)?;
    let grid = grid_of(shape, group_size)?;
    let scale = optional_input("scale", scale, groups(grid))?;
    with_format!(format, F => with_dtype!(dtype, E => {
        let x = input("x", x, None)?;
        let mut out = output(py, out, shape)?;
        let (x, scale, codes) = (slice(&x), scale.as_ref().map(slice), slice_mut(&mut out));
        compute(py, || floats::quantize_float::<E, F>(x, grid, scale, codes))?;
        Ok(finished(&out))
    }))
}

#[pyfunction]
#[pyo3(signature = (codes, group_size, format, scale, dtype, out=None))]
pub fn dequantize_float(
    py: Python<'_>,
    codes: &Array<'_>,
    group_size: usize,
    format: &str,
    scale: Option<&Array<'_>>,
    dtype: &str,
    out: Option<&Array<'_>>,
) -> PyResult<Object> {
    let shape = shape_of("codes", codes)?;
    let grid = grid_of(shape, group_size)?;
    let scale = optional_input("scale", scale, groups(grid))?;
    with_format!(format, F => with_dtype!(dtype, E => {
        let codes = input("codes", codes, None)?;
        let mut out = output(py, out, shape)?;
        let (codes, scale, x_hat) = (slice(&codes), scale.as_ref().map(slice), slice_mut(&mut out));
        compute(py, || {
            floats::dequantize_float::<F, E>(codes, grid, scale, x_hat);
            Ok(())
        })?;
        Ok(finished(&out))
    }))
}

#[pyfunction]
#[pyo3(signature = (x, dtype, group_size, format, scale_dtype, scale, out=None))]
pub fn quantize_float_packed(
    py: Python<'_>,
    x: &Array<'_>,
    dtype: &str,
    group_size: usize,
    format: &str,
    scale_dtype: Option<&str>,
    scale: Option<&Array<'_>>,
    out: Option<&Array<'_>>,
) -> PyResult<(Object, Option<Object>)> {
    let (rows, cols) = shape_of("x", x)?;
    let grid = grid_of((rows, cols), group_size)?;
    let rule = scale_dtype.map(scale_rule_of).transpose()?;
    let mut scales = ScaleArray::new(py, grid, rule, scale)?;
    with_format!(format, F => with_dtype!(dtype, E => {
        let x = input("x", x, None)?;
        let mut out = output(py, out, (rows, F::packed_len(cols)))?;
        let (x, scales_now, packed) = (slice(&x), scales.slices(), slice_mut(&mut out));
        compute(py, || floats::quantize_float_packed::<E, F>(x, grid, scales_now, packed))?;
        Ok((finished(&out), scales.finished()))
    }))
}

#[pyfunction]
#[pyo3(signature = (packed, cols, group_size, format, scale, dtype, out=None))]
pub fn dequantize_float_packed(
    py: Python<'_>,
    packed: &Array<'_>,
    cols: usize,
    group_size: usize,
    format: &str,
    scale: Option<&Array<'_>>,
    dtype: &str,
    out: Option<&Array<'_>>,
) -> PyResult<Object> {
    let rows = shape_of("packed", packed)?.0;
    let grid = grid_of((rows, cols), group_size)?;
    let scale = optional_input("scale", scale, groups(grid))?;
    with_format!(format, F => with_dtype!(dtype, E => {
        let packed = input("packed", packed, Some((rows, F::packed_len(cols))))?;
        let mut out = output(py, out, (rows, cols))?;
        let (packed, scale) = (slice(&packed), scale.as_ref().map(slice));
        let x_hat = slice_mut(&mut out);
        compute(py, || {
            floats::dequantize_float_packed::<F, E>(packed, grid, scale, x_hat);
            Ok(())
        })?;
        Ok(finished(&out))
    }))
}
