//! The float formats and kernels against tables of all numbers, the crate `half`, and by hand.

use half::{bf16, f16};

use super::{at_every_level, nasty, oracle};
use crate::error::Fault;
use crate::f16c;
use crate::float_formats::{E2M1, E4M3, E5M2, Format};
use crate::floats::{
    ScaleRule, choose_scale_float, choose_scale_float_nested, decode_float,
    dequantize_float_packed, encode_float, quantize_float_packed,
};
use crate::grid::Grid;
use crate::numeric::{BFloat16, Element, Float16, Float32};
use crate::qparams::{ScaleDtype, Scales};

/// The nearest of all numbers of a format, the even code of two: no bits, but a search.
fn nearest<F: Format>(x: f32) -> u32 {
    let distance = |code: &u32| (f64::from(F::decode(*code)) - f64::from(x.abs())).abs();
    let codes = 0..=F::MAX_CODE;
    let best = codes.min_by(|a, b| distance(a).total_cmp(&distance(b)).then((a % 2).cmp(&(b % 2))));
    best.expect("there are codes") | if x.is_sign_negative() { F::SIGN_CODE } else { 0 }
}

/// Numbers around those of a format and halfway between them, and a spread of others.
fn samples<F: Format>() -> Vec<f32> {
    let numbers: Vec<_> = (0..=F::MAX_CODE).map(F::decode).collect();
    let halves = numbers.windows(2).map(|pair| f32::midpoint(pair[0], pair[1]));
    let exact: Vec<_> = numbers.iter().copied().chain(halves).collect();
    let near = exact.iter().flat_map(|x| [x.next_down(), *x, x.next_up()]);
    let spread = (0..2000).map(|i: u32| f32::from_bits(i.wrapping_mul(0x9e37_79b1)));
    let all = near.chain(spread).flat_map(|x| [x, -x]);
    all.filter(|x| x.abs() <= F::LARGEST).collect()
}

fn rounds_to_the_nearest<F: Format>() {
    for x in samples::<F>() {
        for saturate in [false, true] {
            assert_eq!(F::encode(x, saturate), nearest::<F>(x), "{x:e}");
        }
        assert_eq!(F::encode_scaled(x * 4.0, 4.0), nearest::<F>(x), "{x:e}");
    }
    for code in 0..=F::MAX_CODE {
        assert_eq!(F::encode(F::decode(code), false), code);
        assert_eq!(F::encode(-F::decode(code), true), code | F::SIGN_CODE);
    }
}

#[test]
fn small_formats_round_to_the_nearest_of_all_their_numbers() {
    rounds_to_the_nearest::<E2M1>();
    rounds_to_the_nearest::<E4M3>();
    rounds_to_the_nearest::<E5M2>();
}

#[test]
fn numbers_worked_out_by_hand() {
    assert_eq!(
        [0, 1, 2, 3, 4, 5, 6, 7].map(E2M1::decode),
        [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]
    );
    // 1 + 1/8; 2^-6 and 2^-9; 448 = 1.75 * 2^8.
    let numbers = [0x39, 0x08, 0x01, 0x7e].map(E4M3::decode);
    assert_eq!(numbers, [1.125, 0.015_625, 0.001_953_125, 448.0]);
    let numbers = [0x3d, 0x04, 0x01, 0x7b, 0x7c].map(E5M2::decode);
    assert_eq!(numbers, [1.25, 2_f32.powi(-14), 2_f32.powi(-16), 57344.0, f32::INFINITY]);
    assert_eq!((E2M1::LARGEST, E4M3::LARGEST, E5M2::LARGEST), (6.0, 448.0, 57344.0));
    assert_eq!((E2M1::MAX_EXPONENT, E4M3::MAX_EXPONENT, E5M2::MAX_EXPONENT), (2, 8, 15));
    assert_eq!(Float16::LARGEST, f16::MAX.to_f32());
    assert_eq!(BFloat16::LARGEST, bf16::MAX.to_f32());
    assert_eq!(<Float32 as Format>::LARGEST, f32::MAX);
}

#[test]
fn what_is_too_large() {
    let far = [464.1, 1e30, f32::INFINITY, -f32::INFINITY];
    assert_eq!(far.map(|x| E4M3::encode(x, false)), [0x7f, 0x7f, 0x7f, 0xff]);
    assert_eq!(far.map(|x| E4M3::encode(x, true)), [0x7e, 0x7e, 0x7e, 0xfe]);
    let far = [61440.0, -1e30, f32::INFINITY];
    assert_eq!(far.map(|x| E5M2::encode(x, false)), [0x7c, 0xfc, 0x7c]);
    assert_eq!(far.map(|x| E5M2::encode(x, true)), [0x7b, 0xfb, 0x7c]);
    let far = [65520.0, -1e30, f32::INFINITY];
    assert_eq!(far.map(|x| Float16::encode(x, true)), [0x7bff, 0xfbff, 0x7c00]);
    assert_eq!([6.5, f32::INFINITY, -1e9].map(|x| E2M1::encode(x, false)), [7, 7, 15]);
}

#[test]
fn nan_is_the_canonical_one() {
    for bits in [0x7f80_0001, 0x7fc0_0000, 0xff80_0001, 0xffff_ffff] {
        let (nan, sign) = (f32::from_bits(bits), bits >> 31);
        assert_eq!(E4M3::encode(nan, true), 0x7f | sign << 7);
        assert_eq!(E5M2::encode(nan, false), 0x7e | sign << 7);
        assert_eq!(Float16::encode(nan, true), 0x7e00 | sign << 15);
        assert_eq!(BFloat16::encode(nan, true), 0x7fc0 | sign << 15);
        assert_eq!(Float32::encode(nan, true), 0x7fc0_0000 | sign << 31);
    }
    for code in [0x7d, 0x7f] {
        assert_eq!(E5M2::decode(code).to_bits(), 0x7fc0_0000);
        assert_eq!(E5M2::decode(code | 0x80).to_bits(), 0xffc0_0000);
    }
    assert_eq!(Float16::decode(0x7c01).to_bits(), 0x7fc0_0000);
    assert_eq!(BFloat16::decode(0xff81).to_bits(), 0xffc0_0000);
}

#[test]
fn float16_by_instructions_is_float16_by_formula() {
    // Odd lengths, so that the last ones go without.
    let x: Vec<f32> =
        (0..1 << 20_u32).map(|i| f32::from_bits(i * 4095 + (i & 1) * 0xfff)).collect();
    let codes: Vec<u16> = (0..=u16::MAX).collect();
    at_every_level(|context| {
        let mut narrow = vec![9; x.len() - 3];
        f16c::narrow(&x[3..], &mut narrow);
        let expected = x[3..].iter().map(|&x| Float16::narrow(x));
        assert!(narrow.iter().copied().eq(expected), "{context}");
        let mut wide = vec![9.0; codes.len() - 5];
        f16c::widen(&codes[5..], &mut wide);
        for (&code, wide) in codes[5..].iter().zip(wide) {
            let expected = <Float16 as Element>::widen(code);
            let same = wide.to_bits() == expected.to_bits();
            assert!(same || wide.is_nan() && expected.is_nan(), "{context}, {code:#x}");
        }
    });
}

/// Everything on `x`, with scales chosen in the call, against one number at a time.
fn check<E: Element, F: Format>(x: &[f32], grid: Grid, rule: ScaleRule, context: &str) {
    let context = format!("{context}, {grid:?}, {rule:?}, {} bits", F::BITS);
    let x: Vec<_> = x.iter().map(|&x| E::narrow(x)).collect();
    let wide: Vec<_> = x.iter().map(|&x| E::widen(x)).collect();
    let (mut scales, mut codes) = (vec![], vec![]);
    for row in wide.chunks_exact(grid.cols) {
        for group in oracle::groups(grid.cols, grid.group_size) {
            let (lo, hi) = oracle::range(&row[group.clone()]);
            let mut scale = [0.0];
            choose_scale_float::<F>(&[lo], &[hi], rule, &mut scale).expect("in range");
            let quotient = |x: &f32| (x / scale[0]).clamp(-F::LARGEST, F::LARGEST);
            codes.extend(row[group].iter().map(|x| F::encode(quotient(x), true)));
            scales.push(scale[0]);
        }
    }
    let packed: Vec<_> = codes
        .chunks_exact(grid.cols)
        .flat_map(|row| match F::BITS {
            4 => oracle::pack(&row.iter().map(|&code| code as i32).collect::<Vec<_>>(), 4)
                .into_iter()
                .map(u32::from)
                .collect(),
            _ => row.to_vec(),
        })
        .collect();

    let mut scale = vec![9.0; grid.groups()];
    let mut found = vec![F::code(1); packed.len()];
    let choose = Scales::Choose(rule, &mut scale);
    quantize_float_packed::<E, F>(&x, grid, choose, &mut found).expect("in range");
    assert_eq!(scale, scales, "{context}");
    assert!(found.iter().map(|&code| code.into()).eq(packed.iter().copied()), "{context}");

    let mut again = vec![F::code(1); packed.len()];
    let given = Scales::Given(&scale);
    quantize_float_packed::<E, F>(&x, grid, given, &mut again).expect("finite");
    assert!(again.iter().map(|&code| code.into()).eq(packed.iter().copied()), "{context}");

    let mut x_hat = vec![E::narrow(9.0); x.len()];
    dequantize_float_packed::<F, E>(&found, grid, Some(&scale), &mut x_hat);
    let per_row = grid.groups_per_row();
    for (index, (&x_hat, &code)) in x_hat.iter().zip(&codes).enumerate() {
        let group = index / grid.cols * per_row + index % grid.cols / grid.group_size;
        let expected = E::widen(E::narrow(F::decode(code) * scales[group]));
        assert_eq!(E::widen(x_hat).to_bits(), expected.to_bits(), "{context}, {index}");
    }
}

#[test]
fn every_level_agrees_with_one_number_at_a_time() {
    let shapes = [
        (1, 1, 1),
        (3, 5, 2),
        (7, 101, 100),
        (5, 320, 32),
        (4, 272, 16),
        (3, 1100, 7),
        (2, 70_003, 70_003),
        (2, 100_000, 32),
    ];
    at_every_level(|context| {
        for (seed, (rows, cols, group_size)) in shapes.into_iter().enumerate() {
            let grid = Grid { rows, cols, group_size };
            let x = nasty(grid.len(), seed as u64);
            let mx = ScaleRule::PowerOfTwo;
            check::<Float32, E2M1>(&x, grid, mx, context);
            check::<Float16, E2M1>(&x, grid, ScaleRule::Quotient(ScaleDtype::Float32), context);
            check::<BFloat16, E4M3>(&x, grid, mx, context);
            check::<Float32, E5M2>(&x, grid, ScaleRule::Quotient(ScaleDtype::BFloat16), context);
            check::<Float32, Float16>(&x, grid, ScaleRule::Quotient(ScaleDtype::Float32), context);
        }
    });
}

#[test]
fn conversions_at_every_level() {
    let x: Vec<f32> =
        (0..300_007_u32).map(|i| f32::from_bits(i.wrapping_mul(0x9e37_79b1))).collect();
    at_every_level(|context| {
        let mut codes = vec![9; x.len()];
        encode_float::<Float32, Float16>(&x, false, &mut codes).expect("keeps NaN");
        for (&x, &code) in x.iter().zip(&codes) {
            let expected = f16::from_f32(x).to_bits();
            assert!(code == expected || x.is_nan() && code & 0x7fff == 0x7e00, "{context}, {x}");
        }
        let mut back = vec![9.0; x.len()];
        decode_float::<Float16, Float32>(&codes, &mut back);
        for (&code, &back) in codes.iter().zip(&back) {
            let expected = f16::from_bits(code).to_f32();
            assert!(back.to_bits() == expected.to_bits() || back.is_nan(), "{context}, {code}");
        }
        let mut codes = vec![9; x.len()];
        let found = encode_float::<Float32, E2M1>(&x, true, &mut codes);
        assert_eq!(found, Err(Fault::Nan), "{context}");
    });
}

#[test]
fn nan_is_a_fault_where_there_is_none_and_infinities_are_not() {
    let (mut x, mut codes) = (vec![1.0; 5000], vec![0; 5000]);
    x[4999] = f32::NEG_INFINITY;
    assert_eq!(encode_float::<Float32, E2M1>(&x, false, &mut codes), Ok(()));
    assert_eq!((codes[0], codes[4999]), (2, 15));
    x[17] = f32::NAN;
    assert_eq!(encode_float::<Float32, E2M1>(&x, false, &mut codes), Err(Fault::Nan));
    let grid = Grid { rows: 5, cols: 1000, group_size: 32 };
    let found = quantize_float_packed::<Float32, E4M3>(&x, grid, Scales::Absent, &mut codes);
    assert_eq!(found, Err(Fault::NonFinite));
}

#[test]
fn nested_scales_worked_out_by_hand() {
    // top = 12 / (6 * 448); of 12, 6 and 1: 448, 224, 37.33 -> 36. What comes out as 0 becomes 1.
    let (lo, hi) = ([0.0, -6.0, 0.0, 0.0], [12.0, 1.0, 1.0, 1e-9]);
    let mut codes = [0; 4];
    let top = choose_scale_float_nested::<E2M1, E4M3>(&lo, &hi, &mut codes);
    assert_eq!((top, codes), (Ok(12.0 / 2688.0), [0x7e, 0x76, 0x61, 0x38]));
}
