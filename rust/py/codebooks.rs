//! The bindings of the codebook operations.

use numpy::PyReadonlyArray2;
use pyo3::prelude::*;

use super::Object;
use super::arrays::{Array, finished, input, optional_input, output, shape_of, slice, slice_mut};
use super::errors::{ArgValueError, compute};
use super::params::{ScaleArray, bits_of, grid_of, groups, scale_dtype_of, with_dtype};
use crate::codebooks::{self, Books, MOST_LEVELS, Reach};
use crate::grid::{Grid, packed_len};
use crate::scale_search::{self, Problem};

/// Thresholds of books, with the codes of the ranks.
struct Thresholds<'py> {
    thresholds: PyReadonlyArray2<'py, f32>,
    codes: Option<PyReadonlyArray2<'py, u8>>,
}

impl<'py> Thresholds<'py> {
    /// Those of books that `grid` can have, and codes of at most `bits`.
    fn new(
        thresholds: &Array<'py>,
        codes: Option<&Array<'py>>,
        grid: Grid,
        bits: u32,
    ) -> PyResult<Self> {
        let levels = shape_of("thresholds", thresholds)?.1 + 1;
        let thresholds = input("thresholds", thresholds, None)?;
        check_books("thresholds", &books(&thresholds), levels, grid)?;
        let codes = optional_input("codes", codes, (1, levels))?;
        let most = match &codes {
            Some(codes) => slice(codes).iter().copied().max().map_or(0, usize::from),
            None => levels - 1,
        };
        if most >= 1 << bits {
            let message = format!("codes up to {most} do not fit {bits} bits");
            return Err(ArgValueError::new_err(message));
        }
        Ok(Self { thresholds, codes })
    }

    fn slices(&self) -> (Books<'_>, Option<&[u8]>) {
        (books(&self.thresholds), self.codes.as_ref().map(slice))
    }
}

fn books<'a>(array: &'a PyReadonlyArray2<'_, f32>) -> Books<'a> {
    let (count, width) = array.as_array().dim();
    Books { values: slice(array), width, count }
}

/// Refuses books of which an array cannot have so many, or of too few or too many levels.
fn check_books(name: &str, books: &Books, levels: usize, grid: Grid) -> PyResult<()> {
    check_levels(name, levels)?;
    if books.fit(grid) {
        return Ok(());
    }
    let Books { width, count, .. } = books;
    let (rows, groups) = (grid.rows, grid.groups());
    Err(ArgValueError::new_err(format!(
        "{name} must have 1, {rows} or {groups} rows: shape={:?}",
        (count, width)
    )))
}

fn check_levels(name: &str, levels: usize) -> PyResult<()> {
    if !(2..=MOST_LEVELS).contains(&levels) {
        let message = format!("{name} must be of 2 to {MOST_LEVELS} levels: got {levels}");
        return Err(ArgValueError::new_err(message));
    }
    Ok(())
}

/// The one number that is added to all.
fn offset_of(offset: Option<&Array<'_>>) -> PyResult<Option<f32>> {
    let offset = optional_input("offset", offset, (1, 1))?;
    Ok(offset.map(|offset| slice(&offset)[0]))
}

#[pyfunction]
pub fn choose_scale_codebook(
    py: Python<'_>,
    lo: &Array<'_>,
    hi: &Array<'_>,
    low: f64,
    high: f64,
    scale_dtype: &str,
) -> PyResult<Object> {
    let shape = shape_of("lo", lo)?;
    let reach = reach_of((low, high), scale_dtype)?;
    let (lo, hi) = (input("lo", lo, None)?, input("hi", hi, Some(shape))?);
    let mut out = output(py, None, shape)?;
    let (lo, hi, scale) = (slice(&lo), slice(&hi), slice_mut(&mut out));
    compute(py, || codebooks::choose_scale_codebook(lo, hi, reach, scale))?;
    Ok(finished(&out))
}

fn reach_of((low, high): (f64, f64), scale_dtype: &str) -> PyResult<Reach> {
    let scale_dtype = scale_dtype_of(scale_dtype)?;
    Ok(Reach { low: low as f32, high: high as f32, scale_dtype })
}

#[pyfunction]
#[pyo3(signature = (x, dtype, group_size, scale, thresholds, codes, out=None))]
pub fn quantize_codebook(
    py: Python<'_>,
    x: &Array<'_>,
    dtype: &str,
    group_size: usize,
    scale: Option<&Array<'_>>,
    thresholds: &Array<'_>,
    codes: Option<&Array<'_>>,
    out: Option<&Array<'_>>,
) -> PyResult<Object> {
    let shape = shape_of("x", x)?;
    let grid = grid_of(shape, group_size)?;
    let scale = optional_input("scale", scale, groups(grid))?;
    let thresholds = Thresholds::new(thresholds, codes, grid, 8)?;
    with_dtype!(dtype, E => {
        let x = input("x", x, None)?;
        let mut out = output(py, out, shape)?;
        let (x, scale, q) = (slice(&x), scale.as_ref().map(slice), slice_mut(&mut out));
        let (thresholds, codes) = thresholds.slices();
        compute(py, || codebooks::quantize_codebook::<E>(x, grid, scale, thresholds, codes, q))?;
        Ok(finished(&out))
    })
}

#[pyfunction]
#[pyo3(signature = (codes, group_size, scale, offset, book, dtype, out=None))]
pub fn dequantize_codebook(
    py: Python<'_>,
    codes: &Array<'_>,
    group_size: usize,
    scale: Option<&Array<'_>>,
    offset: Option<&Array<'_>>,
    book: &Array<'_>,
    dtype: &str,
    out: Option<&Array<'_>>,
) -> PyResult<Object> {
    let cols = shape_of("codes", codes)?.1;
    dequantize_codebook_packed(py, codes, cols, group_size, 8, scale, offset, book, dtype, out)
}

#[pyfunction]
pub fn center_scales(py: Python<'_>, scale: &Array<'_>) -> PyResult<(Object, Object)> {
    let shape = shape_of("scale", scale)?;
    let scale = input("scale", scale, None)?;
    let (mut mean, mut out) = (output(py, None, (1, 1))?, output(py, None, shape)?);
    let (scale, centered) = (slice(&scale), slice_mut(&mut out));
    let found = compute(py, || Ok(codebooks::center_scales(scale, centered)))?;
    slice_mut(&mut mean).fill(found);
    Ok((finished(&mean), finished(&out)))
}

#[pyfunction]
pub fn choose_scale_lsq(
    py: Python<'_>,
    x: &Array<'_>,
    dtype: &str,
    group_size: usize,
    weights: Option<&Array<'_>>,
    levels: &Array<'_>,
    thresholds: &Array<'_>,
    factors: &Array<'_>,
    scale: &Array<'_>,
    scale_dtype: &str,
) -> PyResult<(Object, Object)> {
    let shape = shape_of("x", x)?;
    let grid = grid_of(shape, group_size)?;
    let scale_dtype = scale_dtype_of(scale_dtype)?;
    let weights = optional_input("weights", weights, shape)?;
    let width = shape_of("levels", levels)?.1;
    check_levels("levels", width)?;
    let levels = input("levels", levels, Some((1, width)))?;
    let thresholds = input("thresholds", thresholds, Some((1, width - 1)))?;
    let factors = input("factors", factors, Some((1, shape_of("factors", factors)?.1)))?;
    let given = input("scale", scale, Some(groups(grid)))?;
    with_dtype!(dtype, E => {
        let x = input("x", x, None)?;
        let mut out = output(py, None, groups(grid))?;
        let mut errors = output(py, None, groups(grid))?;
        let (x, weights, scale) = (slice(&x), weights.as_ref().map(slice), slice_mut(&mut out));
        let error = slice_mut(&mut errors);
        scale.copy_from_slice(slice(&given));
        let (levels, thresholds) = (slice(&levels), slice(&thresholds));
        let problem = Problem { levels, thresholds, factors: slice(&factors), scale_dtype };
        compute(py, || {
            scale_search::choose_scale_lsq::<E>(x, grid, weights, problem, scale, error)
        })?;
        Ok((finished(&out), finished(&errors)))
    })
}

#[pyfunction]
#[pyo3(signature = (x, dtype, group_size, bits, ends, scale_dtype, scale, thresholds, codes,
                    out=None))]
pub fn quantize_codebook_packed(
    py: Python<'_>,
    x: &Array<'_>,
    dtype: &str,
    group_size: usize,
    bits: u32,
    ends: (f64, f64),
    scale_dtype: Option<&str>,
    scale: Option<&Array<'_>>,
    thresholds: &Array<'_>,
    codes: Option<&Array<'_>>,
    out: Option<&Array<'_>>,
) -> PyResult<(Object, Option<Object>)> {
    let (rows, cols) = shape_of("x", x)?;
    let grid = grid_of((rows, cols), group_size)?;
    let reach = scale_dtype.map(|name| reach_of(ends, name)).transpose()?;
    let mut scales = ScaleArray::new(py, grid, reach, scale)?;
    let thresholds = Thresholds::new(thresholds, codes, grid, bits_of(bits)?)?;
    with_dtype!(dtype, E => {
        let x = input("x", x, None)?;
        let mut out = output(py, out, (rows, packed_len(cols, bits)))?;
        let (x, scales_now, packed) = (slice(&x), scales.slices(), slice_mut(&mut out));
        let (thresholds, codes) = thresholds.slices();
        compute(py, || {
            codebooks::quantize_codebook_packed::<E>(
                x, grid, bits, scales_now, thresholds, codes, packed,
            )
        })?;
        Ok((finished(&out), scales.finished()))
    })
}

#[pyfunction]
#[pyo3(signature = (packed, cols, group_size, bits, scale, offset, book, dtype, out=None))]
pub fn dequantize_codebook_packed(
    py: Python<'_>,
    packed: &Array<'_>,
    cols: usize,
    group_size: usize,
    bits: u32,
    scale: Option<&Array<'_>>,
    offset: Option<&Array<'_>>,
    book: &Array<'_>,
    dtype: &str,
    out: Option<&Array<'_>>,
) -> PyResult<Object> {
    let bits = bits_of(bits)?;
    let rows = shape_of("packed", packed)?.0;
    let grid = grid_of((rows, cols), group_size)?;
    let packed = input("packed", packed, Some((rows, packed_len(cols, bits))))?;
    let (scale, offset) = (optional_input("scale", scale, groups(grid))?, offset_of(offset)?);
    let levels = shape_of("book", book)?.1;
    let book = input("book", book, None)?;
    check_books("book", &books(&book), levels, grid)?;
    with_dtype!(dtype, E => {
        let mut out = output(py, out, (rows, cols))?;
        let (packed, scale) = (slice(&packed), scale.as_ref().map(slice));
        let (levels, x_hat) = (books(&book), slice_mut(&mut out));
        compute(py, || {
            codebooks::dequantize_codebook_packed::<E>(
                packed, grid, bits, scale, offset, levels, x_hat,
            )
        })?;
        Ok(finished(&out))
    })
}
