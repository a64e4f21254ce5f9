//! Float64 for solvers against their definitions, written as loops, at every level.

use super::at_every_level;
use crate::error::Fault;
use crate::solving::{
    Integers, Table, Weight, cholesky, descend, matmul_float64, round_with_feedback,
};

/// Outputs and inputs.
const SHAPES: [(usize, usize); 6] = [(1, 1), (3, 5), (25, 23), (24, 24), (50, 49), (2, 70)];

/// Numbers from -1 to 1 that look random.
fn numbers(len: usize, seed: u64) -> Vec<f64> {
    let mut state = seed.wrapping_mul(2).wrapping_add(0x9e37_79b9);
    let mut next = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 11) as f64 / (1_u64 << 52) as f64 - 1.0
    };
    (0..len).map(|_| next()).collect()
}

/// X^T X, and a bit more on the diagonal.
fn moments(k: usize) -> Vec<f64> {
    let x = numbers(2 * k * k, 3);
    let mut h = vec![0.0; k * k];
    for i in 0..k {
        for j in 0..k {
            let products = (0..2 * k).map(|t| x[t * k + i] * x[t * k + j]);
            h[i * k + j] = products.sum::<f64>() + if i == j { 0.5 } else { 0.0 };
        }
    }
    h
}

#[test]
fn products_and_factors_are_chains_of_fused_multiply_adds() {
    at_every_level(|context| {
        for (n, k) in SHAPES {
            let (a, h) = (numbers(n * k, 1), moments(k));
            let mut y = vec![0.0; n * k];
            matmul_float64(&a, &h, (n, k, k), &mut y);
            for i in 0..n {
                for j in 0..k {
                    let sum = (0..k).fold(0.0, |sum, t| h[t * k + j].mul_add(a[i * k + t], sum));
                    assert_eq!(y[i * k + j], sum, "{context}: {i}, {j} of {n}, {k}");
                }
            }
            let mut factor = vec![f64::NAN; k * k];
            cholesky(&h, k, &mut factor).expect("positive definite");
            assert_eq!(factor, factor_from_the_end(&h, k), "{context}: {k}");
        }
    });
}

/// The definition of `cholesky`, column by column.
fn factor_from_the_end(h: &[f64], k: usize) -> Vec<f64> {
    let mut factor = vec![0.0_f64; k * k];
    for j in (0..k).rev() {
        for i in (0..=j).rev() {
            let sum = (j + 1..k)
                .rev()
                .fold(h[i * k + j], |sum, t| (-factor[j * k + t]).mul_add(factor[i * k + t], sum));
            factor[i * k + j] = if i == j { sum.sqrt() } else { sum / factor[j * k + j] };
        }
    }
    factor
}

#[test]
fn a_pivot_that_is_not_positive_is_a_fault() {
    at_every_level(|context| {
        let mut h = vec![0.0; 900];
        (0..30).for_each(|i| h[i * 31] = 1.0);
        for (column, pivot) in [(29, f64::NAN), (0, 0.0), (17, -1.0)] {
            h[column * 31] = pivot;
            let fault = cholesky(&h, 30, &mut [0.0; 900]);
            assert_eq!(fault, Err(Fault::NotPositive { column }), "{context}");
            h[column * 31] = 1.0;
        }
    });
}

#[test]
fn each_input_takes_the_level_nearest_to_what_is_left() {
    let levels = [-1.5_f32, -0.25, 0.0, 0.5, 2.0];
    at_every_level(|context| {
        for (n, k) in SHAPES {
            let w: Vec<f32> = numbers(n * k, 5).iter().map(|x| *x as f32).collect();
            let w_hat: Vec<f32> = w.iter().map(|x| x * 0.75).collect();
            let group_of: Vec<i32> = (0..k as i32).map(|j| j % 2).collect();
            let scale: Vec<f32> =
                numbers(2 * n, 7).iter().map(|x| *x as f32).map(|x| x + x.signum() / 8.0).collect();
            let lowest: Vec<i32> = (0..2 * n as i32).map(|i| -(i % 8)).collect();
            let weight = Weight { w: &w, k, group_of: &group_of };
            let integers = Integers { scale: &scale, lowest: &lowest, count: 8, groups: 2 };
            let table = Table { scale: &scale, levels: &levels, width: 5, groups: 2 };
            let of_integer = |i: usize, j: usize, target: f64| {
                let group = 2 * i + j % 2;
                let low = f64::from(lowest[group]);
                let code = (target / f64::from(scale[group])).clamp(low, low + 7.0);
                let code = code.round_ties_even();
                ((code - low) as u8, code as f32 * scale[group])
            };
            let of_table = |i: usize, j: usize, target: f64| {
                let x = target / f64::from(scale[2 * i + j % 2]);
                let middle = |c: usize| f64::midpoint(levels[c].into(), levels[c + 1].into());
                let code = (0..4).filter(|c| x > middle(*c)).count();
                (code as u8, levels[code] * scale[2 * i + j % 2])
            };
            let h = moments(k);
            let factor = factor_from_the_end(&h, k);
            let (mut codes, mut better) = (vec![9; n * k], vec![9; n * k]);
            round_with_feedback(weight, &factor, &integers, &mut codes);
            assert_eq!(codes, rounded(&w, &factor, k, of_integer), "{context}: {n}, {k}");
            descend(weight, &h, &w_hat, &integers, &mut better);
            assert_eq!(better, descended(&w, &w_hat, &h, k, of_integer), "{context}: {n}, {k}");
            round_with_feedback(weight, &factor, &table, &mut codes);
            assert_eq!(codes, rounded(&w, &factor, k, of_table), "{context}: {n}, {k}");
            descend(weight, &h, &w_hat, &table, &mut better);
            assert_eq!(better, descended(&w, &w_hat, &h, k, of_table), "{context}: {n}, {k}");
        }
    });
}

/// The definition of `round_with_feedback`; `nearest` of an output, an input and a target.
fn rounded(
    w: &[f32],
    factor: &[f64],
    k: usize,
    nearest: impl Fn(usize, usize, f64) -> (u8, f32),
) -> Vec<u8> {
    let mut codes = vec![];
    for (i, w) in w.chunks(k).enumerate() {
        let mut errors: Vec<f64> = vec![];
        for j in 0..k {
            let chain = errors.iter().enumerate();
            let sum = chain.fold(0.0, |sum, (t, e)| factor[t * k + j].mul_add(*e, sum));
            let (code, near) = nearest(i, j, f64::from(w[j]) + sum / factor[j * k + j]);
            errors.push(f64::from(w[j]) - f64::from(near));
            codes.push(code);
        }
    }
    codes
}

/// The definition of `descend`: a chain over all but the block of 8 of the input, then over those.
fn descended(
    w: &[f32],
    w_hat: &[f32],
    h: &[f64],
    k: usize,
    nearest: impl Fn(usize, usize, f64) -> (u8, f32),
) -> Vec<u8> {
    let mut codes = vec![];
    for (i, (w, w_hat)) in w.chunks(k).zip(w_hat.chunks(k)).enumerate() {
        let mut errors: Vec<f64> =
            w.iter().zip(w_hat).map(|(w, near)| f64::from(*w) - f64::from(*near)).collect();
        for j in 0..k {
            let (first, end) = (j / 8 * 8, k.min(j / 8 * 8 + 8));
            let others = (0..first).chain(end..k).chain(first..end).filter(|t| *t != j);
            let pull = others.fold(0.0, |sum, t| h[j * k + t].mul_add(errors[t], sum));
            let (code, near) = nearest(i, j, f64::from(w[j]) + pull / h[j * k + j]);
            errors[j] = f64::from(w[j]) - f64::from(near);
            codes.push(code);
        }
    }
    codes
}
