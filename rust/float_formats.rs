//! The number formats, and the one copy of the way into them and back.
//!
//! Rules 9 and 10 of the numeric contract, which begins in `numeric`:
//!
//! 9. Conversions between float formats keep NaN, as the canonical quiet one with the sign of the
//!    input, and infinities where the format has them. What is too large becomes infinity (e4m3: NaN),
//!    or with `saturate` the largest number, which in e4m3 infinities become too. e2m1 always
//!    saturates, and NaN is a fault there. Encode with a scale divides, clamps to the largest number
//!    and rounds; `scale = absmax / largest`.
//! 10. MX scales are `2^(floor(log2 absmax) - max_exponent)`, at least 2^-127. With scales that are
//!     floats themselves (NVFP4), `top = absmax of all / (largest * largest of the scales)`, and the
//!     scale of a group is the float nearest to `absmax / largest / top`, times `top`.
//!
//! The bodies have no branches, so that loops over them become vectors. Nothing here knows arrays.

use crate::numeric::{BFloat16, Chosen, Element, Float16, Float32};
use crate::pack::{pack_row, unpack_row};
use crate::x86::Streamable;

/// Bits of a float32 without its sign.
const MAGNITUDE: u32 = 0x7fff_ffff;
/// The magnitude of an infinity; NaN have larger ones.
const INFINITY: u32 = 0x7f80_0000;
/// The canonical quiet NaN.
const NAN: u32 = 0x7fc0_0000;

/// A format of sign, exponent and mantissa, and its codes: the bits of a number, lowest in a `u32`.
/// Special codes are given without the sign.
pub trait Format: Copy + Send + Sync + 'static {
    /// How a code lies in memory.
    type Code: Streamable + Into<u32> + Send + Sync;
    /// Bits of the exponent.
    const EXPONENT_BITS: u32;
    /// Bits of the mantissa.
    const MANTISSA_BITS: u32;
    /// The largest number. The next code, if there is one, is infinity, or the only NaN.
    const MAX_CODE: u32;
    /// Infinity.
    const INFINITY_CODE: Option<u32>;
    /// The canonical quiet NaN.
    const NAN_CODE: Option<u32>;

    /// Bits of a code.
    const BITS: u32 = 1 + Self::EXPONENT_BITS + Self::MANTISSA_BITS;
    /// The code of -0.0.
    const SIGN_CODE: u32 = 1 << (Self::BITS - 1);
    /// What the exponent field is ahead of the exponent.
    const BIAS: u32 = (1 << (Self::EXPONENT_BITS - 1)) - 1;
    /// The exponent of the largest number.
    const MAX_EXPONENT: u32 = (Self::MAX_CODE >> Self::MANTISSA_BITS) - Self::BIAS;
    /// The largest number.
    const LARGEST: f32 = f32::from_bits((Self::MAX_CODE << Self::SHIFT) + Self::REBIAS);
    /// Bits that the mantissa of a float32 has more.
    const SHIFT: u32 = 23 - Self::MANTISSA_BITS;
    /// What turns an exponent field, moved to its place in a float32, into that of the float32.
    const REBIAS: u32 = (127 - Self::BIAS) << 23;
    /// Whether the exponents are those of float32, so that subnormals need no care.
    const WIDE: bool = Self::EXPONENT_BITS == 8;

    /// A code from its bits.
    fn code(bits: u32) -> Self::Code;

    /// Elements that `cols` codes take when packed.
    #[inline(always)]
    #[must_use]
    fn packed_len(cols: usize) -> usize {
        cols
    }

    /// Packs codes of a row; those of eight bits and more are packed as they are.
    #[inline(always)]
    fn pack(codes: &[Self::Code], packed: &mut [Self::Code]) {
        packed.copy_from_slice(codes);
    }

    /// The inverse of [`Format::pack`].
    #[inline(always)]
    fn unpack(packed: &[Self::Code], codes: &mut [Self::Code]) {
        codes.copy_from_slice(packed);
    }

    /// The nearest number, ties to even, as the bits of its code. NaN becomes 0 where there is none.
    #[inline(always)]
    #[must_use]
    fn encode(x: f32, saturate: bool) -> u32 {
        let magnitude = x.to_bits() & MAGNITUDE;
        if Self::WIDE && !saturate {
            // The numbers go as far as those of float32: what rounds up becomes infinity by itself.
            let number = round::<Self>(x.to_bits());
            let nan = Self::NAN_CODE.unwrap_or(0) | sign_code::<Self>(x);
            return if magnitude > INFINITY { nan } else { number };
        }
        let largest = if saturate || Self::NAN_CODE.is_none() {
            Self::MAX_CODE
        } else {
            // Infinity, or else NaN.
            Self::MAX_CODE + 1
        };
        let infinite = Self::INFINITY_CODE.unwrap_or(largest);
        let limit = if magnitude == INFINITY { infinite } else { largest };
        let number = round::<Self>(magnitude).min(limit);
        let code = if magnitude > INFINITY { Self::NAN_CODE.unwrap_or(0) } else { number };
        code | sign_code::<Self>(x)
    }

    /// The code of `x / scale`, where what is too large becomes the largest number.
    #[inline(always)]
    #[must_use]
    fn encode_scaled(x: f32, scale: f32) -> u32 {
        let quotient = x / scale;
        // The magnitudes of floats are ordered as their bits are.
        let magnitude = (quotient.to_bits() & MAGNITUDE).min(Self::LARGEST.to_bits());
        round::<Self>(magnitude) | sign_code::<Self>(quotient)
    }

    /// The number of a code, exact; NaN keep their payload where they have one.
    #[inline(always)]
    #[must_use]
    fn widen(code: u32) -> f32 {
        number::<Self>(code, |magnitude| magnitude + 2 * Self::REBIAS)
    }

    /// The number of a code, exact; NaN are the canonical ones.
    #[inline(always)]
    #[must_use]
    fn decode(code: u32) -> f32 {
        let infinity = INFINITY - 2 * Self::REBIAS;
        number::<Self>(code, |magnitude| if magnitude == infinity { INFINITY } else { NAN })
    }
}

/// The number of a code, with what `special` makes of the magnitude of infinities and NaN.
#[inline(always)]
fn number<F: Format>(code: u32, special: impl Fn(u32) -> u32) -> f32 {
    let magnitude = (code & (F::SIGN_CODE - 1)) << F::SHIFT;
    let normal = magnitude + F::REBIAS;
    let finite = if F::WIDE {
        normal
    } else {
        // The exponent makes a subnormal significand the fraction of a normal number.
        let least_normal = F::REBIAS + (1 << 23);
        let subnormal = f32::from_bits(magnitude + least_normal) - f32::from_bits(least_normal);
        if magnitude < 1 << 23 { subnormal.to_bits() } else { normal }
    };
    let special = if F::INFINITY_CODE.is_some() { special(magnitude) } else { NAN };
    let bits = if magnitude <= F::MAX_CODE << F::SHIFT { finite } else { special };
    f32::from_bits(bits | (code & F::SIGN_CODE) << (32 - F::BITS))
}

/// The sign of `x`, at its place in a code.
#[inline(always)]
fn sign_code<F: Format>(x: f32) -> u32 {
    x.to_bits() >> (32 - F::BITS) & F::SIGN_CODE
}

/// The magnitude of a float32 rounded to a format, without regard for the largest number.
#[inline(always)]
fn round<F: Format>(magnitude: u32) -> u32 {
    if F::SHIFT == 0 {
        return magnitude;
    }
    let odd = magnitude >> F::SHIFT & 1;
    let below_half = (1 << F::SHIFT >> 1) - 1;
    let normal = magnitude.wrapping_sub(F::REBIAS).wrapping_add(below_half + odd) >> F::SHIFT;
    if F::WIDE {
        return normal;
    }
    // One unit in the last place of this number is the smallest subnormal, so the addition rounds.
    let rounder = F::REBIAS + ((24 - F::MANTISSA_BITS) << 23);
    let subnormal = (f32::from_bits(magnitude) + f32::from_bits(rounder)).to_bits();
    let is_normal = magnitude >= F::REBIAS + (1 << 23);
    if is_normal { normal } else { subnormal.wrapping_sub(rounder) }
}

/// e5m2 of the OCP 8-bit floating point specification: the upper half of a float16.
#[derive(Clone, Copy, Debug)]
pub struct E5M2;
/// e4m3 of the same: no infinities, and one NaN of each sign.
#[derive(Clone, Copy, Debug)]
pub struct E4M3;
/// e2m1 of the OCP Microscaling specification: 0, 0.5, 1, 1.5, 2, 3, 4, 6 and their negatives.
#[derive(Clone, Copy, Debug)]
pub struct E2M1;

/// The table: exponent and mantissa bits, largest number, infinity, NaN.
macro_rules! formats {
    ($($format:ident: $code:ty, $e:literal, $m:literal, $max:literal, $infinity:expr, $nan:expr;)*) => {
        $(impl Format for $format {
            type Code = $code;
            const EXPONENT_BITS: u32 = $e;
            const MANTISSA_BITS: u32 = $m;
            const MAX_CODE: u32 = $max;
            const INFINITY_CODE: Option<u32> = $infinity;
            const NAN_CODE: Option<u32> = $nan;

            #[inline(always)]
            fn code(bits: u32) -> $code {
                bits as $code
            }
        })*
    };
}
formats! {
    Float32: u32, 8, 23, 0x7f7f_ffff, Some(0x7f80_0000), Some(0x7fc0_0000);
    Float16: u16, 5, 10, 0x7bff, Some(0x7c00), Some(0x7e00);
    BFloat16: u16, 8, 7, 0x7f7f, Some(0x7f80), Some(0x7fc0);
    E5M2: u8, 5, 2, 0x7b, Some(0x7c), Some(0x7e);
    E4M3: u8, 4, 3, 0x7e, None, Some(0x7f);
}

impl Format for E2M1 {
    type Code = u8;
    const EXPONENT_BITS: u32 = 2;
    const MANTISSA_BITS: u32 = 1;
    const MAX_CODE: u32 = 7;
    const INFINITY_CODE: Option<u32> = None;
    const NAN_CODE: Option<u32> = None;

    #[inline(always)]
    fn code(bits: u32) -> u8 {
        bits as u8
    }

    #[inline(always)]
    fn packed_len(cols: usize) -> usize {
        crate::grid::packed_len(cols, Self::BITS)
    }

    #[inline(always)]
    fn pack(codes: &[u8], packed: &mut [u8]) {
        pack_row(codes, Self::BITS, packed);
    }

    #[inline(always)]
    fn unpack(packed: &[u8], codes: &mut [u8]) {
        unpack_row(packed, Self::BITS, codes);
    }
}

/// The scale `absmax / largest` of a group, rounded to `S`.
#[inline(always)]
#[must_use]
pub fn choose_scale<S: Element>(absmax: f32, largest: f32) -> Chosen {
    let stored = S::widen(S::narrow(absmax / largest));
    let scale = if stored == 0.0 { 1.0 } else { stored };
    Chosen {
        scale,
        zero_point: 0,
        scale_overflow: !scale.is_finite(),
        decode_overflow: !(largest * scale).is_finite(),
    }
}

/// The scale of a group in an MX format.
#[inline(always)]
#[must_use]
pub fn choose_power_of_two<F: Format>(absmax: f32) -> f32 {
    let field = (absmax.to_bits() >> 23).saturating_sub(F::MAX_EXPONENT);
    // 2^-127 is subnormal.
    let scale = f32::from_bits(if field > 0 { field << 23 } else { 1 << 22 });
    if absmax == 0.0 { 1.0 } else { scale }
}

/// The scale of scales that are numbers of the format `S`; `absmax` is that of all groups.
#[must_use]
pub fn choose_top<F: Format, S: Format>(absmax: f32) -> f32 {
    // The product is exact in float64.
    let top = absmax / (f64::from(F::LARGEST) * f64::from(S::LARGEST)) as f32;
    if top == 0.0 { 1.0 } else { top }
}

/// The code of the scale of a group that goes with `top`, and whether it decodes to an infinity.
#[inline(always)]
#[must_use]
pub fn choose_nested<F: Format, S: Format>(absmax: f32, top: f32) -> (u32, bool) {
    let nearest = S::encode(absmax / F::LARGEST / top, true);
    let one = S::BIAS << S::MANTISSA_BITS;
    let code = if nearest == 0 { one } else { nearest };
    (code, !(F::LARGEST * (S::decode(code) * top)).is_finite())
}
