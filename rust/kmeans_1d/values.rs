//! The distinct values of a row, ascending, and their weights.
//!
//! Values are sorted as integers of the same order, by their digits, least significant first; those
//! of 16 bits, if there are many, are counted. Either way the weights of equal values add up in the
//! order of the input.

use crate::error::Fault;
use crate::numeric::{BFloat16, Element, Float16, Float32};
use crate::rows::for_each_job;
use std::sync::{Mutex, PoisonError};

/// A floating-point format that values come in.
pub trait Number: Copy + Send + Sync + 'static {
    /// How a number lies in memory.
    type Repr: Copy + Send + Sync;
    /// An integer that is ordered as the numbers are.
    type Key: Key;
    /// The format in which numbers are compared.
    type Wide: Copy + PartialOrd + Send + Sync;
    /// Bits of a key that may differ.
    const KEY_BITS: u32;

    /// Whether `x` is neither NaN nor an infinity.
    fn is_finite(x: Self::Repr) -> bool;
    /// The integer of `x`; the same one for both zeros.
    fn key(x: Self::Repr) -> Self::Key;
    /// The number that has this key.
    fn value(key: Self::Key) -> f64;
    /// `x`, exactly.
    fn widen(x: Self::Repr) -> Self::Wide;
    /// The greatest number up to `x`.
    fn floor(x: f64) -> Self::Wide;

    /// Whether the upper 16 bits of the keys tell all of `x` apart.
    fn are_short(x: &[Self::Repr]) -> bool;
    /// The upper 16 bits of the key.
    fn short_key(x: Self::Repr) -> usize;
    /// The number that has this short key, if all numbers are short.
    fn short_value(short: usize) -> f64;
}

/// An unsigned integer.
pub trait Key: Copy + Default + Ord {
    /// The digit that begins at bit `shift`.
    fn digit(self, shift: u32) -> usize;
}

const DIGIT_BITS: u32 = 11;
const DIGITS: usize = 1 << DIGIT_BITS;

impl Key for u32 {
    #[inline(always)]
    fn digit(self, shift: u32) -> usize {
        (self >> shift) as usize % DIGITS
    }
}

impl Key for u64 {
    #[inline(always)]
    fn digit(self, shift: u32) -> usize {
        (self >> shift) as usize % DIGITS
    }
}

/// IEEE binary64.
#[derive(Clone, Copy, Debug)]
pub struct Float64;

/// Bits with the sign bit `$sign` as an integer of the same order; and back.
macro_rules! ordered {
    ($bits:expr, $sign:expr) => {{
        let bits = if $bits == $sign { 0 } else { $bits };
        if bits & $sign == 0 { bits | $sign } else { !bits }
    }};
    (back $key:expr, $sign:expr) => {
        if $key & $sign == 0 { !$key } else { $key & !$sign }
    };
}

const SIGN_16: u16 = 1 << 15;
const SIGN_32: u32 = 1 << 31;
const SIGN_64: u64 = 1 << 63;

impl Number for Float32 {
    type Repr = f32;
    type Key = u32;
    type Wide = f32;
    const KEY_BITS: u32 = 32;

    #[inline(always)]
    fn is_finite(x: f32) -> bool {
        x.is_finite()
    }

    #[inline(always)]
    fn key(x: f32) -> u32 {
        ordered!(x.to_bits(), SIGN_32)
    }

    fn value(key: u32) -> f64 {
        f64::from(f32::from_bits(ordered!(back key, SIGN_32)))
    }

    #[inline(always)]
    fn widen(x: f32) -> f32 {
        x
    }

    fn floor(x: f64) -> f32 {
        let near = x as f32;
        if f64::from(near) > x { near.next_down() } else { near }
    }

    fn are_short(x: &[f32]) -> bool {
        x.chunks(4096).all(|x| x.iter().fold(0, |bits, x| bits | x.to_bits()) & 0xffff == 0)
    }

    #[inline(always)]
    fn short_key(x: f32) -> usize {
        (Self::key(x) >> 16) as usize
    }

    fn short_value(short: usize) -> f64 {
        BFloat16::value(short as u32)
    }
}

impl Number for Float64 {
    type Repr = f64;
    type Key = u64;
    type Wide = f64;
    const KEY_BITS: u32 = 64;

    #[inline(always)]
    fn is_finite(x: f64) -> bool {
        x.is_finite()
    }

    #[inline(always)]
    fn key(x: f64) -> u64 {
        ordered!(x.to_bits(), SIGN_64)
    }

    fn value(key: u64) -> f64 {
        f64::from_bits(ordered!(back key, SIGN_64))
    }

    #[inline(always)]
    fn widen(x: f64) -> f64 {
        x
    }

    fn floor(x: f64) -> f64 {
        x
    }

    fn are_short(_x: &[f64]) -> bool {
        false
    }

    #[inline(always)]
    fn short_key(x: f64) -> usize {
        (Self::key(x) >> 48) as usize
    }

    fn short_value(short: usize) -> f64 {
        Self::value((short as u64) << 48)
    }
}

macro_rules! sixteen_bits {
    ($format:ty) => {
        impl Number for $format {
            type Repr = u16;
            type Key = u32;
            type Wide = f32;
            const KEY_BITS: u32 = 16;

            #[inline(always)]
            fn is_finite(x: u16) -> bool {
                <Self as Element>::widen(x).is_finite()
            }

            #[inline(always)]
            fn key(x: u16) -> u32 {
                u32::from(ordered!(x, SIGN_16))
            }

            fn value(key: u32) -> f64 {
                let key = key as u16;
                f64::from(<Self as Element>::widen(ordered!(back key, SIGN_16)))
            }

            #[inline(always)]
            fn widen(x: u16) -> f32 {
                <Self as Element>::widen(x)
            }

            fn floor(x: f64) -> f32 {
                <Float32 as Number>::floor(x)
            }

            fn are_short(_x: &[u16]) -> bool {
                true
            }

            #[inline(always)]
            fn short_key(x: u16) -> usize {
                Self::key(x) as usize
            }

            fn short_value(short: usize) -> f64 {
                Self::value(short as u32)
            }
        }
    };
}
sixteen_bits!(BFloat16);
sixteen_bits!(Float16);

/// Distinct values, ascending, in units of `scale`, and the weight of each in units of
/// `weight_scale`.
pub(super) struct Distinct {
    pub x: Vec<f64>,
    pub w: Vec<f64>,
    pub scale: f64,
    pub weight_scale: f64,
    /// Whether short keys tell the values apart, and there are many.
    pub short: bool,
}

/// Short keys there may be.
pub(super) const SHORT_KEYS: usize = 1 << 16;

/// Gathers the distinct values of `x`, those of weight 0 left out.
pub(super) fn distinct<N: Number>(
    x: &[N::Repr],
    weights: Option<&[f64]>,
    piece: usize,
) -> Result<Distinct, Fault> {
    if !x.iter().fold(true, |finite, &x| finite & N::is_finite(x)) {
        return Err(Fault::NonFinite);
    }
    let short = x.len() >= SHORT_KEYS / 2 && N::are_short(x);
    let weight_scale = weights.map_or(1.0, |w| magnitude(w.iter().copied().fold(0.0, f64::max)));
    let (mut values, w) = match weights {
        None if short => count_short::<N>(x, piece)?,
        None => {
            let mut keys: Vec<N::Key> = x.iter().map(|&x| N::key(x)).collect();
            radix_sort(&mut keys, N::KEY_BITS, |&key| key);
            merged::<N>(keys.into_iter().map(|key| (key, 1.0)), x.len())
        }
        Some(w) if short => {
            let mut sums = vec![0.0; SHORT_KEYS];
            x.iter().zip(w).for_each(|(&x, w)| sums[N::short_key(x)] += w / weight_scale);
            kept::<N>(&sums)
        }
        Some(w) => {
            let weight = |index: u32| w[index as usize] / weight_scale;
            let keyed = x.iter().zip(0..).filter(|&(_, index)| weight(index) > 0.0);
            let mut keyed: Vec<_> = keyed.map(|(&x, index)| (N::key(x), index)).collect();
            radix_sort(&mut keyed, N::KEY_BITS, |&(key, _)| key);
            let len = keyed.len();
            merged::<N>(keyed.into_iter().map(|(key, index)| (key, weight(index))), len)
        }
    };
    let scale = magnitude(values[0].abs().max(values[values.len() - 1].abs()));
    values.iter_mut().for_each(|value| *value /= scale);
    Ok(Distinct { x: values, w, scale, weight_scale, short })
}

/// A power of two near `x`, and far enough from the ends that dividing by it is harmless.
fn magnitude(x: f64) -> f64 {
    if x == 0.0 {
        return 1.0;
    }
    let exponent = ((x.to_bits() >> 52) as i64 - 1023).clamp(-1000, 1000);
    f64::from_bits(((exponent + 1023) as u64) << 52)
}

/// How often each short key comes up: values and counts.
fn count_short<N: Number>(x: &[N::Repr], piece: usize) -> Result<(Vec<f64>, Vec<f64>), Fault> {
    let total = Mutex::new(vec![0_u64; SHORT_KEYS]);
    for_each_job(x.chunks(piece.max(x.len() / 64)), |x| {
        let mut counts = vec![0_u32; SHORT_KEYS];
        // Counters of u32 hold any number of this many.
        for x in x.chunks(u32::MAX as usize) {
            x.iter().for_each(|&x| counts[N::short_key(x)] += 1);
            let mut total = total.lock().unwrap_or_else(PoisonError::into_inner);
            for (total, count) in total.iter_mut().zip(&mut counts) {
                *total += u64::from(std::mem::take(count));
            }
        }
        Ok(())
    })?;
    let total = total.into_inner().unwrap_or_else(PoisonError::into_inner);
    Ok(kept::<N>(&total.into_iter().map(|count| count as f64).collect::<Vec<_>>()))
}

/// Values and weights of the short keys that have one.
fn kept<N: Number>(weights: &[f64]) -> (Vec<f64>, Vec<f64>) {
    let some = weights.iter().enumerate().filter(|&(_, &weight)| weight > 0.0);
    some.map(|(short, &weight)| (N::short_value(short), weight)).unzip()
}

/// Values and weights of sorted keys, the weights of equal ones added up.
fn merged<N: Number>(
    sorted: impl Iterator<Item = (N::Key, f64)>,
    len: usize,
) -> (Vec<f64>, Vec<f64>) {
    let (mut values, mut weights) = (Vec::with_capacity(len), Vec::with_capacity(len));
    let mut last = None;
    for (key, weight) in sorted {
        if last == Some(key) {
            *weights.last_mut().expect("a key came before") += weight;
        } else {
            values.push(N::value(key));
            weights.push(weight);
            last = Some(key);
        }
    }
    (values, weights)
}

/// Sorts by keys of `bits` bits; equal keys keep their order.
fn radix_sort<T: Copy + Default, K: Key>(items: &mut Vec<T>, bits: u32, key: impl Fn(&T) -> K) {
    if items.len() < DIGITS / 8 {
        items.sort_by_key(key);
        return;
    }
    let mut counts = vec![[0_u32; DIGITS]; bits.div_ceil(DIGIT_BITS) as usize];
    for item in &*items {
        let key = key(item);
        for (counts, shift) in counts.iter_mut().zip((0..).step_by(DIGIT_BITS as usize)) {
            counts[key.digit(shift)] += 1;
        }
    }
    let mut sorted = vec![T::default(); items.len()];
    for (counts, shift) in counts.iter_mut().zip((0..).step_by(DIGIT_BITS as usize)) {
        if counts.iter().any(|&count| count as usize == items.len()) {
            continue;
        }
        let mut next = 0;
        for count in counts.iter_mut() {
            next += std::mem::replace(count, next);
        }
        for &item in &*items {
            let place = &mut counts[key(&item).digit(shift)];
            sorted[*place as usize] = item;
            *place += 1;
        }
        std::mem::swap(items, &mut sorted);
    }
}
