//! Bindings of `solving`: float64, and rounding with feedback.

use numpy::PyReadonlyArray2;
use pyo3::prelude::*;

use super::Object;
use super::arrays::{Array, finished, input, optional_input, output, shape_of, slice, slice_mut};
use super::errors::{ArgValueError, compute};
use crate::solving::{self, Integers, Table, Weight};

#[pyfunction]
#[pyo3(signature = (h, out=None))]
pub fn cholesky(py: Python<'_>, h: &Array<'_>, out: Option<&Array<'_>>) -> PyResult<Object> {
    let k = shape_of("h", h)?.0;
    let h = input("h", h, Some((k, k)))?;
    let mut out = output(py, out, (k, k))?;
    let (h, factor) = (slice(&h), slice_mut(&mut out));
    compute(py, || solving::cholesky(h, k, factor))?;
    Ok(finished(&out))
}

#[pyfunction]
#[pyo3(signature = (a, b, out=None))]
pub fn matmul_float64(
    py: Python<'_>,
    a: &Array<'_>,
    b: &Array<'_>,
    out: Option<&Array<'_>>,
) -> PyResult<Object> {
    let ((n, k), m) = (shape_of("a", a)?, shape_of("b", b)?.1);
    let (a, b) = (input("a", a, None)?, input("b", b, Some((k, m)))?);
    let mut out = output(py, out, (n, m))?;
    let (a, b, y) = (slice(&a), slice(&b), slice_mut(&mut out));
    compute(py, || {
        solving::matmul_float64(a, b, (n, k, m), y);
        Ok(())
    })?;
    Ok(finished(&out))
}

#[pyfunction]
#[pyo3(signature = (w, factor, scale, group_of, levels=None, lowest=None, count=0, out=None))]
pub fn round_with_feedback(
    py: Python<'_>,
    w: &Array<'_>,
    factor: &Array<'_>,
    scale: &Array<'_>,
    group_of: &Array<'_>,
    levels: Option<&Array<'_>>,
    lowest: Option<&Array<'_>>,
    count: usize,
    out: Option<&Array<'_>>,
) -> PyResult<Object> {
    let (n, k) = shape_of("w", w)?;
    let (w, factor) = (input("w", w, None)?, input("factor", factor, Some((k, k)))?);
    let levels = Levels::new((n, k), scale, group_of, levels, lowest, count)?;
    let mut out = output(py, out, (n, k))?;
    let (w, factor, codes) = (slice(&w), slice(&factor), slice_mut(&mut out));
    let weight = Weight { w, k, group_of: slice(&levels.group_of) };
    match levels.kind()? {
        Kind::Integers(nearest) => compute(py, || {
            solving::round_with_feedback(weight, factor, &nearest, codes);
            Ok(())
        }),
        Kind::Table(nearest) => compute(py, || {
            solving::round_with_feedback(weight, factor, &nearest, codes);
            Ok(())
        }),
    }?;
    Ok(finished(&out))
}

#[pyfunction]
#[pyo3(signature = (w, h, w_hat, scale, group_of, levels=None, lowest=None, count=0, out=None))]
pub fn descend(
    py: Python<'_>,
    w: &Array<'_>,
    h: &Array<'_>,
    w_hat: &Array<'_>,
    scale: &Array<'_>,
    group_of: &Array<'_>,
    levels: Option<&Array<'_>>,
    lowest: Option<&Array<'_>>,
    count: usize,
    out: Option<&Array<'_>>,
) -> PyResult<Object> {
    let (n, k) = shape_of("w", w)?;
    let (w, h) = (input("w", w, None)?, input("h", h, Some((k, k)))?);
    let w_hat = input("w_hat", w_hat, Some((n, k)))?;
    let levels = Levels::new((n, k), scale, group_of, levels, lowest, count)?;
    let mut out = output(py, out, (n, k))?;
    let (w, h, w_hat, codes) = (slice(&w), slice(&h), slice(&w_hat), slice_mut(&mut out));
    let weight = Weight { w, k, group_of: slice(&levels.group_of) };
    match levels.kind()? {
        Kind::Integers(nearest) => compute(py, || {
            solving::descend(weight, h, w_hat, &nearest, codes);
            Ok(())
        }),
        Kind::Table(nearest) => compute(py, || {
            solving::descend(weight, h, w_hat, &nearest, codes);
            Ok(())
        }),
    }?;
    Ok(finished(&out))
}

/// What codes stand for, checked.
struct Levels<'py> {
    scale: PyReadonlyArray2<'py, f32>,
    group_of: PyReadonlyArray2<'py, i32>,
    table: Option<PyReadonlyArray2<'py, f32>>,
    lowest: Option<PyReadonlyArray2<'py, i32>>,
    /// Of a table, or integers of a group.
    count: usize,
    groups: usize,
}

enum Kind<'a> {
    Integers(Integers<'a>),
    Table(Table<'a>),
}

impl<'py> Levels<'py> {
    fn new(
        (n, k): (usize, usize),
        scale: &Array<'py>,
        group_of: &Array<'py>,
        levels: Option<&Array<'py>>,
        lowest: Option<&Array<'py>>,
        count: usize,
    ) -> PyResult<Self> {
        let groups = shape_of("scale", scale)?.1;
        let scale = input("scale", scale, Some((n, groups)))?;
        let group_of = input("group_of", group_of, Some((1, k)))?;
        let known = 0..groups as i32;
        if let Some(wrong) = slice(&group_of).iter().find(|group| !known.contains(group)) {
            return Err(ArgValueError::new_err(format!("group_of must be in {known:?}: {wrong}")));
        }
        let lowest = optional_input("lowest", lowest, (n, groups))?;
        let shape = levels.map(|levels| shape_of("levels", levels)).transpose()?;
        let table = levels.map(|levels| input("levels", levels, None)).transpose()?;
        let count = shape.map_or(count, |(_, width)| width);
        let rows_fit = shape.is_none_or(|(rows, _)| rows == 1 || rows == n);
        if !(1..=256).contains(&count) || !rows_fit || shape.is_some() == lowest.is_some() {
            let expected = "levels of shape (1 or n, 1..=256), or lowest and a count of 1..=256";
            return Err(ArgValueError::new_err(format!("{expected}: {shape:?}, count={count}")));
        }
        Ok(Self { scale, group_of, table, lowest, count, groups })
    }

    fn kind(&self) -> PyResult<Kind<'_>> {
        let (scale, count, groups) = (slice(&self.scale), self.count, self.groups);
        match (&self.table, &self.lowest) {
            (Some(table), _) => {
                Ok(Kind::Table(Table { scale, levels: slice(table), width: count, groups }))
            }
            (None, Some(lowest)) => {
                Ok(Kind::Integers(Integers { scale, lowest: slice(lowest), count, groups }))
            }
            (None, None) => Err(ArgValueError::new_err("levels or lowest must be given")),
        }
    }
}
