//! The kernels against the oracle.

use half::{bf16, f16};
use proptest::prelude::*;

use super::{at_every_level, nasty, oracle};
use crate::affine::{
    dequantize_affine_packed, fake_quantize_affine, quantize_affine, quantize_affine_packed,
};
use crate::gradients::clip_gradient_affine;
use crate::grid::{Grid, packed_len};
use crate::numeric::{BFloat16, Codes, Element, Entry, Float16, Float32};
use crate::pack::{pack_bits, unpack_bits};
use crate::qparams::{Given, Params, ScaleDtype, choose_qparams_affine};
use crate::range::group_range;

type Rounding = fn(f32) -> f32;

const SCALES: [(ScaleDtype, Rounding); 3] = [
    (ScaleDtype::Float32, |scale| scale),
    (ScaleDtype::Float16, |scale| f16::from_f32(scale).to_f32()),
    (ScaleDtype::BFloat16, |scale| bf16::from_f32(scale).to_f32()),
];

/// Rows, columns, group size: primes, one element, rows that end within a byte, groups that do not
/// divide, groups larger than a row, rows larger than a block, and groups larger than that.
const SHAPES: [(usize, usize, usize); 12] = [
    (1, 1, 1),
    (3, 5, 2),
    (2, 33, 32),
    (7, 101, 100),
    (5, 257, 300),
    (4, 512, 128),
    (3, 1100, 64),
    (1, 5000, 7),
    (90, 1000, 1000),
    (2, 70_003, 70_003),
    (1, 140_007, 70_001),
    (2, 100_000, 128),
];

fn codes_of(bits: u32, kind: usize) -> Codes {
    let half = 1 << (bits - 1);
    match kind % 4 {
        0 => Codes { qmin: 1 - half, qmax: half - 1, symmetric: true },
        1 => Codes { qmin: -half, qmax: half - 1, symmetric: true },
        2 => Codes { qmin: 0, qmax: 2 * half - 1, symmetric: false },
        _ => Codes { qmin: -half, qmax: half - 1, symmetric: false },
    }
}

/// What the oracle makes of one array.
struct Expected {
    lo: Vec<f32>,
    hi: Vec<f32>,
    scale: Vec<f32>,
    zero_point: Vec<i32>,
    q: Vec<u8>,
    packed: Vec<u8>,
    x_hat: Vec<f32>,
}

fn expect(x: &[f32], grid: Grid, bits: u32, codes: Codes, round: Rounding) -> Expected {
    let empty = Vec::new;
    let (scale, zero_point, x_hat) = (Vec::new(), Vec::new(), Vec::new());
    let (lo, hi) = (Vec::new(), Vec::new());
    let mut all = Expected { lo, hi, scale, zero_point, q: empty(), packed: empty(), x_hat };
    for row in x.chunks_exact(grid.cols) {
        let mut q = Vec::new();
        for group in oracle::groups(grid.cols, grid.group_size) {
            let range = oracle::range(&row[group.clone()]);
            let params = oracle::choose(range, codes, round);
            q.extend(row[group.clone()].iter().map(|&x| oracle::encode(x, params, codes)));
            all.x_hat.extend(q[group].iter().map(|&q| oracle::decode(q, params)));
            all.lo.push(range.0);
            all.hi.push(range.1);
            all.scale.push(params.0);
            all.zero_point.push(params.1);
        }
        all.q.extend(q.iter().map(|&q| q as u8));
        all.packed.extend(oracle::pack(&q, bits));
    }
    all
}

fn bits_of(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

/// Runs everything on `x`, which holds numbers of the format `E`.
fn check<E: Element>(x: &[E::Repr], grid: Grid, bits: u32, kind: usize, context: &str)
where
    E::Repr: PartialEq + std::fmt::Debug,
{
    let context = format!("{context}, {grid:?}, {bits} bits, kind {kind}");
    let codes = codes_of(bits, kind);
    let (scale_dtype, round) = SCALES[kind % 3];
    let wide: Vec<f32> = x.iter().map(|&x| E::widen(x)).collect();
    let expected = expect(&wide, grid, bits, codes, round);
    let expected_x_hat: Vec<_> = expected.x_hat.iter().map(|&x_hat| E::narrow(x_hat)).collect();
    let groups = grid.groups();

    let (mut lo, mut hi) = (vec![9.0; groups], vec![9.0; groups]);
    group_range::<E>(x, grid, &mut lo, &mut hi).expect("finite");
    assert_eq!((bits_of(&lo), bits_of(&hi)), (bits_of(&expected.lo), bits_of(&expected.hi)));

    let (mut scale, mut zero_point) = (vec![9.0; groups], vec![9; groups]);
    let place = (!codes.symmetric).then_some(&mut *zero_point);
    choose_qparams_affine(&lo, &hi, codes, scale_dtype, &mut scale, place).expect("in range");
    assert_eq!(bits_of(&scale), bits_of(&expected.scale), "{context}");
    let zero_point = (!codes.symmetric).then_some(zero_point);
    assert!(zero_point.as_ref().is_none_or(|z| *z == expected.zero_point), "{context}");

    let mut packed = vec![0xaa; expected.packed.len()];
    let (mut scale, mut place) = (vec![9.0; groups], vec![9; groups]);
    let place = (!codes.symmetric).then_some(&mut *place);
    let choose = Params::Choose { scale_dtype, scale: &mut scale, zero_point: place };
    quantize_affine_packed::<E>(x, grid, bits, codes, choose, &mut packed).expect("in range");
    assert_eq!(packed, expected.packed, "{context}");
    assert_eq!(bits_of(&scale), bits_of(&expected.scale), "{context}");

    let given = Given { scale: &scale, zero_point: zero_point.as_deref() };
    let mut q = vec![0xaa; x.len()];
    quantize_affine::<E>(x, grid, codes, given, &mut q).expect("finite");
    assert_eq!(q, expected.q, "{context}");

    let mut x_hat = vec![E::narrow(9.0); x.len()];
    let signed = codes.qmin < 0;
    dequantize_affine_packed::<E>(&packed, grid, bits, signed, given, &mut x_hat);
    assert_eq!(x_hat, expected_x_hat, "{context}");
    for params in [
        Params::Given(given),
        choose_again(scale_dtype, &mut vec![0.0; groups], codes, &mut vec![0; groups]),
    ] {
        let mut x_hat = vec![E::narrow(9.0); x.len()];
        fake_quantize_affine::<E>(x, grid, codes, params, &mut x_hat).expect("in range");
        assert_eq!(x_hat, expected_x_hat, "{context}");
    }

    let dy: Vec<_> = x.iter().rev().copied().collect();
    let mut clipped = vec![E::narrow(9.0); x.len()];
    let narrow: Vec<f32> = scale.iter().map(|scale| scale * 0.7).collect();
    let given = Given { scale: &narrow, zero_point: zero_point.as_deref() };
    clip_gradient_affine::<E>(&dy, x, grid, codes, given, &mut clipped);
    for (at, (&x, &dy)) in x.iter().zip(&dy).enumerate() {
        let group = at / grid.cols * (groups / grid.rows) + at % grid.cols / grid.group_size;
        let z = zero_point.as_ref().map_or(0, |z| z[group]);
        let code = f64::from((E::widen(x) / narrow[group]).round_ties_even()) + f64::from(z);
        let inside = f64::from(codes.qmin) <= code && code <= f64::from(codes.qmax);
        let expected = if inside { dy } else { E::narrow(0.0) };
        assert_eq!(clipped[at].bits(), expected.bits(), "{context}");
    }

    let mut repacked = vec![0xaa; packed.len()];
    pack_bits(&q, grid.cols, bits, &mut repacked);
    assert_eq!(repacked, packed, "{context}");
    let mut unpacked = vec![0xaa; q.len()];
    unpack_bits(&packed, grid.cols, bits, signed, &mut unpacked);
    assert_eq!(unpacked, q, "{context}");
}

fn choose_again<'a>(
    scale_dtype: ScaleDtype,
    scale: &'a mut [f32],
    codes: Codes,
    zero_point: &'a mut [i32],
) -> Params<'a> {
    Params::Choose { scale_dtype, scale, zero_point: (!codes.symmetric).then_some(zero_point) }
}

fn check_formats(values: &[f32], grid: Grid, bits: u32, kind: usize, context: &str) {
    check::<Float32>(values, grid, bits, kind, context);
    let narrow: Vec<_> = values.iter().map(|&x| Float16::narrow(x)).collect();
    check::<Float16>(&narrow, grid, bits, kind, context);
    let narrow: Vec<_> = values.iter().map(|&x| BFloat16::narrow(x)).collect();
    check::<BFloat16>(&narrow, grid, bits, kind, context);
}

#[test]
fn every_level_agrees_with_the_oracle() {
    at_every_level(|context| {
        for (i, (rows, cols, group_size)) in SHAPES.into_iter().enumerate() {
            let grid = Grid { rows, cols, group_size };
            let all_bits = if grid.len() > 10_000 { 3 + i as u32 % 3..=8 } else { 2..=8 };
            for bits in all_bits.step_by(if grid.len() > 10_000 { 4 } else { 1 }) {
                let values = nasty(grid.len(), u64::from(bits) + i as u64);
                check_formats(&values, grid, bits, bits as usize + i, context);
            }
        }
    });
}

#[test]
fn outputs_that_are_streamed_are_the_same() {
    let grid = Grid { rows: 1030, cols: 2500, group_size: 125 };
    at_every_level(|context| {
        let values = nasty(grid.len(), 3);
        check::<Float32>(&values, grid, 8, 0, context);
    });
}

#[test]
fn arrays_without_elements_are_fine() {
    for (rows, cols) in [(0, 5), (4, 0), (0, 0)] {
        let grid = Grid { rows, cols, group_size: 2 };
        let groups = grid.groups();
        let (mut scale, mut lo, mut hi) = (vec![0.0; groups], vec![0.0; groups], vec![0.0; groups]);
        group_range::<Float32>(&[], grid, &mut lo, &mut hi).expect("nothing is wrong");
        let params = Params::Choose {
            scale_dtype: ScaleDtype::Float32,
            scale: &mut scale,
            zero_point: None,
        };
        quantize_affine_packed::<Float32>(&[], grid, 3, codes_of(3, 0), params, &mut [])
            .expect("nothing is wrong");
        let given = Given { scale: &scale, zero_point: None };
        dequantize_affine_packed::<Float32>(&[], grid, 3, true, given, &mut []);
        pack_bits(&[], cols, 3, &mut []);
        unpack_bits(&[], cols, 3, true, &mut []);
    }
}

proptest! {
    // A case that fails is printed; nothing is written beside the sources.
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_shape_agrees_with_the_oracle(
        rows in 1_usize..5, cols in 1_usize..700, group_size in 1_usize..300,
        bits in 2_u32..9, kind in 0_usize..12, seed in 0_u64..1000,
    ) {
        let grid = Grid { rows, cols, group_size };
        check_formats(&nasty(grid.len(), seed), grid, bits, kind, "highest level");
    }

    #[test]
    fn packing_takes_any_bytes(codes in proptest::collection::vec(any::<u8>(), 1..300), bits in 2_u32..9) {
        let mut packed = vec![0xaa; packed_len(codes.len(), bits)];
        pack_bits(&codes, codes.len(), bits, &mut packed);
        let wide: Vec<_> = codes.iter().map(|&code| i32::from(code)).collect();
        prop_assert_eq!(packed, oracle::pack(&wide, bits));
    }
}
