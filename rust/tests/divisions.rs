//! Finite float32 patterns through the int8 encoder: a sample by default, all of them on request
//! (`cargo test --release -- --ignored`).

use super::{at_every_level, oracle};
use crate::affine::quantize_affine;
use crate::grid::Grid;
use crate::numeric::{Codes, Float32};
use crate::qparams::Given;

const INT8: Codes = Codes { qmin: -127, qmax: 127, symmetric: true };

/// Ordinary, extreme, and chosen so that many quotients come close to a tie.
const SCALES: [f32; 6] = [0.03, 1.0 / 127.0, 1.0, 1e-40, 1e-38, 2.6e36];

/// Every level encodes the patterns `first .. first + n * step` as the oracle does.
fn check(patterns: impl Iterator<Item = u32>) {
    let x: Vec<_> = patterns.map(f32::from_bits).filter(|x| x.is_finite()).collect();
    let grid = Grid::of_row(x.len());
    for scale in SCALES {
        let expected: Vec<_> =
            x.iter().map(|&x| oracle::encode(x, (scale, 0), INT8) as u8).collect();
        at_every_level(|context| {
            let given = Given { scale: &[scale], zero_point: None };
            let mut q = vec![0xaa; x.len()];
            quantize_affine::<Float32>(&x, grid, INT8, given, &mut q).expect("finite");
            assert!(q == expected, "{context}, scale {scale}");
        });
    }
}

#[test]
fn a_sample_of_all_float32_encodes_as_division_does() {
    check((0..1 << 20).map(|i: u32| i.wrapping_mul(4093)));
}

#[test]
#[ignore = "all finite float32: five minutes"]
fn all_float32_encode_as_division_does() {
    for upper in 0..1 << 8 {
        check((0..1 << 24).map(|lower| upper << 24 | lower));
    }
}
