//! The codebook kernels: nearest levels, levels by code, and the scale search.

use qrs::codebooks::{Books, Reach, dequantize_codebook_packed, quantize_codebook_packed};
use qrs::grid::{Grid, packed_len};
use qrs::numeric::{BFloat16, Element, Float32};
use qrs::qparams::{ScaleDtype, Scales};
use qrs::scale_search::{Problem, choose_scale_lsq};

use crate::ops::{Case, Entry, bytes_of, case, grid, normal};

/// Every case of the table.
#[rustfmt::skip]
pub fn cases() -> Vec<Entry> {
    vec![
        ("quantize_codebook nf4 g64 f32", Some(0.4), |n| quantize::<Float32>(n, 4, 64, true)),
        ("quantize_codebook nf4 g64 bf16", None, |n| quantize::<BFloat16>(n, 4, 64, true)),
        ("quantize_codebook nf4 given f32", None, |n| quantize::<Float32>(n, 4, 64, false)),
        ("quantize_codebook 256 levels f32", None, |n| quantize::<Float32>(n, 8, 256, true)),
        ("dequantize_codebook nf4 g64 f32", Some(0.8), |n| dequantize::<Float32>(n, 4, 64)),
        ("dequantize_codebook nf4 g64 bf16", None, |n| dequantize::<BFloat16>(n, 4, 64)),
        ("dequantize_codebook 256 levels f32", None, |n| dequantize::<Float32>(n, 8, 256)),
        ("choose_scale_lsq nf4 g64 f32", None, |n| search(n, 64, &uneven(16))),
        ("choose_scale_lsq int4 g128 f32", None, |n| search(n, 128, &integers(7))),
        ("choose_scale_lsq int8 g128 f32", None, |n| search(n, 128, &integers(127))),
    ]
}

/// Levels from -1 to 1, closer to one another about zero, as those of NF4 are.
fn uneven(count: usize) -> Vec<f32> {
    (0..count)
        .map(|i| {
            let x = i as f32 / (count - 1) as f32 * 2.0 - 1.0;
            x * (0.5 + 0.5 * x.abs())
        })
        .collect()
}

fn integers(greatest: i32) -> Vec<f32> {
    (-greatest..=greatest).map(|level| level as f32).collect()
}

/// Midpoints; of integers, those from which on the rounded number is the next one.
fn thresholds(levels: &[f32]) -> Vec<f32> {
    let middle = |pair: &[f32]| {
        let middle = f32::midpoint(pair[0], pair[1]);
        if pair[0] % 2.0 == 0.0 { middle.next_up() } else { middle }
    };
    levels.windows(2).map(middle).collect()
}

fn quantize<E: Element>(bytes: usize, bits: u32, group_size: usize, choose: bool) -> Case {
    let grid: Grid = grid::<E::Repr>(bytes, group_size);
    let x = normal::<E>(grid.len());
    let mut packed = vec![1; grid.rows * packed_len(grid.cols, bits)];
    let mut scale = vec![0.7; grid.groups()];
    let values = thresholds(&uneven(1 << bits));
    case(size_of_val(&*x), packed.len(), move || {
        let reach = Reach { low: -1.0, high: 1.0, scale_dtype: ScaleDtype::Float32 };
        let scales = if choose { Scales::Choose(reach, &mut scale) } else { Scales::Given(&scale) };
        let books = Books { values: &values, width: values.len(), count: 1 };
        quantize_codebook_packed::<E>(&x, grid, bits, scales, books, None, &mut packed)
            .expect("finite");
    })
}

fn dequantize<E: Element>(bytes: usize, bits: u32, group_size: usize) -> Case {
    let grid: Grid = grid::<E::Repr>(bytes, group_size);
    let packed = bytes_of(grid.rows * packed_len(grid.cols, bits));
    let scale = vec![0.7; grid.groups()];
    let values = uneven(1 << bits);
    let mut x_hat = normal::<E>(grid.len());
    case(packed.len(), size_of_val(&*x_hat), move || {
        let books = Books { values: &values, width: values.len(), count: 1 };
        dequantize_codebook_packed::<E>(&packed, grid, bits, Some(&scale), None, books, &mut x_hat)
            .expect("all codes have levels");
    })
}

/// 24 starts of both signs, on an eighth of the bytes: this is arithmetic, and no matter of memory.
fn search(bytes: usize, group_size: usize, levels: &[f32]) -> Case {
    let grid: Grid = grid::<f32>(bytes / 8, group_size);
    let x = normal::<Float32>(grid.len());
    let (levels, thresholds) = (levels.to_vec(), thresholds(levels));
    let factors: Vec<f32> = (0..24).map(|i| 0.45 + 0.8 / 23.0 * i as f32).collect();
    let factors: Vec<f32> = factors.iter().copied().chain(factors.iter().map(|f| -f)).collect();
    let (mut scale, mut error) = (vec![0.0; grid.groups()], vec![0.0; grid.groups()]);
    case(size_of_val(&*x), 0, move || {
        scale.fill(0.7);
        let scale_dtype = ScaleDtype::Float16;
        let (levels, thresholds, factors) = (&*levels, &*thresholds, &*factors);
        let problem = Problem { levels, thresholds, factors, scale_dtype };
        let found = choose_scale_lsq::<Float32>(&x, grid, None, problem, &mut scale, &mut error);
        found.expect("finite");
    })
}
