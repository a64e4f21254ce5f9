//! The kernels of qrs: exact quantization of arrays.
//!
//! Safe scalar code over slices, compiled once for each instruction set (`simd`), run in blocks on
//! all threads (`rows`), with the numeric contract in one file (`numeric`). Kernels see rows and
//! groups; axes, schemes and files are Python's business. The extension module `qrs._qrs` is the
//! feature `python`.
//!
//! Kernels panic where the lengths of slices do not fit together, and where `bits` is not in `2..=8`
//! the result is of no use: their callers check.

pub mod affine;
pub mod codebooks;
pub mod conv;
pub(crate) mod dot;
#[cfg(target_arch = "x86_64")]
pub(crate) mod dot_x86;
pub mod error;
pub(crate) mod f16c;
pub mod float_formats;
pub mod floats;
pub mod functional;
pub mod gradients;
pub mod grid;
pub mod grouped;
pub mod int8;
pub mod kmeans;
pub mod kmeans_1d;
pub(crate) mod lookup;
pub mod numeric;
pub mod pack;
pub(crate) mod parts;
#[cfg(feature = "python")]
mod py;
pub mod qparams;
pub mod range;
pub mod requantize;
pub mod rows;
pub mod scale_search;
pub mod simd;
pub mod solving;
pub(crate) mod sums;
#[cfg(test)]
mod tests;
pub(crate) mod tiles;
pub mod x86;
