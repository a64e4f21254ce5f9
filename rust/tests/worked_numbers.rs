//! Results that were worked out by hand.

use crate::affine::quantize_affine_packed;
use crate::grid::Grid;
use crate::numeric::{Codes, Float32};
use crate::pack::{pack_bits, unpack_bits};
use crate::qparams::{Params, ScaleDtype, choose_qparams_affine};

const INT8: Codes = Codes { qmin: -127, qmax: 127, symmetric: true };
const UINT8: Codes = Codes { qmin: 0, qmax: 255, symmetric: false };

fn zero_point(lo: f32, hi: f32) -> (f32, i32) {
    let (mut scale, mut zero_point) = ([0.0], [0]);
    let place = Some(&mut zero_point[..]);
    choose_qparams_affine(&[lo], &[hi], UINT8, ScaleDtype::Float32, &mut scale, place)
        .expect("in range");
    (scale[0], zero_point[0])
}

#[test]
fn absmax_to_int8() {
    let x = [1.6, -0.7, -3.4, 1.7, -2.9, 0.5, 2.3, 6.2];
    let (mut scale, mut q) = ([0.0], [0; 8]);
    let params =
        Params::Choose { scale_dtype: ScaleDtype::Float32, scale: &mut scale, zero_point: None };
    quantize_affine_packed::<Float32>(&x, Grid::of_row(8), 8, INT8, params, &mut q)
        .expect("in range");
    assert_eq!(q.map(|q| q as i8), [33, -14, -70, 35, -59, 10, 47, 127]);
    assert_eq!(scale, [6.2 / 127.0]);
}

#[test]
fn zero_lies_on_an_integer() {
    assert_eq!(zero_point(0.0, 2.0), (2.0 / 255.0, 0));
    assert_eq!(zero_point(-0.5, 1.5), (2.0 / 255.0, 64));
}

#[test]
fn a_range_of_zero_gets_scale_1() {
    assert_eq!(zero_point(0.0, 0.0), (1.0, 0));
    // The quotient underflows.
    assert_eq!(zero_point(0.0, 1e-45), (1.0, 0));
}

#[test]
fn a_width_that_overflows_is_divided_first() {
    let (scale, zero_point) = zero_point(-3e38, 3e38);
    assert_eq!((scale, zero_point), (3e38 / 255.0 + 3e38 / 255.0, 128));
}

#[test]
fn four_bits_low_nibble_first() {
    let mut packed = [0; 2];
    pack_bits(&[0x1, 0xf, 0x7], 3, 4, &mut packed);
    assert_eq!(packed, [0xf1, 0x07]);
    let mut codes = [0; 3];
    unpack_bits(&packed, 3, 4, true, &mut codes);
    assert_eq!(codes.map(|code| code as i8), [1, -1, 7]);
    unpack_bits(&packed, 3, 4, false, &mut codes);
    assert_eq!(codes, [1, 15, 7]);
}

#[test]
fn three_bits_cross_bytes() {
    // From the highest bit down: 11 010 001, 0 101 100 0, 000 111 11, then 101 and padding.
    let codes = [1, 2, 3, 4, 5, 6, 7, 0, 5];
    let mut packed = [0; 4];
    pack_bits(&codes, 9, 3, &mut packed);
    assert_eq!(packed, [0b1101_0001, 0b0101_1000, 0b0001_1111, 0b0000_0101]);
}
