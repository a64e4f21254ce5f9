//! From numpy arrays to slices and back. The caller passes C-contiguous 2-D arrays; everything is
//! checked once more here, since a slice of anything else would be undefined behaviour.

use numpy::npyffi::npy_intp;
use numpy::prelude::*;
use numpy::{
    Element, PY_ARRAY_API, PyArray2, PyReadonlyArray2, PyReadwriteArray2, PyUntypedArray, dtype,
};
use pyo3::prelude::*;

use super::errors::{ArgTypeError, ArgValueError, allocation_error};

/// An array argument of a Python call.
pub type Array<'py> = Bound<'py, PyUntypedArray>;

/// Codes of one byte.
pub trait Code: Element {
    /// The bytes of these codes.
    fn bytes(codes: &[Self]) -> &[u8];
    /// The bytes of these codes.
    fn bytes_mut(codes: &mut [Self]) -> &mut [u8];
}

impl Code for u8 {
    fn bytes(codes: &[u8]) -> &[u8] {
        codes
    }

    fn bytes_mut(codes: &mut [u8]) -> &mut [u8] {
        codes
    }
}

impl Code for i8 {
    fn bytes(codes: &[i8]) -> &[u8] {
        // SAFETY: i8 and u8 have the same size and alignment, and every byte is valid as both.
        unsafe { std::slice::from_raw_parts(codes.as_ptr().cast(), codes.len()) }
    }

    fn bytes_mut(codes: &mut [i8]) -> &mut [u8] {
        // SAFETY: as above; the result borrows `codes` mutably.
        unsafe { std::slice::from_raw_parts_mut(codes.as_mut_ptr().cast(), codes.len()) }
    }
}

/// An array that is read, of `shape` unless that is None.
pub fn input<'py, T: Element>(
    name: &str,
    array: &Array<'py>,
    shape: Option<(usize, usize)>,
) -> PyResult<PyReadonlyArray2<'py, T>> {
    let array = checked::<T>(name, array, shape)?;
    array.try_readonly().map_err(|_| in_use(name))
}

/// As [`input`], where None is given for an array that there is not.
pub fn optional_input<'py, T: Element>(
    name: &str,
    array: Option<&Array<'py>>,
    shape: (usize, usize),
) -> PyResult<Option<PyReadonlyArray2<'py, T>>> {
    array.map(|array| input(name, array, Some(shape))).transpose()
}

/// The array that is written: `out`, or a new one.
pub fn output<'py, T: Element>(
    py: Python<'py>,
    out: Option<&Array<'py>>,
    shape: (usize, usize),
) -> PyResult<PyReadwriteArray2<'py, T>> {
    let array = match out {
        Some(out) => checked::<T>("out", out, Some(shape))?.clone(),
        None => empty(py, shape)?,
    };
    array.try_into_readwrite().map_err(|_| in_use("out"))
}

/// What Python gets of an array that was written.
pub fn finished<T: Element>(array: &PyReadwriteArray2<'_, T>) -> Py<PyAny> {
    array.as_any().clone().unbind()
}

/// The elements, in C order.
pub fn slice<'a, T: Element>(array: &'a PyReadonlyArray2<'_, T>) -> &'a [T] {
    array.as_slice().expect("checked to be C-contiguous")
}

/// The elements, in C order.
pub fn slice_mut<'a, T: Element>(array: &'a mut PyReadwriteArray2<'_, T>) -> &'a mut [T] {
    array.as_slice_mut().expect("checked to be C-contiguous")
}

/// The shape of an array with two axes.
pub fn shape_of(name: &str, array: &Array) -> PyResult<(usize, usize)> {
    match array.shape() {
        &[rows, cols] => Ok((rows, cols)),
        shape => Err(ArgValueError::new_err(format!("{name} must have two axes: shape={shape:?}"))),
    }
}

fn checked<'a, 'py, T: Element>(
    name: &str,
    array: &'a Array<'py>,
    shape: Option<(usize, usize)>,
) -> PyResult<&'a Bound<'py, PyArray2<T>>> {
    let (rows, cols) = shape_of(name, array)?;
    let typed = array.cast::<PyArray2<T>>().map_err(|_| {
        let (expected, given) = (dtype::<T>(array.py()), array.dtype());
        ArgTypeError::new_err(format!("{name} must be an array of {expected}: dtype={given}"))
    })?;
    if let Some(shape) = shape.filter(|&shape| shape != (rows, cols)) {
        let given = (rows, cols);
        return Err(ArgValueError::new_err(format!("{name} must have shape {shape:?}: {given:?}")));
    }
    // A slice of a Fortran-ordered array would be accepted by rust-numpy, with its axes swapped.
    if !array.is_c_contiguous() || !array.is_aligned() {
        return Err(ArgValueError::new_err(format!("{name} must be C-contiguous and aligned")));
    }
    Ok(typed)
}

fn in_use(name: &str) -> PyErr {
    ArgValueError::new_err(format!("{name} is read-only, or another call is using it"))
}

/// A new array whose elements are not initialized, from numpy's own allocator: it reports a lack of
/// memory instead of aborting, and asks for huge pages.
fn empty<T: Element>(
    py: Python<'_>,
    (rows, cols): (usize, usize),
) -> PyResult<Bound<'_, PyArray2<T>>> {
    let mut dims = [rows as npy_intp, cols as npy_intp];
    // SAFETY: two dimensions are passed, and a descriptor, of which numpy takes ownership. The
    // result is null with an exception set, or a new C-contiguous array of that dtype. Its bytes
    // come from the allocator, and plain numbers are valid whatever they hold.
    let array = unsafe {
        let descriptor = dtype::<T>(py).into_dtype_ptr();
        let array = PY_ARRAY_API.PyArray_Empty(py, 2, dims.as_mut_ptr(), descriptor, 0);
        Bound::from_owned_ptr_or_err(py, array)
    };
    let bytes = rows.saturating_mul(cols).saturating_mul(size_of::<T>());
    let array = array.map_err(|error| allocation_error(py, error, bytes))?;
    Ok(array.cast_into::<PyArray2<T>>()?)
}
