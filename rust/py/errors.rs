//! The exceptions of `qrs.errors`, raised from Rust.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};

use pyo3::IntoPyObjectExt;
use pyo3::exceptions::PyMemoryError;
use pyo3::prelude::*;
use pyo3::types::PyDict;

use crate::error::Fault;

pyo3::import_exception!(qrs.errors, ArgTypeError);
pyo3::import_exception!(qrs.errors, ArgValueError);
pyo3::import_exception!(qrs.errors, InternalError);
pyo3::import_exception!(qrs.errors, KernelFault);
pyo3::import_exception!(qrs.errors, QrsMemoryError);

/// Runs a kernel without the GIL. Its fault becomes a `KernelFault`, and a panic, which is a bug,
/// an `InternalError`: neither leaves Rust in another way.
pub fn compute<R: Send>(
    py: Python<'_>,
    kernel: impl FnOnce() -> Result<R, Fault> + Send,
) -> PyResult<R> {
    match py.detach(|| catch_unwind(AssertUnwindSafe(kernel))) {
        Ok(Ok(result)) => Ok(result),
        Ok(Err(Fault::NoLevel)) => {
            Err(ArgValueError::new_err("codes: one has no level in its book"))
        }
        Ok(Err(fault)) => Err(KernelFault::new_err((fault.reason(), fault.group()))),
        Err(panic) => Err(InternalError::new_err(format!(
            "a kernel panicked: {}; this is a bug in qrs, please report it",
            panic_message(&*panic)
        ))),
    }
}

fn panic_message(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref().copied()).unwrap_or("for an unknown reason")
}

/// The error that `qrs.errors.bad` makes: an `ArgValueError` with its message and attributes.
pub fn bad<'py>(
    py: Python<'py>,
    arg: &str,
    value: impl IntoPyObject<'py>,
    expected: &str,
) -> PyErr {
    let build = || {
        let value = value.into_bound_py_any(py)?;
        let found = format!("got {}", value.repr()?);
        py.import("qrs.errors")?.getattr("bad")?.call1((arg, found, value, expected))
    };
    build().map_or_else(|error| error, PyErr::from_value)
}

/// What numpy raised where it could not allocate `bytes`: a `QrsMemoryError` if memory was short.
pub fn allocation_error(py: Python<'_>, error: PyErr, bytes: usize) -> PyErr {
    if !error.is_instance_of::<PyMemoryError>(py) {
        return error;
    }
    let build = || {
        let attributes = PyDict::new(py);
        attributes.set_item("value", bytes)?;
        let message = format!("could not allocate {bytes} bytes for the result");
        py.get_type::<QrsMemoryError>().call((message,), Some(&attributes))
    };
    let raised = build().map_or_else(|error| error, PyErr::from_value);
    raised.set_cause(py, Some(error));
    raised
}
