//! k-means against the dynamic program over all borders.

use super::{at_every_level, nasty};
use crate::kmeans_1d::{Clusters, kmeans_1d};
use crate::numeric::Float32;

fn clustered(x: &[f32], k: usize) -> (Vec<f64>, Vec<i32>, f64) {
    let (mut centers, mut labels) = (vec![0.0; k], vec![0; x.len()]);
    let (mut inertia, mut passes) = ([0.0], [0]);
    let out = Clusters {
        centers: &mut centers,
        labels: Some(&mut labels),
        inertia: &mut inertia,
        passes: &mut passes,
    };
    kmeans_1d::<Float32>(x, x.len(), None, out).expect("finite");
    (centers, labels, inertia[0])
}

/// The inertia of the best of all ways to cut the sorted values into k clusters.
fn least_inertia(x: &[f32], k: usize) -> f64 {
    let mut x: Vec<f64> = x.iter().map(|&x| f64::from(x)).collect();
    x.sort_by(f64::total_cmp);
    let cost = |p: usize, i: usize| -> f64 {
        let mean = x[p..i].iter().sum::<f64>() / (i - p).max(1) as f64;
        x[p..i].iter().map(|x| (x - mean) * (x - mean)).sum()
    };
    let mut best: Vec<f64> = (0..=x.len()).map(|i| cost(0, i)).collect();
    for _ in 1..k {
        let through = |i: usize| (0..=i).map(|p| best[p] + cost(p, i)).fold(f64::MAX, f64::min);
        best = (0..=x.len()).map(through).collect();
    }
    best[x.len()]
}

#[test]
fn kmeans_1d_of_the_docstring() {
    let expected = (vec![1.5, 11.0], vec![1, 0, 0, 1], 2.5);
    assert_eq!(clustered(&[10.0, 1.0, 2.0, 12.0], 2), expected);
}

#[test]
fn kmeans_1d_finds_the_optimum() {
    at_every_level(|level| {
        for len in [1, 2, 7, 31, 60] {
            for seed in 1..4 {
                let x = nasty(len, seed);
                for k in [1, 2, 5, 16] {
                    let (found, best) = (clustered(&x, k).2, least_inertia(&x, k));
                    assert!(found <= best * (1.0 + 1e-9), "{level}: {len}, {seed}, {k}");
                }
            }
        }
    });
}
