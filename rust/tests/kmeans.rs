//! The steps of k-means against loops that follow their definitions word by word.

use super::{at_every_level, nasty};
use crate::kmeans::{BLOCK, block_of_sums, kmeans_assign, kmeans_potentials, kmeans_update};

/// Points, columns, centers: one of each, tiles that are not full, few and many midpoints, several
/// blocks, and more clusters than points in a block.
const SHAPES: [(usize, usize, usize); 9] = [
    (1, 1, 1),
    (33, 2, 5),
    (100, 17, 7),
    (5, 3, 5),
    (1000, 1, 2),
    (40_001, 1, 16),
    (33_000, 1, 300),
    (17_000, 8, 9),
    (20_000, 2, 1100),
];

fn points(n: usize, d: usize, seed: u64) -> Vec<f32> {
    let mut x = nasty(n * d, 4 * seed + 3);
    // Ties, and points that lie on centers.
    x.iter_mut().step_by(3).for_each(|x| *x = (*x * 2.0).round() / 2.0);
    x
}

fn squared_distance(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(a, b)| (a - b) * (a - b)).fold(0.0, |sum, square| sum + square)
}

fn nearest(point: &[f32], centers: &[f32]) -> (i32, f32) {
    let d = point.len();
    let label = if d == 1 {
        let middle = |pair: &[f32]| f64::midpoint(pair[0].into(), pair[1].into());
        centers.windows(2).filter(|pair| middle(pair) < f64::from(point[0])).count()
    } else {
        let squares: Vec<_> = centers.chunks(d).map(|c| squared_distance(point, c)).collect();
        let least = squares.iter().copied().fold(f32::INFINITY, f32::min);
        squares.iter().position(|square| *square == least).expect("one is the least")
    };
    (label as i32, squared_distance(point, &centers[label * d..][..d]))
}

#[test]
fn assign_finds_the_nearest_and_the_first() {
    for (seed, (n, d, k)) in SHAPES.into_iter().enumerate() {
        let x = points(n, d, seed as u64);
        let mut centers = points(k, d, seed as u64 + 50);
        if d == 1 {
            centers.sort_by(f32::total_cmp);
        }
        let expected: Vec<_> = x.chunks(d).map(|point| nearest(point, &centers)).collect();
        at_every_level(|context| {
            let (mut labels, mut distances) = (vec![-1; n], vec![f32::NAN; n]);
            kmeans_assign(&x, d, &centers, &mut labels, &mut distances);
            let found: Vec<_> = labels.into_iter().zip(distances).collect();
            assert!(found == expected, "{context}, {n} x {d}, {k} centers");
        });
    }
}

#[test]
fn the_middle_belongs_to_the_lower_center() {
    let up = 1.0_f32.next_up();
    for (centers, x, label) in [
        ([0.0, 2.0], 1.0, 0),
        ([0.0, 2.0], up, 1),
        // Their middle lies between two float32, so that the upper one is nearer to the upper.
        ([1.0, up], up, 1),
        ([1.0, up], 1.0, 0),
        ([-1e-45, 1e-45], 0.0, 0),
        ([3.0, 3.0], 3.0, 0),
    ] {
        let (mut labels, mut distances) = ([9], [9.0]);
        kmeans_assign(&[x], 1, &centers, &mut labels, &mut distances);
        assert_eq!(labels, [label], "{centers:?}, {x}");
    }
}

#[test]
fn update_sums_blocks_in_order() {
    for (seed, (n, d, k)) in SHAPES.into_iter().enumerate() {
        let (x, weights) = (points(n, d, seed as u64), nasty(n, 7));
        let labels: Vec<_> = (0..n).map(|i| ((i * 7919 + i / 3) % k) as i32).collect();
        for weights in [None, Some(&*weights)] {
            let weight = |i: usize| weights.map_or(1.0, |weights| f64::from(weights[i]));
            let (mut sums, mut totals) = (vec![0.0; k * d], vec![0.0; k]);
            for start in (0..n).step_by(block_of_sums(k)) {
                let (mut partial, mut total) = (vec![0.0; k * d], vec![0.0; k]);
                for i in start..n.min(start + block_of_sums(k)) {
                    let cluster = labels[i] as usize;
                    for column in 0..d {
                        partial[cluster * d + column] += weight(i) * f64::from(x[i * d + column]);
                    }
                    total[cluster] += weight(i);
                }
                sums.iter_mut().zip(partial).for_each(|(sum, partial)| *sum += partial);
                totals.iter_mut().zip(total).for_each(|(sum, total)| *sum += total);
            }
            at_every_level(|context| {
                let (mut found, mut found_totals) = (vec![f64::NAN; k * d], vec![f64::NAN; k]);
                kmeans_update(&x, d, &labels, weights, &mut found, &mut found_totals);
                assert!(found == sums && found_totals == totals, "{context}, {n} x {d}, {k}");
            });
        }
    }
}

#[test]
fn potentials_are_summed_in_sixteen_lanes() {
    for (seed, (n, d, count)) in SHAPES.into_iter().enumerate() {
        let count = count.min(9);
        let (x, candidates) = (points(n, d, seed as u64), points(count, d, seed as u64 + 9));
        let closest: Vec<_> = nasty(n, 11).into_iter().map(f32::abs).collect();
        let weights: Vec<_> = nasty(n, 15).into_iter().map(f32::abs).collect();
        for weights in [None, Some(&*weights)] {
            let summand = |i: usize, candidate: &[f32]| {
                let square = squared_distance(&x[i * d..][..d], candidate).min(closest[i]);
                weights.map_or(1.0, |weights| f64::from(weights[i])) * f64::from(square)
            };
            let mut expected = Vec::new();
            for candidate in candidates.chunks(d) {
                for start in (0..n).step_by(BLOCK) {
                    let mut lanes = [0.0; 16];
                    (start..n.min(start + BLOCK))
                        .for_each(|i| lanes[(i - start) % 16] += summand(i, candidate));
                    for half in [8, 4, 2, 1] {
                        (0..half).for_each(|lane| lanes[lane] += lanes[lane + half]);
                    }
                    expected.push(lanes[0]);
                }
            }
            at_every_level(|context| {
                let mut found = vec![f64::NAN; expected.len()];
                kmeans_potentials(&x, d, &candidates, &closest, weights, &mut found);
                assert!(found == expected, "{context}, {n} x {d}, {count} candidates");
            });
        }
    }
}
