//! Scales and zero points that a call is given, or that it chooses and returns.

use numpy::{PyReadonlyArray2, PyReadwriteArray2};
use pyo3::prelude::*;

use super::arrays::{Array, finished, input, optional_input, output, slice, slice_mut};
use super::errors::ArgValueError;
use crate::grid::Grid;
use crate::numeric::Codes;
use crate::qparams::{Given, Params, ScaleDtype, Scales};

/// New arrays for the parameters that are chosen; no zero points where they are all 0.
pub struct Chosen<'py> {
    scale: PyReadwriteArray2<'py, f32>,
    zero_point: Option<PyReadwriteArray2<'py, i32>>,
}

impl<'py> Chosen<'py> {
    pub fn new(py: Python<'py>, shape: (usize, usize), symmetric: bool) -> PyResult<Self> {
        let zero_point = if symmetric { None } else { Some(output(py, None, shape)?) };
        Ok(Self { scale: output(py, None, shape)?, zero_point })
    }

    pub fn slices(&mut self) -> (&mut [f32], Option<&mut [i32]>) {
        (slice_mut(&mut self.scale), self.zero_point.as_mut().map(slice_mut))
    }

    pub fn finished(&self) -> (Py<PyAny>, Option<Py<PyAny>>) {
        (finished(&self.scale), self.zero_point.as_ref().map(finished))
    }
}

/// The parameters of a call that may choose them.
pub enum QParams<'py> {
    Given { scale: PyReadonlyArray2<'py, f32>, zero_point: Option<PyReadonlyArray2<'py, i32>> },
    Choose { chosen: Chosen<'py>, scale_dtype: ScaleDtype },
}

impl<'py> QParams<'py> {
    /// Those given, or room for those to be chosen.
    pub fn new(
        py: Python<'py>,
        grid: Grid,
        symmetric: bool,
        scale_dtype: &str,
        scale: Option<&Array<'py>>,
        zero_point: Option<&Array<'py>>,
    ) -> PyResult<Self> {
        let shape = groups(grid);
        match (scale, zero_point) {
            (Some(scale), zero_point) => Ok(Self::Given {
                scale: input("scale", scale, Some(shape))?,
                zero_point: optional_input("zero_point", zero_point, shape)?,
            }),
            (None, None) => Ok(Self::Choose {
                chosen: Chosen::new(py, shape, symmetric)?,
                scale_dtype: scale_dtype_of(scale_dtype)?,
            }),
            (None, Some(_)) => Err(ArgValueError::new_err("zero_point is given without scale")),
        }
    }

    /// For the kernel.
    pub fn slices(&mut self) -> Params<'_> {
        match self {
            Self::Given { scale, zero_point } => Params::Given(given(scale, zero_point.as_ref())),
            Self::Choose { chosen, scale_dtype } => {
                let (scale, zero_point) = chosen.slices();
                Params::Choose { scale_dtype: *scale_dtype, scale, zero_point }
            }
        }
    }

    /// For Python.
    pub fn finished(&self) -> (Py<PyAny>, Option<Py<PyAny>>) {
        match self {
            Self::Given { scale, zero_point } => {
                let zero_point = zero_point.as_ref().map(|array| array.as_any().clone().unbind());
                (scale.as_any().clone().unbind(), zero_point)
            }
            Self::Choose { chosen, .. } => chosen.finished(),
        }
    }
}

/// Scales that a call is given, or that it chooses by the rule `R` and returns, or none.
pub enum ScaleArray<'py, R> {
    Absent,
    Given(PyReadonlyArray2<'py, f32>),
    Choose(R, PyReadwriteArray2<'py, f32>),
}

impl<'py, R: Copy> ScaleArray<'py, R> {
    pub fn new(
        py: Python<'py>,
        grid: Grid,
        rule: Option<R>,
        scale: Option<&Array<'py>>,
    ) -> PyResult<Self> {
        match (scale, rule) {
            (Some(scale), _) => Ok(Self::Given(input("scale", scale, Some(groups(grid)))?)),
            (None, Some(rule)) => Ok(Self::Choose(rule, output(py, None, groups(grid))?)),
            (None, None) => Ok(Self::Absent),
        }
    }

    /// For the kernel.
    pub fn slices(&mut self) -> Scales<'_, R> {
        match self {
            Self::Absent => Scales::Absent,
            Self::Given(scale) => Scales::Given(slice(scale)),
            Self::Choose(rule, scale) => Scales::Choose(*rule, slice_mut(scale)),
        }
    }

    /// For Python.
    pub fn finished(&self) -> Option<Py<PyAny>> {
        match self {
            Self::Absent => None,
            Self::Given(scale) => Some(scale.as_any().clone().unbind()),
            Self::Choose(_, scale) => Some(finished(scale)),
        }
    }
}

/// Parameters that are given, as slices.
pub fn given<'a>(
    scale: &'a PyReadonlyArray2<'_, f32>,
    zero_point: Option<&'a PyReadonlyArray2<'_, i32>>,
) -> Given<'a> {
    Given { scale: slice(scale), zero_point: zero_point.map(slice) }
}

/// The shape of scales and zero points.
pub fn groups(grid: Grid) -> (usize, usize) {
    (grid.rows, grid.groups_per_row())
}

pub fn grid_of((rows, cols): (usize, usize), group_size: usize) -> PyResult<Grid> {
    if group_size == 0 {
        return Err(ArgValueError::new_err("group_size must be positive: got 0"));
    }
    Ok(Grid { rows, cols, group_size })
}

pub fn bits_of(bits: u32) -> PyResult<u32> {
    if !(2..=8).contains(&bits) {
        return Err(ArgValueError::new_err(format!("bits must be from 2 to 8: got {bits}")));
    }
    Ok(bits)
}

/// The codes from `qmin` to `qmax`, which must fit `bits`.
pub fn codes_of(qmin: i32, qmax: i32, symmetric: bool, bits: u32) -> PyResult<Codes> {
    let (low, high) = if qmin < 0 { (-128, 127) } else { (0, 255) };
    let fits = low <= qmin && qmax <= high && 0 < qmax && qmax - qmin < 1 << bits;
    if !fits || (symmetric && qmin >= 0) {
        return Err(ArgValueError::new_err(format!(
            "no codes from {qmin} to {qmax}, symmetric={symmetric}, in {bits} bits"
        )));
    }
    Ok(Codes { qmin, qmax, symmetric })
}

pub fn scale_dtype_of(name: &str) -> PyResult<ScaleDtype> {
    match name {
        "float32" => Ok(ScaleDtype::Float32),
        "float16" => Ok(ScaleDtype::Float16),
        "bfloat16" => Ok(ScaleDtype::BFloat16),
        _ => Err(unknown("scale_dtype", name)),
    }
}

/// The error for a name that is none.
pub fn unknown(arg: &str, name: &str) -> PyErr {
    ArgValueError::new_err(format!("unknown {arg} {name:?}"))
}

/// Runs a body with `$E` as the format that `$dtype` names.
macro_rules! with_dtype {
    ($dtype:expr, $E:ident => $body:expr) => {
        match $dtype {
            "float32" => {
                type $E = $crate::numeric::Float32;
                $body
            }
            "float16" => {
                type $E = $crate::numeric::Float16;
                $body
            }
            "bfloat16" => {
                type $E = $crate::numeric::BFloat16;
                $body
            }
            other => Err($crate::py::params::unknown("dtype", other)),
        }
    };
}
pub(super) use with_dtype;
