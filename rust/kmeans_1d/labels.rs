//! The label of each value: how many middles between centers are less than it.

use super::values::{Number, SHORT_KEYS};
use crate::error::Fault;
use crate::rows::for_each_job;
use crate::simd::multiversion;

/// Up to so many middles, comparing with all of them is the fastest.
const FEW: usize = 32;

/// Values that are compared at a time.
const LANES: usize = 64;

/// How labels are found.
pub(super) enum Labeller<N: Number> {
    /// By comparing with all middles.
    Few(Vec<N::Wide>),
    /// By binary search among 2^m - 1 middles, infinite ones at the end.
    Many(Vec<N::Wide>),
    /// In a table of all short keys.
    Short(Vec<i32>),
}

impl<N: Number> Labeller<N> {
    pub(super) fn new(middles: &[f64], short: bool) -> Self {
        if short {
            let label = |short| middles.partition_point(|&middle| middle < N::short_value(short));
            return Self::Short((0..SHORT_KEYS).map(|short| label(short) as i32).collect());
        }
        let mut wide: Vec<_> = middles.iter().map(|&middle| N::floor(middle)).collect();
        if wide.len() <= FEW {
            return Self::Few(wide);
        }
        wide.resize((wide.len() + 1).next_power_of_two() - 1, N::floor(f64::INFINITY));
        Self::Many(wide)
    }
}

/// Labels all of `x`, a piece at a time.
pub(super) fn label<N: Number>(
    labeller: &Labeller<N>,
    x: &[N::Repr],
    labels: &mut [i32],
    piece: usize,
) -> Result<(), Fault> {
    for_each_job(x.chunks(piece).zip(labels.chunks_mut(piece)), |(x, labels)| {
        match labeller {
            Labeller::Few(middles) => compare::<N>(x, middles, labels),
            Labeller::Many(middles) => search::<N>(x, middles, labels),
            Labeller::Short(table) => look_up::<N>(x, table, labels),
        }
        Ok(())
    })
}

multiversion! {
    fn compare<N: Number>(x: &[N::Repr], middles: &[N::Wide], labels: &mut [i32]) {
        for (x, labels) in x.chunks(LANES).zip(labels.chunks_mut(LANES)) {
            labels.fill(0);
            for &middle in middles {
                for (&x, label) in x.iter().zip(&mut *labels) {
                    *label += i32::from(middle < N::widen(x));
                }
            }
        }
    }
}

multiversion! {
    fn search<N: Number>(x: &[N::Repr], middles: &[N::Wide], labels: &mut [i32]) {
        for (&x, label) in x.iter().zip(labels) {
            let (x, mut below, mut half) = (N::widen(x), 0, middles.len().div_ceil(2));
            while half > 0 {
                // A multiplication, so that no branch depends on the values.
                below += half * usize::from(middles[below + half - 1] < x);
                half /= 2;
            }
            *label = below as i32;
        }
    }
}

multiversion! {
    fn look_up<N: Number>(x: &[N::Repr], table: &[i32], labels: &mut [i32]) {
        for (&x, label) in x.iter().zip(labels) {
            *label = table[N::short_key(x)];
        }
    }
}
