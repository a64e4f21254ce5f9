//! The float kernels: conversions, and floats with scales.

use qrs::float_formats::{E2M1, E4M3, E5M2, Format};
use qrs::floats::{
    ScaleRule, decode_float, dequantize_float_packed, encode_float, quantize_float_packed,
};
use qrs::grid::Grid;
use qrs::numeric::{BFloat16, Element, Float16, Float32};
use qrs::qparams::Scales;

use crate::ops::{COLS, Case, Entry, bytes_of, case, grid, normal};

/// Every case of the table.
#[rustfmt::skip]
pub fn cases() -> Vec<Entry> {
    vec![
        ("encode_float f32 to bf16", Some(0.8), encode::<Float32, BFloat16>),
        ("encode_float f32 to f16", Some(0.8), encode::<Float32, Float16>),
        ("encode_float f32 to e4m3", Some(0.8), encode::<Float32, E4M3>),
        ("encode_float f32 to e5m2", Some(0.8), encode::<Float32, E5M2>),
        ("encode_float bf16 to e4m3", None, encode::<BFloat16, E4M3>),
        ("decode_float bf16 to f32", Some(0.8), decode::<BFloat16, Float32>),
        ("decode_float f16 to f32", Some(0.8), decode::<Float16, Float32>),
        ("decode_float e4m3 to f32", Some(0.8), decode::<E4M3, Float32>),
        ("decode_float e5m2 to f32", Some(0.8), decode::<E5M2, Float32>),
        ("decode_float e4m3 to bf16", None, decode::<E4M3, BFloat16>),
        ("quantize_float mxfp4 f32", None, |n| quantize::<Float32, E2M1>(n, 32, true)),
        ("quantize_float mxfp4 bf16", None, |n| quantize::<BFloat16, E2M1>(n, 32, true)),
        ("quantize_float mxfp4 f16", None, |n| quantize::<Float16, E2M1>(n, 32, true)),
        ("quantize_float mxfp8 f32", None, |n| quantize::<Float32, E4M3>(n, 32, true)),
        ("quantize_float e4m3 g128 f32", None, |n| quantize::<Float32, E4M3>(n, 128, true)),
        ("quantize_float nvfp4 given f32", None, |n| quantize::<Float32, E2M1>(n, 16, false)),
        ("dequantize_float mxfp4 f32", None, |n| dequantize::<E2M1, Float32>(n, 32)),
        ("dequantize_float mxfp4 bf16", None, |n| dequantize::<E2M1, BFloat16>(n, 32)),
        ("dequantize_float mxfp8 f32", None, |n| dequantize::<E4M3, Float32>(n, 32)),
        ("dequantize_float nvfp4 f32", None, |n| dequantize::<E2M1, Float32>(n, 16)),
    ]
}

fn codes<F: Format>(len: usize) -> Vec<F::Code> {
    // Every byte but those of NaN, whose conversion is no slower.
    bytes_of(len)
        .into_iter()
        .map(|byte| F::code(F::encode(f32::from(byte) - 128.0, true)))
        .collect()
}

fn encode<E: Element, F: Format>(bytes: usize) -> Case {
    let x = normal::<E>(bytes / size_of::<E::Repr>());
    let mut codes = codes::<F>(x.len());
    case(size_of_val(&*x), size_of_val(&*codes), move || {
        encode_float::<E, F>(&x, false, &mut codes).expect("no NaN");
    })
}

fn decode<F: Format, E: Element>(bytes: usize) -> Case {
    let mut x = normal::<E>(bytes / size_of::<E::Repr>());
    let codes = codes::<F>(x.len());
    case(size_of_val(&*codes), size_of_val(&*x), move || decode_float::<F, E>(&codes, &mut x))
}

/// With scales that are powers of two and chosen in the call, or with given ones.
fn quantize<E: Element, F: Format>(bytes: usize, group_size: usize, choose: bool) -> Case {
    let grid: Grid = grid::<E::Repr>(bytes, group_size);
    let x = normal::<E>(grid.len());
    let mut packed = vec![F::code(1); grid.rows * F::packed_len(COLS)];
    let mut scale = vec![0.7; grid.groups()];
    case(size_of_val(&*x), size_of_val(&*packed), move || {
        let scales = if choose {
            Scales::Choose(ScaleRule::PowerOfTwo, &mut scale)
        } else {
            Scales::Given(&scale)
        };
        quantize_float_packed::<E, F>(&x, grid, scales, &mut packed).expect("finite");
    })
}

fn dequantize<F: Format, E: Element>(bytes: usize, group_size: usize) -> Case {
    let grid: Grid = grid::<E::Repr>(bytes, group_size);
    let packed = codes::<F>(grid.rows * F::packed_len(COLS));
    let scale = vec![0.7; grid.groups()];
    let mut x_hat = normal::<E>(grid.len());
    case(size_of_val(&*packed), size_of_val(&*x_hat), move || {
        dequantize_float_packed::<F, E>(&packed, grid, Some(&scale), &mut x_hat);
    })
}
