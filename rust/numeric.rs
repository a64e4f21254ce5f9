//! The numeric contract, rule by rule as in the reference backend (which also takes float64).
//!
//! 1. Arithmetic is float32. float16 and bfloat16 inputs widen exactly.
//! 2. Rounding is to nearest, ties to even. Encode is `q = clip(rne(x / scale) + zero_point, qmin,
//!    qmax)`: a true division, not a multiplication by the reciprocal; the clamp is done in float, to
//!    `[qmin - zero_point, qmax - zero_point]`, before rounding and before the conversion to integer.
//!    Any implementation that gives the same bits as the division will do. Decode is
//!    `x_hat = (q - zero_point) * scale`.
//! 3. Symmetric: `scale = max(hi / qmax, lo / qmin)`, `zero_point = 0`; where `qmin = -qmax`, that is
//!    `absmax / qmax`. Asymmetric: the range is widened to hold 0, `scale = (hi - lo) / (qmax - qmin)`,
//!    `zero_point = clip(rne(qmin - lo / scale), qmin, qmax)`; where `hi - lo` overflows,
//!    `hi / n - lo / n`. In every mode, a range whose extreme codes would decode to infinity is an
//!    error that names the group.
//! 4. A group whose scale comes out as zero (all zeros, or so small that the quotient underflows) gets
//!    scale 1 and decodes to exact zeros. Subnormals are kept.
//! 5. NaN and infinities are an error, found in the pass that reads everything anyway.
//! 6. Float32 sums have a fixed order of lanes, that of `sums`.
//! 7. Scales are rounded to their stored dtype first; zero points and codes are computed with the
//!    rounded ones. A scale that overflows its dtype is an error.
//! 8. Codebooks: `v = x * (1 / max(|scale|, 1e-38))`, with the sign of the scale, or 0 where that is 0;
//!    the code counts the thresholds that v reaches. `scale = max(hi / highest, lo / lowest level)`;
//!    one that comes out as zero stays zero.
//!
//! This file is the one copy of each of these formulas, and `float_formats` of those of rules 9 and 10.
//! They know nothing of arrays.

use std::ops::{BitOr, BitXor};

use crate::f16c;
use crate::float_formats::Format;
use crate::x86::Streamable;

/// Numbers of up to 32 bits: what tables hold, and arrays.
pub trait Entry: Copy + Default {
    /// The number with these bits; those beyond its size are dropped.
    fn of_bits(bits: u32) -> Self;
    /// Its bits.
    fn bits(self) -> u32;
}

macro_rules! entries {
    ($($t:ty),*) => {
        $(impl Entry for $t {
            #[inline(always)]
            fn of_bits(bits: u32) -> Self {
                bits as Self
            }

            #[inline(always)]
            fn bits(self) -> u32 {
                self.into()
            }
        })*
    };
}
entries!(u8, u16);

impl Entry for f32 {
    #[inline(always)]
    fn of_bits(bits: u32) -> Self {
        Self::from_bits(bits)
    }

    #[inline(always)]
    fn bits(self) -> u32 {
        self.to_bits()
    }
}

/// A floating-point format that arrays come in.
pub trait Element: Copy + Send + Sync + 'static {
    /// How a number of this format lies in memory.
    type Repr: Streamable + Entry + Send + Sync;
    /// Its bits, as an integer.
    type Bits: Copy + Default + Ord + BitOr<Output = Self::Bits> + BitXor<Output = Self::Bits>;
    /// The sign bit: the pattern of -0.0.
    const SIGN: Self::Bits;

    /// A number whose sign bit tells NaN and infinities from finite numbers; an OR of many tells
    /// whether any was one. Adding one to an exponent of all ones carries into that bit.
    fn nonfinite_bit(x: Self::Repr) -> Self::Bits;
    /// The bits of `x`.
    fn to_bits(x: Self::Repr) -> Self::Bits;
    /// The number with these bits.
    fn from_bits(bits: Self::Bits) -> Self::Repr;
    /// `x` as a float32; exact.
    fn widen(x: Self::Repr) -> f32;
    /// The nearest number of this format, ties to even; NaN becomes the canonical quiet NaN.
    fn narrow(x: f32) -> Self::Repr;

    /// Whether the next two functions may be faster than one number at a time.
    const IN_BULK: bool = false;

    /// Widens all of `x`; NaN may have other payloads.
    #[inline(always)]
    fn widen_all(x: &[Self::Repr], wide: &mut [f32]) {
        x.iter().zip(wide).for_each(|(x, wide)| *wide = Self::widen(*x));
    }

    /// All of `x` as float32, in `room` unless that is what they are.
    #[inline(always)]
    fn widened<'a>(x: &'a [Self::Repr], room: &'a mut [f32]) -> &'a [f32] {
        Self::widen_all(x, room);
        room
    }

    /// Narrows all of `x`.
    #[inline(always)]
    fn narrow_all(x: &[f32], narrow: &mut [Self::Repr]) {
        x.iter().zip(narrow).for_each(|(x, narrow)| *narrow = Self::narrow(*x));
    }
}

/// IEEE binary32.
#[derive(Clone, Copy, Debug)]
pub struct Float32;
/// IEEE binary16, as its bits.
#[derive(Clone, Copy, Debug)]
pub struct Float16;
/// The upper half of a binary32, as its bits.
#[derive(Clone, Copy, Debug)]
pub struct BFloat16;

impl Element for Float32 {
    type Repr = f32;
    type Bits = u32;
    const SIGN: u32 = 0x8000_0000;

    #[inline(always)]
    fn nonfinite_bit(x: f32) -> u32 {
        (x.to_bits() & 0x7fff_ffff) + 0x0080_0000
    }

    #[inline(always)]
    fn to_bits(x: f32) -> u32 {
        x.to_bits()
    }

    #[inline(always)]
    fn from_bits(bits: u32) -> f32 {
        f32::from_bits(bits)
    }

    #[inline(always)]
    fn widen(x: f32) -> f32 {
        x
    }

    #[inline(always)]
    fn narrow(x: f32) -> f32 {
        x
    }

    #[inline(always)]
    fn widened<'a>(x: &'a [f32], _room: &'a mut [f32]) -> &'a [f32] {
        x
    }
}

/// The formats of 16 bits differ in the lowest bit of their exponents alone.
macro_rules! sixteen_bits {
    ($format:ident { $($in_bulk:item)* }) => {
        impl Element for $format {
            type Repr = u16;
            type Bits = u16;
            const SIGN: u16 = Self::SIGN_CODE as u16;

            #[inline(always)]
            fn nonfinite_bit(x: u16) -> u16 {
                (x & !Self::SIGN) + (1 << Self::MANTISSA_BITS)
            }

            #[inline(always)]
            fn to_bits(x: u16) -> u16 {
                x
            }

            #[inline(always)]
            fn from_bits(bits: u16) -> u16 {
                bits
            }

            #[inline(always)]
            fn widen(x: u16) -> f32 {
                <Self as Format>::widen(u32::from(x))
            }

            #[inline(always)]
            fn narrow(x: f32) -> u16 {
                Self::encode(x, false) as u16
            }

            $($in_bulk)*
        }
    };
}
sixteen_bits! { BFloat16 {} }
sixteen_bits! { Float16 {
    const IN_BULK: bool = true;

    #[inline(always)]
    fn widen_all(x: &[u16], wide: &mut [f32]) {
        f16c::widen(x, wide);
    }

    #[inline(always)]
    fn narrow_all(x: &[f32], narrow: &mut [u16]) {
        f16c::narrow(x, narrow);
    }
} }

/// 1.5 * 2^23. A float of this size has no fraction bits left, so adding it rounds to the nearest
/// integer, ties to even, and leaves that integer in the low bits. No instruction set lacks an
/// addition, whereas a rounding instruction is missing from SSE2.
const ROUNDER: f32 = 12_582_912.0;

/// `v` rounded to the nearest integer, ties to even; for `|v| < 2^22`. Never -0.0.
#[inline(always)]
#[must_use]
pub fn round(v: f32) -> f32 {
    (v + ROUNDER) - ROUNDER
}

/// As [`round`], but an integer.
#[inline(always)]
#[must_use]
pub fn round_to_int(v: f32) -> i32 {
    (v + ROUNDER).to_bits().wrapping_sub(ROUNDER.to_bits()) as i32
}

/// `v` within `[low, high]`. Comparisons and not `f32::clamp`: one instruction each.
#[inline(always)]
#[must_use]
pub fn clamp(v: f32, low: f32, high: f32) -> f32 {
    let v = if v < low { low } else { v };
    if v > high { high } else { v }
}

/// The larger of two numbers, neither of them NaN.
#[inline(always)]
#[must_use]
pub fn larger(a: f32, b: f32) -> f32 {
    if a > b { a } else { b }
}

/// What is negative becomes 0, in place.
#[inline(always)]
pub(crate) fn rectify(y: &mut [f32]) {
    for y in y {
        *y = if *y > 0.0 { *y } else { 0.0 };
    }
}

/// Which integers a value may become, and by which rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Codes {
    /// The smallest code, from -128 to 0.
    pub qmin: i32,
    /// The largest code, from 1 to 255.
    pub qmax: i32,
    /// Whether the zero point is 0 and the scale covers the larger side.
    pub symmetric: bool,
}

/// One group's scale and zero point, and what is wrong with them.
#[derive(Clone, Copy, Debug)]
pub struct Chosen {
    /// The step between two codes; already rounded to its stored dtype.
    pub scale: f32,
    /// The code of 0.0.
    pub zero_point: i32,
    /// The scale does not fit its dtype.
    pub scale_overflow: bool,
    /// An extreme code decodes to an infinity.
    pub decode_overflow: bool,
}

/// The scale and zero point of a group whose values lie in `[lo, hi]`, where `lo <= 0 <= hi`, with
/// the scale rounded to `S`. Faults are returned as flags, so that a loop over groups vectorizes.
#[inline(always)]
#[must_use]
pub fn choose_params<S: Element>(lo: f32, hi: f32, codes: Codes) -> Chosen {
    let (qmin, qmax) = (codes.qmin as f32, codes.qmax as f32);
    let exact = if codes.symmetric {
        larger(hi / qmax, lo / qmin)
    } else {
        let (width, n) = (hi - lo, qmax - qmin);
        if width.is_finite() { width / n } else { hi / n - lo / n }
    };
    let stored = S::widen(S::narrow(exact));
    let scale = if stored == 0.0 { 1.0 } else { stored };
    let zero_point =
        if codes.symmetric { 0 } else { round_to_int(clamp(qmin - lo / scale, qmin, qmax)) };
    let (low, high) = code_offsets(zero_point, codes);
    Chosen {
        scale,
        zero_point,
        scale_overflow: !scale.is_finite(),
        decode_overflow: !(low * scale).is_finite() | !(high * scale).is_finite(),
    }
}

/// The code of `x`, as a byte; `low` and `high` are the [`code_offsets`].
#[inline(always)]
#[must_use]
pub fn encode(x: f32, scale: f32, zero_point: i32, low: f32, high: f32) -> u8 {
    round_to_int(clamp(x / scale, low, high)).wrapping_add(zero_point) as u8
}

/// The value of the code of `x`.
#[inline(always)]
#[must_use]
pub fn encode_decode(x: f32, scale: f32, low: f32, high: f32) -> f32 {
    round(clamp(x / scale, low, high)) * scale
}

/// The value of a code of which the zero point has been subtracted.
#[inline(always)]
#[must_use]
pub fn decode(q: i32, scale: f32) -> f32 {
    q as f32 * scale
}

/// `qmin - zero_point` and `qmax - zero_point`: what `x / scale` is clamped to.
#[inline(always)]
#[must_use]
pub fn code_offsets(zero_point: i32, codes: Codes) -> (f32, f32) {
    ((codes.qmin - zero_point) as f32, (codes.qmax - zero_point) as f32)
}

/// The scale that reaches `[lo, hi]` with levels from `low` to `high`, rounded to `S`.
#[inline(always)]
#[must_use]
pub fn choose_reach<S: Element>(lo: f32, hi: f32, low: f32, high: f32) -> Chosen {
    let up = if high > 0.0 { hi / high } else { 0.0 };
    let down = if low < 0.0 { lo / low } else { 0.0 };
    // Never -0.0.
    let scale = S::widen(S::narrow(larger(up, down) + 0.0));
    Chosen {
        scale,
        zero_point: 0,
        scale_overflow: scale.is_infinite(),
        decode_overflow: (scale * larger(high, -low)).is_infinite(),
    }
}

/// Of reciprocals: nothing is divided by less.
const SMALLEST_DIVISOR: f32 = 1e-38;

/// 1 / scale, and no more than 1 / [`SMALLEST_DIVISOR`]; 0 for 0.
#[inline(always)]
#[must_use]
pub fn reciprocal(scale: f32) -> f32 {
    let sign = f32::from(i8::from(scale > 0.0) - i8::from(scale < 0.0));
    sign / larger(scale.abs(), SMALLEST_DIVISOR)
}
