//! What is measured: each kernel on arrays of a given size, outputs allocated and touched beforehand.

use qrs::affine::{
    dequantize_affine_packed, fake_quantize_affine, quantize_affine, quantize_affine_packed,
};
use qrs::grid::{Grid, packed_len};
use qrs::numeric::{BFloat16, Codes, Element, Float16, Float32};
use qrs::pack::{pack_bits, unpack_bits};
use qrs::qparams::{Given, Params, ScaleDtype};
use qrs::range::group_range;

use crate::twin::Ratio;

/// Columns of every array: a row of a weight matrix.
pub const COLS: usize = 4096;

/// A kernel with its arrays.
pub struct Case {
    /// Lines read and written, as its twin moves them. Scales and zero points (a few bytes for each
    /// group) are left out on both sides.
    pub ratio: Ratio,
    /// Bytes read and written.
    pub bytes: usize,
    /// One call.
    pub run: Box<dyn FnMut()>,
}

/// Name of a case, the fraction of the twin this project set itself for all threads on AVX-512, and
/// how to make it with so many bytes in its larger array.
pub type Entry = (&'static str, Option<f64>, fn(usize) -> Case);

/// Every case of the table.
#[rustfmt::skip]
pub fn cases() -> Vec<Entry> {
    vec![
        ("group_range axis0 f32", None, |n| range::<Float32>(n, COLS)),
        ("group_range g128 f32", None, |n| range::<Float32>(n, 128)),
        ("group_range g32 f32", None, |n| range::<Float32>(n, 32)),
        ("group_range g16 f32", None, |n| range::<Float32>(n, 16)),
        ("quantize_affine int8 axis0 f32", Some(0.7), |n| quantize::<Float32>(n, 8, COLS, true)),
        ("quantize_affine int8 axis0 f16", None, |n| quantize::<Float16>(n, 8, COLS, true)),
        ("quantize_affine int8 axis0 bf16", None, |n| quantize::<BFloat16>(n, 8, COLS, true)),
        ("quantize_affine int8 given f32", None, quantize_given),
        ("quantize_affine int4 g128-asym f32", Some(0.5), |n| quantize::<Float32>(n, 4, 128, false)),
        ("quantize_affine int4 g128-asym f16", None, |n| quantize::<Float16>(n, 4, 128, false)),
        ("quantize_affine int4 g128-asym bf16", None, |n| quantize::<BFloat16>(n, 4, 128, false)),
        ("quantize_affine int4 g32 f32", None, |n| quantize::<Float32>(n, 4, 32, true)),
        ("fake_quantize_affine int4 g128 f32", None, fake_quantize),
        ("dequantize_affine int8 axis0 f32", Some(0.85), |n| dequantize::<Float32>(n, 8, COLS)),
        ("dequantize_affine int8 axis0 bf16", None, |n| dequantize::<BFloat16>(n, 8, COLS)),
        ("dequantize_affine int4 g128 f32", Some(0.85), |n| dequantize::<Float32>(n, 4, 128)),
        ("dequantize_affine int4 g128 f16", None, |n| dequantize::<Float16>(n, 4, 128)),
        ("dequantize_affine int4 g128 bf16", None, |n| dequantize::<BFloat16>(n, 4, 128)),
        ("pack_bits 4", None, |n| pack(n, 4)),
        ("pack_bits 3", None, |n| pack(n, 3)),
        ("unpack_bits 4", None, |n| unpack(n, 4)),
        ("unpack_bits 3", None, |n| unpack(n, 3)),
    ]
}

/// Name of a small case, and how to make it.
pub type SmallEntry = (&'static str, fn() -> Case);

/// Kernels on a 1-KB array: the time of a call, not of the memory.
pub fn small_calls() -> Vec<SmallEntry> {
    vec![
        ("quantize_affine int8 axis0 f32, 1 KB", || quantize_grid::<Float32>(small(256), 8, true)),
        ("quantize_affine int4 g128-asym f32, 1 KB", || {
            quantize_grid::<Float32>(small(128), 4, false)
        }),
        ("dequantize_affine int8 axis0 f32, 1 KB", || dequantize_grid::<Float32>(small(256), 8)),
        ("dequantize_affine int4 g128 f32, 1 KB", || dequantize_grid::<Float32>(small(128), 4)),
    ]
}

fn small(group_size: usize) -> Grid {
    Grid { rows: 1, cols: 256, group_size }
}

pub fn grid<T>(bytes: usize, group_size: usize) -> Grid {
    Grid { rows: bytes / COLS / size_of::<T>(), cols: COLS, group_size }
}

/// Roughly normal numbers: the sum of the bytes of a multiplicative generator's output.
pub fn normal<E: Element>(len: usize) -> Vec<E::Repr> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    (0..len)
        .map(|_| {
            state = state.wrapping_mul(0xd134_2543_de82_ef95).wrapping_add(1);
            let sum: u32 = (state >> 16).to_le_bytes().into_iter().map(u32::from).sum();
            E::narrow((sum as f32 - 765.0) / 181.0)
        })
        .collect()
}

pub fn bytes_of(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i * 37 / 8) as u8).collect()
}

fn codes(bits: u32, symmetric: bool) -> Codes {
    let half = 1 << (bits - 1);
    Codes { qmin: if symmetric { 1 - half } else { -half }, qmax: half - 1, symmetric }
}

/// Lines in and out for `input` and `output` bytes, which are in a small ratio: 4 to 1, or 3 to 8.
fn ratio(input: usize, output: usize) -> Ratio {
    if output == 0 {
        return Ratio { read: 8, write: 0 };
    }
    let whole = |write: &usize| (input * write).is_multiple_of(output) && input * write >= output;
    let write = (1..=8).find(whole).expect("a small ratio");
    Ratio { read: input * write / output, write }
}

pub fn case(input: usize, output: usize, run: impl FnMut() + 'static) -> Case {
    Case { ratio: ratio(input, output), bytes: input + output, run: Box::new(run) }
}

fn range<E: Element>(bytes: usize, group_size: usize) -> Case {
    let grid = grid::<E::Repr>(bytes, group_size);
    let x = normal::<E>(grid.len());
    let (mut lo, mut hi) = (vec![0.0; grid.groups()], vec![0.0; grid.groups()]);
    case(size_of_val(&*x), 0, move || {
        group_range::<E>(&x, grid, &mut lo, &mut hi).expect("finite");
    })
}

/// Parameters found and codes packed in one call; with 8 bits there is nothing to pack.
fn quantize<E: Element>(bytes: usize, bits: u32, group_size: usize, symmetric: bool) -> Case {
    quantize_grid::<E>(grid::<E::Repr>(bytes, group_size), bits, symmetric)
}

fn quantize_grid<E: Element>(grid: Grid, bits: u32, symmetric: bool) -> Case {
    let x = normal::<E>(grid.len());
    let mut packed = vec![1; grid.rows * packed_len(grid.cols, bits)];
    let mut scale = vec![0.0; grid.groups()];
    let mut zero_point = vec![0; grid.groups()];
    case(size_of_val(&*x), packed.len(), move || {
        let zero_point = (!symmetric).then_some(&mut *zero_point);
        let scale_dtype = ScaleDtype::Float32;
        let params = Params::Choose { scale_dtype, scale: &mut scale, zero_point };
        let codes = codes(bits, symmetric);
        quantize_affine_packed::<E>(&x, grid, bits, codes, params, &mut packed).expect("finite");
    })
}

fn quantize_given(bytes: usize) -> Case {
    let len = bytes / size_of::<f32>();
    let grid = Grid { rows: 1, cols: len, group_size: len };
    let x = normal::<Float32>(len);
    let mut q = vec![1; len];
    case(bytes, len, move || {
        let given = Given { scale: &[0.04], zero_point: None };
        quantize_affine::<Float32>(&x, grid, codes(8, true), given, &mut q).expect("finite");
    })
}

fn fake_quantize(bytes: usize) -> Case {
    let grid = grid::<f32>(bytes, 128);
    let x = normal::<Float32>(grid.len());
    let mut x_hat = vec![1.0; grid.len()];
    let mut scale = vec![0.0; grid.groups()];
    case(bytes, bytes, move || {
        let scale_dtype = ScaleDtype::Float32;
        let params = Params::Choose { scale_dtype, scale: &mut scale, zero_point: None };
        fake_quantize_affine::<Float32>(&x, grid, codes(4, true), params, &mut x_hat)
            .expect("finite");
    })
}

fn dequantize<E: Element>(bytes: usize, bits: u32, group_size: usize) -> Case {
    dequantize_grid::<E>(grid::<E::Repr>(bytes, group_size), bits)
}

fn dequantize_grid<E: Element>(grid: Grid, bits: u32) -> Case {
    let packed = bytes_of(grid.rows * packed_len(grid.cols, bits));
    let (scale, zero_point) = (vec![0.02; grid.groups()], vec![3; grid.groups()]);
    let mut x_hat = normal::<E>(grid.len());
    case(packed.len(), size_of_val(&*x_hat), move || {
        // Eight bits: per channel and symmetric; four: with zero points.
        let zero_point = (bits < 8).then_some(&*zero_point);
        let given = Given { scale: &scale, zero_point };
        dequantize_affine_packed::<E>(&packed, grid, bits, true, given, &mut x_hat);
    })
}

fn pack(bytes: usize, bits: u32) -> Case {
    let codes = bytes_of(bytes);
    let mut packed = vec![1; bytes / COLS * packed_len(COLS, bits)];
    case(bytes, packed.len(), move || pack_bits(&codes, COLS, bits, &mut packed))
}

fn unpack(bytes: usize, bits: u32) -> Case {
    let packed = bytes_of(bytes / COLS * packed_len(COLS, bits));
    let mut codes = vec![1; bytes];
    case(packed.len(), bytes, move || unpack_bits(&packed, COLS, bits, true, &mut codes))
}
