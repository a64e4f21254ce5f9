//! From int32 sums to codes or numbers; the greatest magnitude of columns.

use crate::error::Fault;
use crate::numeric::{Element, rectify};
use crate::rows::for_each_job;
use crate::simd::multiversion;

/// Elements that a job works on, about.
const BLOCK: usize = 1 << 15;

/// Numbers of which there is one for all, one for each row, one for each column, or one for each
/// element: (1, 1), (rows, 1), (1, cols) or (rows, cols).
#[derive(Clone, Copy, Debug)]
pub struct Spread<'a, T> {
    /// The numbers, in C order.
    pub values: &'a [T],
    /// Whether there are several along the rows.
    pub by_row: bool,
    /// Whether there are several along the columns.
    pub by_column: bool,
}

impl<'a, T: Copy> Spread<'a, T> {
    /// Those of a row: one, or `cols`.
    #[inline(always)]
    fn of_row(&self, row: usize, cols: usize) -> &'a [T] {
        let width = if self.by_column { cols } else { 1 };
        let first = if self.by_row { row * width } else { 0 };
        &self.values[first..first + width]
    }
}

/// How sums become codes.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// The code of 0.
    pub zero_point: i32,
    /// The least code.
    pub qmin: i32,
    /// The greatest code.
    pub qmax: i32,
}

/// `clip(rne(sum * scale + zero_point))`, in f64 up to the rounding.
pub fn requantize(
    sums: &[i32],
    cols: usize,
    scale: Spread<'_, f32>,
    target: Target,
    codes: &mut [u8],
) {
    for_each_row(sums, cols, codes, |row, sums, codes| {
        requantize_row(sums, scale.of_row(row, cols), target, codes);
    });
}

multiversion! {
    fn requantize_row(sums: &[i32], scale: &[f32], target: Target, codes: &mut [u8]) {
        // Adding this rounds to nearest, ties to even, what is far below 2^51.
        const ROUNDER: f64 = 6_755_399_441_055_744.0;
        let zero_point = f64::from(target.zero_point);
        let (low, high) = (f64::from(target.qmin), f64::from(target.qmax));
        let code = |sum: i32, scale: f32| {
            let v = f64::from(sum) * f64::from(scale) + zero_point;
            let v = if v > low { v } else { low };
            let v = if v < high { v } else { high };
            ((v + ROUNDER) - ROUNDER) as i32 as u8
        };
        match scale {
            [one] => {
                codes.iter_mut().zip(sums).for_each(|(q, sum)| *q = code(*sum, *one));
            }
            each => {
                let sums = sums.iter().zip(each);
                codes.iter_mut().zip(sums).for_each(|(q, (sum, scale))| *q = code(*sum, *scale));
            }
        }
    }
}

/// The same in integers alone, by `multiplier * 2^(shift - 31)`.
pub fn requantize_fixed_point(
    sums: &[i32],
    cols: usize,
    multiplier: Spread<'_, i32>,
    shift: Spread<'_, i32>,
    target: Target,
    codes: &mut [u8],
) {
    for_each_row(sums, cols, codes, |row, sums, codes| {
        let (multiplier, shift) = (multiplier.of_row(row, cols), shift.of_row(row, cols));
        fixed_point_row(sums, multiplier, shift, target, codes);
    });
}

multiversion! {
    fn fixed_point_row(
        sums: &[i32], multiplier: &[i32], shift: &[i32], target: Target, codes: &mut [u8],
    ) {
        for (i, (q, &sum)) in codes.iter_mut().zip(sums).enumerate() {
            let of = |each: &[i32]| if each.len() == 1 { each[0] } else { each[i] };
            let v = fixed_point(sum, of(multiplier), of(shift)) + i64::from(target.zero_point);
            *q = v.clamp(i64::from(target.qmin), i64::from(target.qmax)) as u8;
        }
    }
}

/// `sum * multiplier * 2^(shift - 31)`, rounded twice as gemmlowp does: a shift to the left first,
/// saturating; the product to nearest, ties up; a shift to the right, ties away from zero.
#[inline(always)]
fn fixed_point(sum: i32, multiplier: i32, shift: i32) -> i64 {
    let left = shift.clamp(0, 31);
    let right = (-shift).clamp(0, 31);
    let sum = (i64::from(sum) << left).clamp(i64::from(i32::MIN), i64::from(i32::MAX));
    let product = sum * i64::from(multiplier);
    let nudge = if product >= 0 { 1 << 30 } else { 1 - (1 << 30) };
    let high = (product + nudge) / (1 << 31);
    let mask = (1_i64 << right) - 1;
    let threshold = (mask >> 1) + i64::from(high < 0);
    (high >> right) + i64::from((high & mask) > threshold)
}

/// Sums in float32 times a scale, plus a bias; negative results become 0 with `relu`.
pub fn dequantize_sums(
    sums: &[i32],
    cols: usize,
    scale: Spread<'_, f32>,
    bias: Option<Spread<'_, f32>>,
    relu: bool,
    y: &mut [f32],
) {
    for_each_row(sums, cols, y, |row, sums, y| {
        let bias = bias.map(|bias| bias.of_row(row, cols));
        dequantize_row(sums, scale.of_row(row, cols), bias, relu, y);
    });
}

multiversion! {
    fn dequantize_row(
        sums: &[i32], scale: &[f32], bias: Option<&[f32]>, relu: bool, y: &mut [f32],
    ) {
        match scale {
            [one] => y.iter_mut().zip(sums).for_each(|(y, sum)| *y = *sum as f32 * one),
            each => {
                let sums = sums.iter().zip(each);
                y.iter_mut().zip(sums).for_each(|(y, (sum, scale))| *y = *sum as f32 * scale);
            }
        }
        match bias {
            None => {}
            Some([one]) => y.iter_mut().for_each(|y| *y += one),
            Some(each) => y.iter_mut().zip(each).for_each(|(y, bias)| *y += bias),
        }
        if relu {
            rectify(y);
        }
    }
}

/// Runs `work` for each row, with its index, on all threads.
fn for_each_row<T: Send>(
    sums: &[i32],
    cols: usize,
    out: &mut [T],
    work: impl Fn(usize, &[i32], &mut [T]) + Sync,
) {
    assert_eq!(sums.len(), out.len());
    let cols = cols.max(1);
    let rows = (BLOCK / cols).max(1);
    let jobs = sums.chunks(rows * cols).zip(out.chunks_mut(rows * cols)).enumerate();
    for_each_job(jobs, |(job, (sums, out))| {
        for (i, (sums, out)) in sums.chunks(cols).zip(out.chunks_mut(cols)).enumerate() {
            work(job * rows + i, sums, out);
        }
        Ok(())
    })
    .expect("no faults");
}

/// The greatest magnitude of each column of `x`, which has as many as `absmax`.
///
/// # Errors
/// `NonFinite` if `x` holds NaN or an infinity.
pub fn column_absmax<E: Element>(x: &[E::Repr], absmax: &mut [f32]) -> Result<(), Fault> {
    let cols = absmax.len().max(1);
    let rows = (BLOCK / cols).max(1);
    let mut partial = vec![0.0; x.len().div_ceil(rows * cols) * cols];
    let jobs = x.chunks(rows * cols).zip(partial.chunks_mut(cols));
    for_each_job(jobs, |(x, greatest)| {
        for row in x.chunks(cols) {
            include::<E>(row, greatest);
        }
        if greatest.iter().all(|v| v.is_finite()) { Ok(()) } else { Err(Fault::NonFinite) }
    })?;
    absmax.fill(0.0);
    for greatest in partial.chunks(cols) {
        include::<crate::numeric::Float32>(greatest, absmax);
    }
    Ok(())
}

multiversion! {
    /// Takes in a row; NaN becomes the greatest, and stays.
    fn include<E: Element>(row: &[E::Repr], greatest: &mut [f32]) {
        for (greatest, x) in greatest.iter_mut().zip(row) {
            // Bits of magnitudes are in the order of the magnitudes, infinity and NaN above.
            let bits = E::widen(*x).to_bits() & 0x7fff_ffff;
            *greatest = f32::from_bits(greatest.to_bits().max(bits));
        }
    }
}
