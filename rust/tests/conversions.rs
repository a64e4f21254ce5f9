//! The two small formats against the crate `half`.

use half::{bf16, f16};

use crate::numeric::{BFloat16, Element, Float16, round, round_to_int};

/// Float32 patterns around everything that could be a rounding boundary, and a spread of others.
fn samples() -> impl Iterator<Item = f32> {
    let ties = (0..=u32::from(u16::MAX)).flat_map(|upper| {
        let steps = [0, 1, 0x0fff, 0x1000, 0x1001, 0x2000, 0x7fff, 0x8000, 0x8001, 0xf000, 0xffff];
        steps.map(|lower| f32::from_bits(upper << 16 | lower))
    });
    ties.chain((0..1 << 20).map(|i: u32| f32::from_bits(i.wrapping_mul(0x9e37_79b1))))
}

#[test]
fn all_patterns_widen_exactly() {
    for bits in 0..=u16::MAX {
        let (wide, expected) = (Float16::widen(bits), f16::from_bits(bits).to_f32());
        assert_eq!(wide.is_nan(), expected.is_nan(), "{bits:#x}");
        assert!(expected.is_nan() || wide.to_bits() == expected.to_bits(), "{bits:#x}");
        assert_eq!(BFloat16::widen(bits).to_bits(), u32::from(bits) << 16);
    }
}

#[test]
fn narrowing_rounds_to_nearest_ties_to_even() {
    for x in samples().filter(|x| !x.is_nan()) {
        assert_eq!(Float16::narrow(x), f16::from_f32(x).to_bits(), "{:#x}", x.to_bits());
        assert_eq!(BFloat16::narrow(x), bf16::from_f32(x).to_bits(), "{:#x}", x.to_bits());
    }
}

#[test]
fn nan_becomes_the_canonical_one_with_its_sign() {
    for (bits, half, bfloat) in [(0x7f80_0001, 0x7e00, 0x7fc0), (0xffff_ffff, 0xfe00, 0xffc0)] {
        let nan = f32::from_bits(bits);
        assert_eq!((Float16::narrow(nan), BFloat16::narrow(nan)), (half, bfloat));
    }
}

#[test]
fn rounding_is_that_of_the_standard_library() {
    for i in -1_000_000..=1_000_000 {
        let v = i as f32 / 1024.0;
        assert_eq!(round(v), v.round_ties_even());
        assert_eq!(round_to_int(v), v.round_ties_even() as i32);
    }
}
