//! The kernels of qrs: exact quantization of arrays.
//!
//! Safe scalar code over slices, compiled once for each instruction set (`simd`), run in blocks on
//! all threads (`rows`), with the numeric contract in one file (`numeric`). Kernels see rows and
//! groups; axes, schemes and files are Python's business. The extension module `qrs._qrs` is the
//! feature `python`.

pub mod affine;
pub mod error;
pub mod numeric;
pub mod pack;
#[cfg(feature = "python")]
mod py;
pub mod range;
pub mod rows;
pub mod simd;
pub mod x86;
