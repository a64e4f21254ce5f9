//! The extension module `qrs._qrs`: a thin function for each kernel, of the same name.
//!
//! The only place that names pyo3 or numpy. Arguments come from `qrs.backends.rust`, normalized;
//! they are checked here against undefined behaviour, not explained to users. The GIL is released
//! while a kernel runs.

mod arrays;
mod codebooks;
mod errors;
mod floats;
mod functional;
mod gradients;
mod grouped;
mod int8;
mod kmeans;
mod kmeans_1d;
mod params;
mod solving;

use numpy::PyArrayDescrMethods;
use numpy::PyUntypedArrayMethods;
use pyo3::prelude::*;

use crate::affine;
use crate::grid::packed_len;
use crate::pack;
use crate::qparams;
use crate::range;
use crate::rows;
use crate::simd;
use arrays::{Array, Code, finished, input, optional_input, output, shape_of, slice, slice_mut};
use errors::{bad, compute};
use params::{
    Chosen, QParams, bits_of, codes_of, given, grid_of, groups, scale_dtype_of, with_dtype,
};

/// The kernels of qrs. Private: use the functions of the package `qrs`.
#[pymodule]
mod _qrs {
    #[pymodule_export]
    use super::codebooks::{
        center_scales, choose_scale_codebook, choose_scale_lsq, dequantize_codebook,
        dequantize_codebook_packed, quantize_codebook, quantize_codebook_packed,
    };
    #[pymodule_export]
    use super::floats::{
        choose_scale_float, choose_scale_float_nested, decode_float, dequantize_float,
        dequantize_float_packed, encode_float, quantize_float, quantize_float_packed,
    };
    #[pymodule_export]
    use super::functional::{gelu, layer_norm, softmax};
    #[pymodule_export]
    use super::gradients::{clip_gradient_affine, step_gradients_affine};
    #[pymodule_export]
    use super::grouped::{
        GroupedWeights, add_matmul, linear_grouped_int8, matmul_grouped, pack_grouped,
    };
    #[pymodule_export]
    use super::int8::{
        Int8Weights, column_absmax, conv_int8, dequantize_sums, linear_int8, matmul_int8,
        pack_int8, requantize, requantize_fixed_point,
    };
    #[pymodule_export]
    use super::kmeans::{kmeans_assign, kmeans_potentials, kmeans_update};
    #[pymodule_export]
    use super::kmeans_1d::kmeans_1d;
    #[pymodule_export]
    use super::solving::{cholesky, descend, matmul_float64, round_with_feedback};
    use super::{PyModule, PyResult, Python, environment};
    #[pymodule_export]
    use super::{
        choose_qparams_affine, dequantize_affine, dequantize_affine_packed, fake_quantize_affine,
        group_range, num_threads, pack_bits, quantize_affine, quantize_affine_packed,
        set_num_threads, set_simd_level, simd_level, simd_levels, unpack_bits, version,
    };
    use pyo3::prelude::*;

    #[pymodule_init]
    fn init(module: &Bound<'_, PyModule>) -> PyResult<()> {
        let py: Python<'_> = module.py();
        environment(py)
    }
}

/// An array, a new object or the one that was given.
type Object = Py<PyAny>;

/// Refuses environment variables that cannot be followed, at import.
fn environment(py: Python<'_>) -> PyResult<()> {
    let error = |expected: String, name: &str| {
        bad(py, name, std::env::var_os(name).unwrap_or_default(), &expected)
    };
    simd::init().map_err(|expected| error(expected, "QRS_SIMD"))?;
    rows::threads_from_environment().map_err(|expected| error(expected, "QRS_NUM_THREADS"))?;
    Ok(())
}

/// Runs a body with `$C` as the type of the codes.
macro_rules! with_code {
    ($signed:expr, $C:ident => $body:expr) => {
        if $signed {
            type $C = i8;
            $body
        } else {
            type $C = u8;
            $body
        }
    };
}
use with_code;

#[pyfunction]
fn group_range(
    py: Python<'_>,
    x: &Array<'_>,
    dtype: &str,
    group_size: usize,
) -> PyResult<(Object, Object)> {
    let grid = grid_of(shape_of("x", x)?, group_size)?;
    with_dtype!(dtype, E => {
        let x = input("x", x, None)?;
        let (mut lo, mut hi) = (output(py, None, groups(grid))?, output(py, None, groups(grid))?);
        let (x, lo_out, hi_out) = (slice(&x), slice_mut(&mut lo), slice_mut(&mut hi));
        compute(py, || range::group_range::<E>(x, grid, lo_out, hi_out))?;
        Ok((finished(&lo), finished(&hi)))
    })
}

#[pyfunction]
fn choose_qparams_affine(
    py: Python<'_>,
    lo: &Array<'_>,
    hi: &Array<'_>,
    qmin: i32,
    qmax: i32,
    symmetric: bool,
    scale_dtype: &str,
) -> PyResult<(Object, Option<Object>)> {
    let shape = shape_of("lo", lo)?;
    let codes = codes_of(qmin, qmax, symmetric, 8)?;
    let scale_dtype = scale_dtype_of(scale_dtype)?;
    let (lo, hi) = (input("lo", lo, None)?, input("hi", hi, Some(shape))?);
    let mut chosen = Chosen::new(py, shape, symmetric)?;
    let (lo, hi) = (slice(&lo), slice(&hi));
    let (scale, zero_point) = chosen.slices();
    compute(py, || qparams::choose_qparams_affine(lo, hi, codes, scale_dtype, scale, zero_point))?;
    Ok(chosen.finished())
}

#[pyfunction]
#[pyo3(signature = (x, dtype, group_size, scale, zero_point, qmin, qmax, out=None))]
fn quantize_affine(
    py: Python<'_>,
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
    let codes = codes_of(qmin, qmax, false, 8)?;
    with_dtype!(dtype, E => with_code!(qmin < 0, C => {
        let (x, scale) = (input("x", x, None)?, input("scale", scale, Some(groups(grid)))?);
        let zero_point = optional_input("zero_point", zero_point, groups(grid))?;
        let mut out = output::<C>(py, out, shape)?;
        let params = given(&scale, zero_point.as_ref());
        let (x, q) = (slice(&x), C::bytes_mut(slice_mut(&mut out)));
        compute(py, || affine::quantize_affine::<E>(x, grid, codes, params, q))?;
        Ok(finished(&out))
    }))
}

#[pyfunction]
#[pyo3(signature = (codes, group_size, scale, zero_point, dtype, out=None))]
fn dequantize_affine(
    py: Python<'_>,
    codes: &Array<'_>,
    group_size: usize,
    scale: &Array<'_>,
    zero_point: Option<&Array<'_>>,
    dtype: &str,
    out: Option<&Array<'_>>,
) -> PyResult<Object> {
    let shape = shape_of("codes", codes)?;
    let grid = grid_of(shape, group_size)?;
    let signed = codes.dtype().is_equiv_to(&numpy::dtype::<i8>(py));
    with_dtype!(dtype, E => with_code!(signed, C => {
        let q = input::<C>("codes", codes, None)?;
        let scale = input("scale", scale, Some(groups(grid)))?;
        let zero_point = optional_input("zero_point", zero_point, groups(grid))?;
        let mut out = output(py, out, shape)?;
        let params = given(&scale, zero_point.as_ref());
        let (q, x_hat) = (C::bytes(slice(&q)), slice_mut(&mut out));
        compute(py, || {
            affine::dequantize_affine::<E>(q, grid, signed, params, x_hat);
            Ok(())
        })?;
        Ok(finished(&out))
    }))
}

#[pyfunction]
#[pyo3(signature = (codes, bits, out=None))]
fn pack_bits(
    py: Python<'_>,
    codes: &Array<'_>,
    bits: u32,
    out: Option<&Array<'_>>,
) -> PyResult<Object> {
    let (rows, cols) = shape_of("codes", codes)?;
    let bits = bits_of(bits)?;
    with_code!(codes.dtype().is_equiv_to(&numpy::dtype::<i8>(py)), C => {
        let codes = input::<C>("codes", codes, None)?;
        let mut out = output(py, out, (rows, packed_len(cols, bits)))?;
        let (codes, packed) = (C::bytes(slice(&codes)), slice_mut(&mut out));
        compute(py, || {
            pack::pack_bits(codes, cols, bits, packed);
            Ok(())
        })?;
        Ok(finished(&out))
    })
}

#[pyfunction]
#[pyo3(signature = (packed, bits, cols, signed, out=None))]
fn unpack_bits(
    py: Python<'_>,
    packed: &Array<'_>,
    bits: u32,
    cols: usize,
    signed: bool,
    out: Option<&Array<'_>>,
) -> PyResult<Object> {
    let bits = bits_of(bits)?;
    let rows = shape_of("packed", packed)?.0;
    let packed = input("packed", packed, Some((rows, packed_len(cols, bits))))?;
    with_code!(signed, C => {
        let mut out = output::<C>(py, out, (rows, cols))?;
        let (packed, codes) = (slice(&packed), C::bytes_mut(slice_mut(&mut out)));
        compute(py, || {
            pack::unpack_bits(packed, cols, bits, signed, codes);
            Ok(())
        })?;
        Ok(finished(&out))
    })
}

#[pyfunction]
#[pyo3(signature = (x, dtype, group_size, bits, qmin, qmax, symmetric, scale_dtype, scale,
                    zero_point, out=None))]
fn quantize_affine_packed(
    py: Python<'_>,
    x: &Array<'_>,
    dtype: &str,
    group_size: usize,
    bits: u32,
    qmin: i32,
    qmax: i32,
    symmetric: bool,
    scale_dtype: &str,
    scale: Option<&Array<'_>>,
    zero_point: Option<&Array<'_>>,
    out: Option<&Array<'_>>,
) -> PyResult<(Object, Object, Option<Object>)> {
    let (rows, cols) = shape_of("x", x)?;
    let grid = grid_of((rows, cols), group_size)?;
    let codes = codes_of(qmin, qmax, symmetric, bits_of(bits)?)?;
    let mut params = QParams::new(py, grid, symmetric, scale_dtype, scale, zero_point)?;
    with_dtype!(dtype, E => {
        let x = input("x", x, None)?;
        let mut out = output(py, out, (rows, packed_len(cols, bits)))?;
        let (x, packed, params_now) = (slice(&x), slice_mut(&mut out), params.slices());
        compute(py, || {
            affine::quantize_affine_packed::<E>(x, grid, bits, codes, params_now, packed)
        })?;
        let (scale, zero_point) = params.finished();
        Ok((finished(&out), scale, zero_point))
    })
}

#[pyfunction]
#[pyo3(signature = (packed, cols, group_size, bits, signed, scale, zero_point, dtype, out=None))]
fn dequantize_affine_packed(
    py: Python<'_>,
    packed: &Array<'_>,
    cols: usize,
    group_size: usize,
    bits: u32,
    signed: bool,
    scale: &Array<'_>,
    zero_point: Option<&Array<'_>>,
    dtype: &str,
    out: Option<&Array<'_>>,
) -> PyResult<Object> {
    let bits = bits_of(bits)?;
    let rows = shape_of("packed", packed)?.0;
    let grid = grid_of((rows, cols), group_size)?;
    let packed = input("packed", packed, Some((rows, packed_len(cols, bits))))?;
    let scale = input("scale", scale, Some(groups(grid)))?;
    let zero_point = optional_input("zero_point", zero_point, groups(grid))?;
    with_dtype!(dtype, E => {
        let mut out = output(py, out, (rows, cols))?;
        let params = given(&scale, zero_point.as_ref());
        let (packed, x_hat) = (slice(&packed), slice_mut(&mut out));
        compute(py, || {
            affine::dequantize_affine_packed::<E>(packed, grid, bits, signed, params, x_hat);
            Ok(())
        })?;
        Ok(finished(&out))
    })
}

#[pyfunction]
#[pyo3(signature = (x, dtype, group_size, qmin, qmax, symmetric, scale_dtype, scale, zero_point,
                    out=None))]
fn fake_quantize_affine(
    py: Python<'_>,
    x: &Array<'_>,
    dtype: &str,
    group_size: usize,
    qmin: i32,
    qmax: i32,
    symmetric: bool,
    scale_dtype: &str,
    scale: Option<&Array<'_>>,
    zero_point: Option<&Array<'_>>,
    out: Option<&Array<'_>>,
) -> PyResult<Object> {
    let shape = shape_of("x", x)?;
    let grid = grid_of(shape, group_size)?;
    let codes = codes_of(qmin, qmax, symmetric, 8)?;
    let mut params = QParams::new(py, grid, symmetric, scale_dtype, scale, zero_point)?;
    with_dtype!(dtype, E => {
        let x = input("x", x, None)?;
        let mut out = output(py, out, shape)?;
        let (x, x_hat, params) = (slice(&x), slice_mut(&mut out), params.slices());
        compute(py, || affine::fake_quantize_affine::<E>(x, grid, codes, params, x_hat))?;
        Ok(finished(&out))
    })
}

#[pyfunction]
fn simd_level() -> &'static str {
    simd::level().name()
}

#[pyfunction]
fn simd_levels() -> Vec<&'static str> {
    simd::levels().into_iter().map(simd::Level::name).collect()
}

#[pyfunction]
fn set_simd_level(py: Python<'_>, name: &str) -> PyResult<()> {
    let level = simd::set_level(Some(name));
    level.map(drop).map_err(|expected| bad(py, "name", name, &expected))
}

#[pyfunction]
fn num_threads() -> usize {
    rows::num_threads()
}

#[pyfunction]
fn set_num_threads(py: Python<'_>, n: &Bound<'_, PyAny>) -> PyResult<()> {
    let threads = n.extract().ok().filter(|n| (1..=rows::MAX_THREADS).contains(n));
    rows::set_num_threads(threads.ok_or_else(|| bad(py, "n", n, &rows::expected_threads()))?);
    Ok(())
}

#[pyfunction]
fn version() -> &'static str {
    env!("CARGO_PKG_VERSION")
}
