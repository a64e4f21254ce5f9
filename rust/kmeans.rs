//! Lloyd's k-means: the nearest center of each point, the sums over clusters, and the potentials of
//! k-means++. Which centers come next is decided in Python.
//!
//! Distances are float32 and vectorized over points, never over the columns of one: each is the sum
//! of its squares from the first column to the last. Sums over points are float64: in order within
//! a block, whose size depends on the shape alone, and the blocks in order. So neither SIMD levels
//! nor threads change a result.

use crate::rows::for_each_job;
use crate::simd::{self, multiversion};
use crate::sums;

/// Points side by side: two vectors of AVX-512, four of AVX2.
const LANES: usize = 32;

/// Points of a block of a sum.
pub const BLOCK: usize = 1 << 14;

/// Numbers that go through midpoints together: they stay in the first-level cache.
const TILE: usize = 1024;

/// Midpoints that a number is compared with at once.
const FAN: usize = 16;

/// The most midpoints at the top of their tree.
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
    let midpoints = Midpoints::of(if d == 1 { centers } else { &[] });
    let points = (WORK / centers.len()).next_multiple_of(LANES).clamp(LANES, BLOCK);
    let places = labels.chunks_mut(points).zip(distances.chunks_mut(points));
    let done = for_each_job(x.chunks(points * d).zip(places), |(x, (labels, distances))| {
        if d == 1 {
            assign_numbers(x, centers, &midpoints, labels, distances);
        } else {
            assign_points(x, d, centers, labels, distances);
        }
        Ok(())
    });
    debug_assert!(done.is_ok());
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
    let done = for_each_job(
        jobs.zip(partial.chunks_mut(k * (d + 1))),
        |((block, (x, labels)), partial)| {
            let weights = weights.map(|weights| &weights[block * points..][..labels.len()]);
            let (sums, totals) = partial.split_at_mut(k * d);
            sum_block(x, d, labels, weights, sums, totals);
            Ok(())
        },
    );
    debug_assert!(done.is_ok());
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
    let done =
        for_each_job(jobs.zip(by_block.chunks_mut(count)), |((block, (x, closest)), sums)| {
            let weights = weights.map(|weights| &weights[block * BLOCK..][..closest.len()]);
            potentials_of_block(x, d, candidates, closest, weights, sums);
            Ok(())
        });
    debug_assert!(done.is_ok());
    for (index, potential) in potentials.iter_mut().enumerate() {
        *potential = by_block[index % blocks * count + index / blocks];
    }
}

/// The middles between neighbours of ascending centers, as a tree. Comparing a number with all of a
/// few takes less time than a bisection, whose branches nobody can predict.
struct Midpoints {
    /// From the lowest; the end of the last chunk is infinite.
    levels: Vec<Vec<[f32; FAN]>>,
    /// The last of each chunk below.
    top: Vec<f32>,
}

impl Midpoints {
    fn of(centers: &[f32]) -> Self {
        let (mut levels, mut top) = (Vec::new(), centers.windows(2).map(midpoint).collect());
        while Vec::len(&top) > FEW {
            let (chunks, rest) = top.as_chunks();
            let mut last = [f32::INFINITY; FAN];
            last[..rest.len()].copy_from_slice(rest);
            let above = chunks.iter().map(|chunk: &[f32; FAN]| chunk[FAN - 1]).collect();
            levels.push([chunks, &[last]].concat());
            top = above;
        }
        Self { levels, top }
    }
}

/// The middle of two numbers, rounded down to float32: a float32 lies above the one where it lies
/// above the other.
fn midpoint(pair: &[f32]) -> f32 {
    let middle = f64::midpoint(f64::from(pair[0]), f64::from(pair[1]));
    let nearest = middle as f32;
    if f64::from(nearest) > middle { nearest.next_down() } else { nearest }
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
                    // Indices ascend. A plain selection would become masked stores, which are slow.
                    nearest[lane] = nearest[lane].max(if closer { index as i32 } else { 0 });
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
        x: &[f32], centers: &[f32], midpoints: &Midpoints, labels: &mut [i32],
        distances: &mut [f32],
    ) {
        let places = labels.chunks_mut(TILE).zip(distances.chunks_mut(TILE));
        for (x, (labels, distances)) in x.chunks(TILE).zip(places) {
            count_below(x, &midpoints.top, labels);
            for level in midpoints.levels.iter().rev() {
                count_in_chunks(x, level, labels);
            }
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
        let mut sums = vec![[0.0; sums::LANES]; potentials.len()];
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
                let mut squares = squared_distances(&tile, candidate);
                for lane in 0..LANES {
                    let closer = squares[lane] < least[lane];
                    squares[lane] = if closer { squares[lane] } else { least[lane] };
                }
                let (squares, weights) = (squares.as_chunks().0, weight.as_chunks().0);
                for (squares, weights) in squares.iter().zip(weights) {
                    add_products(sums, squares, weights);
                }
            }
        }
        potentials.iter_mut().zip(&sums).for_each(|(potential, sums)| *potential = sums::fold(*sums));
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

#[inline(always)]
fn add_products(
    sums: &mut [f64; sums::LANES],
    squares: &[f32; sums::LANES],
    weights: &[f32; sums::LANES],
) {
    for lane in 0..sums::LANES {
        sums[lane] += f64::from(weights[lane]) * f64::from(squares[lane]);
    }
}

/// How many midpoints are below each number.
#[inline(always)]
fn count_below(x: &[f32], midpoints: &[f32], below: &mut [i32]) {
    below.fill(0);
    let (fours, rest) = midpoints.as_chunks::<4>();
    for m in fours {
        for (x, below) in x.iter().zip(&mut *below) {
            let [first, second, third, fourth] = m.map(|midpoint| i32::from(midpoint < *x));
            *below += (first + second) + (third + fourth);
        }
    }
    for midpoint in rest {
        x.iter().zip(&mut *below).for_each(|(x, below)| *below += i32::from(midpoint < x));
    }
}

/// The same one level down, where `below` says in which chunk.
#[inline(always)]
fn count_in_chunks(x: &[f32], level: &[[f32; FAN]], below: &mut [i32]) {
    for (x, below) in x.iter().zip(below) {
        let chunk = &level[*below as usize];
        *below = *below * FAN as i32 + chunk.iter().map(|m| i32::from(m < x)).sum::<i32>();
    }
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
