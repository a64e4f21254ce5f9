//! What is reported, and that it does not depend on threads.

use super::at_every_level;
use crate::affine::{fake_quantize_affine, quantize_affine, quantize_affine_packed};
use crate::error::Fault;
use crate::grid::Grid;
use crate::numeric::{Codes, Float32};
use crate::qparams::{Given, Params, ScaleDtype};
use crate::range::group_range;

const INT8: Codes = Codes { qmin: -127, qmax: 127, symmetric: true };
const UINT8: Codes = Codes { qmin: 0, qmax: 255, symmetric: false };

/// What quantizing says of `x`, packed and fake, which must be the same.
fn fault(x: &[f32], grid: Grid, codes: Codes, scale_dtype: ScaleDtype) -> Option<Fault> {
    let (mut scale, mut zero_point) = (vec![0.0; grid.groups()], vec![0; grid.groups()]);
    let (mut q, mut x_hat) = (vec![0; x.len()], vec![0.0; x.len()]);
    let place = (!codes.symmetric).then_some(&mut *zero_point);
    let params = Params::Choose { scale_dtype, scale: &mut scale, zero_point: place };
    let packed = quantize_affine_packed::<Float32>(x, grid, 8, codes, params, &mut q);
    let place = (!codes.symmetric).then_some(&mut *zero_point);
    let params = Params::Choose { scale_dtype, scale: &mut scale, zero_point: place };
    let fake = fake_quantize_affine::<Float32>(x, grid, codes, params, &mut x_hat);
    assert_eq!(packed, fake);
    packed.err()
}

#[test]
fn nan_and_infinities_are_found_wherever_they_are() {
    let grid = Grid { rows: 3, cols: 50_001, group_size: 128 };
    at_every_level(|context| {
        for at in [0, 31, 127, 4096, 50_000, 50_001, 99_999, 150_002] {
            for bad in [f32::NAN, -f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                let mut x = vec![-1.0; grid.len()];
                x[at] = bad;
                let found = fault(&x, grid, INT8, ScaleDtype::Float32);
                assert_eq!(found, Some(Fault::NonFinite), "{context}, {bad} at {at}");
                let (mut lo, mut hi) = (vec![0.0; grid.groups()], vec![0.0; grid.groups()]);
                let found = group_range::<Float32>(&x, grid, &mut lo, &mut hi);
                assert_eq!(found, Err(Fault::NonFinite), "{context}, {bad} at {at}");
                let given = Given { scale: &vec![1.0; grid.groups()], zero_point: None };
                let found =
                    quantize_affine::<Float32>(&x, grid, INT8, given, &mut vec![0; x.len()]);
                assert_eq!(found, Err(Fault::NonFinite), "{context}, {bad} at {at}");
            }
        }
    });
}

#[test]
fn the_first_group_is_named_and_nan_wins() {
    // A row is several parts, and the array several blocks.
    let grid = Grid { rows: 8, cols: 20_000, group_size: 100 };
    at_every_level(|context| {
        let mut x = vec![1.0; grid.len()];
        x[123_456] = 3e7;
        x[23_456] = 2e7;
        let found = fault(&x, grid, INT8, ScaleDtype::Float16);
        assert_eq!(found, Some(Fault::ScaleOverflow { group: 234 }), "{context}");
        x[24_000] = f32::NAN;
        let found = fault(&x, grid, INT8, ScaleDtype::Float16);
        assert_eq!(found, Some(Fault::NonFinite), "{context}");
    });
}

#[test]
fn codes_that_decode_to_infinity_are_refused() {
    // The scale follows from the positive end; the code -128 lies beyond the largest float.
    let full_range = Codes { qmin: -128, qmax: 127, symmetric: true };
    let grid = Grid { rows: 2, cols: 200, group_size: 100 };
    let mut x = vec![1.0; grid.len()];
    x[250] = 3.402e38;
    let found = fault(&x, grid, full_range, ScaleDtype::Float32);
    assert_eq!(found, Some(Fault::DecodeOverflow { group: 2 }));
    assert_eq!(fault(&x, grid, INT8, ScaleDtype::Float32), None);
    // A range from end to end: rounding the zero point moves one of them out.
    x[251] = -3.402e38;
    let found = fault(&x, grid, UINT8, ScaleDtype::Float32);
    assert_eq!(found, Some(Fault::DecodeOverflow { group: 2 }));
}
