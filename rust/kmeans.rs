//! Lloyd's k-means: the nearest center of each point, the sums over clusters, and the potentials of
//! k-means++. Which centers come next is decided in Python.
//!
//! Distances are float32 and vectorized over points, never over the columns of one: each is the sum
//! of its squares from the first column to the last. Sums over points are float64: in order within
//! a block, whose size depends on the shape alone, and the blocks in order. So neither SIMD levels
//! nor threads change a result.

use crate::rows::for_each_job;
use crate::simd::{self, multiversion};

/// Points side by side: two vectors of AVX-512, four of AVX2.
const LANES: usize = 32;

/// Points of a block of a sum.
pub const BLOCK: usize = 1 << 14;

/// Sums side by side within a block of potentials.
const SUM_LANES: usize = 16;

/// Up to as many midpoints it is faster to compare with all than to search.
const FEW: usize = 40;

/// Differences that a thread computes at a time, about.
const WORK: usize = 1 << 20;

/// Points of a block of the sums over `k` clusters: with many, blocks are larger, so that there are
/// not more sums than points.
#[must_use]
pub fn block_of_sums(k: usize) -> usize {
    BLOCK.max(k.saturating_mul(16))
}

/// The nearest of `centers` for each point of `x`, both with `d` columns, and the square of its
/// distance; the first of those that are equally near. Where `d` is 1, centers must ascend, and a
/// point belongs to the lower neighbour up to and including the middle, `(lower + upper) / 2` in
/// float64.
pub fn kmeans_assign(
    x: &[f32],
    d: usize,
    centers: &[f32],
    labels: &mut [i32],
    distances: &mut [f32],
) {
    assert!(x.len() == labels.len() * d && centers.len().is_multiple_of(d) && !centers.is_empty());
    assert_eq!(labels.len(), distances.len());
    let midpoints = if d == 1 { midpoints(centers) } else { Vec::new() };
    let points = (WORK / centers.len()).next_multiple_of(LANES).clamp(LANES, BLOCK);
    let places = labels.chunks_mut(points).zip(distances.chunks_mut(points));
    for_each_job(x.chunks(points * d).zip(places), |(x, (labels, distances))| {
        if d == 1 {
            assign_numbers(x, centers, &midpoints, labels, distances);
        } else {
            assign_points(x, d, centers, labels, distances);
        }
    });
}

/// The sum of the points of each cluster, `weights` times each where there are any, and the sum of
/// the weights: `centers.len()` is `k * d` and `totals.len()` is `k`.
pub fn kmeans_update(
    x: &[f32],
    d: usize,
    labels: &[i32],
    weights: Option<&[f32]>,
    sums: &mut [f64],
    totals: &mut [f64],
) {
    let k = totals.len();
    assert!(x.len() == labels.len() * d && sums.len() == k * d);
    assert!(weights.is_none_or(|weights| weights.len() == labels.len()));
    let points = block_of_sums(k);
    let blocks = labels.len().div_ceil(points);
    let mut partial = vec![0.0; blocks * k * (d + 1)];
    let jobs = x.chunks(points * d).zip(labels.chunks(points)).enumerate();
    for_each_job(jobs.zip(partial.chunks_mut(k * (d + 1))), |((block, (x, labels)), partial)| {
        let weights = weights.map(|weights| &weights[block * points..][..labels.len()]);
        let (sums, totals) = partial.split_at_mut(k * d);
        sum_block(x, d, labels, weights, sums, totals);
    });
    simd::with_default_float_state(|| {
        sums.fill(0.0);
        totals.fill(0.0);
        for partial in partial.chunks_exact(k * (d + 1)) {
            let all = sums.iter_mut().chain(totals.iter_mut());
            all.zip(partial).for_each(|(sum, partial)| *sum += partial);
        }
    });
}

/// For each candidate, what the sum of `weights * min(closest, squared distance)` would be: its
/// summands over each block of points, `(candidates, blocks)`.
pub fn kmeans_potentials(
    x: &[f32],
    d: usize,
    candidates: &[f32],
    closest: &[f32],
    weights: Option<&[f32]>,
    potentials: &mut [f64],
) {
    let count = candidates.len() / d;
    let blocks = closest.len().div_ceil(BLOCK);
    assert!(x.len() == closest.len() * d && candidates.len() == count * d && count > 0);
    assert!(potentials.len() == count * blocks);
    assert!(weights.is_none_or(|weights| weights.len() == closest.len()));
    let mut by_block = vec![0.0; count * blocks];
    let jobs = x.chunks(BLOCK * d).zip(closest.chunks(BLOCK)).enumerate();
    for_each_job(jobs.zip(by_block.chunks_mut(count)), |((block, (x, closest)), sums)| {
        let weights = weights.map(|weights| &weights[block * BLOCK..][..closest.len()]);
        potentials_of_block(x, d, candidates, closest, weights, sums);
    });
    for (index, potential) in potentials.iter_mut().enumerate() {
        *potential = by_block[index % blocks * count + index / blocks];
    }
}

/// The middles between neighbours of ascending centers, rounded down to float32: a float32 lies
/// above the one where it lies above the other.
fn midpoints(centers: &[f32]) -> Vec<f32> {
    let middle = |pair: &[f32]| {
        let middle = f64::midpoint(f64::from(pair[0]), f64::from(pair[1]));
        let nearest = middle as f32;
        if f64::from(nearest) > middle { nearest.next_down() } else { nearest }
    };
    centers.windows(2).map(middle).collect()
}

multiversion! {
    fn assign_points(
        x: &[f32], d: usize, centers: &[f32], labels: &mut [i32], distances: &mut [f32],
    ) {
        let mut tile = vec![[0.0; LANES]; d];
        let places = labels.chunks_mut(LANES).zip(distances.chunks_mut(LANES));
        for (x, (labels, distances)) in x.chunks(LANES * d).zip(places) {
            transpose(x, &mut tile);
            let (mut nearest, mut least) = ([0; LANES], [f32::INFINITY; LANES]);
            for (index, center) in centers.chunks_exact(d).enumerate() {
                let squares = squared_distances(&tile, center);
                for lane in 0..LANES {
                    let closer = squares[lane] < least[lane];
                    nearest[lane] = if closer { index as i32 } else { nearest[lane] };
                    least[lane] = if closer { squares[lane] } else { least[lane] };
                }
            }
            labels.copy_from_slice(&nearest[..labels.len()]);
            distances.copy_from_slice(&least[..distances.len()]);
        }
    }
}

multiversion! {
    fn assign_numbers(
        x: &[f32], centers: &[f32], midpoints: &[f32], labels: &mut [i32], distances: &mut [f32],
    ) {
        let places = labels.chunks_mut(LANES).zip(distances.chunks_mut(LANES));
        for (x, (labels, distances)) in x.chunks(LANES).zip(places) {
            let mut tile = [0.0; LANES];
            tile[..x.len()].copy_from_slice(x);
            let nearest = if midpoints.len() <= FEW {
                count_below(&tile, midpoints)
            } else {
                search_below(&tile, midpoints)
            };
            labels.copy_from_slice(&nearest[..labels.len()]);
            for ((x, label), distance) in x.iter().zip(labels).zip(distances) {
                let difference = x - centers[*label as usize];
                *distance = difference * difference;
            }
        }
    }
}

multiversion! {
    fn sum_block(
        x: &[f32], d: usize, labels: &[i32], weights: Option<&[f32]>, sums: &mut [f64],
        totals: &mut [f64],
    ) {
        // Compiled for one column apart, where there is no loop over columns.
        if d == 1 {
            sum_points(x, 1, labels, weights, sums, totals);
        } else {
            sum_points(x, d, labels, weights, sums, totals);
        }
    }
}

multiversion! {
    fn potentials_of_block(
        x: &[f32], d: usize, candidates: &[f32], closest: &[f32], weights: Option<&[f32]>,
        potentials: &mut [f64],
    ) {
        let mut tile = vec![[0.0; LANES]; d];
        let mut sums = vec![[0.0; SUM_LANES]; potentials.len()];
        for (index, x) in x.chunks(LANES * d).enumerate() {
            transpose(x, &mut tile);
            let (start, points) = (index * LANES, x.len() / d);
            // Points that are missing weigh nothing.
            let (mut least, mut weight) = ([0.0; LANES], [0.0; LANES]);
            least[..points].copy_from_slice(&closest[start..][..points]);
            match weights {
                Some(weights) => weight[..points].copy_from_slice(&weights[start..][..points]),
                None => weight[..points].fill(1.0),
            }
            for (candidate, sums) in candidates.chunks_exact(d).zip(&mut sums) {
                let squares = squared_distances(&tile, candidate);
                for lane in 0..LANES {
                    let closer = squares[lane] < least[lane];
                    let square = if closer { squares[lane] } else { least[lane] };
                    sums[lane % SUM_LANES] += f64::from(weight[lane]) * f64::from(square);
                }
            }
        }
        potentials.iter_mut().zip(&sums).for_each(|(potential, sums)| *potential = fold(*sums));
    }
}

/// The points of `x` as columns, as many as there are.
#[inline(always)]
fn transpose(x: &[f32], tile: &mut [[f32; LANES]]) {
    let d = tile.len();
    for (lane, point) in x.chunks_exact(d).enumerate() {
        point.iter().zip(&mut *tile).for_each(|(x, column)| column[lane] = *x);
    }
}

#[inline(always)]
fn squared_distances(tile: &[[f32; LANES]], center: &[f32]) -> [f32; LANES] {
    let mut squares = [0.0; LANES];
    for (x, c) in tile.iter().zip(center) {
        for lane in 0..LANES {
            let difference = x[lane] - c;
            squares[lane] += difference * difference;
        }
    }
    squares
}

/// How many midpoints each number is above of.
#[inline(always)]
fn count_below(x: &[f32; LANES], midpoints: &[f32]) -> [i32; LANES] {
    let mut below = [0; LANES];
    for midpoint in midpoints {
        for lane in 0..LANES {
            below[lane] += i32::from(*midpoint < x[lane]);
        }
    }
    below
}

/// The same by bisection, without a branch, all numbers at a time: each waits for its own loads.
#[inline(always)]
fn search_below(x: &[f32; LANES], midpoints: &[f32]) -> [i32; LANES] {
    // The count is from `below` to `below + size`.
    let (mut below, mut size) = ([0_usize; LANES], midpoints.len());
    while size > 0 {
        let half = size.div_ceil(2);
        for lane in 0..LANES {
            let above = midpoints[below[lane] + half - 1] < x[lane];
            below[lane] += if above { half } else { 0 };
        }
        size -= half;
    }
    below.map(|count| count as i32)
}

#[inline(always)]
fn sum_points(
    x: &[f32],
    d: usize,
    labels: &[i32],
    weights: Option<&[f32]>,
    sums: &mut [f64],
    totals: &mut [f64],
) {
    for (index, (point, label)) in x.chunks_exact(d).zip(labels).enumerate() {
        // The product of two float32 is exact in float64.
        let weight = weights.map_or(1.0, |weights| f64::from(weights[index]));
        let cluster = *label as usize;
        let sums = &mut sums[cluster * d..][..d];
        sums.iter_mut().zip(point).for_each(|(sum, x)| *sum += weight * f64::from(*x));
        totals[cluster] += weight;
    }
}

/// The lanes as rule 6 folds them: (l, l + 8), (l, l + 4), (l, l + 2), (l, l + 1).
#[inline(always)]
fn fold(mut lanes: [f64; SUM_LANES]) -> f64 {
    let mut half = SUM_LANES / 2;
    while half > 0 {
        for lane in 0..half {
            lanes[lane] += lanes[lane + half];
        }
        half /= 2;
    }
    lanes[0]
}
