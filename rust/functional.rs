//! What stands between the layers of a network: GELU, softmax, layer normalization.
//!
//! exp and erf are the polynomials of `qrs.backends.reference.functional`, operation by operation.

#![expect(clippy::approx_constant, clippy::excessive_precision, reason = "as in the reference")]

use crate::error::Fault;
use crate::numeric::{Element, larger, round_to_int};
use crate::rows::for_each_job;
use crate::simd::multiversion;
use crate::sums::{LANES, lane_sums};

/// Elements that a job works on, about.
const BLOCK: usize = 1 << 14;

const LOG2_E: f32 = 1.442_695;
const LN2_HIGH: f32 = 0.693_359_375;
const LN2_LOW: f32 = -2.121_944_4e-4;
const EXP: [f32; 6] =
    [0.5, 0.166_666_66, 0.041_666_295, 0.008_333_496_7, 0.001_394_466, 0.000_197_903_46];
const LEAST_EXPONENT: f32 = -104.0;

const ERF_END: f32 = 4.0;
const ERF_ABOVE: [f32; 6] =
    [1.128_379_1, 0.193_544_66, 0.053_101_64, 0.003_883_309_9, 0.000_284_562_6, 1.986_755e-6];
const ERF_BELOW: [f32; 6] =
    [1.0, 0.504_857_06, 0.115_349_784, 0.015_207_187, 0.001_185_557_9, 3.741_971e-5];

/// `x` times the normal distribution function of `x`.
///
/// # Errors
/// `NonFinite` if `x` holds NaN or an infinity.
pub fn gelu<E: Element>(x: &[E::Repr], y: &mut [E::Repr]) -> Result<(), Fault> {
    for_each_block::<E>(x, BLOCK, y, |_, x, y| gelu_rows::<E>(x, y))
}

/// The exponentials of each row over their sum.
///
/// # Errors
/// As [`gelu`].
pub fn softmax<E: Element>(x: &[E::Repr], cols: usize, y: &mut [E::Repr]) -> Result<(), Fault> {
    for_each_block::<E>(x, cols, y, |_, x, y| softmax_rows::<E>(x, cols, y))
}

/// Each row less its mean, over its standard deviation, times `weight`, plus `bias`.
///
/// # Errors
/// As [`gelu`]; `ScaleOverflow` for the first row whose sums overflow.
pub fn layer_norm<E: Element>(
    x: &[E::Repr],
    weight: &[f32],
    bias: &[f32],
    eps: f32,
    y: &mut [E::Repr],
) -> Result<(), Fault> {
    assert_eq!(weight.len(), bias.len());
    for_each_block::<E>(x, weight.len(), y, |first, x, y| {
        layer_norm_rows::<E>(x, weight, bias, eps, y).map_err(|fault| fault.after(first))
    })
}

/// Runs `work` on blocks of whole rows, with the index of the first.
fn for_each_block<E: Element>(
    x: &[E::Repr],
    cols: usize,
    y: &mut [E::Repr],
    work: impl Fn(usize, &[E::Repr], &mut [E::Repr]) -> Result<(), Fault> + Sync,
) -> Result<(), Fault> {
    assert_eq!(x.len(), y.len());
    let cols = cols.max(1);
    let rows = (BLOCK / cols).max(1);
    let jobs = x.chunks(rows * cols).zip(y.chunks_mut(rows * cols)).enumerate();
    for_each_job(jobs, |(job, (x, y))| work(job * rows, x, y))
}

/// What is done to a row, in place. A trait and no closure: its bodies are inlined for certain, and so
/// compiled for the instruction set.
trait RowWork {
    /// Whether the sums of the row are finite.
    fn run(&self, row: &mut [f32]) -> bool;
}

struct Gelu;

impl RowWork for Gelu {
    #[inline(always)]
    fn run(&self, row: &mut [f32]) -> bool {
        for x in row {
            let half = *x * 0.5;
            *x = half * (1.0 + erf(*x * std::f32::consts::FRAC_1_SQRT_2));
        }
        true
    }
}

struct Softmax;

impl RowWork for Softmax {
    #[inline(always)]
    fn run(&self, row: &mut [f32]) -> bool {
        let greatest = greatest(row);
        for x in row.iter_mut() {
            *x = exp(*x - greatest);
        }
        let sum = lane_sums(row, |x| x);
        for x in row {
            *x /= sum;
        }
        true
    }
}

struct LayerNorm<'a> {
    weight: &'a [f32],
    bias: &'a [f32],
    eps: f32,
}

impl RowWork for LayerNorm<'_> {
    #[inline(always)]
    fn run(&self, row: &mut [f32]) -> bool {
        let count = row.len() as f32;
        let mean = lane_sums(row, |x| x) / count;
        for x in row.iter_mut() {
            *x -= mean;
        }
        let variance = lane_sums(row, |x| x * x) / count;
        let inverse = 1.0 / (variance + self.eps).sqrt();
        for ((x, weight), bias) in row.iter_mut().zip(self.weight).zip(self.bias) {
            *x = *x * inverse * weight + bias;
        }
        variance.is_finite()
    }
}

multiversion! {
    fn gelu_rows<E: Element>(x: &[E::Repr], y: &mut [E::Repr]) -> Result<(), Fault> {
        map_rows::<E>(x, x.len(), x.len(), y, &Gelu)
    }
}

multiversion! {
    fn softmax_rows<E: Element>(
        x: &[E::Repr], cols: usize, y: &mut [E::Repr],
    ) -> Result<(), Fault> {
        // What is behind a short row has the exponential 0, so that whole vectors are worked on.
        map_rows::<E>(x, cols, cols.next_multiple_of(LANES), y, &Softmax)
    }
}

multiversion! {
    fn layer_norm_rows<E: Element>(
        x: &[E::Repr], weight: &[f32], bias: &[f32], eps: f32, y: &mut [E::Repr],
    ) -> Result<(), Fault> {
        map_rows::<E>(x, weight.len(), weight.len(), y, &LayerNorm { weight, bias, eps })
    }
}

/// Widens each row, lets `work` change it, and narrows what it left. It gets `padded` numbers, of
/// which those behind the row are -infinity.
#[inline(always)]
fn map_rows<E: Element>(
    x: &[E::Repr],
    cols: usize,
    padded: usize,
    y: &mut [E::Repr],
    work: &impl RowWork,
) -> Result<(), Fault> {
    let mut room = vec![0.0; padded];
    for (index, (x, y)) in x.chunks_exact(cols).zip(y.chunks_exact_mut(cols)).enumerate() {
        room[cols..].fill(f32::NEG_INFINITY);
        let mut greatest = 0;
        for (wide, x) in room.iter_mut().zip(x) {
            *wide = E::widen(*x);
            greatest = greatest.max(wide.to_bits() & 0x7fff_ffff);
        }
        if greatest >= f32::INFINITY.to_bits() {
            return Err(Fault::NonFinite);
        }
        if !work.run(&mut room) {
            return Err(Fault::ScaleOverflow { group: index });
        }
        E::narrow_all(&room[..cols], y);
    }
    Ok(())
}

/// The greatest of numbers, found in as many lanes as sums have.
#[inline(always)]
fn greatest(row: &[f32]) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let (whole, rest) = row.as_chunks::<LANES>();
    for x in whole {
        for lane in 0..LANES {
            lanes[lane] = larger(lanes[lane], x[lane]);
        }
    }
    lanes.iter_mut().zip(rest).for_each(|(lane, x)| *lane = larger(*lane, *x));
    lanes.into_iter().fold(f32::NEG_INFINITY, larger)
}

/// e^x for x <= 0.
#[inline(always)]
fn exp(x: f32) -> f32 {
    let x = if x > LEAST_EXPONENT { x } else { LEAST_EXPONENT };
    let whole = round_to_int(x * LOG2_E);
    let n = whole as f32;
    let r = (x - n * LN2_HIGH) - n * LN2_LOW;
    let y = (polynomial(r, &EXP) * (r * r) + r) + 1.0;
    // In two steps, of which the second alone may round: to a subnormal.
    let first = whole >> 1;
    y * power_of_two(first) * power_of_two(whole - first)
}

#[inline(always)]
fn power_of_two(n: i32) -> f32 {
    f32::from_bits(((n + 127) << 23) as u32)
}

/// The error function.
#[inline(always)]
fn erf(x: f32) -> f32 {
    let z = if x < ERF_END { x } else { ERF_END };
    let z = if z > -ERF_END { z } else { -ERF_END };
    let t = z * z;
    z * polynomial(t, &ERF_ABOVE) / polynomial(t, &ERF_BELOW)
}

/// By Horner's rule, from the highest power.
#[inline(always)]
fn polynomial(x: f32, coefficients: &[f32; 6]) -> f32 {
    let mut y = coefficients[5];
    for c in coefficients[..5].iter().rev() {
        y = y * x + c;
    }
    y
}
