//! The best centers of values with weights: the best borders, and the repair of what rounding lost.

use super::path::{Borders, Paths};

/// The value up to which the lower one of two neighbouring centers is the nearest.
pub(super) fn middle(pair: &[f64]) -> f64 {
    pair[0] + (pair[1] - pair[0]) * 0.5
}

/// Centers and inertia of more than k values, and how many passes over all of them it took.
pub(super) fn optimum(x: &[f64], w: &[f64], k: usize) -> (Vec<f64>, f64, i32) {
    let mid = weighted_median(w);
    let mut y: Vec<f64> = x.iter().map(|value| value - x[mid]).collect();
    let mut best: Option<(Vec<f64>, f64)> = None;
    let (mut passes, mut penalty) = (0, None);
    loop {
        let mut paths = Paths::new(&y, w, mid);
        let guess = penalty.unwrap_or_else(|| paths.first_penalty(k));
        let (borders, found, used) = paths.search(k, guess, 0);
        drop(paths);
        (passes, penalty) = (passes + used, Some(found));
        let (centers, inertia) = polished(x, w, borders);
        if let Some((centers, least)) = best.take_if(|(_, least)| !(inertia < *least)) {
            return (centers, least, passes);
        }
        let narrow = narrowed(x, w, inertia, mid);
        let width = |y: &[f64]| y[y.len() - 1] - y[0];
        if !(width(&narrow) * 64.0 < width(&y)) {
            return (centers, inertia, passes);
        }
        (y, best) = (narrow, Some((centers, inertia)));
    }
}

/// The index at which half of the weight is reached.
fn weighted_median(w: &[f64]) -> usize {
    let half = w.iter().fold(0.0, |sum, w| sum + w) / 2.0;
    let mut sum = 0.0;
    let reached = w.iter().position(|w| {
        sum += w;
        sum >= half
    });
    reached.expect("the sum of all is more than half of it")
}

/// Centers and inertia, after Lloyd's steps as long as they make the inertia smaller.
fn polished(x: &[f64], w: &[f64], mut borders: Borders) -> (Vec<f64>, f64) {
    let mut centers = means(x, w, &borders);
    let (mut inertia, mut nearest) = assigned(x, w, &centers);
    while nearest != borders && nearest.is_sorted_by(|a, b| a < b) {
        let moved = means(x, w, &nearest);
        let (less, further) = assigned(x, w, &moved);
        if !(less < inertia) {
            break;
        }
        (borders, centers, inertia, nearest) = (nearest, moved, less, further);
    }
    (centers, inertia)
}

/// The mean of each cluster, from its first value on: exact where that is its only one.
fn means(x: &[f64], w: &[f64], borders: &[u32]) -> Vec<f64> {
    let mean = |link: &[u32]| {
        let cluster = link[0] as usize..link[1] as usize;
        let (x, w) = (&x[cluster.clone()], &w[cluster]);
        let (mut offset, mut weight) = (0.0, 0.0);
        for (value, w) in x.iter().zip(w) {
            offset += w * (value - x[0]);
            weight += w;
        }
        (x[0] + offset / weight).min(x[x.len() - 1])
    };
    borders.windows(2).map(mean).collect()
}

/// The inertia, and the borders, where every value belongs to the nearest center.
fn assigned(x: &[f64], w: &[f64], centers: &[f64]) -> (f64, Borders) {
    let mut borders = vec![0];
    let middles = centers.windows(2).map(middle);
    borders.extend(middles.map(|middle| x.partition_point(|&x| x <= middle) as u32));
    borders.push(x.len() as u32);
    let mut inertia = 0.0;
    for (link, center) in borders.windows(2).zip(centers) {
        let cluster = link[0] as usize..link[1] as usize;
        for (x, w) in x[cluster.clone()].iter().zip(&w[cluster]) {
            let offset = x - center;
            inertia += w * offset * offset;
        }
    }
    (inertia, borders)
}

/// The values, from `x[mid]` on, with gaps narrowed that no optimal cluster spans.
fn narrowed(x: &[f64], w: &[f64], inertia: f64, mid: usize) -> Vec<f64> {
    let mut y = Vec::with_capacity(x.len());
    let (mut first, mut base) = (x[0], 0.0);
    y.push(0.0);
    for i in 1..x.len() {
        let limit = (16.0 * inertia * (1.0 / w[i - 1] + 1.0 / w[i])).sqrt();
        if x[i] - x[i - 1] > limit {
            (first, base) = (x[i], y[i - 1] + limit);
        }
        y.push((x[i] - first) + base);
    }
    let middle = y[mid];
    y.iter_mut().for_each(|y| *y -= middle);
    y
}
